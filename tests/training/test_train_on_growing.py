"""Training while the text arrives from a hub: the same weights to the bit, and nothing lost when the hub is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.data.sources import open_sources
from nanochat.errors import UserError
from nanochat.events import Event, JsonlSink, Note, Resumed, StepDone, read_events
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


def new_run(directory: Path) -> Run:
    request = Request(data="climbmix", stages=("tokenizer", "base"), depth=1, max_seq_len=128, total_batch_size=512,
                      device_batch_size=4, compile="off", assignments=SETTINGS)  # fmt: skip
    config = replace(resolve(request, HARDWARE, compiler=None).config, attention="sdpa")
    return create(directory, config, {"hardware": {"name": HARDWARE.name}})


@pytest.fixture
def go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trains a run with a cache of its own, but for the built-in world."""
    open_sources("tinyworld", cache)

    def train(run: Run, stop_after: int = 99) -> None:
        own = run.directory.with_name(f"cache-of-{run.name}")
        if not own.exists():
            own.mkdir()
            (own / "tinyworld").symlink_to(cache / "tinyworld")
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(own))
        steps = 0

        def emit(event: Event) -> None:
            nonlocal steps
            steps += isinstance(event, StepDone)
            sink(event)

        sink = JsonlSink(run.directory)
        run_pipeline(run, Workers(), emit, lambda: steps >= stop_after)

    return train


def weights(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = CheckpointStore(run.checkpoints("base")).newest(pytest.fail)
    assert checkpoint.step == 12
    return checkpoint.tensors("model")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def waits(run: Run) -> list[str]:
    notes = [event.text for event in read_events(run.directory, "base") if isinstance(event, Note)]
    return [text for text in notes if "waits for" in text]


@pytest.mark.timeout(240)
def test_the_same_weights_whenever_the_text_arrived(hub, go, tmp_path):
    """At once; so late that training waits, with a shard corrupted and a connection cut; and stopped on the way."""
    at_once, late, stopped = (new_run(tmp_path / name) for name in ("at-once", "late", "stopped"))
    go(at_once)
    hub.fail("shard_00001.parquet", Fault(delay_s=6.0, wrong=True), Fault(cut_after=500))
    hub.fail("shard_00002.parquet", Fault(delay_s=2.0))
    go(late)
    assert waits(late)
    hub.fail("shard_00001.parquet", Fault(delay_s=3.0))
    with pytest.raises(Interrupted):
        go(stopped, stop_after=4)
    go(stopped)
    assert same(weights(late), weights(at_once))
    assert same(weights(stopped), weights(at_once))


@pytest.mark.timeout(240)
def test_a_hub_that_is_gone_for_good_costs_nothing_that_was_trained(hub, go, tmp_path):
    run, whole = new_run(tmp_path / "run"), new_run(tmp_path / "whole")
    go(whole)
    hub.fail("shard_00001.parquet", *[Fault(status=404, head=True)] * 50)
    with pytest.raises(UserError, match=r"cannot get shard_00001.parquet .* it answers 404 Not Found"):
        go(run)
    saved = CheckpointStore(run.checkpoints("base")).newest(pytest.fail)
    assert 0 < saved.step < 12
    hub.mend()
    go(run)
    assert same(weights(run), weights(whole))
    assert Resumed("base", saved.step) in read_events(run.directory, "base")
