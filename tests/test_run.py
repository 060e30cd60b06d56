import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import psutil
import pytest

from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.lock import Owner
from nanochat.planning.estimate import estimate
from nanochat.planning.hardware import DATA_SHEETS
from nanochat.planning.resolve import Request, resolve
from nanochat.report import cost_reasons
from nanochat.run import Run, Status, create
from nanochat.training.result import StageResult
from tests.full_disk import fill, small_disk
from tests.test_config import make_config


def test_config_comes_back_as_it_was_written(tmp_path):
    config = make_config()
    run = create(tmp_path / "r", config, {"reasons": ["why"]})
    assert run.exists()
    assert run.config() == config
    assert run.record()["reasons"] == ["why"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"config": {}}', '{"config": {"seed": "0"}}', '{"other": 1}'])
def test_a_damaged_record_is_a_clear_error(tmp_path, text):
    run = create(tmp_path / "r", make_config(), {})
    run.record_path.write_text(text)
    with pytest.raises(UserError, match=r"run\.json"):
        run.config()


def test_write_json_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_status_and_stop(tmp_path):
    run = Run(tmp_path / "r")
    assert run.status() is None
    run.write_status(Status("running", "base", 7))
    assert (run.status().stage, run.status().step, run.status().pid) == ("base", 7, os.getpid())
    assert not run.stop_requested()
    run.request_stop()
    assert run.stop_requested()
    run.clear_stop()
    run.clear_stop()
    assert not run.stop_requested()


