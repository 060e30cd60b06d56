"""Runs side by side, and a run watched from another process."""

import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from experiments.compare import verdicts
from nanochat.events import JsonlSink, StageStarted, StepDone, Validated
from nanochat.files import write_json
from nanochat.run import Run, Status
from nanochat.training.result import StageResult
from tests.experiments.test_runs import CONFIG, made, run_main
from tests.small_run import ROOT


def trained(directory, losses, *, seconds=1.0, accuracy=None, config=CONFIG) -> Run:
    """A run whose base stage measured these val_bpb, a step of 100 tokens apart."""
    run = made(directory, **{field: getattr(config, field) for field in ("data", "chat", "base", "seed")})
    sink = JsonlSink(run.directory)
    sink(StageStarted("base", 0, len(losses), 100))
    for number, bpb in enumerate(losses, 1):
        sink(StepDone("base", number, 2 * bpb, 1.0, 1.0, seconds, 100 / seconds))
        sink(Validated("base", number, bpb, 0.1))
    scores = {} if accuracy is None else {"overall": {"accuracy": accuracy, "chance": 0.1, "count": 400}}
    result = StageResult("base", iterations=len(losses), tokens=100 * len(losses), train_s=seconds * len(losses),
                         val_bpb=losses[-1], tokens_per_second=100 / seconds, scores=scores)  # fmt: skip
    write_json(run.result_path("base"), asdict(result))
    run.write_status(Status("done", "base", len(losses)))
    return run


def test_runs_are_compared_at_equal_tokens_and_at_equal_time(tmp_path, capsys):
    trained(tmp_path / "slow", [2.0, 1.0, 0.5, 0.45], seconds=2.0, accuracy=0.5)
    quick = replace(CONFIG, seed=3, base=replace(CONFIG.base, lr_multiplier=2.0))
    trained(tmp_path / "quick", [2.0, 1.5, 1.0, 0.9, 0.8, 0.7, 0.6, 0.4], accuracy=0.9, config=quick)
    drawn = tmp_path / "both.html"
    assert run_main("compare", "slow", "quick", "--runs-dir", tmp_path, "--html", drawn) == 0
    assert drawn.read_text().count("<svg") == 1
    assert "val_bpb of base" in drawn.read_text()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["base.lr_multiplier", "8", "2"] in lines
    assert ["seed", "0", "3"] in lines
    assert not any(line[:1] == ["data"] for line in lines)
    assert ["300", "0.5000", "1.0000"] in lines, "at three quarters of the tokens of the shorter one"
    assert ["400", "0.4500", "0.9000"] in lines
    assert ["8.0", "s", "0.4500", "0.4000"] in lines, "when both have ended"
    assert ["4.0", "s", "1.0000", "0.9000"] in lines
    assert any(line[:2] == ["quick", "800"] for line in lines)


@pytest.mark.parametrize(("bpb", "accuracy", "chance"), [(0.505, 0.51, True), (0.55, 0.7, False), (0.45, 0.3, False)])
def test_a_difference_is_chance_or_more(tmp_path, bpb, accuracy, chance):
    runs = [trained(tmp_path / "a", [1.0, 0.5], accuracy=0.5), trained(tmp_path / "b", [1.0, bpb], accuracy=accuracy)]
    told = verdicts("base", runs)
    assert len(told) == 2
    assert all(("no more than chance" in line) == chance for line in told)
    assert f"{bpb - 0.5:+.4f}" in told[0]


def test_other_text_is_not_compared(tmp_path):
    """For base the text of base counts, and how much of it, and not what the stages after it have seen."""
    more = replace(CONFIG.base, eval_tokens=2 * CONFIG.base.eval_tokens)
    other = {"data": "/else", "base": more, "chat": "/else.jsonl"}
    first = trained(tmp_path / "a", [1.0])
    for key, value in other.items():
        second = trained(tmp_path / key, [0.1], config=replace(CONFIG, **{key: value}))
        (told,) = verdicts("base", [first, second])
        assert ("cannot be compared" in told) == (key != "chat")


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    trained(tmp_path / "a", [1.0])
    made(tmp_path / "untrained")
    for arguments, said in (
        (("a",), "name two runs or more"),
        (("a", "a"), "name two runs or more"),
        (("a", "untrained"), "no trained stage in common"),
        (("a", "untrained", "--stage", "base"), "have trained base"),
        (("a", "missing"), "there is no run 'missing'"),
    ):
        assert run_main("compare", *arguments, "--runs-dir", tmp_path) == 2
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("html", "said"), [
    ("nowhere/x.html", "No such file or directory"),
    ("file/x.html", "Not a directory"),
    ("/proc/x.html", "No such file or directory"),
    ("a", "is a folder"),
])  # fmt: skip
def test_a_page_that_cannot_be_written_is_told_before_the_work(tmp_path, capsys, html, said):
    for name in ("a", "b"):
        trained(tmp_path / name, [1.0])
    (tmp_path / "file").write_text("x")
    assert run_main("compare", "a", "b", "--runs-dir", tmp_path, "--html", tmp_path / html) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "hint: name" in told.err
    assert not told.out
    assert run_main("compare", "a", "b", "--runs-dir", tmp_path, "--html", tmp_path / "x.html") == 0


def test_a_report_is_written_anew(tmp_path, capsys):
    run = trained(tmp_path / "a", [1.0, 0.5])
    assert run_main("report", "a", "--runs-dir", tmp_path) == 0
    assert "Course of base" in run.report_path.with_suffix(".html").read_text()
    assert str(run.report_path) in capsys.readouterr().out
    write_json(run.directory / "search" / "asked.json", {})
    assert run_main("report", "a", "--runs-dir", tmp_path) == 2


def test_a_run_is_watched_as_it_goes_on_and_until_it_ends(tmp_path):
    run = made(tmp_path / "live")
    sink = JsonlSink(run.directory)
    with run.owned("driver"):
        run.write_status(Status("running", "base", 0))
        sink(StageStarted("base", 0, 2, 100))
        sink(Validated("base", 0, 3.25, 0.1))
        command = [sys.executable, str(ROOT / "experiments" / "runs.py"), "watch", "live", "--runs-dir", str(tmp_path)]
        watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert watching.stdout is not None
        assert "base: 2 steps of 100 tokens" in watching.stdout.readline()
        assert "val_bpb 3.2500" in watching.stdout.readline()
        time.sleep(1)
        assert watching.poll() is None
        sink(Validated("base", 2, 1.5, 0.1))
        run.write_status(Status("done", "base", 2))
        rest, _ = watching.communicate(timeout=30)
    assert "val_bpb 1.5000" in rest
    assert rest.endswith("live: done\n")
    assert watching.returncode == 0
