from nanochat.events import (
    Follower,
    JsonlSink,
    Note,
    Resumed,
    Sampled,
    StepDone,
    Validated,
    forget_after,
    from_json,
    metrics_path,
    read_events,
    to_json,
)


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
    events = [step(1), step(2), Validated("base", 2, 1.0, 0.1), step(3), step(4)]
    for event in events:
        sink(event)
    forget_after(tmp_path, "base", 2)
    assert list(read_events(tmp_path, "base")) == [*events[:3], Resumed("base", 2)]
    forget_after(tmp_path, "mid", 0)  # a stage that recorded nothing


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
    forget_after(tmp_path, "base", 1)
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
