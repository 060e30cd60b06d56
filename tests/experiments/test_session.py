"""How a run ends when Ray has been ended: as asked, if whoever ended it told the command too."""

import io
import os
import signal
import time
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from experiments import session
from experiments.cluster import RayEnded
from experiments.deadline import TimeIsUp
from experiments.ray_train import Scale
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.run import Run, create
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


def test_what_a_model_says_is_no_markup(run, monkeypatch):
    monkeypatch.setattr(session, "conversation", lambda run, stages: [("x[0]", "[/quote] a [bold]word")])
    console = Console(file=io.StringIO(), width=100)
    session._show_summary(console, run, run.config())
    assert "x[0]\nnanochat: [/quote] a [bold]word" in console.file.getvalue()


def test_ended_alone_it_is_an_error(run, monkeypatch):
    with pytest.raises(UserError, match="Ray was ended from outside"):
        trained(run, monkeypatch, told=False)
    assert run.status().state == "failed"
