"""The clock of a run: it starts with the command and counts, over all restarts, only while something ran."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nanochat.files import write_json
from nanochat.lock import read_as


@dataclass(frozen=True)
class RunClock:
    """Called, it tells the seconds the run has taken. Times are seconds since the epoch."""

    spent_s: float
    """What earlier starts of the command have taken."""
    started: float
    """When this one began."""
    beat: float
    """When it was last heard of: if it is killed, that is when it ended."""

    def __call__(self, now: Callable[[], float] = time.time) -> float:
        return self.spent_s + now() - self.started

    def beating(self, path: Path, now: Callable[[], float] = time.time) -> "RunClock":
        """Note at `path` that the command still runs. A disk that is full only makes the note old."""
        later = replace(self, beat=now())
        with suppress(OSError):
            write_json(path, asdict(later))
        return later


def start_clock(path: Path, began: float) -> RunClock:
    """Start the clock of a command that began at `began`, going on from what is noted at `path`."""
    last = read_clock(path)
    spent_s = last.spent_s + max(last.beat - last.started, 0.0) if last else 0.0
    return RunClock(spent_s, began, began).beating(path)


def read_clock(path: Path) -> RunClock | None:
    """The clock of the command that runs, for its workers; None where there is none."""
    return read_as(RunClock, path)
