"""runs.py: what it says of runs in every state, and that it deletes what it was told to and nothing else."""

import io
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from experiments import runs
from experiments.cli import run as exit_code
from nanochat.clock import RunClock
from nanochat.events import JsonlSink, Note
from nanochat.files import write_json
from nanochat.planning.estimate import estimate
from nanochat.planning.hardware import Training
from nanochat.planning.history import Finished, FinishedRun, History
from nanochat.run import Run, Status, create
from nanochat.training.result import StageResult
from tests.planning.test_history import CPU, config_of

CONFIG = config_of()
SCORES = {"overall": {"accuracy": 0.75, "chance": 0.1, "count": 100}}


def made(directory: Path, **changes) -> Run:
    config = replace(CONFIG, **changes)
    record = {"hardware": asdict(CPU), "plan": asdict(estimate(config, CPU)), "reasons": ["because"], "versions": {}}
    return create(directory, config, record)


def ended(run: Run, stage: str = "base", **figures) -> None:
    write_json(run.result_path(stage), asdict(StageResult(stage, iterations=500, val_bpb=0.4321, **figures)))


@pytest.fixture
def runs_dir(tmp_path):
    """One run in each state there is, the last to change last."""
    done = made(tmp_path / "done")
    ended(done)
    ended(done, "sft", scores=SCORES)
    write_json(done.clock_path, asdict(RunClock(100.0, 1000.0, 1200.0)))
    done.write_status(Status("done", "sft", 100))
    made(tmp_path / "killed").write_status(Status("running", "base", 7))
    made(tmp_path / "broken").record_path.write_text("{")
    (tmp_path / "searching" / "search").mkdir(parents=True)
    (tmp_path / "searching" / "search" / "asked.json").write_text("{}")
    made(tmp_path / "interrupted").write_status(Status("interrupted", "base", 11))
    for age, name in enumerate(("interrupted", "searching", "broken", "killed", "done")):
        for path in (tmp_path / name).rglob("*"):
            os.utime(path, (1e9 + age, 1e9 + age))
    (tmp_path / "notes").mkdir()  # not a run
    (tmp_path / f"{runs.DOOMED}old").mkdir()
    return tmp_path


def run_main(*arguments: object) -> int:
    return exit_code(runs.main, [str(each) for each in arguments])


def test_each_state_is_told_as_it_is(runs_dir):
    found = runs.lines(runs_dir)
    assert [line.name for line in found] == ["interrupted", "searching", "broken", "killed", "done"]
    interrupted, searching, broken, killed, done = found
    assert (done.state, done.at, done.val_bpb, done.right, done.seconds) == ("done", "", 0.4321, 0.75, 300.0)
    assert done.what == "demo, depth 3"
    assert done.size == sum(path.stat().st_size for path in (runs_dir / "done").rglob("*") if path.is_file())
    assert (killed.state, killed.at) == ("stopped", "base 7/500")
    assert killed.val_bpb is killed.right is killed.seconds is None
    assert broken.state == "damaged"
    assert "run.json" in broken.damage
    assert (searching.state, searching.what) == ("stopped", "search, no model yet")
    assert (interrupted.state, interrupted.at) == ("interrupted", "base 11/500")


def test_a_run_with_a_living_owner_is_running(tmp_path):
    run = made(tmp_path / "r")
    run.write_status(Status("running", "base", 7))
    assert runs.state_of(run) == "stopped"
    with run.owned("driver"):
        assert runs.state_of(run) == "running"
        assert run_main("delete", "r", "--yes", "--runs-dir", tmp_path) == 2
    assert run.exists()
    assert runs.state_of(run) == "stopped"


