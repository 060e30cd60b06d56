"""What the user sees of a search's trials while they run: a table on a terminal, a line for each anywhere else."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table as RichTable

from nanochat.config import RunConfig, StageConfig
from nanochat.events import Event, Follower, StepDone, Validated
from nanochat.report import duration
from nanochat.run import Run

COLUMNS = ("depth", "batch", "lr_multiplier", "tokens", "val_bpb", "left", "final then predicted")
PLAIN_EVERY_S = 10.0
REFRESH_S = 0.5


@dataclass
class _Trial:
    """One of them, as its own events tell it."""

    run: Run
    config: RunConfig
    follower: Follower
    began: float
    progress: float = 0.0
    tokens: int = 0
    val_bpb: float = math.nan
    problem: str = ""
    ended: bool = False
    outlook: str = ""

    @property
    def stage(self) -> StageConfig:
        return self.config.stage(self.config.trained_stages[0])

    def take(self, event: Event) -> None:
        match event:
            case StepDone(step=step, progress=progress):
                self.tokens, self.progress = step * self.stage.total_batch_size, progress
            case Validated(step=step, val_bpb=val_bpb) if step:
                self.val_bpb = val_bpb

    def look(self) -> bool:
        """Take in what has happened. Returns whether it was the end."""
        if self.ended:
            return False
        status = self.run.status()  # before the events: none comes after its end
        for event in self.follower.poll():
            self.take(event)
        if status is not None and status.state != "running":
            self.ended, self.problem = True, status.reason
        return self.ended

    def left(self, now: float) -> str:
        """Until it should end, by its pace so far and at the latest by its deadline."""
        if self.ended:
            return ""
        if not self.progress:
            return "starting"
        gone_s = now - self.began
        by_pace = gone_s * (1 - self.progress) / self.progress
        return duration(max(min(by_pace, (self.stage.deadline_s or math.inf) - gone_s), 0.0))

    def measured(self) -> str:
        figures = "" if math.isnan(self.val_bpb) else f"{self.val_bpb:.4f}"
        return ", ".join(part for part in (escape(self.problem), figures) if part)

    def cells(self, now: float) -> tuple[str, ...]:
        """As in `COLUMNS`."""
        stage = self.stage
        return (str(self.config.model.depth), f"{stage.total_batch_size:,}", f"{stage.lr_multiplier:.2g}",
                f"{self.tokens:,}", self.measured(), self.left(now), self.outlook)  # fmt: skip

    def line(self) -> str:
        depth, batch, lr, tokens, measured, _, _ = self.cells(0.0)
        return f"depth {depth}, batch {batch}, lr_multiplier {lr}: val_bpb {measured or 'unknown'} on {tokens} tokens"


class TrialTable:
    """Follows the runs below a directory. Use as a context manager: it leaves the terminal as it was, and the table on
    it.

    Args:
        left: seconds until trials must be over.
    """

    def __init__(
        self, console: Console, run: Run, left: Callable[[], float], clock: Callable[[], float] = time.time
    ) -> None:
        self.console, self.run, self.left, self.clock = console, run, left, clock
        self.trials: dict[str, _Trial] = {}
        self.news: deque[tuple[str, str, str]] = deque()
        self.live: Live | None = None
        self.looked = self.said = clock()

    def __enter__(self) -> "TrialTable":
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.looked = -math.inf
        self.look()
        if self.live is not None:
            self.live.stop()

    def look(self) -> None:
        """Take in what has happened, and show it."""
        now = self.clock()
        if now - self.looked < REFRESH_S:
            return
        self.looked = now
        for record in (self.run.directory / "search" / "trials").glob("*/run.json"):
            name = record.parent.name
            if name not in self.trials:
                run = Run(record.parent)
                follower = Follower(run.directory, run.config().trained_stages)
                self.trials[name] = _Trial(run, run.config(), follower, record.stat().st_mtime)
        for number, trial in enumerate(self.trials.values(), 1):
            if trial.look() and self.live is None:
                self._say(f"trial {number}: {trial.line()}")
        while self.news:
            self._take(*self.news.popleft())
        if self.live is not None:
            self.live.update(self._drawn(), refresh=True)
        elif now - self.said >= PLAIN_EVERY_S:
            self._say_running(now)

    @property
    def busy(self) -> bool:
        """Whether any of the trials runs."""
        return any(not trial.ended for trial in self.trials.values())

    def tell(self, name: str, problem: str, outlook: str) -> None:
        """What a trial ended with, if not well, and what the final run is predicted to reach by what is then known.
        May be called from any thread."""
        self.news.append((name, problem, outlook))

    def _take(self, name: str, problem: str, outlook: str) -> None:
        trial = self.trials.get(name)
        if trial is not None:
            trial.outlook = outlook
        if problem and (trial is None or not trial.problem):  # its worker could not say so itself
            self._say(f"[yellow]warning: trial {name}: {escape(problem)}[/yellow]")
            if trial is not None:
                trial.ended, trial.problem = True, problem
        if self.live is None:
            self._say(f"final run now predicted at val_bpb {outlook}")

    def _say_running(self, now: float) -> None:
        for number, trial in enumerate(self.trials.values(), 1):
            if not trial.ended:
                state = f"{trial.progress:.0%}, {trial.left(now)} left" if trial.progress > 0 else "starting"
                self._say(f"[dim]trial {number}: {state}[/dim]")

    def _say(self, text: str) -> None:
        self.said = self.clock()
        self.console.print(text, soft_wrap=True)

    def _drawn(self) -> RichTable:
        table = RichTable(title=f"Trials: {duration(max(self.left(), 0))} left for them", title_justify="left",
                          title_style="bold", header_style="", box=None, pad_edge=False)  # fmt: skip
        for column in COLUMNS:
            table.add_column(column, justify="right")
        now = self.clock()
        for trial in self.trials.values():
            table.add_row(*trial.cells(now))
        return table
