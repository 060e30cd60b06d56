"""What a search may vary, read from a file of plain data: it is parsed, never executed."""

import ast
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.config import TRAINED_STAGES
from nanochat.errors import UserError

KNOBS = {
    "depth": int,
    "total_batch_size": int,
    "device_batch_size": int,
    "num_iterations": int,
    "lr_multiplier": float,
}
SCALES = ("linear", "log2")
FIELDS = {"stage", "low", "high", "scale", "step"}
MAX_VALUES = 1000


@dataclass(frozen=True)
class Domain:
    """The values of one knob: from `low` to `high` in even steps of its scale."""

    name: str
    stage: str
    low: float
    high: float
    scale: str
    step: float

    def values(self) -> list[float]:
        """All of them, rising; whole numbers where the knob takes them."""
        start, end = (math.log2(bound) if self.scale == "log2" else bound for bound in (self.low, self.high))
        places = [start + self.step * number for number in range(int((end - start) / self.step + 1e-9) + 1)]
        values = [2**place if self.scale == "log2" else place for place in places]
        return [round(value) if KNOBS[self.name] is int else value for value in values]


@dataclass(frozen=True)
class Space:
    """Domains by the name of their knob."""

    name: str
    domains: dict[str, Domain]

    def __contains__(self, knob: str) -> bool:
        return knob in self.domains

    def __getitem__(self, knob: str) -> Domain:
        return self.domains[knob]

    @property
    def stage(self) -> str:
        """What is trained with each choice."""
        return next(iter(self.domains.values())).stage


def load_space(path: Path) -> Space:
    """The space that a file describes as `SPACE = {knob: {"stage", "low", "high", "scale", "step"}}`.

    Raises:
        UserError: listing everything that is wrong with it.
    """
    hint = "see search_spaces/budget.py for how one is written"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (described,) = (
            ast.literal_eval(part.value)
            for part in tree.body
            if isinstance(part, ast.Assign) and [ast.unparse(target) for target in part.targets] == ["SPACE"]
        )
    except OSError as error:
        raise UserError(f"cannot read the search space {path}: {error.strerror}", hint) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = "it must say SPACE = {...} once" if "unpack" in str(error) else f"it is no plain data: {error}"
        raise UserError(f"the search space {path} cannot be read: {reason}", hint) from None
    problems = _problems(described)
    if problems:
        raise UserError(f"the search space {path} cannot work: {'; '.join(problems)}", hint)
    return Space(path.stem, {name: Domain(name, **domain) for name, domain in described.items()})


def _problems(described: Any) -> list[str]:
    if not isinstance(described, dict) or not described:
        return ["SPACE must be a dict with at least one knob"]
    problems = []
    for name, domain in described.items():
        if name not in KNOBS:
            problems.append(f"there is no knob {name!r} (there are {', '.join(KNOBS)})")
        elif not isinstance(domain, dict):
            problems.append(f"{name} must be a dict")
        else:
            problems += [f"{name}: {problem}" for problem in _domain_problems(name, domain)]
    stages = set() if problems else {domain["stage"] for domain in described.values()}
    if len(stages) > 1:
        problems.append(f"all knobs of a space belong to one stage, not to {', '.join(sorted(stages))}")
    return problems


def _domain_problems(name: str, domain: dict) -> list[str]:
    missing, unknown = FIELDS - domain.keys(), domain.keys() - FIELDS
    if missing or unknown:
        return [f"{word} {', '.join(sorted(map(str, fields)))}" for word, fields in
                (("it lacks", missing), ("it has no field", unknown)) if fields]  # fmt: skip
    problems = []
    if domain["stage"] not in TRAINED_STAGES:
        problems.append(f"stage must be one of {', '.join(TRAINED_STAGES)}, not {domain['stage']!r}")
    if name == "depth" and domain["stage"] != "base":
        problems.append("the depth of a model is decided in stage base")
    if domain["scale"] not in SCALES:
        problems.append(f"scale must be one of {', '.join(SCALES)}, not {domain['scale']!r}")
    wrong = [f for f in ("low", "high", "step") if isinstance(domain[f], bool) or not isinstance(domain[f], int | float)
             or not 0 < domain[f] < math.inf]  # fmt: skip
    problems += [f"{field} must be a positive number, not {domain[field]!r}" for field in wrong]
    if problems:
        return problems
    if domain["low"] > domain["high"]:
        return [f"low {domain['low']} is above high {domain['high']}"]
    ends = (math.log2(domain["high"] / domain["low"]) if domain["scale"] == "log2" else domain["high"] - domain["low"])
    if ends / domain["step"] > MAX_VALUES:
        return [f"step {domain['step']} makes more than {MAX_VALUES} values"]
    if KNOBS[name] is int and any(not float(domain[field]).is_integer() for field in ("low", "high")):
        return ["low and high must be whole numbers"]
    return []
