"""The budget policy as a Ray Tune searcher: Tune places and watches trials; the policy decides, and its journal is the
truth."""

import gc
import logging
import math
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray.tune
from ray.tune.search import Searcher

from experiments.cluster import beside, cluster, is_alive
from nanochat.clock import start_clock
from nanochat.errors import UserError
from nanochat.events import JsonlSink, Sink
from nanochat.files import write_json
from nanochat.planning.hardware import Hardware
from nanochat.run import Run, Status
from nanochat.search.decisions import Commit, Observation, Trial
from nanochat.search.policy import BudgetPolicy

MAX_DEPTH, MAX_ROWS = 1_000, 10_000  # more than there are, to tell workers apart by one number
LEFT_SHARE = 0.1  # of the memory of a device, which a process may hold when its trial has ended


@dataclass(frozen=True)
class Search:
    """A policy at work in a run: where its journal is, and how a trial becomes a run of its own."""

    run: Run
    policy: BudgetPolicy
    clock: Callable[[], float]
    make_trial: Callable[[Trial, Path], Run]
    """Writes the configuration of a trial's run into a directory."""
    tell: Callable[[str, Observation], None]
    """Called with the name of each trial's directory and what came of it."""

    @property
    def journal(self) -> Path:
        return self.run.directory / "search" / "policy.json"

    def record(self) -> None:
        """What was decided and observed, before anything is done about it."""
        write_json(self.journal, self.policy.state_dict())


class PolicySearcher(Searcher):
    """Asks the policy for trials, and tells it what came of them."""

    def __init__(self, search: Search) -> None:
        super().__init__(metric="val_bpb", mode="min")
        self.search = search
        self.trials: dict[str, Trial] = {}
        self.worn = 0
        """Workers that did not give their memory back."""
        self.lock, self.closed = threading.Lock(), False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self.lock:
            return Searcher.FINISHED if self.closed else self._suggest(trial_id)

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        while True:
            decision = self.search.policy.decide(self.search.clock())
            self.search.record()
            if isinstance(decision, Commit):
                return Searcher.FINISHED
            if decision is None:
                return None
            try:
                run = self.search.make_trial(decision, trials_directory(self.search.run) / trial_id)
            except UserError as error:  # it cannot be trained here, which is data too
                self._observe(trial_id, observed(decision, {"error": error.message}))
                continue
            self.trials[trial_id] = decision
            rows = run.config().base.device_batch_size
            worker = (self.worn * MAX_DEPTH + decision.config.depth) * MAX_ROWS + rows
            return {"run": str(run.directory), "worker": worker}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self.lock:
            if self.closed or (error and not is_alive()):
                return
            self.worn += not (result or {}).get("released", True)
            came = result if result and not error else {"error": "the worker died"}
            self._observe(trial_id, observed(self.trials.pop(trial_id), came))

    def _observe(self, trial_id: str, observation: Observation) -> None:
        self.search.policy.observe(observation)
        self.search.record()
        self.search.tell(trial_id, observation)

    def close(self) -> None:
        """What Tune still has to say is of trials that were ended from outside: nothing is learned from it."""
        with self.lock:
            self.closed = True

    def __getstate__(self) -> dict[str, Any]:
        """For Tune's own files, which are never read: the journal is the truth."""
        return {name: value for name, value in vars(self).items() if name not in ("search", "trials", "lock")}

    def save(self, checkpoint_path: str) -> None:
        """The journal is kept elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """From the journal, by whoever makes the policy."""


def trials_directory(run: Run) -> Path:
    """Where the trials of a search are runs of their own."""
    return run.directory / "search" / "trials"


def observed(trial: Trial, result: dict[str, Any]) -> Observation:
    """What a trial's last report says."""
    return Observation(
        config=trial.config,
        tokens=int(result.get("tokens", 0)),
        train_s=float(result.get("train_s", trial.budget_s)),
        startup_s=float(result.get("startup_s", 0.0)),
        tokens_per_second=float(result.get("tokens_per_second", 0.0)),
        val_bpb=None if "error" in result else result["val_bpb"],
        error=str(result.get("error", "")),
    )


def run_trials(search: Search, hardware: Hardware, while_waiting: Callable[[], None]) -> None:
    """Train the trials that the policy asks for, until it commits. Other arguments and errors as `tune`."""
    for record in trials_directory(search.run).glob("*/run.json"):
        if not Run(record.parent).result_path("base").exists():  # a command that was killed left it: it comes anew
            shutil.rmtree(record.parent)
    slots, searcher = search.policy.device.slots, PolicySearcher(search)
    how = ray.tune.TuneConfig(search_alg=searcher, num_samples=-1, max_concurrent_trials=slots, reuse_actors=True)

    def look() -> None:
        try:
            while_waiting()
        except BaseException:
            searcher.close()
            raise

    tune(train_trial, {}, how, search.run, hardware, slots, look)


