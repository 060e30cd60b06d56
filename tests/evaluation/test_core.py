"""CORE: the same answers as reading each option alone, from start to end, in fp32."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.core import answer_alone
from nanochat.errors import UserError
from nanochat.evaluation import options
from nanochat.evaluation.core import CoreScore, answer_task, core_metric, score_task
from nanochat.inference.engine import Engine
from nanochat.model import ModelConfig, Transformer
from nanochat.tasks.core import CORE_TASKS, CoreTask, Example, find_core_tasks, prompts, read_core_task
from nanochat.tokenizer import Tokenizer
from nanochat.workers import Workers
from tests.conftest import REAL_DATA

BY_LABEL = {task.label: task for task in CORE_TASKS}
REAL = REAL_DATA / "core"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A model whose every part decides what is likely; its context cuts long prompts."""
    tokenizer = Tokenizer.train(["the cat sat on the mat because it was warm, said the old man"] * 20, 300)
    config = ModelConfig(depth=2, width=64, head_dim=16, vocab_size=320, max_seq_len=160)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0 if parameter.ndim == 1 else 2 * parameter.size(-1) ** -0.5, generator=generator)
    return Engine(model, tokenizer)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real tasks of CORE are not here")
@pytest.mark.parametrize("label", ["copa", "winograd", "winogrande", "openbook_qa", "arc_easy", "piqa",
                                   "lambada_openai", "bigbench_operators"])  # fmt: skip
def test_the_same_answers_as_each_option_alone(engine, label):
    task = BY_LABEL[label]
    examples = read_core_task(task, find_core_tasks(REAL)[task])
    indices = range(12)
    fast = answer_task(engine, task, examples, indices)
    assert fast == {index: answer_alone(engine, task, examples, index) for index in indices}


def test_a_right_continuation_is_one_that_the_model_would_write(engine):
    """Half of these end as it goes on, half otherwise."""
    task, examples = BY_LABEL["lambada_openai"], []
    for number in range(20):
        context = f"the cat {number} sat"
        ids = [engine.tokenizer.bos_id, *engine.tokenizer.encode(context)]
        written = engine.tokenizer.decode(engine.complete([ids], max_new_tokens=3, stop_ids=[])[0])
        examples.append(Example((context,), (written if number % 2 else "of " + written,)))
    answers = answer_task(engine, CoreTask("x", "x", task.kind, 0, delimiter=""), examples, range(20))
    again = {index: answer_alone(engine, CoreTask("x", "x", task.kind, 0, delimiter=""), examples, index)
             for index in range(20)}  # fmt: skip
    assert answers == again
    assert Counter(answers.values())[True] >= 3
    assert not any(answers[index] for index in range(0, 20, 2))


def test_logits_are_made_a_part_at_a_time(engine, monkeypatch):
    """All at once, those of long texts would be many gigabytes."""
    task = CoreTask("x", "x", "language_modeling", 0, delimiter="")
    examples = [Example((f"{number}",), (" the cat sat on the mat" * 4,)) for number in range(4)]
    whole, made = answer_task(engine, task, examples, range(4)), []
    monkeypatch.setattr(options, "CHUNK_TOKENS", {"cpu": 5})
    monkeypatch.setattr(engine, "logits", lambda hidden: made.append(len(hidden)) or Engine.logits(engine, hidden))
    assert answer_task(engine, task, examples, range(4)) == whole
    assert max(made) == 5
    assert sum(made) > 40


class _Half(Workers):
    """One of two workers that adds what the other has found."""

    def sum(self, *values: float) -> list[float]:
        _Half.total = [*getattr(_Half, "total", []), values[0]]
        return [sum(_Half.total)]


def test_workers_share_the_examples(engine):
    task = CoreTask("x", "x", "multiple_choice", 2, 0.5)
    examples = [Example((f"the {n} cat",) * 2, ("sat on the mat", f"was {n}"), n % 2) for n in range(15)]
    alone = score_task(engine, task, examples)
    both = [score_task(engine, task, examples, _Half(rank=rank, size=2)) for rank in range(2)]
    assert both[1].accuracy == alone.accuracy
    assert (alone.count, alone.of) == (15, 15)
    fewer = score_task(engine, task, examples, limit=4)
    assert fewer.count == 4
    assert fewer.accuracy * 4 == sum(answer_task(engine, task, examples, range(4)).values())


def test_scores_are_centred_on_chance():
    scores = [CoreScore("a", 0.25, 0.25, 100, 100, 1.0), CoreScore("b", 0.75, 0.5, 100, 200, 1.0)]
    assert [score.centred for score in scores] == [0, 0.5]
    assert core_metric(scores) == 0.25
    assert scores[1].standard_error == pytest.approx(0.0433, abs=1e-4)


def test_the_suite_is_the_published_one():
    assert len(CORE_TASKS) == len({task.label for task in CORE_TASKS}) == 22
    assert Counter(task.kind for task in CORE_TASKS) == {"multiple_choice": 11, "language_modeling": 9, "schema": 2}
    assert BY_LABEL["boolq"].chance == 0.62


def test_shots_are_answered_others(tmp_path):
    task = CoreTask("x", "x.jsonl", "multiple_choice", 3, 0.5, "\nAnswer: ")
    lines = [{"query": f"Q{n}", "choices": [f"no{n}", f"yes{n}"], "gold": 1} for n in range(6)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    examples = read_core_task(task, path)
    for index, example in enumerate(examples):
        first, second = prompts(task, examples, index)
        asked = example.contexts[0]
        assert first[0] == second[0]
        assert first[0].endswith(f"\n\n{asked}\nAnswer: ")
        shots = first[0].split("\n\n")[:3]
        assert len(set(shots)) == 3
        assert all(shot == f"Q{shot[1]}\nAnswer: yes{shot[1]}" for shot in shots)
        assert not any(shot.startswith(asked) for shot in shots)
        assert [whole.removeprefix(before) for before, whole in (first, second)] == list(example.continuations)
    assert list(prompts(task, examples, 2)) == list(prompts(task, read_core_task(task, path), 2))


@pytest.mark.parametrize(("line", "said"), [
    ("{", "line 2"), ('{"query": "q", "choices": ["a"], "gold": 1}', "line 2"), ('{"query": "q"}', "line 2"),
    ('{"query": 3, "choices": ["a"], "gold": 0}', "query is 3"),
    ('{"query": "q", "choices": [1], "gold": 0}', "line 2"),
])  # fmt: skip
def test_what_is_no_example_is_named(tmp_path, line, said):
    path = tmp_path / "copa.jsonl"
    good = '{"query": "q", "choices": ["a", "b"], "gold": 1}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(UserError, match=said):
        read_core_task(BY_LABEL["copa"], path)
    path.write_text(good.replace('"q"', '"q\u2028\x85"'), encoding="utf-8")  # within JSON no end of a line
    assert len(read_core_task(BY_LABEL["copa"], path)) == 1
    with pytest.raises(UserError, match="10 others stand before each"):
        read_core_task(BY_LABEL["piqa"], path)
    with pytest.raises(UserError, match="holds no task of CORE"):
        find_core_tasks(Path(tmp_path / "nothing"))
