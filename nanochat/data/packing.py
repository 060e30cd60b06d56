"""Which tokens of a shard make up which training row.

A row of `row_tokens` targets covers `row_tokens + 1` tokens: every token but the last is an input, every token but the
first a target. A row is a list of spans of the shard's concatenated documents. Where a document is cut, the next piece
repeats the last token before the cut, as the input for its first target: no target is lost to cutting.
"""

from dataclasses import dataclass

import numpy as np

METHODS = ("stream", "best_fit")


@dataclass(frozen=True)
class Packing:
    """Rows as spans. Row r is the spans `row_offsets[r] : row_offsets[r + 1]`, laid end to end.

    Attributes:
        row_offsets: int64 (rows + 1,).
        spans: int64 (spans, 3), columns start, length and continued. `continued` is 1 where the span begins inside a
            document: its first token repeats the last one of another span and must not be a target again.
        padded_tokens: places of the rows that hold no token.
    """

    row_offsets: np.ndarray
    spans: np.ndarray
    padded_tokens: int

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1


def pack(lengths: np.ndarray, row_tokens: int, method: str) -> Packing:
    """Plans the rows of documents that lie end to end. No token is lost.

    Args:
        lengths: tokens of each document, its <|bos|> included, all positive.
        row_tokens: targets per row.
        method: "stream" cuts the concatenation every `row_tokens` tokens: only the last row has padding.
            "best_fit" begins every row with a document or with a piece of a long one, and fills rows best-fit
            decreasing (Ding et al. 2024, arXiv:2404.10830); what remains free at a row's end is padding.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if row_tokens < 1 or (lengths < 1).any():
        raise ValueError("row_tokens and every document length must be positive")
    if method == "stream":
        spans = _stream_spans(int(lengths.sum()), row_tokens)
        rows = np.arange(len(spans))
    elif method == "best_fit":
        spans = _cut_spans(lengths, row_tokens)
        rows = best_fit(spans[:, 1], row_tokens + 1)
    else:
        raise ValueError(f"cannot pack with method {method!r}")
    num_rows = int(rows.max()) + 1 if len(rows) else 0
    return Packing(
        row_offsets=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))]).astype(np.int64),
        spans=spans[np.argsort(rows, kind="stable")],
        padded_tokens=int(num_rows * (row_tokens + 1) - spans[:, 1].sum()),
    )


def _stream_spans(num_tokens: int, row_tokens: int) -> np.ndarray:
    """One span per row, (rows, 3); neighbours share one token."""
    starts = np.arange(0, max(num_tokens - 1, min(num_tokens, 1)), row_tokens)
    return np.stack([starts, np.minimum(row_tokens + 1, num_tokens - starts), starts > 0], axis=1)


def _cut_spans(lengths: np.ndarray, row_tokens: int) -> np.ndarray:
    """Each document as pieces of `row_tokens` targets and a shorter last one, (pieces, 3)."""
    pieces = np.maximum(-(-(lengths - 1) // row_tokens), 1)  # a document of n tokens has n - 1 targets
    document = np.repeat(np.arange(len(lengths)), pieces)
    piece = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = piece * row_tokens
    starts = (np.cumsum(lengths) - lengths)[document] + offset
    return np.stack([starts, np.minimum(row_tokens + 1, lengths[document] - offset), piece > 0], axis=1)


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Best-fit-decreasing bin packing: the bin of each item, int64 (items,), each size between 1 and `capacity`.

    Every item, largest first, goes where it leaves the least room. Room is a bounded whole number, so the bins are
    kept by room, and the smallest room that suffices is the lowest set bit of a bit set: O(items) for a given capacity.
    """
    bins_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    occupied = 0  # bit r is set where bins_by_room[r] is not empty
    num_bins = 0
    order = np.argsort(-sizes, kind="stable")
    chosen = []
    for size in sizes[order].tolist():
        fitting = occupied >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            bin_index = bins_by_room[room].pop()
            if not bins_by_room[room]:
                occupied ^= 1 << room
        else:
            room, bin_index = capacity, num_bins
            num_bins += 1
        if room > size:
            bins_by_room[room - size].append(bin_index)
            occupied |= 1 << (room - size)
        chosen.append(bin_index)
    bins = np.empty(len(sizes), dtype=np.int64)
    bins[order] = chosen
    return bins
