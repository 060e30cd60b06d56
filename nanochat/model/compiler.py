"""What torch.compile need not find out anew in every process."""

import os
import platform
import subprocess
import sys

import torch

GRAPHS = 64  # of one function: two for each number of rows
OLDEST_GCC = 12  # of those that this was tried with


def tell_of_determinism() -> None:
    """Let the compiler choose its kernels alike each time where PyTorch does, which `set_deterministic_debug_mode` does
    not tell it, as `use_deterministic_algorithms` would: for 0.7 s of importing it, also where nothing is compiled."""
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())


def leave_room_for_graphs() -> None:
    """Where memory runs out, the rows of a forward pass are halved and compiled for anew; by default the compiler gives
    up at the fifth number of rows."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, GRAPHS)


def take_vector_instructions_for_granted() -> None:
    """Spare Inductor the test programs by which it learns whether compiler and PyTorch know the CPU's AVX2 and AVX-512:
    7 of the 33 s of a first step, and 1 of 4 where everything else is kept (LOG.md, 2026-11-27). Those for bfloat16,
    VNNI and AMX it still runs. Only for a compiler that passes, and a PyTorch that uses these instructions itself.
    """
    from torch._inductor import config

    if config.cpp.vec_isa_ok is None and _gcc_is_recent() and _torch_uses_them():
        config.cpp.vec_isa_ok = True


def _gcc_is_recent() -> bool:
    if sys.platform != "linux" or platform.machine() != "x86_64" or os.environ.get("CXX", "g++") != "g++":
        return False
    try:
        said = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    major = said.strip().split(".")[0]
    return major.isdigit() and int(major) >= OLDEST_GCC


def _torch_uses_them() -> bool:
    most = "AVX512" if torch.cpu._is_avx512_supported() else "AVX2"
    return torch.backends.cpu.get_cpu_capability() == most
