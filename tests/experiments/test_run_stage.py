"""The main job as a user runs it: real processes, real signals, real Ray."""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from experiments import cli, preparation, session
from experiments import run_stage as run_stage_script
from experiments.faults import VARIABLE, Fault, write_plan
from nanochat.clock import RunClock
from nanochat.config import from_dict
from nanochat.data.sources import cache_directory
from nanochat.events import Prepared, Sampled, StepDone, TasksScored, read_events
from nanochat.files import write_json
from nanochat.model import ModelConfig
from nanochat.planning.estimate import Plan
from nanochat.planning.hardware import DATA_SHEETS, detect_hardware
from nanochat.planning.history import History
from nanochat.planning.overheads import ASSUMED_S, STARTING
from nanochat.planning.resolve import Request
from nanochat.report import time_parts
from nanochat.run import Run
from nanochat.training.checkpoint import CheckpointStore
from tests.small_run import TINY, Whole, command, final_weights, run_stage


@pytest.fixture(scope="module")
def runs(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which one, "whole", is finished."""
    directory = tmp_path_factory.mktemp("runs")
    whole.copied_to(directory)
    return directory


@pytest.mark.ray
def test_the_whole_way_says_what_it_does(whole, runs):
    text = whole.said
    for part in (
        "Plan (all figures are estimates)",
        "Estimated:",
        "base: 24 steps",
        "mid: 16 steps",
        "sft: 16 steps",
        "you:",
        "nanochat:",
        "of peak",
        "time est.",
        "memory est.",
        "accuracy",
        "chance",
        f"chat.py {whole.run.directory}\n",  # not in ./runs, where names are looked for
        "report.md",
    ):
        assert part in text
    assert "Traceback" not in whole.complained
    assert not re.search(r"\(pid=|\[202|WARNING|INFO", whole.complained), whole.complained  # Ray is silent
    assert "\x1b[" not in text  # piped: plain lines
    run = Run(runs / "whole")
    assert run.status().state == "done"
    assert set(run.results()) == {"tokenizer", "base", "mid", "sft"}
    report = run.report_path.read_text()
    assert "Task accuracies after sft" in report
    events = list(read_events(run.directory, "sft"))
    assert [event.step for event in events if isinstance(event, StepDone)] == list(range(1, 17))
    assert any(isinstance(event, TasksScored) for event in events)
    assert any(isinstance(event, Sampled) for event in events)


@pytest.mark.ray
def test_val_bpb_falls_in_every_stage(runs):
    for stage, result in Run(runs / "whole").results().items():
        if stage != "tokenizer":
            assert result["val_bpb"] < result["first_val_bpb"]


def begun(runs, name, *options, **how):
    """The command as a process of which all that it says can be read."""
    argv = command(runs, name, *TINY, *options)
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=runs, **how)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_ctrl_c_saves_and_the_same_command_resumes(runs, capsys):
    process = begun(runs, "stopped", start_new_session=True)
    run, again = Run(runs / "stopped"), command(runs, "stopped", *TINY)[2:]
    try:
        wait_until(run.exists, 60)
        assert cli.run(run_stage_script.main, again) == 2  # a second process on the same run
        assert f"in use by process {process.pid}" in capsys.readouterr().err
        wait_until(lambda: last_step(run, "base") >= 8, 120)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole group
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert run.status().state == "interrupted"
    stage = next(stage for stage in ("sft", "mid", "base") if CheckpointStore(run.checkpoints(stage)).steps())
    stopped_at = CheckpointStore(run.checkpoints(stage)).newest(pytest.fail).step
    assert cli.run(run_stage_script.main, [*again, "--seed", "1"]) == 2
    assert "--seed 0 -> 1" in capsys.readouterr().err
    resumed = run_stage(runs, "stopped", *TINY)
    assert resumed.returncode == 0, resumed.stderr
    if stage == "base" and stopped_at < 24:  # steps this small can outrun the signal
        assert f"resumed at step {stopped_at}" in resumed.stdout
    same_weights(final_weights(runs, "stopped"), final_weights(runs, "whole"))
    history = History(cache_directory(), run.hardware().name)
    assert not [each for each in history.read_runs() if each.run == str(run.directory)], "it did not go through at once"


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_a_second_ctrl_c_ends_at_once_and_says_so_in_a_line(runs):
    write_plan(runs / "hung.json", [Fault("update", "hung", 4)])  # so that the first is of no avail
    process = begun(runs, "hung", env={**os.environ, VARIABLE: str(runs / "hung.json")})
    run = Run(runs / "hung")
    try:
        wait_until(lambda: run.exists() and last_step(run, "base") >= 3, 120)
        process.send_signal(signal.SIGINT)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "the same command continues" in output
    assert "Traceback" not in output
    assert "Error" not in output


LONG = ("--set", "base.num_iterations=100000", "--set", "base.eval_every=100000", "--set", "base.checkpoint_every=20")


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_sigterm_to_the_whole_group_is_answered_by_the_run(runs):
    """As `timeout` and shells send it: Ray's own processes obeyed it too, and the command waited for them for a minute
    and was aborted, its status "running"."""
    process, run = begun(runs, "terminated", *LONG, start_new_session=True), Run(runs / "terminated")
    try:
        wait_until(lambda: run.exists() and last_step(run, "base") >= 3, 120)
        os.killpg(process.pid, signal.SIGTERM)
        output = process.communicate(timeout=30)[0]
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert run.status().state == "interrupted"
    assert CheckpointStore(run.checkpoints("base")).newest(pytest.fail).step >= 3


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_ray_ended_from_outside_is_told_in_a_line(runs):
    process, run = begun(runs, "bereft", *LONG), Run(runs / "bereft")
    try:
        wait_until(lambda: run.exists() and last_step(run, "base") >= 25, 120)
        (raylet,) = (each for each in psutil.Process(process.pid).children() if each.name() == "raylet")
        raylet.kill()
        output = process.communicate(timeout=30)[0]
    finally:
        process.kill()
    assert process.returncode == 2, output
    assert "error: Ray was ended from outside" in output
    assert "Traceback" not in output
    assert run.status().state == "failed"


@pytest.mark.ray
def test_begun_on_two_workers_and_ended_on_one_the_losses_are_those_of_one(runs, monkeypatch):
    base = [*TINY, "--stage", "tokenizer,base"]
    write_plan(runs / "faults.json", [Fault("forward", "terminated", 12)])
    monkeypatch.setenv(VARIABLE, str(runs / "faults.json"))
    begun = run_stage(runs, "two", *base, "--num-workers", "2")
    assert begun.returncode == 130, begun.stderr
    ended = run_stage(runs, "two", *base, "--num-workers", "1")
    assert ended.returncode == 0, ended.stderr
    assert "resumed at step" in ended.stdout
    one, two = (
        [event.loss for event in read_events(runs / name, "base") if isinstance(event, StepDone)]
        for name in ("whole", "two")
    )
    assert two == pytest.approx(one, rel=2e-3)
    assert two[0] == pytest.approx(one[0], rel=1e-6)


@pytest.mark.ray
def test_sft_can_start_from_another_run(runs):
    done = run_stage(runs, "tuned", *TINY[TINY.index("--max-seq-len") :], "--stage", "sft", "--from", "whole")
    assert done.returncode == 0, done.stderr
    assert set(Run(runs / "tuned").results()) == {"sft"}
    fingerprints = {
        json.loads((runs / name / "tokenizer" / "tokenizer.json").read_text())["fingerprint"]
        for name in ("whole", "tuned")
    }
    assert len(fingerprints) == 1


def test_plan_only_writes_nothing(tmp_path):
    done = run_stage(tmp_path, "planned", "--mode", "small", "--plan")
    assert done.returncode == 0
    assert "2,000" in done.stdout
    assert not (tmp_path / "planned").exists()


def test_the_next_plan_knows_what_the_last_run_took_and_left(whole, tmp_path, capsys):
    """`whole` made the built-in data and its tokens, and went through by one command."""
    (prepared,) = (each for each in read_events(whole.run.directory, "tokenizer") if isinstance(each, Prepared))
    assert prepared.tokenising_s > 0
    history = History(cache_directory(), whole.run.hardware().name)
    (told,) = (each for each in history.read_runs() if each.run == str(whole.run.directory))
    assert told.took_s == pytest.approx(sum(time_parts(whole.run).values()), abs=3)
    assert {"starting, ending", "data and tokenizer", "sft: training"} <= time_parts(whole.run).keys()
    assert all(seconds >= 0 for seconds in time_parts(whole.run).values())
    assert run_stage_script.main(["--name", "next", "--runs-dir", str(tmp_path), *TINY, "--plan"]) == 0
    again = capsys.readouterr().out
    assert "runs known here: " in again
    assert "training the tokenizer" in again
    assert "making TinyWorld" not in again
    assert "tokenising" not in again
    assert run_stage_script.main(["--name", "other", "--runs-dir", str(tmp_path), *TINY, "--plan",
                                  "--set", "tokenizer.vocab_size=555"]) == 0  # fmt: skip
    assert "tokenising" in capsys.readouterr().out


@pytest.mark.parametrize("slow", ["check_conversations", "resolve"])
def test_seconds_that_later_runs_need_not_spend_are_known(tmp_path, monkeypatch, slow):
    """Reading what was named, measuring kernels."""
    as_it_was = getattr(preparation, slow)

    def slowly(*asked, **named):
        time.sleep(2)
        return as_it_was(*asked, **named)

    monkeypatch.setattr(preparation, slow, slowly)
    assert 2 <= preparation.new_record(Request(), tmp_path)[1]["unplanned_s"] < 4


def test_they_are_no_part_of_what_starting_takes(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "cache"))
    run, now = whole.copied_to(tmp_path), time.time()
    clock, times = RunClock(0.0, now - 100, now), []
    for unplanned_s in (0.0, ASSUMED_S[STARTING]["cpu"]):
        write_json(run.record_path, {**run.record(), "unplanned_s": unplanned_s})
        session._remember(run, run.config(), clock)
        (told,) = History(cache_directory(), run.hardware().name).read_runs()
        times += [each.times for each in told.overheads if each.part == STARTING]
    assert times[0] - times[1] == pytest.approx(1, abs=0.1)


def test_a_plan_for_other_hardware(tmp_path, capsys):
    options = ["--mode", "medium", "--plan", "--hardware", "h100", "--num-workers", "8", "--runs-dir", str(tmp_path)]
    (tmp_path / "medium").mkdir()
    (tmp_path / "medium" / "run.json").write_text("a run here says nothing of it")
    assert run_stage_script.main(options) == 0
    out = capsys.readouterr().out
    for part in ("8 x NVIDIA H100", "data climbmix: text of the web", "data sheet", "8 workers", "download",
                 "memory of base, in GB: weights", "± 30%"):  # fmt: skip
        assert part in out
    assert [path.name for path in tmp_path.rglob("*")] == ["medium", "run.json"]


def test_the_data_that_nobody_names_is_of_the_web_on_a_gpu_and_a_run_keeps_its_own(tmp_path, monkeypatch):
    h200 = DATA_SHEETS["h200"]
    assert preparation.named_data(None, h200) == "climbmix"
    assert preparation.named_data(None, replace(h200, device_type="cpu")) == "tinyworld"
    assert preparation.named_data(None, h200, before="tinyworld") == "tinyworld", "that of the run to start from"
    for there, usual in ((False, "tinyworld"), (True, "climbmix")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert preparation.named_data(None) == usual
        assert preparation.named_data(None, before="fineweb-edu") == "fineweb-edu"
        assert preparation.named_data("tinyworld", before="fineweb-edu") == "tinyworld"


def test_what_starts_from_a_run_or_its_checkpoint_takes_the_data_of_that(whole, tmp_path):
    runs, checkpoint = whole.run.directory.parent, whole.run.checkpoints("sft") / "step_000016"
    for name in ("whole", str(whole.run.directory), str(checkpoint)):
        assert preparation.data_of_start(name, runs) == "tinyworld"
    for name in ("", "nowhere", str(tmp_path), "hf:some/model"):
        assert preparation.data_of_start(name, runs) is None


def test_a_run_goes_on_with_its_data_where_a_new_one_would_take_other(whole, capsys, monkeypatch):
    """A GPU machine's plan, as far as the choice of data goes."""
    monkeypatch.setattr(preparation, "device_type", lambda: "cuda")
    unnamed = [option for option in TINY if option not in ("--data", "tinyworld")]
    options = ["--name", "whole", "--runs-dir", str(whole.run.directory.parent), *unnamed, "--plan"]
    assert run_stage_script.main(options) == 0
    assert "data tinyworld" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "told"), [
    (("--hardware", "h100", "--data", "tinyworld"), True), (("--hardware", "h100"), False),
    (("--hardware", "cpu"), False), (("--hardware", "h100", "--data", "tinyworld", "--stage", "tokenizer"), False),
])  # fmt: skip
def test_a_small_text_that_a_model_would_know_by_heart_is_told(tmp_path, capsys, options, told):
    assert run_stage_script.main([*options, "--plan", "--runs-dir", str(tmp_path)]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if "by heart" in line]
    assert bool(found) == told
    assert all("--data climbmix or fineweb-edu" in line for line in found)


