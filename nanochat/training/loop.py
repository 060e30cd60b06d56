"""The one training loop. Base, mid and SFT differ by their data and their StageConfig, never by code."""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from torch import Tensor

from nanochat.config import StageConfig
from nanochat.data.batches import IGNORE, Batch, Batches, prefetch
from nanochat.errors import UserError
from nanochat.events import Note, RolledBack, Saved, StageStarted, StepDone, Validated
from nanochat.model import train_flops_per_token
from nanochat.optim.schedule import muon_momentum, weight_decay
from nanochat.planning.hardware import forget_peak_memory, peak_memory_bytes
from nanochat.training.checkpoint import Checkpoint, CheckpointError
from nanochat.training.pace import Pace
from nanochat.training.result import StageResult
from nanochat.training.saving import BackgroundSaver, Written
from nanochat.training.stage import Position, Surroundings, Trainee

WARM_UP_STEPS = 5  # not counted as speed: compiling, caches, allocator
EVALUATION_MARGIN = 1.3  # the last one may take so much longer than the one before
WAIT_S, TELL_WAITING_S = 0.2, 10.0  # for data that still arrives
# Of libraries that have no error of their own for it: PyTorch's CPU allocator, CUDA and Triton, cuBLAS.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
SPEED_WINDOW = 200  # steps whose median is the speed


class Interrupted(Exception):
    """Training stopped on request, after saving."""


def train_stage(
    name: str, config: StageConfig, trainee: Trainee, batches: Batches, around: Surroundings, resumed: Checkpoint | None
) -> StageResult:
    """Train a stage from its start, or from `resumed`, to its end.

    The trainee must hold the weights and optimizer state of that place. The batch of a step is a function of the
    position, so nothing else decides what follows.

    Raises:
        Interrupted: `should_stop` said so; the state is saved.
        UserError: training diverges again and again, memory does not hold a single row, or the last checkpoint cannot
            be saved.
    """
    with BackgroundSaver(around.store) as saver:
        return _Stage(name, config, trainee, batches, around, resumed, saver).run()


