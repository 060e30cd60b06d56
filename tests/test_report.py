"""Reports, curves and figures of a run whose record is written here."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nanochat.curves import read_curves
from nanochat.events import JsonlSink, Note, RolledBack, Sampled, StageStarted, StepDone, Validated
from nanochat.figures import (
    Prediction,
    accuracy_figure,
    comparison_figure,
    predictions_figure,
    stage_figure,
    thinned,
    time_figure,
)
from nanochat.report import time_parts, write_report
from nanochat.report_parts import Figure, Lines, Table, Talk, Text, page
from nanochat.run import Run

NASTY = "<script>alert('x')</script> & | **x**"


def step(number: int, loss: float, **more) -> StepDone:
    return StepDone("base", number, loss, 0.5, 1.0, 2.0, 50.0, **more)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_curves_are_what_was_recorded_without_what_a_rollback_took_back(run):
    sink = JsonlSink(run.directory)
    for event in (
        StageStarted("base", 0, 4, 100), Validated("base", 0, 3.0, 0.1), step(1, 4.0), step(2, 3.0),
        Validated("base", 2, 2.0, 0.1), step(3, 99.0, skipped=True), step(4, 50.0), Validated("base", 4, 9.0, 0.1),
        RolledBack("base", 4, 2, 0.5), step(3, 2.5), step(4, 2.0), Validated("base", 4, 1.0, 0.1),
    ):  # fmt: skip
        sink(event)
    curves = read_curves(run, "base")
    assert curves.tokens.tolist() == [100, 200, 300, 400]
    assert curves.seconds.tolist() == [2, 4, 6, 8]
    assert curves.loss.tolist() == [4.0, 3.0, 2.5, 2.0]
    assert curves.val_tokens.tolist() == [0, 200, 400]
    assert curves.val_seconds.tolist() == [0, 4, 8]
    assert curves.bpb_at_tokens(300) == pytest.approx(1.5)
    assert curves.bpb_at_seconds(2) == pytest.approx(2.5)
    assert np.isnan(curves.bpb_at_tokens(500))
    assert len(read_curves(run, "mid").tokens) == 0


def test_lines_are_thinned_to_means():
    x, y = np.arange(1000.0), np.repeat([1.0, 3.0], 500)
    few_x, few_y = thinned(x, y, 10)
    assert len(few_x) == len(few_y) == 10
    assert few_y.tolist() == [1.0] * 5 + [3.0] * 5
    assert few_x[0] == pytest.approx(49.5)
    assert thinned(x[:10], y[:10], 10)[0] is not None


def test_figures_say_in_letters_what_they_show(run):
    sink = JsonlSink(run.directory)
    sink(StageStarted("base", 0, 3, 100))
    for number in range(1, 4):
        sink(step(number, 4.0 / number))
    sink(Validated("base", 3, 1.0, 0.1))
    curves = read_curves(run, "base")
    drawn = stage_figure(curves, 1e6, 100.0)
    for label in ("val_bpb", "minutes of training", "% of matmul peak", "tokens a second"):
        assert label in drawn
    assert "% of matmul peak" not in stage_figure(curves, 0.0, 100.0)
    assert drawn == stage_figure(curves, 1e6, 100.0), "the same figure, the same text"
    scores = {"overall": {"accuracy": 0.5, "chance": 0.25, "count": 10.0},
              "spelling": {"accuracy": 0.0, "chance": 0.0, "count": 0.0}}  # fmt: skip
    assert "spelling" in accuracy_figure(scores)
    assert "base: training" in time_figure({"base: training": 60.0, "base: compiling": 3.0})
    rows = [Prediction("depth 1", 1.0, 1.2, 1.1), Prediction("depth 4", 0.5, 0.7, 0.8)]
    drawn = predictions_figure(rows, "the final run")
    assert all(label in drawn for label in ("depth 1", "depth 4", "nine in ten", "achieved by the final run"))
    assert "first" in comparison_figure({"first": curves, "second": curves})


class _Strict(HTMLParser):
    """Fails on tags that do not close, and lists what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.fetched += [value for key, value in attributes if key in ("src", "href", "xlink:href")
                         and value and not value.startswith("#")]  # fmt: skip
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_in_itself_and_nobody_writes_into_it():
    parts = [Table(NASTY, ("a", NASTY), ((NASTY, "1"),)), Text((NASTY,), "t"), Lines("l", (NASTY,)),
             Talk("said", ((NASTY, NASTY),)), Figure(NASTY, time_figure({NASTY: 1.0}))]  # fmt: skip
    html = page(NASTY, parts)
    reader = _Strict()
    reader.feed(html)
    assert reader.open == []
    assert reader.fetched == []
    assert "<script" not in html
    assert not re.search(r"url\((?!#)", html)


@pytest.mark.ray
def test_a_real_run_writes_both(whole, tmp_path):
    run = whole.copied_to(tmp_path)
    text, html = run.report_path.read_text(), run.report_path.with_suffix(".html").read_text()
    for part in ("Stages", "Choices", "The same again", "run_stage.py --runs-dir", "Environment"):
        assert part in text
        assert part in html
    for part in ("Course of base", "Where the time went", "<svg"):
        assert part in html
        assert part not in text
    assert len(html) < 3_000_000
    JsonlSink(run.directory)(Note("base", "something broke", warning=True))
    JsonlSink(run.directory)(Sampled("base", 24, "Hello", NASTY))
    write_report(run)
    assert "something broke" in run.report_path.read_text()
    assert "<script" not in run.report_path.with_suffix(".html").read_text()


def test_a_run_of_an_earlier_version_did_not_say_what_preparing_took(whole, tmp_path):
    run = whole.copied_to(tmp_path)
    metrics = run.directory / "tokenizer" / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(True) if '"prepared"' not in line))
    parts = time_parts(run)
    assert "starting, preparing, ending" in parts
    assert "data and tokenizer" not in parts
    assert sum(parts.values()) == pytest.approx(sum(time_parts(whole.run).values()))
