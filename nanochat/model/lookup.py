"""Rows of embedding tables, whose gradients on a GPU need one sort of the token ids for all tables together."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.sorted_ids import Sorted


def sort_for_gradients(ids: Tensor, vocab_size: int) -> Sorted | None:
    """What the gradients of tables need to know of token ids; None: nothing, where there are none or PyTorch makes
    them."""
    return Sorted.of(ids, vocab_size) if ids.is_cuda and torch.is_grad_enabled() and _sum_by_token() else None


@cache
def _sum_by_token() -> Callable[[Tensor, Sorted], Tensor] | None:
    """The kernel, or None where it cannot be built: without Triton, a C compiler or a GPU that Triton knows."""
    try:
        from nanochat.model.token_sums import sum_by_token

        sum_by_token(torch.ones(1, 1, device="cuda"), Sorted.of(torch.zeros(1, dtype=torch.int64, device="cuda"), 1))
    except Exception:  # whatever a machine lacks: PyTorch's own way is only slower
        return None
    return sum_by_token


def lookup(ids: Tensor, table: Tensor, dtype: torch.dtype, by_token: Sorted | None) -> Tensor:
    """Rows of a table (vocab_size, width), fp32, for token ids (batch, time): (batch, time, width), in `dtype` where
    `by_token` is given."""
    return F.embedding(ids, table) if by_token is None else _Lookup.apply(table, ids, dtype, by_token)


class _Lookup(torch.autograd.Function):
    """PyTorch's own sorts the ids anew for each table, and reads and writes all in fp32."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, dtype: torch.dtype, by_token: Sorted) -> Tensor:
        ctx.by_token = by_token
        return F.embedding(ids, table.to(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        sum_by_token = _sum_by_token()
        assert sum_by_token is not None  # as something was sorted for it
        return sum_by_token(gradients[0].flatten(0, -2).contiguous(), ctx.by_token), None, None, None