HOLDER = """
import sys, time
from pathlib import Path
from nanochat.run import Run
with Run(Path(sys.argv[1])).owned("driver"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_dead_one_lets_go(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        run = Run(tmp_path / "r")
        start = time.monotonic()
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"), run.owned("driver", wait_s=0.3):
            pass
        assert time.monotonic() - start >= 0.3
        with run.owned("worker-0"):  # another role does not disturb
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    told = []
    with run.owned("driver", wait_s=5, say=told.append):
        assert run.owner("driver").pid == os.getpid()
    assert told == [text for text in told if f"process {holder.pid} on" in text and "taking over" in text] != []
    assert run.owner("driver") is None
    with run.owned("driver", say=pytest.fail):  # released, not left behind: nothing to tell
        pass


def left_behind(run: Run, **changes) -> Owner:
    """The lock of an owner that did not release it."""
    owner = replace(Owner.here(), **{"pid": 1, **changes})
    run.directory.mkdir(exist_ok=True)
    (run.directory / "driver.lock").write_text(json.dumps(asdict(owner)))
    return owner


@pytest.mark.parametrize(
    "changes",
    [{"pid": 2**22 + 1}, {"pid": os.getpid(), "boot_id": "another boot"}, {"started": 12.0}],
    ids=["gone", "rebooted", "its pid is another process's now"],
)
def test_a_dead_owner_is_taken_over_with_a_message(tmp_path, changes):
    run, told = Run(tmp_path / "r"), []
    owner = left_behind(run, **changes)
    assert not owner.alive()
    with run.owned("driver", say=told.append):
        pass
    assert "is gone: taking over" in told[0]


def test_an_owner_the_kernels_lock_does_not_reach_is_believed_while_it_lives(tmp_path):
    run = Run(tmp_path / "r")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        left_behind(run, pid=process.pid, started=psutil.Process(process.pid).create_time())
        with pytest.raises(UserError, match=f"in use by process {process.pid}"), run.owned("driver"):
            pass
    finally:
        process.kill()
        process.wait()


def test_an_owner_on_another_machine_is_believed_while_its_heart_beats(tmp_path):
    run, told = Run(tmp_path / "r"), []
    left_behind(run, host="elsewhere", boot_id="other")
    run.write_status(Status("running"))
    with pytest.raises(UserError, match="in use by process 1 on elsewhere"), run.owned("driver"):
        pass
    run.write_status(Status("running", heartbeat=time.time() - 61))
    with run.owned("driver", say=told.append):
        pass
    assert "on elsewhere" in told[0]


def test_nonsense_in_a_lock_file_locks_nobody_out(tmp_path):
    run = Run(tmp_path / "r")
    run.directory.mkdir()
    owner = asdict(Owner.here())
    wrong = [{"pid": "1"}, {"pid": -1}, {"started": None}, {"since": "today"}, {"mood": "good"}]
    for text in ("123", "{", "\0" * 99, "[" * 99_999, "[]", '{"pid": 1}', *(json.dumps(owner | it) for it in wrong)):
        (run.directory / "driver.lock").write_text(text)
        assert run.owner("driver") is None
        with run.owned("driver"):
            assert run.owner("driver").pid == os.getpid()


def test_a_full_disk_does_not_cost_the_lock(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        fill(disk)
        run = Run(disk)
        with run.owned("driver"), pytest.raises(UserError, match="by another process"), run.owned("driver"):
            pass
        with run.owned("driver", say=pytest.fail):
            pass


def test_an_owner_that_was_given_up_is_evicted(tmp_path):
    run = Run(tmp_path / "r")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)  # stuck for good
        with run.owned("driver", wait_s=0.5, evict=True):
            assert holder.wait(5) == -signal.SIGKILL
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 99_999,
        '{"state": "running", "mood": "good"}',
        '{"state": 1}',
        '{"state": "running", "heartbeat": "now"}',
    ],
)
def test_a_damaged_status_says_nothing_and_stops_nothing(tmp_path, text):
    run = Run(tmp_path)
    (tmp_path / "status.json").write_text(text)
    assert run.status() is None
    left_behind(run, host="elsewhere")
    with run.owned("driver"):
        run.write_status(Status("running"))
    assert run.status().state == "running"


def test_results_come_back_and_a_damaged_one_says_what_to_do(tmp_path):
    run = create(tmp_path / "r", make_config(), {})
    assert run.results() == {}
    result = StageResult("base", iterations=3, val_bpb=1.5, scores={"overall": {"accuracy": 0.5}}, first_val_bpb=2.0)
    write_json(run.result_path("base"), asdict(result))
    write_json(run.result_path("tokenizer"), {"stage": "tokenizer", "characters": 9})
    assert run.results() == {"tokenizer": {"stage": "tokenizer", "characters": 9}, "base": asdict(result)}
    for text in ("", "[]", "{", "{}", "[" * 99_999, '{"stage": "base", "mood": "good"}'):
        run.result_path("base").write_text(text)
        with pytest.raises(UserError, match=r"base/result\.json") as caught:
            run.results()
        assert "delete it, and repeat the command of run 'r'" in caught.value.hint


def test_a_plan_of_an_earlier_version_says_what_it_said(tmp_path):
    """As 732156b wrote it, of eight workers."""
    config = resolve(Request(mode="full", num_workers=8), replace(DATA_SHEETS["h100"], device_count=8), compiler=None,
                     attention="sdpa").config  # fmt: skip
    memory = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "logits", "runtime"), 10 ** 9)
    stage = {"stage": "base", "iterations": 7, "tokens": 70, "flops": 1e12, "train_s": 100.0, "other_s": 23.0,
             "memory": memory | {"unexplained": 0}, "disk_bytes": 5}  # fmt: skip
    old = {"prepare_s": 17.3, "prepare_disk_bytes": 3, "download_bytes": 4, "stages": [stage], "num_workers": 8,
           "speed": "45% of the peak"}  # fmt: skip
    record = {"plan": old, "hardware": asdict(DATA_SHEETS["h100"]), "request": {"num_workers": 8}}
    plan = create(tmp_path / "old", config, record).plan()
    assert (plan.prepare_s, plan.num_workers, plan.seconds) == (17.3, 8, 17.3 + 123.0)
    assert (plan.stages[0].other_s, plan.stages[0].memory.total) == (23.0, 6 * 10**9)
    assert "8 workers" in cost_reasons(config, plan)[0]


@pytest.mark.parametrize("plan", [None, {}, [], {"stages": []}, {"prepare_s": 1.0}])
def test_without_a_plan_that_can_be_read_it_is_made_again(tmp_path, plan):
    config = resolve(Request(mode="full"), DATA_SHEETS["h100"], compiler=None, attention="sdpa").config
    record = {"plan": plan, "hardware": asdict(DATA_SHEETS["h100"]), "request": {"num_workers": 8}}
    assert create(tmp_path / "run", config, record).plan() == estimate(config, DATA_SHEETS["h100"], 8)
