"""What of Ray's stands beside a worker on a cluster of one's own."""

import subprocess
import sys

import pytest

NEIGHBOURS = """
import sys, time
import psutil, ray.train
from experiments.cluster import cluster
from nanochat.planning.hardware import Hardware
def neighbours(settings):
    time.sleep(4)  # until all have their names
    return [" ".join(each.cmdline()).strip() for each in psutil.Process().parent().children()]
with cluster(Hardware("x", "cpu", 1, 2, 1, {})):
    from ray.train.torch import TorchTrainer
    from experiments.lean_trainer import LeanTrainer
    trainer = {"lean": LeanTrainer, "plain": TorchTrainer}[sys.argv[1]](
        neighbours, train_loop_config={},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=sys.argv[2], name="fit"))
    print(trainer.fit().return_value)
"""


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_only_those_that_are_needed(tmp_path):
    found = {}
    for kind in ("lean", "plain"):
        command = [sys.executable, "-c", NEIGHBOURS, kind, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        found[kind] = done.stdout
    for name in ("TrainController", "SynchronizationActor", "RayTrainWorker"):
        assert name in found["lean"]
    for name in ("DatasetManager", "PlacementGroupCleaner", "AutoscalingCoordinator"):
        assert name in found["plain"], f"Ray has no {name} any more: LeanTrainer may do less"
        assert name not in found["lean"]
