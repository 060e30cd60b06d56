"""What a finished stage measured: one record, kept as `<stage>/result.json`, from which summaries are made."""

from dataclasses import dataclass, field


@dataclass
class StageResult:
    """Measured figures of a trained stage. Seconds add up over restarts; speeds leave compiling and warm-up out."""

    stage: str
    iterations: int = 0
    tokens: int = 0
    train_s: float = 0.0
    """Optimizer steps, the first of each start included."""
    first_step_s: float = 0.0
    """The first step of the last start: compiling, mostly."""
    other_s: float = 0.0
    """Evaluating, answering, saving."""
    evaluation_s: float = 0.0
    """The latest measurement of val_bpb."""
    answering_s: float = 0.0
    """The questions at the end; part of `other_s`."""
    tokens_per_second: float = 0.0
    """Median over the steps after warm-up."""
    model_flops_per_second: float = 0.0
    peak_share: float = 0.0
    """Model FLOP/s over the matmul peak measured in the same process."""
    first_val_bpb: float = float("nan")
    val_bpb: float = float("nan")
    peak_memory_bytes: int = 0
    skipped_steps: int = 0
    """Steps whose loss or gradient was not finite."""
    rollbacks: int = 0
    """Returns to a checkpoint after too many of these in a row."""
    out_of_memory: int = 0
    """How often device_batch_size was halved."""
    save_stall_s: float = 0.0
    """What training waited for checkpoints; part of `other_s`."""
    last_save_s: float = 0.0
    """Of that, for the one at the end."""
    epochs: float = 0.0
    num_workers: int = 0
    device_batch_size: int = 0
    """Rows of a forward pass at the end."""
    starts: int = 0
    """How many times a process began or resumed this stage."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task accuracies by skill, "overall" among them: accuracy, chance, count."""
