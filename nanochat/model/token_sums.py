"""The sum of gradients by token, in Triton. Imported on GPUs only: PyTorch for CPUs comes without it."""

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from nanochat.model.sorted_ids import PART, Sorted

MOST_COLUMNS = 1024  # of a program
COLUMNS_OF_A_WARP = 256  # 16 bytes a thread
PARTS_AT_ONCE = 16  # loads on their way at a time


def sum_by_token(rows: Tensor, sorted_ids: Sorted) -> Tensor:
    """For each token of a vocabulary the sum of the rows at its places, always in the same order.

    Frequent tokens have thousands of places and most have few: a program sums `PART` places at most, and a second
    kernel the parts of those tokens that have several.

    Args:
        rows: (tokens, width), contiguous.

    Returns: (vocab_size, width), fp32.
    """
    order, begins, parts, owners = sorted_ids
    vocab_size, width = len(parts), rows.size(-1)
    sums, of_parts = (rows.new_empty((size, width), dtype=torch.float32) for size in (vocab_size, len(owners)))
    columns = min(triton.next_power_of_2(width), MOST_COLUMNS)
    blocks, how = triton.cdiv(width, columns), {"COLUMNS": columns, "num_warps": max(columns // COLUMNS_OF_A_WARP, 1)}
    _sum_parts[len(owners), blocks](rows, order, begins, parts, owners, sums, of_parts, vocab_size, width, PART=PART,
                                    **how)
    _sum_of_parts[vocab_size, blocks](parts, sums, of_parts, width, AT_ONCE=PARTS_AT_ONCE, **how)
    return sums


@triton.jit
def _sum_parts(  # type: ignore[no-untyped-def]
    rows, order, begins, parts, owners, sums, of_parts, vocab_size, width, PART: tl.constexpr, COLUMNS: tl.constexpr
):
    part = tl.program_id(0)
    token = tl.load(owners + part)
    if token < vocab_size:
        first = tl.load(parts + token - 1, token > 0, 0)
        several = tl.load(parts + token) - first > 1
        begin = tl.load(begins + token) + (part - first) * PART
        end = tl.load(begins + token + 1)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros((COLUMNS,), tl.float32)
        for offset in tl.static_range(PART):
            place = begin + offset
            row = tl.load(order + place, place < end, 0).to(tl.int64)
            total += tl.load(rows + row * width + column, (place < end) & (column < width), 0.0).to(tl.float32)
        tl.store(of_parts + part.to(tl.int64) * width + column, total, several & (column < width))
        tl.store(sums + token.to(tl.int64) * width + column, total, (column < width) & (several == 0))


@triton.jit
def _sum_of_parts(parts, sums, of_parts, width, AT_ONCE: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0)
    first = tl.load(parts + token - 1, token > 0, 0)
    end = tl.load(parts + token)
    if end - first != 1:
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros((COLUMNS,), tl.float32)
        at = of_parts + first.to(tl.int64) * width + column
        for part in range(first, end, AT_ONCE):
            for offset in tl.static_range(AT_ONCE):
                total += tl.load(at + offset * width, (part + offset < end) & (column < width), 0.0)
            at += AT_ONCE * width
        tl.store(sums + token.to(tl.int64) * width + column, total, column < width)
