"""Shards from a hub on loopback that is slow, cuts off, refuses, lies and vanishes."""

import errno
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from huggingface_hub import constants

from nanochat.corpora import CORPORA
from nanochat.data import hub as hub_module
from nanochat.data.hub import HINT, check_reachable, missing_bytes
from nanochat.errors import UserError
from tests.data.corpus_files import CLIMBMIX, files_of, serve
from tests.hub import Fault, Hub

CHUNK = 100  # bytes: what arrives is written in pieces of 10 MB, and the shards here are small
FETCH = f"""
import sys
from pathlib import Path
from huggingface_hub import constants
from tests.data.corpus_files import files_of
constants.DOWNLOAD_CHUNK_SIZE = {CHUNK}
print("ready", flush=True)
for path in files_of(Path(sys.argv[1]), int(sys.argv[2])):
    print(path.name, flush=True)
"""


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        yield hub


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def fetcher(folder: Path, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH, str(folder), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_whether_anybody_answers(hub, closed_port, monkeypatch):
    assert hub_module.answers()  # with 404, as there is no such page
    for place in (closed_port, "http://[::", "nonsense", "http://no.such.host.invalid"):
        monkeypatch.setenv("HF_ENDPOINT", place)
        assert not hub_module.answers(2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert not hub_module.answers(0.5)


def test_the_corpora_are_what_the_hub_has():
    assert [(corpus.file(corpus.validation), corpus.repository) for corpus in CORPORA.values()] == [
        ("shard_06542.parquet", "karpathy/climbmix-400b-shuffle"),
        ("shard_01822.parquet", "karpathy/fineweb-edu-100b-shuffle"),
    ]
    assert CLIMBMIX.shards_for(tokens=1000, chars=0) == 1
    assert CLIMBMIX.shards_for(tokens=11.2e9, chars=2e9) == 216  # 240 in the guide, at 1 token less in ten
    assert CLIMBMIX.shards_for(tokens=1, chars=500e6) == 2
    assert CORPORA["fineweb-edu"].shards_for(tokens=1e15, chars=0) == 1822  # never the one for validation


@pytest.mark.timeout(60)
def test_whatever_goes_wrong_the_files_are_right(hub, tmp_path):
    """Cut off twice, an error, too many requests, wrong bytes, and a HEAD that fails."""
    files = serve(hub, 5)
    first, second, third, fourth, fifth = list(files)[:5]
    hub.fail(first, Fault(cut_after=1000), Fault(cut_after=700))
    hub.fail(second, Fault(status=500))
    hub.fail(third, Fault(status=429), Fault(status=503, head=True))
    hub.fail(fourth, Fault(wrong=True))
    hub.fail(fifth, Fault(delay_s=0.5), Fault(status=404, head=True))
    paths = list(files_of(tmp_path, 5))
    assert [path.name for path in paths] == [first, second, third, fourth, fifth]
    assert all(path.read_bytes() == files[path.name] for path in paths)
    assert [request.start for request in hub.fetched(first)] == [0, 1000, 1700]
    assert [request.start for request in hub.fetched(fourth)] == [0, 0]
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_there_needs_no_hub(hub, tmp_path):
    files = serve(hub, 2)
    list(files_of(tmp_path, 2))
    hub.stop()
    assert [path.read_bytes() for path in files_of(tmp_path, 2)] == list(files.values())[:2]
    check_reachable(CLIMBMIX, range(2), tmp_path)
    assert missing_bytes(CLIMBMIX, range(3), tmp_path) == CLIMBMIX.shard_bytes


def test_only_what_is_expected_is_fetched_ahead(hub, tmp_path):
    serve(hub, 6)
    assert len(list(islice(files_of(tmp_path, 6, ahead=2), 1))) == 1
    time.sleep(0.5)
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [CLIMBMIX.file(0), CLIMBMIX.file(1)]
    assert len(list(files_of(tmp_path, 6, ahead=2))) == 6  # and the others when they are asked for


def test_the_shards_ahead_come_at_the_same_time(hub, tmp_path):
    serve(hub, 4)
    for number in range(4):
        hub.fail(CLIMBMIX.file(number), Fault(delay_s=1.0))
    start = time.monotonic()
    list(files_of(tmp_path, 4))
    assert time.monotonic() - start < 3.0


def test_waiting_is_told(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "SAY_FIRST_S", 0.2)
    monkeypatch.setattr(hub_module, "SAY_EVERY_S", 0.2)
    files = serve(hub, 1)
    size = len(files[CLIMBMIX.file(0)])
    hub.bytes_per_s = size / 1.0
    said: list[str] = []
    list(files_of(tmp_path, 1, say=said.append))
    assert said
    assert said[-1].startswith("waiting for shard 0 of climbmix, ")
    assert "%" in said[-1]


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ([Fault(wrong=True)] * 3, "SHA-256"),
        ([Fault(status=403)], "it answers 403 Forbidden"),
        ([Fault(status=404, head=True)], "it answers 404 Not Found"),
        ([Fault(status=500)] * 9, "it answers 500 Internal Server Error"),
    ],
)
def test_a_shard_that_cannot_be_had_is_an_error(hub, tmp_path, faults, reason):
    serve(hub, 1)
    hub.fail(CLIMBMIX.file(0), *faults)
    with pytest.raises(UserError) as caught:
        list(files_of(tmp_path, 1, patience_s=1.0))
    assert caught.value.message.startswith(f"cannot get shard_00000.parquet of {CLIMBMIX.repository} from {hub.url}:")
    assert reason in caught.value.message
    assert caught.value.hint == HINT
    assert not list(tmp_path.glob("*.parquet"))


