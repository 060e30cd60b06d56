"""Saving in the background: the snapshot is of that moment, one write at a time, nothing is lost on leaving."""

import threading

import pytest
import torch

from nanochat.training.checkpoint import CheckpointError, CheckpointStore
from nanochat.training.saving import BackgroundSaver, Written


class SlowStore(CheckpointStore):
    """Writes when told to."""

    def __init__(self, directory, **options):
        super().__init__(directory, **options)
        self.go, self.writing = threading.Event(), []

    def save(self, step, tensors, state, score=None):
        self.writing.append(step)
        assert self.go.wait(10)
        return super().save(step, tensors, state, score)


def test_training_goes_on_while_a_snapshot_of_then_is_written(tmp_path):
    store, weights = SlowStore(tmp_path), torch.ones(1000)
    with BackgroundSaver(store) as saver:
        saver.start(1, {"model": {"w": weights}}, {})
        weights += 1  # training goes on
        assert saver.ended() == []
        store.go.set()
        (written,) = saver.wait()
    assert isinstance(written, Written)
    assert written.step == 1
    assert store.newest(pytest.fail).tensors("model")["w"].eq(1).all()


def test_one_write_at_a_time(tmp_path):
    store, weights = SlowStore(tmp_path), torch.ones(3)
    with BackgroundSaver(store) as saver:
        saver.start(1, {"model": {"w": weights}}, {})
        weights += 1
        second = threading.Thread(target=saver.start, args=(2, {"model": {"w": weights}}, {}))
        second.start()
        second.join(0.3)
        assert second.is_alive()  # it waits: the snapshot's memory is still being written
        assert store.writing == [1]
        store.go.set()
        second.join(10)
        assert [save.step for save in saver.wait()] == [1, 2]
    assert [store.newest(pytest.fail).step, store.steps()] == [2, [1, 2]]


def test_leaving_finishes_what_is_in_flight(tmp_path):
    store = SlowStore(tmp_path)
    with BackgroundSaver(store) as saver:
        saver.start(5, {"model": {"w": torch.ones(3)}}, {})
        threading.Timer(0.2, store.go.set).start()
    assert store.newest(pytest.fail).step == 5


def test_a_failed_write_is_told_and_the_next_may_succeed(tmp_path):
    points = []

    def fault(point):
        points.append(point)
        if points.count("model") == 1:
            raise OSError(28, "No space left on device")

    with BackgroundSaver(CheckpointStore(tmp_path, fault=fault)) as saver:
        saver.start(1, {"model": {"w": torch.ones(3)}}, {})
        saver.start(2, {"model": {"w": torch.ones(3)}}, {})
        failed, written = saver.wait()
    assert isinstance(failed, CheckpointError)
    assert "No space left" in failed.message
    assert written.step == 2


def test_a_bug_in_the_writer_is_not_swallowed(tmp_path):
    with BackgroundSaver(CheckpointStore(tmp_path)) as saver:
        saver.start(1, {"model": {"w": torch.ones(3)}}, {"not JSON": object()})
        with pytest.raises(TypeError):
            saver.wait()
