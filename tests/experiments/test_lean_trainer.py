"""What of Ray's stands beside a worker on a cluster of one's own."""

import subprocess
import sys

import pytest

NEIGHBOURS = """
import sys, time
import psutil, ray.train
from experiments.cluster import NOBODY, cluster
from nanochat.planning.hardware import Hardware
def neighbours(settings):
    time.sleep(3)  # until all have their names
    return [each.cmdline()[0] for each in psutil.Process().parent().children()]
imported = []
with cluster(Hardware("x", "cpu", 1, 2, 1, {}), while_starting=lambda: imported.append("imported")):
    print(imported)
    for each in psutil.Process().children():
        print(*each.cmdline())
    gcs = ray._private.worker.global_worker.gcs_client
    assert gcs.internal_kv_get(b"dashboard", b"dashboard") == NOBODY.encode()  # its agents find an answer
    from experiments.lean_trainer import LeanTrainer
    trainer = LeanTrainer(
        neighbours, train_loop_config={},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=sys.argv[1], name="fit"))
    for title in trainer.fit().return_value:
        print(title)
"""


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_only_those_that_are_needed(tmp_path):
    """Ray would add a monitor and a dashboard; TorchTrainer a TrainController, DatasetManager, PlacementGroupCleaner
    and _AutoscalingCoordinatorActor."""
    command = [sys.executable, "-c", NEIGHBOURS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    imported, *processes = done.stdout.splitlines()
    assert imported == "['imported']"
    beside, of_raylet = processes[:3], processes[3:]
    kinds = ("gcs_server", "log_monitor", "raylet")
    assert {next(kind for kind in kinds if kind in each) for each in beside} == set(kinds)
    found = sorted(title.split("::")[1].split(".")[0].strip() for title in of_raylet)
    assert found == ["DashboardAgent", "RayTrainWorker", "RuntimeEnvAgent", "SynchronizationActor"]
