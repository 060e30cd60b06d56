"""The runs there are: what they do or did, how good they are, how good their plans were; and being rid of them.

  python experiments/runs.py list
  python experiments/runs.py show demo
  python experiments/runs.py watch demo     # live, from another terminal
  python experiments/runs.py compare demo half --html both.html
  python experiments/runs.py report demo    # writes report.md and report.html anew
  python experiments/runs.py export demo --out demo-hf   # for transformers
  python experiments/runs.py plans          # what was planned on this machine beside what it took
  python experiments/runs.py delete old older
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Any

import torch

from experiments import cli
from experiments.compare import compare
from experiments.preparation import named_run
from experiments.terminal import make_console, show_parts, show_table
from experiments.watch import watch
from nanochat.clock import read_clock
from nanochat.config import TRAINED_STAGES
from nanochat.data.sources import cache_directory
from nanochat.errors import UserError
from nanochat.inference.load import STAGES, find_run, load_model, newest_checkpoint
from nanochat.interchange.bring_in import find_model
from nanochat.planning.hardware import detect_hardware
from nanochat.planning.history import Finished, FinishedRun, History
from nanochat.report import (
    conversation,
    cost_reasons,
    duration,
    gigabytes,
    mishaps,
    plan_table,
    score_table,
    stage_table,
    write_report,
)
from nanochat.report_parts import Table, page
from nanochat.run import SILENCE_S, Run

CLOSE = 0.1  # the share by which a plan may be off
DOOMED = ".deleted-"  # what a run's directory is called while it is deleted


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="runs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="every run, a line each, the latest last")
    show = commands.add_parser("show", help="all about one run, whether it has ended or not")
    show.add_argument("run", help="its name, or the path of its directory")
    watching = commands.add_parser("watch", help="one run as it goes on, until it ends")
    watching.add_argument("run", help="its name, or the path of its directory")
    comparing = commands.add_parser("compare", help="what runs were set to, how they came along, where they ended")
    comparing.add_argument("runs", nargs="+", metavar="RUN", help="two or more; each is held against the first")
    comparing.add_argument("--stage", choices=TRAINED_STAGES, help="default: the first that all of them have trained")
    comparing.add_argument("--html", type=Path, metavar="FILE", help="the same as a page, with curves")
    reporting = commands.add_parser("report", help="write a run's report.md and report.html")
    reporting.add_argument("run", help="its name, or the path of its directory")
    exporting = commands.add_parser("export", help="a run's model as a folder that other programs load")
    exporting.add_argument("run", help="its name, or the path of its directory")
    exporting.add_argument("--format", choices=("hf",), default="hf", help="that of transformers (default: hf)")
    exporting.add_argument("--out", type=Path, help="the folder to make (default: RUN-hf here)")
    exporting.add_argument("--stage", choices=STAGES, help="default: the last stage that has a checkpoint")
    delete = commands.add_parser("delete", help="runs and all that is in them; asks first")
    delete.add_argument("runs", nargs="+", metavar="RUN")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    for command in (listing, show, watching, comparing, reporting, exporting, delete):
        command.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are (default: runs)")
    plans = commands.add_parser("plans", help="how good the plans of this machine have been, stage by stage")
    plans.add_argument("--last", type=int, default=30, help="stages, and runs, to show (default: 30)")
    options = parser.parse_args(argv)
    does = {"list": _list, "show": _show, "watch": _watch, "compare": _compare, "report": _report, "export": _export,
            "delete": _delete, "plans": _plans}  # fmt: skip
    does[options.command](options)
    return 0


# --- list ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What `list` says of a run."""

    name: str
    what: str
    """Its mode or that it is a search, and the model's depth."""
    state: str
    """running, interrupted, failed, done, damaged; stopped: it was running, and is not any more."""
    at: str
    val_bpb: float | None
    """Of its first trained stage: of base, where there is one."""
    right: float | None
    """Share of the questions that its last stage answered."""
    seconds: float | None
    size: int
    changed: float
    """Seconds since the epoch."""
    damage: str
    """What cannot be read of it."""


