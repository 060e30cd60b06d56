"""Data that arrives while it is used: the same batches whenever it came, and every row once an epoch."""

import os
import pickle
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from huggingface_hub import constants

from nanochat.data.batches import SequentialBatches, prefetch
from nanochat.data.growing import Feeder, GrowingDataset
from nanochat.data.shards import build_text_shards, stream_text_shards
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.tokenizer import Tokenizer
from tests.data.corpus_files import files_of, serve, shard
from tests.hub import Fault, Hub

ROW = 32
OPTIONS = {"row_tokens": ROW, "packing": "stream", "max_tokens": 10_000}


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(iter(["the cat walks slowly under bright trees, document and shard 0123456789"] * 50), 300).save(
        directory
    )
    return directory


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> list[Path]:
    """Token shards of three files."""
    folder = tmp_path_factory.mktemp("parts")
    for number in range(3):
        (folder / f"{number}.parquet").write_bytes(shard(number, 10 + number))
    files = sorted(folder.glob("*.parquet"))
    return list(stream_text_shards(files, Tokenizer.load(tokenizer_directory), folder / "shards", **OPTIONS))


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
        yield hub


def feed(folder: Path, parts: list[Path], first: int = 0, end: dict | None = None) -> GrowingDataset:
    for number, part in enumerate(parts, start=first):
        write_json(folder / f"part_{number:05d}.json", {"directory": str(part)})
    if end is not None:
        write_json(folder / "end.json", end)
    return GrowingDataset(folder, "a test")


def until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_same_batches_whenever_the_shards_came(parts, tmp_path):
    whole = SequentialBatches(feed(tmp_path / "whole", parts, end={}), 4, seed=3)
    growing = feed(tmp_path / "growing", parts[:1])
    batches = SequentialBatches(growing, 4, seed=3)
    step = 0
    while step < 60:
        if not batches.ready(step):
            with pytest.raises(RuntimeError, match="rows yet"):
                batches.batch(step)
            came = len(list((tmp_path / "growing").glob("part_*")))
            feed(tmp_path / "growing", parts[came : came + 1], came, {} if came == len(parts) else None)
            continue
        assert torch.equal(batches.batch(step).inputs, whole.batch(step).inputs)
        step += 1
    assert growing.complete
    assert growing.num_rows * 2 > 60 * 4 > growing.num_rows  # into the second epoch
    assert growing.fingerprint == feed(tmp_path / "whole", []).fingerprint


def test_every_epoch_has_every_row_once_shard_after_shard(parts, tmp_path):
    dataset = feed(tmp_path, parts, end={})
    batches = SequentialBatches(dataset, 1, seed=0)
    bounds = dataset.bounds(1)
    epochs = []
    for epoch in range(2):
        indices = np.concatenate([batches.row_indices(epoch * bounds[-1] + place) for place in range(bounds[-1])])
        for first, last in pairwise(bounds):
            assert sorted(indices[first:last]) == list(range(first, last))
        epochs.append(indices)
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], np.sort(epochs[0]))
    other = SequentialBatches(dataset, 1, seed=1)
    assert not np.array_equal(np.concatenate([other.row_indices(place) for place in range(bounds[-1])]), epochs[0])


def test_prefetch_makes_nothing_that_is_not_ready(parts, tmp_path):
    dataset = feed(tmp_path, parts[:1])
    batches = SequentialBatches(dataset, dataset.num_rows, seed=0)
    stream = prefetch(batches, 0, 2)
    first = next(stream)  # and not the second, which would fail
    feed(tmp_path, parts[1:], 1, end={})
    assert batches.ready(1)
    assert not torch.equal(next(stream).inputs, first.inputs)


def test_it_goes_to_another_process_as_its_place(parts, tmp_path):
    dataset = feed(tmp_path, parts, end={})
    again = pickle.loads(pickle.dumps(dataset))
    indices = np.arange(dataset.num_rows)
    assert all(map(np.array_equal, again.rows(indices), dataset.rows(indices)))


def test_a_failure_is_raised_where_rows_are_missing_and_not_before(parts, tmp_path):
    dataset = feed(tmp_path, parts[:1], end={"message": "gone", "hint": "come back"})
    batches = SequentialBatches(dataset, dataset.num_rows, seed=0)
    assert batches.ready(0)
    batches.batch(0)
    assert batches.ready(1)
    with pytest.raises(UserError, match="gone"):
        batches.batch(1)


