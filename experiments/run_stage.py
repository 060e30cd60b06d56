"""Train a language model from raw text to chat: tokenizer, base, mid, SFT, as one Ray Train run.

  python experiments/run_stage.py --mode demo                     the whole way, sized for this machine
  python experiments/run_stage.py --mode small --data my_texts/   base training on your own .txt, .jsonl, .parquet
  python experiments/run_stage.py --mode demo --stage base --num-iterations 50 --name try
  python experiments/run_stage.py --mode demo --plan              what it would do and cost, and nothing else

The same command again resumes an interrupted run. Exit codes: 0 done, 2 something for you to change, 130 interrupted.
"""

import argparse
import platform
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console

from experiments import cli
from experiments.deadline import TimeIsUp, Watch, settle
from experiments.ray_train import Outcome, Scale, fit
from experiments.terminal import Display, make_console, show_table
from nanochat.clock import start_clock
from nanochat.config import STAGES, TINYWORLD, TRAINED_STAGES, RunConfig, check, from_dict, to_dict
from nanochat.data.documents import find_documents, read_documents
from nanochat.data.sources import cache_directory
from nanochat.errors import UserError
from nanochat.events import Follower
from nanochat.files import write_json
from nanochat.inference.load import find_run, newest_checkpoint
from nanochat.model import ModelConfig, count_parameters
from nanochat.planning.estimate import estimate
from nanochat.planning.hardware import GIB, Hardware, detect_hardware
from nanochat.planning.memory import MemoryRecord
from nanochat.planning.modes import MODES
from nanochat.planning.resolve import Request, resolve
from nanochat.report import conversation, duration, plan_table, score_table, stage_table, write_report
from nanochat.run import Run, Status
from nanochat.training.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from nanochat.training.storage import inside

PACKAGES = ("torch", "ray", "tiktoken", "rustbpe", "safetensors", "numpy", "pyarrow")


def parser() -> argparse.ArgumentParser:
    """The command line. Options left out are chosen for the hardware, and the plan says why."""
    command = argparse.ArgumentParser(
        prog="run_stage.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--mode", default="demo", metavar="|".join(MODES), help="budget of iterations (default: demo)")
    add("--name", help="name of the run, its directory under --runs-dir (default: the mode)")
    add(
        "--stage",
        default=",".join(STAGES),
        help=f"stages to go through, separated by commas (default: {','.join(STAGES)})",
    )
    add(
        "--from",
        dest="start_from",
        default="",
        metavar="RUN_OR_CHECKPOINT",
        help="start from the weights of another run or checkpoint",
    )
    add(
        "--data", default=TINYWORLD, help="tinyworld (built in), or a .txt, .jsonl, .parquet file, or a folder of these"
    )
    add("--depth", type=int, help="layers of the model; everything else about its size follows")
    add(
        "--architecture",
        choices=("default", "classic"),
        default="default",
        help="classic: October 2025, without the later additions",
    )
    add("--max-seq-len", type=int, help="tokens of context")
    add("--total-batch-size", type=int, help="tokens of one optimizer step")
    add("--device-batch-size", type=int, help="rows of a forward pass; lower it when memory runs out")
    add("--num-iterations", type=int, help="steps of the one stage chosen with --stage; overrides every rule")
    add("--hours", type=float, help="end within so many hours of wall-clock, with as many iterations as they allow")
    add("--num-workers", type=int, default=1, help="processes, each with a GPU where there are GPUs (default: 1)")
    add("--min-workers", type=int, help="go on with as few as these when machines are lost (default: wait for all)")
    add("--address", help="Ray cluster to join, every machine of which sees --runs-dir (default: one on this machine)")
    add(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="torch.compile (default: auto, where it repays)",
    )
    add("--seed", type=int, default=0)
    add(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, such as base.eval_every=50",
    )
    add(
        "--storage",
        default="",
        metavar="PATH_OR_URI",
        help="keep checkpoints in <storage>/<run>/<stage>, such as s3://bucket/prefix (default: in the run)",
    )
    add("--plan", action="store_true", help="print the plan and stop")
    add("--runs-dir", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    return command


def main(argv: list[str]) -> int:
    """Plan, train, report. Returns the exit code."""
    args = parser().parse_args(argv)
    console = make_console()
    request = _request(args)
    run = _named_run(args.mode if args.name is None else args.name, args.runs_dir)
    if args.plan and not run.exists():
        config, record = _new_record(request, args.runs_dir)
        _show_plan(console, run, config, record)
        return 0
    with run.owned("driver", say=lambda text: console.print(text, soft_wrap=True)):
        if run.exists():
            config, record = _continued(run, request)
        else:
            config, record = _new_record(request, args.runs_dir)
        _check_weights(run, config)
        _show_plan(console, run, config, record)
        if args.plan:
            return 0
        write_json(run.record_path, {"config": to_dict(config), **record})
        return _train(console, run, config, record, Scale(args.num_workers, args.min_workers, args.address))


def _request(args: argparse.Namespace) -> Request:
    stages = tuple(stage.strip() for stage in args.stage.split(",") if stage.strip())
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise UserError(
            f"there is no stage {', '.join(unknown) or '(none given)'}", f"choose --stage from {', '.join(STAGES)}"
        )
    if args.num_workers < 1:
        raise UserError(f"--num-workers must be at least 1, not {args.num_workers}", "leave it out for one")
    if args.min_workers is not None and not 1 <= args.min_workers <= args.num_workers:
        raise UserError(
            f"--min-workers must be between 1 and --num-workers {args.num_workers}, not {args.min_workers}",
            "leave it out to wait for all",
        )
    data = args.data if args.data == TINYWORLD else str(Path(args.data).absolute())
    return Request(
        mode=args.mode,
        data=data,
        stages=tuple(stage for stage in STAGES if stage in stages),
        start_from=args.start_from,
        architecture=args.architecture,
        seed=args.seed,
        depth=args.depth,
        max_seq_len=args.max_seq_len,
        device_batch_size=args.device_batch_size,
        total_batch_size=args.total_batch_size,
        num_iterations=args.num_iterations,
        compile=args.compile,
        hours=args.hours,
        num_workers=args.num_workers,
        storage=args.storage if "://" in args.storage or not args.storage else str(Path(args.storage).absolute()),
        assignments=tuple(args.assignments),
    )


def _named_run(name: str, runs_dir: Path) -> Run:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"{name!r} cannot be the name of a run", "use letters, digits, - and _")
    run = Run((runs_dir / name).absolute())
    if run.directory.exists() and not run.directory.is_dir():
        raise UserError(f"{run.directory} is a file", "choose another --name")
    return run


