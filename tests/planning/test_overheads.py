"""What runs take besides their steps corrects later plans, and what was measured of something else does not."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.corpora import CORPORA
from nanochat.events import Prepared
from nanochat.planning.estimate import checkpoint_bytes, estimate
from nanochat.planning.hardware import DATA_SHEETS, Hardware, Overhead, Training
from nanochat.planning.history import History, finished_run
from nanochat.planning.overheads import (
    ANSWERING,
    ASSUMED_S,
    COMPILING,
    COMPILING_AGAIN,
    EVALUATING,
    SAVING,
    STARTING,
    TOKENISING,
    TOKENIZER,
    overhead_s,
    reserved_overhead_s,
    tokenising_s,
)
from nanochat.planning.preparing import There
from nanochat.planning.resolve import Request, resolve
from nanochat.training.result import StageResult

CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})
RATE, QUESTIONS, CHARACTERS, TOKENISED = 10_000.0, 4000, 40_000_000, (20_000_000, 30_000)
PARTS = set(ASSUMED_S) - {COMPILING_AGAIN}


def config_of(depth=3, **asked):
    return resolve(Request(depth=depth, total_batch_size=4096, compile="on", **asked), CPU, compiler="g++").config


def run_of(config, times, **flaws):
    """Results, what was prepared, and seconds of a run in which each part took so many times what is assumed."""

    def seconds(part, amount):
        return times.get(part, 1.0) * amount * ASSUMED_S[part]["cpu"]

    tokenizer = {"characters": CHARACTERS, "seconds": seconds(TOKENIZER, CHARACTERS)}
    assumed_s = tokenising_s(*TOKENISED, CPU.cpu_count)
    prepared = Prepared("tokenizer", 3.0, seconds(TOKENISING, assumed_s), *TOKENISED)
    took_s = seconds(STARTING, 1) + prepared.sources_s + prepared.tokenising_s + tokenizer["seconds"]
    results = {"tokenizer": tokenizer}
    for name in config.trained_stages:
        stage = config.stage(name)
        step_s, first = stage.total_batch_size / RATE, name == config.trained_stages[0]
        result = StageResult(
            name,
            iterations=stage.num_iterations,
            train_s=stage.num_iterations * step_s + first * seconds(COMPILING, 1),
            first_step_s=step_s + first * seconds(COMPILING, 1),
            evaluation_s=seconds(EVALUATING, stage.eval_tokens / RATE),
            answering_s=seconds(ANSWERING, QUESTIONS * config.model.depth) if name == "sft" else 0.0,
            save_stall_s=9.0 + seconds(SAVING, checkpoint_bytes(config.model)),
            last_save_s=seconds(SAVING, checkpoint_bytes(config.model)),
            tokens_per_second=RATE,
            starts=1,
            num_workers=1,
            device_batch_size=stage.device_batch_size,
            scores={"overall": {"accuracy": 0.5, "chance": 0.0, "count": QUESTIONS}} if name == "sft" else {},
        )
        result.other_s = result.evaluation_s + result.answering_s + result.save_stall_s
        results[name] = asdict(result) | flaws
        took_s += results[name]["train_s"] + results[name]["other_s"]
    return results, [prepared], took_s


def told_by(config, times, hardware=CPU, **flaws):
    results, prepared, took_s = run_of(config, times, **flaws)
    return finished_run("/runs/one", config, estimate(config, hardware), results, prepared, took_s, hardware)


def beside(plan, stage):
    return {each.what: each.seconds for each in plan.stages[stage].beside}


@given(st.dictionaries(st.sampled_from(sorted(PARTS)), st.floats(0.4, 20)))
def test_each_part_is_found_beside_what_was_assumed_of_it(times):
    found = {each.part: each.times for each in told_by(config_of(depth=12), {SAVING: 2.0} | times).overheads}
    assert found == {part: pytest.approx(({SAVING: 2.0} | times).get(part, 1.0)) for part in PARTS}


def test_what_a_command_did_before_its_plan_is_no_part_of_starting():
    config = config_of()
    results, prepared, took_s = run_of(config, {})
    told = finished_run("/runs/one", config, estimate(config, CPU), results, prepared, took_s + 40, CPU, unplanned_s=40)
    assert {each.part: each.times for each in told.overheads}[STARTING] == pytest.approx(1)
    assert told.took_s == took_s + 40


def test_what_is_over_in_a_moment_tells_nothing():
    """A save of a few megabytes waits for the disk, not for its bytes."""
    assert SAVING not in {each.part for each in told_by(config_of(depth=1), {SAVING: 2.0}).overheads}


def test_nor_does_a_run_that_saves_nothing_tell_of_saving():
    config = replace(config_of(depth=12), keep_checkpoints=0)
    assert {each.part for each in told_by(config, {SAVING: 2.0}).overheads} == PARTS - {SAVING}


def test_a_run_corrects_the_parts_of_the_next_plan_and_the_one_it_was_planned_by_is_audited(tmp_path):
    config, history = config_of(), History(tmp_path, CPU.name)
    run = told_by(config, {ANSWERING: 5.0, STARTING: 0.5})
    assert run.planned_s == pytest.approx(estimate(config, CPU).seconds)
    history.add([], run)
    assert history.read_runs() == [run]
    wiser = history.known_of(CPU)
    before, after = estimate(config, CPU), estimate(config, wiser)
    asking = "answering questions"
    assert beside(after, 2)[asking] == pytest.approx(5 * beside(before, 2)[asking], rel=0.2)
    assert after.preparing[0].seconds == pytest.approx(0.5 * before.preparing[0].seconds, rel=0.1)
    assert beside(after, 0)["evaluating"] == pytest.approx(beside(before, 0)["evaluating"])
    assert (before.runs_known, after.runs_known) == (0, 1)


def test_only_the_latest_runs_count(tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat.planning.history.RUNS_HEEDED", 2)
    config, history = config_of(), History(tmp_path, CPU.name)
    for number, times in enumerate((9.0, 2.0, 3.0)):
        run = told_by(config, {STARTING: times})
        history.add([], replace(run, run=f"/runs/{number}", at=float(number)))
    known = [each.times for each in history.known_of(CPU).overheads if each.part == STARTING]
    assert known == pytest.approx([2.0, 3.0])


def test_the_more_runs_agree_the_less_is_assumed():
    def after(count):
        return overhead_s(STARTING, 1, replace(CPU, overheads=(Overhead(STARTING, 2.0),) * count))

    assert after(0) == ASSUMED_S[STARTING]["cpu"] < after(1) < after(4) < 2 * after(0) < 1.02 * after(10)


def test_what_must_suffice_is_never_less_than_a_multiple_of_what_is_assumed():
    quick, slow = (replace(CPU, overheads=(Overhead(SAVING, times),) * 5) for times in (0.2, 9.0))
    assert reserved_overhead_s(SAVING, 1e9, quick, 2.0) == 2 * overhead_s(SAVING, 1e9, CPU)
    learned = overhead_s(SAVING, 1e9, slow)
    assert reserved_overhead_s(SAVING, 1e9, slow, 2.0) == learned > 8 * overhead_s(SAVING, 1e9, CPU)


@pytest.mark.parametrize("flaw", [{"starts": 2}, {"starts": 0}, {"num_workers": 2}, {"device_batch_size": 1}])
def test_a_run_that_went_otherwise_than_planned_teaches_nothing(flaw):
    assert told_by(config_of(), {}, **flaw) is None


def test_nor_does_one_that_was_prepared_twice_or_has_not_ended():
    config = config_of()
    results, prepared, took_s = run_of(config, {})
    plan = estimate(config, CPU)
    assert finished_run("/runs/one", config, plan, results, 2 * prepared, took_s, CPU) is None
    del results["sft"]
    assert finished_run("/runs/one", config, plan, results, prepared, took_s, CPU) is None


def known_to_be_compiled(config):
    rows = config.base.device_batch_size * config.model.max_seq_len
    training = Training(config.compute_dtype, True, 1, 3, config.model.width, rows, 1.0, 1.0, config.model.max_seq_len)
    return replace(CPU, trainings=(training,))


def test_compiling_and_finding_it_compiled_are_told_apart():
    config = config_of()
    for hardware, seconds, part in ((CPU, 30.0, COMPILING), (CPU, 9.0, COMPILING), (CPU, 4.0, None),
                                    (known_to_be_compiled(config), 3.5, COMPILING_AGAIN),
                                    (known_to_be_compiled(config), 10.0, COMPILING_AGAIN),
                                    (known_to_be_compiled(config), 25.0, None)):  # fmt: skip
        told = told_by(config, {COMPILING: seconds / ASSUMED_S[COMPILING]["cpu"]}, hardware)
        found = {each.part: each.times for each in told.overheads if each.part in (COMPILING, COMPILING_AGAIN)}
        assert found == ({part: pytest.approx(seconds / ASSUMED_S[part]["cpu"])} if part else {})


def test_what_waited_for_downloads_says_nothing_of_this_machine():
    config = config_of(data=next(iter(CORPORA)))
    parts = {each.part for each in told_by(config, {}).overheads}
    assert STARTING in parts
    assert not {TOKENISING, TOKENIZER} & parts


@pytest.mark.parametrize("times", [1e-4, 1e4])
def test_nonsense_is_not_kept(times):
    assert ANSWERING not in {each.part for each in told_by(config_of(), {ANSWERING: times}).overheads}


@pytest.mark.parametrize("times", [-1.0, 0.0, float("nan"), float("inf")])
def test_nor_is_it_heeded_where_somebody_has_written_it(tmp_path, times):
    history, config = History(tmp_path, CPU.name), config_of()
    history.add([], replace(told_by(config, {}), overheads=(Overhead(STARTING, times), Overhead(SAVING, 2.0))))
    known = history.known_of(CPU)
    assert known.overheads == (Overhead(SAVING, 2.0),)
    assert estimate(config, known).seconds > 0


def test_time_is_divided_by_what_is_there():
    """Of half an hour with public data four minutes are not kept for fetching what is there."""
    here = replace(DATA_SHEETS["h100"], measured=True)
    request = Request(depth=12, hours=0.5, data="climbmix", chat="public")
    everything = There(world=True, conversations=True, text_bytes=10**15, tokens=True)
    config = resolve(request, here, compiler=None, attention="sdpa", there=lambda config: everything).config
    plan = estimate(config, here, 1, everything)
    assert 0.97 * 1800 < plan.seconds <= 1800
    assert all(stage.iterations < config.stage(stage.stage).num_iterations for stage in plan.stages), "by the clock"


def test_what_is_there_is_planned_neither_to_be_made_nor_to_be_fetched():
    def parts(config, **there):
        return {each.what: each.seconds for each in estimate(config, CPU, 1, There(**there)).preparing}

    config = config_of()
    assert set(parts(config)) - set(parts(config, world=True)) == {"making TinyWorld"}
    assert set(parts(config)) - set(parts(config, tokens=True)) == {"tokenising"}
    public = config_of(data="fineweb-edu", chat="public")
    assert "making TinyWorld" not in parts(public)
    assert "making TinyWorld" in parts(replace(public, stages=("tokenizer", "base"))), "for its questions"
    everything = estimate(public, CPU).download_bytes
    assert set(parts(public)) - set(parts(public, conversations=True)) == {"conversations"}
    assert estimate(public, CPU, 1, There(conversations=True)).download_bytes == everything - 10**9
    assert parts(public, text_bytes=everything)["tokenising"] == parts(public)["tokenising"]
    assert "downloading" in parts(public, text_bytes=1)
    assert "downloading" not in parts(public, text_bytes=everything)
