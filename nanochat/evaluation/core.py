"""Answering the CORE suite with a base model: what options have in common is read once, lengths alike go together."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.inference.engine import Engine
from nanochat.model import KVCache
from nanochat.tasks.core import CoreTask, Example, prompts
from nanochat.workers import Workers

BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536}  # of one forward pass, padding included


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


@dataclass(frozen=True)
class _Option:
    """One option: its tokens, and from where on they are judged."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class _Asked:
    """One example, ready to be read."""

    index: int
    options: list[_Option]
    shared: int
    """Tokens that all options begin with and that need reading once."""

    @property
    def longest(self) -> int:
        return max(len(option.ids) for option in self.options)


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


@torch.inference_mode()
def answer_task(engine: Engine, task: CoreTask, examples: list[Example], indices: Sequence[int]) -> dict[int, bool]:
    """Whether the model answers each of some examples correctly.

    An option's score is the mean log-probability of its own tokens (multiple choice), of the tokens that all have in
    common at their end (schema); a continuation is right if every one of its tokens is the likeliest.
    """
    asked = [_ask(engine, task, examples, index) for index in indices]
    answers = {}
    for batch in _batches(sorted(asked, key=lambda each: each.longest), BATCH_TOKENS[engine.device.type]):
        for each, scores in zip(batch, _scores(engine, batch), strict=True):
            best = scores.index(max(scores, key=lambda score: score.log_probability))
            right = best == examples[each.index].gold
            answers[each.index] = scores[0].likeliest if task.kind == "language_modeling" else right
    return answers


def _ask(engine: Engine, task: CoreTask, examples: list[Example], index: int) -> _Asked:
    """Tokens of an example's options; what does not fit into the context is cut off at the left."""
    bos, encode = engine.tokenizer.bos_id, engine.tokenizer.encode
    texts = list(prompts(task, examples, index))
    rows = [[bos, *encode(whole)] for _, whole in texts]
    if task.kind == "multiple_choice":
        starts = [_common(rows)] * len(rows)
    elif task.kind == "schema":
        common = _common([row[::-1] for row in rows])
        starts = [len(row) - common for row in rows]
    else:
        starts = [_common([[bos, *encode(texts[0][0].strip())], rows[0]])]
    starts = [min(max(start, 1), len(row) - 1) for start, row in zip(starts, rows, strict=True)]
    cut = [max(len(row) - engine.model.config.max_seq_len, 0) for row in rows]
    options = [_Option(row[off:], max(start - off, 1)) for row, start, off in zip(rows, starts, cut, strict=True)]
    # The last of what they share is read with each: it tells what comes first in the option.
    shared = _common([option.ids[: option.start] for option in options]) - 1
    return _Asked(index, options, max(shared, 0) if len(options) > 1 else 0)


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with."""
    shortest = min(map(len, rows))
    return next((place for place in range(shortest) if len({row[place] for row in rows}) > 1), shortest)


def _batches(asked: list[_Asked], limit: int) -> Iterator[list[_Asked]]:
    batch: list[_Asked] = []
    rows = 0
    for each in asked:
        if batch and (rows + len(each.options)) * each.longest > limit:
            yield batch
            batch, rows = [], 0
        batch.append(each)
        rows += len(each.options)
    if batch:
        yield batch


@dataclass(frozen=True)
class _Score:
    log_probability: float
    """Mean over the judged tokens."""
    likeliest: bool
    """Each of them was."""


def _scores(engine: Engine, batch: list[_Asked]) -> list[list[_Score]]:
    """Of every option of every example."""
    width = max(len(option.ids) - 1 - each.shared for each in batch for option in each.options)
    room = engine.model.config.max_seq_len - width  # each row is padded to that width behind what it shares
    batch = [replace(each, shared=min(each.shared, room)) for each in batch]
    most = max(each.shared for each in batch)
    cache = _read_shared(engine, batch, most + width) if most else None  # whole rows have the faster kernel
    options = [(each, option) for each in batch for option in each.options]
    fed = [option.ids[each.shared : -1] for each, option in options]
    hidden = engine.model.hidden(_padded(fed, engine.device), cache)
    judged = [(row, place) for row, (each, option) in enumerate(options)
              for place in range(option.start - 1 - each.shared, len(fed[row]))]  # fmt: skip
    rows, places = torch.tensor(judged, device=engine.device).T
    tokens = [token for _, option in options for token in option.ids[option.start :]]
    targets = torch.tensor(tokens, device=engine.device)
    logits = engine.logits(hidden[rows, places])
    losses, likeliest = F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets
    ends = torch.bincount(rows, minlength=len(options)).cumsum(0).tolist()
    found = [_Score(-float(losses[start:end].mean()), bool(likeliest[start:end].all()))
             for start, end in zip([0, *ends], ends, strict=False)]  # fmt: skip
    scores = iter(found)
    return [[next(scores) for _ in each.options] for each in batch]


def _read_shared(engine: Engine, batch: list[_Asked], capacity: int) -> KVCache:
    """The cache of what each example's options share, once for each of the options."""
    model, counts = engine.model, torch.tensor([each.shared for each in batch])
    cache = KVCache.empty(model.config, len(batch), capacity, model.compute_dtype, engine.device)
    model.hidden(_padded([each.options[0].ids[: each.shared] for each in batch], engine.device), cache)
    cache.advance(counts.to(engine.device))
    repeats = torch.tensor([len(each.options) for each in batch], device=engine.device)
    return cache.select(torch.arange(len(batch), device=engine.device).repeat_interleave(repeats))


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(rows, longest), zeros on the right: nothing sees them that counts."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return ids.to(device)