def _new_record(request: Request, runs_dir: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration of a new run, and the rest of its run.json. Everything that can be wrong is found here."""
    _check_data(request.data)
    start_model, start = None, {}
    if request.start_from:
        checkpoint, tokenizer = _start_checkpoint(request.start_from, runs_dir)
        start_model = from_dict(ModelConfig, checkpoint.state["model"])
        start = {"start_from": checkpoint.location, "start_tokenizer": str(tokenizer)}
    hardware = detect_hardware()
    compiler = shutil.which("g++") or shutil.which("clang++")
    memory = MemoryRecord(cache_directory(), hardware.name)
    resolved = resolve(request, hardware, compiler=compiler, start_model=start_model, memory=memory)
    if request.storage:
        CheckpointStore(inside(request.storage, "base")).steps()  # out of reach or nonsense: said now
    config = replace(resolved.config, **start, storage=request.storage)
    plan = estimate(config, hardware, request.num_workers)
    free = shutil.disk_usage(_existing_parent(runs_dir)).free
    if plan.disk_bytes > free:
        raise UserError(
            f"the run needs about {plan.disk_bytes / GIB:.1f} GiB of disk and {runs_dir} has {free / GIB:.1f} GiB free",
            "make room, choose another --runs-dir, or --set keep_checkpoints=1",
        )
    return config, {
        "request": asdict(request),
        "plan": asdict(plan),
        "reasons": list(resolved.reasons),
        "hardware": {**asdict(hardware), "description": hardware.describe()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
    }


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _check_data(data: str) -> None:
    """Read the beginning of the user's data now, rather than minutes later in a worker."""
    if data == TINYWORLD:
        return
    if not Path(data).exists() and "/" not in data.removeprefix(str(Path.cwd()) + "/"):
        raise UserError(
            f"--data {Path(data).name}: there is no such file or folder, and no such built-in data",
            "give a path to .txt, .jsonl or .parquet text, or --data tinyworld",
        )
    for file in find_documents(Path(data)):
        next(read_documents([file]), None)


def _start_checkpoint(start_from: str, runs_dir: Path) -> tuple[Checkpoint, Path]:
    """The checkpoint that --from names, and the directory of its tokenizer."""
    path = Path(start_from).absolute()
    if (path / "manifest.json").exists():
        return open_checkpoint(path, check_all=False), path.parents[2] / "tokenizer"
    run_dir = find_run(start_from, runs_dir.absolute())
    return newest_checkpoint(run_dir, warn=partial(print, "warning:", file=sys.stderr)), run_dir / "tokenizer"


def _continued(run: Run, request: Request) -> tuple[RunConfig, dict[str, Any]]:
    """The stored configuration of an existing run, with stages added that it has not begun.

    Raises UserError with the differences when the command asks for another run than the one that exists.
    """
    record = run.record()
    config = run.config()
    try:
        stored = from_dict(Request, record["request"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.record_path} was not written by this version: {error}", "start the run under another --name"
        ) from None
    differences = stored.differences(request)
    new_stages = [stage for stage in request.stages if stage not in stored.stages]
    if new_stages and not any(_has_checkpoints(run, stage) for stage in new_stages if stage in TRAINED_STAGES):
        hardware = Hardware(**{key: value for key, value in record["hardware"].items() if key != "description"})
        fresh = resolve(request, hardware, compiler=shutil.which("g++"), start_model=config.model).config
        same = replace(request, stages=stored.stages, num_iterations=stored.num_iterations)
        differences = stored.differences(same)
        config = replace(
            config,
            stages=tuple(stage for stage in STAGES if stage in request.stages),
            **{stage: fresh.stage(stage) for stage in new_stages if stage in TRAINED_STAGES},
        )  # type: ignore[arg-type]
        record = {**record, "request": asdict(request), "plan": asdict(estimate(config, hardware, request.num_workers))}
    if differences:
        raise UserError(
            f"run {run.name!r} exists and was asked for otherwise: {'; '.join(differences)}",
            "repeat its command to resume it, or give this run another --name",
        )
    check(config, request.num_workers)
    return config, {key: value for key, value in record.items() if key != "config"}


def _has_checkpoints(run: Run, stage: str) -> bool:
    return bool(CheckpointStore(run.checkpoints(stage)).steps())


def _check_weights(run: Run, config: RunConfig) -> None:
    """A stage after base needs weights to start from."""
    if not config.trained_stages or config.start_from or config.trained_stages[0] == "base":
        return
    first = config.trained_stages[0]
    before = TRAINED_STAGES[TRAINED_STAGES.index(first) - 1]
    if not _has_checkpoints(run, before) and not _has_checkpoints(run, first):
        raise UserError(
            f"stage {first} starts from trained weights and run {run.name!r} has none of {before}",
            f"add {before} to --stage, or name a run or checkpoint with --from",
        )


def _show_plan(console: Console, run: Run, config: RunConfig, record: dict[str, Any]) -> None:
    count = count_parameters(config.model)
    device = record["hardware"]["device_type"]
    console.print(f"[bold]Run {run.name}[/bold] in {run.directory}", soft_wrap=True)
    console.print(f"{record['hardware']['description']}")
    if device == "cpu":
        console.print("No GPU here: the same stages on a model and data small enough for this CPU.")
    console.print(
        f"Model: depth {config.model.depth}, width {config.model.width}, {config.model.num_heads} heads, "
        f"context {config.model.max_seq_len}, vocabulary {config.model.vocab_size:,}: "
        f"{count.total / 1e6:.1f}M parameters "
        f"({count.multiplied / 1e6:.1f}M of them multiplied); data {config.data}",
        soft_wrap=True,
    )
    for reason in record["reasons"]:
        console.print(f"  - {reason}", soft_wrap=True)
    console.print()
    plan = record["plan"]
    show_table(console, plan_table(config, plan))
    total = plan["prepare_s"] + sum(stage["train_s"] + stage["other_s"] for stage in plan["stages"])
    console.print(
        f"Estimated: {duration(total)} in all, {plan['memory_bytes'] / 1e9:.1f} GB of memory, "
        f"{plan['disk_bytes'] / 1e9:.1f} GB of disk\n",
        soft_wrap=True,
    )


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


def _train(console: Console, run: Run, config: RunConfig, record: dict[str, Any], scale: Scale) -> int:
    hardware = Hardware(**{key: value for key, value in record["hardware"].items() if key != "description"})
    follower = Follower(run.directory, STAGES)
    follower.skip_existing()
    run.clear_stop()
    run.write_status(Status("running"))
    clock = start_clock(run.clock_path, psutil.Process().create_time())
    watch = Watch(run, config.cap_s, clock)
    with Display(console) as display:
        stop = _Stop(run, display)
        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        display.say("starting Ray")

        def show_and_watch() -> None:
            for event in follower.poll():
                display(event)
            watch.look()

        try:
            outcome = fit(run, hardware, scale, show_and_watch)
        except TimeIsUp:
            outcome = Outcome("done")
        except UserError as error:
            outcome = Outcome("user_error", error.message, error.hint)
        except KeyboardInterrupt:
            outcome = Outcome("interrupted", "stopped at once")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    if watch.asked and outcome.state == "interrupted" and not stop.asked:
        outcome = Outcome("done")
    if outcome.state == "done":
        settle(run, config)
    return _ended(console, run, config, record, outcome)


def _ended(console: Console, run: Run, config: RunConfig, record: dict[str, Any], outcome: Outcome) -> int:
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
    write_report(run)
    _show_summary(console, run, config, record["plan"])
    return 0


def _show_summary(console: Console, run: Run, config: RunConfig, plan: dict[str, Any]) -> None:
    console.print()
    for prompt, text in conversation(run, config.trained_stages):
        console.print(
            f"[bold]{'you' if config.trained_stages[-1] != 'base' else 'prompt'}:[/bold] {prompt}\n"
            f"[bold]nanochat:[/bold] {text}",
            soft_wrap=True,
        )
    console.print()
    show_table(console, stage_table(run, plan))
    if scores := score_table(run):
        show_table(console, scores)
    script = "python experiments/"
    console.print(f"Everything is in {run.directory}", soft_wrap=True)
    if config.trained_stages:
        console.print(f"Talk to it:  {script}chat.py {run.name}")
    console.print(f"Report:      {run.report_path}", soft_wrap=True)
    console.print("Resume:      the same command, whenever it was stopped")


def _git_commit() -> str:
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(cli.run(main))
