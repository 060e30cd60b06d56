"""Token shards: what rows hold, and that a shard is complete or not there, whatever happens to its files."""

import errno
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data import shards
from nanochat.data.dataset import TokenDataset
from nanochat.data.documents import is_chosen, is_validation, read_documents
from nanochat.data.shards import build_chat_shards, build_text_shards
from nanochat.errors import UserError
from nanochat.tokenizer import Tokenizer, render

FILES = {"tokens.bin", "documents.npy", "rows.npy", "spans.npy", "manifest.json"}
CONVERSATION = [
    {"role": "user", "content": "2+2?"},
    {
        "role": "assistant",
        "content": [
            {"type": "python", "text": "2+2"},
            {"type": "python_output", "text": "4"},
            {"type": "text", "text": "It is 4."},
        ],
    },
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat and said: what a mat! " * 20], 300)


@pytest.fixture
def files(tmp_path):
    """Two parquet files of 300 documents each."""
    found = []
    for part in range(2):
        texts = [f"file {part} document {i}: " + "the cat sat on the mat. " * (i % 7) for i in range(300)]
        found.append(tmp_path / f"{part}.parquet")
        pq.write_table(pa.table({"text": texts}), found[-1])
    return found


@pytest.fixture
def small_shards(monkeypatch):
    """Several sources of several shards each."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", 5000)
    monkeypatch.setattr(shards, "SOURCE_BYTES", 1)
    monkeypatch.setattr(shards, "_ENCODE_CHARS", 3000)


def build(files, tokenizer, cache, **changes):
    options = {"split": "all", "row_tokens": 32, "packing": "best_fit", "num_threads": 2} | changes
    return build_text_shards(files, tokenizer, cache, **options)


def targets_of(dataset):
    """All targets that carry loss, and the first tokens of the rows, as a sorted list."""
    tokens, mask = dataset.rows(np.arange(dataset.num_rows))
    return sorted(tokens[:, 1:][mask[:, 1:]].tolist() + tokens[:, 0][mask[:, 0]].tolist())


def all_tokens(files, tokenizer, keep=lambda text: True):
    return sorted(t for d in read_documents(files) if keep(d) for t in [tokenizer.bos_id, *tokenizer.encode(d)])


def directories(cache):
    return sorted(p for p in cache.iterdir() if p.is_dir())


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
@pytest.mark.usefixtures("small_shards")
def test_every_token_is_a_target_once(files, tokenizer, tmp_path, packing):
    dataset = build(files, tokenizer, tmp_path / "cache", packing=packing)
    expected = all_tokens(files, tokenizer)
    assert len(dataset.directories) > 4
    assert targets_of(dataset) == expected
    assert dataset.num_tokens == len(expected)
    assert dataset.num_documents == 600
    assert dataset.num_bytes == sum(len(d.encode()) for d in read_documents(files))
    tokens, mask = dataset.rows(np.arange(dataset.num_rows))
    assert tokens.dtype == np.int64
    assert mask.dtype == bool
    assert tokens.shape == mask.shape == (dataset.num_rows, 33)
    assert (tokens[~mask] >= 0).all()  # padding too must be valid for an embedding


def test_rows_by_hand(tokenizer, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "qqqqqqq"}\n{"text": "zz"}\n')
    q, z = tokenizer.encode("q")[0], tokenizer.encode("z")[0]
    bos = tokenizer.bos_id
    dataset = build([path], tokenizer, tmp_path / "cache", row_tokens=5)
    tokens, mask = dataset.rows(np.array([1, 0, 1]))
    assert tokens.tolist() == [[q, q, q, bos, z, z], [bos, q, q, q, q, q], [q, q, q, bos, z, z]]
    assert mask.tolist() == [[False, True, True, True, True, True], [True] * 6, [False] + [True] * 5]
    # The other way round the continued piece stands behind: its first token is the input of the next, not a target.
    path.write_text('{"text": "zzz"}\n{"text": "qqqqqqq"}\n')
    dataset = build([path], tokenizer, tmp_path / "cache", row_tokens=6)
    row, row_mask = dataset.row(1)
    assert row.tolist() == [bos, z, z, z, q, q, 0]
    assert row_mask.tolist() == [True, True, True, True, False, True, False]
    assert dataset.padded_fraction == 1 / 14
    for outside in (-1, 2):
        with pytest.raises(IndexError):
            dataset.row(outside)


def test_a_large_vocabulary_needs_wider_tokens(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "hello"}\n')
    tokens = [*(bytes([i]) for i in range(256)), *(f"hel{i}".encode() for i in range(70_000)), b"he", b"hel", b"ll"]
    large = Tokenizer(tokens)
    row, _ = build([path], large, tmp_path / "cache", row_tokens=4).row(0)
    assert row.tolist()[: len(large.encode("hello")) + 1] == [large.bos_id, *large.encode("hello")]
    assert large.bos_id > 65_536


def test_the_splits_share_no_document_and_do_not_depend_on_the_files(files, tokenizer, tmp_path):
    train, val = (build(files, tokenizer, tmp_path / "cache", split=split) for split in ("train", "val"))
    assert targets_of(train) == all_tokens(files, tokenizer, lambda d: not is_validation(d))
    assert targets_of(val) == all_tokens(files, tokenizer, is_validation)
    assert val.num_documents + train.num_documents == 600
    alone = build(files[:1], tokenizer, tmp_path / "cache", split="val")
    assert targets_of(alone) == all_tokens(files[:1], tokenizer, is_validation)


def test_another_share_for_validation_is_another_split(files, tokenizer, tmp_path):
    train, val = (build(files, tokenizer, tmp_path / "cache", split=split, one_in=16) for split in ("train", "val"))
    assert targets_of(val) == all_tokens(files, tokenizer, lambda d: is_validation(d, 16))
    assert val.num_documents + train.num_documents == 600
    assert val.num_documents > 2 * build(files, tokenizer, tmp_path / "cache", split="val").num_documents


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("split", ["all", "train", "val"])
def test_a_share_is_of_all_files_and_throughout_them(files, tokenizer, tmp_path, split):
    def of_split(text):
        return split == "all" or is_validation(text, 4) == (split == "val")

    dataset = build(files, tokenizer, tmp_path / "cache", split=split, one_in=4, share=0.25, max_tokens=100)
    assert targets_of(dataset) == all_tokens(files, tokenizer, lambda d: is_chosen(d, 0.25) and of_split(d))
    assert dataset.share == 0.25
    chosen = [text for text in read_documents(files) if is_chosen(text, 0.25) and of_split(text)]
    places = [600 * int(text.split()[1]) + 2 * int(text.split()[3].rstrip(":")) for text in chosen]
    assert [len(chosen) // 16 <= sum(place // 300 == part for place in places) for part in range(4)] == [True] * 4


def test_a_share_that_holds_too_little_is_made_larger(files, tokenizer, tmp_path):
    whole = build(files, tokenizer, tmp_path / "cache")
    for wanted in (whole.num_tokens // 4, whole.num_tokens, 10 * whole.num_tokens):
        dataset = build(files, tokenizer, tmp_path / "cache", share=0.001, max_tokens=wanted)
        assert dataset.num_tokens >= min(wanted, whole.num_tokens)
        assert (dataset.share < 1) == (wanted < whole.num_tokens)
    again = build(files, tokenizer, tmp_path / "cache", share=0.001, max_tokens=whole.num_tokens // 4)
    assert again.num_tokens < whole.num_tokens // 2


@pytest.mark.usefixtures("small_shards")
def test_a_second_call_reuses_everything(files, tokenizer, tmp_path, monkeypatch):
    first = build(files, tokenizer, tmp_path / "cache")
    monkeypatch.setattr(shards, "_write_shard", None)
    second = build(files, tokenizer, tmp_path / "cache")
    assert second.directories == first.directories
    assert second.fingerprint == first.fingerprint


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("victims", [[0], [1, 2], [0, 2, 3], [-1]])
@pytest.mark.parametrize("name", ["tokens.bin", "spans.npy", "manifest.json", None])
def test_only_damaged_or_missing_shards_are_made_again(files, tokenizer, tmp_path, monkeypatch, victims, name):
    first = build(files, tokenizer, tmp_path / "cache")
    expected = targets_of(first)
    damaged = sorted({first.directories[v] for v in victims})
    for directory in damaged:
        assert {p.name for p in directory.iterdir()} == FILES
        if name is None:
            for path in directory.iterdir():
                path.unlink()
            directory.rmdir()
        else:
            content = bytearray((directory / name).read_bytes())
            content[len(content) // 2] ^= 1
            (directory / name).write_bytes(content)
    written = []
    write = shards._write_shard
    monkeypatch.setattr(
        shards, "_write_shard", lambda directory, *rest: written.append(directory) or write(directory, *rest)
    )
    again = build(files, tokenizer, tmp_path / "cache")
    assert sorted(written) == damaged
    assert again.fingerprint == first.fingerprint
    assert targets_of(again) == expected


@pytest.mark.parametrize("failing", ["fsync", "rename"])
@pytest.mark.usefixtures("small_shards")
def test_a_crash_leaves_no_half_shard(files, tokenizer, tmp_path, monkeypatch, failing):
    cache = tmp_path / "cache"
    calls = []

    def crash(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*_)

    owner, attribute = (shards.os, "fsync") if failing == "fsync" else (Path, "rename")
    original = getattr(owner, attribute)
    with monkeypatch.context() as patched:
        patched.setattr(owner, attribute, crash)
        patched.setattr(shards.shutil, "rmtree", lambda *_, **__: None)  # a kill -9 cleans up nothing
        with pytest.raises(KeyboardInterrupt):
            build(files, tokenizer, cache)
    assert any(p.name.startswith(".partial-") for p in cache.iterdir())
    interrupted = build(files, tokenizer, cache)
    assert not any(p.name.startswith(".partial-") for p in cache.iterdir())
    assert interrupted.fingerprint == build(files, tokenizer, tmp_path / "other").fingerprint


def test_a_full_disk_is_the_users_to_solve(files, tokenizer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        with pytest.raises(UserError, match=r"the disk is full at .*cache"):
            build(files, tokenizer, tmp_path / "cache")
    assert directories(tmp_path / "cache") == []
    assert build(files, tokenizer, tmp_path / "cache").num_documents == 600


def test_concurrent_builders_agree(files, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    script = f"""
from pathlib import Path
from nanochat.data import shards
from nanochat.tokenizer import Tokenizer
shards.SHARD_TOKENS, shards.SOURCE_BYTES = 2000, 1
files = [Path(p) for p in {[str(f) for f in files]}]
dataset = shards.build_text_shards(files, Tokenizer.load(Path({str(tmp_path)!r})), Path({str(tmp_path / "cache")!r}),
                                   split="all", row_tokens=32, packing="stream", num_threads=1)
print(dataset.fingerprint)
"""
    processes = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert all({p.name for p in d.iterdir()} == FILES for d in directories(tmp_path / "cache"))


@pytest.mark.usefixtures("small_shards")
def test_max_tokens_is_deterministic_and_asks_for_no_more_files(files, tokenizer, tmp_path):
    whole = build(files, tokenizer, tmp_path / "whole")
    asked = []

    def arriving():
        for file in files:
            asked.append(file)
            yield file

    limited = build(arriving(), tokenizer, tmp_path / "cache", max_tokens=7000)
    assert asked == files[:1]
    assert 7000 <= limited.num_tokens < 7000 + 200  # by less than a document
    assert build(files, tokenizer, tmp_path / "cache", max_tokens=7000).fingerprint == limited.fingerprint
    for limit in (100, 7001, 10**9):  # whatever else the cache holds
        fresh = build(files, tokenizer, tmp_path / str(limit), max_tokens=limit)
        assert build(files, tokenizer, tmp_path / "cache", max_tokens=limit).fingerprint == fresh.fingerprint
    assert fresh.fingerprint == whole.fingerprint


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("max_tokens", [None, 500, 9000, 12_000])
def test_made_on_all_cores_the_dataset_is_the_same(tokenizer, tmp_path, monkeypatch, max_tokens):
    """Sources that are certain to be needed are made ahead, in any order; no file is asked for that is not needed."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    files = [tmp_path / f"{number}.jsonl" for number in range(12)]
    for number, file in enumerate(files):
        texts = [f"file {number} document {i}: the cat sat on the mat" for i in range(40)]
        file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    ahead, asked = [], []

    def spread(function, items):
        ahead.extend(items)
        return map(function, reversed(items))

    def arriving():
        for file in files:
            asked.append(file)
            yield file

    plain = build(arriving(), tokenizer, tmp_path / "plain", max_tokens=max_tokens)
    asked_plainly, asked[:] = list(asked), []
    at_once = build(arriving(), tokenizer, tmp_path / "spread", max_tokens=max_tokens, spread=spread)
    assert at_once.fingerprint == plain.fingerprint
    assert asked == asked_plainly
    names = [[path.name for path in directories(tmp_path / where)] for where in ("plain", "spread")]
    assert names[0] == names[1], "nothing was made for nothing"
    assert bool(ahead) == (max_tokens is None or max_tokens > 8000)


def test_what_a_shard_is_made_from_decides_its_name(files, tokenizer, tmp_path):
    cache = tmp_path / "cache"
    base = build(files, tokenizer, cache)
    others = [
        build(files, tokenizer, cache, row_tokens=33),
        build(files, tokenizer, cache, packing="stream"),
        build(files, tokenizer, cache, split="train"),
        build(files, Tokenizer.train(["other text"], 280), cache),
    ]
    assert len({dataset.fingerprint for dataset in [base, *others]}) == 5
    renamed = [file.rename(file.with_name(f"renamed {file.name}")) for file in files]
    assert build(renamed, tokenizer, cache).directories == base.directories
    pq.write_table(pa.table({"text": ["changed"] * 300}), renamed[0])
    assert build(renamed, tokenizer, cache).directories != base.directories


def test_a_folder_of_notes_is_one_shard(tokenizer, tmp_path):
    notes = [tmp_path / f"{i}.txt" for i in range(50)]
    for i, note in enumerate(notes):
        note.write_text(f"note {i}")
    dataset = build(notes, tokenizer, tmp_path / "cache")
    assert len(dataset.directories) == 1
    assert dataset.num_documents == 50


def test_a_split_without_documents_is_explained(tokenizer, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("document 0")
    with pytest.raises(UserError, match="no document of the data falls into the validation split") as caught:
        build([path], tokenizer, tmp_path / "cache", split="val")
    assert "one document in 64" in caught.value.hint
    path.write_text("\n \n")
    with pytest.raises(UserError, match="holds no document"):
        build([path], tokenizer, tmp_path / "cache", split="train")


def test_progress_counts_tokens(files, tokenizer, tmp_path):
    calls = []
    dataset = build(files, tokenizer, tmp_path / "a", progress=lambda *call: calls.append(call))
    assert calls[-1] == (dataset.num_tokens, 0)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    dataset = build(files, tokenizer, tmp_path / "b", max_tokens=2000, progress=lambda *call: calls.append(call))
    assert calls[-1] == (dataset.num_tokens, 2000)


def test_a_dataset_travels_as_paths(files, tokenizer, tmp_path):
    dataset = build(files, tokenizer, tmp_path / "cache")
    sent = pickle.dumps(dataset)
    assert len(sent) < 1000
    assert pickle.loads(sent).fingerprint == TokenDataset(dataset.directories).fingerprint == dataset.fingerprint


def test_conversations_keep_their_supervision(tokenizer, tmp_path):
    """Only one longer than a row is cut, and what is cut off stands in another row."""
    path = tmp_path / "x.jsonl"
    long = [{"role": "user", "content": "why? " * 40}, {"role": "assistant", "content": "because. " * 40}]
    path.write_text(
        "".join(json.dumps({"messages": m}) + "\n" for m in [CONVERSATION, long, CONVERSATION, CONVERSATION])
    )
    ids, supervised = render(tokenizer, CONVERSATION)
    long_ids, long_mask = render(tokenizer, long)
    time = 2 * len(ids) + 1  # two conversations fit, not three
    dataset = build_chat_shards([path], tokenizer, tmp_path / "cache", row_tokens=time - 1)
    tokens, mask = dataset.rows(np.arange(dataset.num_rows))
    whole = [(row, carries) for row, carries in zip(tokens.tolist(), mask.astype(int).tolist(), strict=True)]
    assert whole[0] == (long_ids[:time], long_mask[:time])
    assert ([*ids, *ids, 0], [*supervised, *supervised, 0]) in whole
    assert dataset.num_documents == 4
    stream = build_chat_shards([path], tokenizer, tmp_path / "cache", row_tokens=time - 1, packing="stream")
    learned = [(ids, supervised)] * 3 + [(long_ids, long_mask)]
    expected = sorted(t for i, m in learned for t, s in zip(i, m, strict=True) if s)
    assert targets_of(stream) == targets_of(dataset) == expected


def test_no_conversations(tokenizer, tmp_path):
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no conversation"):
        build_chat_shards([tmp_path / "x.jsonl"], tokenizer, tmp_path / "cache", row_tokens=32)
