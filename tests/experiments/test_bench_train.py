"""The training benchmark: what it prints is what it measured."""

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import bench
from experiments.benchmarks import epochs
from experiments.benchmarks.train import StepTime, measure, report
from nanochat.errors import UserError
from nanochat.model import ModelConfig, train_flops_per_token
from nanochat.search.law import Points, predict
from nanochat.search.priors import SMALL_TEXT

TINY = ["--depth", "1", "--vocab-size", "64", "--seq-len", "16", "--batch-tokens", "64", "--steps", "3"]


@pytest.fixture
def settings_restored() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def test_figures_follow_from_times_and_peak(capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig.from_depth(4, 4096, 256)
    options = argparse.Namespace(seq_len=256, batch_tokens=2048)
    times = [StepTime(0.1, 0.2, 0.1), StepTime(0.15, 0.25, 0.1), StepTime(9.0, 9.0, 9.0)]
    flops = train_flops_per_token(config, 256)
    report(config, options, "float32", 12.3, times, (2048 / 0.25 * flops, 2048 / 0.5 * flops))
    lines = capsys.readouterr().out.splitlines()
    assert "8x256 tokens a step" in lines[0]
    assert "first step 12.3 s" in lines[1]
    assert "500 ms (forward 150  backward 250  optimizer 100)  4,096 tok/s" in lines[2]
    assert lines[2].endswith("= 50% of the peak")
    assert "400 ms" in lines[3]
    assert "5,120 tok/s" in lines[3]
    assert "pass 8,192 tok/s" in lines[4]


def test_the_first_step_and_the_warm_up_are_not_counted() -> None:
    seconds = iter([50.0, 4.0, 3.0, 2.0, 1.0, 1.0])
    first, times = measure(lambda: StepTime(next(seconds), 0.0, 0.0), steps=2)
    assert first == 50.0
    assert [t.total for t in times] == [1.0, 1.0]


@pytest.mark.usefixtures("settings_restored")
def test_a_small_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["train", *TINY, "--compile", "off", "--public"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"public parts in \w+: \d+ ms, [\d,]+ tok/s; here [\d.]+ times as many", out)) == 2
    assert re.search(r"dtype (float32|bfloat16): .* times as fast", out)
    assert "compiled: no" in out
    assert re.search(r"median +\d+ ms \(forward \d+  backward \d+  optimizer \d+\)  [\d,]+ tok/s", out)
    assert "matmul peak" in out


def test_impossible_sizes_are_refused_together() -> None:
    with pytest.raises(UserError, match=r"--depth must be at least 1.*--steps must be at least 1"):
        bench.main(["train", "--depth", "0", "--steps", "0"])
    with pytest.raises(UserError, match="--batch-tokens 100 is not a multiple of --seq-len 64"):
        bench.main(["train", "--batch-tokens", "100", "--seq-len", "64"])


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"there is no g\+\+ here"):
        bench.main(["train", *TINY, "--compile", "on"])


@pytest.mark.parametrize("kinds", [
    ("plain", "fast"),
    pytest.param(("plain", "fast", "fp8"),
                 marks=pytest.mark.skipif(torch.__version__ < "2.13", reason="no scales of rows on a CPU")),
])  # fmt: skip
@pytest.mark.usefixtures("settings_restored")
def test_fast_and_plain_are_judged_beside_what_seeds_make(
    capsys: pytest.CaptureFixture[str], kinds: tuple[str, ...]
) -> None:
    size = ["--depth", "1", "--steps", "12", "--batch-tokens", "512", "--seeds", "2"]
    assert bench.main(["quality", *size, "--compile", "off", *(["--fp8"] if "fp8" in kinds else [])]) == 0
    out = capsys.readouterr().out
    found = {kind: [float(bpb) for bpb in re.findall(rf"seed \d +{kind} .*val_bpb ([\d.]+)", out)] for kind in kinds}
    assert [len(losses) for losses in found.values()] == [2] * len(kinds)
    for beside, name in pairwise(kinds):
        difference = float(re.search(rf"{name} - {beside}: ([+-][\d.]+) ±", out).group(1))
        assert difference == pytest.approx((sum(found[name]) - sum(found[beside])) / 2, abs=1.1e-4)
        assert abs(difference) < 0.05
        if name == "fp8" or "fast   bfloat16" in out:  # in float32 only the order of sums is another
            assert found[name] != found[beside]


@pytest.mark.usefixtures("settings_restored")
def test_trainings_of_more_and_more_epochs_are_told_and_not_done_twice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, rows = tmp_path / "text.txt", tmp_path / "rows.json"
    text.write_text("\n\n".join(f"{number} and {number % 7} are numbers" for number in range(6000)))
    asked = ["epochs", "--data", str(text), "--depths", "1", "2", "--unique", "4000", "--epochs", "1", "3", "--compile",
             "off", "--batch-tokens", "512", "--most-tokens", "9000", "--out", str(rows)]  # fmt: skip
    assert bench.main(asked) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "val_bpb" in line]
    assert len(told) == 2
    found = json.loads(rows.read_text()).values()
    assert [row["depth"] for row in found] == [1, 2]
    assert all(3500 < row["tokens"] <= 4096 and row["val_bpb"] > row["train_bpb"] > 0 for row in found)
    monkeypatch.setattr(epochs, "_train", lambda *again: pytest.fail("it was done"))
    assert bench.main(asked) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "val_bpb" in line] == told


def test_the_law_of_trainings_is_found_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = replace(SMALL_TEXT, usable=12.0, by_size=0.25, by_data=0.6, by_repeats=1.5)
    points = Points.of([(size, unique * often, 1024, 5.0) for size in (1e5, 5e5, 2e6, 8e6) for unique in (1e5, 4e5)
                        for often in (1, 2, 4, 6)])  # fmt: skip
    unique = np.tile(np.repeat([1e5, 4e5], 4), 4)
    seen = predict(np.array(truth.mean), points, truth, unique) + np.where(unique == 1e5, 0.05, -0.05)
    names = ("parameters", "tokens", "batch", "lr_multiplier", "unique_tokens", "val_bpb")
    monkeypatch.setattr(epochs, "GRID", ((12.0,), (0.0, 0.25, 0.5), (0.6,), (0.75, 1.5, 2.25)))
    epochs._tell_fit([
        dict(zip(names, (*point, count, bpb), strict=True))
        for point, count, bpb in zip(points.rows(), unique.tolist(), seen.tolist(), strict=True)
    ])  # fmt: skip
    best, second = capsys.readouterr().out.splitlines()[2:4]
    assert "by_size 0.25, by_data 0.6, by_repeats 1.5" in best
    assert 1.3 * float(best.split()[0]) < float(second.split()[0])