def test_calibrating_makes_the_plan_surer(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(preparation, "CALIBRATION_S", 1.0)
    options = ["--depth", "1", "--compile", "off", "--plan", "--runs-dir", str(tmp_path / "runs")]
    for more, says in (([], "± 30% (assumed"), (["--calibrate"], "trainings known here: 1"), ([], "known here: 1")):
        assert run_stage_script.main([*options, *more]) == 0
        assert says in capsys.readouterr().out
    for more in (["--calibrate"], []):  # as the plan's own, and for no other
        assert run_stage_script.main([*options, *more, "--set", "model.document_attention=true"]) == 0
        assert "known here: 1" in capsys.readouterr().out
    assert len(History(cache_directory(), detect_hardware().name).read()) == 1
    assert not (tmp_path / "runs").exists()


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def lonely_checkpoint(directory: Path) -> str:
    """One without the run that it came from."""
    CheckpointStore(directory).save(1, {"model": {}}, {"model": asdict(ModelConfig.from_depth(1, 512, 128))})
    return str(directory / "step_000001")


def test_mistakes_are_one_line_a_hint_and_exit_code_2(tmp_path, monkeypatch, capsys):
    pq.write_table(pa.table({"body": ["no text here"]}), tmp_path / "wrong.parquet")
    (tmp_path / "empty").mkdir()
    cases = {
        ("--mode", "huge"): "no mode 'huge'",
        ("--stage", "base,soup"): "no stage soup",
        ("--data", "nowhere"): "nowhere",
        ("--data", str(tmp_path / "empty")): "empty",
        ("--data", str(tmp_path / "wrong.parquet")): "text",
        ("--data", write(tmp_path / "latin.txt", "na\xefve caf\xe9\n".encode("latin-1"))): "UTF-8",
        ("--data", write(tmp_path / "nothing.txt", b"")): "nothing.txt",
        ("--hardware", "h100"): "--hardware is for plans",
        ("--hardware", "tpu", "--plan"): "no hardware 'tpu'",
        ("--calibrate",): "--calibrate measures one worker",
        ("--calibrate", "--plan", "--hardware", "h100"): "--calibrate measures one worker",
        ("--total-batch-size", "1000"): "nearest that does is --total-batch-size 1024",
        ("--depth", "64", "--max-seq-len", "8192", "--total-batch-size", "8192"): "GiB",
        ("--depth", "0"): "--depth must be at least 1",
        ("--stage", "sft"): "starts from trained weights",
        ("--from", "nobody", "--stage", "sft"): "nobody",
        ("--set", "base.num_iteratons=3"): "did you mean 'num_iterations'",
        ("--seed", "-1"): "--seed must be at least 0",
        ("--hours", "inf"): "--hours must be positive and at most 100,000, not inf",
        ("--hours", "nan"): "--hours must be positive and at most 100,000, not nan",
        ("--from", lonely_checkpoint(tmp_path / "copied"), "--stage", "sft"): "there is no tokenizer at",
        ("--num-workers", "0"): "--num-workers must be at least 1",
        ("--num-workers", "2", "--min-workers", "3"): "--min-workers must be between 1 and --num-workers 2",
        ("--name", "../x"): "cannot be the name",
    }
    monkeypatch.chdir(tmp_path)
    for options, expected in cases.items():
        name = () if "--name" in options else ("--name", "r")
        assert cli.run(run_stage_script.main, ["--runs-dir", "runs", *name, *options]) == 2, options
        lines = capsys.readouterr().err.strip().splitlines()
        assert [line.partition(":")[0] for line in lines] == ["error", "hint"], (options, lines)
        assert expected in "\n".join(lines), (options, lines)
    assert not (tmp_path / "runs" / "r" / "run.json").exists()


def free_bytes(monkeypatch, cache: int, runs: int, *, one_disk: bool) -> None:
    """As if there were so many left."""
    cache_directory().mkdir(exist_ok=True)

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=cache if path == cache_directory() else runs)

    monkeypatch.setattr(preparation.shutil, "disk_usage", usage)
    monkeypatch.setattr(preparation, "_disk", lambda path: one_disk or path == cache_directory())


