"""Whether a run that is killed again and again ends with the same weights as one left in peace."""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments import run_stage
from experiments.faults import VARIABLE, VICTIMS, Fault, strike, struck, write_plan
from nanochat.config import TRAINED_STAGES
from nanochat.errors import UserError
from nanochat.run import Run
from nanochat.training.checkpoint import CheckpointStore

STEPS = {"base": 240, "mid": 120, "sft": 120}
SMALL = (
    *("--depth", "2", "--max-seq-len", "128", "--total-batch-size", "1024", "--device-batch-size", "4"),
    *("--compile", "off", "--set", "tokenizer.vocab_size=512", "--set", "tokenizer.max_chars=300000"),
    *("--set", "sft.eval_questions=42", "--data", "tinyworld"),
)
POINTS = (  # each in reach of a life that begins where the one before ended
    Fault("tokenizer", "worker"),
    Fault("tokenising", "driver", 2),
    Fault("forward", "worker", 40),
    Fault("backward", "hung", 30),
    Fault("update", "both", 35),
    Fault("all_gather", "worker", 33),
    Fault("model", "worker", 2),
    Fault("optimizer", "both", 2),
    Fault("state", "driver", 2),
    Fault("manifest", "terminated", 2),
    Fault("written", "driver", 2),
    Fault("renamed", "worker", 2),
    Fault("retained", "interrupted", 2),
    Fault("evaluation", "hung", 2),
    Fault("stage_end", "worker"),
    Fault("stage_end", "both", 2),
)
HANG_LIMIT_S = 5
LIMIT_S = 300  # of one life of the driver
EXIT_CODES = {-9, -15, 0, 130}  # what a driver that was struck may end with; -15 while Python itself starts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the times and the victims")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--points", action="store_true", help="one strike at each named point, instead of random times")
    parser.add_argument("--longest-s", type=float, default=8.0, help="between the start of a worker and the next kill")


def run(options: argparse.Namespace) -> int:
    """Train once in peace and once under fire, print where each kill fell, and compare the final files."""
    if options.kills < 1 or options.longest_s <= 0:
        raise UserError("--kills and --longest-s must be positive", "leave them out for 20 kills within 8 s")
    with tempfile.TemporaryDirectory() as scratch:
        peace = Attempt(Path(scratch) / "peace", "run", (*small_run(), "--num-workers", str(options.num_workers)))
        war = Attempt(Path(scratch) / "war", "run", peace.options)
        start = time.monotonic()
        peace.finish()
        print(f"in peace: {time.monotonic() - start:.0f} s, {final_hash(peace.run)[:16]}", flush=True)
        start, kills = time.monotonic(), 0
        if options.points:
            return _at_points(war, peace)
        print(f"{'kill':>4}  {'second':>6}  {'victim':<12}  where", flush=True)
        for kill in _under_fire(war, random.Random(options.seed), options):
            kills += 1
            print(f"{kills:>4}  {time.monotonic() - start:>6.0f}  {kill.victim:<12}  {kill.where}", flush=True)
        same = final_hash(war.run) == final_hash(peace.run)
        verdict = "the same" if same else "DIFFERENT"
        print(f"{kills} kills: {time.monotonic() - start:.0f} s, {final_hash(war.run)[:16]}: {verdict}")
        if kills < options.kills:
            print(f"the run was over after {kills} kills of {options.kills}: lower --longest-s")
    return 0 if same and kills == options.kills else 1


@dataclass(frozen=True)
class Kill:
    victim: str
    where: str


