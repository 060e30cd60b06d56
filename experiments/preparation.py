"""What is to be trained, before it is: asked for, checked, measured, planned and shown."""

import argparse
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.terminal import show_table
from nanochat.config import PUBLIC, TINYWORLD, RunConfig, from_dict, usual_chat, usual_data
from nanochat.corpora import CORPORA
from nanochat.data.chats import CHAT_STAGES, check_chat, missing
from nanochat.data.documents import find_documents, read_documents
from nanochat.data.hub import check_reachable, missing_bytes
from nanochat.data.mixture_rows import check_datasets
from nanochat.data.sources import cache_directory, corpus_directory, world_directory
from nanochat.errors import UserError
from nanochat.inference.load import newest_checkpoint
from nanochat.interchange.bring_in import find_model
from nanochat.model import ModelConfig, count_parameters
from nanochat.planning.estimate import Cost, Plan, estimate
from nanochat.planning.hardware import GIB, Hardware, detect_hardware, device_type, named_hardware
from nanochat.planning.history import History, is_modelled
from nanochat.planning.memory import MemoryRecord
from nanochat.planning.preparing import (
    NOTHING,
    There,
    corpus_shards,
    preparations,
    text_download_bytes,
    unique_tokens,
)
from nanochat.planning.resolve import Request, resolve
from nanochat.report import (
    about,
    cost_reasons,
    duration,
    gigabytes,
    plan_table,
)
from nanochat.run import Run
from nanochat.search.law import useful_epochs
from nanochat.search.priors import prior_for
from nanochat.tokenizer.bpe import FILE_NAME
from nanochat.training.calibrate import calibrate
from nanochat.training.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from nanochat.training.prepared import tokens_are_there
from nanochat.training.storage import inside

CALIBRATION_S = 20.0
FAR_TOO_MANY = 1.5  # times the epochs that are believed to be best: said
PACKAGES = ("torch", "ray", "tiktoken", "rustbpe", "safetensors", "numpy", "pyarrow")


def add_data_arguments(command: argparse.ArgumentParser) -> None:
    """What to train on."""
    usual = f"{usual_data('cuda')} on a GPU, {usual_data('cpu')} without one"
    command.add_argument(
        "--data",
        metavar=f"{TINYWORLD}|{'|'.join(CORPORA)}|PATH",
        help="base text: built in, web text from the hub, or a .txt, .jsonl, .parquet file or folder of these "
        f"(default: {usual})",
    )
    command.add_argument(
        "--chat",
        metavar=f"{TINYWORLD}|{PUBLIC}|PATH",
        help="conversations: built in, public ones from the hub, or your own .jsonl (default: what suits --data)",
    )


def named_run(name: str, runs_dir: Path) -> Run:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"{name!r} cannot be the name of a run", "use letters, digits, - and _")
    run = Run((runs_dir / name).absolute())
    if run.directory.exists() and not run.directory.is_dir():
        raise UserError(f"{run.directory} is a file", "choose another --name")
    return run


