"""Which worker updates which elements of the parameters: each holds the optimizer state of its own segment only (ZeRO,
Rajbhandari et al. 2020, arXiv:1910.02054)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

# Elementwise parameters are cut at multiples of this (64 bytes of fp32). Within a piece every element then sits in the
# same lane of a vector instruction as in the whole parameter, so that updates do not depend on the cuts to the last bit
# (CPU kernels round the rest of a vector differently), and segments begin where NCCL copies fastest.
ALIGNMENT = 16


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of a flattened tensor."""

    name: str
    first: int
    last: int
    """One past the last element."""

    @property
    def size(self) -> int:
        return self.last - self.first


Segment = tuple[Piece, ...]


@dataclass(frozen=True)
class Partition:
    """All elements of all parameters, each in exactly one piece of one worker."""

    segments: tuple[Segment, ...]
    """Of each rank, its pieces: matrices first, in the order the parameters were given in."""
    length: int
    """Elements to which every segment is padded."""


def partition(matrices: Mapping[str, Sequence[int]], tables: Mapping[str, int], workers: int) -> Partition:
    """Divide parameters among workers: matrices whole and balanced by what orthogonalising them costs, then elementwise
    parameters as filler that brings all segments to one size, as far as it reaches.

    Args:
        matrices: shapes (…, rows, columns) of the parameters that Muon updates, one or more matrices each.
        tables: numbers of elements of the parameters that are updated element by element.
        workers: how many segments to make.

    Returns:
        a pure function of the arguments. With one worker, one piece for each parameter.
    """
    dealt = _deal(matrices, workers)
    rests = _level([sum(piece.size for piece in pieces) for pieces in dealt], sum(tables.values()))
    filled = [[*pieces, *filler] for pieces, filler in zip(dealt, _cut(tables, rests), strict=True)]
    longest = max(sum(piece.size for piece in pieces) for pieces in filled)
    return Partition(tuple(tuple(pieces) for pieces in filled), _aligned(longest))


def orthogonalization_cost(rows: int, columns: int) -> int:
    """In proportion to the operations of one step of `orthogonalize`: two products along the long side and one of the
    short side's Gram matrix with itself."""
    long, short = max(rows, columns), min(rows, columns)
    return short * short * (2 * long + short)


def _deal(shapes: Mapping[str, Sequence[int]], workers: int) -> list[list[Piece]]:
    """Each matrix, largest first, to the rank with the least to do: at most 4/3 of the best balance (Graham 1969)."""
    units: list[tuple[int, int, Piece]] = []  # cost, place in the given order, matrix
    for name, shape in shapes.items():
        rows, columns = shape[-2:]
        size = rows * columns
        for first in range(0, prod(shape), size):
            units.append((orthogonalization_cost(rows, columns), len(units), Piece(name, first, first + size)))
    loads = [0] * workers
    dealt: list[list[tuple[int, Piece]]] = [[] for _ in range(workers)]
    for cost, place, matrix in sorted(units, key=lambda unit: -unit[0]):  # stable: as given where they cost the same
        rank = loads.index(min(loads))
        loads[rank] += cost
        dealt[rank].append((place, matrix))
    return [_joined([matrix for _, matrix in sorted(own)]) for own in dealt]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """The same elements, neighbours in one piece."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and (joined[-1].name, joined[-1].last) == (piece.name, piece.first):
            piece = Piece(piece.name, joined.pop().first, piece.last)
        joined.append(piece)
    return joined


def _level(sizes: list[int], filler: int) -> list[int]:
    """How much of the filler each rank takes so that the smallest is as large as can be, as water finds its level."""
    ranks = sorted(range(len(sizes)), key=lambda rank: sizes[rank])
    for count in range(len(ranks), 0, -1):  # the lowest `count` ranks are under water
        level, extra = divmod(filler + sum(sizes[rank] for rank in ranks[:count]), count)
        if level >= sizes[ranks[count - 1]]:
            break
    taken = [0] * len(sizes)
    for order, rank in enumerate(ranks[:count]):
        taken[rank] = level - sizes[rank] + (order < extra)
    return taken


def _cut(tables: Mapping[str, int], shares: list[int]) -> list[list[Piece]]:
    """The tables one after the other, cut into shares of these sizes to within the alignment. Each rank's part is one
    run, so it holds at most one piece of a table."""
    ends = list(accumulate(shares))
    cuts: list[list[Piece]] = [[] for _ in shares]
    offset = 0
    for name, size in tables.items():
        first = 0
        for rank, end in enumerate(ends):
            last = min(_aligned(end - offset), size)
            if first < last:
                cuts[rank].append(Piece(name, first, last))
                first = last
        offset += size
    return cuts


def _aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
