"""Matrices for products with a few rows on a CPU, which is what generation is made of.

There `F.linear` reads a matrix at a third to nine tenths of the speed that memory allows (LOG.md, 2026-11-24 and
2026-11-27). One to four rows of a large model are multiplied by code of our own, which reads it as fast as it can be
read; else up to `FEW_ROWS` go to oneDNN with the matrix in its own layout, by the operators that PyTorch's compiler
writes for frozen weights.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.gemv import MOST_ROWS, MULTIPLE, gemv

FEW_ROWS = 32  # beyond, F.linear is as fast
LARGE = 20_000_000  # bytes of a model's matrices: building gemv.c is repaid within a few hundred tokens


def can_pack(weight: Tensor) -> bool:
    """Whether this CPU's oneDNN multiplies with a matrix of its dtype."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class Packed:
    """A matrix (out, in), a copy of it in oneDNN's layout, and what multiplies with them. Neither may change any more.

    Args:
        large: whether it belongs to a model of at least `LARGE` bytes.
    """

    def __init__(self, weight: Tensor, *, large: bool) -> None:
        self.weight = weight.detach().contiguous()
        self.blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)
        usable = large and weight.size(1) % MULTIPLE == 0
        self.gemv: Callable[..., Tensor] | None = gemv() if usable else None

    def linear(self, x: Tensor, *, normed: bool = False, squared_relu: bool = False,
               add: Tensor | None = None) -> Tensor:
        """As `linear` below, for x of at most `FEW_ROWS` rows."""
        alike = all(each.dtype == self.weight.dtype for each in (x, add) if each is not None)
        if self.gemv and x.numel() <= MOST_ROWS * x.size(-1) and alike:
            return self.gemv(x, self.weight, normed=normed, squared_relu=squared_relu, add=add)
        return linear(x, self._product, normed=normed, squared_relu=squared_relu, add=add)

    def _product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.blocks, None, "none", [], "")
        return product


def linear(x: Tensor, product: Callable[[Tensor], Tensor], *, normed: bool = False, squared_relu: bool = False,
           add: Tensor | None = None) -> Tensor:
    """A product with a matrix, and what goes before and after it: an RMS norm without parameters (arXiv:1910.07467), a
    squared ReLU (arXiv:2109.08668), something added."""
    y = product(F.rms_norm(x, x.shape[-1:]) if normed else x)
    y = F.relu(y).square() if squared_relu else y
    return y if add is None else add + y


def few_rows(x: Tensor) -> bool:
    return x.numel() <= FEW_ROWS * x.size(-1)