@pytest.mark.parametrize(("cache", "runs", "one_disk", "says", "hint"), [
    (10_000, 10**12, False, "and its tokens need", "make room, or set NANOCHAT_BASE_DIR"),
    (10**12, 10_000, False, "for checkpoints and", "choose another --runs-dir, or --set keep_checkpoints=1"),
    (10**12, 10_000, True, "in the cache", "set NANOCHAT_BASE_DIR to another disk, or --set keep_checkpoints=1"),
])  # fmt: skip
def test_a_full_disk_is_found_before_the_start(tmp_path, monkeypatch, capsys, cache, runs, one_disk, says, hint):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "cache"))
    free_bytes(monkeypatch, cache, runs, one_disk=one_disk)
    assert cli.run(run_stage_script.main, ["--runs-dir", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert hint in told


def test_of_a_disk_only_what_goes_there_is_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "cache"))
    options = ["--runs-dir", str(tmp_path / "runs"), "--plan"]
    _, record = preparation.new_record(Request(), tmp_path / "runs")
    plan = from_dict(Plan, json.loads(json.dumps(record["plan"])))
    free_bytes(monkeypatch, plan.cache_bytes, plan.checkpoints_bytes, one_disk=False)
    assert cli.run(run_stage_script.main, options) == 0
    free_bytes(monkeypatch, plan.cache_bytes, plan.checkpoints_bytes - 1, one_disk=False)
    assert cli.run(run_stage_script.main, options) == 2
    assert cli.run(run_stage_script.main, [*options, "--set", "keep_checkpoints=1"]) == 0
    monkeypatch.setattr(preparation, "CheckpointStore", lambda place: SimpleNamespace(steps=list))
    assert cli.run(run_stage_script.main, [*options, "--storage", "s3://bucket/prefix"]) == 0
    assert cli.run(run_stage_script.main, [*options, "--storage", str(tmp_path / "elsewhere")]) == 2
    assert "choose another --storage" in capsys.readouterr().err


def last_step(run: Run, stage: str) -> int:
    return max((event.step for event in read_events(run.directory, stage) if isinstance(event, StepDone)), default=0)


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s; {psutil.cpu_percent()} % of the processors busy"
        time.sleep(0.02)


def same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
