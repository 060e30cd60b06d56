"""Where data comes from, and what of it is never trained on."""

import datasets
import pytest

from nanochat.data import sources
from nanochat.data.documents import is_validation
from nanochat.data.sources import open_questions, open_sources
from nanochat.errors import UserError
from nanochat.tasks.questions import read_questions
from tests.conversations import shelf

__all__ = ["shelf"]


def test_the_tokenizer_sees_no_validation_text_of_little_data(tmp_path, base_dir):
    documents = [f"document {i}" for i in range(1000)]
    (tmp_path / "x.txt").write_text("<|endoftext|>".join(documents))
    found = open_sources(str(tmp_path / "x.txt"), base_dir)
    assert found.one_in == 16
    seen = set(found.tokenizer_texts(10_000_000))
    assert {text for text in documents if text not in seen} == {text for text in documents if is_validation(text, 16)}
    chosen = [text for text in found.tokenizer_texts(10_000_000, share=0.1) if text in documents]
    assert 60 < len(chosen) < 140
    assert not any(is_validation(text, 16) for text in chosen)


def test_questions_need_neither_text_nor_conversations(shelf, base_dir, tmp_path, monkeypatch):
    made = open_sources("tinyworld", base_dir, "public", ("mid", "sft")).questions
    assert open_questions("public", ("mid", "sft"), base_dir) == made
    monkeypatch.setattr(sources, "open_public", pytest.fail)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tinyworld").symlink_to(base_dir / "tinyworld")
    own = str(tmp_path / "moved.jsonl")
    for chat, stages, skill in (("public", ("sft",), "arc_easy"), ("public", ("base",), "identity"),
                                ("tinyworld", ("sft",), "identity"), (own, ("sft",), "identity")):  # fmt: skip
        asked = read_questions(open_questions(chat, stages, other))
        assert skill in {question.skill for question in asked}


def test_questions_out_of_reach_are_told_with_what_helps(tmp_path, monkeypatch):
    def nobody(*args, **how):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", nobody)
    with pytest.raises(UserError, match="cannot be had from the data hub: no route to host") as caught:
        open_questions("public", ("sft",), tmp_path)
    assert caught.value.hint == "set HF_ENDPOINT to a mirror of the hub"
