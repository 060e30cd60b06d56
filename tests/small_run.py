"""A small run of all stages by the command itself, and one of them that many tests look at or begin with."""

import fcntl
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nanochat.inference.load import newest_checkpoint
from nanochat.run import Run

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "tokenizer": {"vocab_size": 512, "max_chars": 300_000},
    "base": {"num_iterations": 24, "checkpoint_every": 6, "eval_tokens": 512},
    "mid": {"num_iterations": 16, "checkpoint_every": 6, "eval_tokens": 512},
    "sft": {"num_iterations": 16, "checkpoint_every": 6, "eval_tokens": 512, "eval_questions": 14},
}
TINY = (
    *("--depth", "1", "--max-seq-len", "128", "--total-batch-size", "256", "--device-batch-size", "2"),
    *("--compile", "off", "--data", "tinyworld"),
    *(part for stage, settings in SETTINGS.items() for key, value in settings.items()
      for part in ("--set", f"{stage}.{key}={value}")),
)  # fmt: skip
ANOTHER_RAY = """
from experiments.cluster import cluster
from nanochat.planning.hardware import detect_hardware
with cluster(detect_hardware()):
    print("up", flush=True)
    input()
"""


def command(runs: Path, name: str, *options: str) -> list[str]:
    script = ROOT / "experiments" / "run_stage.py"
    return [sys.executable, str(script), "--runs-dir", str(runs), "--name", name, *options]


def run_stage(runs: Path, name: str, *options: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(runs, name, *options), capture_output=True, text=True, timeout=timeout, cwd=runs)


def final_weights(runs: Path, name: str) -> dict[str, torch.Tensor]:
    return newest_checkpoint(runs / name, "sft", warn=pytest.fail).tensors("model")


@dataclass(frozen=True)
class Whole:
    """A run named "whole" that was left in peace, in a runs directory of its own, and what the command said."""

    runs: Path
    said: str
    complained: str

    @property
    def run(self) -> Run:
        return Run(self.runs / "whole")

    def copied_to(self, runs: Path) -> Run:
        return Run(Path(shutil.copytree(self.run.directory, runs / "whole")))


def whole_run(shared: Path) -> Whole:
    """The one in `shared`, trained by the first process that asks for it while others wait, on a machine where another
    Ray runs too."""
    shared.mkdir(exist_ok=True)
    told = shared / "told.json"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            shutil.rmtree(shared / "whole", ignore_errors=True)  # another process's, which failed
            with subprocess.Popen([sys.executable, "-c", ANOTHER_RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  text=True, cwd=ROOT) as other:  # fmt: skip
                assert other.stdout.readline() == "up\n"
                done = run_stage(shared, "whole", *TINY)
                other.communicate("\n")
            assert done.returncode == 0, done.stderr
            told.write_text(json.dumps([done.stdout, done.stderr]))
    return Whole(shared, *json.loads(told.read_text()))
