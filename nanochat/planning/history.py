"""What trainings took on some hardware beside what was planned: the next plan's correction, and an audit of plans."""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.config import RunConfig, from_dict
from nanochat.files import exclusive, write_json
from nanochat.planning.estimate import Plan, modelled_memory, modelled_step_seconds
from nanochat.planning.hardware import Hardware, Training

MOST_KEPT = 300
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
class History:
    """The stages that ended on one kind of hardware.

    Args:
        directory: shared by all runs.
        hardware: name of the device.
    """

    directory: Path
    hardware: str

    def read(self) -> list[Finished]:
        """The oldest first; what makes no sense is left out."""
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        found = []
        for each in kept if isinstance(kept, list) else []:
            with suppress(TypeError):
                found.append(from_dict(Finished, each))
        return found

    def add(self, finished: list[Finished]) -> None:
        """Keep these, each in place of an earlier one of that run and stage; what is known already keeps its time."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self._path.with_suffix(".lock")):
            known = {(each.run, each.stage): each for each in self.read()}
            for each in finished:
                before = known.get((each.run, each.stage))
                if before is None or replace(before, at=each.at) != each:
                    known[each.run, each.stage] = each
            latest = sorted(known.values(), key=lambda each: each.at)[-MOST_KEPT:]
            write_json(self._path, [asdict(each) for each in latest])

    def known_of(self, hardware: Hardware) -> Hardware:
        """The hardware, with what was trained on it. Later stages share a process with the first, and tell nothing of
        memory."""
        return replace(hardware, trainings=tuple(each.training for each in self.read() if each.first))

    @property
    def _path(self) -> Path:
        key = f"{self.hardware}, models {MODELS}"
        return self.directory / "plans" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def finished_stages(
    run: str, config: RunConfig, plan: Plan, results: dict[str, dict[str, Any]], hardware: Hardware
) -> list[Finished]:
    """What there is to learn from a run's results, by stage. From stages that were restarted, went otherwise than
    planned or were too short there is nothing."""
    planned, found = {stage.stage: stage for stage in plan.stages}, []
    if config.fp8 or config.model.document_attention:  # neither is in the models of time and memory
        return []
    for name, result in results.items():
        if name not in planned or result["starts"] > 1 or result["num_workers"] != plan.num_workers:
            continue
        if result["device_batch_size"] != config.stage(name).device_batch_size:  # memory ran out, now or once
            continue
        if result["iterations"] < LEAST_STEPS or result["train_s"] < LEAST_S or not result["tokens_per_second"] > 0:
            continue
        took_s, took_bytes, expected = result["train_s"] + result["other_s"], result["peak_memory_bytes"], planned[name]
        # With a deadline the clock ends a stage: what was planned for the steps that it made.
        planned_s = result["iterations"] * expected.train_s / max(expected.iterations, 1) + expected.other_s
        # Its share of the peak that was measured while it trained: the machine may have been busy when it was planned.
        share = result["peak_share"] * plan.num_workers
        peak = result["model_flops_per_second"] / share if share else 0.0
        then = replace(hardware, peak_flops={**hardware.peak_flops, config.compute_dtype: peak}) if peak else hardware
        training = measured(config, name, then, result["tokens_per_second"], took_bytes, plan.num_workers)
        found.append(Finished(run, name, time.time(), planned_s, took_s, expected.memory.total, took_bytes, training,
                              first=name == config.trained_stages[0]))  # fmt: skip
    return found


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
    )
