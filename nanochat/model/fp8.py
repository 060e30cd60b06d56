"""Matrix products in 8-bit floating point, which GPUs from Hopper on multiply twice as fast as bfloat16.

Weights and activations go as e4m3, gradients as e5m2, each tensor scaled as a whole to the range of its format
(Micikevicius et al. 2022, arXiv:2209.05433). Master weights and what is accumulated stay as they are.
"""

from typing import Any

import torch
from torch import Tensor

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
LEAST = 1e-12  # of the largest element: nothing is divided by 0


def fp8_unavailable(device: torch.device) -> str | None:
    """Why products cannot be made in fp8 here; None: they can."""
    if device.type != "cuda" or not torch.cuda.is_available() or torch.cuda.get_device_capability(device) < (8, 9):
        return "needs a GPU of the Ada, Hopper or a later generation"
    return None


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ of x (…, in) and weight (out, in), both bfloat16; in, out and the number of rows are multiples
    of 16."""
    return _Fp8Linear.apply(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        (x8, x_scale), (weight8, weight_scale) = _scaled(x, FORWARD), _scaled(weight, FORWARD)
        ctx.save_for_backward(x8, x_scale, weight8, weight_scale)
        return torch._scaled_mm(x8, weight8.T, x_scale, weight_scale, out_dtype=x.dtype, use_fast_accum=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, weight8, weight_scale = ctx.saved_tensors
        dtype = gradients[0].dtype
        gradient8, scale = _scaled(gradients[0], BACKWARD)
        dx = torch._scaled_mm(gradient8, _column_major(weight8), scale, weight_scale, out_dtype=dtype)
        d_weight = torch._scaled_mm(gradient8.T.contiguous(), _column_major(x8), scale, x_scale, out_dtype=dtype)
        return dx, d_weight


def _scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in fp8, its largest element at the end of the range, and what to multiply it with to undo that, fp32."""
    inverse = x.abs().amax().float().clamp_min(LEAST) / torch.finfo(dtype).max
    largest = torch.finfo(dtype).max
    return (x.float() / inverse).clamp(-largest, largest).to(dtype).contiguous(), inverse


def _column_major(x: Tensor) -> Tensor:
    """The same matrix, laid out as the second factor has to be."""
    return x.T.contiguous().T
