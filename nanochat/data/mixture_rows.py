"""The rows of a declared mixture, fetched from the hub or made by code, rendered and shuffled: the same for a seed."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from nanochat.data import made
from nanochat.data.mixtures import DATASETS, Part
from nanochat.data.tinyworld.holdout import document_rng
from nanochat.errors import UserError
from nanochat.tasks import rows
from nanochat.tasks.questions import Question
from nanochat.tokenizer.chat import check_messages

SEED = 0  # the same mixture for every run: only the run's own seed changes what is made of it
FORMAT = 1  # raise it whenever the same declaration would give other conversations by a change in this file
REACH_S = 8.0  # to hear from the hub
WORD_ROWS = 20_000  # of each part, to gather words from
MOST_UNFIT = 0.01  # share of rows that may be no conversation
_CHUNK = 1024
_TOLD_EVERY = 100_000
_MIRROR = "set HF_ENDPOINT to a mirror of the hub"
_HINT = f"use --chat tinyworld, --chat PATH to your own .jsonl, or {_MIRROR}"

Say = Callable[[str], None]
Words = tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """The rows of one part: their numbers, how to read some of them, and how to render one."""

    part: Part
    numbers: Sequence[int]
    read: Callable[[Sequence[int]], Iterable[Any]]
    render: Callable[[Any], Any]


def fingerprint(parts: Sequence[Part]) -> dict[str, Any]:
    """All that decides what a mixture holds, but for the datasets' own changes."""
    return {
        "format": FORMAT,
        "seed": SEED,
        "parts": [asdict(part) for part in parts],
        "repositories": sorted(DATASETS[part.dataset].repo for part in parts if part.dataset),
        "code": _code(),
    }


