"""Training while the text arrives from a hub: the same weights to the bit, and nothing lost when the hub is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.data import hub as hub_module
from nanochat.data.sources import open_sources
from nanochat.errors import UserError
from nanochat.events import Event, JsonlSink, Note, StepDone, read_events
from nanochat.planning.hardware import Hardware
from nanochat.planning.resolve import Request, resolve
from nanochat.run import Run, create
from nanochat.training.checkpoint import CheckpointStore
from nanochat.training.loop import Interrupted
from nanochat.training.pipeline import run_pipeline
from nanochat.workers import Workers
from tests.data.corpus_files import serve
from tests.hub import Fault, Hub

HARDWARE = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 1e11, "bfloat16": 1e11})
SETTINGS = ("tokenizer.vocab_size=512", "tokenizer.max_chars=2000", "base.num_iterations=12",
            "base.checkpoint_every=50", "base.eval_tokens=512", "base.eval_every=50")  # fmt: skip
SHARDS = 5  # of 20 documents, some 2,500 tokens each; the twelve steps take 6,144


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        serve(hub, SHARDS, documents=20)
        yield hub


@pytest.fixture
def new_run(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    """Runs in caches of their own, the built-in world apart."""
    open_sources("tinyworld", cache)

    def make(name: str) -> Run:
        base = tmp_path / name / "cache"
        base.mkdir(parents=True)
        (base / "tinyworld").symlink_to(cache / "tinyworld")
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
        request = Request(data="climbmix", stages=("tokenizer", "base"), depth=1, max_seq_len=128,
                          total_batch_size=512, device_batch_size=4, compile="off", assignments=SETTINGS)  # fmt: skip
        config = replace(resolve(request, HARDWARE, compiler=None).config, attention="sdpa")
        return create(tmp_path / name / "run", config, {"hardware": {"name": HARDWARE.name}})

    return make


def go(run: Run, stop_after: int = 99) -> list[Event]:
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        sink(event)

    sink = JsonlSink(run.directory)
    steps = lambda: sum(isinstance(event, StepDone) for event in events)  # noqa: E731
    run_pipeline(run, Workers(), emit, lambda: steps() >= stop_after)
    return events


def weights(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = CheckpointStore(run.checkpoints("base")).newest(pytest.fail)
    assert checkpoint.step == 12
    return checkpoint.tensors("model")


def waits(run: Run) -> list[str]:
    notes = [event.text for event in read_events(run.directory, "base") if isinstance(event, Note)]
    return [text for text in notes if "waits for" in text]


@pytest.mark.timeout(240)
def test_the_same_weights_whenever_the_text_arrived(hub, new_run):
    """At once; so slowly that training waits, with a shard corrupted and a connection cut; and stopped on the way."""
    at_once, slow, stopped = new_run("at-once"), new_run("slow"), new_run("stopped")
    for run in (at_once, slow, stopped):
        pass
    go_in = {}
    for name, run in (("at-once", at_once), ("slow", slow), ("stopped", stopped)):
        go_in[name] = run
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(at_once.directory.parent / "cache"))
        go(at_once)
        patch.setenv("NANOCHAT_BASE_DIR", str(slow.directory.parent / "cache"))
        hub.fail("shard_00001.parquet", Fault(delay_s=6.0, wrong=True), Fault(cut_after=500))
        hub.fail("shard_00002.parquet", Fault(delay_s=2.0))
        go(slow)
        patch.setenv("NANOCHAT_BASE_DIR", str(stopped.directory.parent / "cache"))
        hub.fail("shard_00001.parquet", Fault(delay_s=3.0))
        with pytest.raises(Interrupted):
            go(stopped, stop_after=4)
        go(stopped)
    assert waits(slow)
    expected = weights(at_once)
    for run in (slow, stopped):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())


@pytest.mark.timeout(240)
def test_a_hub_that_is_gone_for_good_costs_nothing_that_was_trained(hub, new_run, monkeypatch):
    monkeypatch.setattr(hub_module, "PATIENCE_S", 2.0)
    run, whole = new_run("run"), new_run("whole")
    go(whole)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(run.directory.parent / "cache"))
    hub.fail("shard_00001.parquet", *[Fault(status=404, head=True)] * 50)
    with pytest.raises(UserError, match=r"cannot get shard_00001.parquet"):
        go(run)
    saved = CheckpointStore(run.checkpoints("base")).newest(pytest.fail)
    assert 0 < saved.step < 12
    hub._faults.clear()
    go(run)
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())
