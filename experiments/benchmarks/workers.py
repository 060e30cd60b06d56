"""Whether 1, 2 and 4 workers take the same steps, and what they send each other for one."""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from experiments.benchmarks.chaos import SMALL, Attempt
from experiments.faults import VARIABLE, Fault, write_plan
from nanochat.errors import UserError
from nanochat.events import StepDone, read_events
from nanochat.model import count_parameters
from nanochat.run import Run

CONTROL = "1, by row"  # one worker again, which sums its gradients in another order: what rounding alone does
SHOWN = (1, 2, 5, 10, 20, 30, 40, 50)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr-multiplier", type=float, default=0.2, help="a higher one magnifies rounding faster")


def run(options: argparse.Namespace) -> int:
    """Train the base stage on 1, 2 and 4 workers, and on 2, then 1, then 4; print the losses and their differences
    beside what rounding alone does on one worker."""
    if options.steps < 6:
        raise UserError(f"--steps must be at least 6, not {options.steps}", "leave it out for 50")
    third = options.steps // 3
    settings = (
        f"base.num_iterations={options.steps}", f"base.checkpoint_every={third}", f"base.eval_every={options.steps}",
        f"base.lr_multiplier={options.lr_multiplier}", "base.eval_tokens=2048", "compute_dtype=float32",
    )  # fmt: skip
    command = (*SMALL, "--stage", "tokenizer,base", *(part for setting in settings for part in ("--set", setting)))
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        runs: dict[str, Run] = {}
        for name, added in (
            *((str(count), ("--num-workers", str(count))) for count in (1, 2, 4)),
            (CONTROL, ("--device-batch-size", "1")),
        ):
            attempt = Attempt(at, f"on-{len(runs)}", (*command, *added))
            attempt.finish()
            runs[name] = attempt.run
        runs["2, 1, 4"] = _moved(at, command, third)
        losses = {name: _losses(run) for name, run in runs.items()}
        print("step  " + "  ".join(f"{name:>10}" for name in losses) + "   loss by workers")
        for step in (step for step in SHOWN if step <= options.steps):
            print(f"{step:>4}  " + "  ".join(f"{values[step - 1]:>10.6f}" for values in losses.values()))
        worst = {name: max(abs(a - b) for a, b in zip(values, losses["1"], strict=True))
                 for name, values in losses.items()}  # fmt: skip
        print("most  " + "  ".join(f"{value:>10.1e}" for value in worst.values()) + "   difference from one worker")
        parameters = count_parameters(runs["1"].config().model).total
        for count in (2, 4):
            sent = 2 * (count - 1) / count * 4 * parameters
            print(f"{count} workers: each sends {sent / 1e6:.2f} MB a step for {parameters:,} fp32 parameters")
    return 0 if max(worst.values()) <= 1e-5 else 1


def _moved(at: Path, command: tuple[str, ...], third: int) -> Run:
    """Begun on 2 workers, taken up by 1, ended by 4; each is asked to stop after about a third of the steps."""
    plan = at / "faults.json"
    attempt = Attempt(at, "moved", command, {VARIABLE: str(plan)})
    for count, faults in ((2, [third]), (1, [third]), (4, [])):
        for mark in at.glob("faults.json.*"):
            mark.unlink()
        write_plan(plan, [Fault("update", "terminated", step) for step in faults])
        moved = replace(attempt, options=(*command, "--num-workers", str(count)))
        with moved.driver() as process:
            code, expected = process.wait(300), 130 if faults else 0
        if code != expected:
            raise RuntimeError(f"on {count} workers the run ended with {code}:\n{attempt.output()[-4000:]}")
    return attempt.run


def _losses(run: Run) -> list[float]:
    return [event.loss for event in read_events(run.directory, "base") if isinstance(event, StepDone)]
