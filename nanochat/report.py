"""What a run was told to expect and what it measured, side by side: the summary and `report.md`."""

from collections.abc import Sequence

from nanochat.clock import read_clock
from nanochat.config import PUBLIC, STAGES, RunConfig
from nanochat.corpora import CORPORA
from nanochat.curves import read_curves
from nanochat.events import Note, Prepared, Resumed, RolledBack, Sampled, StepDone, read_events
from nanochat.figures import accuracy_figure, stage_figure, time_figure
from nanochat.model import train_flops_per_token
from nanochat.planning.estimate import Plan, StageEstimate
from nanochat.planning.preparing import corpus_shards
from nanochat.report_parts import Figure, Lines, Part, Row, Table, Talk, Text, page
from nanochat.run import Run


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def gigabytes(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 or count == 0 else f"{count / 1e6:.0f} MB"


def about(count: float) -> str:
    """A number that is not known to more than two digits: 2,500,000."""
    return f"{float(f'{count:.2g}'):,.0f}"


def stage_table(run: Run, plan: Plan) -> Table:
    """One row a finished stage, what was estimated beside what was measured."""
    results = run.results()
    expected = {stage.stage: stage for stage in plan.stages}
    rows: list[Row] = []
    if made := results.get("tokenizer"):
        characters = f"{made['characters'] / 1e6:.1f}M chars"
        rows.append(("tokenizer", "", characters, "", duration(made["seconds"]), "", "", "", "", ""))
    for stage, result in results.items():
        if stage == "tokenizer":
            continue
        planned = expected.get(stage)
        rows.append(
            (
                stage,
                f"{result['iterations']:,}",
                f"{result['tokens']:,}",
                duration(planned.seconds) if planned else "",
                duration(result["train_s"] + result["other_s"]),
                f"{result['tokens_per_second']:,.0f}",
                f"{result['peak_share']:.0%}",
                f"{result['first_val_bpb']:.3f} -> {result['val_bpb']:.3f}",
                gigabytes(planned.memory.total) if planned else "",
                gigabytes(result["peak_memory_bytes"]),
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
    scores = asked[-1]["scores"]
    rows = tuple(
        (skill, f"{score['accuracy']:.0%}", f"{score['chance']:.0%}", f"{score['count']:.0f}")
        for skill, score in scores.items()
    )
    if run.config().chat == PUBLIC:  # see nanochat.tasks.questions.Summary
        centred = [(score["accuracy"] - score["chance"]) / (1 - score["chance"])
                   for skill, score in scores.items() if skill != "overall"]  # fmt: skip
        rows += (("ChatCORE, centred on chance", f"{sum(centred) / len(centred):.0%}", "0%", ""),)
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


def plan_table(config: RunConfig, plan: Plan) -> Table:
    """What is about to be done, and its estimated cost."""
    columns = ("stage", "iterations", "tokens", "tokens a step", "FLOPs", "time", "memory", "disk", "download")
    prepare = ("prepare", "", "", "", "", duration(plan.prepare_s), "", gigabytes(plan.prepare_disk_bytes),
               gigabytes(plan.download_bytes))  # fmt: skip
    rows = tuple(
        (
            stage.stage,
            f"{stage.iterations:,}",
            f"{stage.tokens:,}",
            f"{config.stage(stage.stage).total_batch_size:,}",
            f"{stage.flops:.2e}",
            duration(stage.seconds),
            gigabytes(stage.memory.total),
            gigabytes(stage.disk_bytes),
            "",
        )
        for stage in plan.stages
    )
    return Table("Plan (all figures are estimates)", columns, (prepare, *rows))


def _layout(config: RunConfig, planned: StageEstimate, workers: int) -> str:
    """What makes a step: rows x context in a forward pass, how many of these, and by how many workers."""
    stage, row = config.stage(planned.stage), config.model.max_seq_len
    pieces = -(-stage.largest_share(row, workers) // stage.device_batch_size)
    parts = [f"{stage.device_batch_size} rows x {row:,}", *(f"{count} {what}" for count, what in
             ((pieces, "pieces one after the other"), (workers, "workers")) if count > 1)]  # fmt: skip
    equal = stage.total_batch_size == stage.device_batch_size * row * pieces * workers
    return f"{stage.total_batch_size:,} tokens {'=' if equal else 'in at most'} " + " x ".join(parts)


def cost_reasons(config: RunConfig, plan: Plan) -> list[str]:
    """Where the figures of the plan come from, a sentence each."""
    if not plan.stages:
        return []
    largest = max(plan.stages, key=lambda stage: stage.memory.total)
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in vars(largest.memory).items() if size)
    preparing = ", ".join(f"{each.what} {duration(each.seconds)}" for each in plan.preparing)
    runs_known = f"runs known here: {plan.runs_known}" if plan.runs_known else "assumed: no whole run is known here yet"
    layouts = dict.fromkeys(_layout(config, stage, plan.num_workers) for stage in plan.stages)
    return [
        f"a step: {'; '.join(layouts)}",
        f"time: {plan.speed}",
        f"beside the steps: {'; '.join(_beside_steps(stage) for stage in plan.stages)}",
        f"prepare: {preparing}; {runs_known}",
        f"memory of {largest.stage}, in GB: {parts}",
        "disk: the checkpoints a stage keeps; prepare: token shards, in the cache that runs share",
        *_text_reasons(config, plan),
    ]


def _beside_steps(stage: StageEstimate) -> str:
    """What else a stage takes, where that is worth a word."""
    told = ", ".join(f"{each.what} {duration(each.seconds)}" for each in stage.beside if each.seconds >= 0.05)
    return f"{stage.stage} {told or 'nothing'}"


def _text_reasons(config: RunConfig, plan: Plan) -> list[str]:
    """What is fetched from the hub."""
    corpus, shards = CORPORA.get(config.data), corpus_shards(config)
    if corpus is None or not shards:
        return []
    return [
        f"text: {corpus.repository}, about {shards:,} of its {corpus.validation:,} training shards of "
        f"{corpus.shard_bytes / 1e6:.0f} MB; {gigabytes(plan.download_bytes)} in all are still to download; "
        f"training begins with the first; licence {corpus.licence}"
    ]


def time_parts(run: Run) -> dict[str, float]:
    """Seconds of the run's clock so far by what they went to."""
    clock, parts = read_clock(run.clock_path), {}
    for stage, result in run.results().items():
        if stage != "tokenizer":
            parts[f"{stage}: compiling"] = result["first_step_s"]
            parts[f"{stage}: training"] = result["train_s"] - result["first_step_s"]
            parts[f"{stage}: evaluating, saving"] = result["other_s"]
    rest = (clock.spent_s + max(clock.beat - clock.started, 0.0) if clock else 0.0) - sum(parts.values())
    prepared = [event for event in read_events(run.directory, "tokenizer") if isinstance(event, Prepared)]
    if rest <= 0:
        return parts
    if not prepared or (run.directory / "search").exists():  # of an earlier version, or after a search's own
        return {"starting, preparing, ending": rest, **parts}
    tokenizer_s = run.results().get("tokenizer", {"seconds": 0.0})["seconds"]
    preparing = min(tokenizer_s + sum(event.sources_s + event.tokenising_s for event in prepared), rest)
    return {"starting, ending": rest - preparing, "data and tokenizer": preparing, **parts}


def report_parts(run: Run, more: Sequence[Part] = ()) -> list[Part]:
    """How the run was configured, what it cost, how good it is, and whatever more there is to say."""
    record, config, plan, results = run.record(), run.config(), run.plan(), run.results()
    about = (
        f"Mode {config.mode}, data {config.data}, conversations {config.chat}, seed {config.seed}, "
        f"depth {config.model.depth}, on {run.hardware().describe()}."
    )
    parts: list[Part] = [Text((about,)), stage_table(run, plan), *more]
    if said := conversation(run, config.trained_stages):
        parts.append(Talk("Conversation", tuple(said)))
    if scores := score_table(run):
        asked = next(result["scores"] for result in reversed(results.values()) if result.get("scores"))
        parts += [scores, Figure("Accuracy beside chance, with two standard errors", accuracy_figure(asked))]
    if spent := time_parts(run):
        parts.append(Figure("Where the time went", time_figure(spent)))
    for stage in config.trained_stages:
        curves = read_curves(run, stage)
        if len(curves.tokens) > 1:
            result = results.get(stage, {"peak_share": 0.0})
            peak = result["model_flops_per_second"] / result["peak_share"] if result["peak_share"] else 0.0
            flops = train_flops_per_token(config.model, config.model.max_seq_len)
            parts.append(Figure(f"Course of {stage}", stage_figure(curves, peak, flops)))
    if told := mishaps(run):
        parts.append(Lines("Mishaps", tuple(told)))
    parts += [plan_table(config, plan), Lines("Choices", tuple(record["reasons"]))]
    if again := record.get("command"):
        commit = record.get("git_commit", "unknown")
        parts.append(Text((f"python {again}", f"at commit {commit}, with the versions below."), "The same again"))
    parts.append(Lines("Environment", tuple(f"{name} {version}" for name, version in record["versions"].items())))
    return parts


def write_report(run: Run, more: Sequence[Part] = ()) -> None:
    """`report.md`, and `report.html` with figures; both whole in themselves."""
    parts, title = report_parts(run, more), f"Run {run.name}"
    run.report_path.with_suffix(".html").write_text(page(title, parts), encoding="utf-8")
    texts = [text for part in parts if (text := part.markdown())]
    run.report_path.write_text("\n".join([f"# {title}\n", *texts]), encoding="utf-8")
