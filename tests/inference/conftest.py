from itertools import pairwise

import pytest
import torch

from nanochat.model import ModelConfig, Transformer
from nanochat.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """All bytes, a few merges, the special tokens."""
    return Tokenizer.train(["the cat sat on the mat, the dog too"] * 10, 275)


@pytest.fixture(scope="session")
def random_model() -> Transformer:
    """Every parameter random and large enough that every part of the model decides which token comes next. Its
    vocabulary is padded beyond the tokenizer's, and the padding is what it likes most."""
    config = ModelConfig(depth=3, width=64, head_dim=16, vocab_size=320, max_seq_len=48, window_pattern="SL")
    model = Transformer(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0 if parameter.ndim == 1 else 3 * parameter.size(-1) ** -0.5, generator=generator)
        model.head[275:] *= 20
    return model


def follow(model: Transformer, successors: dict[int, int]) -> Transformer:
    """Make a classic model of few blocks write, after each token, its one successor."""
    with torch.no_grad():
        model.embedding.copy_(torch.eye(*model.embedding.shape))
        model.head.zero_()
        for token, successor in successors.items():
            model.head[successor, token] = 1.0
    return model


@pytest.fixture
def scripted(tokenizer):
    """Makes a model that writes, after the last token of each text, the rest of its row of tokens or special names."""

    def make(*rows: list[str]) -> Transformer:
        config = ModelConfig(
            depth=1,
            width=288,
            head_dim=32,
            vocab_size=275,
            max_seq_len=64,
            value_embeddings=False,
            residual_scalars=False,
            input_scalars=False,
        )
        ids = [
            [tokenizer.special(text) if text.startswith("<|") else tokenizer.encode(text)[0] for text in row]
            for row in rows
        ]
        return follow(Transformer(config), dict(pair for row in ids for pair in pairwise(row)))

    return make