def lines(runs_dir: Path) -> list[Line]:
    """All runs there, the one that changed last at the end."""
    found = [_line(Run(directory)) for directory in _run_directories(runs_dir)]
    return sorted(found, key=lambda line: line.changed)


def _run_directories(runs_dir: Path) -> Iterator[Path]:
    for path in runs_dir.iterdir() if runs_dir.is_dir() else ():
        if not path.name.startswith(".") and path.is_dir() and _is_run(path):
            yield path


def _is_run(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("run.json", "status.json", "search/asked.json"))


def _line(run: Run) -> Line:
    size, changed = _size_and_change(run.directory)
    clock = read_clock(run.clock_path)
    seconds = clock.spent_s + max(clock.beat - clock.started, 0.0) if clock else None
    what, at, val_bpb, right, damage = "", "", None, None, ""
    try:
        state = state_of(run)
        search = "search, " if (run.directory / "search" / "asked.json").exists() else ""
        if run.exists():
            config, results = run.config(), run.results()
            what = f"{search or config.mode + ', '}depth {config.model.depth}"
            ended = [results[stage] for stage in TRAINED_STAGES if stage in results]
            val_bpb = ended[0]["val_bpb"] if ended else None
            right = ended[-1]["scores"].get("overall", {}).get("accuracy") if ended else None
            at = _at(run, state, config)
        else:
            what = f"{search}no model yet" if search else "no model"
    except UserError as error:
        state, damage = "damaged", error.message
    return Line(run.name, what, state, at, val_bpb, right, seconds, size, changed, damage)


def _at(run: Run, state: str, config: Any) -> str:
    """Where a run stands that has not ended."""
    status = run.status()
    if state == "done" or status is None or not status.stage:
        return ""
    if status.stage not in TRAINED_STAGES:
        return status.stage
    stage = config.stage(status.stage)
    return f"{status.stage} {status.step:,}" + ("" if stage.ended_by_clock else f"/{stage.num_iterations:,}")


def state_of(run: Run) -> str:
    """What its status says, if it is still true."""
    status, owner = run.status(), run.owner("driver")
    if status is None:
        return "running" if owner and owner.alive() else "stopped"
    silent = time.time() - status.heartbeat > SILENCE_S
    if status.state != "running" or (owner and (owner.alive() or not (owner.is_local() or silent))):
        return status.state
    return "stopped"


