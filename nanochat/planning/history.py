"""What trainings took on some hardware beside what was planned: the next plan's correction, and an audit of plans."""

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from nanochat.config import RunConfig, from_dict
from nanochat.corpora import CORPORA
from nanochat.events import Prepared
from nanochat.files import exclusive, write_json
from nanochat.planning.estimate import (
    Plan,
    StageEstimate,
    checkpoint_bytes,
    compiling_part,
    modelled_memory,
    modelled_step_seconds,
)
from nanochat.planning.hardware import Hardware, Overhead, Training
from nanochat.planning.overheads import (
    ANSWERING,
    COMPILING,
    COMPILING_AGAIN,
    EVALUATING,
    SAVING,
    STARTING,
    TOKENISING,
    TOKENIZER,
    assumed_overhead_s,
    overhead_s,
    tokenising_s,
)

MOST_KEPT = 300
T = TypeVar("T")
LEAST_OVERHEAD_S = 0.5  # of a part of a run that tells anything: what is shorter does not grow with its amount
RUNS_HEEDED = 10  # the latest, for what runs take besides their steps
MOST_TIMES = 30.0  # the assumed or modelled, or as small a part of it: beyond that something else was measured
MODELS = 5  # of time and memory, beside which trainings are kept: raise it when they change
LEAST_STEPS, LEAST_S = 50, 10.0  # of a training that tells anything
CALIBRATION = "calibration"  # how the name begins that a calibration has in place of a run's directory


@dataclass(frozen=True)
class Finished:
    """A stage that ended, and what its plan had said of it."""

    run: str
    stage: str
    at: float
    """Seconds since the epoch."""
    planned_s: float
    took_s: float
    planned_bytes: int
    took_bytes: int
    training: Training
    first: bool
    """Of the stages that its process has trained."""

    @property
    def was_planned(self) -> bool:
        """Whether somebody was told to expect it; a calibration is there to plan others."""
        return not self.run.startswith(CALIBRATION)


@dataclass(frozen=True)
class FinishedRun:
    """A run that went from its start to its end by one command, and what its plan had said of it."""

    run: str
    at: float
    """Seconds since the epoch."""
    planned_s: float
    took_s: float
    overheads: tuple[Overhead, ...]