def new_record(
    request: Request, runs_dir: Path, hardware: Hardware | None = None, spent_s: float | None = None
) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration of a new run, and the rest of its run.json. Everything that can be wrong is found here.

    Args:
        hardware: as detected before, or not this machine's, to plan for; None: detected now.
        spent_s: see `resolve`.
    """
    start_s = time.perf_counter()
    check_data(request.data)
    check_conversations(request.chat, request.stages)
    start_model, start = None, {}
    if request.start_from:
        checkpoint, tokenizer = start_checkpoint(request.start_from, runs_dir)
        start_model = from_dict(ModelConfig, checkpoint.state["model"])
        start = {"start_from": checkpoint.location, "start_tokenizer": str(tokenizer)}
    unplanned_s = time.perf_counter() - start_s  # reading and fetching what was named, and below measuring kernels
    hardware = hardware or this_machine()
    compiler = shutil.which("g++") or shutil.which("clang++")
    cache, start_s = cache_directory(), time.perf_counter()
    resolved = resolve(request, hardware, compiler=compiler, start_model=start_model, spent_s=spent_s, cache=cache,
                       memory=MemoryRecord(cache, hardware.name),
                       there=_what_is_there if hardware.measured else lambda config: NOTHING)  # fmt: skip
    unplanned_s += time.perf_counter() - start_s
    if request.storage:
        CheckpointStore(inside(request.storage, "base")).steps()  # out of reach or nonsense: said now
    config = replace(resolved.config, **start, storage=request.storage)
    plan = plan_of(config, hardware, request.num_workers, spent_s)
    if hardware.measured:
        _check_disk(config, plan, runs_dir)
    return config, {
        "request": asdict(request),
        "plan": asdict(plan),
        "reasons": list(resolved.reasons),
        "hardware": asdict(hardware),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "unplanned_s": unplanned_s,
        "command": shlex.join(sys.argv),
    }


def this_machine(*, fresh: bool = False) -> Hardware:
    """As it is measured now and, unless `fresh`, what was trained on it before."""
    hardware = detect_hardware()
    return hardware if fresh else History(cache_directory(), hardware.name).known_of(hardware)


def calibrated(console: Console, run: Run, config: RunConfig, record: dict[str, Any]) -> Hardware:
    """The hardware of a record, after some seconds of training what it is about. Raises UserError where that fails."""
    if not config.trained_stages:
        raise UserError("the tokenizer alone needs no calibration", "leave --calibrate out")
    hardware = run.hardware(record)
    console.print(f"[dim]training for {CALIBRATION_S:.0f} s, to measure the speed[/dim]")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            found = process.submit(calibrate, config, hardware, CALIBRATION_S).result()
        except BrokenProcessPool:
            raise UserError("calibrating died, most likely for want of memory", "lower --device-batch-size") from None
    if not is_modelled(config):  # this plan's alone, and what others took says little of it
        return replace(hardware, trainings=(found.training,))
    history = History(cache_directory(), hardware.name)
    history.add([found])
    return history.known_of(hardware)


def hardware_to_plan_for(args: argparse.Namespace) -> Hardware | None:
    """What --hardware names. Raises UserError where it does not go with --plan."""
    if args.hardware is None:
        return None
    if not args.plan:
        raise UserError("--hardware is for plans: training runs on the machine at hand", "add --plan")
    hardware = named_hardware(args.hardware, args.num_workers)
    return History(cache_directory(), hardware.name).known_of(hardware) if hardware.measured else hardware


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _check_disk(config: RunConfig, plan: Plan, runs_dir: Path) -> None:
    """Raises UserError where checkpoints do not fit, nor what goes into the cache if that is on the same disk."""
    if "://" in config.storage:  # it is not of this machine
        return
    place, cache = Path(config.storage) if config.storage else runs_dir, cache_directory()
    in_cache = plan.cache_bytes if _disk(place) == _disk(cache) else 0
    needed, free = plan.checkpoints_bytes + in_cache, shutil.disk_usage(_existing_parent(place)).free
    if needed > free:
        ways = ["make room", f"choose another {'--storage' if config.storage else '--runs-dir'}"]
        ways += ["set NANOCHAT_BASE_DIR to another disk"] if in_cache else []
        ways += ["--set keep_checkpoints=1"] if config.keep_checkpoints > 1 else []
        both = f", {in_cache / GIB:.1f} of them in the cache {cache}," if in_cache else " for checkpoints"
        raise UserError(
            f"the run needs about {needed / GIB:.1f} GiB of disk{both} and {place} has {free / GIB:.1f} GiB free",
            _any_of(ways),
        )


def _any_of(ways: list[str]) -> str:
    return ", ".join(ways[:-1]) + f", or {ways[-1]}"


def _disk(path: Path) -> int:
    """Which one a path is on."""
    return _existing_parent(path).stat().st_dev


def preparing_of(config: RunConfig, hardware: Hardware) -> tuple[Cost, ...]:
    """What is to be done before a run's first stage; on this machine, of what is not there already."""
    return preparations(config, hardware, _what_is_there(config) if hardware.measured else NOTHING)


