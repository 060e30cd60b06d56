"""Tune's own ways to search: what they may try, and real trials in Ray's processes to the end."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import tune_budget
from experiments.budget_search import Asked, BudgetSearch
from experiments.contest import Contest, _grid, _run_of, config_of, divided, space_of
from experiments.ray_tune import trials_directory
from nanochat.files import write_json
from nanochat.planning.hardware import Hardware
from nanochat.planning.resolve import Request
from nanochat.run import Run
from nanochat.search.decisions import Config
from nanochat.search.policy import MIN_STEPS
from nanochat.training.checkpoint import CheckpointStore

CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})


def contest_of(directory: Path, policy: str, hours: float = 1.0, **request: object) -> tuple[BudgetSearch, Contest]:
    search = BudgetSearch(Run(directory), Asked(Request(hours=hours, **request), "budget", policy=policy), CPU)
    return search, divided(search, 20.0)


@pytest.mark.parametrize("policy", ["asha", "random", "grid", "tpe"])
def test_the_hours_are_divided_once_and_hold_all_trials(tmp_path, policy):
    search, contest = contest_of(tmp_path, policy)
    assert contest.end_s < search.asked.cap_s - search.policy.overheads.reserve_s + 1
    if contest.count > 0:
        assert contest.count * contest.trial_s < contest.end_s - 20
    assert divided(search, 500.0) == contest
    assert contest.proxies == (policy == "tpe")


@pytest.mark.parametrize("policy", ["asha", "random", "tpe"])
def test_whatever_tune_draws_is_of_the_space_and_makes_its_steps(tmp_path, policy):
    search, contest = contest_of(tmp_path, policy)
    space = space_of(search, contest)["choice"]
    assert space.keys() == {"depth", "total_batch_size", "lr_multiplier"}
    for _ in range(50):
        config = config_of(search, contest, {name: domain.sample() for name, domain in space.items()})
        assert config.depth in search.space["depth"].values()
        assert config.total_batch_size in search.space["total_batch_size"].values()
        assert config.lr_multiplier in search.space["lr_multiplier"].values()
        assert config.num_iterations >= contest.least_steps


def test_a_grid_spans_what_there_is_time_for(tmp_path):
    search, contest = contest_of(tmp_path, "grid")
    configs = [config_of(search, contest, choice) for choice in _grid(search, contest)]
    assert len({(config.depth, config.total_batch_size) for config in configs}) == len(configs) >= 7
    assert {config.lr_multiplier for config in configs} == {search.template.base.lr_multiplier}
    assert min(config.num_iterations for config in configs) >= MIN_STEPS
    assert len({config.depth for config in configs}) == 3


def test_a_trial_is_found_again_by_its_choice_alone(tmp_path):
    """Under the name that earlier versions gave it."""
    search, contest = contest_of(tmp_path, "grid")
    config = Config(2, 4096, 5.0, 77, {"device_batch_size": 4})
    directory = trials_directory(contest.run) / "135755d98e346ab0"
    write_json(directory / "run.json", {})
    assert _run_of(search, contest, config).directory == directory
    assert _run_of(search, contest, replace(config, num_iterations=78, ends_early=True)).directory == directory


def test_a_given_depth_is_all_that_is_tried(tmp_path):
    search, contest = contest_of(tmp_path, "grid", depth=2)
    assert {choice["depth"] for choice in _grid(search, contest)} == {2}
    assert space_of(search, replace(contest, asked=replace(contest.asked, policy="random")))["choice"]["depth"] == 2


def command_of(directory: Path, seconds: int, *options: str) -> list[str]:
    return [sys.executable, tune_budget.__file__, "--hours", str(seconds / 3600), "--runs-dir", str(directory),
            "--data", "tinyworld", "--compile", "off", *options]  # fmt: skip


def tune(*asked: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_of(*asked), capture_output=True, text=True, timeout=200)


def killed_when(condition: Callable[[], object], *asked: Any) -> None:
    """The command, until then."""
    with subprocess.Popen(command_of(*asked), stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 90
        while not condition() and time.monotonic() < end:
            time.sleep(0.1)
        process.kill()
    assert condition()


def of_ours(said: str) -> str:
    """Without what Python says of a weak reference that a process drops while it ends."""
    return re.sub(r"Exception ignored in.*\n(Traceback.*\n(  .*\n)*)?", "", said)


@pytest.mark.ray
@pytest.mark.timeout(290)
def test_trials_share_the_hours_and_the_best_is_the_model_to_fine_tune(tmp_path, cache):
    """random for a base model, killed after its first trial and begun again, then asha for the fine-tuning of it."""
    run = Run(tmp_path / "first")
    asked = (tmp_path, 75, "--policy", "random", "--stages", "base", "--max-seq-len", "128", "--name", "first")
    of_trials = run.directory / "search" / "trials"
    killed_when(lambda: list(of_trials.glob("*/base/result.json")), *asked)
    (kept,) = of_trials.glob("*/base/result.json")
    before = kept.read_bytes()
    done = tune(*asked)
    assert done.returncode == 0, done.stdout + done.stderr
    moved = run.directory / "base" / "result.json"
    assert before in (kept.read_bytes() if kept.exists() else b"", moved.read_bytes())
    assert json.loads((run.directory / "clock.json").read_text())["spent_s"] > 10
    trials = [Run(record.parent) for record in of_trials.glob("*/run.json")]
    assert len(trials) in (2, 3)  # the second start costs as much as the last of them
    left = [trial.results()["base"]["val_bpb"] for trial in trials if "base" in trial.results()]
    assert len(left) == len(trials) - 1  # one is the run's own now
    assert run.results()["base"]["val_bpb"] < min(left)
    assert CheckpointStore(run.checkpoints("base")).steps()
    assert f"lowest val_bpb of {len(trials)} trials by random" in done.stdout
    assert "Traceback" not in of_ours(done.stderr), done.stderr

    tuned = tune(tmp_path, 80, "--space", "sft", "--from", "first", "--policy", "asha", "--name", "second")
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    run = Run(tmp_path / "second")
    result = run.results()["sft"]
    assert result["val_bpb"] < result["first_val_bpb"]
    assert result["scores"]["overall"]["count"] > 100
    assert CheckpointStore(run.checkpoints("sft")).steps()[-1] == result["iterations"]
    assert json.loads((run.directory / "clock.json").read_text())["beat"]
    assert "by asha" in run.report_path.read_text()
    assert "Traceback" not in of_ours(tuned.stderr), tuned.stderr
