"""Causal attention, whole rows at a time or against a cache, on the kernel that suits the device.

Shapes: queries, keys and values are (batch, head, time, head_dim). What lies in memory behind them may be
(batch, time, head, head_dim), which most kernels want; `HEADS_FIRST` are the ones that do not.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.compiler import tell_of_determinism

BACKENDS = ("blocked", "sdpa", "varlen", "flash3", "flash4", "flex")
HEADS_FIRST = ("blocked",)
FLASH = {  # generations with a deterministic backward pass, and the module
    "flash3": ((9,), "Hopper", "flash_attn_interface"),
    "flash4": ((9, 10), "Hopper or Blackwell (B200)", "flash_attn.cute"),
}


def unavailable(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot train here; None: it can."""
    if backend in ("blocked", "sdpa"):
        return None
    if device.type != "cuda":
        return "needs a GPU"
    if backend == "flex":
        return None
    if dtype not in (torch.bfloat16, torch.float16):
        return "needs 16-bit numbers"
    generation = torch.cuda.get_device_capability(device)[0]
    if backend in FLASH:
        generations, name, module = FLASH[backend]
        if generation not in generations:
            return f"needs a GPU of the {name} generation"
        return None if _is_there(module) else f"needs the package {module}"
    if generation < 8:
        return "needs a GPU of the Ampere generation or later"
    if find_spec("torch.nn.attention.varlen") is None:
        return "needs torch.nn.attention.varlen"
    from torch.nn.attention.varlen import varlen_attn

    return None if "window_size" in inspect.signature(varlen_attn).parameters else "knows no windows in this torch"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # what it is a part of is not there, or broken
        return False


@dataclass(frozen=True)
class Documents:
    """The documents that share a row, for attention that stays within them. The rest of one that a packing has cut
    does not begin with the token that tells; it counts to what stands before it in its row."""

    starts: Tensor
    """int64 (batch, time): where in its row the document of each position begins."""
    _masks: dict[tuple[str, int | None], Any] = field(default_factory=dict)
    """Made once a forward pass, for all layers."""

    @classmethod
    def of(cls, ids: Tensor, bos_id: int) -> "Documents":
        """Those of token ids (batch, time), each beginning with `bos_id`; what stands before the first is one too."""
        places = torch.arange(ids.size(1), device=ids.device)
        return cls(torch.where(ids == bos_id, places, 0).cummax(1).values)

    @cached_property
    def offsets(self) -> Tensor:
        """int32 (documents + 1,): where each begins and the last one ends, all rows end to end. On a GPU it waits for
        the device, once a forward pass."""
        begins = self.starts == torch.arange(self.starts.size(1), device=self.starts.device)
        return F.pad(begins.flatten().nonzero()[:, 0], (0, 1), value=begins.numel()).int()

    def mask(self, window: int | None) -> Tensor:
        """bool (batch, 1, time, time): what is visible."""
        if ("plain", window) not in self._masks:
            places = torch.arange(self.starts.size(1), device=self.starts.device)
            own = places >= self.starts[:, None, :, None]
            self._masks["plain", window] = visible(places[:, None], places, window) & own
        return self._masks["plain", window]

    def block_mask(self, window: int | None) -> Any:
        """The same as FlexAttention wants it."""
        if ("blocks", window) not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            (batch, time), starts = self.starts.shape, self.starts

            def seen(row: Tensor, head: Tensor, at: Tensor, of: Tensor) -> Tensor:
                return visible(at, of, window) & (of >= starts[row, at])

            made = create_block_mask(seen, batch, None, time, time, device=str(starts.device))
            self._masks["blocks", window] = made
        return self._masks["blocks", window]


def visible(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Which keys a query may see: itself and those before it, at most `window` of them. Broadcasts its arguments."""
    distance = query_positions - key_positions
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    backend: str,
    documents: Documents | None = None,
    parts: "BlockParts | None" = None,
) -> Tensor:
    """Causal attention within rows, or within their documents. Returns (batch, head, time, head_dim).

    The blocked backend needs queries and keys of unit RMS per channel, as the model makes them; `parts` is for it.
    """
    if window is not None and window >= query.size(2):
        window = None
    if backend == "blocked":
        starts = None if documents is None else documents.starts
        return _BlockedAttention.apply(query, key, value, window, starts, parts or PLAIN)
    return _KERNELS[backend](query, key, value, window, documents)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, window: int | None, documents: Documents | None) -> Tensor:
    """PyTorch's own choice; windows and documents are masks, so that they save neither time nor memory."""
    if window is None and documents is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    positions = torch.arange(query.size(2), device=query.device)
    mask = visible(positions[:, None], positions, window) if documents is None else documents.mask(window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _varlen(query: Tensor, key: Tensor, value: Tensor, window: int | None, documents: Documents | None) -> Tensor:
    """FlashAttention 2 as PyTorch has it (arXiv:2307.08691), with windows that save what they leave out."""
    from torch.nn.attention.varlen import varlen_attn

    batch, _, time, _ = query.shape
    offsets = _row_offsets(batch, time, query.device) if documents is None else documents.offsets
    q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))  # (batch x time, head, head_dim)
    left = -1 if window is None else window - 1
    out = varlen_attn(q, k, v, offsets, offsets, time, time, window_size=(left, 0))
    assert isinstance(out, Tensor)
    return out.unflatten(0, (batch, time)).transpose(1, 2)


