"""The GPU benchmark, tried on whatever device there is: every part runs, and one that fails costs only itself."""

import json

import pytest
import torch

from experiments import bench
from experiments.benchmarks import gpu
from nanochat.model import ModelConfig, Transformer

TINY = ["--depths", "1", "--seq-len", "64", "--vocab-size", "512", "--rows", "2", "4", "--seconds", "1",
        "--compile", "off"]  # fmt: skip


def test_all_parts_end_in_one_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "STEP_TOKENS", 2048)
    assert bench.main(["gpu", "--out", str(tmp_path / "gpu.json"), *TINY]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["bandwidth"]["bytes_per_s"] > 1e8
    assert found["attention"]["depth 1, windows SL"]["sdpa"] > 0
    for row in found["steps"]["depth 1"]:
        assert row["tokens_per_second"] > 0
        assert 0 < row["share_of_measured_peak"] < 1.5
    assert found["loss"]["plain"]["loss"] == pytest.approx(found["loss"]["chunked"]["loss"], rel=1e-3)
    assert found["training"]["loss_last"] < found["training"]["loss_first"]
    assert found["training"]["val_bpb"]
    assert "tokens_per_second" in capsys.readouterr().out


def test_a_part_that_fails_or_is_too_late_costs_only_itself(tmp_path, monkeypatch):
    def broken(options, hardware):
        raise RuntimeError("no kernel")

    monkeypatch.setitem(gpu.PARTS, "bandwidth", broken)
    out = tmp_path / "gpu.json"
    assert bench.main(["gpu", "--out", str(out), "--parts", "bandwidth", "loss", *TINY]) == 1
    found = json.loads(out.read_text())
    assert found["bandwidth"] == {"error": "RuntimeError: no kernel"}
    assert found["loss"]["chunked"]["ms"] > 0
    assert bench.main(["gpu", "--out", str(out), "--parts", "loss", "--minutes", "0", *TINY]) == 0
    assert json.loads(out.read_text())["loss"] == {"left out": "the time was up"}


def test_what_is_timed_multiplies_what_training_does():
    """No zeros, which cost a GPU less power, and tokens as frequent as in text."""
    model = Transformer(ModelConfig.from_depth(2, 512, 64))
    assert not model.blocks[0].mlp_out.any(), "as training begins"
    gpu._fill_zeros(model)
    assert all(matrix.any() for matrix in model.parameters() if matrix.ndim > 1)
    counts = torch.bincount(gpu._zipf_ids(512, (100, 1000), "cpu").flatten(), minlength=512)
    assert len(counts) == 512
    assert counts[:-1].min() > 0
    assert float(counts[:2].sum()) == pytest.approx(float(counts[2:8].sum()), rel=0.1), "as many to three times a rank"


def test_what_does_not_fit_is_followed_by_what_may(monkeypatch):
    def step(config, rows, hardware):
        if rows > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"rows": rows}

    monkeypatch.setattr(gpu, "_step", step)
    found = gpu._steps_of(None, None, [32, 16, 64, 8, 4])
    assert [(one["rows"], "error" in one) for one in found] == [(32, True), (16, True), (8, False), (4, False)]
    assert [one["rows"] for one in gpu._steps_of(None, None, [32, 16, 8, 4], most=1)] == [32, 16, 8]
