"""A reply as it arrives: token ids into the parts of a message, a character never split."""

import codecs
from collections.abc import Iterable

from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer


class ReplyReader:
    """Sorts the tokens of one reply into text, python (a calculator call) and python_output parts.

    `parts` is at all times a valid `content` of an assistant's message (see `nanochat.tokenizer.chat`).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.parts: list[dict[str, str]] = []
        self._tokenizer = tokenizer
        self._names = {tokenizer.special(name): name for name in SPECIAL_TOKENS}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._kind = "text"

    def feed(self, token: int) -> list[tuple[str, str]]:
        """What this token completes: (kind of part, text) pairs to show, often one, at most two."""
        name = self._names.get(token)
        if name is None:
            return self._add(self._decoder.decode(self._tokenizer.decode_bytes([token])))
        pieces = self.finish()
        if name == "<|python_start|>":
            self._begin("python")
        elif name == "<|output_start|>" and self.parts and self.parts[-1]["type"] == "python":
            self._begin("python_output")
        elif name in ("<|python_end|>", "<|output_end|>"):
            self._kind = "text"
        return pieces  # any other special token has no meaning here

    def finish(self) -> list[tuple[str, str]]:
        """What is left of a character that was never completed."""
        pieces = self._add(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        return pieces

    def _begin(self, kind: str) -> None:
        self._kind = kind
        self.parts.append({"type": kind, "text": ""})

    def _add(self, text: str) -> list[tuple[str, str]]:
        if not text:
            return []
        if not self.parts or self.parts[-1]["type"] != self._kind:
            self.parts.append({"type": self._kind, "text": ""})
        self.parts[-1]["text"] += text
        return [(self._kind, text)]


def read_reply(tokenizer: Tokenizer, ids: Iterable[int]) -> list[dict[str, str]]:
    """The parts of a whole reply."""
    reader = ReplyReader(tokenizer)
    for token in ids:
        reader.feed(token)
    reader.finish()
    return reader.parts


def reply_text(parts: Iterable[dict[str, str]]) -> str:
    """What a reply says, calculator calls and their results left out."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


def least_room(context: int, max_tokens: int | None) -> int:
    """Tokens that a prompt should leave for the reply: its most, or a quarter of the context if that is less.

    Args:
        context: tokens of prompt and reply together.
        max_tokens: of the reply; None: as many as there is room for.
    """
    return max(1, min(max_tokens or context, context // 4))
