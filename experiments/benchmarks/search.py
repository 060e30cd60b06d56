"""How far from a clairvoyant each way of searching ends, in simulated worlds."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nanochat.errors import UserError
from nanochat.search.policy import BudgetPolicy
from nanochat.search.priors import SMALL_TEXT
from nanochat.search.simulator import BASELINES, Machine, Outcome, Shift, World, gpu, simulate, two_cores
from nanochat.search.space import Space, load_space

SPACE = Path(__file__).parents[2] / "search_spaces" / "budget.py"
INTERVAL = 1.645  # standard deviations that hold nine of ten
LITTLE_DATA = (3e8, 1e7)  # tokens


@dataclass(frozen=True)
class Setting:
    """A kind of machine, how wrong is what is believed of it, and which caps are asked about."""

    what: str
    machine: Machine
    space: Space
    hours: tuple[float, ...]
    shift: Shift | None = None


def settings() -> list[Setting]:
    off, long, short = Shift(1.5, 1.5), (0.5, 1, 3, 6, 12, 24), (0.1, 0.25, 0.5, 1, 2, 4)
    return [  # of TinyWorld on two cores 21 trainings are known: learning rate and batch cannot be far off
        Setting("GPU, as the prior says", gpu(), gpu_space(), long),
        Setting("GPU, learning rate and batch off by 2.8 times", gpu(), gpu_space(), long, off),
        *(Setting(f"GPU, {tokens:,.0f} tokens of data", gpu(tokens), gpu_space(), long) for tokens in LITTLE_DATA),
        Setting("two CPU cores, TinyWorld, as the prior says", two_cores(), small_space(), short),
        Setting("two CPU cores, other text, as the prior says", two_cores(SMALL_TEXT), small_space(), short),
        Setting("two CPU cores, other text, learning rate and batch off by 2.8 times", two_cores(SMALL_TEXT),
                small_space(), short, off),
    ]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=50)


def run(options: argparse.Namespace) -> int:
    """Print regret (thousandths of val_bpb above the clairvoyant; mean / 90th percentile) by hours and policy."""
    if options.seeds < 2:
        raise UserError("--seeds must be at least 2", "leave it out for 50")
    for setting in settings():
        print(f"\n{setting.what}: {options.seeds} worlds a cell; regret mean / 90 %")
        print(f"{'':24}" + "".join(f"{hours:>12g} h" for hours in setting.hours))
        columns = [_column(setting, hours, options.seeds) for hours in setting.hours]
        for name in columns[0]:
            print(f"{name:24}" + "".join(f"{column[name]:>14}" for column in columns), flush=True)
    return 0


def _column(setting: Setting, hours: float, seeds: int) -> dict[str, str]:
    """The figures of one cap by their name."""
    cap_s, machine, space, ends = 3600 * hours, setting.machine, setting.space, []
    regrets: dict[str, list[float]] = {name: [] for name in ("budget policy", *BASELINES)}
    for seed in range(seeds):
        best = World(machine, seed, setting.shift).clairvoyant(space, cap_s)
        policy = BudgetPolicy(space, cap_s, machine.prior, machine.overheads, machine.unique_tokens, seed,
                              device=machine.device)  # fmt: skip
        ends.append(simulate(policy, World(machine, seed, setting.shift)))
        regrets["budget policy"].append(ends[-1].quality - best)
        for name, search in BASELINES.items():
            regrets[name].append(search(World(machine, seed, setting.shift), space, cap_s, seed) - best)
    thousandths = {name: 1000 * np.array(gaps) for name, gaps in regrets.items()}
    return {
        **{name: f"{gaps.mean():.1f} / {np.percentile(gaps, 90):.1f}" for name, gaps in thousandths.items()},
        "share spent exploring": f"{100 * np.mean([end.explored_s for end in ends]) / cap_s:.1f} %",
        "inside the interval": f"{100 * np.mean([_inside(end) for end in ends]):.0f} %",
        "most over the cap": f"{max(max(end.ended_s - cap_s, 0) for end in ends):.0f} s",
    }


def gpu_space() -> Space:
    """The budget space, cut to what a GPU would train."""
    return _cut(_cut(load_space(SPACE), "depth", low=4), "total_batch_size", low=16_384)


def small_space() -> Space:
    """The budget space, cut to what two CPU cores would train."""
    return _cut(_cut(load_space(SPACE), "depth", high=8), "total_batch_size", high=32_768)


def _cut(space: Space, knob: str, **bounds: float) -> Space:
    return Space(space.name, {**space.domains, knob: replace(space[knob], **bounds)})


def _inside(outcome: Outcome) -> bool:
    return abs(outcome.achieved - outcome.predicted) <= INTERVAL * outcome.predicted_sd
