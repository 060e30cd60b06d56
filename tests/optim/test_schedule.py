"""Schedules as functions of progress."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nanochat.optim.schedule import Schedule, muon_momentum

share = st.floats(0, 1)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    warmup = draw(share)
    return Schedule(warmup, draw(st.floats(0, 1 - warmup)), draw(share))


@given(schedules(), share)
def test_factors_stay_within_nothing_and_peak(schedule: Schedule, progress: float) -> None:
    assume(not schedule.problems())
    assert 0 <= schedule.learning_rate(progress) <= 1
    assert schedule.learning_rate(0) > 0 or schedule.warmdown == 1


@given(st.floats(0.02, 0.5), st.floats(0.02, 0.5), share, share, st.floats(0, 1e-6))
def test_a_small_step_of_progress_is_a_small_change(warmup: float, warmdown: float, final: float, progress: float,
                                                   step: float) -> None:
    schedule = Schedule(warmup, warmdown, final)
    later = min(progress + step, 1.0)
    change = abs(schedule.learning_rate(later) - schedule.learning_rate(progress))
    assert change <= step / min(warmup, warmdown) + 1e-9


def test_the_trapezoid_warms_up_holds_and_warms_down() -> None:
    schedule = Schedule(warmup=0.2, warmdown=0.4, final=0.1)
    assert [schedule.learning_rate(p) for p in (0.1, 0.2, 0.5, 0.6)] == [0.5, 1.0, 1.0, 1.0]
    assert schedule.learning_rate(0.8) == pytest.approx(0.55)
    assert schedule.learning_rate(1.0) == pytest.approx(0.1)
    assert schedule.learning_rate(0.0) == 0.01


def test_without_warmup_and_warmdown_it_is_constant() -> None:
    assert {Schedule(0, 0, 0.5).learning_rate(p) for p in (0.0, 0.3, 1.0)} == {1.0}


def test_impossible_schedules_list_every_problem() -> None:
    problems = " ".join(Schedule(warmup=-0.1, warmdown=1.5, final=2).problems())
    assert all(word in problems for word in ("warmup must", "warmdown must", "final must", "overlap"))
    assert Schedule(warmup=0.6, warmdown=0.5).problems()
    assert not Schedule().problems()


def test_momentum_rises_to_its_final_value() -> None:
    values = [muon_momentum(step) for step in range(0, 400, 10)]
    assert values[0] == 0.85
    assert values[-1] == pytest.approx(0.95)
    assert values == sorted(values)
