"""Packing: every target exactly once, rows within bounds, and rows that begin where they should."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.packing import best_fit, pack

LENGTHS = st.lists(st.integers(1, 60), max_size=40).map(np.array)
ROW_TOKENS = st.integers(1, 40)
METHODS = ["stream", "best_fit"]


def rows_of(packing):
    """Spans (start, length, continued) of each row."""
    bounds = packing.row_offsets.tolist()
    return [packing.spans[a:b].tolist() for a, b in pairwise(bounds)]


def document_starts(lengths):
    return set((np.cumsum(lengths) - lengths).tolist())


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=100)
@given(lengths=LENGTHS, row_tokens=ROW_TOKENS)
def test_every_token_stands_once(method, lengths, row_tokens):
    packing = pack(lengths, row_tokens, method)
    times = np.zeros(int(lengths.sum()), dtype=int)
    for start, length, continued in packing.spans.tolist():
        times[start + continued : start + length] += 1  # the repeated token of a continued piece is only an input
    assert (times == 1).all()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=100)
@given(lengths=LENGTHS, row_tokens=ROW_TOKENS)
def test_rows_are_within_bounds_and_padding_is_counted(method, lengths, row_tokens):
    packing = pack(lengths, row_tokens, method)
    filled = [sum(length for _, length, _ in row) for row in rows_of(packing)]
    assert all(1 <= tokens <= row_tokens + 1 for tokens in filled)
    assert packing.num_rows == len(filled)
    assert packing.padded_tokens == packing.num_rows * (row_tokens + 1) - sum(filled)
    if method == "stream":
        assert all(tokens == row_tokens + 1 for tokens in filled[:-1])


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=100)
@given(lengths=LENGTHS, row_tokens=ROW_TOKENS)
def test_a_cut_repeats_the_token_before_it(method, lengths, row_tokens):
    packing = pack(lengths, row_tokens, method)
    ends = {start + length for start, length, _ in packing.spans.tolist()}
    for start, _, continued in packing.spans.tolist():
        assert (start + 1 in ends) if continued else (start in document_starts(lengths))


@settings(max_examples=100)
@given(lengths=LENGTHS, row_tokens=ROW_TOKENS)
def test_best_fit_spans_stay_inside_documents_and_cut_only_long_ones(lengths, row_tokens):
    ends = np.cumsum(lengths)
    for start, length, continued in pack(lengths, row_tokens, "best_fit").spans.tolist():
        document = int(np.searchsorted(ends, start, side="right"))
        first = int(ends[document] - lengths[document])
        assert start + length <= ends[document]
        assert bool(continued) == (start > first)
        if lengths[document] <= row_tokens + 1:
            assert (start, length) == (first, lengths[document])
        elif start + length < ends[document]:
            assert length == row_tokens + 1  # only the last piece of a document is short


def slow_best_fit(sizes, capacity):
    """Best-fit decreasing as the books have it: look at every open bin."""
    rooms, bins = [], [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        open_bins = [b for b in range(len(rooms)) if rooms[b] >= sizes[item]]
        chosen = min(open_bins, key=lambda b: rooms[b], default=None)
        if chosen is None:
            chosen = len(rooms)
            rooms.append(capacity)
        rooms[chosen] -= sizes[item]
        bins[item] = chosen
    return rooms, bins


@settings(max_examples=150)
@given(st.lists(st.integers(1, 30), max_size=60))
def test_best_fit_is_best_fit(sizes):
    rooms, _ = slow_best_fit(sizes, 30)
    bins = best_fit(np.array(sizes, dtype=np.int64), 30)
    loads = np.bincount(bins, weights=sizes, minlength=len(rooms)).tolist() if sizes else []
    assert sorted(30 - room for room in rooms) == sorted(loads)


def test_examples():
    lengths = np.array([3, 9, 2])  # in rows of 4 targets, 5 tokens
    assert rows_of(pack(lengths, 4, "stream")) == [[[0, 5, 0]], [[4, 5, 1]], [[8, 5, 1]], [[12, 2, 1]]]
    assert rows_of(pack(lengths, 4, "best_fit")) == [[[3, 5, 0]], [[7, 5, 1]], [[0, 3, 0], [12, 2, 0]]]
    # A document's last piece may stand after another document: it is marked, so that its repeated token is no target.
    assert rows_of(pack(np.array([7, 2]), 4, "best_fit")) == [[[0, 5, 0]], [[4, 3, 1], [7, 2, 0]]]
    assert rows_of(pack(np.array([3, 6]), 4, "best_fit")) == [[[3, 5, 0]], [[0, 3, 0], [7, 2, 1]]]
    assert pack(np.array([], dtype=int), 4, "best_fit").num_rows == 0
    assert pack(np.array([], dtype=int), 4, "stream").num_rows == 0


@pytest.mark.parametrize(
    ("lengths", "row_tokens", "method"), [([0], 4, "stream"), ([1], 0, "stream"), ([1], 4, "greedy")]
)
def test_nonsense_is_refused(lengths, row_tokens, method):
    with pytest.raises(ValueError, match=r"positive|cannot pack"):
        pack(np.array(lengths), row_tokens, method)


def test_a_million_documents_pack_in_seconds():
    lengths = np.maximum(2, np.random.default_rng(0).lognormal(6, 1.2, 1_000_000)).astype(np.int64)
    started = time.process_time()
    packing = pack(lengths, 2048, "best_fit")
    assert time.process_time() - started < 10
    assert packing.padded_tokens / (packing.num_rows * 2049) < 0.001
