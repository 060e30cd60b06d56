"""Where data comes from, and what of it is never trained on."""

from nanochat.data.documents import is_validation
from nanochat.data.sources import open_sources


def test_the_tokenizer_sees_no_validation_text_of_little_data(tmp_path):
    documents = [f"document {i}" for i in range(1000)]
    (tmp_path / "x.txt").write_text("<|endoftext|>".join(documents))
    sources = open_sources(str(tmp_path / "x.txt"), tmp_path / "cache")
    assert sources.one_in == 16
    seen = set(sources.tokenizer_texts(10_000_000))
    assert {text for text in documents if text not in seen} == {text for text in documents if is_validation(text, 16)}
    chosen = [text for text in sources.tokenizer_texts(10_000_000, share=0.1) if text in documents]
    assert 60 < len(chosen) < 140
    assert not any(is_validation(text, 16) for text in chosen)
