"""TinyWorld: the same everywhere, true throughout, and silent about what the evaluation asks."""

import ast
import json
import operator
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.documents import is_validation
from nanochat.data.tinyworld import World, write
from nanochat.data.tinyworld.arithmetic import in_words
from nanochat.data.tinyworld.conversations import EXERCISES, MID, SFT, conversation
from nanochat.data.tinyworld.documents import DOCUMENTS, document
from nanochat.data.tinyworld.exercise import Exercise
from nanochat.data.tinyworld.facts import RELATIONS
from nanochat.data.tinyworld.holdout import document_rng, held_out, stable_hash
from nanochat.data.tinyworld.identity import ABOUT_ME
from nanochat.data.tinyworld.people import COUNTABLE, NAMES
from nanochat.data.tinyworld.plots import PLOTS
from nanochat.data.tinyworld.questions import QUESTIONS_PER_SKILL, SKILLS, question_suite
from nanochat.data.tinyworld.relation import FRAMES
from nanochat.data.tinyworld.spelling import WORDS, is_held_out
from nanochat.data.tinyworld.stories import draw_cast, question_about
from nanochat.errors import UserError
from nanochat.tasks.questions import Question, is_correct, read_questions
from nanochat.tokenizer.chat import check_messages

NUM_DOCUMENTS = 12_000

CALCULATION = re.compile(r"(\d+) (\+|-|\*|plus|minus|times|and|from|by) (\d+)")
SYMBOLS = {"plus": "+", "and": "+", "minus": "-", "from": "-", "times": "*", "by": "*"}
COUNTERS = re.compile(r"(?<=\b[a-z])\d+")  # t-i1-g-e-r counts as it spells
SPELLED = re.compile(r"\b[a-z](?:-[a-z])+\b")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write(tmp_path_factory.mktemp("data") / "world", num_documents=NUM_DOCUMENTS)


def base_documents(world: World, split: str) -> list[str]:
    return [
        text
        for path in sorted(world.base.glob(f"{split}_*.parquet"))
        for text in pyarrow.parquet.read_table(path)["text"].to_pylist()
    ]


def conversations(world: World, *splits: str) -> Iterator[list[dict]]:
    for stage in ("mid", "sft"):
        for split in splits:
            for line in world.conversations(stage, split).read_text("utf-8").splitlines():
                yield json.loads(line)["messages"]


