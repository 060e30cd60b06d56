import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.training import storage
from nanochat.training.checkpoint import CheckpointError, CheckpointStore, open_checkpoint

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
POINTS = ["model", "optimizer", "state", "manifest", "written", "parked", "renamed", "retained"]


def content(step: int) -> tuple[dict, dict]:
    """What a run would save at this step; a function of the step alone, as resuming exactly makes it."""
    model = {"weight": torch.full((300, 7), float(step)), "scale": torch.tensor(step, dtype=torch.bfloat16)}
    return {"model": model, "optimizer": {"moment": torch.arange(step, step + 5)}}, {"step": step, "seed": 7}


def assert_is(found, step: int) -> None:
    tensors, state = content(step)
    assert (found.step, found.state) == (step, state)
    for group, expected in tensors.items():
        assert same_tensors(found.tensors(group), expected)


def same_tensors(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and torch.equal(left[name], right[name])
        for name in left
    )


def refuse_warnings(message: str) -> None:
    raise AssertionError(f"unexpected warning: {message}")


# --- what is saved comes back ---------------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__" and name.isprintable())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def any_tensor(draw):
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    tensor = torch.randint(0, 200, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 999)))).to(dtype)
    return draw(st.sampled_from([tensor, tensor.transpose(0, -1) if shape else tensor, tensor.expand(2, *shape)]))


@settings(max_examples=60)
@given(
    tensors=st.dictionaries(
        st.sampled_from(["model", "optimizer", "ema"]), st.dictionaries(names, any_tensor(), max_size=4), max_size=3
    ),
    state=st.dictionaries(st.text(), json_values, max_size=4),
    step=st.integers(0, 10**7),
)
def test_round_trip(tmp_path_factory, tensors, state, step):
    store = CheckpointStore(tmp_path_factory.mktemp("store"))
    path = store.save(step, tensors, state)
    found = store.newest(refuse_warnings)
    assert (found.path, found.step, found.state) == (path, step, state)
    for group, expected in tensors.items():
        assert same_tensors(found.tensors(group), expected)


def test_shared_and_sliced_memory(tmp_path):
    base = torch.arange(12.0)
    group = {
        "all": base,
        "same": base,
        "tail": base[6:],
        "columns": base.view(3, 4)[:, 1],
        "parameter": torch.nn.Parameter(base.view(3, 4)),
    }
    path = CheckpointStore(tmp_path).save(1, {"model": group}, {})
    found = open_checkpoint(path).tensors("model")
    assert same_tensors(found, {name: tensor.detach() for name, tensor in group.items()})
    assert not any(tensor.requires_grad for tensor in found.values())
    found["all"].zero_()  # what was read is the reader's own
    assert open_checkpoint(path).tensors("model")["all"].sum() == 66


def test_names_and_layout(tmp_path):
    store = CheckpointStore(tmp_path / "base" / "checkpoints")
    assert (store.steps(), store.newest(refuse_warnings)) == ([], None)
    path = store.save(500, *content(500))
    assert path == tmp_path / "base" / "checkpoints" / "step_000500"
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    with pytest.raises(CheckpointError, match="holds no ema"):
        open_checkpoint(path).tensors("ema")


# --- damage ---------------------------------------------------------------------------------------------------------


def test_no_single_bit_of_a_checkpoint_can_flip_unseen(tmp_path):
    """Either it is refused or, in white space of the manifest only, nothing of it changed."""
    store = CheckpointStore(tmp_path)
    path = store.save(2, *content(2))
    choose = random.Random(0)
    for file in [*FILES, "manifest.json", "manifest.json"]:
        data = bytearray((path / file).read_bytes())
        for _ in range(60):
            place, bit = choose.randrange(len(data)), 1 << choose.randrange(8)
            data[place] ^= bit
            (path / file).write_bytes(data)
            found = store.newest(lambda message: None)
            if found is not None:
                assert file == "manifest.json"
                assert_is(found, 2)
            data[place] ^= bit
        (path / file).write_bytes(data)
    assert_is(store.newest(refuse_warnings), 2)


# --- death ----------------------------------------------------------------------------------------------------------


