"""One run from its start to its summary: what run_stage.py and tune_budget.py share."""

import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.markup import escape

from experiments.cluster import RayEnded
from experiments.deadline import TimeIsUp, Watch, settle
from experiments.preparation import check_hub
from experiments.ray_train import Outcome, Scale, fit
from experiments.terminal import Display, show_parts, show_table
from experiments.wandb_log import WAIT_S, WandbLog
from nanochat.clock import RunClock, start_clock
from nanochat.config import STAGES, RunConfig
from nanochat.data.sources import cache_directory
from nanochat.errors import UserError
from nanochat.events import Follower, Prepared, StageFinished, read_events
from nanochat.figures import warm_up
from nanochat.model import train_flops_per_token
from nanochat.planning.hardware import Hardware, cpu_name, usable_cpus
from nanochat.planning.history import History, finished_run, finished_stages
from nanochat.planning.preparing import corpus_shards
from nanochat.report import (
    conversation,
    score_table,
    stage_table,
    write_report,
)
from nanochat.report_parts import Figure, Table, Text
from nanochat.run import Run, Status
from nanochat.training.checkpoint import CheckpointStore


def begin(run: Run) -> RunClock:
    """Start the run's clock, which counts from the start of this process."""
    return start_clock(run.clock_path, psutil.Process().create_time())


class _Stop:
    """Turns Ctrl-C and SIGTERM into a request that the worker sees between steps; a second one ends at once."""

    def __init__(self, run: Run, display: Display) -> None:
        self.run, self.display, self.asked = run, display, False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.run.request_stop()
        self.display.say("stopping: this step is finished and saved first (once more to stop at once)")


def train(
    console: Console,
    run: Run,
    config: RunConfig,
    record: dict[str, Any],
    scale: Scale,
    clock: RunClock,
    sections: Callable[[], Sequence[Table | Text | Figure]] = list,
    wandb: str = "off",
) -> int:
    """Train the run to its end, its interruption or its cap. Returns the exit code.

    Args:
        sections: what else belongs into summary and report, asked for when the run has ended.
        wandb: one of `wandb_log.MODES`.
    """
    hardware = run.hardware(record)
    today = hardware if scale.address else _today(console, hardware)
    follower = Follower(run.directory, STAGES)
    follower.skip_existing()
    run.clear_stop()
    run.write_status(Status("running"))
    watch = Watch(run, config.cap_s, clock)
    Thread(target=warm_up, name="figures", daemon=True).start()  # so that the report does not wait for it
    log = WandbLog(run, wandb, partial(_warn, console)) if wandb != "off" else None
    with Display(console, **shown_beside(config, hardware, clock, scale.num_workers)) as display:
        stop = _Stop(run, display)
        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

        def show_and_watch() -> None:
            for event in follower.poll():
                display(event)
                if isinstance(event, StageFinished) and event.stage != config.trained_stages[-1]:
                    _report(console, run)  # the last one's is written when all has ended
            display.look()
            watch.look()
            if log:
                log.look()

        try:
            if _finished(run, config):
                outcome = Outcome("done")
            else:
                shards = 0 if run.result_path("base").exists() else corpus_shards(config)
                check_hub(config.data, config.chat, config.stages, shards)
                display.say("starting Ray")
                display.does("Ray is starting")
                outcome = fit(run, today, scale, show_and_watch)
        except TimeIsUp:
            outcome = Outcome("done")
        except RayEnded as error:  # whoever ends a job, like Slurm, tells all of its processes
            outcome = Outcome("interrupted" if stop.asked else "user_error", error.message, error.hint)
        except UserError as error:
            outcome = Outcome("user_error", error.message, error.hint)
        except KeyboardInterrupt:
            outcome = Outcome("interrupted", "stopped at once")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    if watch.asked and outcome.state == "interrupted" and not stop.asked:
        outcome = Outcome("done")
    try:
        if outcome.state == "done":
            settle(run, config)
    except UserError as error:
        outcome = Outcome("user_error", error.message, error.hint)
    try:
        return _ended(console, run, config, outcome, clock, sections)
    finally:
        if log:
            log.close(WAIT_S if config.cap_s is None else min(WAIT_S, config.cap_s - clock()))


def _today(console: Console, planned: Hardware) -> Hardware:
    """`planned` with the processors and devices of this machine, which a run may have come to from another."""
    name, count = cpu_name(), 1
    if planned.device_type == "cuda":
        count = torch.cuda.device_count()
        name = torch.cuda.get_device_name(0) if count else planned.name
    if name != planned.name:
        _warn(console, f"the run was planned for {planned.name} and goes on with {name}: times and memory are others")
    return replace(planned, cpu_count=usable_cpus(), device_count=count)


