import os

import pytest

from nanochat.events import (
    Follower,
    JsonlSink,
    Note,
    Resumed,
    RolledBack,
    Sampled,
    StepDone,
    Validated,
    forget_after,
    from_json,
    metrics_path,
    read_events,
    recorded_bytes,
    to_json,
)
from nanochat.run import Run, Status
from tests.full_disk import fill, small_disk


def step(number: int) -> StepDone:
    return StepDone("base", number, 2.5, 0.1, 1.0, 0.2, 1000.0)


def test_json_round_trip():
    for event in (step(3), Note("mid", 'quoted "text"\nand a line', warning=True), Sampled("sft", 1, "é", "🙂")):
        assert from_json(to_json(event)) == event
        assert "\n" not in to_json(event)


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    sink = JsonlSink(tmp_path)
    sink(step(1))
    with metrics_path(tmp_path, "base").open("a") as file:
        file.write(to_json(step(2))[:20])
    assert list(read_events(tmp_path, "base")) == [step(1)]
    with metrics_path(tmp_path, "base").open("a") as file:
        file.write(to_json(step(3)) + "\n")  # glued to the cut line by whoever resumed
    sink(step(4))
    assert list(read_events(tmp_path, "base")) == [step(1), step(4)]


def test_forgetting_keeps_what_came_before_the_checkpoint(tmp_path):
    sink = JsonlSink(tmp_path)
    note = Note("base", "the disk is full", warning=True)
    events = [step(1), step(2), Validated("base", 2, 1.0, 0.1), step(3), note, step(4)]
    for event in events[:3]:
        sink(event)
    recorded = recorded_bytes(tmp_path, "base")
    for event in events[3:]:
        sink(event)
    forget_after(tmp_path, "base", recorded, 2)
    assert list(read_events(tmp_path, "base")) == [*events[:3], note, Resumed("base", 2)]
    forget_after(tmp_path, "mid", 0, 0)  # a stage that recorded nothing
    assert not metrics_path(tmp_path, "mid").exists()


def test_a_rollback_that_a_checkpoint_has_seen_is_kept(tmp_path):
    """Order decides, not step numbers: step 3 came before the rollback to 1 and is part of the record."""
    sink = JsonlSink(tmp_path)
    events = [step(1), step(2), step(3), RolledBack("base", 3, 1, 0.5), step(2)]
    for event in events:
        sink(event)
    recorded = recorded_bytes(tmp_path, "base")
    sink(step(3))
    forget_after(tmp_path, "base", recorded, 2)
    assert list(read_events(tmp_path, "base")) == [*events, Resumed("base", 2)]


def test_unusual_line_ends_in_a_text_do_not_break_its_line(tmp_path):
    sampled = Sampled("sft", 1, "a", "b\u2028c\x85d\re")
    JsonlSink(tmp_path)(sampled)
    assert list(read_events(tmp_path, "sft")) == [sampled]


def test_follower_sees_each_event_once(tmp_path):
    sink, follower = JsonlSink(tmp_path), Follower(tmp_path, ("base", "mid"))
    assert list(follower.poll()) == []
    sink(step(1))
    assert list(follower.poll()) == [step(1)]
    with metrics_path(tmp_path, "base").open("a") as file:
        file.write(to_json(step(2)))
    assert list(follower.poll()) == []  # not a whole line yet
    with metrics_path(tmp_path, "base").open("a") as file:
        file.write("\n")
    assert list(follower.poll()) == [step(2)]
    forget_after(tmp_path, "base", len(to_json(step(1))) + 1, 1)
    sink(step(2))  # before anybody looked
    assert list(follower.poll()) == [Resumed("base", 1), step(2)]
    assert list(follower.poll()) == []


def test_follower_can_start_late(tmp_path):
    sink = JsonlSink(tmp_path)
    sink(step(1))
    follower = Follower(tmp_path, ("base",))
    follower.skip_existing()
    sink(step(2))
    assert list(follower.poll()) == [step(2)]


def test_a_full_disk_keeps_events_waiting_and_in_order(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        sink = JsonlSink(disk)
        sink(step(1))
        ballast = fill(disk)
        for number in range(2, 60):  # beyond what the file's last page still holds
            sink(step(number))
        assert 1 <= len(list(read_events(disk, "base"))) < 59
        ballast.unlink()
        sink(step(60))
        assert [event.step for event in read_events(disk, "base")] == list(range(1, 61))


def test_a_full_device_does_no_harm_where_no_disk_can_be_mounted(tmp_path):
    path = metrics_path(tmp_path, "base")
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    sink = JsonlSink(tmp_path)
    sink(step(1))
    sink(step(2))
    path.unlink()
    sink(step(3))
    assert list(read_events(tmp_path, "base")) == [step(1), step(2), step(3)]
    (tmp_path / f".status.json.{os.getpid()}").symlink_to("/dev/full")
    Run(tmp_path).write_status(Status("running"))
    assert Run(tmp_path).status() is None
    Run(tmp_path).write_status(Status("running"))
    assert Run(tmp_path).status().state == "running"


def test_no_more_than_so_many_lines_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat.events.MAX_WAITING", 3)
    path = metrics_path(tmp_path, "base")
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    sink = JsonlSink(tmp_path)
    for number in range(9):
        sink(step(number))
    path.unlink()
    sink(step(9))
    assert [event.step for event in read_events(tmp_path, "base")] == [7, 8, 9]


def test_another_failure_than_a_full_disk_is_raised(tmp_path):
    metrics_path(tmp_path, "base").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        JsonlSink(tmp_path)(step(1))
    (tmp_path / "status.json").mkdir()
    with pytest.raises(IsADirectoryError):
        Run(tmp_path).write_status(Status("running"))


def test_a_status_that_cannot_be_written_leaves_the_old_one(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        run = Run(disk)
        run.write_status(Status("running", "base", 1))
        fill(disk)
        run.write_status(Status("running", "base", 2))
        assert run.status().step == 1
        assert sorted(path.name for path in disk.iterdir()) == ["ballast", "status.json"]
