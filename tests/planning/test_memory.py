"""What ran out of memory once is not tried again on the same hardware with the same model; peaks are measured."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.model import ModelConfig
from nanochat.planning.hardware import DATA_SHEETS, forget_peak_memory, peak_memory_bytes
from nanochat.planning.memory import MemoryRecord
from nanochat.planning.resolve import Request, resolve

A100_40GB = DATA_SHEETS["a100-40gb"]
MODEL = ModelConfig.from_depth(2, 512, 32)


def test_it_is_remembered_for_this_hardware_model_and_dtype(tmp_path):
    record = MemoryRecord(tmp_path, "NVIDIA A100")
    assert record.limit(MODEL, "bfloat16") is None
    record.remember(MODEL, "bfloat16", 8)
    record.remember(MODEL, "bfloat16", 4)
    assert MemoryRecord(tmp_path, "NVIDIA A100").limit(MODEL, "bfloat16") == 4
    assert record.limit(MODEL, "float32") is None
    assert record.limit(replace(MODEL, max_seq_len=64), "bfloat16") is None
    assert MemoryRecord(tmp_path, "another").limit(MODEL, "bfloat16") is None


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"device_batch_size": "many"}'])
def test_a_damaged_record_says_nothing(tmp_path, content):
    record = MemoryRecord(tmp_path, "x")
    record.remember(MODEL, "float32", 4)
    (path,) = (tmp_path / "memory").iterdir()
    path.write_text(content)
    assert record.limit(MODEL, "float32") is None


def test_training_goes_on_where_it_cannot_be_remembered(tmp_path):
    (tmp_path / "memory").write_text("a file where its folder would be, as unwritable as a full disk")
    record = MemoryRecord(tmp_path, "x")
    record.remember(MODEL, "float32", 4)
    assert record.limit(MODEL, "float32") is None


def test_the_plan_heeds_it_and_says_so(tmp_path):
    record = MemoryRecord(tmp_path, A100_40GB.name)
    free = resolve(Request(), A100_40GB, compiler=None, memory=record).config
    rows = free.base.device_batch_size // 2
    record.remember(free.model, free.compute_dtype, rows)
    heeded = resolve(Request(), A100_40GB, compiler=None, memory=record)
    assert heeded.config.base.device_batch_size == rows
    assert heeded.config.base.total_batch_size == free.base.total_batch_size
    assert any("memory ran out above it in an earlier run" in reason for reason in heeded.reasons)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_since_it_was_forgotten():
    forget_peak_memory("cpu")
    before = peak_memory_bytes("cpu")
    ballast = bytearray(os.urandom(1 << 20)) * 256
    high = peak_memory_bytes("cpu")
    assert high >= before + 200 * 2**20
    del ballast
    assert peak_memory_bytes("cpu") > high - 2**20  # the kernel counts in batches
    forget_peak_memory("cpu")
    assert peak_memory_bytes("cpu") < high - 200 * 2**20


TAKE_AND_FREE = """
import resource, sys
import torch
from nanochat.planning.hardware import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for number in range(40):
    if number == 30:  # alignment leaves gaps that only some rounds fill
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16 << 20)  # 64 MB: more than glibc ever keeps of itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's to keep")
def test_memory_that_is_kept_brings_no_page_faults():
    def faults(how):
        done = subprocess.run([sys.executable, "-c", TAKE_AND_FREE, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 1000
    assert faults("give back") > 10 * faults("keep") + 1000
