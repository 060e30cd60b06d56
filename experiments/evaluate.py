"""How good a model is: the questions of its own suite, or CORE, the 22 tasks that base models are compared by, or any
task of EleutherAI's harness.

  python experiments/evaluate.py demo                               # the questions that go with its conversations
  python experiments/evaluate.py web --core                         # CORE; the data is fetched once
  python experiments/evaluate.py web --core eval_bundle/ --max-per-task 500 --tasks arc_easy,piqa
  python experiments/evaluate.py web --core --num-workers 8         # a GPU each
  python experiments/evaluate.py web --lm-eval hellaswag,wikitext   # needs pip install -e ".[lm-eval]"

What was found is shown, and kept in the run's directory under evaluations/, where only the same evaluation takes its
place: what was asked otherwise has a file of its own.
"""

import argparse
import hashlib
import json
import os
import socket
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from huggingface_hub import constants

from experiments import cli
from experiments.chat import choose_device
from experiments.terminal import make_console, show_table
from nanochat.config import usual_chat
from nanochat.data.hub import answers, endpoint
from nanochat.data.sources import cache_directory, open_questions
from nanochat.errors import UserError
from nanochat.evaluation.answering import grade
from nanochat.evaluation.core import CoreScore, core_metric, score_task
from nanochat.files import exclusive, whole_or_not_at_all, write_json
from nanochat.inference.engine import Engine
from nanochat.inference.load import STAGES, load_model, newest_checkpoint
from nanochat.interchange.bring_in import find_model
from nanochat.report import duration
from nanochat.report_parts import Table
from nanochat.run import Run, read_json
from nanochat.tasks.core import CORE_TASKS, CoreTask, find_core_tasks, read_core_task
from nanochat.tasks.questions import Summary, read_questions, spread, summarise
from nanochat.training.checkpoint import Checkpoint, open_checkpoint
from nanochat.workers import Workers

BUNDLE = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"  # 162 MB, as public nanochat fetches it
REACH_S = 8.0
PUBLIC = "public"
QUESTIONS = 420  # asked of a suite, unless the user says how many


def main(argv: list[str]) -> int:
    """Returns the exit code: 1 where a part of it failed."""
    options = parse(argv)
    run = Run(find_model(options.run, options.runs_dir, partial(print, file=sys.stderr)).absolute())
    checkpoint = newest_checkpoint(run.directory, options.stage, warn=partial(print, "warning:", file=sys.stderr))
    if options.lm_eval:
        return _harness(run, checkpoint, options)
    if options.core is None:
        return _questions(run, checkpoint, options.questions)
    folder = core_bundle(cache_directory()) if options.core == PUBLIC else Path(options.core)
    return _core(run, checkpoint, _wanted(find_core_tasks(folder), options.tasks), options)


