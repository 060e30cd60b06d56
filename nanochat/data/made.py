"""Conversations made by code for the public mixtures: who the model is, and spelling. TinyWorld's, on other words."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from nanochat.data.tinyworld.conversations import conversation
from nanochat.data.tinyworld.exercise import Exercise
from nanochat.data.tinyworld.identity import ABOUT_ME
from nanochat.data.tinyworld.spelling import is_held_out, letter_count_of, spelling_of
from nanochat.data.tinyworld.spelling_words import WORDS
from nanochat.tasks.questions import Question

Conversation = list[dict[str, Any]]
MOST_WORDS = 50_000
_WORD = re.compile(r"\b[a-z]{3,15}\b")
_SCHOOLING = next(relation for relation in ABOUT_ME if relation.name == "my_schooling")  # only true of TinyWorld


def words_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Words to spell: TinyWorld's, and of those that occur twice in the texts the most frequent, in order of the
    alphabet."""
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    frequent = sorted(((-count, word) for word, count in counts.items() if count > 1))[:MOST_WORDS]
    return tuple(sorted({*WORDS, *(word for _, word in frequent)}))


def identity(rng: Random, words: tuple[str, ...]) -> Conversation:
    """Who the model is, among greetings."""
    while True:
        messages: Conversation = [*conversation(rng, {"identity": 4, "small_talk": 1})]
        if not any(_SCHOOLING.pairs["you"] in message["content"] for message in messages):
            return messages


def simple_spelling(rng: Random, words: tuple[str, ...]) -> Conversation:
    """A word spelled."""
    return _taught(spelling_of(_draw(rng, words, unseen=False), rng, False))


def spelling_bee(rng: Random, words: tuple[str, ...]) -> Conversation:
    """The letters of a word counted, or one of them found."""
    return _taught(letter_count_of(_draw(rng, words, unseen=False), rng, False))


def spelling_bee_question(rng: Random, words: tuple[str, ...]) -> Question:
    """The same, in other words, of a word that no conversation spells."""
    exercise = letter_count_of(_draw(rng, words, unseen=True), rng, True)
    return Question("spelling_bee", "exact", exercise.question, None, exercise.answer, 0.0)


def _draw(rng: Random, words: tuple[str, ...], unseen: bool) -> str:
    while True:
        word = rng.choice(words)
        if is_held_out(word) == unseen:
            return word


def _taught(exercise: Exercise) -> Conversation:
    return [{"role": "user", "content": exercise.question}, {"role": "assistant", "content": exercise.content()}]


MADE: Mapping[str, Callable[[Random, tuple[str, ...]], Conversation]] = {
    "identity": identity,
    "simple_spelling": simple_spelling,
    "spelling_bee": spelling_bee,
}
"""By the renderer that a part of a mixture names."""
