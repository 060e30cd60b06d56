"""The one training loop. Base, mid and SFT differ by their data and their StageConfig, never by code."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from nanochat.config import StageConfig
from nanochat.data.batches import IGNORE, Batch, Batches, prefetch
from nanochat.events import Saved, Sink, StageStarted, StepDone, Validated
from nanochat.model import Transformer, train_flops_per_token
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.schedule import muon_momentum
from nanochat.planning.hardware import peak_memory_bytes
from nanochat.training.checkpoint import Checkpoint, CheckpointStore
from nanochat.training.result import StageResult
from nanochat.workers import Workers

WARM_UP_STEPS = 5  # not counted as speed: compiling, caches, allocator
SPEED_WINDOW = 200  # steps whose median is the speed


@dataclass(frozen=True)
class Trainee:
    """A model in training and what updates it."""

    model: Transformer
    optimizer: MuonAdamW


@dataclass(frozen=True)
class Surroundings:
    """What a stage is trained among: the workers, the checkpoints, and who listens.

    `validate` returns val_bpb; `should_stop` is asked between steps; `identity` goes into every checkpoint's state
    (model config, tokenizer and data fingerprints).
    """

    workers: Workers
    store: CheckpointStore
    emit: Sink
    validate: Callable[[], float]
    should_stop: Callable[[], bool]
    identity: Mapping[str, Any]
    peak_flops: float
    clock: Callable[[], float] = time.perf_counter


class Interrupted(Exception):
    """Training stopped on request, after saving."""


def train_stage(
    name: str, config: StageConfig, trainee: Trainee, batches: Batches, around: Surroundings, resumed: Checkpoint | None
) -> StageResult:
    """Train a stage from its start, or from `resumed`, to its end.

    The state of step s is (weights, optimizer state, s, figures measured so far); the batch of step s is a function of
    s, so nothing else decides what follows.

    Raises:
        Interrupted: `should_stop` said so; the state is saved.
    """
    return _Stage(name, config, trainee, batches, around, resumed).run()


class _Stage:
    """One stage under way: its step and its measurements."""

    def __init__(
        self,
        name: str,
        config: StageConfig,
        trainee: Trainee,
        batches: Batches,
        around: Surroundings,
        resumed: Checkpoint | None,
    ) -> None:
        self.name, self.config, self.trainee, self.batches, self.around = name, config, trainee, batches, around
        self.step = resumed.step if resumed else 0
        self.started_at = self.step
        self.result = StageResult(**resumed.state["result"]) if resumed else StageResult(name)
        self.result = replace(self.result, starts=self.result.starts + 1)
        self.speeds: list[float] = []
        self.last_saved = self.step if resumed else -1

    def run(self) -> StageResult:
        config, around, clock = self.config, self.around, self.around.clock
        around.emit(StageStarted(self.name, self.step, config.num_iterations, config.total_batch_size))
        if self.step == 0:
            self._validate()
        batches = prefetch(self.batches, self.step, config.num_iterations, around.workers.rank, around.workers.size)
        for batch in batches:
            if around.workers.sum(float(around.should_stop()))[0]:
                self._save()
                raise Interrupted
            start = clock()
            loss, grad_norm, lr_factor = self._train_step(batch)
            self._measure(loss, grad_norm, lr_factor, clock() - start)
            last = self.step == config.num_iterations
            if self.step % config.eval_every == 0 or last:
                self._validate()
            if self.step % config.checkpoint_every == 0 and not last:
                self._save()
        return self._finished()

    def _train_step(self, batch: Batch) -> tuple[float, float, float]:
        """One optimizer step over all micro-batches of all workers. Returns loss, gradient norm and schedule factor."""
        trainee, workers = self.trainee, self.around.workers
        (valid,) = workers.sum(float((batch.targets != IGNORE).sum()))
        total = torch.zeros((), device=workers.device)
        rows = self.config.device_batch_size
        for inputs, targets in zip(batch.inputs.split(rows), batch.targets.split(rows), strict=True):
            loss = trainee.model.loss_sum(
                inputs.to(workers.device, non_blocking=True), targets.to(workers.device, non_blocking=True)
            ) / max(valid, 1.0)
            loss.backward()
            total += loss.detach()
        workers.sum_gradients(trainee.optimizer.parameters.values())
        (mean_loss,) = workers.sum(float(total))
        grad_norm = float(
            torch.nn.utils.get_total_norm([p.grad for p in trainee.optimizer.parameters.values() if p.grad is not None])
        )
        lr_factor = self.config.schedule.learning_rate(self.step / self.config.num_iterations)
        if math.isfinite(mean_loss) and math.isfinite(grad_norm) and valid:
            trainee.optimizer.step(lr_factor * self.config.lr_multiplier, muon_momentum(self.step))
        else:  # a non-finite number never reaches the weights (invariant 6)
            trainee.optimizer.drop_gradients()
            self.result.skipped_steps += 1
        return mean_loss, grad_norm, lr_factor

    def _measure(self, loss: float, grad_norm: float, lr_factor: float, seconds: float) -> None:
        self.step += 1
        tokens = self.config.total_batch_size
        skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
        self.result.iterations, self.result.tokens = self.step, self.step * tokens
        self.result.train_s += seconds
        if self.step == self.started_at + 1:
            self.result.first_step_s = seconds
        if self.step > self.started_at + WARM_UP_STEPS:
            self.speeds = [*self.speeds[1 - SPEED_WINDOW :], tokens / seconds]
        self.around.emit(StepDone(self.name, self.step, loss, grad_norm, lr_factor, seconds, tokens / seconds, skipped))

    def _validate(self) -> None:
        start = self.around.clock()
        bpb = self.around.validate()
        seconds = self.around.clock() - start
        self.result.other_s += seconds
        if self.step == 0:
            self.result.first_val_bpb = bpb
        self.result.val_bpb = bpb
        self.around.emit(Validated(self.name, self.step, bpb, seconds))

    def _save(self) -> None:
        """Rank 0 saves; the others hold the same weights and wait for it."""
        if self.last_saved == self.step:
            return
        start = self.around.clock()
        self._update_speed()
        if self.around.workers.leads:
            tensors = {"model": self.trainee.model.state_dict(), "optimizer": self.trainee.optimizer.state_dict()}
            state = {"stage": self.name, **self.around.identity, "result": asdict(self.result)}
            path = str(self.around.store.save(self.step, tensors, state))
        else:
            path = ""
        path = self.around.workers.from_lead(path)
        self.last_saved = self.step
        seconds = self.around.clock() - start
        self.result.other_s += seconds
        self.around.emit(Saved(self.name, self.step, path, seconds))

    def _update_speed(self) -> None:
        model = self.trainee.model
        if self.speeds:
            self.result.tokens_per_second = statistics.median(self.speeds)
            flops = train_flops_per_token(model.config, model.config.max_seq_len)
            self.result.model_flops_per_second = self.result.tokens_per_second * flops
            self.result.peak_share = self.result.model_flops_per_second / (
                self.around.peak_flops * self.around.workers.size
            )
        self.result.peak_memory_bytes = max(
            self.result.peak_memory_bytes, peak_memory_bytes(self.around.workers.device.type)
        )
        self.result.epochs = self.batches.epochs(self.step)

    def _finished(self) -> StageResult:
        self._save()
        return self.result
