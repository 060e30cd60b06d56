"""On what a run is trained, and how it ends when Ray has been ended: as asked, if whoever ended it told the command
too."""

import io
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments import session
from experiments.cluster import RayEnded
from experiments.deadline import TimeIsUp
from experiments.ray_train import Outcome, Scale
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.planning.estimate import estimate
from nanochat.planning.hardware import Hardware
from nanochat.run import Run, create
from nanochat.training.checkpoint import CheckpointStore
from nanochat.training.result import StageResult
from tests.planning.test_resolve import CPU
from tests.test_config import make_config


@pytest.fixture
def run(tmp_path) -> Run:
    return create(tmp_path / "r", replace(make_config(), stages=("tokenizer", "base")), {"hardware": asdict(CPU)})


def trained(run: Run, monkeypatch: pytest.MonkeyPatch, *, told: bool) -> int:
    def fit(*arguments: object) -> None:
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        raise RayEnded

    monkeypatch.setattr(session, "fit", fit)
    console = Console(file=io.StringIO())
    return session.train(console, run, run.config(), run.record(), Scale(), session.begin(run))


def test_with_all_processes_told_to_end_it_is_an_interruption(run, monkeypatch):
    assert trained(run, monkeypatch, told=True) == 130
    assert run.status().state == "interrupted"


def test_out_of_time_with_nothing_saved_it_is_an_error(run, monkeypatch):
    """The tokenizer that every run makes is no model."""
    def fit(*arguments: object) -> None:
        write_json(run.result_path("tokenizer"), {"stage": "tokenizer"})
        raise TimeIsUp

    monkeypatch.setattr(session, "fit", fit)
    with pytest.raises(UserError, match="before anything could be saved"):
        session.train(Console(file=io.StringIO()), run, run.config(), run.record(), Scale(), session.begin(run))
    assert run.status().state == "failed"


def test_stages_that_time_did_not_reach_are_named(tmp_path, monkeypatch):
    """The model there is counts, and the command ends well."""
    config = replace(make_config(), stages=("tokenizer", "base", "sft"))
    record = {"hardware": asdict(CPU), "plan": asdict(estimate(config, CPU)), "reasons": [], "versions": {}}
    run = create(tmp_path / "r", config, record)

    def fit(*arguments: object) -> None:
        state = {"result": asdict(StageResult("base", 4, val_bpb=1.5))}
        CheckpointStore(run.checkpoints("base")).save(4, {"model": {"x": torch.zeros(2)}}, state)
        raise TimeIsUp

    monkeypatch.setattr(session, "fit", fit)
    console = Console(file=io.StringIO(), width=200)
    assert session.train(console, run, run.config(), run.record(), Scale(), session.begin(run)) == 0
    assert "sft was not trained: the time was up" in console.file.getvalue()
    assert run.results()["base"]["val_bpb"] == 1.5
    assert run.status().state == "done"


def test_what_a_model_says_is_no_markup(run, monkeypatch):
    monkeypatch.setattr(session, "conversation", lambda run, stages: [("x[0]", "[/quote] a [bold]word")])
    console = Console(file=io.StringIO(), width=100)
    session._show_summary(console, run, run.config())
    assert "x[0]\nnanochat: [/quote] a [bold]word" in console.file.getvalue()


def test_ended_alone_it_is_an_error(run, monkeypatch):
    with pytest.raises(UserError, match="Ray was ended from outside"):
        trained(run, monkeypatch, told=False)
    assert run.status().state == "failed"


@pytest.mark.parametrize(
    ("planned", "gpus", "expected", "warning"),
    [
        (replace(CPU, name="here"), [], (32, 1), ""),
        (CPU, [], (32, 1), f"planned for {CPU.name} and goes on with here"),
        (replace(CPU, name="A", device_type="cuda"), ["A"] * 8, (32, 8), ""),
        (replace(CPU, name="A", device_type="cuda"), ["B"], (32, 1), "planned for A and goes on with B"),
        (replace(CPU, name="A", device_type="cuda"), [], (32, 0), ""),
    ],
)
def test_a_run_goes_on_with_what_this_machine_has(run, monkeypatch, planned, gpus, expected, warning):
    monkeypatch.setattr(session, "usable_cpus", lambda: 32)
    monkeypatch.setattr(session, "cpu_name", lambda: "here")
    monkeypatch.setattr(session.torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(session.torch.cuda, "get_device_name", lambda number: gpus[number])
    given = []

    def fit(run: Run, hardware: Hardware, *arguments: object) -> Outcome:
        given.append(hardware)
        return Outcome("interrupted")

    monkeypatch.setattr(session, "fit", fit)
    console, record = Console(file=io.StringIO(), width=200), {**run.record(), "hardware": asdict(planned)}
    for scale in (Scale(), Scale(address="auto")):  # whose machines are not this one
        assert session.train(console, run, run.config(), record, scale, session.begin(run)) == 130
    assert given == [replace(planned, cpu_count=expected[0], device_count=expected[1]), planned]
    said = console.file.getvalue()
    assert said.count("warning") == bool(warning)
    assert warning in said


def test_a_run_is_named_as_other_commands_find_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for directory, name in (("runs/mine", "mine"), (tmp_path / "runs/mine", "mine"), ("my runs/x", "'my runs/x'")):
        assert session._named_from_here(Run(Path(directory))) == name
