"""What Ray adds: the same training by Ray Train and by a bare process, turn by turn: a step, and the start."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from experiments import run_stage
from nanochat.config import TINYWORLD
from nanochat.errors import UserError
from nanochat.events import StepDone, read_events
from nanochat.run import Run
from nanochat.training.loop import WARM_UP_STEPS

BARE = """
import sys
from pathlib import Path
import experiments.cluster  # its settings of threads, as Ray's workers have them; torch reads them when it is imported
import torch
from nanochat.events import JsonlSink
from nanochat.run import Run
from nanochat.training.pipeline import run_pipeline
from nanochat.training.trainee import prepare_process
from nanochat.workers import Workers
prepare_process()
run = Run(Path(sys.argv[1]))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
run_pipeline(run, Workers(device=device), JsonlSink(run.directory), lambda: False)
"""


POLL_S = 0.02


@dataclass(frozen=True)
class Took:
    """Of one training."""

    step_s: float
    """The median step after warm-up."""
    start_s: float
    """From the start of the command to its first step, that step left out."""
    first_step_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3, help="each of one with Ray and one without")
    parser.add_argument("--threads", type=int, help="that train, e.g. one less than there are cores; all, if left out")


def run(options: argparse.Namespace) -> int:
    """Print both, round by round, and the medians of what Ray adds."""
    if options.steps <= WARM_UP_STEPS or options.rounds < 1:
        raise UserError(f"--steps must be above {WARM_UP_STEPS} and --rounds positive", "leave them out")
    pairs = []
    with tempfile.TemporaryDirectory() as scratch:
        _train(Path(scratch), "warm-up", options, ray=True)  # fills the caches of data and compiler
        for number in range(options.rounds):
            pairs.append(tuple(_train(Path(scratch), f"{name}-{number}", options, ray=name == "ray")
                               for name in ("ray", "bare")))  # fmt: skip
            for name, took in zip(("ray", "bare"), pairs[-1], strict=True):
                print(f"round {number + 1}  {name:4}  step {1e3 * took.step_s:7.1f} ms  start {took.start_s:5.1f} s  "
                      f"first step {took.first_step_s:4.1f} s", flush=True)  # fmt: skip
    slower = median(ray.step_s / bare.step_s - 1 for ray, bare in pairs)
    later_s = median(ray.start_s - bare.start_s for ray, bare in pairs)
    print(f"Ray adds {slower:+.1%} to a step and {later_s:+.1f} s to a start (medians of {len(pairs)} rounds)")
    return 0


def _train(directory: Path, name: str, options: argparse.Namespace, *, ray: bool) -> Took:
    """One training of the base stage that saves once."""
    made = Run(directory / name)
    settings = ("base.eval_every=100000", "base.checkpoint_every=100000", "base.eval_tokens=2560")
    command = [sys.executable, run_stage.__file__, "--runs-dir", str(directory), "--name", name, "--stage",
               "tokenizer,base", "--data", TINYWORLD, "--depth", str(options.depth),
               "--total-batch-size", str(options.batch_tokens),
               "--num-iterations", str(options.steps), "--compile", "off",
               *(part for setting in settings for part in ("--set", setting))]  # fmt: skip
    if not ray:  # the very same configuration, from the run that Ray has just trained
        twin = Run(directory / name.replace("bare", "ray"))
        made.directory.mkdir()
        made.record_path.write_text(twin.record_path.read_text())
        command = [sys.executable, "-c", BARE, str(made.directory)]
    threads = {} if options.threads is None else {"OMP_NUM_THREADS": str(options.threads)}  # Ray lets it be
    environment = os.environ | threads
    with (directory / f"{name}.txt").open("w+") as said:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment) as process:
            while process.poll() is None and not _first_step(made):
                time.sleep(POLL_S)
            first_s = time.monotonic() - began
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{name} ended with {process.returncode}:\n{said.read()[-3000:]}")
    steps = [event.seconds for event in read_events(made.directory, "base") if isinstance(event, StepDone)]
    return Took(median(steps[WARM_UP_STEPS:]), first_s - steps[0], steps[0])


def _first_step(made: Run) -> bool:
    return any(isinstance(event, StepDone) for event in read_events(made.directory, "base"))
