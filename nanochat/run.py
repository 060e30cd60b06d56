"""A run on disk: one directory, one owner at a time, and a status that anybody may read."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nanochat.config import STAGES, RunConfig, from_dict, to_dict
from nanochat.errors import FULL_DISK, UserError
from nanochat.files import write_json
from nanochat.lock import Owner, held, read_as, read_owner
from nanochat.planning.estimate import Plan, estimate
from nanochat.planning.hardware import Hardware
from nanochat.training.result import StageResult
from nanochat.training.storage import inside

T = TypeVar("T")
SILENCE_S = 60.0  # after this long without a heartbeat an owner on another machine counts as gone


@dataclass(frozen=True)
class Status:
    """What a run is doing. `state` is running, interrupted, failed or done; `heartbeat` is seconds since the epoch."""

    state: str
    stage: str = ""
    step: int = 0
    reason: str = ""
    pid: int = field(default_factory=os.getpid)
    heartbeat: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Run:
    """The directory of a run and where everything in it lies."""

    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def record_path(self) -> Path:
        return self.directory / "run.json"

    @property
    def tokenizer_directory(self) -> Path:
        return self.directory / "tokenizer"

    @property
    def report_path(self) -> Path:
        return self.directory / "report.md"

    def checkpoints(self, stage: str) -> Path | str:
        """Where a stage's checkpoints are kept: in the run, or where its config says. Raises UserError as `config`."""
        storage = self.config().storage if self.exists() else ""
        return inside(storage, self.name, stage) if storage else self.directory / stage / "checkpoints"

    @property
    def clock_path(self) -> Path:
        return self.directory / "clock.json"

    def result_path(self, stage: str) -> Path:
        return self.directory / stage / "result.json"

    def exists(self) -> bool:
        return self.record_path.exists()

    def record(self) -> dict[str, Any]:
        """What `run.json` says. Raises UserError when it cannot be read."""
        return read_json(self.record_path)

    def config(self) -> RunConfig:
        """The configuration the run was started with."""
        return self._part(RunConfig, "config", self.record())

    def plan(self, record: dict[str, Any] | None = None) -> Plan:
        """What its user was told to expect, by `record`, which is to be written, or by what was written."""
        record = record or self.record()
        try:
            return from_dict(Plan, _plan_as_now(record["plan"]))
        except (KeyError, TypeError, AttributeError):  # of a version earlier still
            num_workers = record.get("request", {}).get("num_workers", 1)
            return estimate(self.config(), self.hardware(record), num_workers)

    def hardware(self, record: dict[str, Any] | None = None) -> Hardware:
        """What it was planned for; `record` as for `plan`."""
        record = record or self.record()
        kept = {key: value for key, value in record.get("hardware", {}).items() if key != "description"}  # once there
        return self._part(Hardware, "hardware", {"hardware": kept})

    def _part(self, kind: type[T], key: str, record: dict[str, Any]) -> T:
        try:
            return from_dict(kind, record[key])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.record_path} was not written by this version: {error}", "start the run under another --name"
            ) from None

    def results(self) -> dict[str, dict[str, Any]]:
        """Measured records of the finished stages, by stage. Raises UserError for one that is damaged."""
        return {stage: self._result(stage) for stage in STAGES if self.result_path(stage).exists()}

    def _result(self, stage: str) -> dict[str, Any]:
        path = self.result_path(stage)
        hint = f"delete it, and repeat the command of run {self.name!r}: it makes it anew or goes without"
        record = read_json(path, hint)
        try:
            return record if stage == "tokenizer" else asdict(StageResult(**record))
        except TypeError as error:
            raise UserError(f"{path} was not written by this version: {error}", hint) from None

    def status(self) -> Status | None:
        """What the run says it is doing; None where it says nothing that makes sense, which harms nothing."""
        return read_as(Status, self.directory / "status.json")

    def write_status(self, status: Status) -> None:
        """On a full disk the old status stays: training does not end for it."""
        try:
            write_json(self.directory / "status.json", asdict(status))
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise

    # A graceful stop is a file, so that it reaches every worker on any machine that sees the run.

    @property
    def _stop_path(self) -> Path:
        return self.directory / "stop"

    def request_stop(self) -> None:
        self._stop_path.touch()

    def clear_stop(self) -> None:
        self._stop_path.unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        return self._stop_path.exists()

    @contextmanager
    def owned(
        self, role: str, wait_s: float = 0.0, *, evict: bool = False, say: Callable[[str], None] = lambda text: None
    ) -> Iterator[None]:
        """Hold the run as its only `role`; arguments and errors as `lock.held`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        what = f"run {self.name!r}"
        with held(self._lock_path(role), what, wait_s=wait_s, evict=evict, say=say, heard_of=self._heard_of):
            yield

    def owner(self, role: str) -> Owner | None:
        """The process that holds the run as `role`, or died with it."""
        return read_owner(self._lock_path(role))

    def _lock_path(self, role: str) -> Path:
        return self.directory / f"{role}.lock"

    def _heard_of(self) -> bool:
        status = self.status()
        return status is not None and status.state == "running" and time.time() - status.heartbeat < SILENCE_S


def _plan_as_now(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan as it is written now, of one that did not say what its seconds besides the steps are for."""
    if "prepare_s" not in plan:
        return plan
    kept = {key: value for key, value in plan.items() if key not in ("prepare_s", "stages")}
    stages = [
        {key: value for key, value in stage.items() if key != "other_s"}
        | {"beside": [{"what": "compiling, evaluating, saving", "seconds": stage["other_s"]}]}
        for stage in plan["stages"]
    ]
    preparing = [{"what": "starting, data and tokenizer", "seconds": plan["prepare_s"]}]
    return {**kept, "preparing": preparing, "stages": stages, "runs_known": 0}


def create(directory: Path, config: RunConfig, record: dict[str, Any]) -> Run:
    """A new run: its record is written whole. `record` holds the rest of run.json (request, plan, reasons …)."""
    run = Run(directory)
    write_json(run.record_path, {"config": to_dict(config), **record})
    return run


def read_json(path: Path, hint: str = "restore it, or start the run under another --name") -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}", hint) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} does not hold an object", hint)
    return data