def _warn(console: Console, text: str) -> None:
    console.print(f"[yellow]warning: {escape(text)}[/yellow]", soft_wrap=True)


def shown_beside(config: RunConfig, hardware: Hardware, clock: RunClock | None, num_workers: int) -> dict[str, Any]:
    """What `Display` wants to know of a run besides its events."""
    devices = num_workers if hardware.device_type == "cuda" else 1
    flops = train_flops_per_token(config.model, config.model.max_seq_len)
    ends = ""
    if config.cap_s is not None and clock is not None:
        ends = time.strftime("%H:%M:%S", time.localtime(time.time() + config.cap_s - clock()))
    return {"peak_tokens": devices * hardware.peak_flops[config.compute_dtype] / flops, "ends": ends}


def _finished(run: Run, config: RunConfig) -> bool:
    """Whether every stage has its result and, in whole, the checkpoint that it ended with."""
    results = run.results()
    for stage in config.trained_stages:
        newest = CheckpointStore(run.checkpoints(stage)).newest(lambda text: None)
        if stage not in results or newest is None or newest.step != results[stage]["iterations"]:
            return False
    return (run.tokenizer_directory / "tokenizer.json").exists()


def _ended(
    console: Console,
    run: Run,
    config: RunConfig,
    outcome: Outcome,
    clock: RunClock,
    sections: Callable[[], Sequence[Table | Text | Figure]],
) -> int:
    state = {"done": "done", "interrupted": "interrupted"}.get(outcome.state, "failed")
    last = run.status()
    run.write_status(replace(last or Status(state), state=state, reason=outcome.message.strip().rpartition("\n")[2]))
    run.clear_stop()
    if outcome.state == "user_error":
        raise UserError(outcome.message, outcome.hint)
    if outcome.state == "bug":
        sys.stderr.write(outcome.message)
        return 1
    if outcome.state == "interrupted":
        console.print("interrupted; the same command continues where it stopped")
        return 130
    for stage in config.trained_stages:
        if stage not in run.results():
            _warn(console, f"{stage} was not trained: the time was up")
    _remember(run, config, clock)
    more = sections()
    _report(console, run, more)
    show_parts(console, more)
    _show_summary(console, run, config)
    return 0


def _report(console: Console, run: Run, more: Sequence[Table | Text | Figure] = ()) -> None:
    try:
        write_report(run, more)
    except OSError as error:  # a full disk: the model is what matters
        _warn(console, f"no report: {error}")


def _remember(run: Run, config: RunConfig, clock: RunClock) -> None:
    """Keep what the run took for the plans of later ones."""
    hardware, whole = run.hardware(), None
    told = (str(run.directory), config, run.plan(), run.results())
    try:
        stages = finished_stages(*told, hardware)
        if not clock.spent_s and not (run.directory / "search").exists():  # whose trials were not planned
            prepared = [event for event in read_events(run.directory, "tokenizer") if isinstance(event, Prepared)]
            whole = finished_run(*told, prepared, clock(), hardware, run.record().get("unplanned_s", 0.0))
        History(cache_directory(), hardware.name).add(stages, whole)
    except OSError:  # a full disk: the run is what matters
        pass


def _named_from_here(run: Run) -> str:
    """What other commands find the run by."""
    usual = run.directory.absolute().parent == Path("runs").absolute()
    return run.name if usual else shlex.quote(str(run.directory))


def _show_summary(console: Console, run: Run, config: RunConfig) -> None:
    console.print()
    for prompt, text in conversation(run, config.trained_stages):
        console.print(
            f"[bold]{'you' if config.trained_stages[-1] != 'base' else 'prompt'}:[/bold] {escape(prompt)}\n"
            f"[bold]nanochat:[/bold] {escape(text)}",
            soft_wrap=True,
        )
    console.print()
    show_table(console, stage_table(run, run.plan()))
    if scores := score_table(run):
        show_table(console, scores)
    script = "python experiments/"
    console.print(f"Everything is in {escape(str(run.directory))}", soft_wrap=True)
    if config.trained_stages:
        console.print(f"Talk to it:  {script}chat.py {escape(_named_from_here(run))}", soft_wrap=True)
    console.print(f"Report:      {escape(str(run.report_path))}", soft_wrap=True)
    console.print("Resume:      the same command, whenever it was stopped")
