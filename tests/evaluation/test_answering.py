from pathlib import Path

import pytest
import torch

from nanochat.data.sources import open_sources
from nanochat.evaluation import answering
from nanochat.evaluation.answering import answer, final_text, grade, shown
from nanochat.inference.engine import Engine
from nanochat.model import ModelConfig, Transformer
from nanochat.tasks.questions import Question, read_questions, summarise
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the answer is A B C D 0 1 2 3 4 5 6 7 8 9 - = ?"] * 20, 300)


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Engine:
    config = ModelConfig.from_depth(1, 320, 256)
    model = Transformer(config, seed=1)
    torch.nn.init.normal_(model.head, std=0.5)  # decided opinions, though random ones
    return Engine(model, tokenizer)


def choice(text: str, right: str) -> Question:
    return Question("s", "multiple_choice", text, ("A", "B", "C", "D"), right, 0.25)


def test_an_untrained_model_scores_at_chance(engine, cache: Path):
    """Over the whole suite: nothing in how questions are asked or graded gives answers away."""
    questions = read_questions(open_sources("tinyworld", cache).questions)
    summary = summarise(grade(engine, questions))
    assert summary.overall.total == len(questions)
    assert summary.overall.accuracy <= summary.overall.chance + 0.05
    lettered = [question for question in questions if question.kind == "multiple_choice"]
    assert abs(summarise(grade(engine, lettered)).overall.accuracy - 0.25) < 0.25


def test_letters_are_chosen_by_likelihood(engine, tokenizer):
    questions = [choice(f"What is {number}?", "A") for number in range(20)]
    for question, letter in answer(engine, questions):
        prompt = render_prompt(tokenizer, [{"role": "user", "content": question.question}])
        logits = engine.model(torch.tensor([prompt]))[0, -1]
        assert letter == max("ABCD", key=lambda option: float(logits[tokenizer.encode(option)[0]]))


def test_answers_do_not_depend_on_what_else_is_asked(engine):
    questions = [choice(f"What is {number}?" * (1 + number % 3), "A") for number in range(6)]
    questions += [Question("s", "exact", f"Say {number}" * (1 + number % 4), None, "5", 0.0) for number in range(6)]
    together = answer(engine, questions)
    assert [question for question, _ in together] == questions
    assert together == [answer(engine, [question])[0] for question in questions]


def test_a_question_longer_than_the_context_is_wrong_not_fatal(engine):
    long = Question("s", "exact", "5 " * 400, None, "5", 0.0)
    short = Question("s", "exact", "5?", None, "5", 0.0)
    assert answer(engine, [long, short])[0] == (long, "")
    assert grade(engine, [long]) == [(long, False)]


def test_only_what_follows_the_calculator_counts(tokenizer):
    def special(name: str) -> int:
        return tokenizer.special(f"<|{name}|>")

    ids = [
        *tokenizer.encode("I ask: "),
        special("python_start"),
        *tokenizer.encode("1+1"),
        special("python_end"),
        special("output_start"),
        *tokenizer.encode("2"),
        special("output_end"),
        *tokenizer.encode(" It is 2."),
    ]
    assert final_text(tokenizer, ids) == "It is 2."
    assert final_text(tokenizer, tokenizer.encode(" plain ")) == "plain"


def test_code_is_asked_for_only_where_it_may_be_run(engine, monkeypatch):
    tests = "def check(f):\n    assert f() == 3\n\ncheck(three)\n"
    code = Question("humaneval", "code", "def three():\n", None, tests, 0.0)
    exact = Question("s", "exact", "Say 5", None, "5", 0.0)
    with pytest.raises(ValueError, match="running"):
        grade(engine, [exact, code])
    monkeypatch.setattr(answering, "_write", lambda engine, kind, prompts: ["    return 3" if kind == "code" else "5"])
    assert grade(engine, [exact, code], run_code=True) == [(exact, True), (code, True)]


def test_replies_may_be_as_long_as_their_kind_needs(engine, monkeypatch):
    asked = {}

    def complete(prompts, *, max_new_tokens):
        asked[engine.tokenizer.decode(prompts[0][2:-2])] = max_new_tokens
        return [[] for _ in prompts]

    monkeypatch.setattr(engine, "complete", complete)
    kinds = {"exact": "5", "number": "5", "code": "assert f()"}
    answer(engine, [Question("s", kind, kind, None, right, 0.0) for kind, right in kinds.items()])
    assert asked == {"exact": 96, "number": 256, "code": 512}


def test_a_reply_is_shown_with_its_calculation():
    parts = [
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": "2"},
        {"type": "text", "text": "It is 2."},
    ]
    assert shown(parts) == "[1+1 = 2] It is 2."
