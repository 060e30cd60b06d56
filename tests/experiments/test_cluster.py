"""A cluster of several machines, played by several Ray nodes on this one: joined by address, one of them lost."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from experiments import cli, run_stage
from experiments.benchmarks.chaos import small_run
from nanochat.events import StepDone, read_events
from nanochat.run import Run

OPTIONS = (*small_run({"base": 400, "mid": 10, "sft": 10}), "--stage", "tokenizer,base")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_lost_machine_leaves_the_rest_to_finish(cluster, tmp_path):
    """Two machines of one worker each; one goes down, and --min-workers 1 lets the other go on from the newest
    checkpoint."""
    other = cluster.add_node(num_cpus=1)
    command = [sys.executable, run_stage.__file__, "--runs-dir", str(tmp_path), "--name", "r", *OPTIONS]
    command += ["--address", cluster.address, "--num-workers", "2", "--min-workers", "1"]
    run, log = Run(tmp_path / "r"), tmp_path / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path)
        try:
            wait_until(lambda: last_step(run) >= 45 or process.poll() is not None, 200)
            assert process.poll() is None, log.read_text()
            assert run.owner("worker-1") is not None
            cluster.remove_node(other, allow_graceful=False)
            assert process.wait(180) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
    assert "resumed at step" in log.read_text()
    assert run.results()["base"]["starts"] == 2
    assert last_step(run) == 400


SPREAD = """
import os, time
from experiments.cluster import cluster, spread
from nanochat.errors import UserError
from nanochat.planning.hardware import Hardware
def square(number):
    time.sleep(0.5)
    if number > 90:
        raise UserError("too large", "take a smaller one")
    return number**2, os.getpid()
with cluster(Hardware("x", "cpu", 1, 2, 1, {})):
    found = list(spread(square, range(6)))
    assert sorted(value for value, _ in found) == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {pid for _, pid in found}
    try:
        list(spread(square, [1, 99]))
    except UserError as error:
        print(error.message, len({pid for _, pid in found}) > 1)
"""


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_work_is_spread_over_processes_and_their_errors_come_back():
    done = subprocess.run([sys.executable, "-c", SPREAD], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["too", "large", "True"], done.stdout + done.stderr


def test_no_cluster_at_the_address_is_a_clear_error(tmp_path: Path, capsys):
    argv = ["--runs-dir", str(tmp_path), "--name", "r", *OPTIONS, "--address", "127.0.0.1:1"]
    assert cli.run(run_stage.main, argv) == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err


def last_step(run: Run) -> int:
    return max((event.step for event in read_events(run.directory, "base") if isinstance(event, StepDone)), default=0)


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