def plan_of(config: RunConfig, hardware: Hardware, num_workers: int, spent_s: float | None = None) -> Plan:
    """What a run will cost; on this machine, with what is there already.

    Args:
        spent_s: see `estimate`.

    Raises:
        UserError: what is still to be fetched and made does not fit into the cache.
    """
    if not hardware.measured:
        return estimate(config, hardware, num_workers, spent_s=spent_s)
    plan, cache = estimate(config, hardware, num_workers, _what_is_there(config), spent_s), cache_directory()
    free, total = shutil.disk_usage(_existing_parent(cache)).free, plan.cache_bytes
    if total > free:
        what, of, fewer = "what the run fetches and its tokens need", "", "train for fewer iterations"
        if config.data in CORPORA:
            what, of = f"{config.data} needs", f": {corpus_shards(config)} shards to train on and their tokens"
        ways = ["make room", "set NANOCHAT_BASE_DIR to a larger disk", *([fewer] if config.data != TINYWORLD else [])]
        raise UserError(
            f"{what} about {total / GIB:.1f} GiB of disk ({total:,} bytes{of}) and {cache} has "
            f"{free / GIB:.1f} GiB free ({free:,} bytes)",
            _any_of(ways),
        )
    return plan


def _what_is_there(config: RunConfig) -> There:
    """Of what a run needs, in the cache of this machine."""
    cache, corpus, text_bytes = cache_directory(), CORPORA.get(config.data), 0
    if corpus:
        needed = [*range(corpus_shards(config)), *([corpus.validation] if "base" in config.trained_stages else [])]
        text_bytes = text_download_bytes(config) - missing_bytes(corpus, needed, corpus_directory(corpus, cache))
    return There(
        world=world_directory(cache).exists(),
        conversations=not missing([stage for stage in CHAT_STAGES if stage in config.stages], True, cache),
        text_bytes=text_bytes,
        tokens=tokens_are_there(config, cache),
    )


def named_data(asked: str | None, hardware: Hardware | None = None, before: object = None) -> str:
    """The name of built-in data or of a corpus, or else an absolute path.

    Args:
        asked: what --data says, if anything.
        hardware: to plan for; None: this machine.
        before: of what goes on, the run or search of that name or the one to start from, where there is any.
    """
    if asked is None:
        usual = usual_data(hardware.device_type if hardware else device_type())
        return before if isinstance(before, str) else usual
    return asked if asked == TINYWORLD or asked in CORPORA else str(Path(asked).absolute())


def data_of(run: Run) -> object:
    """What a run was asked to train on; None where there is none yet, or it does not say."""
    request = run.record().get("request") if run.exists() else None
    return request.get("data") if isinstance(request, dict) else None


def data_of_start(start_from: str, runs_dir: Path) -> object:
    """That of the run, or of the checkpoint's run, that --from names; None where it is not ours."""
    path = Path(start_from).absolute()
    if (path / "manifest.json").exists():
        return data_of(Run(path.parent.parent.parent))
    places = [place for place in (runs_dir.absolute() / start_from, path) if start_from]
    return next((data for data in map(data_of, map(Run, places)) if data), None)


def check_hub(data: str, chat: str, stages: Sequence[str], shards: int = 1) -> None:
    """Where that many training shards of a corpus, or its validation shard, or public conversations of these stages are
    still to come: ask for them now.

    Raises UserError, within seconds, where they cannot be had.
    """
    if shards and (corpus := CORPORA.get(data)):
        check_reachable(corpus, [*range(shards), corpus.validation], corpus_directory(corpus, cache_directory()))
    trained = [stage for stage in CHAT_STAGES if stage in stages]
    if chat == PUBLIC and trained:
        check_datasets(missing(trained, questions=True, cache=cache_directory()))


def check_data(data: str) -> None:
    """Read the beginning of the user's data now, rather than minutes later in a worker."""
    if data == TINYWORLD or data in CORPORA:
        return
    if not Path(data).exists() and "/" not in data.removeprefix(str(Path.cwd()) + "/"):
        raise UserError(
            f"--data {Path(data).name}: there is no such file or folder, and no such built-in data",
            f"give a path to .txt, .jsonl or .parquet text, or --data {TINYWORLD}, {', '.join(CORPORA)}",
        )
    for file in find_documents(Path(data)):
        next(read_documents([file]), None)


