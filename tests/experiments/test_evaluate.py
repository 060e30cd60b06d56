"""evaluate.py as a user runs it."""

import json
import urllib.error
from pathlib import Path

import pytest

from experiments import evaluate
from experiments.cli import run as exit_code
from nanochat.files import write_json
from nanochat.run import Run
from nanochat.tasks.core import CORE_TASKS


@pytest.fixture(scope="module")
def trained(whole, tmp_path_factory):
    """A run of all stages, and a folder with two tasks of CORE, one of them damaged."""
    runs = tmp_path_factory.mktemp("runs")
    whole.copied_to(runs)
    folder = runs / "core"
    folder.mkdir()
    lines = [{"query": f"The cat {n} sat", "choices": ["on the mat.", f"under {n} tables."], "gold": n % 2}
             for n in range(31)]  # fmt: skip
    (folder / "copa.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "winograd_wsc.jsonl").write_text("{}")
    return runs, folder


def main(*arguments: object) -> int:
    return exit_code(evaluate.main, [str(each) for each in arguments])


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_questions_of_the_run_itself(trained, capsys):
    """Whose text and conversations are somewhere else by now."""
    run = Run(trained[0] / "whole")
    moved = {"data": "/nowhere/text.txt", "chat": "/nowhere/own.jsonl"}
    write_json(run.record_path, run.record() | {"config": run.record()["config"] | moved})
    assert main("whole", "--questions", 28, "--runs-dir", trained[0]) == 0
    said = capsys.readouterr().out
    assert "whole, sft stage, step 16" in said
    assert "ChatCORE" in said
    (kept,) = (trained[0] / "whole" / "evaluations").glob("questions-sft-*.json")
    found = json.loads(kept.read_text())
    assert found["overall"]["total"] == 28
    assert len(found["skills"]) > 5
    assert main("whole", "--questions", 14, "--runs-dir", trained[0]) == 0
    assert json.loads(kept.read_text()) == found
    assert str(kept) not in capsys.readouterr().out


@pytest.mark.timeout(200)
def test_core_alone_and_by_two_workers_is_the_same(trained, capfd):
    runs, folder = trained
    found = []
    for workers in (1, 2):
        options = ("whole", "--stage", "base", "--core", folder, "--tasks", "copa", "--num-workers", workers)
        assert main(*options, "--runs-dir", runs) == 0
        (kept,) = (Run(runs / "whole").directory / "evaluations").glob("core-base-*.json")
        (task,) = json.loads(kept.read_text())["tasks"]
        found.append((task["accuracy"], task["count"], task["of"]))
    assert found[0] == found[1]
    assert found[0][1:] == (31, 31)
    assert "Mean of 1 of CORE's 22 tasks" in capfd.readouterr().out


def test_only_the_same_evaluation_takes_the_place_of_another(trained, capsys, monkeypatch):
    runs, folder = trained
    monkeypatch.setattr(evaluate, "CORE_TASKS", [task for task in CORE_TASKS if task.label == "copa"])
    monkeypatch.setattr(evaluate, "core_bundle", lambda cache: runs / "bundle")
    (runs / "bundle").mkdir()
    (runs / "bundle" / "copa.jsonl").write_bytes((folder / "copa.jsonl").read_bytes())
    said, kept = [], []
    for options in ((), ("--max-per-task", 5), ("--max-per-task", 40), ("--tasks", "copa")):
        assert main("whole", "--stage", "base", "--core", *options, "--runs-dir", runs) == 0
        *_, mean, where = capsys.readouterr().out.splitlines()
        said.append(mean.partition(":")[0])
        kept.append(Path(where.removeprefix("Kept in ")))
    part = "Mean of 1 of CORE's 1 tasks, not all of their examples"
    assert said == ["CORE", part, "CORE", "CORE"]
    assert kept[0].name == "core-base-000024.json"
    assert len({*kept}) == 3, "all tasks by name are all tasks"
    found = [json.loads(path.read_text()) for path in kept]
    assert [each["tasks"][0]["count"] for each in found] == [31, 5, 31, 31]
    assert [each["whole_suite"] for each in found] == [True, False, True, True]
    assert [each["asked"] for each in found[:2]] == [{}, {"max_per_task": 5}]


def test_a_task_that_fails_costs_itself_only(trained, capsys):
    runs, folder = trained
    assert main("whole", "--stage", "base", "--core", folder, "--max-per-task", 5, "--runs-dir", runs) == 1
    said = capsys.readouterr().out
    assert "warning: " in said
    assert "line 1 is no example of winograd" in said
    assert "5 of 31" in said


def test_what_cannot_be_evaluated_is_said(trained, capsys, monkeypatch, tmp_path):
    runs, folder = trained

    def nobody(*args, **how):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(evaluate.urllib.request, "urlopen", nobody)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    for arguments, said in (
        (("whole", "--core"), "cannot be had: no route to host"),
        (("whole", "--core", tmp_path), "holds no task of CORE"),
        (("whole", "--core", folder, "--tasks", "copa,nothing"), "there is no task nothing"),
        (("whole", "--core", folder, "--num-workers", "0"), "--num-workers must be at least 1"),
        (("whole", "--stage", "base"), "has a base model"),
        (("missing",), "there is no run"),
    ):
        assert main(*arguments, "--runs-dir", runs) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "core").exists()
