"""One pipeline as one TorchTrainer fit: Ray places, watches and restarts workers; the run's own files are the truth."""

import json
import logging
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Any

from experiments.cluster import beside, cluster, spread
from experiments.faults import planned_faults
from nanochat.config import TRAINED_STAGES
from nanochat.errors import FULL_DISK, UserError
from nanochat.events import Event, JsonlSink, StageStarted, StepDone
from nanochat.files import write_json
from nanochat.planning.hardware import Hardware
from nanochat.run import Run, Status
from nanochat.training.checkpoint import CheckpointStore

MAX_IDLE_STARTS = 6  # starts of the workers in a row between which nothing new was saved
GRACE_S = 10.0  # for a worker that Ray has given up to be gone
HEARTBEAT_S = 2.0
LEAST_CPUS = 0.1  # of a worker
PEER_IS_GONE = (  # what gloo says of it, and torch when the group was ended
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "process group has not been initialized",
)


@dataclass(frozen=True)
class Scale:
    """How many workers, and where."""

    num_workers: int = 1
    min_workers: int | None = None
    """Go on with as few as these when machines are lost; None: wait for all."""
    address: str | None = None
    """A running Ray cluster; None: one of this process's own."""


@dataclass(frozen=True)
class Outcome:
    """How the workers ended: done, interrupted, user_error or bug."""

    state: str
    message: str = ""
    hint: str = ""


def fit(run: Run, hardware: Hardware, scale: Scale, while_waiting: Callable[[], None]) -> Outcome:
    """Train the run with Ray Train, calling `while_waiting` ten times a second meanwhile.

    Raises:
        UserError: there are too few devices, no cluster at the address, or Ray gave up.
    """
    _Starts(run).path.unlink(missing_ok=True)
    with cluster(hardware, scale.address, while_starting=_import_trainer) as machines:
        settings, own = _scaling(hardware, scale, machines), scale.address is None
        return Outcome(**beside(partial(_fit, run, settings, own), while_waiting))


def _import_trainer() -> None:
    from experiments import lean_trainer  # noqa: F401


def _scaling(hardware: Hardware, scale: Scale, machines: list[dict[str, float]]) -> dict[str, Any]:
    """Arguments of ScalingConfig. Raises UserError when the machines cannot hold the workers."""
    use_gpu = hardware.device_type == "cuda"
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if use_gpu and scale.num_workers > gpus:
        hint = f"use at most --num-workers {gpus}" if gpus else "the run was begun on a GPU: continue it where one is"
        raise UserError(f"--num-workers {scale.num_workers}, and there are {gpus} GPUs", hint)
    cpus = _cpus_per_worker(machines, scale.num_workers, use_gpu)
    return {
        "num_workers": (scale.min_workers, scale.num_workers) if scale.min_workers else scale.num_workers,
        "use_gpu": use_gpu,
        "resources_per_worker": {"CPU": int(cpus) or cpus, **({"GPU": 1} if use_gpu else {})},
    }


def _cpus_per_worker(machines: list[dict[str, float]], num_workers: int, use_gpu: bool) -> float:
    """The most that each worker can have, all on one machine. Raises UserError when they have less than LEAST_CPUS."""

    def held(share: float) -> int:
        return sum(
            min(int(machine.get("CPU", 0) / share + 1e-6), int(machine.get("GPU", 0)) if use_gpu else num_workers)
            for machine in machines
        )

    shares = {machine.get("CPU", 0) / count for machine in machines for count in range(1, num_workers + 1)}
    fitting = [share for share in shares if share >= LEAST_CPUS and held(share) >= num_workers]
    if not fitting:
        most = held(LEAST_CPUS)
        raise UserError(
            f"--num-workers {num_workers}, and there are CPUs for {most} of them", f"use at most --num-workers {most}"
        )
    return max(fitting)


