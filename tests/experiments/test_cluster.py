"""A cluster of several machines, played by several Ray nodes on this one: joined by address, one of them lost."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from experiments import cli, run_stage
from experiments.benchmarks.chaos import small_run
from experiments.cluster import _lean_start, beside
from nanochat.errors import UserError
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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_lost_machine_is_waited_for(monkeypatch, tmp_path):
    """Longer than Ray tries to place the workers three times; and two machines of one CPU hold a worker, if not of two
    CPUs."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
        command = [sys.executable, run_stage.__file__, "--runs-dir", str(tmp_path), "--name", "r", *OPTIONS]
        run, log = Run(tmp_path / "r"), tmp_path / "log.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, "--address", cluster.address], stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path
            )
            try:
                wait_until(lambda: last_step(run) >= 45 or process.poll() is not None, 200)
                assert process.poll() is None, log.read_text()
                for machine in machines:
                    cluster.remove_node(machine, allow_graceful=False)
                time.sleep(20)
                assert process.poll() is None, log.read_text()
                cluster.add_node(num_cpus=1)
                assert process.wait(180) == 0, log.read_text()
            finally:
                process.kill()
                process.wait()
    finally:
        cluster.shutdown()
    assert "resumed at step" in log.read_text()
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


LEAVE = """
import ray, time
from contextlib import suppress
from experiments.cluster import beside, cluster
from nanochat.planning.hardware import Hardware
asked, ended, shutdown = [], [], ray.shutdown
@ray.remote
class Worker:
    def work(self):
        time.sleep(100)
def ask():
    work = Worker.remote().work.remote()
    try:
        while True:  # like Ray Train's controller and Tune's loop, which try again what fails
            with suppress(Exception):
                asked.append(ray.wait([work], timeout=0.5))
    finally:
        ended.append(True)
def look():
    if len(asked) > 2:
        raise TimeoutError("the time is up")
def leave():
    print("first, ended:", bool(ended))
    shutdown()
ray.shutdown = leave
try:
    with cluster(Hardware("x", "cpu", 1, 2, 1, {})):
        beside(ask, look)
except TimeoutError as error:
    print(error)
"""


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_nothing_asks_ray_when_it_is_left():
    """A thread that went on while Ray was shut down had Ray end this process, at times, with exit code 1 and not a
    word: a run whose time was up while it answered questions."""
    done = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[:2] == ["first, ended: True", "the time is up"], done.stdout + done.stderr
    assert done.returncode == 0


def test_what_a_call_beside_raises_is_raised():
    assert beside(lambda: 7, lambda: None) == 7
    with pytest.raises(UserError, match="too late"):
        beside(partial(_fail, UserError("too late", "")), lambda: None)


def _fail(error: Exception) -> None:
    raise error


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


def test_a_start_that_fails_leaves_ray_as_it_was():
    from ray._private import services
    from ray._private.node import Node

    def replaced() -> tuple[object, ...]:
        return services.ConsolePopen, Node.start_api_server, Node.start_monitor

    before, within = replaced(), list[bool]()
    with suppress(ConnectionError), _lean_start(lambda: None):
        within += (a is not b for a, b in zip(before, replaced(), strict=True))
        raise ConnectionError
    assert within == [True] * 3
    assert replaced() == before
