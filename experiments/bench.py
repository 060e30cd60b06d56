"""Speed of each part against its yardstick in the same process: python experiments/bench.py PART [options]."""

import argparse
import subprocess
import sys

from experiments import cli
from experiments.benchmarks import (
    budget,
    chaos,
    checkpoint,
    core,
    epochs,
    generate,
    gpu,
    loader,
    packing,
    plans,
    quality,
    ray_overhead,
    search,
    train,
    workers,
)

PARTS = {"train": train, "loader": loader, "ray": ray_overhead, "generate": generate, "packing": packing,
         "checkpoint": checkpoint, "workers": workers, "chaos": chaos, "search": search, "budget": budget,
         "core": core, "quality": quality, "epochs": epochs, "plans": plans, "gpu": gpu}  # fmt: skip


QUICK = ("train", "loader", "ray", "generate", "checkpoint", "workers")  # of which `all` is made


def main(argv: list[str]) -> int:
    """Run one part, or one after the other. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, module in PARTS.items():
        module.add_arguments(parts.add_parser(name, help=module.__doc__, description=module.__doc__))
    parts.add_parser("all", help=f"the quick ones in turn: {', '.join(QUICK)}")
    options = parser.parse_args(argv)
    return run_all() if options.part == "all" else PARTS[options.part].run(options)


def run_all() -> int:
    """Each quick part in a process of its own. Returns 0 if all did."""
    codes = []
    for name in QUICK:
        print(f"\n== {name}: {PARTS[name].__doc__}", flush=True)
        codes.append(subprocess.run([sys.executable, __file__, name]).returncode)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(cli.run(main))
