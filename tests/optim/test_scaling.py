"""Hyperparameters scale as their docstring says."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.model import ModelConfig, count_parameters
from nanochat.optim.scaling import (
    REFERENCE_BATCH,
    REFERENCE_MODEL,
    STRONGEST,
    for_repetitions,
    hyperparameters,
    optimal_batch_tokens,
    optimal_tokens,
    reference_tokens,
)


def test_the_reference_run_gets_the_reference_values() -> None:
    peak = hyperparameters(REFERENCE_MODEL, REFERENCE_BATCH, reference_tokens())
    assert (peak.matrix_lr, peak.embedding_lr, peak.head_lr, peak.scalar_lr, peak.weight_decay) == pytest.approx(
        (0.02, 0.3, 0.008, 0.1, 0.2))
    assert optimal_batch_tokens(reference_tokens()) == REFERENCE_BATCH
    assert optimal_tokens(REFERENCE_MODEL) == round(reference_tokens())


def test_learning_rates_follow_the_square_root_of_the_batch() -> None:
    small = hyperparameters(REFERENCE_MODEL, 2048, 1e6)
    large = hyperparameters(REFERENCE_MODEL, 4 * 2048, 1e6)
    for name in ("matrix_lr", "embedding_lr", "head_lr", "scalar_lr", "weight_decay"):
        assert getattr(large, name) == pytest.approx(2 * getattr(small, name))


def test_only_adamw_rates_of_tables_follow_width() -> None:
    narrow = hyperparameters(ModelConfig.from_depth(4, 32_768, 2048), 2048, 1e6)  # a third of the reference's width
    wide = hyperparameters(REFERENCE_MODEL, 2048, 1e6)
    assert narrow.embedding_lr == pytest.approx(3**0.5 * wide.embedding_lr)
    assert narrow.head_lr == pytest.approx(3**0.5 * wide.head_lr)
    assert (narrow.matrix_lr, narrow.scalar_lr) == (wide.matrix_lr, wide.scalar_lr)


def test_weight_decay_halves_when_the_horizon_doubles() -> None:
    short, long = (hyperparameters(REFERENCE_MODEL, 2048, tokens) for tokens in (1e6, 2e6))
    assert short.weight_decay == pytest.approx(2 * long.weight_decay)
    assert short.matrix_lr == long.matrix_lr


@given(st.floats(0.1, 16), st.integers(512, 2**21), st.floats(1e5, 1e12))
def test_weights_forget_at_the_same_pace_whatever_the_learning_rate(multiplier, batch, tokens) -> None:
    """The matrices are averaged over the same share of the training; of a very short one never in a step or two."""
    peak = hyperparameters(REFERENCE_MODEL, batch, tokens, multiplier)
    a_step = multiplier * peak.matrix_lr * peak.weight_decay
    assert a_step == pytest.approx(min(0.02 * 0.2 * reference_tokens() / REFERENCE_BATCH / (tokens / batch), 0.5))
    assert replace(peak, weight_decay=0) == replace(hyperparameters(REFERENCE_MODEL, batch, tokens), weight_decay=0)


def test_what_is_gone_through_again_by_a_large_model_decays_more() -> None:
    """As measured on WikiText-2, of 525,000 parameters: 4 epochs of 45,000 tokens and of 180,000, 3.6 of 857,000."""
    factors = [for_repetitions(524_288, epochs * unique, unique)
               for epochs, unique in ((4, 45_000), (4, 180_000), (3.6, 857_000))]  # fmt: skip
    assert factors[0] == factors[1] == STRONGEST
    assert 1 < factors[2] < 2
    assert for_repetitions(1e9, 1e6, 1e6) == 1, "once through, however large the model"
    assert for_repetitions(1e9, 1e12, float("inf")) == 1
    once, again = (hyperparameters(REFERENCE_MODEL, 512, 1e6, unique_tokens=unique) for unique in (1e6, 1e5))
    assert again == replace(once, weight_decay=STRONGEST * once.weight_decay)


def test_horizons_and_batches_grow_with_the_model() -> None:
    config = ModelConfig.from_depth(4, 4096, 256)
    assert optimal_tokens(config, ratio=20) == 20 * count_parameters(config).scaling
    batches = [optimal_batch_tokens(10.0**power) for power in range(5, 12)]
    assert batches == sorted(batches)
    assert all(batch & (batch - 1) == 0 for batch in batches)
