"""What this machine can do: its device, its memory, and how fast it multiplies, measured."""

import ctypes
import gc
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from nanochat.errors import UserError

GIB = 2**30
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)
LONGEST_PRODUCT_S = 0.1  # of those that the peak is measured with
REPEATED_S = 0.5  # they are, at the most


@dataclass(frozen=True)
class Training:
    """How a training compared with what was modelled of it before anything was measured."""

    compute_dtype: str
    compile: bool
    num_workers: int
    depth: int
    width: int
    device_batch_tokens: int
    speed: float
    """Times the modelled."""
    memory: float
    """Times the modelled."""
    max_seq_len: int = 0
    """Tokens of a row; 0: kept by an earlier version, which did not say."""


@dataclass(frozen=True)
class Overhead:
    """How a part of a run besides its training steps compared with what was assumed of it."""

    part: str
    """See `nanochat.planning.overheads`."""
    times: float
    """The assumed."""


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
    trainings: tuple[Training, ...] = ()
    """What was trained on it."""
    overheads: tuple[Overhead, ...] = ()
    """What else runs on it took."""

    def describe(self) -> str:
        """One line for the plan."""
        peaks = ", ".join(f"{name} {flops / 1e12:.3g}" for name, flops in self.peak_flops.items())
        devices = f"{self.device_count} x {self.name}" if self.device_count > 1 else self.name
        how = "measured" if self.measured else "data sheet"
        return f"{devices}, {self.memory_bytes / GIB:.0f} GiB, matmul peak {peaks} TFLOP/s ({how})"


def _gpu(name: str, gigabytes: int, bf16_teraflops: float, fp32_teraflops: float) -> Hardware:
    peaks = {"bfloat16": bf16_teraflops * 1e12, "float32": fp32_teraflops * 1e12}
    return Hardware(name, "cuda", 1, 12, gigabytes * 10**9, peaks, measured=False)


# For planning without the hardware at hand: dense bfloat16 with fp32 accumulation, and float32 outside tensor cores,
# from NVIDIA's data sheets of A100, H100 and H200 and its white papers on AD102 and GA102.
DATA_SHEETS = {
    "a100-40gb": _gpu("NVIDIA A100 40GB", 40, 312, 19.5),
    "a100-80gb": _gpu("NVIDIA A100 80GB", 80, 312, 19.5),
    "h100": _gpu("NVIDIA H100 SXM", 80, 989, 67),
    "h200": _gpu("NVIDIA H200 SXM", 141, 989, 67),
    "rtx-4090": _gpu("NVIDIA GeForce RTX 4090", 24, 165.2, 82.6),
    "rtx-3090": _gpu("NVIDIA GeForce RTX 3090", 24, 71, 35.6),
}
HARDWARE_NAMES = (*DATA_SHEETS, "cpu")


def usable_cpus() -> int:
    """Processors this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def named_hardware(name: str, count: int = 1) -> Hardware:
    """So many of one of `HARDWARE_NAMES`: GPUs by their data sheet, or the CPU of this machine, measured.

    Raises:
        UserError: it is none of them.
    """
    if name not in HARDWARE_NAMES:
        raise UserError(f"there is no hardware {name!r} to plan for", f"choose --hardware {', '.join(HARDWARE_NAMES)}")
    return replace(DATA_SHEETS[name], device_count=count) if name in DATA_SHEETS else detect_hardware(gpu=False)


def device_type() -> str:
    """Of this machine: cuda or cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def detect_hardware(gpu: bool = True) -> Hardware:
    """The machine this process runs on. Takes about a second, most of it timing matrix products.

    Args:
        gpu: False: its CPU, even where there is a GPU.
    """
    if gpu and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Hardware(
            properties.name,
            "cuda",
            torch.cuda.device_count(),
            usable_cpus(),
            properties.total_memory,
            measure_peaks("cuda"),
        )
    return Hardware(cpu_name(), "cpu", 1, usable_cpus(), psutil.virtual_memory().total, measure_peaks("cpu"))


def cpu_name() -> str:
    """Of this machine, with how many processors this process may use."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({usable_cpus()} cores)"
    return f"{platform.processor() or platform.machine()} ({usable_cpus()} cores)"


def measure_peaks(device_type: str) -> dict[str, float]:
    """`measure_peak` of each dtype that a model may be multiplied in."""
    return {name: measure_peak(device_type, name) for name in ("float32", "bfloat16")}


def measure_peak(device_type: str, dtype_name: str) -> float:
    """Operations a second of a square matrix product; the best of at most twenty, after one to warm up."""
    dtype = getattr(torch, dtype_name)
    side = (8192 if device_type == "cuda" else 1536) // 8
    seconds = _product_seconds(side, dtype, device_type, 2)
    for _ in range(3):  # as large as time allows: CPUs without instructions for bfloat16 are 200 times slower at it
        if 8 * seconds < LONGEST_PRODUCT_S:
            side *= 2
            seconds = _product_seconds(side, dtype, device_type, 2)
    return 2 * side**3 / min(seconds, _product_seconds(side, dtype, device_type, 18))


def _product_seconds(side: int, dtype: torch.dtype, device_type: str, repeats: int) -> float:
    """The shortest of so many, or of fewer if the time is up, after one to warm up. Random numbers: a GPU multiplies
    constants faster, as fewer of its bits change and it takes less power."""
    left, right = (torch.randn(side, side, device=device_type).to(dtype) for _ in range(2))

    def multiply() -> float:
        start = time.perf_counter()
        left @ right
        if device_type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    multiply()
    best, until = multiply(), time.perf_counter() + REPEATED_S
    for _ in range(repeats - 1):
        if time.perf_counter() > until:
            break
        best = min(best, multiply())
    return best


def choose_dtype(hardware: Hardware) -> tuple[str, str]:
    """The dtype that matrix products should run in, and the reason. Master weights are fp32 either way."""
    fp32, bf16 = (hardware.peak_flops[name] for name in ("float32", "bfloat16"))
    ratio = f"bfloat16 multiplies {bf16 / fp32:.1f} times as fast as float32 here"
    return ("bfloat16", ratio) if bf16 > 1.2 * fp32 else ("float32", ratio)


def peak_memory_bytes(device_type: str) -> int:
    """The most memory this process has held: the allocator's peak on a GPU, the resident set's on CPU."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):  # Linux; its ru_maxrss may be that of the process which started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if platform.system() == "Darwin" else kilobytes * 1024


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where the C library is glibc. A training step on CPU frees and takes the
    same hundreds of megabytes again and again; given back to the system each time, their pages come back one fault
    after the other, 7 to 10 % of a step (LOG.md, 2026-11-27). Of the main thread only, unless the process was started
    with MALLOC_ARENA_MAX=1."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def forget_peak_memory(device_type: str) -> None:
    """Let `peak_memory_bytes` count from now on, where the system allows that: on a GPU and on Linux. What was freed
    before goes back to the system."""
    if device_type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc keeps it otherwise
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5), since Linux 4.0
