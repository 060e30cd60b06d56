import itertools

import pytest
import torch

from nanochat.planning import hardware


@pytest.mark.parametrize(("flops", "side"), [(1e9, 192), (20e9, 768), (150e9, 1536), (1e12, 1536)])
def test_a_peak_is_measured_on_products_that_the_processor_can_do(monkeypatch, flops, side):
    """Some processors need seconds for one large product of bfloat16."""
    taken = {}

    def seconds(side, dtype, device_type, repeats):
        taken[side] = taken.get(side, 0) + repeats * 2 * side**3 / flops
        return 2 * side**3 / flops

    monkeypatch.setattr(hardware, "_product_seconds", seconds)
    assert hardware.measure_peak("cpu", "bfloat16") == pytest.approx(flops)
    assert max(taken) == side
    assert sum(taken.values()) < 2.5


def test_slow_products_are_repeated_no_longer_than_tells_something(monkeypatch):
    clock = itertools.count(step=0.1)
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
    assert hardware._product_seconds(8, torch.float32, "cpu", 18) == pytest.approx(0.1)
    assert next(clock) < 3 * hardware.REPEATED_S


def test_this_machine_is_measured():
    found = hardware.detect_hardware(gpu=False)
    assert found.device_type == "cpu"
    assert found.measured
    assert found.peak_flops["float32"] > 1e8
    assert set(found.peak_flops) == {"float32", "bfloat16"}