def test_one_shard_a_file_and_as_many_as_wanted(parts, tmp_path, tokenizer_directory):
    """What the stream makes is what `build_text_shards` makes of each file."""
    for number in range(3):
        (tmp_path / f"{number}.parquet").write_bytes(shard(number, 10 + number))
    tokenizer, out = Tokenizer.load(tokenizer_directory), tmp_path / "shards"
    first = build_text_shards(
        [tmp_path / "0.parquet"], tokenizer, out, split="all", row_tokens=ROW, packing="stream", max_tokens=10_000
    )
    assert first.directories[0].name == parts[0].name
    few = list(stream_text_shards(sorted(tmp_path.glob("*.parquet")), tokenizer, out, **OPTIONS | {"max_tokens": 10}))
    assert len(few) == 1


@pytest.mark.timeout(120)
def test_the_first_shard_is_there_before_the_last_is_fetched(hub, tmp_path, tokenizer_directory):
    files = serve(hub, 3, documents=10)
    held = Fault(delay_s=8.0)
    hub.fail("shard_00002.parquet", held)
    feeder = Feeder(
        tmp_path / "feed", files_of(tmp_path / "files", 3), tokenizer_directory, tmp_path / "shards", **OPTIONS
    )
    dataset = GrowingDataset(tmp_path / "feed", "a test")
    try:
        until(lambda: dataset.has(1))
        assert dataset.num_rows
        assert not dataset.complete
        until(lambda: dataset.waiting_for().startswith("shard 2 of climbmix"))
        until(lambda: dataset.has(10**9))
    finally:
        feeder.stop()
    assert dataset.complete
    assert len(dataset.bounds(1)) == 4
    assert all((tmp_path / "files" / name).read_bytes() == data for name, data in list(files.items())[:3])


@pytest.mark.timeout(120)
def test_what_stands_against_the_next_shard_ends_the_feed(hub, tmp_path, tokenizer_directory):
    serve(hub, 1, documents=10)
    hub.fail("shard_00001.parquet", Fault(status=404, head=True))
    feeder = Feeder(
        tmp_path / "feed", files_of(tmp_path / "files", 2), tokenizer_directory, tmp_path / "shards", **OPTIONS
    )
    dataset = GrowingDataset(tmp_path / "feed", "a test")
    until(lambda: dataset.has(10**9))
    feeder.stop()
    assert dataset.bounds(1)[-1] > 0
    with pytest.raises(UserError, match=r"cannot get shard_00001.parquet .* it answers 404 Not Found"):
        dataset.bounds(10**9)


FEEDING = """
import sys, time
from pathlib import Path
from nanochat.data.growing import Feeder
from tests.data.corpus_files import files_of
if __name__ == "__main__":
    place = Path(sys.argv[1])
    options = {"row_tokens": 32, "packing": "stream", "max_tokens": 10_000}
    feeder = Feeder(place / "feed", files_of(place, 1), Path(sys.argv[2]), place / "shards", **options)
    print(feeder._process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.timeout(120)
def test_a_feeder_ends_with_the_process_it_feeds(hub, tmp_path, tokenizer_directory):
    serve(hub, 1, documents=10)
    hub.fail("shard_00000.parquet", Fault(delay_s=60.0))
    command = [sys.executable, "-c", FEEDING, str(tmp_path), str(tokenizer_directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        feeder = psutil.Process(int(parent.stdout.readline()))
        until(lambda: any(request.method == "HEAD" for request in hub.requests))
        assert feeder.is_running()
        parent.kill()
    until(lambda: not feeder.is_running() or feeder.status() == psutil.STATUS_ZOMBIE, 5)


@pytest.mark.timeout(120)
def test_a_feeder_that_dies_is_told(hub, tmp_path, tokenizer_directory):
    serve(hub, 1, documents=10)
    hub.fail("shard_00000.parquet", Fault(delay_s=60.0))
    feeder = Feeder(
        tmp_path / "feed", files_of(tmp_path / "files", 1), tokenizer_directory, tmp_path / "shards", **OPTIONS
    )
    os.kill(feeder._process.pid, 9)
    dataset = GrowingDataset(tmp_path / "feed", "a test")
    until(lambda: dataset.has(1))
    with pytest.raises(UserError, match="died"):
        dataset.bounds(1)