def parts(message: dict) -> list[dict[str, str]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


@pytest.fixture(scope="module")
def everything(world: World) -> list[str]:
    """Every text of every training and validation file: whatever is held out is held out of validation as well."""
    texts = [*base_documents(world, "train"), *base_documents(world, "val")]
    for messages in conversations(world, "train", "val"):
        texts += [part["text"] for message in messages for part in parts(message)]
    return texts


def normalised(question: str) -> str:
    return " ".join(re.findall(r"[^\s.,?!]+", question.casefold()))


# --- the same everywhere -------------------------------------------------------------------------------------------


def test_same_arguments_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again = (write(tmp_path / name, seed=3, num_documents=300) for name in ("first", "again"))
    other = write(tmp_path / "other", seed=4, num_documents=300)
    assert first.files == again.files
    assert not set(first.files.values()) & set(other.files.values())
    for name in first.files:
        assert (first.directory / name).read_bytes() == (again.directory / name).read_bytes()


def test_another_process_with_another_hash_seed_writes_the_same(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from nanochat.data.tinyworld import write;"
        "print(json.dumps(dict(write(Path(sys.argv[1]), seed=5, num_documents=200).files)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "theirs")],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    assert json.loads(done.stdout) == dict(write(tmp_path / "ours", seed=5, num_documents=200).files)


def test_a_larger_world_begins_with_the_smaller_one(tmp_path: Path) -> None:
    small, large = (write(tmp_path / str(size), num_documents=size) for size in (200, 400))
    for split in ("train", "val"):
        documents = base_documents(small, split)
        assert base_documents(large, split)[: len(documents)] == documents
    assert small.questions.read_bytes() == large.questions.read_bytes()


@pytest.mark.parametrize(("parts", "expected"), [(("a", 1), 0x3CC1), (("held out", "spelling", "tiger"), 0xB1AB)])
def test_the_hash_is_pinned(parts: tuple[object, ...], expected: int) -> None:
    assert stable_hash(*parts) & 0xFFFF == expected


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_held_out_depends_on_the_text_of_its_parts_alone(combination: list[str]) -> None:
    assert held_out(*combination) == held_out(*[str(part) for part in combination])
    assert held_out(*combination, one_in=1)


def test_about_one_in_eight_is_held_out() -> None:
    assert sum(held_out("sum", a, b) for a in range(100) for b in range(100)) == pytest.approx(1250, rel=0.1)


# --- on disk -------------------------------------------------------------------------------------------------------


def test_a_complete_world_is_reused_and_a_damaged_or_different_one_is_rewritten(tmp_path: Path) -> None:
    directory = tmp_path / "world"
    first = write(directory, num_documents=100)
    written = first.questions.stat().st_mtime_ns
    assert write(directory, num_documents=100) == first
    assert first.questions.stat().st_mtime_ns == written
    first.questions.write_text("damaged")
    assert write(directory, num_documents=100).files == first.files
    assert len(read_questions(first.questions)) == QUESTIONS_PER_SKILL * len(SKILLS)
    assert write(directory, num_documents=120).num_documents == 120
    (directory / "manifest.json").write_text("[]")
    assert write(directory, num_documents=100).files == first.files
    assert {path.name for path in tmp_path.iterdir()} == {"world", ".world.lock"}


def test_of_two_processes_at_once_the_second_finds_what_the_first_has_made(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nanochat.data.tinyworld import write;"
        "print(write(Path(sys.argv[1]), num_documents=2000).questions.stat().st_ino)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "world")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert made[0] == made[1] != ""


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("nanochat.data.tinyworld.files._write_questions", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "world", num_documents=100)
    assert [path.name for path in tmp_path.iterdir()] == [".world.lock"]


def test_a_directory_with_other_things_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a TinyWorld"):
        write(tmp_path, num_documents=100)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_the_manifest_counts_what_is_there(world: World) -> None:
    for split in ("train", "val"):
        documents = base_documents(world, split)
        assert world.counts[f"base/{split} documents"] == len(documents)
        assert world.counts[f"base/{split} characters"] == sum(map(len, documents))
        for stage in ("mid", "sft"):
            lines = world.conversations(stage, split).read_text("utf-8").splitlines()
            assert world.counts[f"{stage}/{split} conversations"] == len(lines)
    assert world.counts["questions"] == len(read_questions(world.questions))
    shard = pyarrow.parquet.ParquetFile(world.base / "train_000.parquet")
    assert shard.metadata.row_group(0).num_rows == 1000
    assert shard.metadata.row_group(0).column(0).compression == "ZSTD"


# --- the splits ----------------------------------------------------------------------------------------------------


def test_splits_share_nothing(world: World) -> None:
    train, val = base_documents(world, "train"), base_documents(world, "val")
    assert val
    assert not set(train) & set(val)
    assert all(map(is_validation, val))
    assert not any(map(is_validation, train))
    in_train = {json.dumps(messages) for messages in conversations(world, "train")}
    in_val = {json.dumps(messages) for messages in conversations(world, "val")}
    assert len(in_val) > 100
    assert not in_train & in_val


def test_documents_hardly_repeat(world: World) -> None:
    documents = base_documents(world, "train")
    assert len(set(documents)) > 0.99 * len(documents)


def test_no_question_of_the_evaluation_is_asked_in_training(world: World, everything: list[str]) -> None:
    asked = {
        normalised(message["content"])
        for messages in conversations(world, "train", "val")
        for message in messages
        if message["role"] == "user"
    }
    questions = read_questions(world.questions)
    assert not [question.question for question in questions if normalised(question.question) in asked]
    text = "\n".join(everything)
    assert not [question.question for question in questions if question.question in text]


def test_held_out_calculations_are_nowhere(everything: list[str]) -> None:
    found = set()
    for text in everything:
        for a, symbol, b in CALCULATION.findall(text):
            found.add((SYMBOLS.get(symbol, symbol), *sorted((int(a), int(b)))))
        if re.fullmatch(r"\d+[-+*]\d+", text):
            a, symbol, b = re.split(r"([-+*])", text)
            found.add((symbol, *sorted((int(a), int(b)))))
    assert len(found) > 2000
    assert {symbol for symbol, *_ in found} == set("+-*")
    assert not [calculation for calculation in found if held_out(*calculation)]


def test_held_out_words_are_never_spelled_and_ordinary_ones_not_even_used(everything: list[str]) -> None:
    spelled = {match.replace("-", "") for text in everything for match in SPELLED.findall(COUNTERS.sub("", text))}
    assert len(spelled) > 3000
    assert not [word for word in spelled if is_held_out(word)]
    used = {word for text in everything for word in re.findall(r"[a-z]+", text.casefold())}
    assert not [word for word in WORDS if is_held_out(word) and word in used]


def shape(exercise: Exercise) -> str:
    """The phrasing alone: numbers, names, things, single letters and the word to spell blotted out."""
    known = "|".join((*NAMES, *COUNTABLE, "first", "second", "last", "larger", "smaller", "she", "he", "[a-z]", r"\d+"))
    word = exercise.reply.split(":")[0]
    return re.sub(rf"\b({known})\b", "_", exercise.question.split(": ")[-1].replace(word, "_"))


@pytest.mark.parametrize("skill", ["arithmetic", "word_problem", "comparison", "counting", "spelling", "letter_count"])
def test_some_phrasings_are_for_the_evaluation_alone(skill: str) -> None:
    rng = document_rng("test", "shapes", skill)
    seen, unseen = ({shape(SKILLS[skill](rng, held)) for _ in range(1500)} for held in (False, True))
    assert 1 <= len(unseen) <= 9
    assert not seen & unseen


def test_some_questions_about_stories_are_for_the_evaluation_alone() -> None:
    rng = document_rng("test", "asks")
    for plot in PLOTS:
        cast = draw_cast(rng, unseen=False)
        seen, unseen = ({question_about(rng, plot, cast, held).question for _ in range(200)} for held in (False, True))
        assert len(unseen) == len(plot.asks)
        assert not seen & unseen


def test_every_skill_has_its_unseen_phrasings() -> None:
    for relation in (*RELATIONS, *ABOUT_ME):
        seen, unseen = relation.phrasings
        assert unseen
        assert not set(seen) & set(unseen)
        assert not relation.topic or FRAMES[0].format(topic=relation.topic) in seen
    assert all(len(ask.questions) >= 2 for plot in PLOTS for ask in plot.asks)


# --- true throughout -----------------------------------------------------------------------------------------------


def test_every_fact_is_stated_in_the_base_documents(world: World) -> None:
    text = "\n".join(base_documents(world, "train"))
    sentences = Counter(re.split(r"(?<=\.)\s", text))
    for relation in RELATIONS:
        for subject in relation.subjects:
            stated = sum(sentences[relation.say(template, subject)] for template in relation.statements)
            assert stated >= 5, (relation.name, subject)


def test_relations_are_well_formed() -> None:
    for relation in (*RELATIONS, *ABOUT_ME):
        for subject, answer in relation.pairs.items():
            for template in (*relation.statements, *(relation.phrasings[0]), *(relation.phrasings[1])):
                assert not re.search(r"[{}]|\ba [aeiou]", relation.say(template, subject))
            question = Question(relation.skill, "exact", "?", None, answer, 0.0)
            assert is_correct(question, relation.say(relation.reply, subject))


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("unseen", [False, True])
def test_replies_end_with_the_right_answer(skill: str, unseen: bool) -> None:
    rng = document_rng("test", skill, unseen)
    for _ in range(300):
        exercise = SKILLS[skill](rng, unseen)
        kind = "multiple_choice" if exercise.choices else "exact"
        question = Question(skill, kind, exercise.question, exercise.choices or None, exercise.answer, exercise.chance)
        assert exercise.skill == skill
        assert is_correct(question, exercise.reply)
        assert not re.search(r"[{}]", exercise.question + exercise.reply)


def test_answers_are_what_a_second_reckoning_says(world: World) -> None:
    rng = document_rng("test", "answers")
    for unseen in (False, True):
        for _ in range(500):
            exercise = SKILLS["letter_count"](rng, unseen)
            word, letters = re.match(r"(\w+): ([\w-]+)\. ", exercise.reply).groups()
            assert word in exercise.question
            assert COUNTERS.sub("", letters).split("-") == list(word)
            told = exercise.reply.removeprefix(f"{word}: {letters}. ")
            if counted := re.fullmatch(r"The number of (\w) is (\d+)\.", told):
                assert word.count(counted[1]) == int(counted[2])
            elif length := re.fullmatch(r"The number of letters is (\d+)\.", told):
                assert len(word) == int(length[1])
            else:
                place, letter = re.fullmatch(r"The (first|second|last) letter is (\w)\.", told).groups()
                assert word[{"first": 0, "second": 1, "last": -1}[place]] == letter
            spelled = SKILLS["spelling"](rng, unseen)
            assert spelled.answer.replace("-", "") in spelled.question
            compared = SKILLS["comparison"](rng, unseen)
            numbers = [int(number) for number in re.findall(r"\d+", compared.question)]
            assert int(compared.answer) == (max if "larger" in compared.question else min)(numbers)
            read = SKILLS["reading"](rng, unseen)
            assert read.answer in read.question


def test_numbers_in_words() -> None:
    assert [in_words(number) for number in (0, 7, 13, 20, 47, 90, 99)] == [
        "zero", "seven", "thirteen", "twenty", "forty-seven", "ninety", "ninety-nine",
    ]  # fmt: skip
    assert len({in_words(number) for number in range(100)}) == 100


def test_written_out_sums_are_right(everything: list[str]) -> None:
    operations = {"+": operator.add, "-": operator.sub, "*": operator.mul, "plus": operator.add, "times": operator.mul}
    equations = 0
    for text in everything:
        for a, symbol, b, c in re.findall(r"(\d+) (\+|-|\*|plus|times) (\d+) (?:=|is) (\d+)", text):
            assert operations[symbol](int(a), int(b)) == int(c)
            equations += 1
    assert equations > 2000


def test_tool_outputs_are_the_value_of_the_expression_and_the_operands_come_from_the_question(world: World) -> None:
    calls = 0
    for messages in conversations(world, "train", "val"):
        for user, assistant in zip(messages[::2], messages[1::2], strict=True):
            if isinstance(assistant["content"], str):
                continue
            call, output, text = assistant["content"]
            tree = ast.parse(call["text"], mode="eval").body
            operation = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}[type(tree.op)]
            assert str(operation(tree.left.value, tree.right.value)) == output["text"]
            assert text["text"].endswith(f" {output['text']}.")
            assert {str(tree.left.value), str(tree.right.value)} <= set(re.findall(r"\d+", user["content"]))
            calls += 1
    assert calls > 500


def test_conversations_are_valid_short_and_of_every_kind(world: World) -> None:
    turns: Counter[int] = Counter()
    for messages in conversations(world, "train", "val"):
        check_messages(messages)
        turns[len(messages) // 2] += 1
        assert sum(len(part["text"]) for message in messages for part in parts(message)) <= 800
    assert set(turns) == {1, 2, 3}
    assert set(MID) == set(SFT) == set(EXERCISES)


def test_documents_are_of_a_readable_size() -> None:
    for kind, _ in DOCUMENTS:
        rng = document_rng("test", kind.__name__)
        lengths = [len(kind(rng)) for _ in range(200)]
        assert 100 <= sum(lengths) / len(lengths) <= 900, kind.__name__
        assert max(lengths) < 2500, kind.__name__


def test_multiple_choice_puts_the_answer_under_every_letter_equally() -> None:
    rng = document_rng("test", "letters")
    letters: Counter[str] = Counter()
    for _ in range(2000):
        exercise = SKILLS["multiple_choice"](rng, False)
        letters[exercise.answer] += 1
        options = re.findall(r"^- (.+)=[A-D]$", exercise.question, re.M)
        assert len(set(options)) == 4
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > 400


@settings(max_examples=50)
@given(st.integers(0, 2**63), st.integers(0, 10**6))
def test_any_document_and_conversation_of_any_seed_is_clean(seed: int, index: int) -> None:
    text = document(document_rng(seed, "base", index))
    assert text == text.strip()
    assert not re.search(r"[{}]|  ", text)
    check_messages(conversation(document_rng(seed, "mid", index), MID))


def test_the_suite_is_balanced_and_its_chance_low() -> None:
    suite = question_suite(0)
    assert Counter(exercise.skill for exercise in suite) == dict.fromkeys(SKILLS, QUESTIONS_PER_SKILL)
    assert len({exercise.question for exercise in suite}) == len(suite)
    assert sum(exercise.chance for exercise in suite) / len(suite) < 0.06
    # No constant answer gets anywhere.
    for skill in set(SKILLS) - {"identity"}:
        answers = Counter(exercise.answer for exercise in suite if exercise.skill == skill)
        assert max(answers.values()) <= 0.5 * QUESTIONS_PER_SKILL, (skill, answers)
