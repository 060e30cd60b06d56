"""The modes: budgets of iterations, and the model that fits their hours on a GPU or their minutes on a CPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """Iterations of each stage; None lets a tokens:parameters ratio decide the base stage's horizon."""

    base_iterations: int | None
    mid_iterations: int
    sft_iterations: int
    description: str


@dataclass(frozen=True)
class Size:
    """The model and data of a mode on one kind of device."""

    depth: int
    vocab_size: int
    max_seq_len: int
    tokenizer_chars: int
    memory_bytes: int
    """What training may take of the device."""
    target_s: float | None = None
    """CPU: how long the three trained stages should take together; decides the tokens of a step."""
    lr_multiplier: float = 1.0
    """Factor on the learning rates of the scaling rules, which are tuned for batches of half a million tokens."""


MODES = {
    "demo": Mode(500, 200, 100, "see the whole pipeline work"),
    "small": Mode(2000, 500, 200, "a model with basic chat"),
    "medium": Mode(5000, 1000, 500, "a model with decent conversations"),
    "full": Mode(None, 800, 500, "as much data as the model can use"),
}

# On an A100 with 40 GB these land in the guide's windows of hours and memory (demo 1-2 h in 10-15 GB, small 3-6 h in
# 15-20 GB, medium 9-13 h in 20-25 GB; medium at 19.9), as tests/planning shows.
GPU_SIZES = {
    "demo": Size(14, 32_768, 2048, 500_000_000, 15 * 10**9),
    "small": Size(14, 32_768, 2048, 500_000_000, 20 * 10**9),
    "medium": Size(16, 32_768, 2048, 500_000_000, 25 * 10**9),
    "full": Size(20, 32_768, 2048, 2_000_000_000, 38 * 10**9),
}
GPU_BATCH_TOKENS = 524_288  # what the guide, and public nanochat, call an iteration
EVAL_TOKENS = {"cpu": 20_480, "cuda": 4 * GPU_BATCH_TOKENS}  # of a measurement of val_bpb

# At batches of a few thousand tokens the square-root rule asks for learning rates several times too low: measured on
# TinyWorld and WikiText-2, see experiments/LOG.md, 2026-11-28.
CPU_LR_MULTIPLIER = 8.0
CPU_SIZES = {
    "demo": Size(3, 1024, 256, 20_000_000, 4 * 10**9, 290.0, CPU_LR_MULTIPLIER),
    "small": Size(4, 2048, 256, 50_000_000, 4 * 10**9, 1800.0, CPU_LR_MULTIPLIER),
    "medium": Size(5, 4096, 256, 50_000_000, 6 * 10**9, 7200.0, CPU_LR_MULTIPLIER),
    "full": Size(8, 4096, 512, 100_000_000, 8 * 10**9),
}
CPU_BATCHES = tuple(range(512, 8193, 512))  # tokens of a step to choose from
