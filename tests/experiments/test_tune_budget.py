"""The search as a user runs it: its mistakes, its trials through Ray Tune, and its end within the hours."""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import cli, preparation, tune_budget
from experiments.budget_search import Asked, BudgetSearch
from experiments.faults import VARIABLE, Fault, struck, write_plan
from experiments.ray_tune import PolicySearcher, Search, _resources, run_trials
from experiments.search_report import hours_table
from nanochat.clock import start_clock
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.planning.hardware import Hardware, detect_hardware, named_hardware
from nanochat.planning.history import History
from nanochat.planning.preparing import begins_s
from nanochat.planning.resolve import Request
from nanochat.run import Run
from nanochat.search import policy as policy_module
from nanochat.search.decisions import Commit, Config, Observation, Trial

ROOT = Path(__file__).parents[2]
CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})


def search_of(
    directory: Path, hours: float, hardware: Hardware = CPU, space: str = "budget", **request: object
) -> BudgetSearch:
    return BudgetSearch(Run(directory), Asked(Request(hours=hours, **request), space), hardware)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--hours", "0"], "positive"),
        (["--hours", "0.01"], "too few"),
        (["--hours", "inf"], "finite, not inf"),
        (["--hours", "nan"], "finite, not nan"),
        (["--hours", "1", "--seed", "-1"], "--seed must not be negative"),
        (["--hours", "1", "--num-workers", "6"], "change --num-workers"),
        (["--hours", "1", "--stages", "mid,sft"], "must begin with base"),
        (["--hours", "1", "--stages", "base,fine"], "no stage 'fine'"),
        (["--hours", "1", "--space", "bugdet"], "no search space 'bugdet'"),
        (["--hours", "1", "--space", "nowhere/x.py"], "cannot read"),
        (["--hours", "1", "--space", "sft"], "--from RUN"),
        (["--hours", "1", "--space", "sft", "--from", "nowhere"], "nowhere"),
        (["--hours", "1", "--space", "sft", "--from", "x", "--policy", "budget"], "knows base models only"),
        (["--hours", "1", "--space", "sft", "--from", "x", "--stages", "base"], "must begin with sft"),
        (["--hours", "1", "--from", "x"], "for spaces of mid or sft"),
        (["--hours", "1", "--data", "nowhere"], "no such file"),
        (["--hours", "1", "--chat", "nowhere"], "no such file"),
        (["--hours", "1", "--num-workers", "0"], "at least 1"),
        (["--hours", "1", "--name", "../x"], "cannot be the name"),
    ],
)
def test_mistakes_are_one_line_and_a_hint(tmp_path, capsys, monkeypatch, options, says):
    monkeypatch.setattr(tune_budget, "this_machine", lambda **asked: CPU)
    assert cli.run(tune_budget.main, [*options, "--runs-dir", str(tmp_path / "runs"), "--plan"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "hint: " in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_the_plan_says_what_would_be_tried(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune_budget, "this_machine", lambda **asked: CPU)
    assert cli.run(tune_budget.main, ["--hours", "6", "--plan", "--runs-dir", str(tmp_path / "runs")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in ("6 h 00 min in all", "are reserved", "go to trials", "depth 1 to", "What other hours would buy",
                 "What would be trained", "FLOPs", "memory of base"):  # fmt: skip
        assert part in out
    assert not (tmp_path / "runs").exists()


def test_a_search_compiles_where_its_hours_repay_it(tmp_path):
    minutes, hours = (search_of(tmp_path / str(hours), hours).template for hours in (0.025, 0.2))
    assert not minutes.compile
    assert hours.compile
    assert not search_of(tmp_path / "off", 0.2, compile="off").template.compile
    assert search_of(tmp_path / "web", 0.08, data="climbmix", chat="public").template.model.depth, "and is not refused"


def test_more_hours_are_predicted_to_buy_a_better_model(tmp_path):
    for hours in (0.1, 1.0, 10.0):
        rows = hours_table(search_of(tmp_path / "r", hours)).rows
        predicted = [float(row[-1].split()[0]) for row in rows]
        assert predicted == pytest.approx(sorted(predicted, reverse=True), abs=0.002)


def test_other_hours_are_those_of_a_search_that_is_given_them(tmp_path, monkeypatch):
    """Starting, preparing and the end take no longer for more hours; and too few are no row."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))  # nothing is prepared, and no speed is known
    few, more = (hours_table(search_of(tmp_path / str(hours), hours)).rows for hours in (0.1, 0.2))
    assert few[1:] == more[:3]
    assert [row[0] for row in hours_table(search_of(tmp_path / "few", 0.02, stages=("tokenizer", "base"))).rows] == [
        "0.02", "0.04", "0.08"]  # fmt: skip


def test_a_given_depth_is_kept_and_a_batch_space_varies_the_batch(tmp_path):
    assert search_of(tmp_path / "r", 1.0, depth=3).policy.best(600).depth == 3
    fixed = search_of(tmp_path / "r", 1.0, space="batch")
    assert {config.depth for config in fixed.policy._grid(600, 1.0)} == {fixed.template.model.depth}


def test_the_plan_knows_how_much_text_there_is_before_it_is_tokenised(tmp_path):
    """TinyWorld, and text of the user's: counted, it is about as much, and the same is chosen."""
    (tmp_path / "words.txt").write_text("a few words\n\n" * 1_000_000)
    for data, counted in (("tinyworld", 2_500_000), (str(tmp_path / "words.txt"), 2_700_000)):
        search = search_of(tmp_path / "r", 6.0, named_hardware("h100", 1), data=data)
        assert search.policy.unique_tokens == pytest.approx(counted, rel=0.1)
        chosen, told, untold = (
            policy.best(policy.final_seconds(0.0))
            for policy in (search.policy, search._policy(counted), search._policy(math.inf))
        )
        values = [search.policy.predict(config, config.tokens)[0] for config in (chosen, told)]
        assert values[0] == pytest.approx(values[1], abs=0.005)
        assert (chosen.ends_early, told.ends_early, untold.ends_early) == (True, True, False)
    assert search_of(tmp_path / "r", 6.0, data="climbmix", chat="public").policy.unique_tokens > 1e11


def test_where_the_text_is_little_the_final_run_ends_before_its_hours(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune_budget, "this_machine", lambda **asked: CPU)
    (tmp_path / "words.txt").write_text("a few words\n\n" * 10_000)
    asked = ["--hours", "6", "--data", str(tmp_path / "words.txt"), "--plan", "--runs-dir", str(tmp_path / "runs")]
    assert cli.run(tune_budget.main, asked) == 0
    assert "so its training ends before the hours do" in " ".join(capsys.readouterr().out.split())
    search = search_of(tmp_path / "r", 6.0, data=asked[3])
    config, record = search.commit(search.policy._commit(60.0), 60.0, tmp_path)
    (base,) = (stage for stage in search.run.plan(record).stages if stage.stage == "base")
    assert base.iterations == config.base.num_iterations == search.choice()["config"]["num_iterations"]
    assert base.seconds < 3600
    assert "far more would harm it" in record["reasons"][0]
    assert not any("by heart" in reason for reason in record["reasons"]), "it is not"


@pytest.mark.parametrize(("prepared", "limited"), [(None, True), (20_000, False)])
def test_how_much_text_there_is_is_counted_once_and_kept(tmp_path, cache, prepared, limited):
    """Text that is short of what was asked for is limited; `prepared` is what an earlier version wrote down."""
    (tmp_path / "words.txt").write_text("\n\n".join(f"the number {number}" for number in range(50_000)))
    asked = {"hours": 1.0, "data": str(tmp_path / "words.txt"), "stages": ("tokenizer", "base"), "max_seq_len": 128,
             "assignments": ("tokenizer.vocab_size=512",)}  # fmt: skip
    search = search_of(tmp_path / "r", **asked)
    estimated = search.policy.unique_tokens
    if prepared:
        write_json(search._data_path, {"train_tokens": prepared})
    search.prepare(lambda text: None)
    counted = search.policy.unique_tokens
    assert math.isinf(counted) if not limited else counted != estimated
    assert search_of(tmp_path / "r", **asked).policy.unique_tokens == counted


@pytest.mark.parametrize("hours", [0.05, 0.2, 2.0])
def test_what_the_plan_shows_is_what_would_be_committed_to(tmp_path, hours):
    """Without trials, once all is prepared: the same iterations, compiled as all of the search is, whatever the final
    run alone would do; and all of it within the hours."""
    search = search_of(tmp_path / "r", hours)
    shown, record = search.outlook(tmp_path)
    chosen = search.policy.best(search.training_s(3600 * hours), search.policy.device.final_devices)
    (search.run.directory / "search").mkdir(parents=True)
    plan = search.run.plan(record)
    now_s = begins_s(plan.preparing, search.hardware) - search.policy.overheads.final_s + search._compile_s()
    assert search.policy.final_seconds(now_s) == pytest.approx(search.training_s(3600 * hours))
    committed, _ = search.commit(Commit(chosen, search.policy.final_seconds(now_s), "because"), now_s, tmp_path)
    assert committed.base == shown.base
    assert 0.9 * 3600 * hours < plan.seconds <= 3600 * hours
    assert committed.compile == shown.compile == search.template.compile
    told = [reason for reason in record["reasons"] if reason.startswith("torch.compile")]
    assert told == [f"torch.compile {'on' if shown.compile else 'off'}: as in all of this search"]


def test_the_plan_of_the_final_run_counts_from_where_the_hours_are(tmp_path):
    search, now_s = search_of(tmp_path / "r", 0.5), 450.0
    seconds = search.policy.final_seconds(now_s)
    config, record = search.commit(Commit(search.policy.best(seconds), seconds, "because"), now_s, tmp_path)
    plan = search.run.plan(record)
    begins_s = now_s + search.policy.overheads.final_s - search._compile_s()
    of_stages_s = sum(stage.seconds for stage in plan.stages)
    assert begins_s + of_stages_s < search.asked.cap_s < 1.05 * (begins_s + of_stages_s)
    assert plan.stages[0].iterations < config.base.num_iterations


def test_a_trial_that_is_taken_over_leaves_the_rest_of_the_hours_to_later_stages(tmp_path):
    search, now_s = search_of(tmp_path / "r", 0.5), 1200.0
    chosen = search.policy.best(600.0)
    search.run.tokenizer_directory.mkdir(parents=True)
    trial = search.create_trial(tmp_path / "t", search.trial_config(chosen, num_iterations=chosen.num_iterations))
    (trial.directory / "base").mkdir()
    config, record = search.adopt(trial, chosen, "because", now_s, tmp_path)
    base, *later = search.run.plan(record).stages
    assert base.iterations == chosen.num_iterations
    assert [stage.stage for stage in later] == ["mid", "sft"]
    assert now_s + sum(stage.seconds for stage in later) < search.asked.cap_s
    assert all(0 < stage.iterations < config.stage(stage.stage).num_iterations for stage in later)


def test_another_command_for_the_same_search_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune_budget, "this_machine", lambda **asked: CPU)
    search = search_of(tmp_path / "runs" / "budget", 1.0, seed=3)
    tune_budget._note(search)
    tune_budget._as_before(search.run, Asked(Request(hours=1.0, seed=3), "budget"))
    tune_budget._as_before(search.run, Asked(Request(hours=1.0, seed=3, num_workers=2), "budget"))
    other_policy = replace(search.asked, policy="asha")
    with pytest.raises(UserError, match="another --policy"):
        tune_budget._as_before(search.run, other_policy)
    assert cli.run(tune_budget.main, ["--hours", "2", "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "--seed, --hours" in capsys.readouterr().err


def test_a_search_goes_on_with_its_data_where_a_new_one_would_take_other(tmp_path, capsys, monkeypatch):
    """A GPU machine's command, as far as the choice of data goes."""
    monkeypatch.setattr(preparation, "device_type", lambda: "cuda")
    tune_budget._note(search_of(tmp_path / "runs" / "budget", 1.0, stages=("tokenizer", "base", "mid", "sft")))
    asked = ["--hours", "1", "--plan", "--runs-dir", str(tmp_path / "runs")]
    assert cli.run(tune_budget.main, asked) == 0
    assert "data tinyworld" in capsys.readouterr().out
    assert cli.run(tune_budget.main, [*asked, "--data", "climbmix"]) == 2
    assert "another --data, --chat" in capsys.readouterr().err


def test_a_plan_for_other_hardware_knows_nothing_of_a_search_here(tmp_path, capsys):
    command = ["--hours", "6", "--plan", "--hardware", "h100", "--runs-dir", str(tmp_path / "runs")]
    assert cli.run(tune_budget.main, command) == 0
    before = capsys.readouterr().out
    search = search_of(tmp_path / "runs" / "budget", 1.0)
    search.policy.observe(Observation(Config(2, 4096, 5.0, 1000), 4_096_000, 100.0, 20.0, 40_000.0, 1.7))
    write_json(search.journal, search.policy.state_dict())
    write_json(search._data_path, {"train_tokens": 1_000_000, "unique_tokens": 100_000})
    assert cli.run(tune_budget.main, command) == 0
    after = capsys.readouterr().out
    assert re.sub(r"It ends before.*", "", after) == re.sub(r"It ends before.*", "", before)


def test_hours_that_are_too_few_can_be_given_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune_budget, "this_machine", lambda **asked: CPU)
    for hours in ("0.01", "0.011"):
        assert cli.run(tune_budget.main, ["--hours", hours, "--runs-dir", str(tmp_path / "runs")]) == 2
        assert "too few" in capsys.readouterr().err


def test_a_search_that_has_begun_is_not_refused_for_what_is_estimated_since(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune_budget, "too_few", lambda training_s, cap_s: True)
    search, asked = search_of(tmp_path / "runs" / "budget", 1.0), ["--hours", "1", "--plan", "--runs-dir", "runs"]
    monkeypatch.chdir(tmp_path)
    tune_budget._note(search)
    assert cli.run(tune_budget.main, asked) == 2
    assert "1 hours are too few: " in capsys.readouterr().err
    write_json(search.journal, search.policy.state_dict())
    assert cli.run(tune_budget.main, asked) == 0


def test_more_workers_than_gpus_are_refused_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    four = replace(CPU, device_type="cuda", device_count=4, peak_flops={"bfloat16": 3e14, "float32": 1e14})
    monkeypatch.setattr(tune_budget, "this_machine", lambda **asked: four)
    options = ["--hours", "6", "--num-workers", "8", "--runs-dir", str(tmp_path)]
    assert cli.run(tune_budget.main, options) == 2
    assert "there are 4 GPUs" in capsys.readouterr().err


def test_the_machine_is_measured_once_for_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_budget, "this_machine", lambda **asked: CPU)
    search = search_of(tmp_path / "r", 1.0)
    tune_budget._note(search)
    monkeypatch.setattr(tune_budget, "this_machine", pytest.fail)
    assert tune_budget._hardware(search.run, search.asked) == CPU


def test_what_a_search_saw_is_the_next_ones_prior(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "cache"))
    first = search_of(tmp_path / "a", 1.0, data="words.txt")
    config = Config(2, 4096, 5.0, 1000)
    rate = first.policy.tokens_per_second(2, 4096)
    first.policy.observe(Observation(config, config.tokens, 100.0, 20.0, rate / 2, 1.7))
    first.policy.observe(Observation(config, 0, 100.0, 20.0, 0.0, None, "the worker died"))
    first.remember()
    first.remember()  # the command of a finished search, repeated
    second = search_of(tmp_path / "b", 1.0, data="words.txt")
    assert second.policy.predict(config, config.tokens)[0] == pytest.approx(1.7, abs=0.03)
    assert second.policy.tokens_per_second(2, 4096) == pytest.approx(rate / 2, rel=0.05)
    assert len(second.policy.remembered) == 1
    assert second.policy.explored_s == 0
    fresh = BudgetSearch(Run(tmp_path / "c"), replace(second.asked, fresh_prior=True), CPU)
    elsewhere = search_of(tmp_path / "d", 1.0, data="other.txt")
    for other in (fresh, elsewhere):
        assert other.policy.predict(config, config.tokens)[0] != pytest.approx(1.7, abs=0.03)


def test_a_worker_serves_trials_of_one_depth_as_long_as_it_gives_its_memory_back(tmp_path):
    search = search_of(tmp_path / "r", 1.0)
    search.run.tokenizer_directory.mkdir(parents=True)
    search.policy._pending = [Trial(Config(depth, 512, 5.0, 40), 3.0, "to see") for depth in (2, 2, 3, 2, 2)]
    search.policy.exploring = False
    at_work = Search(search.run, search.policy, lambda: 0.0, search.make_trial, lambda name, seen: None)
    searcher = PolicySearcher(at_work)
    asked = []
    for number, released in enumerate((True, True, True, False, True)):
        asked.append(_resources({"CPU": 1.0, "GPU": 0.0}, searcher.suggest(str(number))))
        searcher.on_trial_complete(str(number), {"error": "it was not trained", "released": released})
    assert asked[0] == asked[1] == asked[3]
    assert len({request.required_resources["memory"] for request in asked}) == 3  # another depth, and a worn worker
    assert asked[4] not in asked[:4]


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_trials_go_through_tune_and_what_fails_is_data(tmp_path, cache, monkeypatch):
    """Three real trials in Ray's processes: one is trained, one finds its configuration broken, one is trained after
    it; each is in the journal before the next, and a search taken up again repeats none."""
    monkeypatch.setattr(policy_module, "CAP_IN_TRIALS", 0.0)
    hardware = detect_hardware()
    search = search_of(tmp_path / "r", 1.0, hardware, max_seq_len=128, compile="off", depth=1,
                       assignments=("tokenizer.vocab_size=512", "tokenizer.max_chars=300000"))  # fmt: skip
    search.prepare(lambda text: None)
    configs = [Config(1, 512, 5.0, 40), Config(1, 512, 2.5, 40), Config(1, 1024, 5.0, 40)]
    search.policy._pending = [Trial(config, 30.0, "to see") for config in configs]
    monkeypatch.setattr(policy_module, "MAX_EXPLORED", 0.0)  # nothing after these
    clock = start_clock(search.run.clock_path, time.time())
    told: list[Observation] = []
    journals = []

    def tell(name: str, seen: Observation) -> None:
        told.append(seen)
        journals.append(json.loads((search.run.directory / "search" / "policy.json").read_text()))

    def make_trial(trial: Trial, directory: Path) -> Run:
        run = search.make_trial(trial, directory)
        if trial.config == configs[1]:
            (run.tokenizer_directory / "tokenizer.json").write_text("{}")
        return run

    run_trials(Search(search.run, search.policy, clock, make_trial, tell), hardware, lambda: None)
    assert [seen.config for seen in told] == configs
    assert [bool(seen.error) for seen in told] == [False, True, False]
    for seen in (told[0], told[2]):
        assert seen.tokens == seen.config.tokens
        assert 1.0 < seen.val_bpb < 4.0
        assert seen.tokens_per_second > 100
        assert 0 < seen.startup_s < 60
    assert [len(journal["observations"]) for journal in journals] == [1, 2, 3]
    assert isinstance(search.policy.decide(clock()), Commit)
    assert not list((search.run.directory / "search").rglob("*.safetensors"))
    again = search_of(tmp_path / "r", 1.0, hardware, max_seq_len=128, compile="off", depth=1)
    assert again.policy.observations == search.policy.observations
    assert isinstance(again.policy.decide(clock()), Commit)


EAGER = """
import sys
from experiments import cli, tune_budget
from nanochat.search import policy
policy.CAP_IN_TRIALS, policy.MAX_EXPLORED, policy.MIN_TRIAL_STEPS, policy.WORTH = 0.0, 0.3, 20, -1.0
tune_budget.MOST_ON_TRIALS = 0.5
sys.exit(cli.run(tune_budget.main))
"""  # trials whatever they are worth


@pytest.mark.ray
@pytest.mark.timeout(280)
def test_killed_in_a_trial_and_in_the_final_run_it_ends_within_its_hours_with_a_model_and_its_evidence(tmp_path, cache):
    hours, plan = 130 / 3600, tmp_path / "faults.json"
    write_plan(plan, [Fault("update", "worker", 12)])
    command = [sys.executable, "-c", EAGER, "--hours", str(hours), "--stages", "base", "--compile", "off",
               "--data", "tinyworld", "--max-seq-len", "128", "--runs-dir", str(tmp_path)]  # fmt: skip
    run = Run(tmp_path / "budget")
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as first:
        wait_for(lambda: list((run.directory / "search" / "trials").glob("*/base/metrics.jsonl")), 90)
        first.kill()
    spent_s = time.monotonic() - began
    before = json.loads((run.directory / "search" / "policy.json").read_text())
    began = time.monotonic()
    faulty = {**os.environ, VARIABLE: str(plan)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=faulty)
    spent_s += time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    assert spent_s < 3600 * hours + 2  # the clock of a command that is killed ends with its last beat
    assert struck(plan)
    assert run.results()["base"]["iterations"] > 20
    known = History(cache, run.hardware().name).read_runs()
    assert not [each for each in known if each.run == str(run.directory)], "its plan knew of no trials"
    after = json.loads((run.directory / "search" / "policy.json").read_text())
    assert after["observations"][: len(before["observations"])] == before["observations"]
    assert {"depth", "val_bpb"} <= set(done.stdout.split())
    report = run.report_path.read_text()
    for part in ("Chosen: depth", "Predicted val_bpb", "achieved", "The law", "Where the hours went", "other hours"):
        assert part in report
        assert part in done.stdout.replace("\n", " ")
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stdout + again.stderr


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
