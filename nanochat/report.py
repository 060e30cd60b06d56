"""What a run was told to expect and what it measured, side by side: the summary and `report.md`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.config import STAGES, RunConfig
from nanochat.events import Note, Resumed, RolledBack, Sampled, StepDone, read_events
from nanochat.run import Run

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A heading, column names and rows of text."""

    title: str
    columns: Row
    rows: tuple[Row, ...]

    def markdown(self) -> str:
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return f"## {self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def stage_table(run: Run, plan: dict[str, Any]) -> Table:
    """One row a finished stage, what was estimated beside what was measured."""
    results = run.results()
    expected = {stage["stage"]: stage["train_s"] + stage["other_s"] for stage in plan["stages"]}
    rows: list[Row] = []
    if made := results.get("tokenizer"):
        characters = f"{made['characters'] / 1e6:.1f}M chars"
        rows.append(("tokenizer", "", characters, "", duration(made["seconds"]), "", "", "", "", ""))
    for stage, result in results.items():
        if stage == "tokenizer":
            continue
        rows.append(
            (
                stage,
                f"{result['iterations']:,}",
                f"{result['tokens']:,}",
                duration(expected[stage]) if stage in expected else "",
                duration(result["train_s"] + result["other_s"]),
                f"{result['tokens_per_second']:,.0f}",
                f"{result['peak_share']:.0%}",
                f"{result['first_val_bpb']:.3f} -> {result['val_bpb']:.3f}",
                f"{plan['memory_bytes'] / 1e9:.1f} GB",
                f"{result['peak_memory_bytes'] / 1e9:.1f} GB",
            )
        )
    columns = (
        "stage", "iterations", "tokens", "time est.", "time", "tok/s", "of peak", "val_bpb", "memory est.", "memory"
    )  # fmt: skip
    return Table("Stages", columns, tuple(rows))


def score_table(run: Run) -> Table | None:
    """Task accuracies by skill of the last stage that was asked."""
    asked = [result for result in run.results().values() if result.get("scores")]
    if not asked:
        return None
    rows = tuple(
        (skill, f"{score['accuracy']:.0%}", f"{score['chance']:.0%}", f"{score['count']:.0f}")
        for skill, score in asked[-1]["scores"].items()
    )
    return Table(f"Task accuracies after {asked[-1]['stage']}", ("skill", "accuracy", "chance", "questions"), rows)


def mishaps(run: Run) -> list[str]:
    """What went wrong on the way and how it went on, in order: restarts, steps skipped, rollbacks, warnings."""
    told = []
    for stage in STAGES:
        for event in read_events(run.directory, stage):
            match event:
                case Resumed(step=step):
                    told.append(f"{stage}: taken up again at step {step:,}")
                case StepDone(step=step, skipped=True):
                    told.append(f"{stage}: step {step:,} skipped, its loss or gradient was not finite")
                case RolledBack():
                    told.append(
                        f"{stage}: back from step {event.step:,} to {event.to_step:,}, the data between left out, "
                        f"{event.lr_scale:g} of the learning rate"
                    )
                case Note(text=text, warning=True):
                    told.append(f"{stage}: {text}")
    return told


def conversation(run: Run, stages: tuple[str, ...]) -> list[tuple[str, str]]:
    """The latest questions and answers that the last stage recorded."""
    for stage in reversed(stages):
        samples = {
            event.prompt: event.text for event in read_events(run.directory, stage) if isinstance(event, Sampled)
        }
        if samples:
            return list(samples.items())
    return []


def plan_table(config: RunConfig, plan: dict[str, Any]) -> Table:
    """What is about to be done, and its estimated cost."""
    rows = [("prepare", "", "", "", duration(plan["prepare_s"]))]
    rows += [
        (
            stage["stage"],
            f"{stage['iterations']:,}",
            f"{config.stage(stage['stage']).total_batch_size:,}",
            f"{stage['flops']:.2e}",
            duration(stage["train_s"] + stage["other_s"]),
        )
        for stage in plan["stages"]
    ]
    return Table(
        "Plan (all figures are estimates)", ("stage", "iterations", "tokens a step", "FLOPs", "time"), tuple(rows)
    )


def write_report(run: Run, more: Sequence[Table | str] = ()) -> None:
    """`report.md`: how the run was configured, what it cost, how good it is, and whatever more there is to say."""
    record, config = run.record(), run.config()
    parts = [
        f"# Run {run.name}\n",
        f"Mode {config.mode}, data {config.data}, seed {config.seed}, depth {config.model.depth}, "
        f"on {record['hardware']['description']}.\n",
        stage_table(run, record["plan"]).markdown(),
    ]
    parts += [part.markdown() if isinstance(part, Table) else f"{part}\n" for part in more]
    if scores := score_table(run):
        parts.append(scores.markdown())
    if said := conversation(run, config.trained_stages):
        parts.append("## Conversation\n\n" + "\n".join(f"> **{prompt}**\n>\n> {text}\n" for prompt, text in said))
    if told := mishaps(run):
        parts.append("## Mishaps\n\n" + "\n".join(f"- {line}" for line in told) + "\n")
    parts.append(plan_table(config, record["plan"]).markdown())
    parts.append("## Choices\n\n" + "\n".join(f"- {reason}" for reason in record["reasons"]) + "\n")
    parts.append(
        "## Environment\n\n" + "\n".join(f"- {name} {version}" for name, version in record["versions"].items()) + "\n"
    )
    run.report_path.write_text("\n".join(parts), encoding="utf-8")
