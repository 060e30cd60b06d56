"""The benchmark of plans: the runs are ones that the command takes, and one that fails is told."""

import sys
from pathlib import Path

import pytest

from experiments import bench, run_stage
from experiments.benchmarks import plans
from nanochat.errors import UserError


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_its_runs_are_of_several_sizes_and_some_come_again(device):
    asked = {}
    for command in plans.run_commands(Path("somewhere"), device, 50):
        args = run_stage.parser().parse_args(command[2:])
        request = run_stage._request(args, args.data)
        assert request.data == "tinyworld"
        assert "base.num_iterations=50" in request.assignments
        assert "sft.num_iterations=20" in request.assignments
        asked[args.name] = (request.depth, request.max_seq_len, request.stages)
    assert len(asked) == 8
    assert len(set(asked.values())) == 5


def test_a_run_that_fails_ends_it_and_is_shown(monkeypatch, capfd):
    says = [sys.executable, "-c", "print('Estimated: 1 s in all')"]
    fails = [sys.executable, "-c", "raise SystemExit('no room')"]
    monkeypatch.setattr(plans, "run_commands", lambda *asked: [says, fails, says])
    assert bench.main(["plans"]) == 1
    told = capfd.readouterr()
    assert told.out.count("Estimated") == 1
    assert "no room" in told.err
    assert bench.main(["plans", "--count", "1"]) == 2
    assert "no training has ended on this machine yet" in capfd.readouterr().err, "its caches are its own"


@pytest.mark.parametrize("options", [["--steps", "0"], ["--count", "-1"]])
def test_nothing_is_not_tried(options):
    with pytest.raises(UserError, match="must be positive"):
        bench.main(["plans", *options])
