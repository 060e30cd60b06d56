"""Figures of a run as SVG, in colours that the colour-blind tell apart and shapes that survive a black-and-white print.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nanochat.curves import Array, Curves

# Okabe & Ito 2008, "Color Universal Design": black, orange, sky blue, green, vermilion, blue, purple.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7")
DASHES = ("-", "--", ":", "-.")
MOST_POINTS = 400  # of a line: more cannot be seen, and make the file large
WIDTH, HEIGHT = 9.0, 5.2  # inches


def warm_up() -> None:
    """What the first figure of a process, or of a machine, takes beforehand: seconds, for code and fonts."""
    _svg(_figure(1.0))


def stage_figure(curves: Curves, peak_flops: float, flops_per_token: float) -> str:
    """Loss and val_bpb over tokens and over time, learning rate, throughput.

    Args:
        peak_flops: of all devices, in the dtype of the products; 0: not known.
        flops_per_token: of a training step.
    """
    figure = _figure(HEIGHT)
    over_tokens, over_time, rate, speed = figure.subplots(2, 2).flat
    for axes, x, val_x, label in ((over_tokens, curves.tokens, curves.val_tokens, "tokens"),
                                  (over_time, curves.seconds / 60, curves.val_seconds / 60, "minutes of training")):
        axes.plot(*thinned(x, curves.loss), color=COLOURS[2], linewidth=1, label="loss (nats a token)")
        axes.plot(val_x, curves.val_bpb, color=COLOURS[4], marker="o", markersize=3, linestyle="--", label="val_bpb")
        axes.set_xlabel(label)
        axes.set_ylim(bottom=0)
    over_tokens.legend(frameon=False)
    rate.plot(*thinned(curves.tokens, curves.lr_factor), color=COLOURS[5])
    rate.set(xlabel="tokens", ylabel="learning rate, of its highest", ylim=(0, None))
    speed.plot(*thinned(curves.tokens, curves.tokens_per_second), color=COLOURS[3], linewidth=1)
    speed.set(xlabel="tokens", ylabel="tokens a second", ylim=(0, None))
    if peak_flops:
        share = speed.secondary_yaxis("right", functions=(lambda rate: 100 * rate * flops_per_token / peak_flops,
                                                          lambda mfu: mfu * peak_flops / flops_per_token / 100))
        share.set_ylabel("% of matmul peak")
    return _svg(figure)


def comparison_figure(curves: Mapping[str, Curves]) -> str:
    """val_bpb of several runs over tokens and over time."""
    figure = _figure(HEIGHT / 2)
    over_tokens, over_time = figure.subplots(1, 2)
    for number, (name, run) in enumerate(curves.items()):
        how = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)], "label": name}
        over_tokens.plot(run.val_tokens, run.val_bpb, **how)
        over_time.plot(run.val_seconds / 60, run.val_bpb, **how)
    over_tokens.set(xlabel="tokens", ylabel="val_bpb")
    over_time.set(xlabel="minutes of training")
    over_tokens.legend(frameon=False)
    return _svg(figure)


def accuracy_figure(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Accuracy by skill, with two standard errors, beside what chance gives."""
    figure = _figure(0.6 + 0.25 * len(scores))
    axes = figure.subplots()
    names = list(scores)[::-1]
    keys = ("accuracy", "chance", "count")
    accuracy, chance, count = (np.array([scores[name][key] for name in names]) for key in keys)
    error = 2 * np.sqrt(accuracy * (1 - accuracy) / np.maximum(count, 1))
    places = np.arange(len(names))
    axes.barh(places, 100 * accuracy, color=COLOURS[2], height=0.6)
    axes.errorbar(100 * accuracy, places, xerr=100 * error, fmt="none", color=COLOURS[0], linewidth=1)
    axes.scatter(100 * chance, places, marker="|", s=140, color=COLOURS[4], zorder=3, label="chance")
    axes.set_yticks(places, names)
    axes.set(xlabel="% right", xlim=(0, 100))
    axes.legend(frameon=False, loc="lower right")
    return _svg(figure)


@dataclass(frozen=True)
class Prediction:
    """What a training was to end with, nine times in ten between two values, and what it did end with."""

    name: str
    low: float
    high: float
    achieved: float


def predictions_figure(predictions: Sequence[Prediction], last: str) -> str:
    """Predicted beside achieved, one row each; `last` names the last row's own kind, the others are trials."""
    figure = _figure(1.2 + 0.28 * len(predictions))
    axes = figure.subplots()
    places = np.arange(len(predictions))[::-1]
    achieved = np.array([each.achieved for each in predictions])
    ends = [each.low for each in predictions], [each.high for each in predictions]
    axes.hlines(places, *ends, color=COLOURS[2], linewidth=6, label="predicted, nine in ten")
    if len(predictions) > 1:
        axes.scatter(achieved[:-1], places[:-1], color=COLOURS[0], zorder=3, label="achieved by trials")
    axes.scatter(achieved[-1:], places[-1:], color=COLOURS[4], marker="D", zorder=3, label=f"achieved by {last}")
    axes.set_yticks(places, [each.name for each in predictions])
    axes.set(xlabel="val_bpb", ylim=(-0.7, len(predictions) - 0.3))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return _svg(figure)


def time_figure(parts: Mapping[str, float]) -> str:
    """Where the wall-clock went: seconds by what they went to, one bar."""
    figure = _figure(1.5)
    axes = figure.subplots()
    left, hatches = 0.0, ("", "//", "..", "xx", "\\\\")
    for number, (name, seconds) in enumerate(parts.items()):
        minutes = seconds / 60
        axes.barh([0], [minutes], left=left, color=COLOURS[(number + 1) % len(COLOURS)], edgecolor="white",
                  hatch=hatches[number % len(hatches)], label=name)  # fmt: skip
        left += minutes
    axes.set(xlabel="minutes", yticks=[], xlim=(0, left or 1))
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return _svg(figure)


def thinned(x: Array, y: Array, most: int = MOST_POINTS) -> tuple[Array, Array]:
    """Means of neighbours, so that at most so many points are left."""
    if len(x) <= most:
        return x, y
    parts = np.array_split(np.arange(len(x)), most)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _figure(height: float):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _svg(figure) -> str:  # type: ignore[no-untyped-def]
    """The same figure always gives the same text; letters stay letters."""
    from matplotlib import rc_context

    for axes in figure.axes:
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "nanochat", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
