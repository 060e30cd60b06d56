import json

import pytest

from nanochat.clock import read_clock, start_clock
from tests.full_disk import fill, small_disk


def test_it_counts_from_the_start_of_the_command(tmp_path):
    clock = start_clock(tmp_path / "clock.json", began=1000.0)
    assert clock(lambda: 1012.5) == 12.5
    assert read_clock(tmp_path / "clock.json") == clock


def test_time_while_nothing_ran_does_not_count(tmp_path):
    path = tmp_path / "clock.json"
    clock = start_clock(path, began=1000.0)
    clock.beating(path, now=lambda: 1030.0)  # heard of until here, then killed
    again = start_clock(path, began=90_000.0)
    assert again(lambda: 90_005.0) == 35.0
    again.beating(path, now=lambda: 90_010.0)
    assert start_clock(path, began=200_000.0)(lambda: 200_000.0) == 40.0


def test_a_clock_set_back_never_gives_time_back(tmp_path):
    path = tmp_path / "clock.json"
    start_clock(path, began=1000.0).beating(path, now=lambda: 400.0)
    assert start_clock(path, began=500.0)(lambda: 500.0) == 0.0


@pytest.mark.parametrize("text", ["", "[]", '{"spent_s": "1", "started": 2, "beat": 3}', json.dumps({"spent_s": 1})])
def test_a_note_that_makes_no_sense_counts_for_nothing(tmp_path, text):
    (tmp_path / "clock.json").write_text(text)
    assert read_clock(tmp_path / "clock.json") is None
    assert start_clock(tmp_path / "clock.json", began=5.0)(lambda: 6.0) == 1.0


def test_on_a_full_disk_the_clock_goes_on(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        clock = start_clock(disk / "clock.json", began=0.0)
        fill(disk)
        assert clock.beating(disk / "clock.json", now=lambda: 9.0).beat == 9.0
        assert read_clock(disk / "clock.json") == clock