def named_chat(asked: str | None, data: str) -> str:
    """The conversations that --chat names, or the usual ones of the data."""
    if asked is None:
        return usual_chat(data)
    return asked if asked in (TINYWORLD, PUBLIC) else str(Path(asked).absolute())


def check_conversations(chat: str, stages: Sequence[str]) -> None:
    """Read the user's conversations whole, now rather than minutes later in a worker."""
    if set(CHAT_STAGES) & set(stages):
        check_chat(chat)


def start_checkpoint(start_from: str, runs_dir: Path) -> tuple[Checkpoint, Path]:
    """The checkpoint that --from names, and the directory of its tokenizer; made ours if it is another program's.

    Raises:
        UserError: there is no such checkpoint, or no tokenizer with it.
    """
    path = Path(start_from).absolute()
    if (path / "manifest.json").exists():
        checkpoint, run_dir = open_checkpoint(path, check_all=False), path.parent.parent.parent
    else:
        run_dir = find_model(start_from, runs_dir.absolute(), partial(print, file=sys.stderr))
        checkpoint = newest_checkpoint(run_dir, warn=partial(print, "warning:", file=sys.stderr))
    tokenizer = run_dir / "tokenizer"
    if not (tokenizer / FILE_NAME).is_file():
        raise UserError(
            f"--from {start_from}: there is no tokenizer at {tokenizer}, where that of the checkpoint would be",
            "name a run, or a checkpoint in its run: <run>/<stage>/checkpoints/<step>",
        )
    return checkpoint, tokenizer


def show_plan(console: Console, run: Run, config: RunConfig, record: dict[str, Any]) -> None:
    hardware = run.hardware(record)
    console.print(f"[bold]Run {run.name}[/bold] in {run.directory}", soft_wrap=True)
    console.print(hardware.describe())
    if hardware.device_type == "cpu":
        console.print("No GPU here: the same stages on a model and data small enough for this CPU.")
    for reason in record["reasons"]:
        console.print(f"  - {reason}", soft_wrap=True)
    show_cost(console, config, run.plan(record))


def show_cost(console: Console, config: RunConfig, plan: Plan) -> None:
    """The model, and what training it is estimated to take."""
    count = count_parameters(config.model)
    console.print(
        f"Model: depth {config.model.depth}, width {config.model.width}, {config.model.num_heads} heads, "
        f"context {config.model.max_seq_len}, vocabulary {config.model.vocab_size:,}: "
        f"{count.total / 1e6:.1f}M parameters "
        f"({count.multiplied / 1e6:.1f}M of them multiplied); data {config.data}",
        soft_wrap=True,
    )
    for reason in cost_reasons(config, plan):
        console.print(f"  - {reason}", soft_wrap=True)
    console.print()
    show_table(console, plan_table(config, plan))
    console.print(
        f"Estimated: {duration(plan.seconds)} in all, {gigabytes(plan.memory_bytes)} of memory, "
        f"{gigabytes(plan.disk_bytes)} of disk\n",
        soft_wrap=True,
    )


def repeats(config: RunConfig, plan: Plan, hardware: Hardware) -> list[str]:
    """A sentence where a new model goes through its text so often that this is believed to harm it."""
    if "base" not in config.trained_stages or config.start_from:
        return []
    there = unique_tokens(config)
    epochs = next(stage.tokens for stage in plan.stages if stage.stage == "base") / there
    if epochs <= 1:
        return []
    prior = prior_for(hardware.device_type, config.data, there)
    useful = useful_epochs(prior, count_parameters(config.model).scaling, there)
    if epochs < FAR_TOO_MANY * useful:
        return []
    best = "once is" if useful < 1.5 else f"{useful:.0f} times are"
    return [
        f"text: about {about(there)} tokens, which {epochs:,.0f} times over are learned by heart; about {best} "
        "believed to be best for this model, and tune_budget.py chooses by that; more text is better still, such as "
        f"--data {' or '.join(CORPORA)}"
    ]


def _git_commit() -> str:
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
