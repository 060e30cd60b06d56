"""Causal attention, whole rows at a time or against a cache, on the kernel that suits the device.

Shapes: queries, keys and values are (batch, head, time, head_dim).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("blocked", "sdpa")
QUERY_BLOCK = 128  # queries that share a product: more compute more of the masked half, fewer make products small


def choose_backend(device_type: str) -> tuple[str, str]:
    """The training backend for this device, and the reason."""
    if device_type == "cpu":
        return "blocked", "products of what the mask leaves took 0.78 of the fused CPU kernel's time"
    return "sdpa", "PyTorch's fused kernel"


def visible(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Which keys a query may see: itself and those before it, at most `window` of them. Broadcasts its arguments."""
    distance = query_positions - key_positions
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def attend(query: Tensor, key: Tensor, value: Tensor, window: int | None, backend: str) -> Tensor:
    """Causal attention within rows. Returns (batch, head, time, head_dim).

    The blocked backend needs queries and keys of unit RMS per channel, as the model makes them.
    """
    time = query.size(2)
    if window is not None and window >= time:
        window = None
    if backend == "blocked":
        return _BlockedAttention.apply(query, key, value, window)
    if window is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    positions = torch.arange(time, device=query.device)
    mask = visible(positions[:, None], positions, window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attend_cached(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Attention of new queries to everything in a cache.

    Args:
        query: (batch, head, new, head_dim).
        key, value: (batch, head, capacity, head_dim); slots after a query's own position are ignored.
        positions: (batch, new), each query's position in its own row.
    """
    slots = torch.arange(key.size(2), device=key.device)
    mask = visible(positions[:, None, :, None], slots, window)  # (batch, 1, new, capacity)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class _BlockedAttention(torch.autograd.Function):
    """Softmax attention as plain products, a block of queries at a time, over the keys that block can see.

    It skips the usual subtraction of the row maximum: with queries and keys of unit RMS a scaled score is at most
    sqrt(head_dim), far below where exp overflows. Weights stay undivided; the division by their sum happens on the
    (narrower) output, and on its gradient.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        q, k, v = (x.flatten(0, 1) for x in (query, key, value))  # (row, time, head_dim), a row being a batch's head
        q = q * q.size(-1) ** -0.5
        out = torch.empty_like(q)
        share = torch.empty_like(q[..., :1], dtype=torch.float32)  # 1 / the sum of a query's weights
        blocks = []
        for start in range(0, q.size(1), QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, q.size(1))
            first = 0 if window is None else max(start - window + 1, 0)  # the oldest key the block can see
            weights = (q[:, start:end] @ k[:, first:end].mT).exp_().tril_(start - first)
            if window is not None:
                weights.triu_(start - first - window + 1)
            share[:, start:end] = weights.sum(-1, keepdim=True, dtype=torch.float32).reciprocal_()
            torch.mul(weights @ v[:, first:end], share[:, start:end], out=out[:, start:end])
            blocks.append(weights)
        ctx.save_for_backward(q, k, v, out, share, *blocks)
        return out.view_as(query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, share, *blocks = ctx.saved_tensors
        shape = gradients[0].shape
        gradient = (gradients[0].reshape(q.shape) * share).to(q.dtype)
        mean = (gradient * out).sum(-1, keepdim=True)  # what normalising the weights takes off each score's
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for start, weights in zip(range(0, q.size(1), QUERY_BLOCK), blocks, strict=True):
            queries = slice(start, start + weights.size(1))
            keys = slice(queries.stop - weights.size(2), queries.stop)
            dv[:, keys] += weights.mT @ gradient[:, queries]
            scores = torch.baddbmm(mean[:, queries], gradient[:, queries], v[:, keys].mT, beta=-1).mul_(weights)
            dq[:, queries] = scores @ k[:, keys]
            dk[:, keys] += scores.mT @ q[:, queries]
        return dq.mul_(q.size(-1) ** -0.5).view(shape), dk.view(shape), dv.view(shape), None
