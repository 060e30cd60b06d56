"""Plans that come true: whole runs of several sizes, at first all caches empty, beside what was planned of them."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from experiments import run_stage, runs
from nanochat.config import TINYWORLD
from nanochat.errors import UserError
from nanochat.planning.modes import CPU_SIZES, GPU_SIZES

STEPS = {"cpu": 150, "cuda": 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help=f"of the base stage; mid and SFT take 2/5 of it (default: {STEPS})")
    parser.add_argument("--count", type=int, help="of the runs, the first so many (default: all eight)")


def run(options: argparse.Namespace) -> int:
    """Train them one after the other; print what `runs.py plans` says then. Returns 1 where one failed."""
    if not all(asked is None or asked > 0 for asked in (options.steps, options.count)):
        raise UserError("--steps and --count must be positive", "leave them out")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        caches = {name: str(Path(scratch) / name) for name in ("NANOCHAT_BASE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        environment = os.environ | caches
        commands = run_commands(Path(scratch) / "runs", device, options.steps or STEPS[device])
        for command in commands[: options.count]:
            said = subprocess.run(command, env=environment, capture_output=True, text=True)
            if said.returncode:
                print(said.stdout[-3000:], said.stderr[-3000:], sep="\n", file=sys.stderr)
                return 1
            print(next(line for line in said.stdout.splitlines() if line.startswith("Estimated")), flush=True)
        return subprocess.run([sys.executable, runs.__file__, "plans"], env=environment).returncode


def run_commands(runs_dir: Path, device: str, steps: int) -> list[list[str]]:
    """What a user would try: the same again, smaller, larger and other shapes, and some of them later once more."""
    size = (CPU_SIZES if device == "cpu" else GPU_SIZES)["demo"]
    later = 2 * steps // 5 or 1
    counts = {"base": steps, "mid": later, "sft": later}
    settings = ["--data", TINYWORLD]  # which needs no network
    settings += [part for stage, count in counts.items() for part in ("--set", f"{stage}.num_iterations={count}")]
    shallow, deep = ("--depth", str(size.depth - 1)), ("--depth", str(size.depth + 1))
    asked = {
        "first": (),
        "again": (),
        "shallow": shallow,
        "deep": deep,
        "long-rows": ("--max-seq-len", str(2 * size.max_seq_len)),
        "deep-again": deep,
        "base-alone": ("--stage", "tokenizer,base"),
        "shallow-again": shallow,
    }
    return [
        [sys.executable, run_stage.__file__, "--runs-dir", str(runs_dir), "--name", name, *options, *settings]
        for name, options in asked.items()
    ]
