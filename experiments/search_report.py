"""What a search tells at its end: the choice and its evidence, predicted beside achieved, and where the time went."""

import numpy as np

from experiments.budget_search import BudgetSearch, too_few
from nanochat.clock import read_clock
from nanochat.figures import Prediction, predictions_figure
from nanochat.report import duration
from nanochat.report_parts import Figure, Table, Text
from nanochat.search.decisions import Observation
from nanochat.search.law import NAMES

INTERVAL = 1.645  # standard deviations to either side that hold nine of ten


def sections(search: BudgetSearch) -> list[Table | Text | Figure]:
    """For summary and report. What this search saw is kept for the next one."""
    told: list[Table | Text | Figure] = [trial_table(search)] if search.policy.observations else []
    told.append(Text(tuple(verdict(search, search.final()).split("\n\n")), "The choice"))
    if search.stage != "base":  # the law is about base models
        return [*told, time_table(search)]
    search.remember()
    if figure := law_figure(search):
        told.append(figure)
    return [*told, law_table(search), time_table(search), hours_table(search)]


def law_figure(search: BudgetSearch) -> Figure | None:
    """What the law makes of each trial now, and what it said of the final run before that; None if that never ended."""
    final, choice = search.final(), search.choice()
    if final is None or final.val_bpb is None:
        return None
    found = []
    for seen in (each for each in search.policy.observations if each.val_bpb is not None):
        assert seen.val_bpb is not None
        found.append(_prediction(seen, *search.policy.predict(seen.config, seen.tokens), seen.val_bpb))
    found.append(_prediction(final, choice["predicted"], choice["sd"], final.val_bpb))
    return Figure("Predicted beside achieved", predictions_figure(found, "the final run"))


def _prediction(seen: Observation, mean: float, sd: float, achieved: float) -> Prediction:
    name = f"depth {seen.config.depth}, {seen.tokens / 1e6:.1f}M tokens"
    return Prediction(name, mean - INTERVAL * sd, mean + INTERVAL * sd, achieved)


def trial_table(search: BudgetSearch) -> Table:
    rows = tuple(
        (str(seen.config.depth), f"{seen.config.total_batch_size:,}", f"{seen.config.lr_multiplier:.2g}",
         f"{seen.tokens:,}", duration(seen.train_s), f"{seen.tokens_per_second:,.0f}",
         seen.error or f"{seen.val_bpb:.4f}")
        for seen in search.policy.observations
    )  # fmt: skip
    return Table("Trials", ("depth", "batch", "lr_multiplier", "tokens", "time", "tok/s", "val_bpb"), rows)


def verdict(search: BudgetSearch, final: Observation | None) -> str:
    """What was chosen and why, and how good the prediction was."""
    choice = search.choice()
    config = choice["config"]
    text = (
        f"Chosen: depth {config['depth']}, total_batch_size {config['total_batch_size']:,}, lr_multiplier "
        f"{config['lr_multiplier']:.2g}: {choice['why']}."
    )
    if "predicted" not in choice:
        return text
    low, high = (choice["predicted"] + sign * INTERVAL * choice["sd"] for sign in (-1, 1))
    text += f"\n\nPredicted val_bpb of the base stage {choice['predicted']:.3f} (nine in ten: {low:.3f} to {high:.3f})"
    if final is None or final.val_bpb is None:
        return text + "; it was not reached."
    found = "inside" if low <= final.val_bpb <= high else "OUTSIDE"
    return text + f"; achieved {final.val_bpb:.4f} on {final.tokens:,} tokens: {found} the interval."


def law_table(search: BudgetSearch) -> Table:
    fit = search.policy.fit
    rows = tuple(
        (name, f"{value:.3f}", f"± {INTERVAL * sd:.3f}", f"{before:.3f}", f"± {INTERVAL * before_sd:.3f}")
        for name, value, sd, before, before_sd in zip(
            NAMES, fit.theta, np.sqrt(np.diag(fit.covariance)), fit.prior.mean, fit.prior.sd, strict=True
        )
    )
    return Table("The law, see nanochat/search/law.py", ("number", "fitted", "", "prior", ""), rows)


def time_table(search: BudgetSearch) -> Table:
    """Where the hours went, to the last second of them."""
    seen, choice, clock = search.policy.observations, search.choice(), read_clock(search.run.clock_path)
    now_s = clock() if clock else choice["at_s"]
    at_a_time = search.policy.device.slots
    trials = [
        ("trials: training", sum(each.train_s for each in seen) / at_a_time),
        ("trials: starting, compiling", sum(each.startup_s for each in seen) / at_a_time),
    ]
    stages = []
    for stage, result in search.run.results().items():
        if stage != "tokenizer" and ("predicted" in choice or stage != search.stage):  # else it was a trial
            stages += [
                (f"{stage}: compiling", result["first_step_s"]),
                (f"{stage}: training", result["train_s"] - result["first_step_s"]),
                (f"{stage}: evaluating, saving, answering", result["other_s"]),
            ]
    rows = [
        ("preparing data; between trials", choice["at_s"] - sum(seconds for _, seconds in trials)),
        *trials,
        *stages,
        ("starting the final run, ending it", now_s - choice["at_s"] - sum(seconds for _, seconds in stages)),
        ("left over", search.asked.cap_s - now_s),
    ]
    return Table(
        "Where the hours went",
        ("", "time", "share"),
        tuple((name, duration(seconds), f"{seconds / search.asked.cap_s:.1%}") for name, seconds in rows),
    )


def hours_table(search: BudgetSearch) -> Table:
    """What other caps would buy, by the law as it is known now."""
    policy, rows = search.policy, []
    for factor in (0.5, 1.0, 2.0, 4.0):
        cap_s = factor * search.asked.cap_s
        if too_few(training_s := search.training_s(cap_s), cap_s):
            continue
        config = policy.best(training_s, policy.device.final_devices)
        mean, sd = policy.forecast(config)
        outlook = f"{mean:.3f} ({mean - INTERVAL * sd:.3f} to {mean + INTERVAL * sd:.3f})"
        rows.append((f"{factor * search.asked.hours:g}", str(config.depth), f"{config.total_batch_size:,}",
                     f"{config.tokens:,}", outlook))  # fmt: skip
    columns = ("hours", "depth", "batch", "tokens", "val_bpb")
    return Table("What other hours would buy (estimates)", columns, tuple(rows))
