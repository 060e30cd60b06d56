"""How far from a clairvoyant each way of searching ends, in simulated worlds."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from nanochat.errors import UserError
from nanochat.search.policy import BudgetPolicy
from nanochat.search.simulator import BASELINES, Outcome, Shift, World, gpu, simulate
from nanochat.search.space import Space, load_space

SPACE = Path(__file__).parents[2] / "search_spaces" / "budget.py"
WORLDS = {"as the prior says": None, "learning rate and batch off by 2.8 times": Shift(1.5, 1.5)}
INTERVAL = 1.645  # standard deviations that hold nine of ten


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--hours", type=float, nargs="+", default=[0.5, 1, 3, 6, 12, 24])


def run(options: argparse.Namespace) -> int:
    """Print regret (thousandths of val_bpb above the clairvoyant; mean / 90th percentile) by hours and policy."""
    if options.seeds < 2 or min(options.hours) < 0.1:
        raise UserError("--seeds must be at least 2 and --hours at least 0.1", "leave them out for the whole table")
    space = gpu_space()
    for what, shift in WORLDS.items():
        print(f"\n{what}: {options.seeds} worlds a cell; regret mean / 90 %")
        print(f"{'':24}" + "".join(f"{hours:>12g} h" for hours in options.hours))
        columns = [_column(space, hours, options.seeds, shift) for hours in options.hours]
        for name in columns[0]:
            print(f"{name:24}" + "".join(f"{column[name]:>14}" for column in columns), flush=True)
    return 0


def _column(space: Space, hours: float, seeds: int, shift: Shift | None) -> dict[str, str]:
    """The figures of one cap by their name."""
    cap_s, machine, ends = 3600 * hours, gpu(), []
    regrets: dict[str, list[float]] = {name: [] for name in ("budget policy", *BASELINES)}
    for seed in range(seeds):
        best = World(machine, seed, shift).clairvoyant(space, cap_s)
        policy = BudgetPolicy(space, cap_s, machine.prior, machine.overheads, machine.unique_tokens, seed,
                              device=machine.device)  # fmt: skip
        ends.append(simulate(policy, World(machine, seed, shift)))
        regrets["budget policy"].append(ends[-1].quality - best)
        for name, search in BASELINES.items():
            regrets[name].append(search(World(machine, seed, shift), space, cap_s, seed) - best)
    thousandths = {name: 1000 * np.array(gaps) for name, gaps in regrets.items()}
    return {
        **{name: f"{gaps.mean():.1f} / {np.percentile(gaps, 90):.1f}" for name, gaps in thousandths.items()},
        "share spent exploring": f"{100 * np.mean([end.explored_s for end in ends]) / cap_s:.1f} %",
        "inside the interval": f"{100 * np.mean([_inside(end) for end in ends]):.0f} %",
        "most over the cap": f"{max(max(end.ended_s - cap_s, 0) for end in ends):.0f} s",
    }


def gpu_space() -> Space:
    """The budget space, cut to what a GPU would train."""
    space = load_space(SPACE)
    depth, batch = replace(space["depth"], low=4), replace(space["total_batch_size"], low=16_384)
    return Space(space.name, {**space.domains, "depth": depth, "total_batch_size": batch})


def _inside(outcome: Outcome) -> bool:
    return abs(outcome.achieved - outcome.predicted) <= INTERVAL * outcome.predicted_sd
