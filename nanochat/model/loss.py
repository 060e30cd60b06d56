"""Cross-entropy of soft-capped logits straight from hidden states, a chunk of tokens at a time.

The logits of a batch are the largest tensor of a training step. Here only a chunk of them exists at once, and the
gradients are made right there, while it is in cache: no product is done twice and nothing of that size is kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanochat.model.determinism import distinct_places

IGNORE = -1  # a target that carries no loss
# On CPU, at a vocabulary of 4,096, all of 256 to 2,048 are within a tenth. On an H200, at 32,768, 2,048 take 4 to 8 %
# longer than 4,096, and 16,384 save 4 to 6 % for four times the memory (LOG.md, 2026-11-27).
CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}


class Terms(NamedTuple):
    """Of a chunk of tokens."""

    gradient: Tensor
    """(tokens, vocab_size), of the logits before the cap, times Σe, in their dtype; the targets' are still missing."""
    column: Tensor
    """(tokens, 1), int64: where those belong."""
    of_target: Tensor
    """(tokens, 1): what belongs there."""
    share: Tensor
    """(tokens, 1): 1 / Σe, or 0 where there is no loss."""
    losses: Tensor
    """(tokens, 1)."""


ChunkTerms = Callable[[Tensor, Tensor, float], Terms]


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, cap: float,
                         terms: ChunkTerms | None = None) -> Tensor:
    """Sum over tokens of the cross-entropy of cap·tanh(hidden·headᵀ / cap), in nats, fp32.

    Args:
        hidden: (tokens, width), in the dtype to compute in.
        head: (vocab_size, width), fp32.
        targets: (tokens,), IGNORE where there is no loss.
        cap: the logits' soft-cap.
        terms: `chunk_terms` or its compiled form.
    """
    return _LinearCrossEntropy.apply(hidden, head, targets, cap, terms or chunk_terms)


def chunk_terms(raw: Tensor, targets: Tensor, cap: float) -> Terms:
    """The loss of a chunk of tokens, and its gradient in two factors.

    With s = tanh(raw / cap) and e = exp(cap·s), d loss / d raw = (e / Σe - onehot)·(1 - s²). A logit is at most `cap`,
    so no row maximum needs subtracting. The factor 1 / Σe is left out: it is a factor of each row, and cheaper where
    rows are `width` long.

    Args:
        raw: (tokens, vocab_size), logits before the cap.
        targets: (tokens,).
    """
    # With u = 1 / (exp(2·raw / cap) + 1), s = 1 - 2u and 1 - s² = 4u·(1 - u): the CPU compiler's exp is more than twice
    # as fast as its tanh.
    u = (raw.float() * (2 / cap)).exp_().add_(1).reciprocal_()
    exponentials = (cap - 2 * cap * u).exp_()
    total = exponentials.sum(-1, keepdim=True)
    gradient = exponentials.mul_(u.mul_(1 - u)).mul_(4).to(raw.dtype)
    valid, column = (targets != IGNORE)[:, None], targets.clamp_min(0)[:, None]
    chosen = torch.tanh(raw.gather(1, column).float() / cap)
    of_target = ((cap * chosen).exp() - total) * (1 - chosen.square())
    losses = torch.where(valid, total.log() - cap * chosen, 0.0)
    return Terms(gradient, column, of_target.to(raw.dtype), torch.where(valid, 1 / total, 0.0), losses)


def _put(to: Tensor, column: Tensor, values: Tensor) -> None:
    """to[row, column[row]] = values[row]."""
    with distinct_places():
        to.scatter_(1, column, values)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right, all of it in the fp32 of `total` where the device can."""
    if right.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)
    elif total.device.type == "cuda":
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, cap: float, terms: ChunkTerms) -> Tensor:
        tokens = CHUNK_TOKENS[hidden.device.type]
        weight = head.to(hidden.dtype)
        d_hidden, d_head = torch.empty_like(hidden), torch.zeros_like(head)
        loss = torch.zeros((), device=hidden.device)
        for x, target, dx in zip(hidden.split(tokens), targets.split(tokens), d_hidden.split(tokens), strict=True):
            chunk = terms(x @ weight.T, target, cap)
            _put(chunk.gradient, chunk.column, chunk.of_target)
            torch.mul(chunk.gradient @ weight, chunk.share, out=dx)
            _add_product(d_head, chunk.gradient.T, (x * chunk.share).to(x.dtype))
            loss += chunk.losses.sum()
        ctx.save_for_backward(d_hidden, d_head)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * gradients[0], d_head * gradients[0], None, None, None
