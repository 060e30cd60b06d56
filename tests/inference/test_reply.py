from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanochat.inference.reply import ReplyReader, read_reply, reply_text
from nanochat.tokenizer import check_messages, render


def test_a_call_becomes_parts(tokenizer):
    parts = [
        {"type": "text", "text": "Let me see: "},
        {"type": "python", "text": "37+58"},
        {"type": "python_output", "text": "95"},
        {"type": "text", "text": " It is 95. é"},
    ]
    ids, _ = render(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": parts}])
    ids = ids[ids.index(tokenizer.special("<|assistant_start|>")) + 1 :]
    assert read_reply(tokenizer, ids) == parts
    assert reply_text(parts) == "Let me see:  It is 95. é"


@settings(max_examples=100)
@given(st.text())
def test_characters_are_never_split(tokenizer, text):
    reader = ReplyReader(tokenizer)
    pieces = [piece for token in tokenizer.encode(text) for piece in reader.feed(token)]
    assert "".join(piece for _, piece in pieces) == text
    assert reader.finish() == []
    assert reply_text(reader.parts) == text


@settings(max_examples=200)
@given(st.lists(st.integers(0, 255) | st.integers(266, 274), max_size=30))
@example([271, 272, 194, 273])  # half a character between a call and its result
def test_whatever_comes_is_a_valid_message(tokenizer, ids):
    reader = ReplyReader(tokenizer)
    shown = [piece for token in ids for piece in reader.feed(token)] + reader.finish()
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": reader.parts}]
    check_messages(messages)
    render(tokenizer, messages)
    for kind in ("text", "python", "python_output"):
        assert "".join(text for shown_kind, text in shown if shown_kind == kind) == "".join(
            part["text"] for part in reader.parts if part["type"] == kind
        )


def test_half_a_character_at_the_end(tokenizer):
    half = tokenizer.encode("aé")[:-1]
    assert reply_text(read_reply(tokenizer, half)) == "a\N{REPLACEMENT CHARACTER}"
    assert read_reply(tokenizer, [*half, tokenizer.special("<|python_start|>"), *half]) == [
        {"type": kind, "text": "a\N{REPLACEMENT CHARACTER}"} for kind in ("text", "python")
    ]
