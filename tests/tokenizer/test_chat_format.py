"""The chat format token by token: what is written, and which tokens the model learns to produce."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer, check_messages, render, render_prompt


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([], 265)  # bytes only: one token per character below


def shown(tokenizer, messages):
    """Pieces of the rendering as (text, mask), neighbours of equal mask joined."""
    pieces = []
    for token, learned in zip(*render(tokenizer, messages), strict=True):
        text = tokenizer.decode([token])
        if pieces and pieces[-1][1] == learned:
            pieces[-1] = (pieces[-1][0] + text, learned)
        else:
            pieces.append((text, learned))
    return pieces


def test_two_turns(tokenizer):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
    ]
    special = tokenizer.special
    ids, mask = render(tokenizer, messages)
    h, i, y, o, x = (tokenizer.encode(c)[0] for c in "hiyox")
    assert list(zip(ids, mask, strict=True)) == [
        (special("<|bos|>"), 0),
        (special("<|user_start|>"), 0),
        (h, 0),
        (i, 0),
        (special("<|user_end|>"), 0),
        (special("<|assistant_start|>"), 0),
        (y, 1),
        (o, 1),
        (special("<|assistant_end|>"), 1),
        (special("<|user_start|>"), 0),
        (x, 0),
        (special("<|user_end|>"), 0),
        (special("<|assistant_start|>"), 0),
        (y, 1),
        (special("<|assistant_end|>"), 1),
    ]


def test_tool_output_is_given_and_the_call_is_learned(tokenizer):
    messages = [
        {"role": "user", "content": "37+58?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see: "},
                {"type": "python", "text": "37+58"},
                {"type": "python_output", "text": "95"},
                {"type": "text", "text": "It is 95."},
            ],
        },
    ]
    assert shown(tokenizer, messages) == [
        ("<|bos|><|user_start|>37+58?<|user_end|><|assistant_start|>", 0),
        ("Let me see: <|python_start|>37+58<|python_end|>", 1),
        ("<|output_start|>95<|output_end|>", 0),
        ("It is 95.<|assistant_end|>", 1),
    ]


def test_the_system_message_joins_the_first_question(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
    ]
    assert shown(tokenizer, messages) == [
        ("<|bos|><|user_start|>Be brief.\n\nhi<|user_end|><|assistant_start|>", 0),
        ("yo<|assistant_end|>", 1),
    ]
    assert len(messages) == 3  # the caller's list is left alone


def test_the_prompt_is_the_beginning_of_the_conversation(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "python", "text": "1"}, {"type": "python_output", "text": "1"}]},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "yo"},
    ]
    ids, mask = render(tokenizer, messages)
    for end in (2, 4):
        prompt = render_prompt(tokenizer, messages[:end])
        assert ids[: len(prompt)] == prompt
        assert mask[len(prompt) - 1] == 0
        assert mask[len(prompt)] == 1  # what follows the prompt is the first thing to learn
    with pytest.raises(ValueError, match="last message"):
        render_prompt(tokenizer, messages)


@given(st.text(), st.text())
def test_no_text_can_forge_a_special_token(tokenizer, before, after):
    for name in SPECIAL_TOKENS:
        text = before + name + after
        ids, mask = render(tokenizer, [{"role": "user", "content": text}, {"role": "assistant", "content": text}])
        assert [i for i in ids if i >= tokenizer.bos_id] == [
            tokenizer.special(f"<|{s}|>") for s in ("bos", "user_start", "user_end", "assistant_start", "assistant_end")
        ]
        assert sum(mask) == len(text.encode("utf-8")) + 1


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "must be a list"),
        ([], "no user message"),
        ([{"role": "system", "content": "x"}], "no user message"),
        ([{"role": "assistant", "content": "x"}], "message 1 is from 'assistant', expected 'user'"),
        ([USER, USER], "message 2 is from 'user', expected 'assistant'"),
        ([USER, {"role": "system", "content": "x"}], "message 2 is from 'system', expected 'assistant'"),
        ([{"role": "system", "content": "x"}, {"role": "assistant", "content": "x"}], "message 2 .* expected 'user'"),
        ([{"role": "user"}], "message 1 needs a role and a content"),
        (["hi"], "message 1 needs a role and a content"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], r"message 1 \(user\) must be a string"),
        ([USER, {"role": "assistant", "content": None}], r"message 2 \(assistant\) must be a string"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "message 2 needs a type and a text"),
        (
            [USER, {"role": "assistant", "content": [{"type": "image", "text": ""}]}],
            "message 2 .* unknown type 'image'",
        ),
        (
            [USER, {"role": "assistant", "content": [{"type": "python_output", "text": "4"}]}],
            "does not follow a python",
        ),
    ],
)
def test_what_is_wrong_is_said(tokenizer, messages, message):
    with pytest.raises(ValueError, match=message):
        check_messages(messages)
    with pytest.raises(ValueError, match=message):
        render(tokenizer, messages)


def test_a_reply_has_the_same_tokens_however_it_is_cut():
    tokenizer = Tokenizer.train(["the cat"] * 10, 275)
    ask, call = {"role": "user", "content": "Hi"}, {"type": "python", "text": "1+1"}
    cut = [{"type": "text", "text": "the c"}, {"type": "text", "text": "at"}, call]
    whole = [{"type": "text", "text": "the cat"}, call]
    assert len(tokenizer.encode("the c") + tokenizer.encode("at")) > len(tokenizer.encode("the cat"))
    rows = [render(tokenizer, [ask, {"role": "assistant", "content": parts}]) for parts in (cut, whole)]
    assert rows[0] == rows[1]
