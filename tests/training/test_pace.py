import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.training.pace import Pace


def test_steps_alone_decide_without_a_deadline():
    pace = Pace(50)
    assert [pace.progress(step, 1e9) for step in (0, 25, 49, 50)] == [0, 0.5, 0.98, 1]


def test_the_clock_decides_where_it_is_ahead():
    pace = Pace(100, begun=0.2, since_s=10, end_s=50)
    assert pace.progress(0, 10) == 0.2
    assert pace.progress(20, 30) == pytest.approx(0.6)
    assert pace.progress(70, 30) == 0.7
    assert pace.progress(20, 50) == 1


def test_no_step_is_begun_that_would_end_too_late():
    pace = Pace(100, end_s=50)
    assert pace.progress(0, 47, step_s=2.9) < 1
    assert pace.progress(0, 47, step_s=3) == 1


def test_taken_up_too_late_it_is_over():
    assert Pace(100, begun=0.9, since_s=60, end_s=50).progress(90, 60) == 1


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 20)), min_size=1, max_size=60),
    st.sets(st.integers(0, 59)),
    st.floats(0.1, 30),
)
def test_progress_never_falls_and_a_restart_never_makes_it_jump(moves, restarts, lost_s):
    """Whatever the speed, and whatever a restart costs, progress goes on from where it was."""
    pace, step, now, last = Pace(100, end_s=300.0), 0, 0.0, 0.0
    for number, (steps, seconds) in enumerate(moves):
        step, now = min(step + steps, 100), now + seconds
        progress = pace.progress(step, now)
        assert last <= progress <= 1
        last = progress
        if number in restarts:
            now += lost_s
            pace = Pace(100, progress, now, 300.0)
            if now < 300.0:
                assert pace.progress(step, now) == progress
