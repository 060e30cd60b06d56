"""EleutherAI's harness asks our models: the same answers as of what was exported, asked in the harness's own way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments import evaluate, lm_harness
from experiments.cli import run as exit_code
from experiments.lm_harness import HarnessModel
from nanochat.inference.engine import Engine
from nanochat.interchange.export import export_transformers
from nanochat.model import ModelConfig, Transformer
from nanochat.tokenizer import Tokenizer

TEXT = "the cat sat on the mat, the dog too. "


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Our model, and the folder it was exported to."""
    tokenizer = Tokenizer.train([TEXT * 10], 290)
    model, generator = Transformer(ModelConfig.from_depth(2, 290, 64)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0 if parameter.ndim == 1 else 2 * parameter.size(-1) ** -0.5, generator=generator)
        model.head[len(tokenizer.tokens) :] = 0  # it writes no special tokens
    folder = tmp_path_factory.mktemp("models") / "out"
    export_transformers(model, tokenizer, folder, chat=False, name="x")
    return Engine(model.eval(), tokenizer), folder


@pytest.fixture(scope="module")
def both(exported):
    engine, folder = exported
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    harness = {with_bos: HFLM(theirs, tokenizer=tokenizer, device="cpu", add_bos_token=with_bos, max_length=64)
               for with_bos in (True, False)}  # fmt: skip
    return HarnessModel(engine), harness[True], harness[False]


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, place) for place, each in enumerate(arguments)]


def test_continuations_of_contexts(both):
    """Of one context and of several, empty, ending in a space, and longer than the model's."""
    ours, theirs, _ = both
    contexts = ("the cat sat", "the cat sat on ", "", TEXT, TEXT * 4)
    options = (" on the mat", " too", "x", " the dog too. the cat")
    requests = asked("loglikelihood", *((context, option) for context in contexts for option in options))
    for (mine, greedy), (other, other_greedy) in zip(ours.loglikelihood(requests), theirs.loglikelihood(requests),
                                                     strict=True):  # fmt: skip
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-3)
        assert greedy == other_greedy


def test_whole_texts(both):
    """The harness's own way puts `<|bos|>` before a text by itself here, and would ask for a second."""
    ours, _, theirs = both
    requests = asked("loglikelihood_rolling", (TEXT,), ("x",), (TEXT * 2,))
    assert ours.loglikelihood_rolling(requests) == pytest.approx(theirs.loglikelihood_rolling(requests), rel=1e-4)


def test_a_text_longer_than_the_context_is_counted_to_its_end(both):
    ours, *_ = both
    once, long = ours.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXT,), (TEXT * 30,)))
    assert long < 10 * once


def test_generation_ends_where_the_task_says(both):
    ours, theirs, _ = both
    how = {"until": ["t"], "max_gen_toks": 12, "do_sample": False}
    requests = asked("generate_until", *((text, how) for text in ("the cat", "a dog", "mat, the", TEXT)))
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests)
    assert not any("t" in text for text in found)
    assert any(found)


def test_a_task_of_ones_own_from_the_command_line(exported, tmp_path, capsys):
    questions = [{"ask": f"the cat {n}", "options": [" sat", " dog"], "right": n % 2} for n in range(12)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "cats.yaml").write_text(f"""
task: cats
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/questions.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{ask}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: right
metric_list:
  - metric: acc
""")
    arguments = [str(exported[1]), "--lm-eval", "cats", "--include-path", str(tmp_path), "--num-fewshot", "0"]
    assert exit_code(evaluate.main, arguments) == 0
    said = capsys.readouterr().out
    assert "cats" in said
    assert "acc" in said
    assert "±" in said
    assert not constants.HF_HUB_OFFLINE, "as it was before, whether the hub answers or not"
    kept = Path(said.splitlines()[-1].removeprefix("Kept in "))
    found = kept.read_text()
    assert exit_code(evaluate.main, [*arguments, "--max-per-task", "3"]) == 0
    assert f"Kept in {kept}\n" not in capsys.readouterr().out
    assert kept.read_text() == found, "a smaller evaluation leaves it"
    assert lm_harness._tasks(["cats"], tmp_path).all_tasks == ["cats"], "and none of the harness's is read for it"


@pytest.mark.parametrize(("arguments", "said"), [
    (["--lm-eval", "no_such_task"], "the harness has no task no_such_task"),
    (["--lm-eval", "piqa", "--core"], "goes neither with --core"),
    (["--lm-eval", "piqa", "--include-path", "nowhere"], "is no folder"),
    ([], "no questions of its own"),
])  # fmt: skip
def test_what_cannot_be_asked_is_said(exported, capsys, arguments, said):
    assert exit_code(evaluate.main, [str(exported[1]), *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_data_out_of_reach_is_said_at_once(exported, tmp_path):
    """In a process of its own, where the libraries that ask the hub are not imported yet."""
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, evaluate.__file__, str(exported[1]), "--lm-eval", "piqa"],
                          capture_output=True, text=True, timeout=100, env=os.environ | nowhere)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "nobody answers at http://127.0.0.1:9" in done.stderr
    assert "error: the harness cannot ask piqa" in done.stderr
    assert "thrown while requesting" not in done.stderr, "its library asked, and asked again"
