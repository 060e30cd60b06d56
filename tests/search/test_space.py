from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import UserError
from nanochat.search.space import Domain, load_space

SPACES = Path(__file__).parents[2] / "search_spaces"


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.py")), ids=lambda path: path.stem)
def test_the_spaces_that_come_with_it(path):
    space = load_space(path)
    for domain in space.domains.values():
        values = domain.values()
        assert values == sorted(set(values))
        assert (values[0], values[-1]) == (domain.low, pytest.approx(domain.high, rel=0.7))
    assert space.stage in ("base", "sft")


@given(st.floats(0.01, 1e3), st.floats(1.0, 1e3), st.floats(0.05, 3))
def test_values_lie_within_the_bounds(low, factor, step):
    values = Domain("lr_multiplier", "base", low, low * factor, "log2", step).values()
    assert values[0] == pytest.approx(low)
    assert all(low * 0.999 <= value <= low * factor * 1.001 for value in values)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(text)
    return path


def test_ones_own(tmp_path):
    space = load_space(write(tmp_path, """
# four sizes
SPACE = {"depth": {"stage": "base", "low": 2, "high": 8, "scale": "log2", "step": 1}}
"""))  # fmt: skip
    assert (space.name, space["depth"].values()) == ("mine", [2, 4, 8])


GOOD = '"stage": "base", "low": 2, "high": 8, "scale": "log2", "step": 1'


def depth(domain: str) -> str:
    return f"SPACE = {{'depth': {{{domain}}}}}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "once"),
        ("SPACE = {}", "at least one knob"),
        ("SPACE = 3", "at least one knob"),
        ("SPACE = {", "plain data"),
        ("import os\nSPACE = os.environ", "plain data"),
        ("SPACE = {'depth': open('/etc/passwd')}", "plain data"),
        ("SPACE = {'x': 1}\nSPACE = {'x': 1}", "once"),
        ("SPACE = {'dept': {}}", "no knob 'dept'"),
        ("SPACE = {'depth': 4}", "depth must be a dict"),
        ("SPACE = {'depth': {'stage': 'base'}}", "lacks high, low, scale, step"),
        (depth(GOOD + ", 'lowest': 1"), "no field lowest"),
        (depth(GOOD.replace("base", "sft")), "depth of a model"),
        (depth(GOOD.replace("log2", "log10")), "scale must be"),
        (depth(GOOD.replace('"low": 2', '"low": 9')), "low 9 is above high 8"),
        (depth(GOOD.replace('"low": 2', '"low": -2')), "low must be a positive number, not -2"),
        (depth(GOOD.replace('"low": 2', '"low": "2"')), "not '2'"),
        (depth(GOOD.replace('"low": 2', '"low": 1.5')), "whole numbers"),
        (depth(GOOD + ", 'default': 4"), "no field default"),
        (depth(GOOD.replace('"base"', '["base"]')), r"not \['base'\]"),
        (depth(GOOD.replace('"step": 1', '"step": 1e-9')), "more than 1000"),
        (depth(GOOD + "}, 'lr_multiplier': {" + GOOD.replace("base", "mid")), "one stage"),
    ],
)  # fmt: skip
def test_a_wrong_one_is_a_clear_error(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        load_space(write(tmp_path, text))


def test_one_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_space(tmp_path / "none.py")