def _size_and_change(directory: Path) -> tuple[int, float]:
    """Bytes of all files below, and when one of them last changed."""
    size, changed, waiting = 0, 0.0, [os.fspath(directory)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:  # it may be training: what was there has gone
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    size, changed = size + found.st_size, max(changed, found.st_mtime)
    return size, changed


def _list(options: argparse.Namespace) -> None:
    found = lines(options.runs_dir)
    if not found:
        raise UserError(f"there is no run in {options.runs_dir}", "python experiments/run_stage.py --mode demo")
    rows = tuple(
        (
            line.name,
            line.what,
            line.state,
            line.at,
            "" if line.val_bpb is None else f"{line.val_bpb:.4f}",
            "" if line.right is None else f"{line.right:.0%}",
            "" if line.seconds is None else duration(line.seconds),
            gigabytes(line.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(line.changed)),
        )
        for line in found
    )
    columns = ("run", "what", "state", "at", "val_bpb", "questions", "time", "size", "changed")
    console = make_console()
    show_table(console, Table(f"Runs in {options.runs_dir}", columns, rows))
    for line in found:
        if line.damage:
            console.print(line.damage, soft_wrap=True, markup=False)


# --- show ------------------------------------------------------------------------------------------------------------


def _show(options: argparse.Namespace) -> None:
    console, run = make_console(), _named(options.run, options.runs_dir)
    status = run.status()
    reason = f": {status.reason}" if status and status.reason else ""
    console.print(f"{run.name} in {run.directory}: {state_of(run)}{reason}", soft_wrap=True, markup=False)
    if not run.exists():
        console.print("It has no model yet.")
        return
    config, plan = run.config(), run.plan()
    console.print(run.hardware().describe(), soft_wrap=True)
    for reason in (*run.record()["reasons"], *cost_reasons(config, plan)):
        console.print(f"  - {reason}", soft_wrap=True, markup=False)
    console.print()
    show_table(console, plan_table(config, plan))
    if run.results():
        show_table(console, stage_table(run, plan))
    if scores := score_table(run):
        show_table(console, scores)
    for prompt, text in conversation(run, config.trained_stages):
        console.print(f"  > {prompt}\n  {text}", soft_wrap=True, markup=False)
    for told in mishaps(run):
        console.print(told, soft_wrap=True, markup=False)


def _named(name: str, runs_dir: Path) -> Run:
    """Raises UserError where there is no such run."""
    run = Run(find_run(name, runs_dir).absolute())
    if not _is_run(run.directory):
        raise UserError(f"{run.directory} is not a run", "python experiments/runs.py list")
    return run


def _trained(name: str, runs_dir: Path) -> Run:
    """The same for a run whose model is known already."""
    run = _named(name, runs_dir)
    if not run.exists():
        raise UserError(f"{run.name} has no model yet", f"python experiments/runs.py show {run.name}")
    return run


# --- watch, compare, report ------------------------------------------------------------------------------------------


def _watch(options: argparse.Namespace) -> None:
    console, run = make_console(), _named(options.run, options.runs_dir)
    watch(console, run, lambda: state_of(run) == "running")
    console.print(f"{run.name}: {state_of(run)}", markup=False)


def _compare(options: argparse.Namespace) -> None:
    runs = [_trained(name, options.runs_dir) for name in dict.fromkeys(options.runs)]
    if len(runs) < 2:
        raise UserError("there is nothing to compare it with", "name two runs or more")
    if options.html:
        _check_place("--html", options.html)
    console = make_console()
    parts = compare(runs, options.stage, drawn=options.html is not None)
    show_parts(console, parts)
    if options.html:
        with _writing("--html", options.html):
            options.html.write_text(page(" and ".join(run.name for run in runs), parts), encoding="utf-8")
        print(f"With curves: {options.html}")


def _check_place(option: str, path: Path, *, parents: bool = False) -> None:
    """Raises UserError where nothing can be made at `path`; with `parents`, folders that lead there are made later."""
    with _writing(option, path):
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder that is there already", "name another path")
        folder = path.absolute().parent
        while parents and not folder.exists():
            folder = folder.parent
        with TemporaryFile(dir=folder):
            pass


@contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    """What keeps the system from writing to `path` is for the user to change."""
    try:
        yield
    except OSError as error:
        hint = "name a path in a folder that is there and may be written"
        raise UserError(f"{option} {path} cannot be written: {error.strerror or error}", hint) from error


def _report(options: argparse.Namespace) -> None:
    run = _trained(options.run, options.runs_dir)
    search = run.directory / "search" / "asked.json"
    if search.exists():
        raise UserError(f"{run.name} is a search, which alone knows its trials", "its own command writes its report")
    write_report(run)
    print(f"{run.report_path}\n{run.report_path.with_suffix('.html')}")


# --- export ----------------------------------------------------------------------------------------------------------


def _export(options: argparse.Namespace) -> None:
    from nanochat.interchange.export import export_transformers

    directory = find_model(options.run, options.runs_dir, partial(print, file=sys.stderr)).absolute()
    folder = options.out or Path(f"{directory.name}-hf")
    _check_place("--out", folder, parents=True)
    checkpoint = newest_checkpoint(directory, options.stage, warn=partial(print, "warning:", file=sys.stderr))
    model, tokenizer = load_model(checkpoint, directory / "tokenizer", "cpu", torch.float32)
    stage = checkpoint.state["stage"]
    name = f"{directory.name}, {stage}, step {checkpoint.step:,}"
    export_transformers(model, tokenizer, folder, chat=stage != "base", name=name)
    print(f"{name} is in {folder}; how to load it says {folder / 'README.md'}")


# --- delete ----------------------------------------------------------------------------------------------------------


def _delete(options: argparse.Namespace) -> None:
    runs = [named_run(name, options.runs_dir) for name in dict.fromkeys(options.runs)]
    if missing := [run.name for run in runs if run.directory.is_symlink() or not _is_run(run.directory)]:
        raise UserError(f"there is no run {', '.join(map(repr, missing))} in {options.runs_dir}", "see runs.py list")
    for run in runs:
        _check_nobody_works(run)
    for run in runs:
        print(f"{run.name}: {gigabytes(_size_and_change(run.directory)[0])} in {run.directory}")
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError("nobody is there to be asked", "add --yes")
        print("Delete? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return
    with ExitStack() as held:
        for run in runs:
            held.enter_context(run.owned("driver"))
        for run in runs:
            elsewhere = _storage(run)
            run.directory.rename(run.directory.with_name(f"{DOOMED}{run.name}-{time.time_ns()}"))
            print(f"deleted {run.name}")
            if elsewhere:
                print(f"Its checkpoints in {elsewhere}/{run.name} stay; a run of that name would go on from them.")
    for doomed in options.runs_dir.glob(f"{DOOMED}*"):  # those too at which an earlier command was interrupted
        shutil.rmtree(doomed)


def _check_nobody_works(run: Run) -> None:
    """Raises UserError where a driver, or a worker that has outlived its own, would write on."""
    for lock in run.directory.glob("*.lock"):
        owner = run.owner(lock.stem)
        if owner and owner.alive():
            raise UserError(f"run {run.name!r} is in use by {owner.describe()}", "stop it first")


def _storage(run: Run) -> str:
    """Where its checkpoints are, if that is not in the run and it can still be known."""
    try:
        return run.config().storage if run.exists() else ""
    except UserError:
        return ""


# --- plans -----------------------------------------------------------------------------------------------------------


def _plans(options: argparse.Namespace) -> None:
    hardware = detect_hardware()
    print(hardware.describe())
    history = History(cache_directory(), hardware.name)
    most = max(options.last, 1)
    finished = [each for each in history.read() if each.was_planned][-most:]
    runs = history.read_runs()[-most:]
    if not finished and not runs:
        raise UserError("no training has ended on this machine yet", "python experiments/run_stage.py --mode demo")
    show_table(make_console(), plans_table(finished, runs))
    for what, errors in (("time", [_off(each.took_s, each.planned_s) for each in finished]),
                         ("time of whole runs", [_off(each.took_s, each.planned_s) for each in runs]),
                         ("memory", [_off(each.took_bytes, each.planned_bytes) for each in finished])):  # fmt: skip
        within = sum(abs(error) <= CLOSE for error in errors)
        if errors:
            off = f"{median(map(abs, errors)):.0%}"
            print(f"{what}: off by {off} (median); {within} of {len(errors)} within {CLOSE:.0%}")


def plans_table(finished: list[Finished], runs: list[FinishedRun]) -> Table:
    """One row a stage, the latest last, and a run that went through in one go after its stages."""
    stages = [(each.at, _stage_row(each)) for each in finished]
    wholes = [
        (
            each.at,
            (f"{each.run.rpartition('/')[2]}, all of it", "", "", duration(each.planned_s), duration(each.took_s),
             f"{_off(each.took_s, each.planned_s):+.0%}", "", "", ""),
        )
        for each in runs
    ]  # fmt: skip
    rows = tuple(row for _, row in sorted(stages + wholes, key=lambda each: each[0]))
    columns = ("stage", "model", "tokens at once", "planned", "took", "", "memory planned", "took", "")
    return Table("Plans and what came of them", columns, rows)


def _stage_row(each: Finished) -> tuple[str, ...]:
    return (
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


def _off(took: float, planned: float) -> float:
    return took / planned - 1


if __name__ == "__main__":
    sys.exit(cli.run(main))
