"""Choosing the next token from logits."""

import torch
from torch import Tensor


def check_sampling(temperature: float, top_k: int | None) -> None:
    """Raises ValueError for a temperature or top_k that means nothing."""
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")


def sample(logits: Tensor, uniform: Tensor, temperature: float, top_k: int | None = None) -> Tensor:
    """One token a row, by inverting the cumulative distribution at a number drawn beforehand.

    Args:
        logits: (rows, vocab), fp32.
        uniform: (rows,) in [0, 1). With the randomness an argument, a row's token depends on nothing but its own row.
        temperature: 0 takes the most likely token, 1 samples the model's distribution.
        top_k: sample among this many most likely tokens only.

    Returns: token ids (rows,).
    """
    if temperature == 0:
        return logits.argmax(-1)
    chosen, ids = logits.topk(min(top_k or logits.size(-1), logits.size(-1)))  # (rows, k), most likely first
    # The largest logit is made zero first: a tiny temperature then divides to -inf at worst, never to inf - inf.
    weights = ((chosen - chosen[:, :1]) / temperature).double().exp()
    cumulative = weights.cumsum(-1)  # fp64: rounding over a large vocabulary stays far below any probability
    threshold = uniform.double()[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, threshold, right=True)  # first one above, hence of non-zero weight
    return ids.gather(-1, place)[:, 0]
