"""Whether a search hands over the best model its hours can buy: beside fixed choices, each for all of them."""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from experiments import run_stage, tune_budget
from nanochat.config import TINYWORLD
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.planning.hardware import detect_hardware
from nanochat.planning.modes import EVAL_TOKENS
from nanochat.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hours", type=float, default=0.1)
    parser.add_argument("--data", default=TINYWORLD)
    parser.add_argument("--seeds", type=int, default=3, help="of the search")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--policies", nargs="*", default=["asha", "random"], help="of Ray Tune, to compare with")
    parser.add_argument("--out", type=Path, default=Path("budget_bench"), help="what is done is kept, not repeated")


@dataclass(frozen=True)
class Contender:
    """A command that trains a base model for all of the hours."""

    kind: str
    name: str
    script: str
    options: tuple[str, ...]


def run(options: argparse.Namespace) -> int:
    """Train every contender in turn, and print val_bpb and seconds beside the grid's best."""
    if options.seeds < 1 or not options.hours > 0:
        raise UserError("--seeds and --hours must be positive", "leave them out for 3 seeds of 0.1 h")
    options.out.mkdir(parents=True, exist_ok=True)
    device = detect_hardware()
    print(device.describe())
    path = options.out / f"{Path(options.data).name}-{options.hours:g}h.json"  # the runs are beside it
    done: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}
    for contender in contenders(options, EVAL_TOKENS[device.device_type]):
        if contender.name not in done:
            done[contender.name] = {"kind": contender.kind, **_train(contender, path.with_suffix(""))}
            write_json(path, done)
        row = done[contender.name]
        figures = f"val_bpb {row['val_bpb']:.4f}  {row['tokens']:>12,} tokens  {row['seconds']:6.0f} s"
        print(f"{contender.name:32}  {figures}", flush=True)
    return _verdict(done, 3600 * options.hours)


def contenders(options: argparse.Namespace, eval_tokens: int) -> list[Contender]:
    """The grid, the mode's own choice, Tune's searches, and ours."""
    shared = ("--hours", str(options.hours), "--data", options.data)
    fixed = (*shared, "--stage", "tokenizer,base", "--set", f"base.eval_tokens={eval_tokens}")
    searched = (*shared, "--stages", "base", "--fresh-prior")
    found = [
        Contender("grid", f"depth {depth}, batch {batch}", run_stage.__file__,
                  (*fixed, "--depth", str(depth), "--total-batch-size", str(batch)))
        for depth in options.depths
        for batch in options.batches
    ]  # fmt: skip
    found.append(Contender("demo", "mode demo", run_stage.__file__, fixed))
    found += [Contender(policy, f"policy {policy}", tune_budget.__file__, (*searched, "--policy", policy))
              for policy in options.policies]  # fmt: skip
    found += [Contender("budget", f"policy budget, seed {seed}", tune_budget.__file__, (*searched, "--seed", str(seed)))
              for seed in range(options.seeds)]  # fmt: skip
    return found


def _train(contender: Contender, runs_dir: Path) -> dict:
    name = contender.name.replace(" ", "-").replace(",", "")
    command = [sys.executable, contender.script, *contender.options, "--name", name, "--runs-dir", str(runs_dir)]
    start = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - start
    if ended.returncode != 0:
        said = ended.stdout[-2000:] + ended.stderr[-2000:]
        raise RuntimeError(f"{contender.name} ended with {ended.returncode}:\n{said}")
    result = Run(runs_dir / name).results()["base"]
    return {"val_bpb": result["val_bpb"], "tokens": result["tokens"], "seconds": seconds}


def _verdict(done: dict[str, dict], cap_s: float) -> int:
    """Print how the searches compare. Returns 0 if they are within 2 % of the grid's best, below all else, and in
    time."""
    by_kind: dict[str, list[float]] = {}
    for row in done.values():
        by_kind.setdefault(row["kind"], []).append(row["val_bpb"])
    ours, best = by_kind.pop("budget"), min(by_kind.pop("grid"))
    mean, over_s = statistics.mean(ours), max(row["seconds"] - cap_s for row in done.values())
    print(f"budget {mean:.4f} (worst {max(ours):.4f}), the grid's best {best:.4f}: {mean / best - 1:+.1%}; "
          f"{', '.join(f'{kind} {min(values):.4f}' for kind, values in by_kind.items())}; most over the cap "
          f"{max(over_s, 0):.0f} s")  # fmt: skip
    others = min((min(values) for values in by_kind.values()), default=math.inf)
    return 0 if mean <= 1.02 * best and mean < others and over_s <= 0 else 1
