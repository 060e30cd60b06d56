"""What W&B is told, read from the file that it writes offline; and that training ends well whatever becomes of W&B."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from experiments.wandb_log import WandbLog
from nanochat.events import JsonlSink, StepDone, Validated, read_events
from nanochat.run import Run, Status
from tests.small_run import TINY, command, run_stage

BLOCK, HEADER = 32_768, 7  # LevelDB's log format, as W&B writes it; the file itself begins with a header of 7 bytes too


def records(run_directory: Path) -> Iterator[Record]:
    """All that W&B has kept of a run, of every time it was started."""
    for path in sorted(run_directory.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = path.read_bytes(), HEADER, b""
        while at + HEADER <= len(data):
            if BLOCK - at % BLOCK < HEADER:
                at += BLOCK - at % BLOCK
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            whole += data[at + HEADER : at + HEADER + length]
            at += HEADER + length
            if kind in (1, 4):  # the whole record, or its last part
                record = Record()
                record.ParseFromString(whole)
                whole = b""
                yield record


def history(run_directory: Path) -> list[dict]:
    rows = []
    for record in records(run_directory):
        if record.HasField("history"):
            items = record.history.item
            rows.append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items
                         if item.value_json})  # fmt: skip
    return rows


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_wandb_is_told_all_of_it_once(runs):
    options = ("--stage", "tokenizer,base", *TINY, "--wandb", "offline")
    process = subprocess.Popen(command(runs, "told", *options), cwd=runs, stdout=subprocess.DEVNULL)
    run = Run(runs / "told")
    while not any(isinstance(event, StepDone) for event in read_events(run.directory, "base")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    again = run_stage(runs, "told", *options)
    assert again.returncode == 0, again.stderr
    assert "warning" not in again.stdout

    told = [row for row in history(run.directory) if "base/loss" in row]
    recorded = [event for event in read_events(run.directory, "base") if isinstance(event, StepDone)]
    assert [row["base/step"] for row in told] == list(range(1, 25))
    assert [row["base/loss"] for row in told] == pytest.approx([event.loss for event in recorded])
    starts = [record.run for record in records(run.directory) if record.HasField("run")]
    assert len({start.run_id for start in starts}) == 1
    artifacts = {record.request.log_artifact.artifact.type or record.artifact.type for record in records(run.directory)
                 if record.HasField("artifact") or record.request.HasField("log_artifact")}  # fmt: skip
    assert {"report", "model"} <= artifacts
    config = {item.key: json.loads(item.value_json) for start in starts for item in start.config.update}
    assert config["config"]["model"]["depth"] == 1


def started(run: Run, mode: str, told: list[str]) -> WandbLog:
    """As if the run were training."""
    return WandbLog(run, mode, told.append)


@pytest.mark.parametrize("breaks", ["unreachable", "killed"])
def test_training_goes_on_without_wandb(runs, monkeypatch, breaks, small_run):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    warnings: list[str] = []
    log = started(small_run, "online", warnings)
    if breaks == "killed":
        log._process.kill()
        log._process.wait()
        log.look()
        assert len(warnings) == 1
    began = time.monotonic()
    log.close(60.0)
    assert time.monotonic() - began < 60
    assert len(warnings) == 1
    assert warnings[0].startswith("W&B failed, which costs nothing but its record")


def test_trials_are_grouped_under_their_search(runs, small_run):
    trial = Run(small_run.directory / "search" / "trials" / "first")
    (trial.directory / "base").mkdir(parents=True)
    trial.record_path.write_bytes(small_run.record_path.read_bytes())
    trial.result_path("base").write_text("{}")
    JsonlSink(trial.directory)(Validated("base", 7, 1.25, 0.1))
    warnings: list[str] = []
    for _ in range(2):  # the second time it is told already
        started(small_run, "offline", warnings).close(60.0)
    assert not warnings
    starts = [record.run for record in records(trial.directory) if record.HasField("run")]
    assert [(start.run_group, start.job_type) for start in starts] == [("search", "trial")]
    assert [row["base/val_bpb"] for row in history(trial.directory) if "base/val_bpb" in row] == [1.25]
    assert {record.run.run_group for record in records(small_run.directory) if record.HasField("run")} == {"search"}


def test_online_needs_a_key(runs):
    ended = run_stage(runs, "keyless", *TINY, "--wandb", "online")
    assert ended.returncode == 2
    assert "--wandb online needs an account's key" in ended.stderr
    assert "hint: wandb login, or --wandb offline" in ended.stderr
    assert not (runs / "keyless").exists()


@pytest.fixture
def small_run(runs: Path) -> Run:
    """A run that has not begun, without what it would train."""
    from experiments.preparation import new_record
    from nanochat.config import to_dict
    from nanochat.files import write_json
    from nanochat.planning.resolve import Request
    from tests.planning.test_resolve import CPU

    config, record = new_record(Request(depth=1, stages=("tokenizer", "base")), runs, CPU)
    run = Run(runs / "search")
    run.directory.mkdir()
    write_json(run.record_path, {"config": to_dict(config), **record})
    run.write_status(Status("running"))
    return run