def save_and_die(directory: Path, step: int, point: str, half_written: bool = False) -> None:
    """Save in another process, killed with SIGKILL at the point."""

    def fault(passed: str) -> None:
        if passed == point:
            if half_written:
                file = directory / f".step_{step:06d}" / f"{point}.safetensors"
                os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    store = CheckpointStore(directory, keep_last=1, fault=fault)
    child = multiprocessing.get_context("fork").Process(target=store.save, args=(step, *content(step)))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("point", [point for point in POINTS if point != "parked"])
def test_killed_while_saving(tmp_path, point):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(1, *content(1))
    save_and_die(tmp_path, 2, point, half_written=point == "optimizer")
    arrived = point in ("renamed", "retained")
    assert_is(store.newest(refuse_warnings), 2 if arrived else 1)
    store.save(2, *content(2))
    assert_is(store.newest(refuse_warnings), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step_000002"]


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_replacing_the_only_one(tmp_path, point):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(2, *content(2))
    save_and_die(tmp_path, 2, point)
    assert_is(store.newest(refuse_warnings), 2)
    assert store.steps() == [2]
    store.save(3, *content(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step_000003"]


def test_killed_at_any_time(tmp_path):
    """A process that saves as fast as it can, killed ten times at random: there is always a whole newest one."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_checkpoint import *\n"
        "while True:\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "        store = CheckpointStore(Path(sys.argv[2]))\n"
        "        while True:\n"
        "            found = store.newest(refuse_warnings)\n"
        "            step = found.step + 1 if found else 1\n"
        "            store.save(step, *content(step))\n"
        "    os.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    choose, reached = random.Random(1), []
    try:
        for _ in range(10):
            child = int(parent.stdout.readline())
            time.sleep(choose.uniform(0.02, 0.15))
            os.kill(child, signal.SIGKILL)
            found = CheckpointStore(tmp_path).newest(lambda message: None)
            reached.append(found.step if found else 0)
            if found:
                assert_is(found, found.step)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    assert reached == sorted(reached)
    assert reached[-1] > 5


def test_two_writers_take_turns(tmp_path):
    """Neither sweeps away what the other is writing."""

    def save_many(first: int) -> None:
        for step in range(first, 40, 2):
            CheckpointStore(tmp_path, keep_last=40).save(step, *content(step))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(save_many, (0, 1))) == [None, None]
    assert CheckpointStore(tmp_path).steps() == list(range(40))
    assert_is(CheckpointStore(tmp_path).newest(refuse_warnings), 39)


# --- a disk that is full --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Write a file until only `leave` bytes are free."""
    stat = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(max(stat.f_bavail * stat.f_frsize - leave, 0)))


@pytest.mark.parametrize("free", [0, 4096, 12288, 20480, 24576, 28672])
def test_full_disk(small_disk, free):
    """With room for nothing, for the directory, for some of the files."""
    store = CheckpointStore(small_disk / "checkpoints", keep_last=1)
    store.save(1, *content(1))
    fill(small_disk, free)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        store.save(2, {"model": {"weight": torch.ones(5000)}, "optimizer": {"moment": torch.ones(5000)}}, {})  # 40 kB
    assert "step 2" in caught.value.message
    assert str(small_disk) in caught.value.message
    assert caught.value.hint
    assert sorted(path.name for path in store.directory.iterdir()) == [".lock", "step_000001"]
    assert_is(store.newest(refuse_warnings), 1)
    (small_disk / "filler").unlink()
    store.save(2, *content(2))
    assert_is(store.newest(refuse_warnings), 2)


def test_file_size_limit(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, *content(1))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            store.save(2, *content(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert store.steps() == [1]
    assert not list(tmp_path.glob(".step*"))


def test_a_quota_and_an_interrupt_leave_nothing_behind(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(1, *content(1))
    for error, raised in (
        (OSError(errno.EDQUOT, "Disk quota exceeded"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):

        def fail(path, error=error):
            raise error

        monkeypatch.setattr(storage, "flush", fail)
        with pytest.raises(raised):
            store.save(2, *content(2))
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step_000001"]
