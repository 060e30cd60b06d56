"""When a reply is right, what the scores are, and what is said about a broken file of questions."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import UserError
from nanochat.tasks.questions import Question, is_correct, last_number, read_questions, spread, summarise

CAPITAL = Question("geography", "exact", "What is the capital of France?", None, "Paris", 0.0)
SUM = Question("arithmetic", "exact", "What is 37 + 58?", None, "95", 0.0)
MANY = Question("gsm8k", "number", "How much is it all?", None, "1,250", 0.0)
CODE = Question("humaneval", "code", "def f():\n", None, "assert f()", 0.0)
CHOICE = Question("multiple_choice", "multiple_choice", "Which?\n- x=A\n- y=B", ("A", "B"), "B", 0.5)

words = st.text("abcdefghij-", min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("question", "reply", "right"),
    [
        (CAPITAL, "The capital of France is Paris.", True),
        (CAPITAL, "paris", True),
        (CAPITAL, "  PARIS! \n", True),
        (CAPITAL, "Paris or London", False),
        (CAPITAL, "Paris is the capital of France.", False),
        (CAPITAL, "It is not-Paris", False),
        (CAPITAL, "", False),
        (CAPITAL, "...", False),
        (SUM, "37 + 58 = 95.", True),
        (SUM, "195", False),
        (SUM, "-95", False),
        (SUM, "0.95", False),
        (SUM, "95.0", False),
        (CHOICE, "B", True),
        (CHOICE, "b.", True),
        (CHOICE, "The answer is B.", True),
        (CHOICE, "A", False),
        (CHOICE, "A B C D", False),
        (CHOICE, "AB", False),
        (MANY, "5 * 250 = 1250. The answer is 1250.", True),
        (MANY, "It is $1,250.00 in all", True),
        (MANY, "1250, or 1300", False),
        (MANY, "-1250", False),
        (MANY, "10-1250", True),
        (MANY, "It is 11,250.", False),
        (MANY, "1, 2, 50", False),
        (MANY, "none", False),
        (Question("geography", "exact", "?", None, "New Delhi", 0.0), "The capital of India is New   Delhi.", True),
        (Question("geography", "exact", "?", None, "New Delhi", 0.0), "Delhi", False),
        (Question("spelling", "exact", "?", None, "t-i-g-e-r", 0.0), "tiger: t-i-g-e-r.", True),
        (Question("spelling", "exact", "?", None, "t-i-g-e-r", 0.0), "s-t-i-g-e-r", False),
    ],
)
def test_a_reply_is_right_when_it_ends_with_the_answer(question: Question, reply: str, right: bool) -> None:
    assert is_correct(question, reply) is right


@given(st.lists(words, min_size=2, max_size=6, unique=True), st.text(max_size=20))
def test_one_reply_is_right_for_one_candidate_at_most(candidates: list[str], around: str) -> None:
    """However a reply lists candidates of one word each, it is right for one of them at most."""
    reply = around + " " + " ".join(candidates) + " " + around
    questions = [Question("s", "exact", "?", None, candidate, 0.0) for candidate in candidates]
    assert sum(is_correct(question, reply) for question in questions) <= 1


@given(words, st.lists(words, max_size=5), st.sampled_from(["", ".", "!", " .", "?", '."']))
def test_whatever_leads_up_to_it_the_last_word_decides(answer: str, lead: list[str], mark: str) -> None:
    question = Question("s", "exact", "?", None, answer, 0.0)
    assert is_correct(question, " ".join([*lead, answer.upper()]) + mark)
    assert not is_correct(question, " ".join([*lead, answer, "x"]) + mark)
    assert not is_correct(question, " ".join([*lead, "x" + answer]) + mark)


def test_summary_counts_by_skill_and_overall_with_chance() -> None:
    summary = summarise([(CAPITAL, True), (SUM, False), (CAPITAL, True), (CHOICE, True)])
    assert (summary.overall.correct, summary.overall.total, summary.overall.accuracy) == (3, 4, 0.75)
    assert summary.overall.chance == 0.125
    assert list(summary.by_skill) == ["geography", "arithmetic", "multiple_choice"]
    assert summary.by_skill["geography"].accuracy == 1
    assert summary.by_skill["arithmetic"].accuracy == 0
    assert summary.by_skill["multiple_choice"].chance == 0.5
    with pytest.raises(ValueError, match="nothing to summarise"):
        summarise([])


def test_chat_core_is_the_mean_accuracy_centred_on_chance() -> None:
    summary = summarise([(CHOICE, True), (CHOICE, False), (CAPITAL, True), (CAPITAL, False), (CAPITAL, False)])
    assert summary.by_skill["multiple_choice"].centred == 0  # half of two options
    assert summary.chat_core == pytest.approx((0 + 1 / 3) / 2)  # a skill counts once, however many its questions
    assert summarise([(CHOICE, False)]).chat_core == -1


def test_a_limited_suite_asks_every_skill_alike() -> None:
    many = [Question("many", "exact", f"{number}?", None, "5", 0.0) for number in range(1000)]
    few = [Question("few", "exact", f"{number}?", None, "5", 0.0) for number in range(10)]
    asked = spread([*many, *few], 40)
    assert [question.skill for question in asked] == ["many"] * 20 + ["few"] * 10
    assert asked[1].question == "50?"  # over all of them
    assert spread([*many, *few], 2000) == [*many, *few]
    assert [question.skill for question in spread([*many, *few], 1)] == ["many", "few"]
    assert spread([], 5) == []


def test_code_is_not_judged_by_reading_it() -> None:
    with pytest.raises(ValueError, match="running"):
        is_correct(CODE, "    return True")


def test_the_last_number() -> None:
    assert last_number("from 1 to 2.50") == last_number("2.5") == last_number("x = 2.500")
    assert last_number("no number") is None
    assert last_number(".5") == last_number("0.5")
    with pytest.raises(ValueError, match="no number"):
        Question("gsm8k", "number", "?", None, "many", 0.0)


def test_questions_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(asdict(question)) + "\n" for question in (CAPITAL, SUM, CHOICE, MANY, CODE)))
    assert read_questions(path) == [CAPITAL, SUM, CHOICE, MANY, CODE]


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    """Not at the ends of lines that Unicode has besides."""
    strange = replace(CAPITAL, question="What\u2028is\u2029the\x85capital of France?")
    lines = [json.dumps(asdict(each), ensure_ascii=False) for each in (strange, SUM)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert read_questions(tmp_path / "questions.jsonl") == [strange, SUM]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2"),
        ("3", "keys"),
        (json.dumps({**asdict(CAPITAL), "kind": "essay"}), "kind must be"),
        (json.dumps({**asdict(CAPITAL), "answer": " ."}), "the answer is empty"),
        (json.dumps({**asdict(CAPITAL), "answer": 3}), "line 2"),
        (json.dumps({**asdict(CAPITAL), "kind": "multiple_choice"}), "needs choices"),
        (json.dumps({**asdict(CHOICE), "answer": "E"}), "not among the choices"),
        (json.dumps({"question": "Who?"}), "keys"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(asdict(SUM)) + "\n" + line + "\n")
    with pytest.raises(UserError, match=problem) as error:
        read_questions(path)
    assert "line 2" in error.value.message
    assert error.value.hint


def test_a_missing_or_foreign_file_is_the_users_to_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no questions"):
        read_questions(tmp_path / "nothing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(UserError, match="UTF-8"):
        read_questions(tmp_path / "latin.jsonl")
