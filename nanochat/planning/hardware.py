"""What this machine can do: its device, its memory, and how fast it multiplies, measured."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One device of the machine a run is planned for.

    `peak_flops` maps a dtype's name to operations a second of a large matrix product; `measured` says whether it was
    timed here or taken from a data sheet.
    """

    name: str
    device_type: str
    device_count: int
    cpu_count: int
    memory_bytes: int
    peak_flops: dict[str, float]
    measured: bool = True

    def describe(self) -> str:
        """One line for the plan."""
        peaks = ", ".join(f"{name} {flops / 1e12:.3g}" for name, flops in self.peak_flops.items())
        devices = f"{self.device_count} x {self.name}" if self.device_count > 1 else self.name
        how = "measured" if self.measured else "data sheet"
        return f"{devices}, {self.memory_bytes / GIB:.0f} GiB, matmul peak {peaks} TFLOP/s ({how})"


# For planning without the hardware at hand; peaks are the dense figures of NVIDIA's A100 data sheet.
A100_40GB = Hardware(
    "NVIDIA A100 40GB", "cuda", 1, 12, 40 * 10**9, {"bfloat16": 312e12, "float32": 19.5e12}, measured=False
)


def usable_cpus() -> int:
    """Processors this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def detect_hardware() -> Hardware:
    """The machine this process runs on. Takes about a second, most of it timing matrix products."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Hardware(
            properties.name,
            "cuda",
            torch.cuda.device_count(),
            usable_cpus(),
            properties.total_memory,
            measure_peaks("cuda"),
        )
    return Hardware(_cpu_name(), "cpu", 1, usable_cpus(), psutil.virtual_memory().total, measure_peaks("cpu"))


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({usable_cpus()} cores)"
    return f"{platform.processor() or platform.machine()} ({usable_cpus()} cores)"


def measure_peaks(device_type: str) -> dict[str, float]:
    """Operations a second of a square matrix product by dtype; the best of a few, after one to warm up."""
    return {
        name: _matmul_flops(dtype, device_type)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }


def _matmul_flops(dtype: torch.dtype, device_type: str, repeats: int = 20) -> float:
    side = 8192 if device_type == "cuda" else 1536
    left, right = (torch.full((side, side), 0.5, dtype=dtype, device=device_type) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        left @ right
        if device_type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def choose_dtype(hardware: Hardware) -> tuple[str, str]:
    """The dtype that matrix products should run in, and the reason. Master weights are fp32 either way."""
    fp32, bf16 = (hardware.peak_flops[name] for name in ("float32", "bfloat16"))
    ratio = f"bfloat16 multiplies {bf16 / fp32:.1f} times as fast as float32 here"
    return ("bfloat16", ratio) if bf16 > 1.2 * fp32 else ("float32", ratio)


def peak_memory_bytes(device_type: str) -> int:
    """The most memory this process has held: the allocator's peak on a GPU, the resident set's on CPU."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if platform.system() == "Darwin" else kilobytes * 1024
