"""`--data climbmix` as a user gives it: real processes and real Ray, the hub on loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import preparation, tune_budget
from experiments.budget_search import Asked, BudgetSearch
from experiments.terminal import make_console
from nanochat.clock import start_clock
from nanochat.corpora import CORPORA
from nanochat.data.sources import open_sources
from nanochat.errors import UserError
from nanochat.events import Note, read_events
from nanochat.files import write_json
from nanochat.planning.hardware import Hardware
from nanochat.planning.resolve import Request
from nanochat.run import Run
from nanochat.search.decisions import Config, Trial
from nanochat.tokenizer import Tokenizer
from nanochat.training.prepare import prepare_growing
from tests.data.corpus_files import serve
from tests.hub import Fault, Hub

ROOT = Path(__file__).parents[2]
CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})
SETTINGS = ("tokenizer.vocab_size=512", "tokenizer.max_chars=2000", "base.num_iterations=12", "mid.num_iterations=3",
            "sft.num_iterations=3", "base.eval_tokens=512", "mid.eval_tokens=512", "sft.eval_tokens=512",
            "sft.eval_questions=14")  # fmt: skip
TINY = ["--depth", "1", "--max-seq-len", "128", "--total-batch-size", "512", "--device-batch-size", "2", "--compile",
        "off", *(part for setting in SETTINGS for part in ("--set", setting))]  # fmt: skip


@pytest.fixture
def nobody() -> str:
    """The address of a hub that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def run_stage(endpoint: str, base_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "experiments" / "run_stage.py"), "--runs-dir", str(base_dir.parent / "runs"),
               "--data", "climbmix", "--chat", "tinyworld", "--name", "web", *TINY, *options]  # fmt: skip
    variables = {"HF_ENDPOINT": endpoint, "NANOCHAT_BASE_DIR": str(base_dir), "PYTHONPATH": str(ROOT)}
    environment = os.environ | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=base_dir.parent)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_whole_way_with_a_shard_corrupted_and_a_connection_cut(base_dir):
    with Hub() as hub:
        files = serve(hub, 5, documents=20)
        hub.fail("shard_00001.parquet", Fault(wrong=True, delay_s=4.0), Fault(delay_s=6.0))
        hub.fail("shard_06542.parquet", Fault(cut_after=500))
        done = run_stage(hub.url, base_dir, "--num-workers", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        again = run_stage(hub.url, base_dir, "--num-workers", "2")
    assert again.returncode == 0, again.stderr
    for part in (
        "text: karpathy/climbmix-400b-shuffle, about 1 of its 6,542 training shards of 100 MB; 0.2 GB in all are ",
        "base: the first of the text is ready",
        "base done in",
        "sft done in",
        "Task accuracies after sft",
    ):
        assert part in done.stdout
    fetched = {path.name: path.read_bytes() for path in (base_dir / "corpora" / "climbmix").glob("*.parquet")}
    assert len(fetched) >= 3
    assert all(files[name] == data for name, data in fetched.items())
    notes = [event.text for event in read_events(base_dir.parent / "runs" / "web", "base") if isinstance(event, Note)]
    assert [text for text in notes if "waits for shard 1 of climbmix" in text]
    assert "HTTP Request" not in done.stdout + done.stderr
    assert Run(base_dir.parent / "runs" / "web").status().state == "done"


def search_of_web_text(base_dir: Path) -> BudgetSearch:
    asked = Request(data="climbmix", hours=1.0, depth=1, max_seq_len=128, compile="off", assignments=SETTINGS[:2])
    search = BudgetSearch(Run(base_dir.parent / "runs" / "budget"), Asked(asked, "budget"), CPU)
    write_json(search._data_path, {"train_tokens": 1_000_000})  # far more than the hub will have
    return search


def test_a_search_fetches_what_training_begins_with_and_leaves_the_rest_to_it(base_dir, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
    search = search_of_web_text(base_dir)
    with Hub() as hub:
        serve(hub, 2)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        search.prepare(lambda text: None)
        made = set((base_dir / "shards").glob("*"))
        trial = search.make_trial(Trial(Config(1, 512, 5.0, 40), 30.0, "to see"), base_dir.parent / "trial")
        config, sources = trial.config(), open_sources("climbmix", base_dir)
        tokenizer = Tokenizer.load(trial.tokenizer_directory)
        data, feeder = prepare_growing(trial, config, sources, tokenizer, base_dir, lambda text: None)
        feeder.stop()
    fetched = {path.name for path in (base_dir / "corpora" / "climbmix").glob("*.parquet")}
    assert {"shard_00000.parquet", "shard_06542.parquet"} <= fetched
    assert {*data.train.first.directories, *data.val.directories} <= made


def test_a_search_waits_for_its_text_no_longer_than_its_hours(base_dir, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
    search = search_of_web_text(base_dir)
    clock = start_clock(search.run.clock_path, time.time() - search.asked.cap_s + 10)
    with Hub() as hub:
        serve(hub, 2)
        hub.bytes_per_s = 1000.0
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(UserError, match="the hours are over before the data was there"):
            tune_budget._search(make_console(), search, clock, base_dir.parent / "runs")
    assert clock() < search.asked.cap_s


def test_a_hub_out_of_reach_is_one_clear_line_within_seconds(base_dir, nobody):
    start = time.monotonic()
    done = run_stage(nobody, base_dir)
    seconds = time.monotonic() - start
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    message, hint = done.stderr.strip().splitlines()
    assert message.startswith(f"error: cannot get shard_00000.parquet of karpathy/climbmix-400b-shuffle from {nobody}")
    assert all(way in hint for way in ("--data tinyworld", "--data PATH", "HF_ENDPOINT"))
    assert seconds < (10 if (os.cpu_count() or 1) > 2 else 20), seconds  # half of it is Python starting
    assert not (base_dir / "corpora").exists()


def test_fine_tuning_by_search_needs_no_text(base_dir, nobody, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    asked = ["--hours", "1", "--space", "sft", "--from", "demo", "--data", "climbmix", "--chat", "tinyworld"]
    args = tune_budget.parser().parse_args([*asked, "--runs-dir", str(tmp_path)])
    with pytest.raises(UserError, match="demo"):  # there is no such run, and the hub was not asked
        tune_budget._asked(args, "climbmix")


def test_a_plan_needs_no_network(base_dir, nobody):
    done = run_stage(nobody, base_dir, "--plan", "--set", "base.num_iterations=1000000", "--chat", "public",
                     "--stage", "tokenizer,base,mid,sft")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "conversations 4 min" in done.stdout
    assert "about 10 of its 6,542 training shards" in done.stdout
    assert "CC BY-NC 4.0" in done.stdout


def test_the_plan_counts_what_is_still_to_come_and_refuses_what_does_not_fit(base_dir, monkeypatch, tmp_path):
    corpus = CORPORA["fineweb-edu"]
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
    request = Request(data=corpus.name, depth=1, max_seq_len=128, total_batch_size=512, device_batch_size=4,
                      compile="off", assignments=(*SETTINGS[:2], "base.num_iterations=500000"))  # fmt: skip
    _, record = preparation.new_record(request, tmp_path / "runs")
    assert record["plan"]["download_bytes"] == 6 * corpus.shard_bytes  # 256M tokens of 4.8 characters, and validation
    assert sum(part["seconds"] for part in record["plan"]["preparing"]) < 60  # not until all of it is there
    folder = base_dir / "corpora" / corpus.name
    folder.mkdir(parents=True)
    for number in (0, 1, corpus.validation):
        (folder / corpus.file(number)).touch()
    _, record = preparation.new_record(request, tmp_path / "runs")
    assert record["plan"]["download_bytes"] == 3 * corpus.shard_bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    with pytest.raises(UserError, match=r"fineweb-edu needs about 0.\d GiB of disk .* and .* \(100,000,000 bytes\)"):
        preparation.new_record(request, tmp_path / "runs")