def tune(
    trainable: Callable[[dict[str, Any]], None],
    param_space: dict[str, Any],
    how: ray.tune.TuneConfig,
    run: Run,
    hardware: Hardware,
    slots: int,
    while_waiting: Callable[[], None],
) -> None:
    """Let Tune train trials, `slots` at a time, each on a device of its own. `while_waiting` is called ten times a
    second, and what it raises ends it all.

    Raises:
        Exception: whatever Tune raised.
    """
    each = {"CPU": max(hardware.cpu_count // slots, 1), "GPU": 1 if hardware.device_type == "cuda" else 0}
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose boxes come even at verbose=0
    with cluster(hardware):
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, partial(_resources, each)),
            param_space=param_space,
            tune_config=how,
            run_config=ray.tune.RunConfig(
                name="trials", storage_path=str(run.directory / "ray"), verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=0),
            ),
        )  # fmt: skip
        beside(tuner.fit, while_waiting)


def _resources(each: dict[str, float], settings: dict[str, Any]) -> ray.tune.PlacementGroupFactory:
    """Of a trial. Tune reuses a worker only for trials that ask for the very same, so a few bytes of memory tell
    trials apart that must not share one: those of another depth or device batch, whose graphs are others, and those
    after a worker that did not give its memory back."""
    return ray.tune.PlacementGroupFactory([{**each, "memory": float(settings.get("worker", 1))}])


def train_trial(settings: dict[str, Any]) -> None:
    """What a trial's worker runs: the pipeline, on a run of its own that saves nothing."""
    started = time.time()
    run = Run(Path(settings["run"]))
    start_clock(run.clock_path, started)
    result = trained(run, started, JsonlSink(run.directory), run.stop_requested)
    ray.tune.report({**result, "released": _memory_is_released()})


def trained(run: Run, started: float, emit: Sink, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Train a run in this process. Returns its figures, or the "error": what failed is data for who decides, and told
    to the user.

    Args:
        started: when this process began with it, in seconds since the epoch.
    """
    import torch

    from nanochat.training.loop import Interrupted, is_out_of_memory
    from nanochat.training.pipeline import run_pipeline
    from nanochat.training.trainee import prepare_process
    from nanochat.workers import Workers

    prepare_process()  # as the final training is, whose throughput trials tell
    logging.getLogger("rustbpe").setLevel(logging.WARNING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (stage,) = run.config().trained_stages
    run.write_status(Status("running", stage))
    try:
        run_pipeline(run, Workers(device=device), emit, should_stop)
    except Interrupted:
        run.write_status(Status("interrupted", stage, reason="its time was up"))
        return {"error": "its time was up", "val_bpb": math.inf}
    except Exception as error:
        memory = is_out_of_memory(error) or "does not fit in memory" in str(error)
        (run.directory / "error.txt").write_text("".join(traceback.format_exception(error)))
        what = "out_of_memory" if memory else f"{type(error).__name__}: {error}".splitlines()[0]
        return _failed(run, what)
    result = run.results()[stage]
    if result["tokens_per_second"] == 0:  # too few steps for it to be known
        return _failed(run, "its time was up before it had trained")
    run.write_status(Status("done", stage))
    spent_s = time.time() - started
    return {
        "tokens": result["tokens"],
        "train_s": result["train_s"] - result["first_step_s"],
        "startup_s": max(spent_s - result["train_s"] + result["first_step_s"] - result["evaluation_s"], 0.0),
        "tokens_per_second": result["tokens_per_second"],
        "val_bpb": result["val_bpb"],
    }


def _failed(run: Run, what: str) -> dict[str, Any]:
    run.write_status(Status("failed", reason=what))
    return {"error": what, "val_bpb": math.inf}


def _memory_is_released() -> bool:
    """Whether a trial that has ended has left the device's memory to the next one."""
    import torch

    from nanochat.planning.hardware import forget_peak_memory

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated() < LEFT_SHARE * torch.cuda.get_device_properties(0).total_memory
    forget_peak_memory("cpu")  # which gives back what the process has kept
    return psutil.Process().memory_info().rss < LEFT_SHARE * psutil.virtual_memory().total
