"""Runs side by side: what was set differently, how they came along, where they ended, and whether that is chance."""

import math
from collections.abc import Callable, Sequence

from nanochat.config import TRAINED_STAGES, to_dict, usual_chat
from nanochat.curves import Curves, read_curves
from nanochat.errors import UserError
from nanochat.figures import comparison_figure
from nanochat.planning.preparing import unique_tokens
from nanochat.report import duration
from nanochat.report_parts import Figure, Table, Text
from nanochat.run import Run
from nanochat.search.priors import prior_for

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
BEYOND = 2.0  # standard deviations
NOT_OF_THE_MODEL = ("start_from", "start_tokenizer", "storage")  # paths, which differ as runs do


def compare(runs: Sequence[Run], stage: str | None = None, *, drawn: bool = False) -> list[Table | Text | Figure]:
    """Each run beside the first.

    Args:
        stage: whose course is compared; None: the first that all of them have trained.
        drawn: with a figure, which takes a second or two.

    Raises:
        UserError: there is no such stage.
    """
    common = [name for name in TRAINED_STAGES if all(len(read_curves(run, name).tokens) for run in runs)]
    if stage is not None and stage not in common:
        raise UserError(f"not all of these runs have trained {stage}", f"common are: {', '.join(common) or 'none'}")
    if not common:
        raise UserError("these runs have no trained stage in common", "python experiments/runs.py list")
    name = stage or common[0]
    curves = [read_curves(run, name) for run in runs]
    told: list[Table | Text | Figure] = [settings_table(runs)]
    if drawn:
        lines = {run.name: each for run, each in zip(runs, curves, strict=True)}
        told.append(Figure(f"val_bpb of {name}", comparison_figure(lines)))
    told += [_course(name, runs, curves, "tokens", lambda run: run.tokens[-1], "{:,.0f}".format, Curves.bpb_at_tokens),
             _course(name, runs, curves, "training time", lambda run: run.seconds[-1], duration,
                     Curves.bpb_at_seconds)]  # fmt: skip
    told.append(_ends(name, runs))
    return [*told, Text(tuple(verdicts(name, runs)))]


def settings_table(runs: Sequence[Run]) -> Table:
    """What differs in their configurations."""
    flat = [dict(_flat("", to_dict(run.config()))) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in NOT_OF_THE_MODEL]
    rows = tuple((key, *(one.get(key, "") for one in flat)) for key in keys if len({one.get(key) for one in flat}) > 1)
    return Table("What was set differently" if rows else "Nothing was set differently",
                 ("setting", *(run.name for run in runs)), rows)  # fmt: skip


def _flat(prefix: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, part in value.items() for pair in _flat(f"{prefix}.{key}" if prefix else key, part)]
    return [(prefix, f"{value:g}" if isinstance(value, float) else str(value))]


def _course(
    stage: str,
    runs: Sequence[Run],
    curves: Sequence[Curves],
    what: str,
    end: Callable[[Curves], float],
    shown: Callable[[float], str],
    bpb_at: Callable[[Curves, float], float],
) -> Table:
    """val_bpb at equal places, up to where the first of them ended."""
    shortest = min(map(end, curves))
    rows = tuple(
        (shown(share * shortest), *(_bpb(bpb_at(run, share * shortest)) for run in curves)) for share in SHARES
    )
    return Table(f"val_bpb of {stage} at equal {what}", (what, *(run.name for run in runs)), rows)


def _bpb(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _ends(stage: str, runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        curves, result = read_curves(run, stage), run.results().get(stage)
        spent = duration(result["train_s"] + result["other_s"] if result else float(curves.seconds[-1]))
        accuracy = _overall(run)
        rows.append(
            (
                run.name,
                f"{curves.tokens[-1]:,.0f}",
                spent,
                f"{result['tokens_per_second']:,.0f}" if result else "",
                _bpb(_last(curves)),
                f"{accuracy[0]:.0%}" if accuracy else "",
                "" if result else "not ended",
            )
        )
    columns = ("run", "tokens", "time", "tok/s", "val_bpb", "questions right", "")
    return Table(f"Where {stage} ended", columns, tuple(rows))


def _last(curves: Curves) -> float:
    return float(curves.val_bpb[-1]) if len(curves.val_bpb) else math.nan


def _overall(run: Run) -> tuple[float, float] | None:
    """Accuracy over all questions of the last stage that was asked, and how many there were."""
    asked = [result["scores"]["overall"] for result in run.results().values() if result.get("scores")]
    return (asked[-1]["accuracy"], asked[-1]["count"]) if asked else None


def verdicts(stage: str, runs: Sequence[Run]) -> list[str]:
    """For each run after the first: by how much it differs from the first, and whether chance would do it."""
    first, told = runs[0], []
    for other in runs[1:]:
        if _validated_on(stage, first) != _validated_on(stage, other):
            told.append(f"{other.name} validates on other text than {first.name}: their val_bpb cannot be compared.")
        else:
            told.append(_verdict(stage, first, other))
        if (one := _overall(first)) and (two := _overall(other)):
            difference = two[0] - one[0]
            sd = math.sqrt(sum(p * (1 - p) / max(count, 1) for p, count in (one, two)))
            told.append(
                f"{other.name} answers {100 * difference:+.1f} points of the questions: {_chance(difference, sd)}."
            )
    return told


def _validated_on(stage: str, run: Run) -> tuple[str, int]:
    """What text, and how much of it."""
    config = run.config()
    text = config.data if stage == "base" else config.chat or usual_chat(config.data)
    return text, config.stage(stage).eval_tokens


def _verdict(stage: str, first: Run, other: Run) -> str:
    one, two = (_last(read_curves(run, stage)) for run in (first, other))
    # What trainings that differ in nothing but the seed ended apart, LOG.md and nanochat/search/priors.py.
    config = first.config()
    noise = prior_for(first.hardware().device_type, config.data, unique_tokens(config)).noise
    return (
        f"{other.name} ends {stage} at val_bpb {two:.4f}, {two - one:+.4f} ({(two / one - 1):+.1%}) from {first.name}: "
        f"{_chance(two - one, math.sqrt(2) * noise)} (runs that are alike end ± {noise:g} apart)."
    )


def _chance(difference: float, sd: float) -> str:
    return "more than chance" if abs(difference) > BEYOND * sd else "no more than chance may do"
