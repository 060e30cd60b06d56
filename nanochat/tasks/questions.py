"""Questions with one right answer: how they are read, when a reply is right, and what the scores are."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

from nanochat.errors import UserError

KINDS = ("multiple_choice", "exact", "number", "code")
_NUMBER = re.compile(r"(?:(?<![\d)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class Question:
    """One question of an evaluation suite."""

    skill: str
    kind: str
    """`multiple_choice` (the answer is one of the letters in `choices`), `exact` (the reply ends with the answer),
    `number` (its last number is the answer) or `code` (it passes the tests that are the answer)."""
    question: str
    """The whole user message; for multiple choice it includes the lettered options, for code it begins the program."""
    choices: tuple[str, ...] | None
    answer: str
    chance: float
    """Accuracy of one who picks blindly among the candidates that the question names; 0 if it names none."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if not _words(self.answer):
            raise ValueError("the answer is empty")
        if self.kind == "number" and last_number(self.answer) is None:
            raise ValueError(f"the answer {self.answer!r} is no number")
        if (self.kind == "multiple_choice") != bool(self.choices):
            raise ValueError("multiple choice, and only multiple choice, needs choices")
        if self.choices and self.answer not in self.choices:
            raise ValueError(f"the answer {self.answer!r} is not among the choices")


@dataclass(frozen=True)
class Score:
    """How many of a group of questions were answered correctly, and how many by chance would be."""

    correct: int
    total: int
    chance: float
    """Expected accuracy of blind picking, the mean over the group's questions."""

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def centred(self) -> float:
        """0 for one who picks blindly, 1 for one who is always right."""
        return (self.accuracy - self.chance) / (1 - self.chance)


@dataclass(frozen=True)
class Summary:
    """Scores of a whole suite; `overall` counts every question once."""

    overall: Score
    by_skill: Mapping[str, Score]

    @property
    def chat_core(self) -> float:
        """Mean over the skills of their accuracy centred on chance, as CORE does for base models (Li et al. 2024,
        arXiv:2406.11794)."""
        return sum(score.centred for score in self.by_skill.values()) / len(self.by_skill)


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSON lines file, one object a line with the fields of Question.

    Raises:
        UserError: the file is missing or a line is no question; names the line.
    """
    if not path.is_file():
        raise UserError(f"there are no questions at {path}", "check the path")
    questions = []
    names = {field.name for field in fields(Question)}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at U+2028, which JSON may hold
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text", "save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or set(record) != names:
                raise ValueError(f"expected an object with the keys {', '.join(sorted(names))}")
            choices = record.pop("choices")
            questions.append(Question(**record, choices=tuple(choices) if choices else None))
        except (ValueError, TypeError, AttributeError) as error:
            message = f"{path}, line {number} is not a question: {error}"
            raise UserError(message, "correct or delete the line") from error
    return questions


def spread(questions: Sequence[Question], limit: int) -> list[Question]:
    """About `limit` of the questions, of every skill as many and at least one, evenly over each skill's own."""
    groups = _by_skill(questions)
    each = max(limit // max(len(groups), 1), 1)
    return [question for group in groups.values() for question in group[:: -(-len(group) // each)]]


def is_correct(question: Question, reply: str) -> bool:
    """Whether the reply ends with the answer, or, where a number is asked for, with a number of the same value.

    The words of the reply and of the answer are compared without regard to case and to punctuation at their end, and
    the last words of the reply must be those of the answer: `The capital of France is Paris.` is right for `Paris`,
    `37 + 58 = 95.` for `95`, but not for `5`. A reply has one end only, so listing every candidate gains nothing.

    Raises:
        ValueError: the question asks for code, which only running it can judge.
    """
    if question.kind == "code":
        raise ValueError("code is judged by running it")
    if question.kind == "number":
        return last_number(reply) == last_number(question.answer)
    answer = _words(question.answer)
    return _words(reply)[-len(answer) :] == answer


def last_number(text: str) -> Fraction | None:
    """The last number of a text, thousands with or without commas; None where there is none."""
    found = _NUMBER.findall(text)
    return Fraction(found[-1].replace(",", "")) if found else None


def _words(text: str) -> list[str]:
    return text.casefold().rstrip(" \t\n.!?\"'").split()


def summarise(results: Iterable[tuple[Question, bool]]) -> Summary:
    """Accuracy overall and by skill, in the order in which skills first appear.

    Raises:
        ValueError: there are no results.
    """
    everything = list(results)
    if not everything:
        raise ValueError("no question was answered, so there is nothing to summarise")
    groups: dict[str, list[tuple[Question, bool]]] = {}
    for question, correct in everything:
        groups.setdefault(question.skill, []).append((question, correct))
    return Summary(_score(everything), {skill: _score(group) for skill, group in groups.items()})


def _by_skill(questions: Iterable[Question]) -> dict[str, list[Question]]:
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.skill, []).append(question)
    return groups


def _score(group: list[tuple[Question, bool]]) -> Score:
    chance = sum(question.chance for question, _ in group) / len(group)
    return Score(sum(correct for _, correct in group), len(group), chance)
