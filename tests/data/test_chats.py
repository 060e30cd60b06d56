"""Public mixtures and the user's own conversations: what they hold, what carries loss, what is said of mistakes."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments import cli, run_stage
from nanochat.data import chats, mixture_rows
from nanochat.data.chats import check_chat, open_own, open_public, open_tasks
from nanochat.data.documents import is_validation, read_conversations
from nanochat.data.mixture_rows import check_datasets, mixture, suite
from nanochat.data.mixtures import DATASETS, TASKS, Part
from nanochat.data.shards import build_chat_shards
from nanochat.data.sources import open_sources
from nanochat.data.tinyworld.spelling import is_held_out
from nanochat.errors import UserError
from nanochat.inference.calculator import evaluate
from nanochat.tasks import rows
from nanochat.tasks.questions import read_questions
from nanochat.tokenizer import Tokenizer, render
from tests.conversations import ARC, GSM8K, invented, own, real, serve, shelf
from tests.hub import Hub

__all__ = ["shelf"]
ROOT = Path(__file__).parents[2]
def test_a_mixture_has_every_row_as_often_as_declared(shelf):
    parts = chats.MIXTURES["mid"]
    found = Counter(name for name, _ in mixture(parts))
    assert [found.pop(name) for name in ("smoltalk", "mmlu", "gsm8k")] == [300, 60, 50]
    assert found == {"identity": 80, "simple_spelling": 40, "spelling_bee": 40}
    texts = Counter(json.dumps(messages) for name, messages in mixture(parts) if name == "smoltalk")
    assert set(texts.values()) == {1}
    twice = Counter(json.dumps(messages) for name, messages in mixture(parts) if name == "identity")
    assert all(count % 2 == 0 for count in twice.values())
    order = [name for name, _ in mixture(parts)]
    assert len(set(order[:60])) >= 4  # shuffled: any beginning is a fair sample


def test_the_same_declaration_makes_the_same_bytes(shelf, tmp_path):
    first, second = (open_public("sft", tmp_path / place, lambda text: None) for place in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].parent.name == second[0].parent.name


def test_it_is_made_once_and_mended(shelf, tmp_path, monkeypatch):
    train, val = open_public("sft", tmp_path, lambda text: None)
    before, written = train.read_bytes(), train.stat().st_mtime_ns
    assert open_public("sft", tmp_path, pytest.fail) == (train, val)
    assert train.stat().st_mtime_ns == written
    val.write_text("damaged")
    open_public("sft", tmp_path, lambda text: None)
    assert train.read_bytes() == before
    assert {is_validation(line) for line in val.read_text().splitlines()} <= {True}
    assert not any(map(is_validation, train.read_text().splitlines())) or not val.stat().st_size
    chats.MIXTURES["sft"] = chats.MIXTURES["sft"][:-1]
    assert open_public("sft", tmp_path, lambda text: None)[0].parent != train.parent


def test_words_that_the_task_asks_for_are_never_spelled_in_training(shelf):
    made = [(name, messages[1]["content"]) for name, messages in mixture(chats.MIXTURES["mid"])]
    taught = {reply.partition(":")[0] for name, reply in made if name in ("simple_spelling", "spelling_bee")}
    assert len(taught) > 50
    assert not any(map(is_held_out, taught))
    asked = [question.question for question in suite(TASKS) if question.skill == "spelling_bee"]
    assert len(asked) == 256
    assert not [text for text in asked if taught & set(text.rstrip("?").split())]
    assert not any("TinyWorld" in reply for name, reply in made if name == "identity")


def test_the_suite_asks_what_the_tasks_ask(shelf, tmp_path):
    questions = read_questions(open_tasks(tmp_path, lambda text: None))
    counts = Counter(question.skill for question in questions)
    assert counts == {"arc_easy": 30, "arc_challenge": 30, "mmlu": 40, "gsm8k": 50, "humaneval": 4, "spelling_bee": 256}
    for question in questions:
        if question.skill.startswith("arc"):
            assert question.choices == ("A", "B", "C")
            assert question.answer == "B"
            assert question.chance == 1 / 3
    assert any("\n- a tree=A\n- a number=B\n- a king=C\nAnswer with the letter." in q.question for q in questions)


def test_rows_that_are_no_conversations(shelf, monkeypatch):
    import datasets

    good = invented("smoltalk", 300)
    bad = {"messages": [{"role": "assistant", "content": "I begin."}]}
    part = (Part("smoltalk", "smoltalk", "smoltalk"),)
    said: list[str] = []
    monkeypatch.setattr(mixture_rows, "_load", lambda *name: datasets.Dataset.from_list([*good, bad]))
    assert len(list(mixture(part, said.append))) == 300
    assert "left out: 1 of 301 rows" in said[-1]
    assert "expected 'user'" in said[-1]
    monkeypatch.setattr(mixture_rows, "_load", lambda *name: datasets.Dataset.from_list([*good, *[bad] * 9]))
    with pytest.raises(UserError, match="9 of 309 rows are no conversations, the first of smoltalk"):
        list(mixture(part))


# --- masks and tokens, on real samples


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    if not GSM8K.exists():
        pytest.skip(f"no real samples at {GSM8K}")
    return Tokenizer.train([GSM8K.read_text(encoding="utf-8")[:400_000]], 600)


def test_only_what_the_assistant_writes_carries_loss_on_real_gsm8k(tokenizer):
    calls = 0
    for row in real(GSM8K, 300):
        user, assistant = rows.gsm8k(row)
        ids, mask = render(tokenizer, [user, assistant])
        learned = [token for token, carries in zip(ids, mask, strict=True) if carries]
        expected: list[int] = []
        for part in assistant["content"]:
            if part["type"] == "python":
                calls += 1
                start, end = (tokenizer.special(name) for name in ("<|python_start|>", "<|python_end|>"))
                expected += [start, *tokenizer.encode(part["text"]), end]
            elif part["type"] == "text":
                expected += tokenizer.encode(part["text"])
        assert learned == [*expected, tokenizer.special("<|assistant_end|>")]
        whole = "".join(part["text"] for part in assistant["content"] if part["type"] != "python")
        plain = rows.CALL.sub(lambda call: call[2].strip(), row["answer"]).replace("#### ", "The answer is ") + "."
        assert whole.split() == plain.split()  # nothing of the solution is lost
    assert calls > 800


def test_the_calculator_says_what_real_gsm8k_says():
    """Where it does not, a model would learn results that it will not be given."""
    calls = [call for row in real(GSM8K, 3000) for call in rows.CALL.finditer(row["answer"])]
    pairs = [(call[1].strip(), call[2].strip()) for call in calls]
    same = sum(evaluate(expression) == (evaluate(result) or result) for expression, result in pairs)
    assert len(pairs) > 8000
    assert same / len(pairs) > 0.97


def test_every_token_of_a_mixture_is_trained_on_once_an_epoch(tokenizer, tmp_path):
    """Conversations longer than a row are cut, not cropped."""
    conversations = [rows.gsm8k(row) for row in real(GSM8K, 200)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    rendered = [render(tokenizer, messages) for messages in conversations]
    dataset = build_chat_shards([path], tokenizer, tmp_path / "shards", row_tokens=96, num_threads=1)
    assert any(len(ids) > 97 for ids, _ in rendered)
    tokens, mask = dataset.rows(np.arange(dataset.num_rows))
    learned = [token for ids, carries in rendered for token, each in zip(ids, carries, strict=True) if each]
    assert sorted(tokens[:, 1:][mask[:, 1:]].tolist()) == sorted(learned)
    assert not mask[:, 0].any()


def test_real_arc_and_mmlu_are_answered_with_one_token(tokenizer):
    for record in real(ARC, 200):
        right = record["gold"]
        labels = "1234567"[: len(record["choices"])]
        row = {"question": record["query"], "choices": {"text": record["choices"], "label": list(labels)},
               "answerKey": labels[right]}  # fmt: skip
        user, assistant = rows.arc(row)
        question = rows.arc_question(row)
        assert (user["content"], assistant["content"]) == (question.question, question.answer)
        assert f"\n- {record['choices'][right].strip()}={question.answer}\n" in question.question
        ids, mask = render(tokenizer, [user, assistant])
        assert sum(mask) == 2  # the letter, and the end of the turn
        assert ids[-2:] == [*tokenizer.encode(question.answer), tokenizer.special("<|assistant_end|>")]
    plain = {"question": "?", "choices": ["a", "b"], "answer": 1}
    assert rows.mmlu({"train": plain}) == rows.mmlu(plain)
    assert rows.mmlu_question(plain).answer == "B"


# --- the user's own


def test_own_conversations_are_divided_by_content(tmp_path, base_dir):
    path = own(tmp_path / "own.jsonl", 400)
    check_chat(str(path))
    train, val = open_own(path, base_dir)
    trained, kept = (list(read_conversations(each)) for each in (train, val))
    assert sorted(map(json.dumps, trained + kept)) == sorted(map(json.dumps, read_conversations(path)))
    assert 400 / 16 / 2 < len(kept) < 400 / 16 * 2
    order = [list(read_conversations(path)).index(messages) for messages in trained]
    assert 120 < np.mean(order[:100]) < 280  # any beginning is a fair sample
    sources = open_sources("tinyworld", base_dir, str(path))
    assert sources.chat_train == {"mid": train, "sft": train}
    assert sources.questions.parts[-3:-1] == ("tinyworld", "world-0")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_few_conversations_still_validate(tmp_path, count):
    path = own(tmp_path / "own.jsonl", count, "\u2028\x85")  # ends of lines in Unicode, not in JSON lines
    train, val = (list(read_conversations(each)) for each in open_own(path, tmp_path))
    assert len(train) + len(val) == count
    assert train
    assert val


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "Hello", "response": "Hi"}', "there is no key 'messages'"),
        ('{"messages": [{"role": "user", "content": "Hello"}', "not JSON"),
        ('{"messages": [{"role": "user", "content": "Hello"}]}', "no assistant message"),
        ('{"messages": [{"role": "assistant", "content": "Hello"}]}', "expected 'user'"),
    ],
)
def test_a_broken_line_of_the_users_is_named_by_the_command(tmp_path, capsys, line, says):
    path = own(tmp_path / "own.jsonl", 4)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], line, lines[3]]))
    assert cli.run(run_stage.main, ["--runs-dir", str(tmp_path), "--chat", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"own.jsonl, line 4 is not {'JSON' if 'JSON' in says else 'a conversation'}" in told
    assert says.removeprefix("not ") in told
    assert "Traceback" not in told


def test_other_mistakes_are_told_at_once(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "one.jsonl").write_text(json.dumps({"messages": turns}))
    mistakes = {"publik": "no such file", "x.txt": "is no .jsonl", ".": "is no .jsonl", "one.jsonl": "fewer than two"}
    for chat, says in mistakes.items():
        with pytest.raises(UserError, match=says):
            check_chat(str(tmp_path / chat))


# --- the hub


def command(directory: Path, *options: str, endpoint: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    home = {"HF_HOME": str(directory / "hf"), "HF_ENDPOINT": endpoint} if endpoint else {}
    script = [sys.executable, str(ROOT / "experiments" / "run_stage.py"), "--runs-dir", str(directory)]
    return subprocess.run([*script, *options], capture_output=True, text=True, timeout=100,
                          env={**os.environ, **home, **environment})  # fmt: skip


def test_an_unreachable_hub_is_one_line_within_seconds(tmp_path):
    with Hub() as hub:
        hub.stop()
        start = time.monotonic()
        done = command(tmp_path, "--chat", "public", endpoint=hub.url, NANOCHAT_BASE_DIR=str(tmp_path / "cache"))
        assert time.monotonic() - start < 30  # the check itself takes REACH_S at most; the rest is starting Python
        plan = command(tmp_path, "--chat", "public", "--plan", endpoint=hub.url,
                       NANOCHAT_BASE_DIR=str(tmp_path / "cache"))  # fmt: skip
    assert plan.returncode == 0, "which needs no network"
    assert done.returncode == 2, done.stderr
    assert f"error: {DATASETS['smoltalk'].repo} cannot be had from {hub.url}" in done.stderr
    assert "--chat tinyworld" in done.stderr
    assert "HF_ENDPOINT" in done.stderr
    assert "Traceback" not in done.stderr


THROUGH_THE_HUB = """
import sys
from pathlib import Path
from nanochat.data import chats
from nanochat.data.mixture_rows import check_datasets
from nanochat.data.mixtures import MIXTURES, Part
small = {stage: tuple(Part(**{**vars(part), "rows": part.rows and min(part.rows, 40)}) for part in parts)
         for stage, parts in MIXTURES.items()}
chats.MIXTURES = small
cache = Path(sys.argv[1])
check_datasets(chats.missing(("mid", "sft"), True, cache))
for stage in ("mid", "sft"):
    print(*chats.open_public(stage, cache, lambda text: None))
print(chats.open_tasks(cache, lambda text: None))
assert chats.missing(("mid", "sft"), True, cache) == []
"""


def test_the_datasets_come_from_a_hub(tmp_path):
    with Hub() as hub:
        serve(hub)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", THROUGH_THE_HUB, str(tmp_path / "cache")], capture_output=True,
                              text=True, timeout=200, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    mid, sft, tasks = done.stdout.strip().splitlines()
    made = [sum(1 for path in line.split() for _ in read_conversations(Path(path))) for line in (mid, sft)]
    assert made == [300 + 60 + 50 + 2 * 40 + 40 + 40, 30 + 30 + 50 + 40 + 40 + 40 + 40]
    assert len(read_questions(Path(tasks))) == 30 + 30 + 40 + 20 + 4 + 256


def test_a_hub_without_the_dataset_is_named(tmp_path, monkeypatch):
    from huggingface_hub import constants

    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
        with pytest.raises(UserError, match="smol-smoltalk cannot be had from"):
            check_datasets(["smoltalk"])