def _fit(run: Run, scaling: dict[str, Any], own_cluster: bool) -> dict[str, str]:
    import ray.train
    from ray.train.torch import TorchTrainer

    from experiments.lean_trainer import LeanTrainer

    storage = run.directory / "ray"
    shutil.rmtree(storage, ignore_errors=True)  # nothing of Ray's is ever read back
    trainer = (LeanTrainer if own_cluster else TorchTrainer)(
        train_worker,
        train_loop_config={"run": str(run.directory)},
        scaling_config=ray.train.ScalingConfig(**scaling),
        run_config=ray.train.RunConfig(
            storage_path=str(storage),
            name="fit",
            # Only a backstop: the workers themselves count starts that lead nowhere. Workers that cannot be placed wait
            # for a machine to come back, which this one alone has nobody to wait for.
            failure_config=ray.train.FailureConfig(
                max_failures=1000, controller_failure_limit=2 if own_cluster else -1
            ),
            logging_config=ray.train.LoggingConfig("ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(
            f"Ray gave up: {_last_line(error)}", "what was saved is kept, and the same command continues"
        ) from error
    return result.return_value


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def train_worker(settings: dict[str, str]) -> dict[str, str]:
    """What each worker runs. The outcome is returned rather than raised, so that Ray restarts only what died.

    One of several workers cannot return alone, as the others wait for it: it leaves word of its outcome and raises, Ray
    starts the group anew, and the new one returns that outcome. A worker that only lost another leaves nothing.
    """
    import ray.train.torch

    from nanochat.training.trainee import prepare_process
    from nanochat.workers import Workers

    for chatty in ("ray.train", "rustbpe", "httpx", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    prepare_process()
    workers = Workers.current(ray.train.torch.get_device())
    run = Run(Path(settings["run"]))
    starts = _Starts(run)
    try:
        with run.owned(f"worker-{workers.rank}", wait_s=GRACE_S, evict=True):
            ended = workers.from_lead(starts.begin() if workers.leads else None)
            return asdict(ended or _train(run, workers))
    except Exception as error:
        outcome, bereft = _outcome_of(error, run), _has_lost_another(error)
    if workers.size == 1:
        return asdict(outcome)
    if not bereft:
        starts.leave(outcome)
    if bereft or outcome.state == "user_error":  # Ray would show a traceback of what is told at the end, in a line
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    raise RuntimeError(outcome.message)


def _train(run: Run, workers: Any) -> Outcome:
    from nanochat.training.loop import Interrupted
    from nanochat.training.pipeline import run_pipeline

    emit = _Reporter(run) if workers.leads else _ignore
    try:
        run_pipeline(run, workers, emit, run.stop_requested, planned_faults(run), spread)
    except Interrupted:
        return Outcome("interrupted")
    return Outcome("done")


def _outcome_of(error: Exception, run: Run) -> Outcome:
    if isinstance(error, UserError):
        return Outcome("user_error", error.message, error.hint)
    lead = run.owner("worker-0")
    if isinstance(error, FileNotFoundError) and lead and not lead.is_local():
        what = f"{gethostname()} has no {error.filename}, which {lead.host} opened"
        return Outcome("user_error", what, "let all machines see the runs directory and NANOCHAT_BASE_DIR at one path")
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        hint = "make room, and the same command continues from the last checkpoint"
        return Outcome("user_error", f"the disk is full: {error}", hint)
    return Outcome("bug", "".join(traceback.format_exception(error)))


def _has_lost_another(error: Exception) -> bool:
    """Whether it comes of waiting for a worker that is gone, or of Ray ending the group because of one."""
    from torch.distributed import DistBackendError

    if isinstance(error, DistBackendError):
        return True
    return isinstance(error, RuntimeError | ValueError) and any(text in str(error) for text in PEER_IS_GONE)


@dataclass(frozen=True)
class _Starts:
    """How often workers began without anything new being saved, and how the last ones ended if they said so."""

    run: Run

    @property
    def path(self) -> Path:
        return self.run.directory / "starts.json"

    def begin(self) -> Outcome | None:
        """Count a start. The outcome to end with at once: the one left behind, that this leads nowhere, or what stands
        in the way of counting."""
        try:
            return self._begin()
        except Exception as error:
            return _outcome_of(error, self.run)

    def _begin(self) -> Outcome | None:
        last = self._read()
        if last.get("outcome", {}).get("state") == "user_error":
            return Outcome(**last["outcome"])
        saved = [CheckpointStore(self.run.checkpoints(stage)).steps() for stage in TRAINED_STAGES]
        count = last["count"] + 1 if last.get("saved") == saved else 1
        if count > MAX_IDLE_STARTS:
            return Outcome(**last["outcome"]) if "outcome" in last else Outcome(
                "user_error",
                f"the training worker died {MAX_IDLE_STARTS} times at the same place",
                "if memory ran out, lower --device-batch-size; what was saved is kept, and the same command continues",
            )
        write_json(self.path, {"saved": saved, "count": count})
        return None

    def leave(self, outcome: Outcome) -> None:
        """For the next workers to find, unless the disk is full: then they will see for themselves. Of several the
        first, or one that tells the user what to do."""
        last = self._read()
        if "outcome" not in last or outcome.state == "user_error":
            with suppress(OSError):
                write_json(self.path, {**last, "outcome": asdict(outcome)})

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return json.loads(self.path.read_text(encoding="utf-8"))
        return {}


def _ignore(event: Event) -> None:
    """Events of ranks other than 0: the same as rank 0's."""


class _Reporter:
    """Rank 0's sink: metrics into their files, and the run's status kept fresh."""

    def __init__(self, run: Run) -> None:
        self.run, self.metrics, self.status = run, JsonlSink(run.directory), Status("running")

    def __call__(self, event: Event) -> None:
        self.metrics(event)
        if isinstance(event, StageStarted | StepDone):
            now = time.time()
            if isinstance(event, StageStarted) or now - self.status.heartbeat > HEARTBEAT_S:
                self.status = replace(self.status, stage=event.stage, step=event.step, heartbeat=now)
                self.run.write_status(self.status)
