"""Matrix products in 8-bit floating point, which GPUs from Hopper on multiply twice as fast as bfloat16.

Outputs and the gradients of inputs are products in e4m3, each row and column scaled by itself to the range of the
format (Micikevicius et al. 2022, arXiv:2209.05433; scaled like this by torchao's "rowwise_with_gw_hp"). Gradients of
weights, sums over all tokens that no scale of a row can be taken out of, stay in bfloat16, master weights in fp32.
"""

from typing import Any

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
LEAST = 1e-12  # of the largest element of a row: nothing is divided by 0


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
        ctx.save_for_backward(x, weight)
        return _product(x, weight, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _product(gradients[0], weight.T, fast=False), gradients[0].T @ x


def _product(left: Tensor, right: Tensor, *, fast: bool) -> Tensor:
    """left · rightᵀ of (m, k) and (n, k), in the dtype of `left`; `fast` adds up in less than fp32, as torchao has it
    in the forward pass only."""
    (left8, left_scale), (right8, right_scale) = _scaled(left), _scaled(right)
    return torch._scaled_mm(left8, right8.T, left_scale, right_scale.T, out_dtype=left.dtype, use_fast_accum=fast)


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (m, k) in fp8, contiguous, the largest of each row at the end of the range, and what to multiply each row with
    to undo that: (m, 1), fp32."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(LEAST) / LARGEST
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(FP8).contiguous(), scale.contiguous()
