"""Several workers of which one ends: what its user is told, by real workers of Ray."""

import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch.distributed as dist

from experiments import ray_train
from experiments.ray_train import Outcome, Scale, _Starts
from nanochat import lock
from nanochat.errors import UserError
from nanochat.run import Run, create
from tests.planning.test_resolve import CPU
from tests.test_config import make_config

LEAD_ENDS = """
import os, signal, sys, time
from pathlib import Path
from experiments import ray_train
from nanochat import lock
from nanochat.errors import UserError
from nanochat.planning.hardware import Hardware
from nanochat.run import Run
how = sys.argv[2]
def train_worker(settings):
    from experiments import ray_train
    def train(run, workers):
        with (run.directory / "begun").open("a") as file:
            file.write(f"{workers.rank}\\n")
        if workers.leads:
            time.sleep(0.5)  # until the other waits
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("the storage is gone", "bring it back")
        return workers.from_lead(None)
    ray_train._train, ray_train.MAX_IDLE_STARTS = train, 1
    return ray_train.train_worker(settings)  # the real one: it is replaced in the command only
ray_train.train_worker = train_worker
hardware = Hardware("x", "cpu", 1, 2, 1, {})
print(ray_train.fit(Run(Path(sys.argv[1])), hardware, ray_train.Scale(2), lambda: None))
"""


@pytest.fixture
def run(tmp_path) -> Run:
    return create(tmp_path / "r", replace(make_config(), stages=("tokenizer", "base")), {"hardware": asdict(CPU)})


@pytest.mark.ray
@pytest.mark.timeout(250)
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("wrong", Outcome("user_error", "the storage is gone", "bring it back")),
        ("killed", Outcome("user_error", "the training worker died 1 times at the same place")),
    ],
)
def test_when_the_lead_ends_alone_that_is_what_is_told(run, how, told):
    """The other's collective fails: that is no outcome of its own, and no traceback for the user."""
    command = [sys.executable, "-c", LEAD_ENDS, str(run.directory), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert f"state={told.state!r}, message={told.message!r}" in done.stdout, done.stdout + done.stderr
    assert told.hint in done.stdout
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert sorted((run.directory / "begun").read_text().split()) == ["0", "1"]


def test_the_first_word_counts_unless_a_later_one_tells_the_user_what_to_do(run):
    starts, wrong = _Starts(run), Outcome("user_error", "the storage is gone", "bring it back")
    assert starts.begin() is None
    for outcome in (Outcome("bug", "first"), Outcome("bug", "second")):
        starts.leave(outcome)
    assert starts._read()["outcome"]["message"] == "first"
    for outcome in (wrong, Outcome("bug", "third")):
        starts.leave(outcome)
    assert starts.begin() == wrong


def test_storage_out_of_reach_ends_a_start_and_hides_no_word_left_behind(run, monkeypatch):
    """Raised on the lead alone, it had Ray start the workers again without end."""
    starts, wrong = _Starts(run), Outcome("user_error", "no more rows", "lower them")

    def unreachable(store: object) -> None:
        raise UserError("cannot reach the storage", "check it")

    monkeypatch.setattr(ray_train.CheckpointStore, "steps", unreachable)
    assert starts.begin() == Outcome("user_error", "cannot reach the storage", "check it")
    starts.leave(wrong)
    assert starts.begin() == wrong


def test_what_a_worker_says_that_lost_another_is_known():
    with pytest.raises(ValueError, match="process group") as ended:
        dist.broadcast_object_list([None])
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:55956")
    for error in (ended.value, lost, dist.DistBackendError("NCCL error")):
        assert ray_train._has_lost_another(error)
    for error in (RuntimeError("shapes differ"), ConnectionResetError("Connection reset by peer")):
        assert not ray_train._has_lost_another(error)


@pytest.mark.parametrize(
    ("machines", "num_workers", "cpus"),
    [
        ([{"CPU": 2}], 1, 2),
        ([{"CPU": 2}], 3, 2 / 3),
        ([{"CPU": 1}, {"CPU": 1}], 1, 1),  # not two of one worker on two machines
        ([{"CPU": 8}, {"CPU": 2}], 3, 2),
        ([{"CPU": 49.0}], 49, 1),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 4, "GPU": 1}], 9, 4),
        ([{"CPU": 64, "GPU": 1}, {"CPU": 6, "GPU": 2}], 3, 3),
    ],
)
def test_a_worker_asks_for_what_one_machine_can_give(machines, num_workers, cpus):
    hardware = replace(CPU, device_type="cuda" if "GPU" in machines[0] else "cpu")
    asked = ray_train._scaling(hardware, Scale(num_workers), machines)["resources_per_worker"]
    assert asked["CPU"] == pytest.approx(cpus)


def test_more_workers_than_the_machines_hold_are_refused():
    with pytest.raises(UserError, match="--num-workers 40, and there are CPUs for 30 of them"):
        ray_train._scaling(CPU, Scale(40), [{"CPU": 1}, {"CPU": 2}, {}])
    with pytest.raises(UserError, match="there are 3 GPUs"):
        ray_train._scaling(replace(CPU, device_type="cuda"), Scale(4), [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 2}])
    with pytest.raises(UserError, match="begun on a GPU: continue it where one is"):
        ray_train._scaling(replace(CPU, device_type="cuda"), Scale(1), [{"CPU": 8}])


def test_a_file_that_another_machine_lacks_is_told_in_a_line(run, monkeypatch):
    missing = FileNotFoundError(2, "No such file or directory", "/cache/shards/1/manifest.json")
    with run.owned("worker-0"):
        assert ray_train._outcome_of(missing, run).state == "bug"  # on the machine of the lead it is one
        monkeypatch.setattr(lock.socket, "gethostname", lambda: "elsewhere")
        outcome = ray_train._outcome_of(missing, run)
    assert outcome.state == "user_error"
    assert "has no /cache/shards/1/manifest.json" in outcome.message
    assert "NANOCHAT_BASE_DIR" in outcome.hint
