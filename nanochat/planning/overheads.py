"""What a run takes besides its training steps, part by part: assumed, until runs on the machine have told."""

from dataclasses import dataclass

import numpy as np

from nanochat.planning.correction import EVERYWHERE, Correction
from nanochat.planning.hardware import Hardware

STARTING = "starting"  # imports, measuring, Ray, the worker's model; and the end: 1
TOKENIZER = "tokenizer"  # training it: characters
TOKENISING = "tokenising"  # as many seconds as `tokenising_s` says
COMPILING = "compiling"  # a first step of a kind that was never trained here: 1
COMPILING_AGAIN = "compiling again"  # a first step that finds all of it kept from an earlier run: 1
EVALUATING = "evaluating"  # as many seconds as it would take to train on the tokens of an evaluation
ANSWERING = "answering"  # questions times layers
SAVING = "saving"  # bytes of the last checkpoint, which is waited for

# Seconds for each unit of the above. On a GPU as on a machine just started, and compiling again assumed: LOG.md,
# 2026-11-27.
ASSUMED_S = {
    STARTING: {"cpu": 13.0, "cuda": 60.0},
    TOKENIZER: {"cpu": 1 / 15e6, "cuda": 1 / 15e6},
    TOKENISING: {"cpu": 1.0, "cuda": 1.0},
    COMPILING: {"cpu": 26.0, "cuda": 24.0},
    COMPILING_AGAIN: {"cpu": 3.0, "cuda": 3.0},
    EVALUATING: {"cpu": 0.5, "cuda": 0.5},
    ANSWERING: {"cpu": 0.0014, "cuda": 0.00125},
    SAVING: {"cpu": 1 / 350e6, "cuda": 1 / 350e6},  # 360 MB/s of 4.3 GB on the disk of an H200's machine
}
BYTES_PER_CORE_S, CONVERSATIONS_PER_S = 5e6, 20e3  # Python renders conversations, one at a time
ENDING_S = {"cpu": 2.0, "cuda": 10.0}  # of STARTING: Ray's end and the report
UNENDED = 4.0  # times as long as usual an answer takes of a model that does not end its answers
SPREAD, NOISE = 0.7, 0.25  # of the logarithms of measured over assumed: between machines, between runs of one


@dataclass(frozen=True)
class Cost:
    """Planned seconds of something besides the training steps."""

    what: str
    seconds: float


def tokenising_s(size: float, conversations: float, cpu_count: int) -> float:
    """What is assumed of tokenising so many bytes of UTF-8, some of them in conversations."""
    return size / (BYTES_PER_CORE_S * cpu_count) + conversations / CONVERSATIONS_PER_S


def overhead_s(part: str, amount: float, hardware: Hardware) -> float:
    """Seconds that a part of a run takes on this hardware, as far as runs there have told.

    Args:
        amount: in the unit of the part, see above.
    """
    errors = np.log([each.times for each in hardware.overheads if each.part == part])
    # All models share it: there are no places.
    correction = Correction(np.zeros((len(errors), 0)), errors, [(SPREAD, EVERYWHERE)], noise=NOISE)
    times = float(np.exp(correction.mean(np.zeros((1, 0)))[0]))
    return times * assumed_overhead_s(part, amount, hardware.device_type)


def assumed_overhead_s(part: str, amount: float, device_type: str) -> float:
    """The same before anything has been measured."""
    return amount * ASSUMED_S[part][device_type]


def reserved_overhead_s(part: str, amount: float, hardware: Hardware, times: float) -> float:
    """Where time that must suffice is set aside: so many times the assumed, or what runs have taken if that is more."""
    return max(overhead_s(part, amount, hardware), times * assumed_overhead_s(part, amount, hardware.device_type))
