"""Rows of the public datasets as conversations to learn from and as questions to be asked. Pure functions of a row.

Multiple choice has the form of TinyWorld's, so that what one teaches the other can ask: an option a line with its
letter behind it, and a reply of one letter, which is one token.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanochat.tasks.questions import Question

Row = Mapping[str, Any]
Conversation = list[dict[str, Any]]
LETTERS = "ABCDEFGH"
CALL = re.compile(r"<<([^<>=]*)=([^<>]*)>>")  # GSM8K's calculator: what is typed, and what comes out
ANSWER = "####"  # stands before the result at the end of a GSM8K solution


def smoltalk(row: Row) -> Conversation:
    """A row of SmolTalk, which holds `messages`: the conversation as it is."""
    return [{"role": message["role"], "content": message["content"]} for message in row["messages"]]


def arc(row: Row) -> Conversation:
    """A row of ARC: `question`, `choices` with `text` and `label`, `answerKey`."""
    return _taught(arc_question(row))


def mmlu(row: Row) -> Conversation:
    """A row of MMLU: `question`, `choices`, `answer` counted from 0; an auxiliary row stands in a field `train`."""
    return _taught(mmlu_question(row))


def gsm8k(row: Row) -> Conversation:
    """A row of GSM8K: `question`, `answer`; its `<<3+4=7>>` become a call of the calculator and the result."""
    solution, _, result = row["answer"].partition(ANSWER)
    parts: list[dict[str, str]] = []
    end = 0
    for call in CALL.finditer(solution):
        parts.append({"type": "text", "text": solution[end : call.start()]})
        parts.append({"type": "python", "text": call[1].strip()})
        parts.append({"type": "python_output", "text": call[2].strip()})
        end = call.end()
    parts.append({"type": "text", "text": f"{solution[end:].rstrip()}\nThe answer is {result.strip()}."})
    return [
        {"role": "user", "content": row["question"].strip()},
        {"role": "assistant", "content": [part for part in parts if part["text"]]},
    ]


def arc_question(row: Row) -> Question:
    """Some rows number their options instead of lettering them: the right one is found by its place."""
    right = list(row["choices"]["label"]).index(row["answerKey"])
    return lettered("arc", row["question"], row["choices"]["text"], right)


def mmlu_question(row: Row) -> Question:
    """As `mmlu`."""
    row = row.get("train") or row
    return lettered("mmlu", row["question"], row["choices"], row["answer"])


def gsm8k_question(row: Row) -> Question:
    """The number behind `####` is what a reply must come to."""
    return Question("gsm8k", "number", row["question"].strip(), None, row["answer"].partition(ANSWER)[2].strip(), 0.0)


def humaneval_question(row: Row) -> Question:
    """A row of HumanEval: `prompt` begins a program; the answer is the tests that the program must pass."""
    return Question("humaneval", "code", row["prompt"], None, f"{row['test']}\ncheck({row['entry_point']})\n", 0.0)


def lettered(skill: str, question: str, options: Sequence[str], right: int) -> Question:
    """A multiple choice of two to eight options, of which number `right`, counted from 0, is the answer."""
    letters = tuple(LETTERS[: len(options)])
    lines = [f"- {option.strip()}={letter}" for letter, option in zip(letters, options, strict=True)]
    text = "\n".join([question.strip(), *lines, "Answer with the letter."])
    return Question(skill, "multiple_choice", text, letters, letters[right], 1 / len(letters))


def _taught(question: Question) -> Conversation:
    return [{"role": "user", "content": question.question}, {"role": "assistant", "content": question.answer}]


CONVERSATIONS: Mapping[str, Callable[[Row], Conversation]] = {
    "smoltalk": smoltalk,
    "arc": arc,
    "mmlu": mmlu,
    "gsm8k": gsm8k,
}
"""Renderers of rows to learn from, by the name that a mixture gives them."""
QUESTIONS: Mapping[str, Callable[[Row], Question]] = {
    "arc": arc_question,
    "mmlu": mmlu_question,
    "gsm8k": gsm8k_question,
    "humaneval": humaneval_question,
}
"""Renderers of rows to be asked, by the same names."""
