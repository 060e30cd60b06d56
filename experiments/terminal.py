"""What the user sees while a run goes on: a progress bar a stage on a terminal, plain lines anywhere else."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from textwrap import shorten

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from nanochat.events import (
    Event,
    Note,
    Prepared,
    RolledBack,
    Sampled,
    Saved,
    StageFinished,
    StageStarted,
    StepDone,
    TasksScored,
    Validated,
)
from nanochat.report import duration, gigabytes
from nanochat.report_parts import Figure, Table, Text

PLAIN_EVERY_S = 5.0
SAMPLE_CHARS = 110
SILENT_S = 9.0  # plain lines come at least so often


def make_console() -> Console:
    """Output to stdout; 120 columns when it is not a terminal, so that piped tables are not squeezed."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)


def show_table(console: Console, table: Table) -> None:
    """A heading and aligned columns."""
    drawn = RichTable(
        title=table.title, title_justify="left", title_style="bold", header_style="", box=None, pad_edge=False
    )
    for column in table.columns:
        drawn.add_column(column, justify="left" if column == table.columns[0] else "right")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    console.print(drawn)
    console.print()


def show_parts(console: Console, parts: Sequence[Table | Text | Figure]) -> None:
    """Tables and paragraphs; figures are for the report."""
    for part in parts:
        if isinstance(part, Table):
            show_table(console, part)
        elif isinstance(part, Text):
            console.print("\n\n".join(part.paragraphs), soft_wrap=True, markup=False)


_DOING = {
    Note: "working on that",
    Prepared: "the model is made",
    StageStarted: "the first step",
    StageFinished: "ended, going on",
}


class Display:
    """Consumes a run's events. Use as a context manager: it always leaves the terminal as it was.

    Args:
        peak_tokens: tokens a second at the matmul peak as it was measured, of which a share is shown. 0: not known.
        ends: when everything is over at the latest, for people; empty: whenever.
    """

    def __init__(
        self, console: Console, clock: Callable[[], float] = time.monotonic, peak_tokens: float = 0.0, ends: str = ""
    ) -> None:
        self.console, self.clock, self.peak_tokens, self.ends = console, clock, peak_tokens, ends
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.val_bpb = float("nan")
        self.total, self.by_clock = 0, False
        self.recent_s: list[float] = []
        self.progress: list[float] = []
        self.last_line = -float("inf")
        self.said = self.since = clock()
        self.doing = "working"

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description:<5}"),
                BarColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                TextColumn(f"ends by {self.ends}" if self.ends else ""),
                console=self.console,
            )
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self.does(f"{event.stage}: {_DOING.get(type(event), 'training')}")
        match event:
            case Note(text=text, warning=warning):
                self.say(f"[yellow]warning: {escape(text)}[/yellow]" if warning else f"[dim]{escape(text)}[/dim]")
            case StageStarted():
                self._start(event)
            case StepDone():
                self._step(event)
            case Validated(val_bpb=val_bpb):
                self.val_bpb = val_bpb
                if self.bar is None:
                    self.say(f"{self._at(event)}  val_bpb {val_bpb:.4f}")
            case RolledBack():
                self.say(
                    f"[yellow]warning: {event.stage} diverged at step {event.step:,}: back to step {event.to_step:,}, "
                    f"past the data since, with {event.lr_scale:g} of the learning rate[/yellow]"
                )
            case Sampled(prompt=prompt, text=text):
                self.say(f"[dim]{escape(shorten(f'{prompt} {text}', SAMPLE_CHARS))}[/dim]")
            case Saved() if self.bar is None:
                self.say(f"{self._at(event)}  checkpoint saved")
            case TasksScored(scores={"overall": overall}):
                self.say(f"{event.stage}: {overall['accuracy']:.0%} of {overall['count']:.0f} questions right")
            case StageFinished(result=result):
                self.say(
                    f"{event.stage} done in {duration(result['train_s'] + result['other_s'])}, "
                    f"val_bpb {result['val_bpb']:.4f}"
                )

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.said = self.clock()
        (self.bar.console if self.bar else self.console).print(text, soft_wrap=True)

    def look(self) -> None:
        """Where nothing has been said for long, and no bar moves, say what is being done."""
        now = self.clock()
        if self.bar is None and now - self.said >= SILENT_S:
            self.say(f"[dim]{self.doing}, for {duration(now - self.since)}[/dim]")

    def does(self, what: str) -> None:
        """What goes on from now on, for who is waiting."""
        self.doing, self.since = what, self.clock()

    def _start(self, event: StageStarted) -> None:
        self.total, self.recent_s, self.progress, self.val_bpb = event.num_iterations, [], [], float("nan")
        self.by_clock = event.by_clock
        resumed = f", resumed at step {event.step:,}" if event.step else ""
        if self.bar is None:
            steps = f"about {event.num_iterations:,} steps" if event.by_clock else f"{event.num_iterations:,} steps"
            self.say(f"{event.stage}: {steps} of {event.tokens_per_step:,} tokens{resumed}")
        else:
            self.task = self.bar.add_task(
                event.stage, total=event.num_iterations, completed=event.step, figures="first step: compiling"
            )

    def _step(self, event: StepDone) -> None:
        self.recent_s = [*self.recent_s[-19:], event.seconds]
        self.progress = [*self.progress[-19:], event.progress]
        step_s = statistics.median(self.recent_s)  # the first step, which compiles, or a hiccup hardly moves it
        tokens = event.tokens_per_second * event.seconds
        figures = f"loss {event.loss:.3f}  val_bpb {self.val_bpb:.3f}  {tokens / step_s:,.0f} tok/s"
        figures += f"  {tokens / step_s / self.peak_tokens:.0%} of peak" if self.peak_tokens else ""
        figures += f"  {gigabytes(event.memory_bytes)}" if event.memory_bytes else ""
        if event.skipped:
            self.say(
                f"[yellow]warning: {event.stage} step {event.step} skipped: loss or gradient not finite[/yellow]"
            )
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=event.progress * self.total, figures=f"step {event.step:,}  {figures}")
        elif self.clock() - self.last_line >= PLAIN_EVERY_S or event.step == self.total:
            self.last_line = self.clock()
            left = duration(self._steps_left() * step_s)
            self.say(f"{self._at(event)}  {figures}  {left} left")

    def _at(self, event: StepDone | Validated | Saved) -> str:
        """Where its stage is; how many steps there will be is not known where the clock ends it."""
        return f"{event.stage} {event.step:,}" + ("" if self.by_clock else f"/{self.total:,}")

    def _steps_left(self) -> float:
        """How many more there are at the pace of the latest; a deadline may come before the last."""
        done = self.progress[-1] - self.progress[0]
        a_step = done / (len(self.progress) - 1) if done > 0 else 1 / self.total
        return (1 - self.progress[-1]) / a_step