@dataclass(frozen=True)
class Attempt:
    """One run of run_stage.py in a directory of its own, cache included, which may take several drivers to finish."""

    directory: Path
    name: str
    options: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        return Run(self.directory / "runs" / self.name)

    @contextmanager
    def driver(self) -> Iterator[subprocess.Popen]:
        """A driver process, gone when the block is left."""
        self.directory.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "NANOCHAT_BASE_DIR": str(self.directory / "cache"),
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(HANG_LIMIT_S),
            **self.env,
        }
        with (self.directory / "output.txt").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, run_stage.__file__, "--runs-dir", str(self.directory / "runs"), "--name", self.name,
                 *self.options],
                stdout=output, stderr=subprocess.STDOUT, cwd=self.directory, env=environment, start_new_session=True,
            )  # fmt: skip
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def finish(self, lives: int = 1) -> list[int]:
        """Start drivers until one ends with 0. Returns their exit codes; raises RuntimeError when that was too few, or
        one ended as no driver should."""
        codes: list[int] = []
        while len(codes) < lives and 0 not in codes:
            with self.driver() as process:
                codes.append(process.wait(LIMIT_S))
            if codes[-1] not in EXIT_CODES:
                break
        if codes[-1] != 0:
            raise RuntimeError(f"drivers ended with {codes}:\n{self.output()[-4000:]}")
        return codes

    def output(self) -> str:
        """What all lives have printed."""
        return (self.directory / "output.txt").read_text(encoding="utf-8")


def small_run(steps: Mapping[str, int] = STEPS) -> tuple[str, ...]:
    """Options of a whole small pipeline that saves often."""
    settings = [f"{stage}.{key}" for stage, count in steps.items()
                for key in (f"num_iterations={count}", f"checkpoint_every={max(count // 10, 1)}",
                            f"eval_every={max(count // 5, 1)}", "eval_tokens=2048")]  # fmt: skip
    return (*SMALL, *(part for setting in settings for part in ("--set", setting)))


def final_hash(run: Run) -> str:
    """SHA-256 over weights and optimizer state at the end of all stages."""
    digest = hashlib.sha256()
    for stage in TRAINED_STAGES:
        store = CheckpointStore(run.checkpoints(stage))
        last = store.open(max(store.steps())).path
        files = json.loads((last / "manifest.json").read_text())["files"]
        digest.update("".join(files[f"{part}.safetensors"]["sha256"] for part in ("model", "optimizer")).encode())
    return digest.hexdigest()


def _at_points(war: Attempt, peace: Attempt) -> int:
    """Strike at every named point in turn, each in a life of its own, and compare."""
    plan = war.directory.with_name("faults.json")
    write_plan(plan, POINTS)
    war = replace(war, env={VARIABLE: str(plan)})
    codes = war.finish(lives=len(POINTS) + 1)
    happened, same = struck(plan), final_hash(war.run) == final_hash(peace.run)
    for fault in POINTS:
        print(f"{fault.point:<12} {fault.victim:<12} {'struck' if fault in happened else 'NOT REACHED'}")
    print(f"{len(happened)} strikes, drivers ended with {codes}: {'the same' if same else 'DIFFERENT'}")
    return 0 if same and len(happened) == len(POINTS) else 1


def _under_fire(war: Attempt, rng: random.Random, options: argparse.Namespace) -> Iterator[Kill]:
    """Run to the end, striking as often as asked for on the way; whoever must be started again is."""
    left = options.kills
    while True:
        with war.driver() as process:
            while left and process.poll() is None:
                if rng.random() < 0.7:  # else whatever is going on, even the start of Ray
                    _wait_for_worker(war.run, process)
                time.sleep(rng.uniform(0, options.longest_s))
                victim = rng.choice(sorted(VICTIMS))
                where = _where(war.run)
                if process.poll() is None and strike(war.run, victim):
                    left -= 1
                    yield Kill(victim, where)
                    if any(role == "driver" for role, _ in VICTIMS[victim]):
                        break
            code = process.wait(LIMIT_S)
        if code == 0:
            return
        if code not in EXIT_CODES:
            raise RuntimeError(f"the driver ended with {code}:\n{war.output()[-4000:]}")


def _wait_for_worker(run: Run, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        worker = run.owner("worker-0")
        if worker is not None and worker.alive():
            return
        time.sleep(0.05)


def _where(run: Run) -> str:
    status = run.status()
    return f"{status.stage or 'preparing'} {status.step}" if status else "starting"
