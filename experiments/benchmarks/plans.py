"""How good the plans of this machine have been: every stage that ended, what was planned beside what it took."""

import argparse
from statistics import median

from experiments.terminal import make_console, show_table
from nanochat.data.sources import cache_directory
from nanochat.errors import UserError
from nanochat.planning.hardware import detect_hardware
from nanochat.planning.history import Finished, History
from nanochat.report import Table, duration, gigabytes

CLOSE = 0.1  # the share by which a plan may be off


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--last", type=int, default=30, help="stages to show (default: 30)")


def run(options: argparse.Namespace) -> int:
    """Print the audit."""
    hardware = detect_hardware()
    print(hardware.describe())
    finished = History(cache_directory(), hardware.name).read()[-max(options.last, 1) :]
    if not finished:
        raise UserError("no training has ended on this machine yet", "python experiments/run_stage.py --mode demo")
    show_table(make_console(), table(finished))
    for what, errors in (("time", [_off(each.took_s, each.planned_s) for each in finished]),
                         ("memory", [_off(each.took_bytes, each.planned_bytes) for each in finished])):  # fmt: skip
        within = sum(abs(error) <= CLOSE for error in errors)
        print(f"{what}: off by {median(map(abs, errors)):.0%} (median); {within} of {len(errors)} within {CLOSE:.0%}")
    return 0


def table(finished: list[Finished]) -> Table:
    """One row a stage, the latest last."""
    rows = tuple(
        (
            f"{each.run.rpartition('/')[2]} {each.stage}",
            f"{each.training.depth} x {each.training.width}",
            f"{each.training.device_batch_tokens:,}",
            duration(each.planned_s),
            duration(each.took_s),
            f"{_off(each.took_s, each.planned_s):+.0%}",
            gigabytes(each.planned_bytes),
            gigabytes(each.took_bytes),
            f"{_off(each.took_bytes, each.planned_bytes):+.0%}",
        )
        for each in finished
    )
    columns = ("stage", "model", "tokens at once", "planned", "took", "", "memory planned", "took", "")
    return Table("Plans and what came of them", columns, rows)


def _off(took: float, planned: float) -> float:
    return took / planned - 1
