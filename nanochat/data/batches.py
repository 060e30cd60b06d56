"""Which rows make up the batch of a step: a pure function of dataset, seed and step.

Nothing is remembered between steps, so the data position of a checkpoint is its step, and any number of workers or
restarts sees the same global batches.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

IGNORE = -1  # a target that carries no loss
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """Tokens and what should follow each.

    Attributes:
        inputs: int64 (rows, time).
        targets: int64 (rows, time), `IGNORE` where there is no loss.
    """

    inputs: torch.Tensor
    targets: torch.Tensor

    def pinned(self) -> "Batch":
        """The same in memory that a GPU fetches by itself, while the process goes on."""
        return Batch(self.inputs.pin_memory(), self.targets.pin_memory())


class Rows(Protocol):
    """What batches are made of, such as a TokenDataset."""

    @property
    def row_tokens(self) -> int: ...

    @property
    def num_rows(self) -> int: ...

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (n, row_tokens + 1) of these rows, and where one carries loss as a target."""


def to_batch(tokens: np.ndarray, mask: np.ndarray) -> Batch:
    """Rows of time + 1 tokens, and where a token carries loss as a target, as inputs and targets (rows, time)."""
    return Batch(
        inputs=torch.from_numpy(tokens[:, :-1].copy()),
        targets=torch.from_numpy(np.where(mask[:, 1:], tokens[:, 1:], IGNORE)),
    )


class Batches:
    """Global batches of `total_rows` rows; every epoch visits all rows once, in an order of its own.

    Step s holds the places s·R to (s+1)·R of the epochs' orders laid end to end, so a batch may straddle epochs.
    """

    def __init__(self, dataset: Rows, total_rows: int, seed: int) -> None:
        if total_rows < 1 or dataset.num_rows < 1:
            raise ValueError("a batch and a dataset need at least one row")
        self._dataset = dataset
        self._total_rows = total_rows
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._permutation)  # two: a batch may straddle epochs

    def row_indices(self, step: int) -> np.ndarray:
        """The dataset rows of the global batch of a step, int64 (total_rows,)."""
        places = np.arange(step * self._total_rows, (step + 1) * self._total_rows)
        epochs, within = np.divmod(places, self._dataset.num_rows)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = self._order(epoch)[within[here]]
        return indices

    @property
    def row_tokens(self) -> int:
        return self._dataset.row_tokens

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rank's share of the batch of a step: its contiguous part of the global batch's rows, as equal as whole
        rows allow. Unequal shares do no harm: the loss is a sum over tokens divided by their global number.

        Raises:
            ValueError: there are more workers than rows.
        """
        if self._total_rows < world_size:
            raise ValueError(f"{self._total_rows} rows cannot be shared by {world_size} workers")
        first, last = (self._total_rows * r // world_size for r in (rank, rank + 1))
        indices = self.row_indices(step)[first:last]
        tokens, mask = self._dataset.rows(indices)  # (rows, time + 1)
        return to_batch(tokens, mask)

    def ready(self, step: int) -> bool:
        """Whether the batch of a step can be made now, or never."""
        return True

    def waiting_for(self) -> str:
        """What keeps the next batch from being ready, for people."""
        return ""

    def epochs(self, step: int) -> float:
        """How often the dataset has been gone through before a step."""
        return step * self._total_rows / self._dataset.num_rows

    def _permutation(self, epoch: int) -> np.ndarray:
        # Sorting raw bits, whose stream NumPy promises to keep; `Generator.permutation` may change between versions.
        bits = np.random.PCG64(np.random.SeedSequence([self._seed, epoch])).random_raw(self._dataset.num_rows)
        return np.argsort(bits, kind="stable")


class Growing(Rows, Protocol):
    """Rows that become more, shard by shard, such as a GrowingDataset."""

    @property
    def complete(self) -> bool: ...

    def has(self, rows: int) -> bool:
        """Whether there are so many rows by now, or there will never be."""

    def bounds(self, rows: int) -> np.ndarray:
        """Where each shard begins and the last one ends. Raises UserError: so many rows there will never be."""

    def waiting_for(self) -> str:
        """What comes next, for people."""


class SequentialBatches(Batches):
    """Batches of a dataset that may still be growing: every epoch goes through the shards one after the other, the rows
    of each in an order of its own. So the batch of a step needs no shard but those up to its own.
    """

    def __init__(self, dataset: Growing, total_rows: int, seed: int) -> None:
        super().__init__(dataset, total_rows, seed)
        self._growing = dataset
        self._order_in = lru_cache(maxsize=4)(self._shard_permutation)

    def ready(self, step: int) -> bool:
        return self._growing.has((step + 1) * self._total_rows)

    def waiting_for(self) -> str:
        return self._growing.waiting_for()

    def row_indices(self, step: int) -> np.ndarray:
        places = np.arange(step * self._total_rows, (step + 1) * self._total_rows)
        bounds = self._growing.bounds(int(places[-1]) + 1)
        # What is not complete has not been gone through once.
        epochs, within = np.divmod(places, bounds[-1] if self._growing.complete else places[-1] + 1)
        shards = np.searchsorted(bounds, within, side="right") - 1
        indices = np.empty_like(places)
        for epoch, shard in sorted(set(zip(epochs.tolist(), shards.tolist(), strict=True))):
            here = (epochs == epoch) & (shards == shard)
            first, last = bounds[shard : shard + 2].tolist()
            indices[here] = first + self._order_in(epoch, shard, last - first)[within[here] - first]
        return indices

    def _shard_permutation(self, epoch: int, shard: int, rows: int) -> np.ndarray:
        bits = np.random.PCG64(np.random.SeedSequence([self._seed, epoch, shard])).random_raw(rows)
        return np.argsort(bits, kind="stable")


def prefetch(
    batches: Batches, start: int, stop: int, rank: int = 0, world_size: int = 1, *, pin: bool = False
) -> Iterator[Batch]:
    """The batches of steps `start` to `stop`, the next ones made on a thread while one is in use, if they are ready.

    Args:
        pin: for a GPU, see `Batch.pinned`.
    """

    def make(step: int) -> Batch:
        batch = batches.batch(step, rank, world_size)
        return batch.pinned() if pin else batch

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        pending: deque[Future[Batch]] = deque()
        following = start
        for step in range(start, stop):
            last = min(step + _BATCHES_AHEAD + 1, stop)
            while following == step or (following < last and batches.ready(following)):
                pending.append(thread.submit(make, following))
                following += 1
            yield pending.popleft().result()