def test_a_hub_that_vanishes_leaves_what_came(hub, tmp_path):
    files = serve(hub, 1)
    name = CLIMBMIX.file(0)
    hub.fail(name, Fault(cut_after=2000))
    hub.fail(name, *[Fault(status=500)] * 9)
    with pytest.raises(UserError, match="500"):
        list(files_of(tmp_path, 1, patience_s=0.5))
    partial = tmp_path / f".{name}.partial"
    assert partial.read_bytes() == files[name][:2000]
    hub.mend()
    assert next(iter(files_of(tmp_path, 1))).read_bytes() == files[name]
    assert hub.fetched(name)[-1].start == 2000


def test_a_full_disk_is_said(hub, tmp_path, monkeypatch):
    serve(hub, 1)

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub_module, "http_get", full)
    with pytest.raises(UserError, match="the disk is full at"):
        list(files_of(tmp_path, 1))


def test_nobody_there_is_said_within_seconds(tmp_path, monkeypatch, closed_port):
    monkeypatch.setenv("HF_ENDPOINT", closed_port)
    start = time.monotonic()
    with pytest.raises(UserError, match=f"cannot get shard_00000.parquet .* from {closed_port}") as caught:
        check_reachable(CLIMBMIX, range(1), tmp_path)
    assert time.monotonic() - start < 7
    assert "--data tinyworld" in caught.value.hint


def test_somebody_who_never_answers_is_said_within_seconds(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UserError, match="cannot get"):
            check_reachable(CLIMBMIX, range(1), tmp_path, within_s=2.0)
        assert time.monotonic() - start < 4


def test_offline_by_the_hubs_own_switch(hub, tmp_path, monkeypatch):
    serve(hub, 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot get"):
        check_reachable(CLIMBMIX, range(1), tmp_path, within_s=2.0)


def test_a_page_that_is_no_hub_is_no_shard(hub, tmp_path, monkeypatch):
    """A login page of a network answers everything with 200."""
    serve(hub, 1)
    hub.status = 200
    with pytest.raises(UserError, match="but not as a data hub does"):
        check_reachable(CLIMBMIX, range(1), tmp_path)
    with pytest.raises(UserError, match="but not as a data hub does"):
        list(files_of(tmp_path, 1))


def test_a_passing_error_is_asked_again(hub, tmp_path):
    serve(hub, 1)
    hub.fail(CLIMBMIX.file(0), Fault(status=429, head=True), Fault(status=502, head=True))
    check_reachable(CLIMBMIX, range(1), tmp_path)


def test_two_processes_at_once_fetch_each_shard_once(hub, tmp_path):
    files = serve(hub, 4)
    hub.bytes_per_s = 40_000
    both = [fetcher(tmp_path, 4) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs == [["ready", *list(files)[:4]]] * 2
    assert all((tmp_path / name).read_bytes() == files[name] for name in list(files)[:4])
    assert Counter(
        request.path for request in hub.requests if request.method == "GET" and request.path in files
    ) == dict.fromkeys(list(files)[:4], 1)


def test_killed_in_the_middle_the_next_goes_on_there(hub, tmp_path):
    files = serve(hub, 1, documents=2000)
    name = CLIMBMIX.file(0)
    hub.bytes_per_s = len(files[name]) / 3
    process = fetcher(tmp_path, 1)
    partial = tmp_path / f".{name}.partial"
    until = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = partial.stat().st_size
    assert 0 < there < len(files[name])
    hub.bytes_per_s = None
    assert next(iter(files_of(tmp_path, 1))).read_bytes() == files[name]
    assert hub.fetched(name)[-1].start == there


def test_it_goes_to_another_process_as_what_it_names(tmp_path):
    files = files_of(tmp_path, 3, say=lambda text: None)
    again = pickle.loads(pickle.dumps(files))
    assert (again.corpus, again.folder, list(again.shards), again.ahead) == (CLIMBMIX, tmp_path, [0, 1, 2], 3)
