import math
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import UserError
from nanochat.planning.deadlines import CLOSING_S, MIN_STAGE_S, with_deadlines
from nanochat.planning.estimate import compile_seconds, estimate, step_seconds
from nanochat.planning.hardware import DATA_SHEETS, Hardware
from nanochat.planning.preparing import begins_s, text_tokens
from nanochat.planning.resolve import Request, resolve
from nanochat.training.trainee import build_trainee
from nanochat.workers import Workers

A100_40GB = DATA_SHEETS["a100-40gb"]
CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})
STAGES = [("tokenizer", "base", "mid", "sft"), ("tokenizer", "base"), ("sft",)]


@given(st.floats(0.02, 100), st.sampled_from(STAGES), st.sampled_from([CPU, A100_40GB]), st.sampled_from([1, 2]))
def test_the_stages_share_the_hours_and_end_before_them(hours, stages, hardware, num_workers):
    request = Request(stages=stages, hours=hours, num_workers=num_workers)
    if hours < 0.07:
        with suppress(UserError):
            resolve(request, hardware, compiler="g++")
        return
    config = resolve(request, hardware, compiler="g++").config
    deadlines = [config.stage(stage).deadline_s for stage in config.trained_stages]
    assert deadlines[-1] == pytest.approx(3600 * hours - CLOSING_S[hardware.device_type])
    assert all(later - earlier >= MIN_STAGE_S / 5 for earlier, later in pairwise([0.0, *deadlines]))
    assert all(config.stage(stage).tail_s < 3600 * hours for stage in config.trained_stages)
    plan = estimate(config, hardware, num_workers)
    assert plan.seconds <= 3600 * hours
    if hours > 1:
        assert plan.seconds > 0.97 * 3600 * hours
        for stage in plan.stages:
            settings = config.stage(stage.stage)
            assert 1.6 * stage.iterations < settings.num_iterations  # the clock ends it, on a faster machine too
            assert settings.horizon == pytest.approx(stage.iterations, rel=0.02, abs=2)


def test_the_shares_are_those_of_the_mode():
    config = resolve(Request(hours=2.0), CPU, compiler="g++").config
    spans = [config.mid.deadline_s - config.base.deadline_s, config.sft.deadline_s - config.mid.deadline_s]
    assert spans[0] / spans[1] == pytest.approx(2)  # 200 and 100 iterations
    began = begins_s(estimate(config, CPU).preparing, CPU)
    compiling = compile_seconds(config, config.base.device_batch_size, CPU)
    assert compiling > 20, "which is nobody's share"
    most = 2 * (config.base.deadline_s - began) / step_seconds(config, config.base, CPU)
    assert config.base.num_iterations == pytest.approx(most, rel=0.01), "what was compiled before leaves more to train"
    assert (config.base.deadline_s - began - compiling) / spans[1] == pytest.approx(5)


def test_a_trial_too_short_to_compile_is_not_refused():
    """Trials compile if their search does, and find it done by earlier ones."""
    config = resolve(Request(stages=("base",), compile="on"), CPU, compiler="g++").config
    trial = with_deadlines(config, 8.0 + CLOSING_S["cpu"], CPU, spent_s=0.0)
    assert trial.base.deadline_s == pytest.approx(8.0)
    assert trial.base.num_iterations >= 2 * 8.0 // step_seconds(config, config.base, CPU)


@pytest.mark.parametrize("by_hand", [(), ("base.num_iterations=40",)])
def test_what_goes_by_the_steps_of_a_stage_goes_by_those_to_be_expected(by_hand):
    """Not by how many there are at most: weight decay is that of a training of as many steps, and of data there is a
    quarter more."""
    config = resolve(Request(hours=2.0, depth=1, assignments=by_hand), CPU, compiler="g++").config
    base = config.base
    assert base.horizon == 40 if by_hand else 1.9 * base.horizon < base.num_iterations
    assert base.ended_by_clock == (not by_hand)
    counted = replace(config, base=replace(base, num_iterations=base.horizon, deadline_s=None))
    decays = [build_trainee(each, Workers()).optimizer.peak.weight_decay for each in (config, counted)]
    assert decays[0] == decays[1]
    assert text_tokens(config) == min(math.ceil(1.25 * base.horizon), base.num_iterations) * base.total_batch_size
    assert text_tokens(counted) == base.horizon * base.total_batch_size


def test_what_was_set_by_hand_stays():
    request = Request(hours=1.0, assignments=("base.num_iterations=40", "base.eval_every=7"))
    config = resolve(request, CPU, compiler="g++").config
    assert (config.base.num_iterations, config.base.eval_every) == (40, 7)
    assert config.base.deadline_s is not None


@pytest.mark.parametrize(("hours", "says"), [(0.0, "positive"), (-1.0, "positive"), (float("nan"), "positive"),
                                             (float("inf"), "at most"), (0.002, "too few")])  # fmt: skip
def test_hours_that_cannot_work(hours, says):
    with pytest.raises(UserError, match=says):
        resolve(Request(hours=hours), CPU, compiler="g++")


def test_hours_and_iterations_both():
    with pytest.raises(UserError, match="both"):
        resolve(Request(hours=1.0, stages=("base",), num_iterations=5), CPU, compiler="g++")


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_evaluating_is_little_of_the_hours(name):
    """On a slow GPU two million tokens take long; checkpoints stay as close."""
    hardware = DATA_SHEETS[name]
    config = resolve(Request(mode="small", hours=6.0), hardware, compiler=None).config
    for stage in estimate(config, hardware).stages:
        settings = config.stage(stage.stage)
        (evaluating,) = (each.seconds for each in stage.beside if each.what == "evaluating")
        an_evaluation = evaluating / (2 + stage.iterations // settings.eval_every)
        assert evaluating - 2 * an_evaluation < 0.035 * stage.seconds
        saves_s = settings.checkpoint_every * step_seconds(config, settings, hardware)
        assert saves_s < 180


@pytest.mark.parametrize(("mode", "hardware"), [("full", A100_40GB), ("full", CPU), ("medium", CPU), ("demo", CPU)])
def test_a_crash_costs_minutes(mode, hardware):
    config = resolve(Request(mode=mode), hardware, compiler="g++").config
    for name in config.trained_stages:
        stage = config.stage(name)
        a_step = step_seconds(config, stage, hardware)
        assert stage.checkpoint_every * a_step <= max(600.0, a_step)
        assert stage.checkpoint_every <= stage.eval_every