@cache
def _row_offsets(batch: int, time: int, device: torch.device) -> Tensor:
    return torch.arange(0, (batch + 1) * time, time, dtype=torch.int32, device=device)


def _flash(
    backend: str, query: Tensor, key: Tensor, value: Tensor, window: int | None, documents: Documents | None
) -> Tensor:
    """FlashAttention 3 (arXiv:2407.08608) or 4 (arXiv:2603.05451), where its package is installed."""
    package = import_module(FLASH[backend][2])
    batch, _, time, _ = query.shape
    parts = [part.transpose(1, 2) for part in (query, key, value)]  # (batch, time, head, head_dim)
    unlimited = -1 if backend == "flash3" else None
    how: dict[str, Any] = {
        "causal": True,
        "window_size": (unlimited if window is None else window - 1, 0),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if documents is None:
        out = package.flash_attn_func(*parts, **how)
    else:
        how |= dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), documents.offsets)
        how |= dict.fromkeys(("max_seqlen_q", "max_seqlen_k"), time)
        out = package.flash_attn_varlen_func(*(part.flatten(0, 1) for part in parts), **how)
    out = out[0] if isinstance(out, tuple) else out
    return out.view(batch, time, *out.shape[-2:]).transpose(1, 2)


def _flex(query: Tensor, key: Tensor, value: Tensor, window: int | None, documents: Documents | None) -> Tensor:
    """FlexAttention (arXiv:2412.05496), compiled for this mask."""
    rows = _block_mask(query.size(2), window, query.device) if documents is None else documents.block_mask(window)
    return _compiled_flex()(*(part.transpose(1, 2) for part in (query, key, value)), rows).transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    """Of (batch, time, head, head_dim): gradients of what a graph returns are copied if they are not contiguous."""
    from torch.nn.attention.flex_attention import flex_attention

    tell_of_determinism()

    def time_first(query: Tensor, key: Tensor, value: Tensor, rows: Any) -> Tensor:
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        out = flex_attention(query, key, value, block_mask=rows)
        assert isinstance(out, Tensor)
        return out.transpose(1, 2)

    return torch.compile(time_first, dynamic=False)


@cache
def _block_mask(time: int, window: int | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(batch: Tensor, head: Tensor, at: Tensor, of: Tensor) -> Tensor:
        return visible(at, of, window)

    return create_block_mask(seen, None, None, time, time, device=str(device))


_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, int | None, Documents | None], Tensor]] = {
    "sdpa": _sdpa, "varlen": _varlen, "flex": _flex, **{backend: partial(_flash, backend) for backend in FLASH}
}  # fmt: skip


