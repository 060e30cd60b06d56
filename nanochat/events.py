"""What happens in a run, as typed events that sinks consume; nothing else reports progress, and nothing greps a log."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar


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
    """A checkpoint is on disk."""

    kind: ClassVar[str] = "saved"
    step: int
    path: str
    seconds: float


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
KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (Note, Resumed, StageStarted, StepDone, Validated, Sampled, Saved, TasksScored, StageFinished)
}


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
    """Appends events to `<run>/<stage>/metrics.jsonl`, one line each, visible to readers at once."""

    def __init__(self, run_directory: Path) -> None:
        self.run_directory = run_directory

    def __call__(self, event: Event) -> None:
        path = metrics_path(self.run_directory, event.stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(to_json(event) + "\n")


def metrics_path(run_directory: Path, stage: str) -> Path:
    return run_directory / stage / "metrics.jsonl"


def read_events(run_directory: Path, stage: str) -> Iterator[Event]:
    """All complete events of a stage so far; a line cut off by a crash is left out."""
    path = metrics_path(run_directory, stage)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield from _parsed(line)


def forget_after(run_directory: Path, stage: str, step: int) -> None:
    """Drop what a stage recorded of steps after `step`: a resumed run takes those steps again."""
    path = metrics_path(run_directory, stage)
    if not path.exists():
        return
    kept = [event for event in read_events(run_directory, stage) if getattr(event, "step", 0) <= step]
    partial = path.with_suffix(".partial")
    kept.append(Resumed(stage, max(step, 0)))
    partial.write_text("".join(to_json(event) + "\n" for event in kept), encoding="utf-8")
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
            for line in data[:complete].decode("utf-8").splitlines():
                yield from _parsed(line)


def _parsed(line: str) -> Iterator[Event]:
    try:
        yield from_json(line)
    except ValueError:
        return  # a line glued together by a crash in mid-write
