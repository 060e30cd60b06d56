"""The best model within so many hours: trials as far as they pay, then one training with what they taught.

  python experiments/tune_budget.py --hours 6
  python experiments/tune_budget.py --hours 0.2 --data tinyworld    # two CPU cores are enough
  python experiments/tune_budget.py --hours 6 --stages base         # all of it for the base model
  python experiments/tune_budget.py --hours 1 --space sft --from demo   # fine-tune demo's model as well as can be
  python experiments/tune_budget.py --hours 6 --plan                what it would try, and nothing else

The hours count from the start of the command, and everything is within them. The same command again goes on from
where it stopped. Exit codes: 0 done, 2 something for you to change, 130 interrupted.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import cli
from experiments.budget_search import Asked, BudgetSearch, named_space, too_few
from experiments.deadline import TimeIsUp, Watch
from experiments.preparation import (
    add_data_arguments,
    check_conversations,
    check_data,
    check_hub,
    data_of_start,
    hardware_to_plan_for,
    named_chat,
    named_data,
    named_run,
    show_cost,
    show_plan,
    start_checkpoint,
    this_machine,
)
from experiments.ray_train import Scale
from experiments.search_report import INTERVAL, hours_table, sections
from experiments.session import begin, train
from experiments.terminal import make_console, show_table
from experiments.trial_table import TrialTable
from experiments.wandb_log import MODES as WANDB_MODES
from experiments.wandb_log import check_wandb
from nanochat.clock import RunClock
from nanochat.config import STAGES, TINYWORLD, TRAINED_STAGES, RunConfig, check, from_dict, to_dict
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.planning.deadlines import CLOSING_S
from nanochat.planning.hardware import HARDWARE_NAMES, Hardware
from nanochat.planning.resolve import Request
from nanochat.report import about, duration
from nanochat.run import Run, read_json
from nanochat.search.decisions import Commit, Observation
from nanochat.search.policy import MAX_EXPLORED

POLICIES = ("budget", "asha", "random", "tpe", "grid")
MOST_ON_TRIALS = 0.25  # of the cap: later than that, whatever trials do, the final run begins


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="tune_budget.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--hours", type=float, required=True, help="wall-clock, from the start of the command")
    add("--space", default="budget", metavar="NAME_OR_FILE", help="of search_spaces/, or yours (default: budget)")
    add("--stages", help="that share the hours (default: base,mid,sft; of a space of a later stage, that alone)")
    add("--from", dest="start_from", default="", metavar="RUN", help="whose weights a space of mid or sft starts from")
    add_data_arguments(command)
    add("--name", default="budget", help="of the run (default: budget)")
    add("--depth", type=int, help="of the model, if it is not to be searched")
    add("--max-seq-len", type=int, help="tokens of context")
    add("--num-workers", type=int, default=1, help="of the final run; on GPUs as many trials at a time (default: 1)")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile (default: auto)")
    add("--policy", choices=POLICIES, help="ours is budget; the others are Ray Tune's, to compare, or for later stages")
    add("--fresh-prior", action="store_true", help="forget what earlier searches on this machine and data have seen")
    add("--seed", type=int, default=0)
    add("--wandb", choices=WANDB_MODES, default="off", help="tell Weights & Biases what happens (default: off)")
    add("--plan", action="store_true", help="say what would be tried, and stop")
    add("--hardware", metavar="|".join(HARDWARE_NAMES), help="with --plan: plan for this, not for the machine at hand")
    add("--runs-dir", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    return command


def main(argv: list[str]) -> int:
    """Search, train, report. Returns the exit code."""
    args, console = parser().parse_args(argv), make_console()
    run = named_run(args.name, args.runs_dir)
    hardware = hardware_to_plan_for(args)
    before = None if hardware else _request_before(run).get("data")
    asked = _asked(args, named_data(args.data, hardware, before or data_of_start(args.start_from, args.runs_dir)))
    check_wandb(args.wandb)
    if hardware or (args.plan and not run.directory.exists()):
        search = BudgetSearch(run, asked, hardware or _hardware(run, asked), goes_on=hardware is None)
        _show_search(console, search, 0.0, args.runs_dir)
        return 0
    with run.owned("driver", say=lambda text: console.print(text, soft_wrap=True)):
        asked = _as_before(run, asked)
        clock = begin(run)
        search = BudgetSearch(run, asked, _hardware(run, asked))
        if not run.exists():
            _show_search(console, search, clock(), args.runs_dir)
            if args.plan:
                return 0
            _note(search)
            config, record = _search(console, search, clock, args.runs_dir)
            write_json(run.record_path, {"config": to_dict(config), **record})
        config, record = run.config(), {key: part for key, part in run.record().items() if key != "config"}
        check(config, args.num_workers)
        show_plan(console, run, config, record)
        return train(console, run, config, record, Scale(args.num_workers), clock, partial(sections, search),
                     wandb=args.wandb)  # fmt: skip


def _hardware(run: Run, asked: Asked) -> Hardware:
    """Of this machine: as it was measured when the search began, so that what follows from it stays the same.

    Raises:
        UserError: it has fewer GPUs than workers were asked for.
    """
    try:
        hardware = from_dict(Hardware, json.loads(_hardware_path(run).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        hardware = this_machine(fresh=asked.fresh_prior)
    if hardware.device_type == "cuda" and asked.request.num_workers > hardware.device_count:
        raise UserError(
            f"--num-workers {asked.request.num_workers}, and there are {hardware.device_count} GPUs",
            f"use at most --num-workers {hardware.device_count}",
        )
    return hardware


def _note(search: BudgetSearch) -> None:
    """What the search is about, for when the same command comes again."""
    write_json(_hardware_path(search.run), asdict(search.hardware))
    write_json(_asked_path(search.run), asdict(search.asked))


def _asked_path(run: Run) -> Path:
    return run.directory / "search" / "asked.json"


def _hardware_path(run: Run) -> Path:
    return run.directory / "search" / "hardware.json"


def _request_before(run: Run) -> dict[str, Any]:
    """What a search of that name was asked for, if there is one."""
    path = _asked_path(run)
    request = read_json(path).get("request") if path.exists() else None
    return request if isinstance(request, dict) else {}


def _asked(args: argparse.Namespace, data: str) -> Asked:
    space = named_space(args.space)
    about_base = space.stage == "base"
    default = "base,mid,sft" if about_base else space.stage
    stages = tuple(stage.strip() for stage in (args.stages or default).split(",") if stage.strip())
    problems = [f"there is no stage {stage!r}" for stage in stages if stage not in TRAINED_STAGES]
    ordered = tuple(stage for stage in STAGES if stage in stages)
    if not problems and ordered[:1] != (space.stage,):
        problems.append(f"--stages must begin with {space.stage}, which space {space.name!r} is about")
    if not 0 < args.hours < math.inf:
        problems.append(f"--hours must be positive and finite, not {args.hours:g}")
    if args.seed < 0:
        problems.append(f"--seed must not be negative, and is {args.seed}")
    if args.num_workers < 1:
        problems.append(f"--num-workers must be at least 1, not {args.num_workers}")
    if problems:
        raise UserError("; ".join(problems), f"try --hours 0.5 --stages {default}")
    policy = args.policy or ("budget" if about_base else "random")
    _check_policy(policy, about_base, args)
    chat = named_chat(args.chat, data)
    check_data(data)
    check_conversations(chat, ordered)
    if not args.plan:
        check_hub(data, chat, ordered, int(about_base))
    start = "" if about_base else _start(args)
    request = Request(
        data=data,
        chat=chat,
        stages=("tokenizer", *ordered) if about_base else ordered,
        start_from=start,
        seed=args.seed,
        depth=args.depth,
        max_seq_len=args.max_seq_len,
        compile=args.compile,
        num_workers=args.num_workers,
        hours=args.hours,
    )
    of_file = args.space.endswith(".py") or "/" in args.space
    return Asked(request, str(Path(args.space).absolute()) if of_file else args.space, args.fresh_prior, policy,
                 args.start_from)  # fmt: skip


def _start(args: argparse.Namespace) -> str:
    """Where the weights are that --from names."""
    location = start_checkpoint(args.start_from, args.runs_dir.absolute())[0].location
    if "://" in location:
        raise UserError(
            f"the weights of {args.start_from!r} are kept at {location}, where trials cannot take them from",
            "name a run, or a checkpoint, on this machine",
        )
    return str(Path(location).absolute())


def _check_policy(policy: str, about_base: bool, args: argparse.Namespace) -> None:
    if about_base and args.start_from:
        raise UserError("--from is for spaces of mid or sft; base models begin anew", "choose --space sft")
    if not about_base and not args.start_from:
        raise UserError(f"space {args.space!r} is about training that starts from a run's weights", "add --from RUN")
    if not about_base and policy == "budget":
        raise UserError(
            "the budget policy knows base models only", f"choose --policy {', '.join(POLICIES[1:])} for this space"
        )
    if policy == "tpe" and find_spec("optuna") is None:
        raise UserError("--policy tpe needs Optuna", 'pip install -e ".[tpe]"')


def _as_before(run: Run, asked: Asked) -> Asked:
    """What is asked for, with the weights it began from if it has begun. Raises UserError if a run of that name is
    another."""
    path = _asked_path(run)
    now = json.loads(json.dumps(asdict(asked)))
    if not path.exists():
        if run.exists():
            raise UserError(f"run {run.name!r} exists and is not a search", "choose another --name")
        return asked
    then = read_json(path)
    request = {"chat": TINYWORLD, **_request_before(run)}  # what searches of earlier versions do not say
    different = [key for key in ("space", "fresh_prior", "policy", "start") if then.get(key) != now[key]]
    different += [key for key, value in now["request"].items()
                  if request.get(key) != value and key not in ("num_workers", "start_from")]  # fmt: skip
    if different:
        flags = ", ".join("--from" if key == "start" else f"--{key.replace('_', '-')}" for key in different)
        raise UserError(
            f"search {run.name!r} exists and was asked for with another {flags}",
            "repeat its command to go on with it, or give this one another --name",
        )
    return replace(asked, request=replace(asked.request, start_from=request.get("start_from", "")))


def _show_search(console: Console, search: BudgetSearch, now_s: float, runs_dir: Path) -> None:
    """What is about to be done with the hours."""
    policy, cap_s = search.policy, search.asked.cap_s
    if too_few(seconds := search.training_s(cap_s), cap_s) and not search.journal.exists():
        raise UserError(
            f"{search.asked.hours:g} hours are too few: {duration(cap_s - seconds)} go to starting, preparing, the "
            "later stages and the end",
            "give more --hours, or --stages base",
        )
    console.print(f"[bold]Search {search.run.name}[/bold] in {search.run.directory}", soft_wrap=True)
    console.print(search.hardware.describe())
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + cap_s - now_s))
    reserved = f"{duration(policy.overheads.reserve_s)} are reserved for later stages, evaluation and report"
    console.print(f"{duration(cap_s)} in all: {reserved}. It ends before {when}.", soft_wrap=True)
    domains = "; ".join(f"{name} {domain.low:g} to {domain.high:g}" for name, domain in search.space.domains.items())
    console.print(f"Space {search.space.name}: {domains}", soft_wrap=True)
    if search.asked.policy != "budget":
        console.print(f"Trials are chosen by Ray Tune: {search.asked.policy}.\n", soft_wrap=True)
        return
    console.print(
        f"At most {duration(MAX_EXPLORED * cap_s)} go to trials, as long as they are worth more than they cost; "
        f"{duration(policy.overheads.final_s)} to starting the final run.",
        soft_wrap=True,
    )
    earlier = f", and {len(policy.remembered)} trainings of earlier searches here" if policy.remembered else ""
    console.print(f"Known beforehand: {policy.prior.source}{earlier}\n", soft_wrap=True)
    show_table(console, hours_table(search))
    chosen = search.first_choice()
    if chosen.ends_early:
        console.print(
            f"The text has about {about(policy.unique_tokens)} tokens: about "
            f"{chosen.tokens / policy.unique_tokens:.1f} times through it are enough, far more would harm the model, "
            "so its training ends before the hours do.\n",
            soft_wrap=True,
        )
    console.print("What would be trained if no trial changed it:\n")
    config, record = search.outlook(runs_dir)
    show_cost(console, config, search.run.plan(record))


def _search(
    console: Console, search: BudgetSearch, clock: RunClock, runs_dir: Path
) -> tuple[RunConfig, dict[str, Any]]:
    """Run trials until the policy commits. Returns the configuration and the record of the final run.

    Raises:
        UserError: the hours are over before anything could be tried.
    """
    most_s = search.asked.cap_s - CLOSING_S[search.hardware.device_type]

    def say(text: str) -> None:
        clock.beating(search.run.clock_path)
        console.print(f"[dim]{text}[/dim]")
        if clock() > most_s and not (search.run.directory / "search" / "trials").exists():
            raise UserError(
                "the hours are over before the data was there", "what has come is kept: begin under another --name"
            )

    search.prepare(say)
    if search.asked.policy != "budget":
        from experiments.contest import divided, hold

        contest = divided(search, clock())
        with TrialTable(console, search.run, lambda: contest.end_s - clock()) as table:
            return hold(search, contest, clock, runs_dir, table)
    decision = search.policy.decide(clock())
    if not isinstance(decision, Commit):
        search.policy.take_back(decision)
        _explore(console, search, clock)
        decision = search.policy.decide(clock())
        assert isinstance(decision, Commit)
    return search.commit(decision, clock(), runs_dir)


def _explore(console: Console, search: BudgetSearch, clock: RunClock) -> None:
    """Train the trials that the policy asks for."""
    from experiments.ray_tune import Search, run_trials

    policy, most_s = search.policy, MOST_ON_TRIALS * search.asked.cap_s
    watch = Watch(search.run, most_s, clock)

    def tell(name: str, seen: Observation) -> None:
        best = policy.best(policy.final_seconds(clock()), policy.device.final_devices)
        mean, sd = policy.forecast(best)
        table.tell(name, seen.error, f"{mean:.3f} ± {INTERVAL * sd:.3f}")

    def look() -> None:
        watch.look()
        table.look()

    try:
        with TrialTable(console, search.run, lambda: MAX_EXPLORED * search.asked.cap_s - policy.explored_s) as table:
            run_trials(Search(search.run, policy, clock, search.make_trial, tell), search.hardware, look)
    except TimeIsUp:
        console.print("[yellow]warning: the trials take too long; the final run begins[/yellow]")
    search.run.clear_stop()
    policy.stop_exploring()


if __name__ == "__main__":
    sys.exit(cli.run(main))