def cached_mask(positions: Tensor, slots: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What new queries see of a cache, to be added to their scores: 0, or -inf, also for slots after their own.

    Args:
        positions: (batch, new), each query's position in its own row.
        slots: of the cache.

    Returns: (batch, 1, new, slots).
    """
    seen = visible(positions[:, None, :, None], torch.arange(slots, device=positions.device), window)
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf)


def attend_cached(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of new queries to everything in a cache. Returns (batch, head, new, head_dim).

    Args:
        query: (batch, head, new, head_dim).
        key, value: (batch, head, slots, head_dim).
        mask: from `cached_mask`.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def query_block(dtype: torch.dtype) -> int:
    """Queries that share a product in the blocked backend: more compute more of the masked half, fewer make products
    small. Where a CPU multiplies 16-bit numbers, it does so several times as fast, and wants them large."""
    return 128 if dtype == torch.float32 else 256


def blocked_weights(time: int, window: int | None, dtype: torch.dtype) -> int:
    """How many attention weights the blocked backend keeps for the backward pass, of each head of a row of `time`."""
    block = query_block(dtype)
    blocks = ((start, min(start + block, time)) for start in range(0, time, block))
    return sum((end - start) * (end - _oldest(start, window)) for start, end in blocks)


def _oldest(start: int, window: int | None) -> int:
    """The first key that the block of queries from `start` on can see."""
    return 0 if window is None else max(start - window + 1, 0)


def block_weights(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights before they are divided, from scores, which they replace, and 1 / the sum of each query's.

    Args:
        scores: (batch, head, query, key).
        mask: (batch or 1, 1, query, key), 1 where a query sees a key and 0 elsewhere.
    """
    weights = scores.exp_().mul_(mask)
    return weights, weights.sum(-1, keepdim=True).reciprocal_()


def block_score_gradients(gradients: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
    """Gradients of scores from those of weights, which they replace: both (row, query, key), mean (row, query, 1)."""
    return gradients.sub_(mean).mul_(weights)


class BlockParts(NamedTuple):
    """What the blocked backend does between its products: these functions or their compiled form."""

    weights: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = block_weights
    score_gradients: Callable[[Tensor, Tensor, Tensor], Tensor] = block_score_gradients

    def compiled(self) -> "BlockParts":
        """Once for all lengths, of which a row's blocks have as many as there are blocks."""
        once = partial(torch.compile, fullgraph=True, dynamic=True)
        return BlockParts(once(self.weights), once(self.score_gradients))


PLAIN = BlockParts()


class _BlockedAttention(torch.autograd.Function):
    """Softmax attention as plain products, a block of queries at a time, over the keys that block can see.

    It skips the usual subtraction of the row maximum: with queries and keys of unit RMS a scaled score is at most
    sqrt(head_dim), far below where exp overflows. Weights stay undivided; the division by their sum happens on the
    (narrower) output, and on its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None,
        starts: Tensor | None,
        parts: BlockParts,
    ) -> Tensor:
        q, k, v = (x.flatten(0, 1) for x in (query, key, value))  # (row, time, head_dim), a row being a batch's head
        q = q * q.size(-1) ** -0.5
        out = torch.empty_like(q)
        share = torch.empty_like(q[..., :1])  # 1 / the sum of a query's weights
        blocks, block = [], query_block(q.dtype)
        for start in range(0, q.size(1), block):
            end = min(start + block, q.size(1))
            first = _oldest(start, window)
            queries, keys = (torch.arange(*ends, device=q.device) for ends in ((start, end), (first, end)))
            mask = visible(queries[:, None], keys, window)[None, None]
            if starts is not None:
                mask = mask & (starts[:, None, start:end, None] <= keys)
            scores = (q[:, start:end] @ k[:, first:end].mT).unflatten(0, query.shape[:2])
            weights, shares = (part.flatten(0, 1) for part in parts.weights(scores, mask.to(q.dtype)))
            share[:, start:end] = shares
            torch.mul(weights @ v[:, first:end], shares, out=out[:, start:end])
            blocks.append(weights)
        ctx.save_for_backward(q, k, v, out, share, *blocks)
        ctx.score_gradients = parts.score_gradients
        return out.view_as(query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, share, *blocks = ctx.saved_tensors
        shape = gradients[0].shape
        gradient = gradients[0].reshape(q.shape) * share
        mean = (gradient * out).sum(-1, keepdim=True)  # what normalising the weights takes off each score's
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        before = q.size(1) - blocks[-1].size(2)  # keys that the last block does not see, as all others are its to write
        dk[:, :before] = dv[:, :before] = 0
        starts = range(0, q.size(1), query_block(q.dtype))
        for start, weights in reversed(list(zip(starts, blocks, strict=True))):
            queries = slice(start, start + weights.size(1))
            keys = slice(queries.stop - weights.size(2), queries.stop)
            _put_product(dv[:, keys], weights.mT, gradient[:, queries], add=weights is not blocks[-1])
            scores = ctx.score_gradients(gradient[:, queries] @ v[:, keys].mT, mean[:, queries], weights)
            _put_product(dq[:, queries], scores, k[:, keys])
            _put_product(dk[:, keys], scores.mT, q[:, queries], add=weights is not blocks[-1])
        return dq.mul_(q.size(-1) ** -0.5).view(shape), dk.view(shape), dv.view(shape), None, None, None


def _put_product(to: Tensor, left: Tensor, right: Tensor, *, add: bool = False) -> None:
    """`to` becomes left · right, or has it added; (row, m, n) all of them. Straight into its memory, but for parts of a
    float32 tensor, which that makes a third slower."""
    if to.dtype == torch.float32 and not to.is_contiguous():
        (to.add_ if add else to.copy_)(left @ right)
    elif add:
        to.baddbmm_(left, right)
    else:
        torch.bmm(left, right, out=to)
