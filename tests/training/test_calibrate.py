"""A calibration tells what a run will take, which trains beside Ray."""

import pytest

from nanochat.planning.hardware import Hardware
from nanochat.planning.resolve import Request, resolve
from nanochat.training import calibrate as module
from nanochat.training.result import StageResult

CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})


def test_what_ray_takes_of_a_step_is_counted(monkeypatch):
    request = Request(stages=("base",), depth=1, total_batch_size=1024, num_iterations=10, compile="off")
    config = resolve(request, CPU, compiler=None).config
    timed = StageResult("base", iterations=101, tokens=101 * 1024, train_s=11.0, first_step_s=1.0,
                        tokens_per_second=10_240.0, peak_memory_bytes=10**9)  # fmt: skip
    monkeypatch.setattr(module, "prepare_process", lambda: None)  # which is of the whole process
    monkeypatch.setattr(module, "train_stage", lambda *arguments: timed)

    def found(times: float):
        monkeypatch.setattr(module, "BESIDE_RAY", {"cpu": times})
        return module.calibrate(config, CPU, 10.0)

    alone, beside = found(1.0), found(1.25)
    assert (alone.took_s, beside.took_s) == (10.0, 12.5)
    assert beside.training.speed == pytest.approx(alone.training.speed / 1.25)
