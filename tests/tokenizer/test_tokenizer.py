"""The tokenizer: exact, deterministic, and refused when its file is not what was written."""

import json
import os
import subprocess
import sys

import pytest
import rustbpe
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import UserError
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.tokenizer.bpe import SPLIT_PATTERN

DOCUMENTS = [
    "The quick brown fox doesn't jump over 12345 lazy dogs.\n\n    def quick(brown):\n        return brown + 1\n",
    "Größe, Straße und Übermut: 漢字かな交じり文 🙂🙃 مرحبا",
    "What is the capital of France? The capital of France is Paris. " * 5,
]
# Text made of the pieces that could go wrong: special names, half-special names, rare whitespace, any character.
TEXT = st.lists(
    st.one_of(st.text(), st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "\r\n", "\u2028", "\u00a0", "   ", "1234"]))
).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(DOCUMENTS, 400)


@settings(max_examples=300)
@given(TEXT)
def test_any_text_round_trips_without_special_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.bos_id for i in ids)
    assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode("utf-8"))
    assert tokenizer.encode_batch([text, "", text], num_threads=2) == [ids, [], ids]


@pytest.mark.parametrize("text", [" " * 1_000_000 + "x", "a" * 1_000_000, "\n" * 1_000_000, "!?" * 500_000])
@pytest.mark.timeout(30)
def test_monotonous_text_is_no_trap(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert Tokenizer.train([text], 270).vocab_size >= 265


def test_a_batch_keeps_its_order(tokenizer):
    texts = [f"text {i}" for i in range(100)]
    assert tokenizer.encode_batch(texts, num_threads=3) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([], num_threads=3) == []


def test_layout_of_the_vocabulary(tokenizer):
    assert tokenizer.vocab_size == 400
    assert [tokenizer.special(name) for name in SPECIAL_TOKENS] == list(range(391, 400))
    assert tokenizer.bos_id == 391
    assert sorted(tokenizer.decode_bytes([i]) for i in range(256)) == [bytes([b]) for b in range(256)]
    lengths = tokenizer.token_bytes()
    assert lengths.shape == (400,)
    assert lengths.dtype == "int32"
    assert (lengths[391:] == 0).all()
    assert all(lengths[i] == len(tokenizer.decode_bytes([i])) for i in range(391))
    assert tokenizer.decode([391, *tokenizer.encode("hi")]) == "<|bos|>hi"
    assert tokenizer.decode(tokenizer.encode("é")[:1] if len(tokenizer.encode("é")) > 1 else [0xC3]) == "\ufffd"


def test_digits_stand_alone(tokenizer):
    assert len(Tokenizer.train(["2024 2024 2024 2024 "] * 50, 300).encode("2024")) == 4


def test_tiktoken_merges_as_the_trainer_did(tokenizer):
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(DOCUMENTS), 391, pattern=SPLIT_PATTERN)
    for document in DOCUMENTS:
        assert trainer.encode(document) == tokenizer.encode(document)


def test_training_is_deterministic_across_processes_and_threads(tokenizer):
    script = (
        "import sys, json; from nanochat.tokenizer import Tokenizer;"
        "print(Tokenizer.train(json.loads(sys.argv[1]), 400).fingerprint)"
    )
    for threads in ("1", "3"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", script, json.dumps(DOCUMENTS)]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        assert output.strip() == tokenizer.fingerprint
    assert Tokenizer.train(DOCUMENTS, 401).fingerprint != tokenizer.fingerprint


def test_tiny_text_gives_a_smaller_vocabulary_and_an_impossible_size_is_refused():
    assert 265 <= Tokenizer.train(["ab ab"], 4096).vocab_size < 300
    with pytest.raises(UserError, match="cannot hold"):
        Tokenizer.train(["ab"], 264)


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    tokenizer.save(tmp_path / "tokenizer")
    assert [p.name for p in (tmp_path / "tokenizer").iterdir()] == ["tokenizer.json"]
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(DOCUMENTS[1]) == tokenizer.encode(DOCUMENTS[1])
    assert loaded.vocab_size == 400


@pytest.mark.parametrize(
    "damage",
    [
        lambda contents: contents.update(pattern=contents["pattern"] + "|x"),
        lambda contents: contents["tokens"].__setitem__(300, contents["tokens"][301]),
        lambda contents: contents["tokens"].pop(),
        lambda contents: contents["special_tokens"].reverse(),
        lambda contents: contents.pop("fingerprint"),
    ],
)
def test_a_changed_file_is_refused_by_name(tokenizer, tmp_path, damage):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    contents = json.loads(path.read_text())
    damage(contents)
    path.write_text(json.dumps(contents))
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}"])
def test_a_broken_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        Tokenizer.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_failed_save_leaves_the_old_file(tokenizer, tmp_path, monkeypatch):
    tokenizer.save(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Tokenizer.train(["other"], 300).save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
