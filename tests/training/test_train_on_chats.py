"""Mid and SFT on conversations that are not TinyWorld's: the pipeline in this process, and once through the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.config import PUBLIC, RunConfig, from_dict, to_dict
from nanochat.events import JsonlSink, Note, read_events
from nanochat.planning.estimate import estimate
from nanochat.planning.preparing import PUBLIC_CHAT_BYTES
from nanochat.planning.resolve import Request, resolve
from nanochat.report import score_table
from nanochat.run import Run, create
from nanochat.training.pipeline import run_pipeline
from nanochat.workers import Workers
from tests.conversations import own, serve, shelf
from tests.hub import Hub
from tests.training.test_pipeline import HARDWARE

__all__ = ["shelf"]
ROOT = Path(__file__).parents[2]
SETTINGS = ("tokenizer.vocab_size=512", "tokenizer.max_chars=300000", "base.num_iterations=2", "mid.num_iterations=3",
            "sft.num_iterations=3", "sft.eval_questions=12", "base.eval_tokens=512", "mid.eval_tokens=512",
            "sft.eval_tokens=512")  # fmt: skip


def trained(directory: Path, chat: str, *settings: str) -> Run:
    request = Request(chat=chat, depth=1, max_seq_len=128, total_batch_size=512, device_batch_size=4, compile="off",
                      assignments=(*SETTINGS, *settings))  # fmt: skip
    resolved = resolve(request, HARDWARE, compiler=None)
    plan = estimate(resolved.config, HARDWARE, 1)
    run = create(directory, resolved.config, {"hardware": {"name": HARDWARE.name}, "plan": to_dict(plan)})
    run_pipeline(run, Workers(), JsonlSink(directory), lambda: False)
    return run


def test_public_conversations_bring_their_own_questions(shelf, tmp_path):
    run = trained(tmp_path / "run", PUBLIC)
    scores = run.results()["sft"]["scores"]
    tasks = ["arc_easy", "arc_challenge", "mmlu", "gsm8k", "spelling_bee"]
    assert list(scores) == ["overall", *tasks]  # no code: it was not asked for
    assert [scores[task]["count"] for task in tasks] == [2] * 5
    assert score_table(run).rows[-1][0].startswith("ChatCORE")
    notes = [event for event in read_events(run.directory, "tokenizer") if isinstance(event, Note)]
    assert any("fetching HuggingFaceTB/smol-smoltalk" in note.text for note in notes)
    assert run.plan().download_bytes == PUBLIC_CHAT_BYTES


def test_own_conversations_are_trained_on(tmp_path):
    path = own(tmp_path / "own.jsonl", 60)
    run = trained(tmp_path / "run", str(path))
    results = run.results()
    assert results["mid"]["val_bpb"] < results["mid"]["first_val_bpb"]
    assert "identity" in results["sft"]["scores"]  # the questions are TinyWorld's
    assert score_table(run).rows[-1][0] == "reading"
    notes = [event.text for event in read_events(run.directory, "tokenizer") if isinstance(event, Note)]
    assert any(text.startswith("mid: ") and " conversations" in text for text in notes)


def test_a_run_of_an_earlier_version_opens_with_tinyworlds(tmp_path):
    config = to_dict(resolve(Request(), HARDWARE, compiler=None).config)
    old = {key: value for key, value in config.items() if key not in ("chat", "run_code")}
    assert from_dict(RunConfig, old).chat == "tinyworld"
    assert not from_dict(RunConfig, old).run_code


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_command_trains_on_what_a_hub_has(tmp_path):
    """Base and SFT through Ray, then talked about in the summary; a second start finds everything made."""
    options = ["--stage", "tokenizer,base,sft", "--chat", "public", "--depth", "1", "--max-seq-len", "128",
               "--total-batch-size", "512", "--device-batch-size", "4", "--compile", "off", "--name", "public",
               "--runs-dir", str(tmp_path), "--set", "run_code=true"]  # fmt: skip
    options += [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, str(ROOT / "experiments" / "run_stage.py"), *options]
    with Hub() as hub:
        serve(hub)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        shared = {"capture_output": True, "text": True, "timeout": 240, "env": environment}
        done = subprocess.run(command, **shared)
        assert done.returncode == 0, done.stderr
    for part in ("1.0 GB", "fetching openai/gsm8k", "no security boundary", "ChatCORE, centred on chance", "humaneval"):
        assert part in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    record = json.loads((tmp_path / "public" / "run.json").read_text())
    assert record["config"]["chat"] == record["request"]["chat"] == "public"
    again = subprocess.run(command, **shared)  # the hub is gone
    assert again.returncode == 0, again.stderr
    other = subprocess.run([*command, "--chat", "tinyworld"], **shared)
    assert other.returncode == 2
    assert "--chat 'public' -> 'tinyworld'" in other.stderr
