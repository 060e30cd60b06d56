"""One pipeline as one TorchTrainer fit: Ray places, watches and restarts workers; the run's own files are the truth."""

import logging
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.cluster import local_cluster
from nanochat.errors import UserError
from nanochat.events import Event, JsonlSink, StageStarted, StepDone
from nanochat.planning.hardware import Hardware
from nanochat.run import Run, Status

MAX_WORKER_DEATHS = 8
HEARTBEAT_S = 2.0
POLL_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """How the worker ended: done, interrupted, user_error or bug."""

    state: str
    message: str = ""
    hint: str = ""


def fit(run: Run, hardware: Hardware, num_workers: int, while_waiting: Callable[[], None]) -> Outcome:
    """Train the run with Ray Train, calling `while_waiting` ten times a second meanwhile.

    Raises:
        UserError: there are too few devices, or workers died again and again.
    """
    use_gpu = hardware.device_type == "cuda"
    if use_gpu and num_workers > hardware.device_count:
        raise UserError(
            f"--num-workers {num_workers}, and this machine has {hardware.device_count} GPUs",
            f"use at most --num-workers {hardware.device_count}",
        )
    box: list[Any] = []
    with local_cluster(hardware.cpu_count, hardware.device_count if use_gpu else 0):
        # fit blocks and takes over SIGINT in the main thread: run elsewhere, it leaves signals and terminal to us
        thread = threading.Thread(target=_fit_into, args=(box, run, hardware, num_workers), daemon=True)
        thread.start()
        while thread.is_alive():
            while_waiting()
            time.sleep(POLL_S)
        while_waiting()
    (result,) = box
    if isinstance(result, BaseException):
        raise result
    return Outcome(**result)


def _fit_into(box: list[Any], run: Run, hardware: Hardware, num_workers: int) -> None:
    try:
        box.append(_fit(run, hardware, num_workers))
    except BaseException as error:
        box.append(error)


def _fit(run: Run, hardware: Hardware, num_workers: int) -> dict[str, str]:
    import ray.train
    from ray.train.torch import TorchTrainer

    storage = run.directory / "ray"
    shutil.rmtree(storage, ignore_errors=True)  # nothing of Ray's is ever read back
    use_gpu = hardware.device_type == "cuda"
    cpus = max(hardware.cpu_count / num_workers, 0.1)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"run": str(run.directory)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": int(cpus) or cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            storage_path=str(storage),
            name="fit",
            failure_config=ray.train.FailureConfig(max_failures=MAX_WORKER_DEATHS, controller_failure_limit=2),
            logging_config=ray.train.LoggingConfig("ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(
            f"the training worker died {MAX_WORKER_DEATHS + 1} times: {_last_line(error)}",
            "if memory ran out, lower --device-batch-size; what was saved is kept, and the same command continues",
        ) from error
    return result.return_value


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def train_worker(settings: dict[str, str]) -> dict[str, str]:
    """What each worker runs. The outcome is returned rather than raised, so that Ray restarts only what died.

    A bug in one of several workers is raised after all: Ray must take down the others, which wait for it.
    """
    import ray.train
    import ray.train.torch
    import torch

    from nanochat.training.loop import Interrupted
    from nanochat.training.pipeline import run_pipeline
    from nanochat.workers import Workers

    for chatty in ("ray.train", "rustbpe"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it did not write
    device = ray.train.torch.get_device()
    workers = Workers.current(device)
    run = Run(Path(settings["run"]))
    emit = _Reporter(run) if workers.leads else _ignore
    try:
        with run.owned(f"worker-{workers.rank}", wait_s=60):  # the one before may live a few seconds more
            run_pipeline(run, workers, emit, run.stop_requested)
        return vars(Outcome("done"))
    except Interrupted:
        return vars(Outcome("interrupted"))
    except UserError as error:
        return vars(Outcome("user_error", error.message, error.hint))
    except Exception:
        if workers.size > 1:
            raise
        return vars(Outcome("bug", traceback.format_exc()))


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
