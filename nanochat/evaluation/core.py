"""Answering the CORE suite with a base model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from nanochat.evaluation.options import Asked, common, cut_to, score_options
from nanochat.inference.engine import Engine
from nanochat.tasks.core import CoreTask, Example, prompts
from nanochat.workers import Workers


@dataclass(frozen=True)
class CoreScore:
    """How a task went."""

    label: str
    accuracy: float
    chance: float
    count: int
    of: int
    """Examples that the task has."""
    seconds: float

    @property
    def standard_error(self) -> float:
        return sqrt(self.accuracy * (1 - self.accuracy) / self.count)

    @property
    def centred(self) -> float:
        """0 for one who picks blindly, 1 for one who is always right."""
        return (self.accuracy - self.chance) / (1 - self.chance)


def core_metric(scores: Sequence[CoreScore]) -> float:
    """Mean of the centred accuracies."""
    return sum(score.centred for score in scores) / len(scores)


def score_task(
    engine: Engine, task: CoreTask, examples: list[Example], workers: Workers | None = None, limit: int | None = None
) -> CoreScore:
    """The score of a task, its examples shared by the workers.

    Args:
        limit: answer so many of the examples at most.
    """
    workers, began = workers or Workers(), time.perf_counter()
    count = min(limit or len(examples), len(examples))
    own = answer_task(engine, task, examples, range(workers.rank, count, workers.size))
    (correct,) = workers.sum(sum(own.values()))
    return CoreScore(task.label, correct / count, task.chance, count, len(examples), time.perf_counter() - began)


def answer_task(engine: Engine, task: CoreTask, examples: list[Example], indices: Sequence[int]) -> dict[int, bool]:
    """Whether the model answers each of some examples correctly.

    An option's score is the mean log-probability of its own tokens (multiple choice), of the tokens that all have in
    common at their end (schema); a continuation is right if every one of its tokens is the likeliest.
    """
    asked = [_ask(engine, task, examples, index) for index in indices]
    answers = {}
    for each, scores in score_options(engine, asked):
        best = scores.index(max(scores, key=lambda score: score.mean))
        right = best == examples[each.index].gold
        answers[each.index] = scores[0].likeliest if task.kind == "language_modeling" else right
    return answers


def _ask(engine: Engine, task: CoreTask, examples: list[Example], index: int) -> Asked:
    """Tokens of an example's options; what does not fit into the context is cut off at the left."""
    bos, encode = engine.tokenizer.bos_id, engine.tokenizer.encode
    texts = list(prompts(task, examples, index))
    rows = [[bos, *encode(whole)] for _, whole in texts]
    if task.kind == "multiple_choice":
        starts = [common(rows)] * len(rows)
    elif task.kind == "schema":
        ending = common([row[::-1] for row in rows])
        starts = [len(row) - ending for row in rows]
    else:
        starts = [common([[bos, *encode(texts[0][0].strip())], rows[0]])]
    starts = [min(max(start, 1), len(row) - 1) for start, row in zip(starts, rows, strict=True)]
    context = engine.model.config.max_seq_len
    return Asked(index, [cut_to(context, row, start) for row, start in zip(rows, starts, strict=True)])
