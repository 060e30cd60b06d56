"""Stages that the clock ends."""

import itertools
from dataclasses import replace

import pytest

from nanochat.events import Note, StageStarted, StepDone, Validated
from nanochat.training.checkpoint import CheckpointStore
from nanochat.training.loop import Interrupted
from tests.training.stages import STAGE, train


class Timed:
    """A clock that steps and evaluations move on, and nothing else."""

    def __init__(self, step_s: float, evaluation_s: float, now: float = 0.0) -> None:
        self.seconds, self.now = {"backward": step_s, "evaluation": evaluation_s}, now

    def __call__(self) -> float:
        return self.now

    def pass_(self, point: str) -> None:
        self.now += self.seconds.get(point, 0.0)


@pytest.mark.parametrize("step_s", [0.7, 3.0, 20.0])
def test_a_stage_ends_before_its_deadline_evaluated_and_cooled_down(dataset, tmp_path, step_s):
    """As many steps as there is time for, the last of them at a low learning rate, and the rest kept as asked."""
    stage = replace(STAGE, num_iterations=1000, deadline_s=60.0, tail_s=4.0, eval_every=1000, checkpoint_every=1000)
    time, events = Timed(step_s, evaluation_s=2.0), []
    train(dataset, tmp_path, stage, events=events, clock=time, run_clock=time, fault=time.pass_)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert 60 - 4 - 1.3 * 2 - step_s - 1 < time.now - 2 <= 60 - 4 - 2
    assert [event.step for event in events if isinstance(event, Validated)] == [0, len(steps)]
    assert CheckpointStore(tmp_path).steps() == [len(steps)]
    assert steps[-1].lr_factor < 0.05 + 4 * step_s / 50
    factors = [event.lr_factor for event in steps]
    assert all(abs(a - b) < 4 * step_s / 60 for a, b in itertools.pairwise(factors))


def test_twice_as_fast_as_expected_it_uses_its_time(dataset, tmp_path):
    """The clock is ahead of the steps to the last, so the learning rate is too."""
    stage = replace(STAGE, num_iterations=200, expected_iterations=100, deadline_s=100.0, eval_every=1000,
                    checkpoint_every=1000)  # fmt: skip
    time, events = Timed(0.55, evaluation_s=1.0), []
    train(dataset, tmp_path, stage, events=events, clock=time, run_clock=time, fault=time.pass_)
    assert 97 < time.now <= 100
    assert len([event for event in events if isinstance(event, StepDone)]) > 170
    (started,) = (event for event in events if isinstance(event, StageStarted))
    assert (started.num_iterations, started.by_clock) == (100, True)


def test_an_evaluation_that_compiled_keeps_no_time_from_the_steps(dataset, tmp_path):
    stage = replace(STAGE, num_iterations=1000, deadline_s=100.0, eval_every=10, checkpoint_every=1000)
    time, events = Timed(1.0, 20.0), []

    def pass_(point: str) -> None:
        time.pass_(point)
        if point == "evaluation":
            time.seconds["evaluation"] = 2.0

    train(dataset, tmp_path, stage, events=events, clock=time, run_clock=time, fault=pass_)
    assert 95 < time.now <= 100
    assert [e for e in events if isinstance(e, StepDone)][-1].lr_factor < 0.15


def test_resumed_before_a_deadline_it_goes_on_at_the_same_rate_and_ends_in_time(dataset, tmp_path):
    stage = replace(STAGE, num_iterations=1000, deadline_s=100.0, checkpoint_every=10)
    time, first, second = Timed(1.0, 0.5), [], []
    with pytest.raises(Interrupted):
        train(dataset, tmp_path, stage, events=first, clock=time, run_clock=time, fault=time.pass_,
              should_stop=lambda: time.now > 60)  # fmt: skip
    time = Timed(1.0, 0.5, now=time.now + 15)
    train(dataset, tmp_path, stage, events=second, clock=time, run_clock=time, fault=time.pass_)
    before, after = ([e.lr_factor for e in part if isinstance(e, StepDone)] for part in (first, second))
    assert after[0] == pytest.approx(before[-1], abs=0.03)
    assert 97 < time.now <= 100
    assert after[-1] < 0.15


def test_past_its_deadline_a_stage_only_evaluates_and_saves(dataset, tmp_path):
    time, events = Timed(1.0, 1.0, now=70.0), []
    train(dataset, tmp_path, replace(STAGE, deadline_s=60.0), events=events, clock=time, run_clock=time)
    assert not [event for event in events if isinstance(event, StepDone)]
    assert [event.text for event in events if isinstance(event, Note) and event.warning] == [
        "the time was up before the first step: the weights are what they were"
    ]
    assert CheckpointStore(tmp_path).steps() == [0]
