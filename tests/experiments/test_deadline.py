"""A run with a cap ends before it, whatever its workers do, with what was saved."""

import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.chaos import SMALL, Attempt
from experiments.deadline import ASK_S, LEAVE_S, TimeIsUp, Watch, settle
from experiments.faults import VARIABLE, Fault, write_plan
from nanochat.clock import RunClock, read_clock
from nanochat.errors import UserError
from nanochat.events import Note, read_events
from nanochat.files import write_json
from nanochat.run import Run, create
from nanochat.training.checkpoint import CheckpointStore
from nanochat.training.result import StageResult
from tests.test_config import make_config


def run_of(directory: Path) -> Run:
    return create(directory, replace(make_config(), stages=("tokenizer", "base", "mid")), {})


def clock_at(seconds: float) -> RunClock:
    return RunClock(seconds, time.time(), time.time() + 100)


def test_workers_are_asked_to_stop_and_then_left(tmp_path):
    run = run_of(tmp_path / "r")
    Watch(run, 100.0, clock_at(100 - ASK_S - 1)).look()
    assert not run.stop_requested()
    watch = Watch(run, 100.0, clock_at(100 - ASK_S))
    watch.look()
    assert run.stop_requested()
    assert watch.asked
    with pytest.raises(TimeIsUp):
        Watch(run, 100.0, clock_at(100 - LEAVE_S)).look()
    Watch(run, None, clock_at(1e9)).look()  # without a cap there is no end


def test_a_watched_clock_is_noted(tmp_path):
    run = run_of(tmp_path / "r")
    Watch(run, None, RunClock(5.0, time.time() - 30, time.time() - 29)).look()
    noted = read_clock(run.clock_path)
    assert noted is not None
    assert noted.beat - noted.started == pytest.approx(30, abs=1)


def test_what_was_saved_is_the_result(tmp_path):
    run = run_of(tmp_path / "r")
    write_json(run.result_path("tokenizer"), {"stage": "tokenizer"})  # which is no model
    with pytest.raises(UserError, match="before anything could be saved"):
        settle(run, run.config())
    store = CheckpointStore(run.checkpoints("base"))
    for step in (4, 8):
        store.save(step, {"model": {"x": torch.zeros(2)}}, {"result": asdict(StageResult("base", step, val_bpb=step))})
    (run.checkpoints("base") / "step_000008" / "model.safetensors").unlink()
    settle(run, run.config())
    results = run.results()
    del results["tokenizer"]
    assert {stage: result["iterations"] for stage, result in results.items()} == {"base": 4}
    told = [event.text for event in read_events(run.directory, "base") if isinstance(event, Note)]
    assert "step_000008" in told[-2]
    assert "that of step 4" in told[-1]
    (last,) = {event.text for event in read_events(run.directory, "mid") if isinstance(event, Note)}
    assert "before anything of it was saved" in last


@pytest.mark.ray
def test_a_worker_that_hangs_does_not_keep_a_run_from_ending_in_time(tmp_path, cache):
    """It stops at a step and is still taken for alive when the time is up: the model is that of the last checkpoint."""
    plan, cap_s = tmp_path / "faults.json", 55.0
    write_plan(plan, [Fault("evaluation", "hung", 4)])
    options = (*SMALL, "--stage", "tokenizer,base", "--hours", str(cap_s / 3600), "--set", "base.num_iterations=100000",
               "--set", "base.eval_every=10", "--set", "base.checkpoint_every=10")  # fmt: skip
    attempt = Attempt(tmp_path, "r", options, {"NANOCHAT_BASE_DIR": str(cache), VARIABLE: str(plan),
                                               "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120"})  # fmt: skip
    start = time.monotonic()
    with attempt.driver() as process:
        assert process.wait(120) == 0, attempt.output()
    assert time.monotonic() - start < cap_s
    result = attempt.run.results()["base"]
    assert result["iterations"] >= 20
    assert result["val_bpb"] < result["first_val_bpb"]
    assert "the time was up" in attempt.run.report_path.read_text()