def parse(argv: list[str]) -> argparse.Namespace:
    """Raises UserError listing what is wrong."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run's name or directory, a checkpoint of public nanochat, or hf:owner/name")
    parser.add_argument("--stage", choices=STAGES, help="default: the last stage that has a checkpoint")
    parser.add_argument(
        "--questions", type=int, default=QUESTIONS, help=f"of its own suite, at most (default: {QUESTIONS})"
    )
    parser.add_argument("--core", nargs="?", const=PUBLIC, metavar="FOLDER", help="CORE, of the public bundle or yours")
    parser.add_argument("--tasks", default="", help="of CORE, separated by commas (default: all)")
    parser.add_argument("--lm-eval", metavar="TASKS", help="tasks of EleutherAI's harness, separated by commas")
    parser.add_argument("--include-path", type=Path, metavar="FOLDER", help="your own tasks in the harness's YAML")
    parser.add_argument("--num-fewshot", type=int, help="examples before a question of the harness's (default: task's)")
    parser.add_argument("--max-per-task", type=int, help="examples of each task of CORE or the harness, at most")
    parser.add_argument("--num-workers", type=int, default=1, help="that share the examples of CORE (default: 1)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are (default: runs)")
    options = parser.parse_args(argv)
    for name in ("questions", "max_per_task", "num_workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if options.lm_eval and (options.core is not None or options.num_workers > 1):
        raise UserError("--lm-eval goes neither with --core nor with --num-workers", "run it alone")
    if options.include_path and not options.include_path.is_dir():
        raise UserError(f"--include-path {options.include_path} is no folder")
    if torch.cuda.is_available() and options.num_workers > torch.cuda.device_count():
        raise UserError(f"--num-workers {options.num_workers}, and there are {torch.cuda.device_count()} GPUs")
    return options


# --- questions -------------------------------------------------------------------------------------------------------


def _questions(run: Run, checkpoint: Checkpoint, limit: int) -> int:
    if not run.exists():
        raise UserError(f"{run.name} was not trained here and has no questions of its own", "add --core or --lm-eval")
    if checkpoint.state["stage"] == "base":
        raise UserError(f"{run.name} has a base model, which answers no questions", "add --core, or train mid and SFT")
    config = run.config()
    chat, say = config.chat or usual_chat(config.data), partial(print, file=sys.stderr)
    path = open_questions(chat, config.stages, cache_directory(), say)
    model, tokenizer = load_model(checkpoint, run.tokenizer_directory, *choose_device()[:2])
    questions = [each for each in read_questions(path) if config.run_code or each.kind != "code"]
    summary = summarise(grade(Engine(model, tokenizer), spread(questions, limit), run_code=config.run_code))
    rows = tuple((skill, f"{score.accuracy:.1%}", f"{score.chance:.0%}", f"{score.total}")
                 for skill, score in {"overall": summary.overall, **summary.by_skill}.items())  # fmt: skip
    show_table(make_console(), Table(_title(run, checkpoint), ("skill", "accuracy", "chance", "questions"), rows))
    print(f"ChatCORE, the mean of accuracies centred on chance: {summary.chat_core:.4f}")
    _keep(run, checkpoint, "questions", _asked(questions=limit if limit != QUESTIONS else None), _as_dict(summary))
    return 0


def _as_dict(summary: Summary) -> dict:
    scores = {skill: asdict(score) for skill, score in summary.by_skill.items()}
    return {"overall": asdict(summary.overall), "chat_core": summary.chat_core, "skills": scores}


# --- CORE ------------------------------------------------------------------------------------------------------------


def _wanted(found: dict[CoreTask, Path], names: str) -> dict[CoreTask, Path]:
    asked = [name.strip() for name in names.split(",") if name.strip()]
    known = {task.label: task for task in found}
    if unknown := [name for name in asked if name not in known]:
        raise UserError(f"there is no task {', '.join(unknown)} in the data", f"there are {', '.join(known)}")
    return {known[name]: found[known[name]] for name in asked} if asked else found


def _core(run: Run, checkpoint: Checkpoint, tasks: dict[CoreTask, Path], options: argparse.Namespace) -> int:
    asked = _asked(
        tasks=sorted(task.label for task in tasks) if len(tasks) < len(CORE_TASKS) else None,
        folder=str(Path(options.core).resolve()) if options.core != PUBLIC else None,
        max_per_task=options.max_per_task,
    )
    arguments = (str(run.directory), str(checkpoint.location), tasks, asked)
    if options.num_workers == 1:
        return _answer_core(Workers(device=torch.device(choose_device()[0])), *arguments)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (options.num_workers, port, arguments), nprocs=options.num_workers)
    return int(bool(read_json(run.directory / _name(checkpoint, "core", asked))["problems"]))


def _worker(rank: int, size: int, port: int, arguments: tuple) -> None:
    """One of several processes, each with its share of the examples."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(torch.get_num_threads() // size, 1))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        _answer_core(Workers.current(device), *arguments)
    finally:
        dist.destroy_process_group()


def _answer_core(
    workers: Workers, directory: str, location: str, tasks: dict[CoreTask, Path], asked: dict[str, Any]
) -> int:
    run, checkpoint, limit = Run(Path(directory)), open_checkpoint(location), asked.get("max_per_task")
    model, tokenizer = load_model(checkpoint, run.tokenizer_directory, workers.device, choose_device()[1])
    engine, scores, problems = Engine(model, tokenizer), [], []
    for task, path in tasks.items():
        try:
            scores.append(score_task(engine, task, read_core_task(task, path), workers, limit))
        except UserError as error:  # the same on every worker: the others go on
            problems.append(error.message)
        if workers.leads:
            answered = scores and scores[-1].label == task.label
            print(_line(scores[-1]) if answered else f"warning: {problems[-1]}", flush=True)
    if not workers.leads:
        return int(bool(problems))
    found: dict = {"tasks": [asdict(score) for score in scores], "problems": problems}
    if scores:
        _show_core(run, checkpoint, scores)
        found |= {"mean_centred": core_metric(scores), "whole_suite": _is_whole(scores)}
    _keep(run, checkpoint, "core", asked, found)
    return int(bool(problems))


def _line(score: CoreScore) -> str:
    return f"{score.label}: {score.accuracy:.1%} of {score.count:,} in {duration(score.seconds)}"


def _show_core(run: Run, checkpoint: Checkpoint, scores: list[CoreScore]) -> None:
    rows = tuple(
        (score.label, f"{score.accuracy:.1%}", f"± {score.standard_error:.1%}", f"{score.chance:.0%}",
         f"{score.centred:+.3f}", f"{score.count:,} of {score.of:,}", duration(score.seconds))
        for score in scores
    )  # fmt: skip
    columns = ("task", "accuracy", "standard error", "chance", "centred", "examples", "time")
    show_table(make_console(), Table(_title(run, checkpoint), columns, rows))
    print(f"{_heading(scores)}: {core_metric(scores):.4f}, in {duration(sum(score.seconds for score in scores))}")


