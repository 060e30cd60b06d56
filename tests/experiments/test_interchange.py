"""Models that come in and go out, as a user does it: real processes, real Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, NanoChatForCausalLM

from nanochat.run import Run
from nanochat.tokenizer import Tokenizer
from tests.interchange.published import MARCH_14, sizes, weights_of, write_folder
from tests.small_run import TINY, final_weights, run_stage

ROOT = Path(__file__).parents[2]


def command(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    everything = [sys.executable, str(ROOT / "experiments" / script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(everything, capture_output=True, text=True, timeout=200, env=environment)


def said(prompt: str, out: Path, tokens: int) -> str:
    """What transformers answers, with the exported model."""
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    assert isinstance(model, NanoChatForCausalLM)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    reply = model.generate(**asked, do_sample=False, max_new_tokens=tokens)[0, asked["input_ids"].size(1) :]
    return tokenizer.decode(reply, skip_special_tokens=True)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_classic_model_trained_here_says_the_same_in_transformers(tmp_path):
    stages = ("--stage", "tokenizer,base,sft")
    done = run_stage(tmp_path, "classic", "--architecture", "classic", *stages, *TINY, timeout=280)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    exported = command("runs.py", "export", "classic", "--runs-dir", tmp_path, "--format", "hf", "--out", out)
    assert exported.returncode == 0, exported.stderr
    assert str(out) in exported.stdout
    ours = command("chat.py", "classic", "--runs-dir", tmp_path, "--prompt", "Who are you?", "--max-tokens", 24)
    assert ours.returncode == 0, ours.stderr
    assert said("Who are you?", out, 24).strip() == ours.stdout.strip()
    again = command("runs.py", "export", "classic", "--runs-dir", tmp_path, "--out", out)
    assert again.returncode == 2
    assert "there already" in again.stderr


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_public_nanochat_comes_in_is_tuned_and_talks(tmp_path):
    tokenizer = Tokenizer.train([__doc__, Path(__file__).read_text()], 320)
    meta = sizes(tokenizer.vocab_size, context=128)
    folder = write_folder(tmp_path / "theirs", meta, weights_of(MARCH_14, meta), tokenizer)
    of_the_model = ("--depth", "1", "--max-seq-len", "128", "tokenizer.vocab_size=512")
    settings = [option for option, after in zip(TINY, [*TINY[1:], ""], strict=True)
                if option not in of_the_model and after not in of_the_model[-1:]]  # fmt: skip
    done = run_stage(tmp_path, "tuned", "--stage", "sft", "--from", str(folder), *settings, timeout=280)
    assert done.returncode == 0, done.stderr
    config = Run(tmp_path / "tuned").config()
    assert (config.model.smear, config.model.backout, config.model.depth) == (True, True, 3)
    assert Tokenizer.load(tmp_path / "tuned" / "tokenizer").tokens == tokenizer.tokens
    tuned = final_weights(tmp_path, "tuned")
    before = weights_of(MARCH_14, meta)
    for name, theirs in (("smear_scale", "smear_lambda"), ("head", "lm_head.weight")):
        assert not torch.equal(tuned[name], before[theirs][: len(tuned[name])])
    for model in ("tuned", str(folder)):  # as it is now, and as it came
        talked = command("chat.py", model, "--runs-dir", tmp_path, "--prompt", "What is your name?", "--max-tokens", 8)
        assert talked.returncode == 0, talked.stderr
    refused = run_stage(tmp_path, "deeper", "--stage", "sft", "--from", str(folder), "--depth", "5", *settings)
    assert refused.returncode == 2
    assert "--depth 5 differs from the depth 3" in refused.stderr
