"""Where each token of a vocabulary stands among token ids, for sums by token."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

PART = 8  # places of a token whose gradients are summed at once


class Sorted(NamedTuple):
    """Where each token of a vocabulary stands among token ids; all int32."""

    order: Tensor
    """(ids,): positions in the flattened ids by token, then by position."""
    begins: Tensor
    """(vocab_size + 1,): where in `order` those of each token begin, and those of the last one end."""
    parts: Tensor
    """(vocab_size,): how many parts of at most `PART` positions each token and those before it have together."""
    owners: Tensor
    """(as many parts as there can be,): the token of each part, or vocab_size where there are fewer."""

    @classmethod
    def of(cls, ids: Tensor, vocab_size: int) -> "Sorted":
        """Without waiting for the device."""
        tokens, order = ids.flatten().int().sort(stable=True)
        numbers = partial(torch.arange, device=ids.device, dtype=torch.int32)
        begins = torch.searchsorted(tokens, numbers(vocab_size + 1), out_int32=True)
        parts = (begins.diff() + PART - 1).div(PART, rounding_mode="floor").cumsum(0, dtype=torch.int32)
        most = min(vocab_size, len(tokens)) + len(tokens) // PART
        owners = torch.searchsorted(parts, numbers(most), right=True, out_int32=True)
        return cls(order.int(), begins, parts, owners)
