"""How a conversation becomes tokens, and which of them the model must learn to produce.

    <|bos|> <|user_start|> question <|user_end|>
    <|assistant_start|> text <|python_start|> 37+58 <|python_end|>
    <|output_start|> 95 <|output_end|> text <|assistant_end|>

The model writes the assistant's text, its tool calls and `<|assistant_end|>`; everything else is put before it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.tokenizer.bpe import Tokenizer

Messages = Sequence[Mapping[str, Any]]


def check_messages(messages: Messages) -> None:
    """Checks the shape of a conversation: an optional leading system message, then user and assistant in turn.

    The assistant's content is a string, or a list of parts `{"type": "text" | "python" | "python_output", "text": str}`
    where an output follows its python call.

    Raises:
        ValueError: says what is wrong and in which message, counted from 1.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError("messages must be a list")
    turns = 0
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(f"message {number} needs a role and a content")
        role, content = message["role"], message["content"]
        if role == "system" and number == 1:
            expected = "system"
        else:
            expected = "user" if turns % 2 == 0 else "assistant"
            turns += 1
        if role != expected:
            raise ValueError(f"message {number} is from {role!r}, expected {expected!r}: user and assistant take turns")
        if role == "assistant" and isinstance(content, list):
            _check_parts(content, number)
        elif not isinstance(content, str):
            raise ValueError(f"the content of message {number} ({role}) must be a string")
    if turns == 0:
        raise ValueError("there is no user message")


def _check_parts(parts: list, number: int) -> None:
    previous = None
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise ValueError(f"every part of message {number} needs a type and a text")
        kind = part.get("type")
        if kind not in ("text", "python", "python_output"):
            raise ValueError(f"message {number} has a part of unknown type {kind!r}: use text, python or python_output")
        if kind == "python_output" and previous != "python":
            raise ValueError(f"message {number} has a python_output that does not follow a python part")
        previous = kind


def render(tokenizer: Tokenizer, messages: Messages) -> tuple[list[int], list[int]]:
    """Tokens of a conversation and their supervision.

    Returns:
        ids and mask of equal length; mask 1 marks a token the model must learn to produce at that place.

    Raises:
        ValueError: as `check_messages`.
    """
    check_messages(messages)
    ids: list[int] = [tokenizer.bos_id]
    mask: list[int] = [0]

    def add_special(name: str, learned: int) -> None:
        ids.append(tokenizer.special(name))
        mask.append(learned)

    def add_text(text: str, learned: int) -> None:
        tokens = tokenizer.encode(text)
        ids.extend(tokens)
        mask.extend([learned] * len(tokens))

    for message in _merge_system(messages):
        if message["role"] == "user":
            add_special("<|user_start|>", 0)
            add_text(message["content"], 0)
            add_special("<|user_end|>", 0)
            continue
        add_special("<|assistant_start|>", 0)
        for kind, text in _parts(message["content"]):
            if kind == "python":
                add_special("<|python_start|>", 1)
                add_text(text, 1)
                add_special("<|python_end|>", 1)
            elif kind == "python_output":  # written by the tool, never by the model
                add_special("<|output_start|>", 0)
                add_text(text, 0)
                add_special("<|output_end|>", 0)
            else:
                add_text(text, 1)
        add_special("<|assistant_end|>", 1)
    return ids, mask


def render_prompt(tokenizer: Tokenizer, messages: Messages) -> list[int]:
    """Tokens up to where the assistant answers: a conversation ending with the user, and `<|assistant_start|>`.

    Raises:
        ValueError: as `check_messages`, or the last message is not the user's.
    """
    ids, _ = render(tokenizer, messages)
    if messages[-1]["role"] != "user":
        raise ValueError("the last message must be the user's")
    return [*ids, tokenizer.special("<|assistant_start|>")]


def _parts(content: str | Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """(type, text) of what the assistant says; texts that follow each other are one, however they came to be cut."""
    if isinstance(content, str):
        return [("text", content)]
    found: list[tuple[str, str]] = []
    for part in content:
        if found and found[-1][0] == part["type"] == "text":
            found[-1] = ("text", found[-1][1] + part["text"])
        else:
            found.append((part["type"], part["text"]))
    return found


def _merge_system(messages: Messages) -> list[Mapping[str, Any]]:
    """The format has no system turn: its text is put before the first user message."""
    if messages[0]["role"] != "system":
        return list(messages)
    system, user, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