def _heading(scores: list[CoreScore]) -> str:
    """What their mean is called: CORE only where nothing of it is missing."""
    if _is_whole(scores):
        return "CORE"
    part = ", not all of their examples" if any(score.count < score.of for score in scores) else ""
    return f"Mean of {len(scores)} of CORE's {len(CORE_TASKS)} tasks{part}"


def _is_whole(scores: list[CoreScore]) -> bool:
    return len(scores) == len(CORE_TASKS) and all(score.count == score.of for score in scores)


def core_bundle(cache: Path) -> Path:
    """The folder of the public bundle, fetched now unless it is there.

    Raises:
        UserError: it cannot be had.
    """
    folder = cache / "core"
    cache.mkdir(parents=True, exist_ok=True)
    with exclusive(cache / ".core.lock"):
        if not folder.exists():
            with NamedTemporaryFile(dir=cache, prefix=".core-") as archive, whole_or_not_at_all(folder) as made:
                print(f"fetching {BUNDLE}", flush=True)
                _fetch(BUNDLE, Path(archive.name))
                try:
                    with zipfile.ZipFile(archive.name) as opened:
                        opened.extractall(made)
                except zipfile.BadZipFile as error:
                    raise UserError(f"{BUNDLE} is no archive: {error}", "give --core a folder with the data") from error
    return folder


def _fetch(url: str, to: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=REACH_S) as response, to.open("wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url} cannot be had: {reason}", "give --core a folder with the data") from error


# --- EleutherAI's harness --------------------------------------------------------------------------------------------


def _harness(run: Run, checkpoint: Checkpoint, options: argparse.Namespace) -> int:
    if find_spec("lm_eval") is None:
        raise UserError("--lm-eval needs EleutherAI's harness", 'pip install -e ".[lm-eval]"')
    names = [name.strip() for name in options.lm_eval.split(",") if name.strip()]
    model, tokenizer = load_model(checkpoint, run.tokenizer_directory, *choose_device()[:2])
    with _hub_as_it_is():
        from experiments.lm_harness import ask_harness

        found = ask_harness(Engine(model, tokenizer), names, tasks_of=options.include_path, limit=options.max_per_task,
                            shots=options.num_fewshot)  # fmt: skip
    rows = []
    for task, scores in found.items():
        for key, value in scores.items():
            metric, _, kind = key.partition(",")
            error = scores.get(f"{metric}_stderr,{kind}")
            if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
                rows.append((task, metric if kind == "none" else f"{metric} ({kind})", f"{value:.4f}",
                             f"± {error:.4f}" if isinstance(error, int | float) else ""))  # fmt: skip
    columns = ("task", "metric", "value", "standard error")
    show_table(make_console(), Table(_title(run, checkpoint), columns, tuple(rows)))
    asked = _asked(
        tasks=sorted(names),
        include_path=str(options.include_path.resolve()) if options.include_path else None,
        num_fewshot=options.num_fewshot,
        max_per_task=options.max_per_task,
    )
    _keep(run, checkpoint, "lm-eval", asked, found)
    return 0


@contextmanager
def _hub_as_it_is() -> Iterator[None]:
    """Where it does not answer, nobody asks it: its libraries would, again and again, for half a minute."""
    before = constants.HF_HUB_OFFLINE
    if not before and not answers():
        constants.HF_HUB_OFFLINE = True
        print(f"warning: nobody answers at {endpoint()}: of the hub's data only what was fetched before is used",
              file=sys.stderr)  # fmt: skip
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


# --- all --------------------------------------------------------------------------------------------------------------


def _title(run: Run, checkpoint: Checkpoint) -> str:
    return f"{run.name}, {checkpoint.state['stage']} stage, step {checkpoint.step:,}"


def _asked(**options: Any) -> dict[str, Any]:
    """What makes an evaluation another one than the usual: options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _name(checkpoint: Checkpoint, what: str, asked: dict[str, Any]) -> str:
    """Of its own for whatever was asked, so that nothing is written over what another evaluation found."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return f"evaluations/{what}-{checkpoint.state['stage']}-{checkpoint.step:06d}{f'-{digest}' if asked else ''}.json"


def _keep(run: Run, checkpoint: Checkpoint, what: str, asked: dict[str, Any], found: dict) -> None:
    path = run.directory / _name(checkpoint, what, asked)
    write_json(path, {"asked": asked, **found})
    print(f"Kept in {path}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
