"""What happens in a run, as typed events that sinks consume; nothing else reports progress, and nothing greps a log."""

import errno
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from nanochat.errors import FULL_DISK


@dataclass(frozen=True)
class Event:
    """Something that happened in a stage. `kind` names the type in JSON."""

    kind: ClassVar[str]
    stage: str


@dataclass(frozen=True)
class Note(Event):
    """An automatic choice, a warning, or what is being done now."""

    kind: ClassVar[str] = "note"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Prepared(Event):
    """All that the stages train on is there."""

    kind: ClassVar[str] = "prepared"
    sources_s: float
    """Text and conversations made or fetched."""
    tokenising_s: float
    """Token shards made or found."""
    tokenised_bytes: int
    """UTF-8, of those that were made."""
    conversations: int
    """In them."""


@dataclass(frozen=True)
class Resumed(Event):
    """A process took the stage up again from its checkpoint of `step`; what was recorded of later steps is gone."""

    kind: ClassVar[str] = "resumed"
    step: int


@dataclass(frozen=True)
class StageStarted(Event):
    """Training of a stage begins, at `step` when resumed."""

    kind: ClassVar[str] = "stage_started"
    step: int
    num_iterations: int
    tokens_per_step: int
    by_clock: bool = False
    """Whether a deadline ends it: then these are the iterations to be expected."""


@dataclass(frozen=True)
class StepDone(Event):
    """One optimizer step. `step` counts finished steps; `loss` is nats a target; `seconds` is the step's own time."""

    kind: ClassVar[str] = "step"
    step: int
    loss: float
    grad_norm: float
    lr_factor: float
    seconds: float
    tokens_per_second: float
    skipped: bool = False
    progress: float = 0.0
    """Share of the stage that this step completes or, with a deadline, at whose time it began."""
    memory_bytes: int = 0
    """The most that rank 0's device has held in this stage."""


@dataclass(frozen=True)
class Validated(Event):
    """Validation bits per byte after `step` steps."""

    kind: ClassVar[str] = "validated"
    step: int
    val_bpb: float
    seconds: float


@dataclass(frozen=True)
class Sampled(Event):
    """A greedy completion, to see what the model is like."""

    kind: ClassVar[str] = "sampled"
    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint is on disk; `seconds` is what writing it took beside the training."""

    kind: ClassVar[str] = "saved"
    step: int
    path: str
    seconds: float


@dataclass(frozen=True)
class RolledBack(Event):
    """Training went back from `step` to `to_step`, leaves out the data between, and goes on with `lr_scale` of the
    learning rate."""

    kind: ClassVar[str] = "rolled_back"
    step: int
    to_step: int
    lr_scale: float


@dataclass(frozen=True)
class TasksScored(Event):
    """Task accuracies by skill: each {"accuracy", "chance", "count"}."""

    kind: ClassVar[str] = "tasks_scored"
    step: int
    scores: dict[str, dict[str, float]]
    seconds: float


@dataclass(frozen=True)
class StageFinished(Event):
    """A stage is complete; `result` is its measured record (see `nanochat.training.result`)."""

    kind: ClassVar[str] = "stage_finished"
    step: int
    result: dict[str, Any]


Sink = Callable[[Event], None]
MAX_WAITING = 100_000  # lines kept in memory while the disk is full; then the oldest are lost
KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        Note, Prepared, Resumed, StageStarted, StepDone, RolledBack, Validated, Sampled, Saved, TasksScored,
        StageFinished,
    )
}  # fmt: skip


def to_json(event: Event) -> str:
    """One line."""
    return json.dumps({"kind": event.kind, **asdict(event)}, ensure_ascii=False)


def from_json(line: str) -> Event:
    """The event of a line that `to_json` wrote. Raises ValueError for anything else."""
    fields = json.loads(line)
    try:
        return KINDS[fields.pop("kind")](**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event: {line[:200]!r}") from error


class JsonlSink:
    """Appends events to `<run>/<stage>/metrics.jsonl`, one line each, visible to readers at once.

    While the disk is full it keeps the latest lines in memory and writes them once there is room: training does not
    end for its record.
    """

    def __init__(self, run_directory: Path) -> None:
        self.run_directory = run_directory
        self._waiting: deque[tuple[Path, bytes]] = deque(maxlen=MAX_WAITING)

    def __call__(self, event: Event) -> None:
        self._waiting.append((metrics_path(self.run_directory, event.stage), _line(event)))
        try:
            while self._waiting:
                _append_whole(*self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise


def _append_whole(path: Path, line: bytes) -> None:
    """Append a line or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        if file.write(line) < len(line):  # a disk that fills up takes a part
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def metrics_path(run_directory: Path, stage: str) -> Path:
    return run_directory / stage / "metrics.jsonl"


def read_events(run_directory: Path, stage: str) -> Iterator[Event]:
    """All complete events of a stage so far; a line cut off by a crash is left out."""
    path = metrics_path(run_directory, stage)
    if path.exists():
        yield from _parsed(path.read_bytes())


def recorded_bytes(run_directory: Path, stage: str) -> int:
    """How much a stage has recorded so far: kept in a checkpoint, it says what came before it."""
    path = metrics_path(run_directory, stage)
    return path.stat().st_size if path.exists() else 0


def forget_after(run_directory: Path, stage: str, recorded: int, step: int) -> None:
    """Drop the steps a stage recorded after its first `recorded` bytes: resumed at `step`, it takes them again.

    Notes stay, and so does the record of earlier resumes.
    """
    path = metrics_path(run_directory, stage)
    if not path.exists():
        return
    data = path.read_bytes()
    before = data[: data.rfind(b"\n", 0, recorded) + 1]
    stays = [event for event in _parsed(data[len(before) :]) if isinstance(event, Note | Resumed)]
    partial = path.with_suffix(".partial")
    partial.write_bytes(before + b"".join(_line(event) for event in [*stays, Resumed(stage, step)]))
    os.replace(partial, path)


class Follower:
    """Reads the events of a run as other processes write them."""

    def __init__(self, run_directory: Path, stages: tuple[str, ...]) -> None:
        self.paths = {metrics_path(run_directory, stage): 0 for stage in stages}
        self.identities: dict[Path, int] = {}

    def skip_existing(self) -> None:
        """Follow only what is written from now on."""
        for path in self.paths:
            if path.exists():
                self.paths[path], self.identities[path] = path.stat().st_size, path.stat().st_ino

    def poll(self) -> Iterator[Event]:
        """Every complete event since the last call, stage by stage in order."""
        for path, offset in self.paths.items():
            if not path.exists():
                continue
            with path.open("rb") as file:
                identity = os.fstat(file.fileno()).st_ino
                if self.identities.get(path, identity) != identity:  # rewritten: all before `Resumed` was seen
                    offset = max(file.read().rfind(b'{"kind": "resumed"'), 0)
                self.identities[path] = identity
                file.seek(offset)
                data = file.read()
            complete = data.rfind(b"\n") + 1
            self.paths[path] = offset + complete
            yield from _parsed(data)


def _line(event: Event) -> bytes:
    return to_json(event).encode("utf-8") + b"\n"


def _parsed(data: bytes) -> Iterator[Event]:
    """The events of all whole lines; lines that a crash glued together in mid-write are left out."""
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        with suppress(ValueError):
            yield from_json(line.decode("utf-8"))
