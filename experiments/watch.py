"""What another terminal shows of a run while it goes on. Looking changes nothing."""

import time
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console

from experiments.session import shown_beside
from experiments.terminal import Display
from experiments.trial_table import TrialTable
from nanochat.clock import read_clock
from nanochat.config import STAGES
from nanochat.errors import UserError
from nanochat.events import Follower
from nanochat.run import Run, read_json

POLL_S = 0.3


def watch(console: Console, run: Run, goes_on: Callable[[], bool]) -> None:
    """Show the run from its beginning, the trials of a search first, until it ends or nobody trains it any more."""
    if not run.exists():
        with TrialTable(console, run, lambda: _left(run)) as table:
            while goes_on() and not run.exists():
                table.look()
                time.sleep(POLL_S)
    follower, beside = Follower(run.directory, STAGES), {}
    if run.exists():
        beside = shown_beside(run.config(), run.hardware(), read_clock(run.clock_path), run.plan().num_workers)
    with Display(console, **beside) as display:
        going = True
        while going:
            going = goes_on()  # before the events: none comes after its end
            for event in follower.poll():
                display(event)
            display.look()
            time.sleep(POLL_S if going else 0)


def _left(run: Run) -> float:
    """Seconds of a search's hours."""
    clock, hours = read_clock(run.clock_path), 0.0
    with suppress(UserError, KeyError, TypeError):
        hours = read_json(run.directory / "search" / "asked.json")["request"]["hours"]
    return 3600 * hours - (clock() if clock else 0.0)
