"""Trainings correct later plans: exactly where they were, by and by less elsewhere, and damaged records never."""

import json
from dataclasses import asdict, replace

import pytest

from nanochat.config import from_dict
from nanochat.planning.estimate import (
    Plan,
    compile_seconds,
    estimate,
    modelled_step_seconds,
    speed_sd,
    step_seconds,
    train_memory,
)
from nanochat.planning.hardware import Hardware
from nanochat.planning.history import Finished, History, finished_stages, measured
from nanochat.planning.resolve import Request, resolve
from nanochat.training.result import StageResult

CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})


def config_of(depth=3, hardware=CPU, **asked):
    return resolve(Request(depth=depth, total_batch_size=4096, **asked), hardware, compiler="g++").config


def result_of(config, speed, memory, **more):
    """As if training had been so many times as fast and as large as modelled."""
    step_s = modelled_step_seconds(config, config.base, CPU) / speed
    count = config.base.num_iterations
    return asdict(
        StageResult(
            "base", iterations=count, tokens=count * 4096, train_s=count * step_s, other_s=5.0, starts=1,
            tokens_per_second=4096 / step_s, num_workers=1, device_batch_size=config.base.device_batch_size,
            peak_memory_bytes=round(memory * train_memory(config, config.base.device_batch_size, CPU).total), **more,
        )
    )  # fmt: skip


def test_a_training_corrects_the_plan_of_the_same_and_less_that_of_others(tmp_path):
    config = config_of()
    found = finished_stages("one", config, estimate(config, CPU), {"base": result_of(config, 0.6, 1.3)}, CPU)
    history = History(tmp_path, CPU.name)
    history.add(found)
    wiser = history.known_of(CPU)

    def slower(depth, **asked):
        other = config_of(depth, **asked)
        return step_seconds(other, other.base, wiser) / step_seconds(other, other.base, CPU)

    assert slower(3) == pytest.approx(1 / 0.6, rel=0.05)
    assert 1.2 < slower(8) < slower(4) < slower(3)
    assert 1.1 < slower(3, compile="off") < slower(8), "of another way to compute what the machine's share of it is"
    memory = train_memory(config, config.base.device_batch_size, wiser)
    assert memory.total == pytest.approx(1.3 * train_memory(config, config.base.device_batch_size, CPU).total, rel=0.05)
    assert memory.unexplained > 0
    assert speed_sd(config, config.base, wiser) < 0.1 < 0.2 < speed_sd(config, config.base, CPU)
    assert "trainings known here: 1" in estimate(config, wiser).speed
    assert "assumed" in estimate(config, CPU).speed


def test_what_was_compiled_for_a_training_is_planned_to_be_found(tmp_path):
    config = config_of(compile="on")
    history = History(tmp_path, CPU.name)
    history.add(finished_stages("one", config, estimate(config, CPU), {"base": result_of(config, 1.0, 1.0)}, CPU))
    wiser = history.known_of(CPU)

    def seconds(hardware, **asked):
        other = config_of(**{"compile": "on", **asked})
        return compile_seconds(other, other.base.device_batch_size, hardware)

    assert seconds(CPU) > 20 > 5 > seconds(wiser) > 0
    assert seconds(wiser, depth=4) == seconds(wiser, device_batch_size=4) == seconds(CPU), "other widths, fewer tokens"
    assert seconds(wiser, max_seq_len=512, device_batch_size=8) == seconds(CPU), "as many tokens, in longer rows"
    assert seconds(wiser, compile="off") == 0


def test_what_a_plan_said_stands_beside_what_came_of_it(tmp_path):
    config = config_of()
    plan = estimate(config, CPU)
    (told,) = finished_stages("one", config, plan, {"base": result_of(config, 1.0, 1.0)}, CPU)
    assert told.planned_s == plan.stages[0].seconds
    assert told.took_s == pytest.approx(plan.stages[0].train_s + 5)
    assert told.took_bytes == pytest.approx(told.planned_bytes)
    assert told.training.speed == pytest.approx(1)
    assert told.training.memory == pytest.approx(1)


@pytest.mark.parametrize(
    "flaw", [{"iterations": 20}, {"starts": 2}, {"device_batch_size": 1}, {"train_s": 1.0}, {"num_workers": 2}]
)
def test_short_or_disturbed_trainings_teach_nothing(flaw):
    config = config_of()
    result = result_of(config, 0.6, 1.3) | flaw
    assert finished_stages("one", config, estimate(config, CPU), {"base": result}, CPU) == []


def test_a_run_that_comes_again_replaces_itself_and_the_oldest_go(tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat.planning.history.MOST_KEPT", 3)
    config, history = config_of(), History(tmp_path, CPU.name)
    training = measured(config, "base", CPU, 1000.0, 10**9)
    for at, run in enumerate("abbcd"):
        history.add([Finished(run, "base", float(at), 1.0, 1.0 + at, 1, 1, training, first=True)])
    assert [each.run for each in history.read()] == ["b", "c", "d"]
    assert [each.at for each in history.read()] == [2.0, 3.0, 4.0]
    assert History(tmp_path, "another").read() == []


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"run": "x"}]', '{"a": 1', "3"])
def test_a_damaged_history_says_nothing(tmp_path, content):
    config, history = config_of(), History(tmp_path, CPU.name)
    history.add([Finished("a", "base", 0.0, 1.0, 1.0, 1, 1, measured(config, "base", CPU, 1000.0, 10**9), True)])
    (path,) = (tmp_path / "plans").glob("*.json")
    path.write_text(content)
    assert history.read() == []
    assert history.known_of(CPU) == CPU


def test_plans_and_hardware_come_back_from_their_records():
    config = config_of()
    wiser = replace(CPU, trainings=(measured(config, "base", CPU, 1000.0, 10**9),))
    plan = estimate(config, wiser)
    for kind, thing in ((Plan, plan), (Hardware, wiser)):
        assert from_dict(kind, json.loads(json.dumps(asdict(thing)))) == thing


def test_a_machine_that_was_busy_when_a_run_was_planned_teaches_no_speed():
    """Its peak was measured at half of what the training itself then found: the share of the peak is what counts."""
    busy = replace(CPU, peak_flops={name: flops / 2 for name, flops in CPU.peak_flops.items()})
    config = config_of()
    result = result_of(config, 1.0, 1.0)
    result |= {"model_flops_per_second": 0.3 * CPU.peak_flops[config.compute_dtype], "peak_share": 0.3}
    (told,) = finished_stages("one", config, estimate(config, busy), {"base": result}, busy)
    assert told.training.speed == pytest.approx(1)


def test_with_a_deadline_the_plan_is_of_the_steps_that_were_made():
    """The clock ends the stage on time, whatever the steps took: half as many as planned is a plan off by two."""
    config = config_of(hours=0.2)
    plan = estimate(config, CPU)
    result = result_of(config, 0.5, 1.0) | {"iterations": plan.stages[0].iterations // 2}
    (told,) = finished_stages("one", config, plan, {"base": result}, CPU)
    assert told.planned_s == pytest.approx(plan.stages[0].train_s / 2 + plan.stages[0].other_s, rel=0.01)


def test_what_is_found_again_keeps_its_time(tmp_path):
    config, history = config_of(), History(tmp_path, CPU.name)
    one = Finished("a", "base", 1.0, 1.0, 1.0, 1, 1, measured(config, "base", CPU, 1000.0, 10**9), True)
    history.add([one])
    history.add([replace(one, at=2.0)])
    assert history.read() == [one]
    history.add([replace(one, stage="mid", first=False)])
    assert len(history.read()) == 2
    assert history.known_of(CPU).trainings == (one.training,)
