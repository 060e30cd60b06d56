"""Reading token shards: any rows of the packing plan as arrays. `shards` says what a shard's files hold."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class TokenDataset:
    """Training rows of a list of shards, read from disk as they are asked for.

    Attributes:
        directories: the shards; `TokenDataset(directories)` opens the same dataset in another process.
        row_tokens, num_rows, num_documents, num_tokens: sizes; num_tokens counts every token of the shards once.
        num_bytes: UTF-8 bytes of the text.
        share: of the documents that there were, chosen by their content.
        padded_fraction: share of the rows' places that hold no token.
        fingerprint: SHA-256 (hex) over everything `rows` can return.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self.directories = tuple(directories)
        self._shards = [_Shard(directory) for directory in self.directories]
        self.row_tokens: int = self._shards[0].manifest["made_from"]["row_tokens"]
        self.share: float = self._shards[0].manifest["made_from"].get("share", 1.0)
        self.num_rows, self.num_documents, self.num_tokens, self.num_bytes, padded = (
            sum(shard.manifest[count] for shard in self._shards)
            for count in ("rows", "documents", "tokens", "bytes", "padded_tokens")
        )
        self.padded_fraction = padded / max(1, self.num_rows * (self.row_tokens + 1))
        files = [shard.manifest["files"] for shard in self._shards]
        self.fingerprint = hashlib.sha256(json.dumps([self.row_tokens, files], sort_keys=True).encode()).hexdigest()
        self._first_rows = np.cumsum([0] + [shard.manifest["rows"] for shard in self._shards])

    def __reduce__(self) -> tuple:
        return TokenDataset, (self.directories,)  # sent to another process as paths, not as data

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows by number.

        Returns:
            tokens int64 (n, row_tokens + 1) and mask bool of the same shape, False where a token carries no loss as a
            target: padding, what is not supervised, and the first token of a continued piece.

        Raises:
            IndexError: a number outside 0 .. num_rows - 1.
        """
        indices = np.asarray(indices)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(f"rows are numbered 0 to {self.num_rows - 1}")
        tokens = np.zeros((len(indices), self.row_tokens + 1), dtype=np.int64)
        mask = np.zeros(tokens.shape, dtype=bool)
        shards = np.searchsorted(self._first_rows, indices, side="right") - 1
        within = indices - self._first_rows[shards]
        for place, (shard, row) in enumerate(zip(shards.tolist(), within.tolist(), strict=True)):
            self._shards[shard].fill(row, tokens[place], mask[place])
        return tokens, mask

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One row: tokens int64 (row_tokens + 1,) and mask, as in `rows`."""
        tokens, mask = self.rows(np.array([index]))
        return tokens[0], mask[0]


class _Shard:
    """The files of one shard, memory-mapped."""

    def __init__(self, directory: Path) -> None:
        self.manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        self._tokens = _map(directory / "tokens.bin", self.manifest["dtype"])
        self._mask = _map(directory / "mask.bin", "bool") if "mask.bin" in self.manifest["files"] else None
        self._rows = np.load(directory / "rows.npy", mmap_mode="r").view(np.ndarray)
        self._spans = np.load(directory / "spans.npy", mmap_mode="r").view(np.ndarray)

    def fill(self, row: int, tokens: np.ndarray, mask: np.ndarray) -> None:
        """Writes a row into `tokens` and `mask`, both (row_tokens + 1,) and zero before."""
        first, last = self._rows[row : row + 2].tolist()
        place = 0
        for start, length, continued in self._spans[first:last].tolist():
            end = place + length
            tokens[place:end] = self._tokens[start : start + length]
            mask[place:end] = True if self._mask is None else self._mask[start : start + length]
            if continued:
                mask[place] = False
            place = end


def _map(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
