import pytest

from nanochat.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """All bytes, a few merges, the special tokens."""
    return Tokenizer.train(["the cat sat on the mat, the dog too"] * 10, 275)
