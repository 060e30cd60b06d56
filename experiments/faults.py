"""Breaking a run on purpose, at named points: who dies there, or is stopped, once each. For tests and bench.py chaos.

A worker passes these points and asks here, through NANOCHAT_FAULTS, whether somebody is to be hit: tokenizer,
tokenising, forward, backward, update, all_gather, evaluation, stage_end; and while a checkpoint is saved model,
optimizer, state, manifest, written, on a disk parked, renamed, elsewhere withdrawn, "sent FILE", and retained.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat.run import Run

VARIABLE = "NANOCHAT_FAULTS"  # path of a plan
VICTIMS = {
    "worker": (("worker", signal.SIGKILL),),
    "driver": (("driver", signal.SIGKILL),),
    "both": (("driver", signal.SIGKILL), ("worker", signal.SIGKILL)),
    "terminated": (("driver", signal.SIGTERM),),
    "interrupted": (("driver", signal.SIGINT),),
    "hung": (("worker", signal.SIGSTOP),),
}


@dataclass(frozen=True)
class Fault:
    """Hit `victim` (one of VICTIMS) when `stage`'s worker passes `point` for the `pass_number`-th time in its life."""

    point: str
    victim: str
    pass_number: int = 1


def write_plan(path: Path, faults: Sequence[Fault]) -> None:
    """A plan that NANOCHAT_FAULTS can name."""
    path.write_text(json.dumps([asdict(fault) for fault in faults]))


def struck(path: Path) -> list[Fault]:
    """The faults of a plan that have happened."""
    return [fault for number, fault in enumerate(_read(path)) if _mark(path, number).exists()]


def strike(run: Run, victim: str) -> bool:
    """Send a victim's signals now. False where one of them is not running."""
    pids = [(run.owner("driver" if role == "driver" else "worker-0"), number) for role, number in VICTIMS[victim]]
    for owner, number in pids:
        if owner is None:
            return False
        try:
            os.kill(owner.pid, number)
        except ProcessLookupError:
            return False
    return True


def planned_faults(run: Run) -> Callable[[str], None]:
    """What a worker calls at each point it passes: nothing, unless NANOCHAT_FAULTS names a plan."""
    if VARIABLE not in os.environ:
        return lambda point: None
    path, passed = Path(os.environ[VARIABLE]), Counter[str]()

    def reached(point: str) -> None:
        passed[point] += 1
        for number, fault in enumerate(_read(path)):
            if fault.point == point and fault.pass_number == passed[point]:
                try:
                    _mark(path, number).touch(exist_ok=False)  # once, in however many lives
                except FileExistsError:
                    continue
                strike(run, fault.victim)

    return reached


def _read(path: Path) -> list[Fault]:
    return [Fault(**fault) for fault in json.loads(path.read_text())]


def _mark(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
