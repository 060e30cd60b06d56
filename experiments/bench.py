"""Speed of each part against its yardstick in the same process: python experiments/bench.py PART [options]."""

import argparse
import sys

from experiments import cli
from experiments.benchmarks import budget, chaos, checkpoint, packing, plans, search, train, workers

PARTS = {"train": train, "packing": packing, "checkpoint": checkpoint, "workers": workers, "chaos": chaos,
         "search": search, "budget": budget, "plans": plans}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, module in PARTS.items():
        module.add_arguments(parts.add_parser(name, help=module.__doc__, description=module.__doc__))
    options = parser.parse_args(argv)
    return PARTS[options.part].run(options)


if __name__ == "__main__":
    sys.exit(cli.run(main))
