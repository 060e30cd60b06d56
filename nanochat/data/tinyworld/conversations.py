"""Conversations for mid-training and SFT: one to three exercises in a row, in a given mixture."""

from collections.abc import Callable, Mapping
from random import Random

from nanochat.data.tinyworld.arithmetic import arithmetic, comparison, counting, word_problem
from nanochat.data.tinyworld.exercise import Content, Exercise
from nanochat.data.tinyworld.facts import fact, multiple_choice
from nanochat.data.tinyworld.identity import identity, small_talk
from nanochat.data.tinyworld.spelling import letter_count, spelling
from nanochat.data.tinyworld.stories import reading, storytelling

Message = dict[str, Content]

EXERCISES: Mapping[str, Callable[[Random], Exercise]] = {
    "small_talk": small_talk,
    "storytelling": storytelling,
    **{
        draw.__name__: lambda rng, draw=draw: draw(rng, False)  # type: ignore[misc]
        for draw in (
            identity, fact, multiple_choice, arithmetic, word_problem, comparison, counting, spelling, letter_count,
            reading,
        )
    },
}  # fmt: skip

MID = {
    "small_talk": 2, "storytelling": 2, "identity": 4, "fact": 28, "multiple_choice": 16, "arithmetic": 5,
    "word_problem": 4, "comparison": 9, "counting": 9, "spelling": 9, "letter_count": 9, "reading": 20,
}  # fmt: skip
SFT = {
    "small_talk": 4, "storytelling": 1, "identity": 8, "fact": 28, "multiple_choice": 14, "arithmetic": 6,
    "word_problem": 5, "comparison": 8, "counting": 8, "spelling": 8, "letter_count": 8, "reading": 16,
}  # fmt: skip

MAX_CHARACTERS = 700
"""About 200 tokens, so that a conversation fits in a row of 256."""


def conversation(rng: Random, mixture: Mapping[str, float]) -> list[Message]:
    """The messages of one conversation; a turn that would make it too long is left out."""
    names, weights = tuple(mixture), tuple(mixture.values())
    messages: list[Message] = []
    length = 0
    for name in rng.choices(names, weights, k=rng.choice((1, 1, 1, 1, 1, 2, 2, 3))):
        exercise = EXERCISES[name](rng)
        length += len(exercise.question) + len(exercise.reply)
        if messages and length > MAX_CHARACTERS:
            break
        messages.append({"role": "user", "content": _as_typed(rng, exercise.question)})
        messages.append({"role": "assistant", "content": exercise.content()})
    return messages


def _as_typed(rng: Random, question: str) -> str:
    """Now and then somebody in a hurry: no capital letter, no mark at the end."""
    if rng.random() > 0.06 or "\n" in question:
        return question
    return question[0].lower() + question[1:].rstrip("?.!")
