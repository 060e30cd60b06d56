"""Train a language model from raw text to chat: tokenizer, base, mid, SFT, as one Ray Train run.

  python experiments/run_stage.py --mode demo                     the whole way, sized for this machine
  python experiments/run_stage.py --mode small --data my_texts/   base training on your own .txt, .jsonl, .parquet
  python experiments/run_stage.py --mode demo --stage base --num-iterations 50 --name try
  python experiments/run_stage.py --mode demo --plan              what it would do and cost, and nothing else
  python experiments/run_stage.py --mode demo --plan --calibrate  the same, after 20 s of training to measure the speed
  python experiments/run_stage.py --mode full --plan --hardware h100 --num-workers 8

The same command again resumes an interrupted run. Exit codes: 0 done, 2 something for you to change, 130 interrupted.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.preparation import (
    CALIBRATION_S,
    add_data_arguments,
    calibrated,
    check_hub,
    data_of,
    data_of_start,
    hardware_to_plan_for,
    named_chat,
    named_data,
    named_run,
    new_record,
    plan_of,
    repeats,
    show_plan,
)
from experiments.ray_train import Scale
from experiments.session import begin, train
from experiments.terminal import make_console
from experiments.wandb_log import MODES as WANDB_MODES
from experiments.wandb_log import check_wandb
from nanochat.config import STAGES, TRAINED_STAGES, RunConfig, check, from_dict, to_dict
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.planning.hardware import HARDWARE_NAMES
from nanochat.planning.modes import MODES
from nanochat.planning.resolve import Request, resolve
from nanochat.run import Run
from nanochat.training.checkpoint import CheckpointStore


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
        help="start from the weights of another run or checkpoint, of public nanochat's (a folder with model_*.pt), or "
        "of hf:owner/name",
    )
    add_data_arguments(command)
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
    add("--wandb", choices=WANDB_MODES, default="off", help="tell Weights & Biases what happens (default: off)")
    add("--plan", action="store_true", help="print the plan and stop")
    add("--hardware", metavar="|".join(HARDWARE_NAMES), help="with --plan: plan for this, not for the machine at hand")
    add("--calibrate", action="store_true", help=f"with --plan: train for {CALIBRATION_S:.0f} s to know the speed")
    add("--runs-dir", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    return command


def main(argv: list[str]) -> int:
    """Plan, train, report. Returns the exit code."""
    args = parser().parse_args(argv)
    console = make_console()
    run = named_run(args.mode if args.name is None else args.name, args.runs_dir)
    hardware = hardware_to_plan_for(args)
    before = None if hardware else data_of(run)
    data = named_data(args.data, hardware, before or data_of_start(args.start_from, args.runs_dir))
    request = _request(args, data)
    check_wandb(args.wandb)
    if args.calibrate and (hardware or not args.plan or args.num_workers > 1):
        raise UserError("--calibrate measures one worker on this machine, for a plan", "use it with --plan alone")
    if hardware or args.calibrate or (args.plan and not run.exists()):
        config, record = new_record(request, args.runs_dir, hardware)
        if args.calibrate:
            config, record = new_record(request, args.runs_dir, calibrated(console, run, config, record))
        record = _told_of_repeats(run, config, record)
        show_plan(console, run, config, record)
        return 0
    with run.owned("driver", say=lambda text: console.print(text, soft_wrap=True)):
        if run.exists():
            config, record = _continued(run, request)
        else:
            if not args.plan:
                needs_text = "base" in request.stages or not request.start_from
                check_hub(request.data, request.chat, request.stages, int(needs_text))
            config, record = new_record(request, args.runs_dir)
            record = _told_of_repeats(run, config, record)
        _check_weights(run, config)
        show_plan(console, run, config, record)
        if args.plan:
            return 0
        whole = {"config": to_dict(config), **record}
        if not run.exists() or run.record() != json.loads(json.dumps(whole)):  # on a full disk it can stay as it is
            write_json(run.record_path, whole)
        return train(console, run, config, record, Scale(args.num_workers, args.min_workers, args.address), begin(run),
                     wandb=args.wandb)  # fmt: skip


def _told_of_repeats(run: Run, config: RunConfig, record: dict[str, Any]) -> dict[str, Any]:
    told = repeats(config, run.plan(record), run.hardware(record))
    return {**record, "reasons": [*record["reasons"], *told]}


def _request(args: argparse.Namespace, data: str) -> Request:
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
    return Request(
        mode=args.mode,
        data=data,
        chat=named_chat(args.chat, data),
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
        hardware = run.hardware(record)
        as_it_is = replace(request, compile="on" if config.compile else "off")
        fresh = resolve(as_it_is, hardware, compiler=shutil.which("g++"), start_model=config.model,
                        attention=config.attention).config  # fmt: skip
        same = replace(request, stages=stored.stages, num_iterations=stored.num_iterations)
        differences = stored.differences(same)
        config = replace(
            config,
            stages=tuple(stage for stage in STAGES if stage in request.stages),
            **{stage: fresh.stage(stage) for stage in new_stages if stage in TRAINED_STAGES},
        )  # type: ignore[arg-type]
        record = {**record, "request": asdict(request), "plan": asdict(plan_of(config, hardware, request.num_workers))}
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


if __name__ == "__main__":
    sys.exit(cli.run(main))