@cache
def _code() -> str:
    """Of renderers and generators: others make other conversations."""
    files = [Path(rows.__file__), Path(made.__file__), *sorted(Path(made.__file__).parent.glob("tinyworld/*.py"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def mixture(parts: Sequence[Part], say: Say = lambda text: None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(name of its part, messages) of every conversation of a mixture, all epochs shuffled together.

    Raises:
        UserError: the hub cannot be reached, or more than one row in a hundred is no conversation.
    """
    sources = _sources(parts, rows.CONVERSATIONS, made.MADE, say)
    order = _shuffled([(len(source.numbers), source.part.epochs) for source in sources])
    unfit: list[str] = []
    for start in range(0, len(order), _CHUNK):
        if start % (_TOLD_EVERY // _CHUNK * _CHUNK) == 0:
            say(f"{start:,} of {len(order):,} conversations rendered")
        yield from _rendered(sources, order[start : start + _CHUNK], unfit)
    if unfit:
        what = f"{len(unfit):,} of {len(order):,} rows are no conversations, the first of {unfit[0]}"
        if len(unfit) > MOST_UNFIT * len(order):
            raise UserError(what, _HINT)
        say(f"left out: {what}")


def suite(tasks: Sequence[Part], say: Say = lambda text: None) -> Iterator[Question]:
    """The questions of the tasks, one task after the other, each shuffled: any first few are a fair sample.

    Raises:
        UserError: the hub cannot be reached, or a row is no question.
    """
    try:
        sources = _sources(tasks, rows.QUESTIONS, {"spelling_bee": made.spelling_bee_question}, say)
    except UserError as error:  # a model that is trained already has its conversations
        raise UserError(error.message, _MIRROR) from error
    for source in sources:
        numbers = Random(f"{SEED} {source.part.name}").sample(source.numbers, len(source.numbers))
        for row in source.read(numbers):
            try:
                yield replace(source.render(row), skill=source.part.name)
            except (KeyError, ValueError, TypeError, IndexError) as error:
                raise UserError(f"a row of {source.part.name} is no question: {error}", _MIRROR) from error


def _rendered(
    sources: Sequence[_Source], order: np.ndarray, unfit: list[str]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The conversations of some places of the order, int (places, 2): the source and the place among its numbers."""
    rendered: dict[tuple[int, int], Any] = {}
    for index, source in enumerate(sources):
        places = np.unique(order[order[:, 0] == index, 1]).tolist()
        if places:
            numbers = [source.numbers[place] for place in places]
            for place, row in zip(places, source.read(numbers), strict=True):
                rendered[index, place] = _conversation(source, row, unfit)
    for index, place in order.tolist():
        if rendered[index, place] is not None:
            yield sources[index].part.name, rendered[index, place]


def _conversation(source: _Source, row: Any, unfit: list[str]) -> list[dict[str, Any]] | None:
    """A row rendered; None, and said why, if it is not what its dataset should hold."""
    try:
        messages: list[dict[str, Any]] = source.render(row)
        check_messages(messages)
        if messages[-1]["role"] != "assistant":
            raise ValueError("it ends without an answer")
        return messages
    except (KeyError, ValueError, TypeError, IndexError) as error:
        unfit.append(f"{source.part.name}: {type(error).__name__}: {error}")
        return None


def _shuffled(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Every (source, place) as often as its epochs, in one order for all runs: int64 (sum of size * epochs, 2)."""
    pairs = [
        np.stack([np.full(size * epochs, index), np.tile(np.arange(size), epochs)], axis=1)
        for index, (size, epochs) in enumerate(sizes)
    ]
    return np.random.default_rng(SEED).permutation(np.concatenate(pairs))


def _sources(
    parts: Sequence[Part],
    renderers: Mapping[str, Callable[[Any], Any]],
    makers: Mapping[str, Callable[[Random, Words], Any]],
    say: Say,
) -> list[_Source]:
    """Those of the hub are opened first: their text has the words that others spell."""
    found: dict[str, _Source] = {}
    for part in parts:
        if part.dataset:
            say(f"fetching {DATASETS[part.dataset].repo}, {part.config or 'default'}, {part.split}")
            found[part.name] = _of_hub(part, renderers[part.renderer])
    if any(not part.dataset for part in parts):
        words = made.words_of(text for source in found.values() for text in _texts(source))
        say(f"{len(words):,} words to spell")
        for part in parts:
            if not part.dataset:
                found[part.name] = _made(part, makers[part.renderer], words)
    return [found[part.name] for part in parts]


def _of_hub(part: Part, render: Callable[[Any], Any]) -> _Source:
    table = _load(DATASETS[part.dataset].repo, part.config, part.split)
    numbers: Sequence[int] = range(len(table))
    if part.rows is not None and part.rows < len(table):
        numbers = Random(f"{SEED} {part.name}").sample(numbers, part.rows)

    def read(wanted: Sequence[int]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(wanted), _CHUNK):
            columns = table[list(wanted[start : start + _CHUNK])]
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))

    return _Source(part, numbers, read, render)


def _made(part: Part, make: Callable[[Random, Words], Any], words: Words) -> _Source:
    return _Source(
        part,
        range(part.rows or 0),
        lambda wanted: wanted,
        lambda number: make(document_rng(SEED, part.name, number), words),
    )


def _texts(source: _Source) -> Iterator[str]:
    for row in source.read(list(islice(source.numbers, WORD_ROWS))):
        yield json.dumps(row, ensure_ascii=False).replace("\\n", " ")


def _load(repo: str, config: str | None, split: str) -> Any:
    """A split of a dataset, from the hub or the library's own cache. Raises UserError."""
    import datasets  # takes seconds to import, and only here is it needed

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(repo, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{repo} cannot be had from the data hub: {_first_line(error)}", _HINT) from error


def check_datasets(names: Sequence[str]) -> None:
    """Ask the hub for each of these datasets, keys of DATASETS, within seconds.

    Raises:
        UserError: it does not answer, or does not have one of them.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return  # the user says that all is in the library's own cache
    for name in names:
        repo, said = DATASETS[name].repo, ["no answer"]

        def ask(repo: str = repo, said: list[str] = said) -> None:
            try:
                HfApi().dataset_info(repo, timeout=REACH_S)
                said.clear()
            except Exception as error:  # whatever it is: the user is told
                said[:] = [_first_line(error)]

        thread = threading.Thread(target=ask, daemon=True)  # looking up a name may take longer than any time-out
        thread.start()
        thread.join(REACH_S)
        if said:
            raise UserError(f"{repo} cannot be had from {constants.ENDPOINT}: {said[0]}", _HINT)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
