"""Batches are a pure function of dataset, seed and step, however many workers share them."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.batches import IGNORE, Batches, prefetch
from nanochat.data.shards import build_chat_shards, build_text_shards
from nanochat.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("batches")
    (directory / "x.jsonl").write_text("".join(f'{{"text": "row {i:03d}"}}\n' for i in range(10)))
    tokenizer = Tokenizer.train([], 265)
    return build_text_shards(
        [directory / "x.jsonl"], tokenizer, directory, split="all", row_tokens=7, packing="best_fit"
    )


def test_inputs_and_targets(tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": messages}))
    tokenizer = Tokenizer.train([], 265)
    dataset = build_chat_shards([tmp_path / "x.jsonl"], tokenizer, tmp_path, row_tokens=10)
    batch = Batches(dataset, total_rows=1, seed=0).batch(0)
    special, y, o = tokenizer.special, *tokenizer.encode("yo")
    asked = [special("<|bos|>"), special("<|user_start|>"), *tokenizer.encode("hi"), special("<|user_end|>")]
    answered = [special("<|assistant_start|>"), y, o, special("<|assistant_end|>"), 0]
    assert batch.inputs.tolist() == [asked + answered]
    assert batch.targets.tolist() == [[IGNORE] * 5 + [y, o, special("<|assistant_end|>"), IGNORE, IGNORE]]
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.is_contiguous()


def test_every_epoch_visits_every_row_once_in_another_order(dataset):
    assert dataset.num_rows == 10
    batches = Batches(dataset, total_rows=4, seed=3)
    visited = np.concatenate([batches.row_indices(step) for step in range(5)])  # two epochs, the third batch in both
    assert sorted(visited[:10]) == sorted(visited[10:]) == list(range(10))
    assert visited[:10].tolist() != visited[10:].tolist()
    assert [batches.epochs(step) for step in (0, 1, 5)] == [0.0, 0.4, 2.0]
    other_seed = Batches(dataset, total_rows=4, seed=4)
    assert other_seed.row_indices(0).tolist() != batches.row_indices(0).tolist()


def test_the_order_is_pinned(dataset):
    """A checkpoint holds only its step: this order must survive every release of ours and of NumPy."""
    assert Batches(dataset, total_rows=10, seed=42).row_indices(1).tolist() == [1, 2, 8, 5, 3, 9, 6, 0, 4, 7]


def test_a_batch_may_be_larger_than_the_dataset(dataset):
    counts = Counter(Batches(dataset, total_rows=25, seed=0).row_indices(0).tolist())
    assert set(counts.values()) == {2, 3}
    assert len(counts) == 10


@settings(max_examples=50)
@given(steps=st.lists(st.integers(0, 10_000), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_workers_share_the_batch_of_one_worker(dataset, steps, seed):
    batches = Batches(dataset, total_rows=12, seed=seed)
    for step in steps:  # in any order, and from a fresh object: nothing is remembered
        whole = Batches(dataset, total_rows=12, seed=seed).batch(step)
        for world_size in (1, 2, 3, 4, 5, 7, 12):  # equal shares and unequal ones
            shares = [batches.batch(step, rank, world_size) for rank in range(world_size)]
            assert torch.equal(torch.cat([share.inputs for share in shares]), whole.inputs)
            assert torch.equal(torch.cat([share.targets for share in shares]), whole.targets)


def test_a_worker_without_rows_is_refused(dataset):
    with pytest.raises(ValueError, match="12 rows cannot be shared by 13 workers"):
        Batches(dataset, total_rows=12, seed=0).batch(0, rank=0, world_size=13)
    with pytest.raises(ValueError, match="at least one row"):
        Batches(dataset, total_rows=0, seed=0)


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (3, 4), (3, 5), (2, 2)])
def test_prefetch_gives_the_same_batches(dataset, start, stop):
    batches = Batches(dataset, total_rows=4, seed=0)
    found = list(prefetch(batches, start, stop, rank=1, world_size=2))
    assert len(found) == stop - start
    for step, batch in zip(range(start, stop), found, strict=True):
        assert torch.equal(batch.inputs, batches.batch(step, 1, 2).inputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_are_in_memory_that_it_fetches_by_itself(dataset):
    (batch,) = prefetch(Batches(dataset, total_rows=4, seed=0), 0, 1, pin=True)
    assert batch.inputs.is_pinned()
    assert batch.targets.is_pinned()


def test_prefetch_works_ahead_but_not_far_and_passes_errors_on(dataset):
    made = []

    class Recording(Batches):
        def batch(self, step, rank=0, world_size=1):
            made.append(step)
            if step == 5:
                raise OSError("the disk is gone")
            return super().batch(step, rank, world_size)

    stream = prefetch(Recording(dataset, total_rows=4, seed=0), 0, 100)
    next(stream)
    stream.close()
    assert made[0] == 0
    assert max(made) <= 2
    with pytest.raises(OSError, match="the disk is gone"):
        list(prefetch(Recording(dataset, total_rows=4, seed=0), 0, 100))
