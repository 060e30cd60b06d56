"""Which models there are to be served, wherever their checkpoints are, and which of them are loaded."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from queue import Queue
from threading import Event

import pytest
import torch

from experiments import models as of_models
from experiments.models import Models, Served
from nanochat.inference.batcher import Ask, Closed
from nanochat.inference.engine import Engine
from nanochat.model import ModelConfig, Transformer
from nanochat.run import create
from nanochat.tokenizer import Tokenizer
from nanochat.training.checkpoint import CheckpointStore
from tests.experiments.test_compare import CONFIG


@pytest.fixture
def kept_elsewhere(tmp_path):
    """The directory of runs, of which one keeps its checkpoints on a storage of its own."""
    tokenizer, model = Tokenizer.train([], 265), Transformer(ModelConfig.from_depth(1, 265, 32))
    config = replace(CONFIG, storage=(tmp_path / "storage").as_uri())
    run = create(tmp_path / "runs" / "far", config, {})
    tokenizer.save(run.tokenizer_directory)
    state = {"stage": "base", "model": asdict(model.config), "tokenizer": tokenizer.fingerprint}
    CheckpointStore(run.checkpoints("base")).save(3, {"model": model.state_dict()}, state)
    return run, Models(tmp_path / "runs", "far/base", "cpu", torch.float32)


def test_a_model_on_a_storage_is_served_once_its_stage_has_ended(kept_elsewhere):
    run, models = kept_elsewhere
    assert models.names() == {}
    run.result_path("base").parent.mkdir(parents=True, exist_ok=True)
    run.result_path("base").write_text("{}")
    assert list(models.names()) == ["far/base"]
    assert models.open("far").context == 32
    models.close()


def save(runs: Path, name: str, step: int = 3, seed: int = 0) -> None:
    """A base model that never ends an answer."""
    tokenizer, model = Tokenizer.train([], 265), Transformer(ModelConfig.from_depth(1, 265, 64), seed=seed)
    with torch.no_grad():
        model.head.zero_()
    tokenizer.save(runs / name / "tokenizer")
    state = {"stage": "base", "model": asdict(model.config), "tokenizer": tokenizer.fingerprint}
    CheckpointStore(runs / name / "base" / "checkpoints").save(step, {"model": model.state_dict()}, state)


@pytest.fixture
def three(tmp_path) -> Iterator[Models]:
    """As many as are loaded at a time, and one more."""
    for name in "abc":
        save(tmp_path, name)
    models = Models(tmp_path, "a/base", "cpu", torch.float32)
    yield models
    models.close()


def asked(served: Served) -> tuple[Ask, Queue]:
    """An answer that has begun."""
    told: Queue = Queue()
    ask = Ask([5], 60, told.put)
    served.batcher.submit(ask)
    assert told.get(timeout=30) is not None
    return ask, told


def rest(told: Queue) -> list[int]:
    return [token.id for token in iter(lambda: told.get(timeout=30), None)]


def weights(served: Served) -> torch.Tensor:
    return served.batcher.engine.model.embedding


def held_up(monkeypatch) -> Event:
    """To be set for answers that have begun to go on."""
    go_on, feed = Event(), Engine.feed
    monkeypatch.setattr(Engine, "feed", lambda *args: go_on.wait(60) and feed(*args))
    return go_on


def test_who_waits_for_room_holds_up_nobody_else(three, monkeypatch):
    go_on = held_up(monkeypatch)
    busy = {name: three.open(name) for name in "ab"}
    told = [asked(served)[1] for served in busy.values()]
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(three.open, "c")
        time.sleep(0.2)
        try:
            assert three.open("a") is busy["a"]
            assert not third.done()
        finally:
            go_on.set()
        assert third.result(30).name == "c/base"
    assert [len(rest(each)) for each in told] == [59, 59]


def test_who_is_not_done_when_another_model_takes_the_place_is_told_so(three, monkeypatch):
    monkeypatch.setattr(of_models, "WAIT_S", 0.2)
    feed = Engine.feed
    monkeypatch.setattr(Engine, "feed", lambda *args: time.sleep(0.1) or feed(*args))
    (first, told), (second, _) = asked(three.open("a")), asked(three.open("b"))
    assert three.open("c").name == "c/base"
    assert len(rest(told)) < 59
    assert isinstance(first.error, Closed)
    assert second.error is None
    assert list(three.load()) == ["b/base", "c/base"]
    second.cancelled = True


def test_a_newer_checkpoint_is_loaded_once_nobody_is_served_by_the_older_one(three, monkeypatch):
    old = three.open("a")
    assert three.open("a") is old
    go_on = held_up(monkeypatch)
    ask, told = asked(old)
    save(three.runs_dir, "a", step=4, seed=1)
    assert three.open("a") is old
    go_on.set()
    assert len(rest(told)) == 59
    assert ask.error is None
    until = time.monotonic() + 10
    while (new := three.open("a")) is old and time.monotonic() < until:
        time.sleep(0.01)
    assert not torch.equal(weights(new), weights(old))
    assert three.open("a") is new
    assert list(three.load()) == ["a/base"]
    save(three.runs_dir, "a", step=4, seed=2)
    assert not torch.equal(weights(three.open("a")), weights(new)), "of a training that began anew"
