"""Matrices laid out for a few rows: the same numbers, of any number of rows, and only where they are to be used."""

import pytest
import torch

from nanochat.inference.load import frozen
from nanochat.model import KVCache
from nanochat.model.packed import FEW_ROWS, can_pack
from nanochat.model.transformer import MATRICES
from tests.model.test_transformer import CONFIG, FULL, awake, some_ids

pytestmark = pytest.mark.skipif(not can_pack(torch.ones(2, 2)), reason="this CPU has no oneDNN")


@pytest.mark.parametrize("config", [CONFIG, FULL])
@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1])
@torch.inference_mode()
def test_the_same_logits_whole_and_token_by_token(rows, config):
    plain, packed = awake(config), frozen(awake(config), torch.float32, "cpu")
    ids = some_ids(rows, 8)
    torch.testing.assert_close(packed(ids), plain(ids), rtol=1e-4, atol=1e-5)
    cache = KVCache.empty(config, rows, 8, torch.float32)
    for place in range(8):
        logits = packed(ids[:, place : place + 1], cache)
        cache.advance(1)
        torch.testing.assert_close(logits[:, 0], plain(ids)[:, place], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_few_rows_are_multiplied_with_the_packed_matrices():
    model, ids = frozen(awake(), torch.float32, "cpu"), some_ids(1, 4)
    before = model(ids)
    for parameter in (*(getattr(model.blocks[0], name) for name in MATRICES), model.head):
        parameter.zero_()
    assert torch.equal(model(ids), before)
    assert not torch.allclose(model(some_ids(FEW_ROWS, 4))[:1], before)


def test_nothing_is_packed_that_is_trained_or_in_bf16():
    assert not awake().blocks[0].packed
    assert not frozen(awake(compute_dtype=torch.bfloat16), torch.bfloat16, "cpu").blocks[0].packed
