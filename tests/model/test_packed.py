"""Matrices laid out for a few rows: the same numbers, of any number of rows, and only where they are to be used."""

import pytest
import torch

from nanochat.inference.load import frozen
from nanochat.model import KVCache
from nanochat.model.packed import FEW_ROWS, can_pack
from nanochat.model.transformer import MATRICES
from tests.model.test_transformer import CONFIG, FULL, awake, some_ids

pytestmark = pytest.mark.skipif(not can_pack(torch.ones(2, 2)), reason="this CPU has no oneDNN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [CONFIG, FULL])
@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1])
@torch.inference_mode()
def test_the_same_logits_whole_and_token_by_token(rows, config, dtype):
    if not can_pack(torch.ones(2, 2, dtype=dtype)):
        pytest.skip(f"this CPU's oneDNN has no {dtype}")
    plain, packed = awake(config), frozen(awake(config, compute_dtype=dtype), dtype, "cpu")
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    ids = some_ids(rows, 8)
    assert packed.blocks[0].packed
    assert packed(ids).dtype == torch.float32
    torch.testing.assert_close(packed(ids), plain(ids), **close)
    cache = KVCache.empty(config, rows, 8, dtype)
    for place in range(8):
        logits = packed(ids[:, place : place + 1], cache)
        cache.advance(1)
        torch.testing.assert_close(logits[:, 0], plain(ids)[:, place], **close)


@torch.inference_mode()
def test_a_few_rows_are_multiplied_with_the_packed_matrices():
    model, ids = frozen(awake(), torch.float32, "cpu"), some_ids(1, 4)
    before = model(ids)
    for parameter in (*(getattr(model.blocks[0], name) for name in MATRICES), model.head):
        parameter.zero_()
    assert torch.equal(model(ids), before)
    assert not torch.allclose(model(some_ids(FEW_ROWS, 4))[:1], before)


def test_nothing_is_packed_that_is_trained():
    assert not awake().blocks[0].packed
