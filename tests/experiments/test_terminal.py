"""What is shown of a run on something that is no terminal."""

import io

import pytest
from rich.console import Console

from experiments.terminal import SILENT_S, Display
from nanochat.events import StageStarted, StepDone, Validated


def test_silence_is_never_long():
    at, out = [0.0], io.StringIO()
    with Display(Console(file=out, width=120), clock=lambda: at[0]) as display:
        display(StageStarted("base", 0, 100, 256))
        said = [out.tell()]
        for second in range(1, 61):
            at[0] = second
            display.look()
            if out.tell() > said[-1]:
                said.append(out.tell())
        assert len(said) - 1 == int(60 / SILENT_S)
        assert "base: the first step, for 54.0 s" in out.getvalue()
        display(StepDone("base", 1, 3.0, 1.0, 1.0, 60.0, 4.0))
        for second in range(61, 71):
            at[0] = second
            display.look()
        assert "base: training, for 9.0 s" in out.getvalue()
        assert out.getvalue().count("\n") == len(out.getvalue().splitlines())


@pytest.mark.parametrize(("by_clock", "told", "at"), [(True, "about 100 steps", "base 120  "),
                                                      (False, "base: 100 steps", "base 120/100  ")])  # fmt: skip
def test_how_many_steps_there_will_be_is_said_where_it_is_known(by_clock, told, at):
    out = io.StringIO()
    with Display(Console(file=out, width=120)) as display:
        display(StageStarted("base", 0, 100, 256, by_clock))
        display(StepDone("base", 120, 3.0, 1.0, 1.0, 0.5, 512.0, progress=0.8))
        display(Validated("base", 120, 0.5, 1.0))
    assert f"{told} of 256 tokens" in out.getvalue()
    assert out.getvalue().count(at) == 2


def test_a_step_shows_its_share_of_the_measured_peak():
    """Which is no MFU: that is of what the data sheet says."""
    out = io.StringIO()
    with Display(Console(file=out, width=120), peak_tokens=40.0) as display:
        display(StageStarted("base", 0, 100, 256))
        display(StepDone("base", 1, 3.0, 1.0, 1.0, 25.6, 10.0))
    assert "10 tok/s  25% of peak" in out.getvalue()
