"""Facts as tables, and every way to say them or to ask for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from nanochat.data.tinyworld.exercise import Exercise, sentence, with_article
from nanochat.data.tinyworld.holdout import stable_hash

FRAMES = (
    "What is {topic}?",
    "Tell me {topic}.",
    "Can you tell me {topic}?",
    "Do you know {topic}?",
    "I would like to know {topic}.",
    "I forgot {topic}. What is it?",
    "Give me {topic}.",
    "Please tell me {topic}.",
    "Quick question: what is {topic}?",
    "What is {topic}, please?",
    "My friend asked me for {topic}. What is it?",
    "Could you say what {topic} is?",
)
"""Ways to ask that fit every relation with a topic. Each relation goes without two of them in training."""

HELD_OUT_FRAMES = 2
LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Relation:
    """A table from subject to answer, and its phrasings: with `{s}` and `{a}`, or with article `{an_s}` and `{an_a}`.

    In training a fact is asked in `questions` and in most FRAMES around `topic`; the evaluation asks it in `unseen`
    and in the frames this relation never met. Base documents state the fact itself, in the words of `statements`.
    """

    name: str
    skill: str
    pairs: Mapping[str, str] = field(hash=False)
    statements: tuple[str, ...]
    topic: str
    reply: str
    """The assistant's sentence. It ends with the answer."""
    questions: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    """Phrasings that only the evaluation uses."""

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        return tuple(self.pairs)

    @cached_property
    def answers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.pairs.values()))

    @cached_property
    def phrasings(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(seen in training, only in the evaluation). The plainest frame, the first, is always seen."""
        ranked = sorted(FRAMES[1:], key=lambda frame: stable_hash("frame", self.name, frame)) if self.topic else []
        frames = [frame.replace("{topic}", self.topic) for frame in (FRAMES[0], *ranked)] if self.topic else []
        return (
            (*self.questions, *frames[:-HELD_OUT_FRAMES]),
            (*self.unseen, *frames[-HELD_OUT_FRAMES:]),
        )

    def say(self, template: str, subject: str) -> str:
        answer = self.pairs[subject]
        return sentence(
            template.format(s=subject, a=answer, an_s=with_article(subject), an_a=with_article(answer))
            if "{an_" in template
            else template.format(s=subject, a=answer)
        )

    def statement(self, rng: Random, subject: str) -> str:
        return self.say(rng.choice(self.statements), subject)

    def exercise(self, rng: Random, unseen: bool) -> Exercise:
        subject = rng.choice(self.subjects)
        question = self.say(rng.choice(self.phrasings[unseen]), subject)
        return Exercise(self.skill, question, self.pairs[subject], self.say(self.reply, subject))

    def multiple_choice(self, rng: Random, unseen: bool) -> Exercise:
        """The same question with four lettered options, of which the reply names one by its letter.

        The letter stands right behind its option: a small model finds what follows a word more easily than what
        stands before it (nanochat's multiple choice has the same order for the same reason).
        """
        fact = self.exercise(rng, unseen)
        options = rng.sample([answer for answer in self.answers if answer != fact.answer], len(LETTERS) - 1)
        options.insert(rng.randrange(len(LETTERS)), fact.answer)
        lines = [fact.question, *(f"- {option}={letter}" for letter, option in zip(LETTERS, options, strict=True))]
        letter = LETTERS[options.index(fact.answer)]
        question = "\n".join([*lines, "Answer with the letter."])
        return Exercise("multiple_choice", question, letter, letter, choices=LETTERS, chance=1 / len(LETTERS))
