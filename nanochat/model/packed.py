"""Matrices laid out for products with a few rows on a CPU, which is what generation is made of.

There `F.linear` reads a matrix at a third to nine tenths of the speed that oneDNN reads it at in its own layout
(LOG.md, 2026-11-24 and 2026-11-27). The operators are those that PyTorch's own compiler writes for frozen weights.
"""

import torch
from torch import Tensor

FEW_ROWS = 32  # beyond, F.linear is as fast


def can_pack(weight: Tensor) -> bool:
    """Whether this CPU's oneDNN multiplies with a matrix of its dtype."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def pack(weight: Tensor) -> Tensor:
    """A copy of a matrix (out, in), opaque but for `packed_linear`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
    return packed


def packed_linear(x: Tensor, packed: Tensor) -> Tensor:
    """x · weightᵀ for x (…, in)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, None, "none", [], "")
    return product


def few_rows(x: Tensor) -> bool:
    return x.numel() <= FEW_ROWS * x.size(-1)
