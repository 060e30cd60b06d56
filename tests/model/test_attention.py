"""Every attention backend against one plain double-precision computation, gradients included."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nanochat.model.attention import (
    BACKENDS,
    Documents,
    _is_there,
    attend,
    attend_cached,
    blocked_weights,
    cached_mask,
    unavailable,
)

BATCH, HEADS, TIME, HEAD_DIM = 2, 3, 24, 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def skip_unless_available(backend: str, dtype: torch.dtype) -> None:
    if why := unavailable(backend, DEVICE, dtype):
        pytest.skip(f"{backend} {why}")


def plain_attention(query: Tensor, key: Tensor, value: Tensor, window: int | None,
                    begins: tuple[tuple[int, ...], ...] = ((),) * BATCH) -> Tensor:
    """Softmax attention position by position, in double precision; documents begin where `begins` says."""
    query, key, value = query.double(), key.double(), value.double()
    rows = []
    for row, places in enumerate(begins):
        found = []
        for now in range(query.size(2)):
            first = max([0 if window is None else now - window + 1, *(place for place in places if place <= now), 0])
            scores = query[row, :, now : now + 1] @ key[row, :, first : now + 1].mT / query.size(-1) ** 0.5
            found.append(scores.softmax(-1) @ value[row, :, first : now + 1])
        rows.append(torch.cat(found, dim=1))
    return torch.stack(rows)


def unit_rms(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random vectors normed as the model norms queries and keys."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.rms_norm(x, shape[-1:])


@pytest.mark.parametrize("begins", [None, ((0, 2, 3, 129), (7, 200))], ids=["rows", "documents"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 5, TIME, 140])
@pytest.mark.parametrize("time", [TIME, 1, 130, 300])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_with_the_plain_computation(backend: str, time: int, window: int | None, dtype: torch.dtype,
                                                   begins: tuple[tuple[int, ...], ...] | None) -> None:
    skip_unless_available(backend, dtype)
    documents = None if begins is None else Documents.of(ids_with_documents(begins, time).to(DEVICE), bos_id=9)
    shape = (BATCH, HEADS, time, HEAD_DIM)
    inputs = [unit_rms(shape, seed).to(DEVICE, dtype).requires_grad_() for seed in range(3)]
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    upstream = unit_rms(shape, 9).to(DEVICE)
    found = attend(*inputs, window, backend, documents)
    expected = plain_attention(*exact_inputs, window, begins or ((),) * BATCH)
    assert found.dtype == dtype
    found.backward(upstream.to(dtype))
    expected.backward(upstream.to(dtype).double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    for x, exact in zip(inputs, exact_inputs, strict=True):
        torch.testing.assert_close(x.grad.double(), exact.grad, rtol=tolerance, atol=2 * tolerance)


def ids_with_documents(begins: tuple[tuple[int, ...], ...], time: int) -> Tensor:
    """Token ids (batch, time) where 9 begins a document."""
    ids = torch.zeros(len(begins), max(time, 1 + max(max(places) for places in begins)), dtype=torch.int64)
    for row, places in zip(ids, begins, strict=True):
        row[list(places)] = 9
    return ids[:, :time]


def test_documents_are_found_by_their_first_token() -> None:
    documents = Documents.of(ids_with_documents(((0, 2, 3), (2,)), 5), bos_id=9)
    assert documents.starts.tolist() == [[0, 0, 2, 3, 3], [0, 0, 2, 2, 2]]
    assert documents.offsets.tolist() == [0, 2, 3, 5, 7, 10]
    assert documents.offsets.dtype == torch.int32


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_as_large_as_normed_heads_allow_are_exact(backend: str) -> None:
    """The largest possible score, sqrt(head_dim), at a head of 128 channels: nothing overflows."""
    skip_unless_available(backend, torch.float32)
    query = torch.ones(1, 1, 4, 128, device=DEVICE)
    value = torch.arange(4.0, device=DEVICE).view(1, 1, 4, 1).expand(-1, -1, -1, 128).contiguous()
    out = attend(query, query, value, None, backend)[0, 0, :, 0]
    torch.testing.assert_close(out.cpu(), torch.tensor([0.0, 0.5, 1.0, 1.5]))


def test_memory_of_either_order_gives_the_same() -> None:
    """The model leaves (batch, time, head, head_dim) behind what it hands to a kernel that wants it so."""
    ordered = [unit_rms((BATCH, HEADS, TIME, HEAD_DIM), seed) for seed in range(3)]
    turned = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in ordered]
    for backend in ("blocked", "sdpa"):
        torch.testing.assert_close(attend(*turned, 5, backend), attend(*ordered, 5, backend))


@pytest.mark.parametrize("window", [None, 5])
def test_cached_attention_sees_what_the_whole_row_would(window: int | None) -> None:
    query, key, value = (unit_rms((2, HEADS, TIME, HEAD_DIM), seed) for seed in range(3))
    whole = attend(query, key, value, window, "sdpa")
    positions = torch.tensor([[3, 4], [20, 21]])
    rows = torch.arange(2)[:, None]
    garbage_after = key.clone()
    garbage_after[0, :, 5:] = 1e4
    new = query.transpose(1, 2)[rows, positions].transpose(1, 2)
    found = attend_cached(new, garbage_after, value, cached_mask(positions, TIME, window, new.dtype))
    torch.testing.assert_close(found, whole.transpose(1, 2)[rows, positions].transpose(1, 2))


@pytest.mark.parametrize("window", [None, 1, 100, 300])
@pytest.mark.parametrize("time", [100, 128, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocked_keeps_as_many_weights_as_plans_count(time: int, window: int | None, dtype: torch.dtype) -> None:
    query, key, value = (unit_rms((1, 1, time, 8), seed).to(dtype).requires_grad_() for seed in range(3))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend(query, key, value, window, "blocked")
    beside = 4 * time * 8 + time  # q, k, v, out, share
    seen = window if window and window < time else None
    assert sum(x.numel() for x in kept) - beside == blocked_weights(time, seen, dtype)


def flash_package(unlimited: int | None) -> SimpleNamespace:
    """What FlashAttention's packages offer, in plain computation: of (batch, time, head, head_dim), or of all rows end
    to end, where the left of a window is how many keys before its own a query sees."""

    def flash_attn_func(q, k, v, *, causal, window_size, deterministic):
        assert causal
        assert deterministic == torch.are_deterministic_algorithms_enabled()
        left, right = window_size
        assert right == 0
        distance = torch.arange(q.size(1))[:, None] - torch.arange(k.size(1))
        seen = (distance >= 0) & (distance <= (q.size(1) if left == unlimited else left))
        parts = (part.transpose(1, 2) for part in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=seen).transpose(1, 2), None

    def flash_attn_varlen_func(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **how):
        ends = cu_seqlens_q.tolist()
        assert cu_seqlens_k.tolist() == ends
        assert max_seqlen_q == max_seqlen_k >= max(end - begin for begin, end in pairwise(ends))
        rows = [flash_attn_func(*(part[None, begin:end] for part in (q, k, v)), **how)[0][0]
                for begin, end in pairwise(ends)]  # fmt: skip
        return torch.cat(rows), None

    return SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)


@pytest.mark.parametrize("begins", [None, ((0, 2, 3, 20), (7, 11))], ids=["rows", "documents"])
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize(("backend", "unlimited"), [("flash3", -1), ("flash4", None)])
def test_flash_packages_are_told_what_they_ask_for(monkeypatch, backend, unlimited, window, begins):
    monkeypatch.setattr("nanochat.model.attention.import_module", lambda name: flash_package(unlimited))
    documents = None if begins is None else Documents.of(ids_with_documents(begins, 24), bos_id=9)
    q, k, v = (unit_rms((BATCH, HEADS, 24, HEAD_DIM), seed) for seed in range(3))
    found, expected = (attend(q, k, v, window, name, documents) for name in (backend, "sdpa"))
    torch.testing.assert_close(found, expected)


def test_a_package_that_is_broken_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "broken_flash").mkdir()
    (tmp_path / "broken_flash" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    assert not _is_there("broken_flash.cute")
    assert not _is_there("no_such_package.cute")
    assert _is_there("torch.nn")
