"""The division of parameters among workers: complete, without overlap, whole matrices, even."""

from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.model import ModelConfig, Transformer
from nanochat.optim.groups import group_parameters
from nanochat.optim.partition import ALIGNMENT, Partition, Piece, orthogonalization_cost, partition
from nanochat.optim.scaling import Hyperparameters

Shapes = dict[str, tuple[int, ...]]

side = st.integers(1, 12)
matrix_shapes = st.one_of(st.tuples(side, side), st.tuples(st.integers(1, 4), side, side))
shapes = st.lists(matrix_shapes, max_size=8).map(lambda found: {f"matrix{i}": shape for i, shape in enumerate(found)})
table_sizes = st.lists(st.integers(1, 3000), max_size=6)
tables = table_sizes.map(lambda found: {f"table{i}": size for i, size in enumerate(found)})
workers = st.integers(1, 8)


def sizes(division: Partition) -> list[int]:
    return [sum(piece.size for piece in segment) for segment in division.segments]


@given(shapes, tables, workers)
def test_every_element_is_in_exactly_one_piece(matrices: Shapes, tables: dict[str, int], workers: int) -> None:
    division = partition(matrices, tables, workers)
    assert len(division.segments) == workers
    totals = {name: prod(shape) for name, shape in matrices.items()} | tables
    reached = dict.fromkeys(totals, 0)
    pieces = [piece for segment in division.segments for piece in segment]
    for piece in sorted(pieces, key=lambda piece: piece.first):
        assert piece.first == reached[piece.name] < piece.last
        reached[piece.name] = piece.last
    assert reached == totals


@given(shapes, tables, workers)
def test_matrices_are_never_cut_and_tables_only_at_the_alignment(matrices: Shapes, tables: dict[str, int],
                                                                workers: int) -> None:
    for piece in [piece for segment in partition(matrices, tables, workers).segments for piece in segment]:
        unit = prod(matrices[piece.name][-2:]) if piece.name in matrices else ALIGNMENT
        assert piece.first % unit == 0
        assert piece.last % unit == 0 or piece.last == tables.get(piece.name)


@given(shapes, tables, workers)
def test_it_is_a_pure_function_in_the_given_order(matrices: Shapes, tables: dict[str, int], workers: int) -> None:
    division = partition(matrices, tables, workers)
    assert division == partition(dict(matrices), dict(tables), workers)
    places = {name: place for place, name in enumerate([*matrices, *tables])}
    for segment in division.segments:
        assert list(segment) == sorted(segment, key=lambda piece: (places[piece.name], piece.first))
        ran_on = [a for a, b in pairwise(segment) if (a.name, a.last) == (b.name, b.first)]
        assert not ran_on


@given(shapes, tables)
def test_one_worker_has_every_parameter_whole(matrices: Shapes, tables: dict[str, int]) -> None:
    wholes = {name: prod(shape) for name, shape in matrices.items()} | tables
    assert partition(matrices, tables, 1).segments == (tuple(Piece(name, 0, size) for name, size in wholes.items()),)


@given(shapes, tables, workers)
def test_the_filler_evens_out_the_segments(matrices: Shapes, tables: dict[str, int], workers: int) -> None:
    """No rank has filler while another is smaller; the padded length holds the longest and no more than it must."""
    division = partition(matrices, tables, workers)
    assert max(sizes(division)) <= division.length < max(sizes(division)) + ALIGNMENT
    for segment, size in zip(division.segments, sizes(division), strict=True):
        if any(piece.name in tables for piece in segment):
            assert size <= min(sizes(division)) + 2 * ALIGNMENT


@given(shapes, workers)
def test_what_matrices_cost_is_balanced(matrices: Shapes, workers: int) -> None:
    """Greedy, largest first: no rank exceeds the mean by more than one matrix, the largest."""
    loads = [sum(orthogonalization_cost(*matrices[piece.name][-2:]) * piece.size // prod(matrices[piece.name][-2:])
                 for piece in segment) for segment in partition(matrices, {}, workers).segments]
    largest = max((orthogonalization_cost(*shape[-2:]) for shape in matrices.values()), default=0)
    assert max(loads) <= sum(loads) / workers + largest
    assert max(loads) - min(loads) <= largest


def test_the_largest_matrices_are_dealt_first() -> None:
    """In the given order, small ones first, one rank would end with 1.5 times the other's work."""
    division = partition({"small": (2, 8, 8), "large": (8, 16)}, {}, 2)
    assert division.segments == ((Piece("large", 0, 128),), (Piece("small", 0, 128),))


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
def test_a_real_model_divides_evenly(workers: int) -> None:
    model = Transformer(ModelConfig.from_depth(4, 512, 64))
    named = dict(model.named_parameters())
    adamw, muon = group_parameters(named, Hyperparameters(0.02, 0.1, 0.03, 0.05, 0.3))
    division = partition({name: named[name].shape for group in muon for name in group.names},
                         {name: named[name].numel() for group in adamw for name in group.names}, workers)
    total = sum(parameter.numel() for parameter in named.values())
    assert total <= workers * division.length <= 1.001 * total + workers * ALIGNMENT
