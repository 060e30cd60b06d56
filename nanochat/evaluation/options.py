"""How likely a model finds the options of a question: what they have in common is read once, lengths alike together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.inference.engine import Engine
from nanochat.model import KVCache
from nanochat.model.loss import CHUNK_TOKENS

BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536}  # of one forward pass, padding included


@dataclass(frozen=True)
class Option:
    """Tokens, and from which on they are judged, at least 1."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class Asked:
    """Options that are read together; `index` is the asker's own."""

    index: int
    options: list[Option]

    @cached_property
    def shared(self) -> int:
        """Tokens that all options begin with and that need reading once; the last of what they share is read with each:
        it tells what comes first in the option."""
        if len(self.options) == 1:
            return 0
        return max(common([option.ids[: option.start] for option in self.options]) - 1, 0)

    @property
    def longest(self) -> int:
        return max(len(option.ids) for option in self.options)


@dataclass(frozen=True)
class Score:
    """Of an option's judged tokens."""

    total: float
    """Sum of their log-probabilities, in nats."""
    count: int
    likeliest: bool
    """Each of them was the likeliest token at its place."""

    @property
    def mean(self) -> float:
        return self.total / self.count


def cut_to(context: int, ids: list[int], start: int) -> Option:
    """An option whose first tokens are left out where they do not fit into the context."""
    off = max(len(ids) - context, 0)
    return Option(ids[off:], max(start - off, 1))


def common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with."""
    shortest = min(map(len, rows))
    return next((place for place in range(shortest) if len({row[place] for row in rows}) > 1), shortest)


@torch.inference_mode()
def score_options(engine: Engine, asked: Iterable[Asked]) -> Iterator[tuple[Asked, list[Score]]]:
    """Each of them, the shortest first, with a score for every option. None may be longer than the model's context."""
    for batch in _batches(sorted(asked, key=lambda each: each.longest), BATCH_TOKENS[engine.device.type]):
        yield from zip(batch, _scores(engine, batch), strict=True)


def _batches(asked: list[Asked], limit: int) -> Iterator[list[Asked]]:
    batch: list[Asked] = []
    rows = 0
    for each in asked:
        if batch and (rows + len(each.options)) * each.longest > limit:
            yield batch
            batch, rows = [], 0
        batch.append(each)
        rows += len(each.options)
    if batch:
        yield batch


def _scores(engine: Engine, batch: list[Asked]) -> list[list[Score]]:
    """Of every option of every example."""
    width = max(len(option.ids) - 1 - each.shared for each in batch for option in each.options)
    room = engine.model.config.max_seq_len - width  # each row is padded to that width behind what it shares
    shared = [min(each.shared, room) for each in batch]
    most = max(shared)
    cache = _read_shared(engine, batch, shared, most + width) if most else None  # whole rows have the faster kernel
    options = [(begun, option) for each, begun in zip(batch, shared, strict=True) for option in each.options]
    fed = [option.ids[begun:-1] for begun, option in options]
    hidden = engine.model.hidden(_padded(fed, engine.device), cache)
    judged = [(row, place) for row, (begun, option) in enumerate(options)
              for place in range(option.start - 1 - begun, len(fed[row]))]  # fmt: skip
    rows, places = torch.tensor(judged, device=engine.device).T
    tokens = [token for _, option in options for token in option.ids[option.start :]]
    targets = torch.tensor(tokens, device=engine.device)
    chunk = CHUNK_TOKENS[engine.device.type]  # of long texts all their logits at once would be many gigabytes
    parts = zip(hidden[rows, places].split(chunk), targets.split(chunk), strict=True)
    losses, likeliest = map(torch.cat, zip(*(_judge(engine.logits(x), target) for x, target in parts), strict=True))
    ends = torch.bincount(rows, minlength=len(options)).cumsum(0).tolist()
    found = [Score(-float(losses[start:end].sum()), end - start, bool(likeliest[start:end].all()))
             for start, end in zip([0, *ends], ends, strict=False)]  # fmt: skip
    scores = iter(found)
    return [[next(scores) for _ in each.options] for each in batch]


def _judge(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of each target its cross-entropy, and whether it is the likeliest token."""
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


def _read_shared(engine: Engine, batch: list[Asked], shared: list[int], capacity: int) -> KVCache:
    """The cache of what the options of each share, once for each of the options."""
    model, counts = engine.model, torch.tensor(shared)
    cache = KVCache.empty(model.config, len(batch), capacity, model.compute_dtype, engine.device)
    begun = [each.options[0].ids[:count] for each, count in zip(batch, shared, strict=True)]
    model.hidden(_padded(begun, engine.device), cache)
    cache.advance(counts.to(engine.device))
    repeats = torch.tensor([len(each.options) for each in batch], device=engine.device)
    return cache.select(torch.arange(len(batch), device=engine.device).repeat_interleave(repeats))


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(rows, longest), zeros on the right: nothing sees them that counts."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return ids.to(device)
