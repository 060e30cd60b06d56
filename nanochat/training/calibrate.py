"""What a configuration takes here, from some seconds of its real training steps on random tokens."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch

from nanochat.config import RunConfig
from nanochat.data.batches import Batches
from nanochat.errors import UserError
from nanochat.events import Event, StepDone
from nanochat.planning.estimate import RUNTIME_BYTES, step_seconds, train_memory
from nanochat.planning.hardware import Hardware
from nanochat.planning.history import CALIBRATION, Finished, measured
from nanochat.training.checkpoint import CheckpointStore
from nanochat.training.loop import train_stage
from nanochat.training.stage import Surroundings
from nanochat.training.trainee import build_trainee, prepare_process
from nanochat.workers import Workers

MANY = 10**9  # steps: the clock ends them
# What a step takes in a run over what it takes alone, as here, where all processors train: LOG.md, 2026-11-27.
BESIDE_RAY = {"cpu": 1.08, "cuda": 1.0}


@dataclass(frozen=True)
class _RandomRows:
    """A dataset of tokens that nobody wrote; the arithmetic is the same."""

    vocab_size: int
    row_tokens: int
    num_rows: int = 4096

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(indices), self.row_tokens + 1)
        tokens = np.random.default_rng(int(indices[0])).integers(self.vocab_size, size=shape)
        return tokens, np.ones(shape, dtype=bool)


def calibrate(config: RunConfig, hardware: Hardware, seconds: float) -> Finished:
    """Train the first stage of `config` for so many seconds after its first step, on one device, and compare with what
    is estimated for that. Nothing is saved.

    Call it in a process of its own: memory is counted for the whole of it.

    Raises:
        UserError: memory or the time do not hold it.
    """
    prepare_process()
    begun_with = psutil.Process().memory_info().rss
    name = config.trained_stages[0]
    stage = replace(
        config.stage(name), num_iterations=MANY, eval_every=MANY, checkpoint_every=MANY, deadline_s=seconds, tail_s=0.0
    )
    begun: list[float] = []  # when the first step, which compiles, was over

    def heard(event: Event) -> None:
        if isinstance(event, StepDone) and not begun:
            begun.append(time.perf_counter())

    with TemporaryDirectory() as nowhere:
        around = Surroundings(
            workers=Workers(device=torch.device(hardware.device_type)),
            store=CheckpointStore(Path(nowhere)),
            emit=heard,
            validate=lambda rows: 0.0,
            should_stop=lambda: False,
            restore=lambda: None,
            identity={},
            peak_flops=hardware.peak_flops[config.compute_dtype],
            saves=False,
            run_clock=lambda: time.perf_counter() - begun[0] if begun else 0.0,
        )
        data = _RandomRows(config.model.vocab_size, config.model.max_seq_len)
        batches = Batches(data, stage.total_batch_size // data.row_tokens, seed=0)
        result = train_stage(name, stage, build_trainee(config, around.workers, bos_id=0), batches, around, None)
    if result.out_of_memory:
        raise UserError(
            f"device_batch_size {stage.device_batch_size} does not fit into memory", "lower --device-batch-size"
        )
    steps_s = BESIDE_RAY[hardware.device_type] * (result.train_s - result.first_step_s)
    if steps_s <= 0:
        raise UserError(f"not two steps are done within {seconds:.0f} s", "calibrate a smaller model or batch")
    peak = result.peak_memory_bytes
    if hardware.device_type == "cpu":  # a process of Ray's is larger than this one
        peak += RUNTIME_BYTES["cpu"] - begun_with
    rate = result.tokens_per_second / BESIDE_RAY[hardware.device_type]
    rate = rate or (result.tokens - stage.total_batch_size) / steps_s
    per_step_s = step_seconds(config, stage, hardware)
    return Finished(
        run=f"{CALIBRATION} of depth {config.model.depth}, "
        f"{stage.device_batch_size} x {config.model.max_seq_len} tokens",
        stage=name,
        at=time.time(),
        planned_s=(result.iterations - 1) * per_step_s,
        took_s=steps_s,
        planned_bytes=train_memory(config, stage.device_batch_size, hardware).total,
        took_bytes=peak,
        training=measured(config, name, hardware, rate, peak),
        first=True,
    )
