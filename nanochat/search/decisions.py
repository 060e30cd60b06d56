"""What a policy of search, and whoever trains for it, say to each other; and what it is told beforehand."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Config:
    """One training of the base stage."""

    depth: int
    total_batch_size: int
    lr_multiplier: float
    num_iterations: int
    settings: dict[str, float] = field(default_factory=dict)
    """What a space adds."""
    ends_early: bool = False
    """Whether there was time for more iterations, which would have made it worse: the data is too little for them."""

    @property
    def tokens(self) -> int:
        return self.num_iterations * self.total_batch_size


@dataclass(frozen=True)
class Trial:
    """Train this for so many seconds, with its own schedule to its end, and tell what came of it."""

    config: Config
    budget_s: float
    why: str


@dataclass(frozen=True)
class Commit:
    """Train this for the rest of the time: it is the model."""

    config: Config
    budget_s: float
    why: str


@dataclass(frozen=True)
class Observation:
    """What came of a trial. `val_bpb` is None where there is an `error`, such as "out_of_memory"."""

    config: Config
    tokens: int
    train_s: float
    startup_s: float
    tokens_per_second: float
    val_bpb: float | None
    error: str = ""


@dataclass(frozen=True)
class Device:
    """What is known of the machine beforehand."""

    parameters: Callable[[int], float]
    """Of a model of some depth, as the law counts them."""
    tokens_per_second: Callable[[int, int], float]
    """Estimate for a depth and a total batch size, on the one device of a trial."""
    final_devices: float = 1.0
    """How many times faster the final run trains."""
    slots: int = 1
    """Trials at a time."""
    row_tokens: int = 1
    """Of a row, of which a forward pass takes as many as a space's device_batch_size says."""


@dataclass(frozen=True)
class Overheads:
    """Seconds that are not training."""

    fresh_s: float
    """Start of a trial in a new process, compiling included."""
    warm_s: float
    """Start of a trial in a process that has just trained that depth."""
    evaluation_s: float
    final_s: float
    """From the decision to the first step of the final run."""
    reserve_s: float
    """After its last step: evaluating, saving, later stages, the report, and a margin."""
