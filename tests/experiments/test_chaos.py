"""Struck at every named point, whoever it is, a run ends with the same bits as one left in peace: real processes,
real signals, real Ray. `bench.py chaos` does the same at random times."""

import os
import re
import shutil
from pathlib import Path

import pytest

import nanochat
from experiments import faults
from experiments.benchmarks.chaos import Attempt, final_hash
from experiments.faults import VARIABLE, Fault, struck, write_plan
from experiments.ray_train import MAX_IDLE_STARTS, _Starts
from nanochat.events import Resumed, read_events
from nanochat.run import Run
from tests.small_run import TINY

FAULTS = [
    Fault("tokenising", "worker", 2),
    Fault("forward", "worker", 9),
    Fault("update", "both", 7),
    Fault("renamed", "worker", 3),
    Fault("evaluation", "hung", 3),
]
DRIVERS_STRUCK = sum(fault.victim in ("driver", "both", "terminated", "interrupted") for fault in FAULTS)


def attempt_at(directory: Path, **env: str) -> Attempt:
    return Attempt(directory, "whole", TINY, {"NANOCHAT_BASE_DIR": os.environ["NANOCHAT_BASE_DIR"], **env})


@pytest.mark.ray
@pytest.mark.timeout(300, func_only=True)
def test_struck_at_every_named_point_it_ends_with_the_same_bits(whole, tmp_path):
    plan = tmp_path / "faults.json"
    write_plan(plan, FAULTS)
    war = attempt_at(tmp_path / "war", **{VARIABLE: str(plan)})
    war.finish(lives=DRIVERS_STRUCK + 1)
    assert struck(plan) == FAULTS, war.output()
    assert "Traceback" not in war.output()
    assert final_hash(war.run) == final_hash(whole.run)
    assert sum(isinstance(event, Resumed) for event in read_events(war.run.directory, "base")) >= 2


@pytest.mark.ray
@pytest.mark.timeout(150, func_only=True)
def test_damaged_and_deleted_files_are_named_and_the_rest_is_enough(whole, tmp_path):
    """The last base checkpoint loses a bit, the last two of SFT are deleted, Ray's files are garbage: the run trains
    again what is missing and ends with the same bits."""
    attempt = attempt_at(tmp_path)
    run = whole.copied_to(tmp_path / "runs")
    for stage in ("mid", "sft"):
        shutil.rmtree(run.directory / stage)
    weights = run.checkpoints("base") / "step_000024" / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    for file in (run.directory / "ray").rglob("*"):
        if file.is_file():
            file.write_text("garbage")
    attempt.finish()
    assert "step_000024 is damaged" in attempt.output()
    assert "passed over" in attempt.output()
    assert final_hash(run) == final_hash(whole.run)


def test_a_run_that_leads_nowhere_is_given_up(tmp_path):
    """Workers that die again and again before anything is saved: an error, not an endless loop."""
    run = Run(Path(tmp_path))
    starts = _Starts(run)
    assert [starts.begin() for _ in range(MAX_IDLE_STARTS)] == [None] * MAX_IDLE_STARTS
    assert "died 6 times at the same place" in starts.begin().message
    (run.checkpoints("base") / "step_000002").mkdir(parents=True)
    assert starts.begin() is None  # something was saved since


def test_every_point_that_a_worker_passes_is_named():
    sources = (Path(nanochat.__file__).parent).rglob("*.py")
    points = {point for path in sources for point in re.findall(r'fault\("(\w+)"\)', path.read_text(encoding="utf-8"))}
    assert points <= set(re.findall(r"\w+", faults.__doc__))
    assert "all_gather" in points
