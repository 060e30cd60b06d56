"""What the public conversations are made of, as plain data: which rows of which dataset, how often, and how rendered.

Parts and sizes of both stages as public nanochat had them in October 2025 (its scripts/mid_train.py and chat_sft.py).
Its identity conversations are a file, ours are made by code; words to spell come from the mixture's own text.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """A dataset of the hub."""

    repo: str
    licence: str
    download_bytes: int
    """About: of the splits used here, as parquet."""


@dataclass(frozen=True)
class Part:
    """Rows of a mixture that come from one place."""

    name: str
    renderer: str
    """Of `nanochat.tasks.rows`, or, for what is made by code, of `nanochat.data.made`."""
    dataset: str = ""
    """A key of DATASETS; empty for what is made by code."""
    config: str | None = None
    """Of the dataset."""
    split: str = "train"
    rows: int | None = None
    """As many of them, drawn by the seed; None: all."""
    epochs: int = 1
    """How often each row occurs."""


DATASETS: Mapping[str, Dataset] = {
    "smoltalk": Dataset("HuggingFaceTB/smol-smoltalk", "Apache-2.0", 950_000_000),
    "mmlu": Dataset("cais/mmlu", "MIT", 52_000_000),
    "gsm8k": Dataset("openai/gsm8k", "MIT", 3_000_000),
    "arc": Dataset("allenai/ai2_arc", "CC BY-SA 4.0", 1_500_000),
    "humaneval": Dataset("openai/openai_humaneval", "MIT", 90_000),
}

MIXTURES: Mapping[str, tuple[Part, ...]] = {
    "mid": (
        Part("smoltalk", "smoltalk", "smoltalk"),  # 460K rows
        Part("mmlu", "mmlu", "mmlu", "auxiliary_train"),  # 100K
        Part("gsm8k", "gsm8k", "gsm8k", "main"),  # 7.5K
        Part("identity", "identity", rows=1_000, epochs=2),
        Part("simple_spelling", "simple_spelling", rows=200_000),
        Part("spelling_bee", "spelling_bee", rows=80_000),
    ),
    "sft": (
        Part("arc_easy", "arc", "arc", "ARC-Easy"),  # 2.3K
        Part("arc_challenge", "arc", "arc", "ARC-Challenge"),  # 1.1K
        Part("gsm8k", "gsm8k", "gsm8k", "main"),
        Part("smoltalk", "smoltalk", "smoltalk", rows=10_000),
        Part("identity", "identity", rows=1_000),
        Part("simple_spelling", "simple_spelling", rows=300),
        Part("spelling_bee", "spelling_bee", rows=300),
    ),
}

TASKS: tuple[Part, ...] = (
    Part("arc_easy", "arc", "arc", "ARC-Easy", "test"),  # 2,376 questions
    Part("arc_challenge", "arc", "arc", "ARC-Challenge", "test"),  # 1,172
    Part("mmlu", "mmlu", "mmlu", "all", "test"),  # 14,042
    Part("gsm8k", "gsm8k", "gsm8k", "main", "test"),  # 1,319
    Part("humaneval", "humaneval", "humaneval", "openai_humaneval", "test"),  # 164
    Part("spelling_bee", "spelling_bee", rows=256),
)