def test_the_list_and_a_run_on_paper(runs_dir, capsys):
    JsonlSink(runs_dir / "done")(Note("base", "something happened", warning=True))
    assert run_main("list", "--runs-dir", runs_dir) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line][2:] == [
        "interrupted", "searching", "broken", "killed", "done", "cannot",
    ]  # fmt: skip
    assert "notes" not in said
    assert "75%" in said
    for name, parts in (("done", ("because", "Task accuracies after sft", "something happened", "Plan", "Stages")),
                        ("killed", ("stopped", "Plan")), ("searching", ("no model yet",))):  # fmt: skip
        assert run_main("show", name, "--runs-dir", runs_dir) == 0
        said = capsys.readouterr().out
        assert all(part in said for part in parts), said
    assert run_main("show", "broken", "--runs-dir", runs_dir) == 2
    assert run_main("show", "notes", "--runs-dir", runs_dir) == 2
    assert run_main("show", "nothing", "--runs-dir", runs_dir) == 2
    assert run_main("list", "--runs-dir", runs_dir / "nowhere") == 2


def test_only_what_was_named_is_deleted_and_only_if_meant(runs_dir, monkeypatch, capsys):
    def names() -> set[str]:
        return {path.name for path in runs_dir.iterdir() if not path.name.startswith(runs.DOOMED)}

    before = names()
    assert run_main("delete", "done", "--runs-dir", runs_dir) == 2  # nobody to ask
    assert "--yes" in capsys.readouterr().err
    for answer, gone in (("n\n", set()), ("\n", set()), ("y\n", {"done"})):
        terminal = io.StringIO(answer)
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", terminal)
        assert run_main("delete", "done", "--runs-dir", runs_dir) == 0
        assert names() == before - gone
    assert run_main("delete", "killed", "nothing", "--yes", "--runs-dir", runs_dir) == 2
    assert run_main("delete", "notes", "--yes", "--runs-dir", runs_dir) == 2
    assert run_main("delete", "../x", "--yes", "--runs-dir", runs_dir) == 2
    assert names() == before - {"done"}
    assert run_main("delete", "killed", "broken", "killed", "--yes", "--runs-dir", runs_dir) == 0
    assert names() == before - {"done", "killed", "broken"}
    assert not list(runs_dir.glob(f"{runs.DOOMED}*")), "an earlier, interrupted deletion is ended too"
    (runs_dir / "link").symlink_to(runs_dir / "interrupted")
    assert run_main("delete", "link", "--yes", "--runs-dir", runs_dir) == 2
    with Run(runs_dir / "interrupted").owned("worker-0"):
        assert run_main("delete", "searching", "interrupted", "--yes", "--runs-dir", runs_dir) == 2
    assert names() == (before - {"done", "killed", "broken"}) | {"link"}


def test_an_export_that_cannot_be_made_is_told_before_the_work(runs_dir, monkeypatch, capsys):
    monkeypatch.setattr(runs, "newest_checkpoint", pytest.fail)
    (runs_dir / "file").write_text("x")
    for out, said in (("file/out", "Not a directory"), ("/proc/some/out", "No such file"), ("done", "there already")):
        assert run_main("export", "done", "--out", runs_dir / out, "--runs-dir", runs_dir) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "hint: name" in told


def test_plans_are_audited(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setattr(runs, "detect_hardware", lambda: CPU)
    assert run_main("plans") == 2
    short = FinishedRun("/x/short", time.time(), 10.0, 10.0, ())
    History(tmp_path / "alone", CPU.name).add([], short)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "alone"))
        assert run_main("plans") == 0
    assert "short, all of it" in capsys.readouterr().out
    training = Training("float32", True, 1, 3, 192, 2048, 1.0, 1.0)
    History(tmp_path, CPU.name).add(
        [Finished(name, "base", time.time(), 100.0, 100.0 * off, 10**9, 10**9, training, first=True)
         for name, off in (("/x/a", 1.05), ("calibration of depth 3", 9.0), ("/x/b", 1.3))]
    )  # fmt: skip
    capsys.readouterr()
    assert run_main("plans") == 0
    said = capsys.readouterr().out
    assert "whole runs" not in said
    History(tmp_path, CPU.name).add([], FinishedRun("/x/b", time.time(), 150.0, 129.0, ()))
    assert run_main("plans") == 0
    said = capsys.readouterr().out
    assert "b, all of it" in said
    assert "time of whole runs: off by 14% (median); 0 of 1 within 10%" in said
    assert "+5%" in said
    assert "+30%" in said
    assert "time: off by 18% (median); 1 of 2 within 10%" in said
    assert "memory: off by 0% (median); 2 of 2 within 10%" in said
