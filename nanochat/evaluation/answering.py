"""Asking a chat model the questions of a suite: multiple choice by the likeliest letter, the rest by what it writes."""

from collections.abc import Iterator, Sequence

from nanochat.evaluation.code_runner import run_all
from nanochat.inference.engine import Engine
from nanochat.tasks.questions import KINDS, Question, is_correct
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt

BATCH = 64
MAX_ANSWER_TOKENS = {"exact": 96, "number": 256, "code": 512}


def answer(engine: Engine, questions: Sequence[Question]) -> list[tuple[Question, str]]:
    """Each question with the model's greedy reply (for multiple choice a letter), in the order given."""
    replies: dict[int, str] = {}
    prompts = [render_prompt(engine.tokenizer, [{"role": "user", "content": q.question}]) for q in questions]
    room = engine.model.config.max_seq_len - 1
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= room]
    by_length = sorted(fitting, key=lambda index: len(prompts[index]))  # little padding within a batch
    for kind in KINDS:
        indices = [index for index in by_length if questions[index].kind == kind]
        for batch in _batches(indices):
            asked, begun = [questions[i] for i in batch], [prompts[i] for i in batch]
            texts = _choose(engine, asked, begun) if kind == "multiple_choice" else _write(engine, kind, begun)
            replies.update(zip(batch, texts, strict=True))
    return [(question, replies.get(index, "")) for index, question in enumerate(questions)]


def grade(
    engine: Engine, questions: Sequence[Question], *, run_code: bool = False
) -> list[tuple[Question, bool]]:
    """Whether the model answers each question correctly.

    Args:
        run_code: run what it writes where code is asked for, see `code_runner` about the risk.

    Raises:
        ValueError: code is asked for and may not be run.
    """
    if not run_code and any(question.kind == "code" for question in questions):
        raise ValueError("code can only be judged by running it")
    answered = answer(engine, questions)
    code = [(question, reply) for question, reply in answered if question.kind == "code"]
    passed = iter(run_all([question for question, _ in code], [reply for _, reply in code]) if code else ())
    return [
        (question, next(passed) if question.kind == "code" else is_correct(question, reply))
        for question, reply in answered
    ]


def shown(parts: Sequence[dict[str, str]]) -> str:
    """A reply as a person reads it, calculator calls in brackets: `[37+58 = 95] 37 + 58 = 95.`"""
    forms = {"text": "{}", "python": "[{} = ", "python_output": "{}] "}
    return "".join(forms[part["type"]].format(part["text"]) for part in parts).strip()


def final_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """What a reply says after its last tool call."""
    end = tokenizer.special("<|output_end|>")
    start = max((index + 1 for index, token in enumerate(ids) if token == end), default=0)
    return tokenizer.decode(ids[start:]).strip()


def _batches(indices: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(indices), BATCH):
        yield indices[start : start + BATCH]


def _choose(engine: Engine, questions: Sequence[Question], prompts: Sequence[Sequence[int]]) -> list[str]:
    logits = engine.last_logits(prompts)
    letters = []
    for row, question in zip(logits, questions, strict=True):
        assert question.choices is not None
        ids = [engine.tokenizer.encode(choice)[0] for choice in question.choices]
        letters.append(question.choices[int(row[ids].argmax())])
    return letters


def _write(engine: Engine, kind: str, prompts: Sequence[Sequence[int]]) -> list[str]:
    replies = engine.complete(prompts, max_new_tokens=MAX_ANSWER_TOKENS[kind])
    if kind == "code":  # with the spaces that it begins with
        return [engine.tokenizer.decode(ids) for ids in replies]
    return [final_text(engine.tokenizer, ids) for ids in replies]
