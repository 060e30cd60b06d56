"""A base training within a benchmark: the run's own loop, nothing saved, nothing said."""

import time
from pathlib import Path

from nanochat.config import RunConfig
from nanochat.data.batches import Batches, Rows
from nanochat.training.checkpoint import CheckpointStore
from nanochat.training.loop import train_stage
from nanochat.training.result import StageResult
from nanochat.training.stage import Surroundings, Trainee
from nanochat.workers import Workers


def train(config: RunConfig, trainee: Trainee, rows: Rows, scratch: Path) -> StageResult:
    """Train the base stage of `config` on rows in the order of its seed, to its last step or deadline from now."""
    begun = time.perf_counter()
    around = Surroundings(
        workers=Workers(),
        store=CheckpointStore(scratch),
        saves=False,
        emit=lambda event: None,
        validate=lambda rows: 0.0,
        should_stop=lambda: False,
        restore=lambda: None,
        identity={},
        peak_flops=1.0,
        run_clock=lambda: time.perf_counter() - begun,
    )
    batches = Batches(rows, config.base.total_batch_size // rows.row_tokens, config.seed)
    return train_stage("base", config.base, trainee, batches, around, None)