class _Stage:
    """One stage under way: its position and its measurements."""

    def __init__(
        self,
        name: str,
        config: StageConfig,
        trainee: Trainee,
        batches: Batches,
        around: Surroundings,
        resumed: Checkpoint | None,
        saver: BackgroundSaver,
    ) -> None:
        self.name, self.config, self.trainee, self.batches, self.around = name, config, trainee, batches, around
        self.saver = saver
        self.position = self._position_of(resumed)
        self.started_at = self.position.step
        self.result = StageResult(**resumed.state["result"]) if resumed else StageResult(name)
        self.result = replace(self.result, starts=self.result.starts + 1)
        self.speeds: list[float] = []
        self.saved_step = self.position.step if resumed else -1
        self.pace = Pace(config.num_iterations)
        self.step_s = 0.0  # what the next step should take
        self.evaluations = 0  # in this process

    def _position_of(self, checkpoint: Checkpoint | None) -> Position:
        return Position(**checkpoint.state["position"]) if checkpoint else Position(self.config.device_batch_size)

    def run(self) -> StageResult:
        around, config = self.around, self.config
        forget_peak_memory(around.workers.device.type)  # what was prepared before is not training's
        around.emit(
            StageStarted(self.name, self.position.step, config.horizon, config.total_batch_size,
                         config.ended_by_clock)
        )  # fmt: skip
        if self.saved_step < 0:
            self._validate()
        self._set_pace()
        while self._train_until_turned_back():
            pass
        if not self.position.step:
            note = "the time was up before the first step: the weights are what they were"
            around.emit(Note(self.name, note, warning=True))
        if self.position.validated_step != self.position.step:
            self._validate()
        self._save(wait=True)
        around.fault("stage_end")
        return self.result

    def _set_pace(self) -> None:
        """From here to the end of the stage at an even pace, by the clock if there is a deadline."""
        config, now = self.config, self.around.run_clock()
        if config.deadline_s is not None:
            end = config.deadline_s - config.tail_s - EVALUATION_MARGIN * self.result.evaluation_s
            self.pace = Pace(config.num_iterations, self.position.progress, now, end)

    def _agreed(self, late: bool = False) -> tuple[bool, float, bool]:
        """Whether to stop, which any worker may ask for; the progress, for which rank 0's clock counts; and whether any
        worker's batch is late."""
        around, progress = self.around, 0.0
        if around.workers.leads:
            progress = self.pace.progress(self.position.step, around.run_clock(), self.step_s)
        stop, progress, late_ones = around.workers.sum(float(around.should_stop()), progress, float(late))
        return bool(stop), progress, bool(late_ones)

    def _agreed_with_data(self, batch: int) -> tuple[bool, float]:
        """The same when all have their batch, or there is no time left to wait for it."""
        around, start, told = self.around, self.around.clock(), -math.inf
        while True:
            stop, progress, late = self._agreed(not self.batches.ready(batch))
            if stop or progress >= 1 or not late:
                break
            if around.clock() - told >= TELL_WAITING_S:
                told = around.clock()
                missing = self.batches.waiting_for() or "more of it"
                around.emit(Note(self.name, f"training has caught up with its data and waits for {missing}"))
            time.sleep(WAIT_S)
        if told > -math.inf:
            self.result.other_s += around.clock() - start
        return stop, progress

    def _next(self, coming: Iterator[Batch]) -> Batch:
        """The next batch. Where there will be none, the state is saved first."""
        try:
            return next(coming)
        except UserError:
            self._save(wait=True)
            raise

    def _train_until_turned_back(self) -> bool:
        """Train to the end, or until a rollback, after which other batches are due. Returns whether it was that."""
        config, around, clock = self.config, self.around, self.around.clock
        first, last = self.position.batch, config.num_iterations + self.position.left_out
        workers = around.workers
        on_gpu = workers.device.type == "cuda"
        coming = prefetch(self.batches, first, last, workers.rank, workers.size, pin=on_gpu)
        for number in range(first, last):
            start, waited_s = clock(), self.result.other_s
            stop, progress = self._agreed_with_data(number)
            if stop:
                self._save(wait=True)
                raise Interrupted
            if progress >= 1:
                return False  # the time is up
            self.position = replace(self.position, progress=progress)
            self._tell_saves(self.saver.ended())
            loss, grad_norm, lr_factor = self._train_step(self._next(coming))
            # From before the agreement: there several GPUs end the update before, as one does in the step's pass.
            self._measure(loss, grad_norm, lr_factor, clock() - start - (self.result.other_s - waited_s))
            if self.position.skipped_in_a_row >= config.max_skipped_steps:
                self._roll_back()
                return True
            step = self.position.step
            if step == self.started_at + 1:
                self._set_pace()  # compiling is over: what is left of the time goes to even steps
            validated = step % config.eval_every == 0 or step == config.num_iterations
            if validated:
                self._validate()
                if self.evaluations == 2:
                    self._set_pace()  # the first one may have compiled: less time is to be kept for the last
            if step % config.checkpoint_every == 0 and step < config.num_iterations:
                self._save(score=self.result.val_bpb if validated else None)
        return False

    def _train_step(self, batch: Batch) -> tuple[float, float, float]:
        """One optimizer step over all micro-batches of all workers. Returns loss, gradient norm and schedule factor.

        The host runs ahead of a GPU and waits for it once, to decide whether the weights may be updated (and, of
        several workers, to agree on that and on failures; kernels that want to know where documents begin wait too).
        """
        trainee, position, workers = self.trainee, self.position, self.around.workers
        (valid,) = workers.sum(float((batch.targets != IGNORE).sum()))
        part = self._loss_with_gradients(batch, valid)
        self.around.fault("backward")
        loss, square = workers.sum_tensors(part, trainee.optimizer.reduce_gradients())
        grad_norm = math.sqrt(square)
        lr_factor = self.config.schedule.learning_rate(position.progress)
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite and valid:
            lr = lr_factor * self.config.lr_multiplier * position.lr_scale
            decay = weight_decay(position.progress)
            trainee.optimizer.step(lr, muon_momentum(position.step), decay, self.around.fault)
        else:  # a non-finite number never reaches the weights (invariant 6)
            trainee.optimizer.drop_gradients()
        self.position = replace(
            position,
            device_batch_size=self.position.device_batch_size,
            step=position.step + 1,
            skipped_in_a_row=0 if finite else position.skipped_in_a_row + 1,
        )
        return loss, grad_norm, lr_factor

    def _loss_with_gradients(self, batch: Batch, valid: float) -> Tensor:
        """This worker's part of the mean loss over all, gradients left in the parameters. Where memory runs out on any
        worker, all of them begin the step again with half the rows at a time: the total batch stays what it is."""
        while True:
            part, failed = self._forward_backward(batch, valid)
            (failures,) = self.around.workers.sum(float(failed))
            if not failures:
                return part
            self._halve_device_batch()

    def _forward_backward(self, batch: Batch, valid: float) -> tuple[Tensor, bool]:
        """This worker's part of the loss, and whether memory ran out. No worker waits for another in here."""
        model, device, rows = self.trainee.model, self.around.workers.device, self.position.device_batch_size
        total = torch.zeros((), device=device)
        try:
            for inputs, targets in zip(batch.inputs.split(rows), batch.targets.split(rows), strict=True):
                inputs, targets = (part.to(device, non_blocking=True) for part in (inputs, targets))
                loss = model.loss_sum(inputs, targets) / max(valid, 1.0)
                self.around.fault("forward")
                loss.backward()
                total += loss.detach()
            return total, False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return total, True

    def _halve_device_batch(self) -> None:
        rows = self.position.device_batch_size
        self.trainee.optimizer.drop_gradients()
        if self.around.workers.device.type == "cuda":
            torch.cuda.empty_cache()
        if rows == 1:
            raise UserError(
                f"a single row of {self.batches.row_tokens} tokens does not fit in memory",
                "lower --max-seq-len or --depth, under another --name",
            )
        self.position = replace(self.position, device_batch_size=rows // 2)
        self.result.out_of_memory += 1
        self.around.remember_rows(rows // 2)
        text = f"out of memory: device_batch_size {rows} -> {rows // 2}, the total batch is unchanged"
        self.around.emit(Note(self.name, text, warning=True))

    def _roll_back(self) -> None:
        """Go on from the last regular checkpoint, past the data since then, at a lower learning rate.

        All of it follows from that checkpoint's state: killed before the next one, the run diverges again and comes
        back to this same place.
        """
        config, reached = self.config, self.position
        if reached.rollbacks == config.max_rollbacks:
            raise UserError(
                f"stage {self.name} diverges: {config.max_skipped_steps} steps to step {reached.step} had no finite "
                f"loss or gradient, after {reached.rollbacks} rollbacks",
                f"look at the data, or lower --set {self.name}.lr_multiplier under another --name",
            )
        self._tell_saves(self.saver.wait())
        found = self._position_of(self.around.restore())
        self.position = replace(
            found,
            device_batch_size=reached.device_batch_size,
            left_out=reached.batch - found.step,
            lr_scale=reached.lr_scale * config.rollback_lr_factor,
            rollbacks=reached.rollbacks + 1,
            skipped_in_a_row=0,
            progress=reached.progress,
        )
        self.result.rollbacks += 1
        self.saved_step = -1  # the same step is now another state
        self.around.emit(RolledBack(self.name, reached.step, found.step, self.position.lr_scale))

    def _measure(self, loss: float, grad_norm: float, lr_factor: float, seconds: float) -> None:
        step, tokens, result = self.position.step, self.config.total_batch_size, self.result
        skipped = self.position.skipped_in_a_row > 0
        result.iterations, result.tokens = step, step * tokens
        result.skipped_steps += skipped
        result.train_s += seconds
        if step == self.started_at + 1:
            result.first_step_s = seconds
        else:
            self.step_s = seconds
        if step > self.started_at + WARM_UP_STEPS:
            self.speeds = [*self.speeds[1 - SPEED_WINDOW :], tokens / seconds]
            self.step_s = tokens / statistics.median(self.speeds)
        progress = max(self.position.progress, step / self.config.num_iterations)
        self.around.emit(
            StepDone(self.name, step, loss, grad_norm, lr_factor, seconds, tokens / seconds, skipped, progress,
                     peak_memory_bytes(self.around.workers.device.type))
        )  # fmt: skip

    def _validate(self) -> None:
        start = self.around.clock()
        bpb = self.around.validate(self.position.device_batch_size)
        self.around.fault("evaluation")
        seconds = self.around.clock() - start
        self.position = replace(self.position, validated_step=self.position.step)
        self.evaluations += 1
        self.result.evaluation_s = seconds
        self.result.other_s += seconds
        if self.position.step == 0:
            self.result.first_val_bpb = bpb
        self.result.val_bpb = bpb
        self.around.emit(Validated(self.name, self.position.step, bpb, seconds))

    def _save(self, *, score: float | None = None, wait: bool = False) -> None:
        """Save the position. Rank 0 writes, in the background unless `wait`; all give their share of the state.

        Raises:
            CheckpointError: it was waited for and cannot be saved. One in the background only warns: the older ones
                are intact, and the next is a new attempt.
        """
        workers, start = self.around.workers, self.around.clock()
        ended: list[Written | CheckpointError] = []
        self._update_speed()
        if self.around.saves and self.saved_step != self.position.step:
            tensors = {"model": self.trainee.model.state_dict(), "optimizer": self.trainee.optimizer.state_dict()}
            state = {
                "stage": self.name,
                **self.around.identity,
                "position": asdict(self.position),
                "result": asdict(self.result),
                "recorded": self.around.recorded(),
            }
            if workers.leads:
                self.saver.start(self.position.step, tensors, state, score)
            self.saved_step = self.position.step
        if wait:
            ended = self.saver.wait()
        stall = self.around.clock() - start
        self.result.save_stall_s += stall
        self.result.last_save_s = stall if wait else 0.0
        self.result.other_s += stall
        if wait and (failure := workers.from_lead(self._failure(ended))):
            raise failure
        self._tell_saves(ended)

    def _failure(self, ended: list[Written | CheckpointError]) -> CheckpointError | None:
        """The error of the save of this very position."""
        return ended[-1] if ended and isinstance(ended[-1], CheckpointError) else None

    def _tell_saves(self, ended: list[Written | CheckpointError]) -> None:
        for save in ended:
            if isinstance(save, Written):
                self.around.emit(Saved(self.name, save.step, save.path, save.seconds))
            else:
                self.saved_step = -1
                text = f"{save.message}; training goes on, older checkpoints are intact, the next save tries again"
                self.around.emit(Note(self.name, text, warning=True))

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
        self.result.epochs = self.batches.epochs(self.position.batch)
        self.result.num_workers = self.around.workers.size
        self.result.device_batch_size = self.position.device_batch_size


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)
