"""What trainings took on some hardware beside what was planned: the next plan's correction, and an audit of plans."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.config import RunConfig, from_dict
from nanochat.files import write_json
from nanochat.planning.estimate import Plan, modelled_memory, modelled_step_seconds
from nanochat.planning.hardware import Hardware, Training

MOST_KEPT = 300
LEAST_STEPS, LEAST_S = 50, 10.0  # of a training that tells anything


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
        """The oldest first; none where there are none, or they make no sense."""
        try:
            return [from_dict(Finished, each) for each in json.loads(self._path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            return []

    def add(self, finished: list[Finished]) -> None:
        """Keep these, each in place of an earlier one of that run and stage."""
        known = {(each.run, each.stage): each for each in (*self.read(), *finished)}
        latest = sorted(known.values(), key=lambda each: each.at)[-MOST_KEPT:]
        write_json(self._path, [asdict(each) for each in latest])

    def known_of(self, hardware: Hardware) -> Hardware:
        """The hardware, with what was trained on it."""
        return replace(hardware, trainings=tuple(each.training for each in self.read()))

    @property
    def _path(self) -> Path:
        return self.directory / "plans" / f"{hashlib.sha256(self.hardware.encode()).hexdigest()[:16]}.json"


def finished_stages(
    run: str, config: RunConfig, plan: Plan, results: dict[str, dict[str, Any]], hardware: Hardware
) -> list[Finished]:
    """What there is to learn from a run's results, by stage. From stages that were restarted, ran out of memory or were
    too short there is nothing."""
    planned, found = {stage.stage: stage for stage in plan.stages}, []
    for name, result in results.items():
        if name not in planned or result["starts"] > 1 or result["out_of_memory"]:
            continue
        if result["iterations"] < LEAST_STEPS or result["train_s"] < LEAST_S or not result["tokens_per_second"] > 0:
            continue
        took_s, took_bytes = result["train_s"] + result["other_s"], result["peak_memory_bytes"]
        training = measured(config, name, hardware, plan.num_workers, result["tokens_per_second"], took_bytes)
        found.append(Finished(run, name, time.time(), planned[name].seconds, took_s, planned[name].memory.total,
                              took_bytes, training))  # fmt: skip
    return found


def measured(
    config: RunConfig, stage: str, hardware: Hardware, num_workers: int, tokens_per_second: float, memory_bytes: int
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
