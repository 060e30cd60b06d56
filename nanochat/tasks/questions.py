"""Questions with one right answer: how they are read, when a reply is right, and what the scores are."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from nanochat.errors import UserError

KINDS = ("multiple_choice", "exact")


@dataclass(frozen=True)
class Question:
    """One question of an evaluation suite."""

    skill: str
    kind: str
    """`multiple_choice` (the answer is one of the letters in `choices`) or `exact`."""
    question: str
    """The whole user message; for multiple choice it includes the lettered options."""
    choices: tuple[str, ...] | None
    answer: str
    chance: float
    """Accuracy of one who picks blindly among the candidates that the question names; 0 if it names none."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if not _words(self.answer):
            raise ValueError("the answer is empty")
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


@dataclass(frozen=True)
class Summary:
    """Scores of a whole suite; `overall` counts every question once."""

    overall: Score
    by_skill: Mapping[str, Score]


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
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text", "save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
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


def is_correct(question: Question, reply: str) -> bool:
    """Whether the reply ends with the answer.

    The words of the reply and of the answer are compared without regard to case and to punctuation at their end, and
    the last words of the reply must be those of the answer: `The capital of France is Paris.` is right for `Paris`,
    `37 + 58 = 95.` for `95`, but not for `5`. A reply has one end only, so listing every candidate gains nothing.
    """
    answer = _words(question.answer)
    return _words(reply)[-len(answer) :] == answer


def _words(text: str) -> list[str]:
    return text.casefold().rstrip(" \t\n.!?\"'").split()


def summarise(results: Iterable[tuple[Question, bool]]) -> Summary:
    """Accuracy overall and by skill, in the order in which skills first appear.

    Raises:
        ValueError: there are no results.
    """
    groups: dict[str, list[tuple[Question, bool]]] = {}
    for question, correct in results:
        groups.setdefault(question.skill, []).append((question, correct))
    if not groups:
        raise ValueError("no question was answered, so there is nothing to summarise")
    everything = [result for group in groups.values() for result in group]
    return Summary(_score(everything), {skill: _score(group) for skill, group in groups.items()})


def _score(group: list[tuple[Question, bool]]) -> Score:
    chance = sum(question.chance for question, _ in group) / len(group)
    return Score(sum(correct for _, correct in group), len(group), chance)
