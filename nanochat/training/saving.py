"""Saving while training goes on: a snapshot in host memory, written on a thread, at most one at a time."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from nanochat.training.checkpoint import CheckpointError, CheckpointStore

Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Written:
    """A checkpoint that reached the disk, and how long the thread took; training waited only for the snapshot."""

    step: int
    path: str
    seconds: float


class BackgroundSaver:
    """Saves to a store without holding up training. A context manager: what is in flight is finished on leaving.

    The snapshot's memory is kept and used again, pinned where tensors come from a GPU.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[Written] | None = None
        self._ended: list[Written | CheckpointError] = []
        self._host: dict[tuple[str, str], Tensor] = {}

    def __enter__(self) -> "BackgroundSaver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)

    def start(self, step: int, tensors: Tensors, state: Mapping[str, Any], score: float | None = None) -> None:
        """Take a snapshot and begin to write it; waits first for the one in flight. Arguments as
        `CheckpointStore.save`."""
        self._settle()
        snapshot = {
            group: {name: self._copied(group, name, tensor) for name, tensor in members.items()}
            for group, members in tensors.items()
        }
        if any(tensor.is_cuda for members in tensors.values() for tensor in members.values()):
            torch.cuda.synchronize()
        self._in_flight = self._thread.submit(self._write, step, snapshot, state, score)

    def ended(self) -> list[Written | CheckpointError]:
        """How the writes ended that ended since this was last asked."""
        if self._in_flight is not None and self._in_flight.done():
            self._settle()
        ended, self._ended = self._ended, []
        return ended

    def wait(self) -> list[Written | CheckpointError]:
        """The same once nothing is in flight."""
        self._settle()
        return self.ended()

    def _settle(self) -> None:
        if self._in_flight is not None:
            error = self._in_flight.exception()
            if error is not None and not isinstance(error, CheckpointError):
                raise error
            self._ended.append(error or self._in_flight.result())
            self._in_flight = None

    def _copied(self, group: str, name: str, tensor: Tensor) -> Tensor:
        place = self._host.get((group, name))
        if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
            place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._host[group, name] = place
        return place.copy_(tensor.detach(), non_blocking=True)

    def _write(self, step: int, snapshot: Tensors, state: Mapping[str, Any], score: float | None) -> Written:
        start = time.perf_counter()
        path = self.store.save(step, snapshot, state, score)
        return Written(step, str(path), time.perf_counter() - start)
