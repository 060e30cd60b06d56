import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.errors import UserError
from nanochat.run import Run, Status, create, write_json
from tests.test_config import make_config


def test_config_comes_back_as_it_was_written(tmp_path):
    config = make_config()
    run = create(tmp_path / "r", config, {"reasons": ["why"]})
    assert run.exists()
    assert run.config() == config
    assert run.record()["reasons"] == ["why"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"config": {}}', '{"other": 1}'])
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
    with run.owned("driver", wait_s=5):
        assert Path(run.directory / "driver.lock").read_text() == str(os.getpid())
