"""What the loop trains, where it stands in a stage, and what it trains among."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.events import Sink
from nanochat.model import Transformer
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.training.checkpoint import Checkpoint, CheckpointStore
from nanochat.workers import Workers


@dataclass(frozen=True)
class Trainee:
    """A model in training and what updates it."""

    model: Transformer
    optimizer: MuonAdamW


@dataclass(frozen=True)
class Position:
    """Where a stage stands. With weights and optimizer state it decides all that follows; a checkpoint holds it."""

    device_batch_size: int
    """Rows of a forward pass: the config's, or fewer after memory ran out."""
    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    left_out: int = 0
    """Batches of the data that rollbacks have passed over: step s takes batch s + left_out."""
    lr_scale: float = 1.0
    """Factor on the learning rate that rollbacks have left."""
    rollbacks: int = 0
    skipped_in_a_row: int = 0
    """Latest steps whose loss or gradient was not finite."""
    progress: float = 0.0
    """Share of the stage done, in [0, 1]; the learning rate follows it."""
    validated_step: int = -1
    """When val_bpb was last measured."""

    @property
    def batch(self) -> int:
        """The batch of the next step."""
        return self.step + self.left_out


@dataclass(frozen=True)
class Surroundings:
    """What a stage is trained among: the workers, the checkpoints, and who listens."""

    workers: Workers
    store: CheckpointStore
    emit: Sink
    validate: Callable[[int], float]
    """val_bpb, with at most so many rows in a forward pass."""
    should_stop: Callable[[], bool]
    """Asked between steps."""
    restore: Callable[[], Checkpoint | None]
    """Puts the stage's newest regular checkpoint into the trainee and returns it; None: the stage's beginning."""
    identity: Mapping[str, Any]
    """Goes into every checkpoint's state: model config, tokenizer and data fingerprints."""
    peak_flops: float
    saves: bool = True
    """Whether anything is saved at all."""
    clock: Callable[[], float] = time.perf_counter
    run_clock: Callable[[], float] = lambda: 0.0
    """What deadlines are on, see `nanochat.clock`."""
    recorded: Callable[[], int] = lambda: 0
    """How much has been recorded of the stage, see `events.forget_after`."""
    remember_rows: Callable[[int], None] = lambda rows: None
    """Told the device_batch_size that was left after memory ran out."""
    fault: Callable[[str], None] = lambda point: None
    """Told the name of each point passed, for tests that break things there."""