@dataclass(frozen=True)
class History:
    """The stages and runs that ended on one kind of hardware.

    Args:
        directory: shared by all runs.
        hardware: name of the device.
    """

    directory: Path
    hardware: str

    def read(self) -> list[Finished]:
        """The stages, the oldest first; what makes no sense is left out."""
        return self._read("stages", Finished)

    def read_runs(self) -> list[FinishedRun]:
        """The runs, likewise."""
        return self._read("runs", FinishedRun)

    def _read(self, key: str, kind: type[T]) -> list[T]:
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        if isinstance(kept, list):
            kept = {"stages": kept}  # as once written
        entries = kept.get(key) if isinstance(kept, dict) else None
        found = []
        for each in entries if isinstance(entries, list) else []:
            with suppress(TypeError, AttributeError):
                found.append(from_dict(kind, each))
        return found

    def add(self, finished: list[Finished], run: FinishedRun | None = None) -> None:
        """Keep these, each in place of an earlier one of that run and stage; what is known already keeps its time."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self._path.with_suffix(".lock")):
            stages = {(each.run, each.stage): each for each in self.read()}
            for each in finished:
                before = stages.get((each.run, each.stage))
                if before is None or replace(before, at=each.at) != each:
                    stages[each.run, each.stage] = each
            runs = {each.run: each for each in self.read_runs()} | ({run.run: run} if run else {})
            write_json(self._path, {"stages": _latest(stages.values()), "runs": _latest(runs.values())})

    def known_of(self, hardware: Hardware) -> Hardware:
        """The hardware, with what was trained on it. Later stages share a process with the first, and tell nothing of
        memory."""
        trainings = [each.training for each in self.read() if each.first]
        overheads = [overhead for each in self.read_runs()[-RUNS_HEEDED:] for overhead in each.overheads]
        return replace(
            hardware,
            trainings=tuple(each for each in trainings if _makes_sense(each.speed) and _makes_sense(each.memory)),
            overheads=tuple(each for each in overheads if _makes_sense(each.times)),
        )

    @property
    def _path(self) -> Path:
        key = f"{self.hardware}, models {MODELS}"
        return self.directory / "plans" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _makes_sense(times: float) -> bool:
    return 1 / MOST_TIMES < times < MOST_TIMES


def _latest(entries: Iterable[Any]) -> list[dict[str, Any]]:
    return [asdict(each) for each in sorted(entries, key=lambda each: each.at)[-MOST_KEPT:]]


def is_modelled(config: RunConfig) -> bool:
    """Whether the models of time and memory know all that a training does, so that it tells how far off they are."""
    return not (config.fp8 or config.model.document_attention)


def finished_stages(
    run: str, config: RunConfig, plan: Plan, results: dict[str, dict[str, Any]], hardware: Hardware
) -> list[Finished]:
    """What there is to learn from a run's results, by stage. From stages that were restarted, went otherwise than
    planned or were too short there is nothing."""
    planned, found = {stage.stage: stage for stage in plan.stages}, []
    if not is_modelled(config):
        return []
    for name, result in results.items():
        if name not in planned or not _went_as_planned(name, result, config, plan):
            continue
        if result["iterations"] < LEAST_STEPS or result["train_s"] < LEAST_S or not result["tokens_per_second"] > 0:
            continue
        took_s, took_bytes, expected = result["train_s"] + result["other_s"], result["peak_memory_bytes"], planned[name]
        planned_s = _planned_seconds(expected, result["iterations"])
        # Its share of the peak that was measured while it trained: the machine may have been busy when it was planned.
        share = result["peak_share"] * plan.num_workers
        peak = result["model_flops_per_second"] / share if share else 0.0
        then = replace(hardware, peak_flops={**hardware.peak_flops, config.compute_dtype: peak}) if peak else hardware
        training = measured(config, name, then, result["tokens_per_second"], took_bytes, plan.num_workers)
        found.append(Finished(run, name, time.time(), planned_s, took_s, expected.memory.total, took_bytes, training,
                              first=name == config.trained_stages[0]))  # fmt: skip
    return found


def _went_as_planned(name: str, result: dict[str, Any], config: RunConfig, plan: Plan) -> bool:
    """Whether one start of a stage, on as many workers as planned, came to its end without running out of memory, now
    or once."""
    rows = config.stage(name).device_batch_size
    asked = (1, plan.num_workers, rows)
    return (result["starts"], result["num_workers"], result["device_batch_size"]) == asked


def _planned_seconds(stage: StageEstimate, iterations: int) -> float:
    """With a deadline the clock ends a stage: what was planned for the steps that it made."""
    return iterations * stage.train_s / max(stage.iterations, 1) + stage.other_s


def finished_run(
    run: str,
    config: RunConfig,
    plan: Plan,
    results: dict[str, dict[str, Any]],
    prepared: list[Prepared],
    took_s: float,
    hardware: Hardware,
    unplanned_s: float = 0.0,
) -> FinishedRun | None:
    """What there is to learn from a run as a whole.

    Args:
        prepared: what was told of it; of a run that was restarted more than once, and such a run teaches nothing.
        took_s: from the start of its command to now, when all has ended.
        unplanned_s: what of that was over before there was a plan, and is of this command alone.
    """
    trained = {name: results[name] for name in config.trained_stages if name in results}
    stages = {stage.stage: stage for stage in plan.stages}
    if not trained or trained.keys() != stages.keys() or len(prepared) != 1:
        return None
    if not all(_went_as_planned(name, result, config, plan) for name, result in trained.items()):
        return None
    in_stages_s = sum(_planned_seconds(stages[name], result["iterations"]) for name, result in trained.items())
    overheads = _overheads(config, results, prepared[0], took_s - unplanned_s, hardware)
    return FinishedRun(run, time.time(), plan.prepare_s + in_stages_s, took_s, overheads)


def _overheads(
    config: RunConfig, results: dict[str, dict[str, Any]], prepared: Prepared, took_s: float, hardware: Hardware
) -> tuple[Overhead, ...]:
    """What a run took besides its training steps, beside what was assumed of it."""
    parts: dict[str, tuple[float, float]] = {}  # seconds and amount

    def took(part: str, seconds: float, amount: float) -> None:
        before = parts.get(part, (0.0, 0.0))
        parts[part] = before[0] + seconds, before[1] + amount

    rest_s = took_s - prepared.sources_s - prepared.tokenising_s
    if tokenizer := results.get("tokenizer"):
        rest_s -= tokenizer["seconds"]
    if config.data not in CORPORA:  # else it was waited for downloads
        assumed_s = tokenising_s(prepared.tokenised_bytes, prepared.conversations, hardware.cpu_count)
        took(TOKENISING, prepared.tokenising_s, assumed_s)
        if tokenizer:
            took(TOKENIZER, tokenizer["seconds"], tokenizer["characters"])
    for name in config.trained_stages:
        stage, result = config.stage(name), results[name]
        rest_s -= result["train_s"] + result["other_s"]
        if config.keep_checkpoints:
            took(SAVING, result["last_save_s"], checkpoint_bytes(config.model))
        if asked := result["scores"].get("overall"):
            took(ANSWERING, result["answering_s"], asked["count"] * config.model.depth)
        if not (rate := result["tokens_per_second"]):
            continue
        took(EVALUATING, result["evaluation_s"], stage.eval_tokens / rate)
        if config.compile and name == config.trained_stages[0]:
            part = compiling_part(config, stage.device_batch_size, hardware)
            seconds = result["first_step_s"] - stage.total_batch_size / rate
            found_s, made_s = (overhead_s(each, 1, hardware) for each in (COMPILING_AGAIN, COMPILING))
            # Else the compiler's cache held more, or less, than our record of it.
            if seconds > 2 * found_s if part == COMPILING else seconds < made_s / 2:
                took(part, seconds, 1)
    took(STARTING, rest_s, 1)
    times = {
        part: seconds / assumed_overhead_s(part, amount, hardware.device_type)
        for part, (seconds, amount) in parts.items()
        if amount > 0 and seconds >= LEAST_OVERHEAD_S
    }
    return tuple(Overhead(part, each) for part, each in times.items() if _makes_sense(each))


def measured(
    config: RunConfig,
    stage: str,
    hardware: Hardware,
    tokens_per_second: float,
    memory_bytes: int,
    num_workers: int = 1,
) -> Training:
    """How a training compares with the models of time and memory."""
    settings = config.stage(stage)
    step_s = settings.total_batch_size / tokens_per_second
    modelled = modelled_memory(config, settings.device_batch_size, hardware.device_type)
    return Training(
        config.compute_dtype,
        config.compile,
        num_workers,
        config.model.depth,
        config.model.width,
        settings.device_batch_size * config.model.max_seq_len,
        modelled_step_seconds(config, settings, hardware, num_workers) / step_s,
        memory_bytes / modelled.total,
        config.model.max_seq_len,
    )
