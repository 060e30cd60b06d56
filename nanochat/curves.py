"""What a stage's record says of its course: loss, val_bpb, learning rate and speed over tokens and over time."""

from dataclasses import dataclass

import numpy as np

from nanochat.events import RolledBack, StageStarted, StepDone, Validated, read_events
from nanochat.run import Run

Array = np.ndarray


@dataclass(frozen=True)
class Curves:
    """One point a step, and one a measurement of val_bpb. All arrays are float64; seconds are of training: of steps."""

    stage: str
    tokens: Array
    seconds: Array
    loss: Array
    lr_factor: Array
    tokens_per_second: Array
    val_tokens: Array
    val_seconds: Array
    val_bpb: Array

    def bpb_at_tokens(self, tokens: float) -> float:
        """Between measurements, on the straight line; nan outside of them."""
        return _between(tokens, self.val_tokens, self.val_bpb)

    def bpb_at_seconds(self, seconds: float) -> float:
        return _between(seconds, self.val_seconds, self.val_bpb)


def read_curves(run: Run, stage: str) -> Curves:
    """The course of a stage so far; steps that a rollback took back are left out."""
    steps: dict[int, StepDone] = {}
    measured: dict[int, float] = {}
    a_step = 0
    for event in read_events(run.directory, stage):
        match event:
            case StageStarted():
                a_step = event.tokens_per_step
            case StepDone():
                steps[event.step] = event
            case Validated():
                measured[event.step] = event.val_bpb
            case RolledBack():
                steps = {step: done for step, done in steps.items() if step <= event.to_step}
                measured = {step: bpb for step, bpb in measured.items() if step <= event.to_step}
    taken = [steps[step] for step in sorted(steps) if not steps[step].skipped]
    count = np.array([done.step for done in taken], dtype=np.float64)
    seconds = np.cumsum([done.seconds for done in taken]) if taken else np.zeros(0)
    at = np.array(sorted(measured), dtype=np.float64)
    return Curves(
        stage,
        tokens=a_step * count,
        seconds=seconds,
        loss=np.array([done.loss for done in taken]),
        lr_factor=np.array([done.lr_factor for done in taken]),
        tokens_per_second=np.array([done.tokens_per_second for done in taken]),
        val_tokens=a_step * at,
        val_seconds=np.interp(at, np.concatenate([[0.0], count]), np.concatenate([[0.0], seconds])),
        val_bpb=np.array([measured[int(step)] for step in at]),
    )


def _between(place: float, places: Array, values: Array) -> float:
    return float(np.interp(place, places, values, left=np.nan, right=np.nan)) if len(places) else float("nan")
