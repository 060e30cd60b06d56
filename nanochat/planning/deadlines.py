"""Dividing a wall-clock cap among the stages of a run."""

import math
from dataclasses import replace

from nanochat.config import RunConfig, StageConfig
from nanochat.errors import UserError
from nanochat.planning.estimate import checkpoint_bytes, compile_seconds, stage_estimate, step_seconds
from nanochat.planning.hardware import Hardware
from nanochat.planning.overheads import ANSWERING, EVALUATING, SAVING, UNENDED, overhead_s, reserved_overhead_s
from nanochat.planning.preparing import NOTHING, There, begins_s, preparations

CLOSING_S = {"cpu": 9.0, "cuda": 15.0}  # for Ray to end and the report to be written
SAMPLES_S = 1.0
SLOW_DISK = 1.75  # times that a save takes as long as it is planned to
SPARE_STEPS = 2.0  # times the iterations that the estimate has time for: the clock ends a stage, if it is wrong too
LOOKS = 5  # evaluations and checkpoints of a stage that short; there are more in a longer one
LOOK_EVERY_S = 120.0
MOST_ON_EVALUATING = 0.03  # of a stage: there are fewer evaluations where they take long
MIN_STAGE_S = 5.0
MOST_ON_COMPILING = 0.5  # of what there is for training


def with_deadlines(
    config: RunConfig,
    cap_s: float,
    hardware: Hardware,
    num_workers: int = 1,
    spent_s: float | None = None,
    there: There = NOTHING,
) -> RunConfig:
    """The configuration with a deadline for each of its trained stages.

    The time is divided as their iterations were; what comes before the first stage and after the last is estimated
    and left out, and compiling comes on top of the first one's. Iterations become an upper bound, far above those to
    be expected, so that the clock ends each stage.

    Args:
        cap_s: what the whole run may take, from the start of its command.
        spent_s: how much of it is gone when the first stage begins; None: what preparing is estimated to take.
        there: what of the data need not be made or fetched.

    Raises:
        UserError: there is not enough time to train anything.
    """
    stages = [(name, config.stage(name)) for name in config.trained_stages]
    seconds = training_seconds(config, cap_s, hardware, num_workers, spent_s, there)
    start_s = cap_s - CLOSING_S[hardware.device_type] - seconds
    if seconds < MIN_STAGE_S * len(stages):
        needed = cap_s - seconds + MIN_STAGE_S * len(stages)
        raise UserError(
            f"{cap_s:.0f} s are too few: {cap_s - seconds:.0f} s go to starting, preparing the data and ending",
            f"give at least --hours {math.ceil(needed / 3.6) / 1000:.3f}",
        )
    compiling_s = compile_seconds(config, stages[0][1].device_batch_size, hardware) if stages else 0.0
    compiling_s = min(compiling_s, MOST_ON_COMPILING * seconds)
    tokens = sum(stage.num_iterations * stage.total_batch_size for _, stage in stages)
    changed, now = dict[str, StageConfig](), start_s
    for name, stage in stages:
        share = (seconds - compiling_s) * stage.num_iterations * stage.total_batch_size / tokens
        share += 0.0 if changed else compiling_s  # which steps take where nothing is left to compile
        step_s = step_seconds(config, stage, hardware, num_workers)
        count = max(round(share / step_s), 1)
        every = max(round(count / max(LOOKS, share / LOOK_EVERY_S)), 1)
        evaluation_s = overhead_s(EVALUATING, stage.eval_tokens / stage.total_batch_size * step_s, hardware)
        seldom = math.ceil(evaluation_s / step_s / MOST_ON_EVALUATING)
        stage = replace(
            stage,
            num_iterations=round(SPARE_STEPS * count),
            eval_every=max(every, min(seldom, count)),
            checkpoint_every=every,
            deadline_s=now + share,
            tail_s=min(stage_tail_s(config, name, hardware), share / 3),
        )
        with_stage = replace(config, **{name: stage})  # type: ignore[arg-type]
        planned = stage_estimate(with_stage, name, hardware, num_workers, now, first=not changed).iterations
        changed[name] = replace(stage, expected_iterations=max(planned, math.ceil(count / 2)))
        now += share
    return replace(config, cap_s=cap_s, **changed)  # type: ignore[arg-type]


def training_seconds(
    config: RunConfig,
    cap_s: float,
    hardware: Hardware,
    num_workers: int = 1,
    spent_s: float | None = None,
    there: There = NOTHING,
) -> float:
    """What a cap leaves for the trained stages, see `with_deadlines`; not above 0 where it leaves nothing."""
    if spent_s is None:
        spent_s = begins_s(preparations(config, hardware, there), hardware)
    return cap_s - CLOSING_S[hardware.device_type] - spent_s


def stage_tail_s(config: RunConfig, stage: str, hardware: Hardware) -> float:
    """Seconds to keep for what a stage does after its last evaluation: saving, samples, questions."""
    questions = config.stage(stage).eval_questions
    answering = reserved_overhead_s(ANSWERING, questions * config.model.depth, hardware, UNENDED)
    return SAMPLES_S + answering + reserved_overhead_s(SAVING, checkpoint_bytes(config.model), hardware, SLOW_DISK)
