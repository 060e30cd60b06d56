"""The architecture as data: what follows from depth, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.model import ModelConfig

DEFAULT = ModelConfig.from_depth(4, 4096, 256)


@given(depth=st.integers(1, 64), classic=st.booleans())
def test_every_depth_gives_a_valid_shape_that_only_grows(depth: int, classic: bool) -> None:
    config = ModelConfig.from_depth(depth, 4096, 256, classic=classic)
    assert config.problems() == []
    assert config.width >= ModelConfig.from_depth(max(depth - 1, 1), 4096, 256).width
    assert config.num_heads * config.head_dim == config.width


def test_classic_is_the_same_shape_without_the_later_parts() -> None:
    classic = ModelConfig.from_depth(4, 4096, 256, classic=True)
    assert replace(classic, value_embeddings=True, residual_scalars=True, input_scalars=True) == DEFAULT
    assert not any(classic.has_value_embedding(layer) for layer in range(4))


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ValueError, match="depth") as caught:
        ModelConfig(depth=0, width=100, head_dim=7, vocab_size=1, max_seq_len=1, window_pattern="SXL",
                    logit_softcap=0.0)
    for field in ("depth", "head_dim must be even", "width 100 is not a multiple", "vocab_size", "max_seq_len",
                  "window_pattern", "logit_softcap"):
        assert field in str(caught.value)


@pytest.mark.parametrize("more", [{"logit_softcap": 71.0}, {"query_key_scale": 3.0, "head_dim": 64}])
def test_exponentials_must_not_overflow(more) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(more))}.* must be at most 70"):
        replace(DEFAULT, **more)


@pytest.mark.parametrize("pattern", ["", "l", "S L"])
def test_window_patterns_of_anything_else_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="window_pattern"):
        replace(DEFAULT, window_pattern=pattern)


def test_windows_follow_the_pattern_and_the_last_layer_sees_all() -> None:
    config = replace(DEFAULT, depth=6, window_pattern="SSL")
    assert [config.window(layer) for layer in range(6)] == [128, 128, None, 128, 128, None]
    assert replace(config, window_pattern="S").window(5) is None


def test_the_last_layer_has_a_value_embedding_and_every_second_before_it() -> None:
    for depth in (1, 4, 5):
        config = replace(DEFAULT, depth=depth)
        layers = [layer for layer in range(depth) if config.has_value_embedding(layer)]
        assert layers == list(range(depth - 1, -1, -2))[::-1]
