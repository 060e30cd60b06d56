"""gemv.c, built for this CPU when it is first wanted, which takes a quarter of a second."""

import ctypes
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

MOST_ROWS = 4
MULTIPLE = 32  # of which a matrix's input width must be one
SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-lm")
TYPES = {torch.float32: 0, torch.bfloat16: 1}


@cache
def gemv() -> Callable[..., Tensor] | None:
    """A function of x (…, in), of 1 to 4 rows, and a contiguous weight (out, in) of the same dtype: what
    `nanochat.model.packed.linear` makes of x · weightᵀ, with no gradient. None but on Linux with a C compiler (`CC`,
    else cc) whose OpenMP is the one that PyTorch runs on, as two sets of threads wait for each other's cores (five
    times slower); and if what it makes is wrong."""
    if sys.platform != "linux":
        return None
    try:
        before = _openmp_runtimes()
        with TemporaryDirectory() as directory:
            library = str(Path(directory, "gemv.so"))
            command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, "-x", "c", str(SOURCE), "-o", library]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            run = ctypes.CDLL(library).gemv  # stays when the file is gone
        if _openmp_runtimes() != before:
            return None
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):  # no compiler, no room, no library
        return None
    run.argtypes = (*[ctypes.c_int] * 2, *[ctypes.c_void_p] * 4, *[ctypes.c_long] * 2, *[ctypes.c_int] * 3)
    run.restype = None

    def product(x: Tensor, weight: Tensor, *, normed: bool = False, squared_relu: bool = False,
                add: Tensor | None = None) -> Tensor:
        (out, width), rows = weight.shape, x.numel() // x.size(-1)
        x, result = x.contiguous(), x.new_empty(*x.shape[:-1], out)
        add = None if add is None else add.contiguous()
        run(TYPES[weight.dtype], rows, weight.data_ptr(), x.data_ptr(), None if add is None else add.data_ptr(),
            result.data_ptr(), out, width, normed, squared_relu, torch.get_num_threads())  # fmt: skip
        return result

    return product if _right(product) else None


def _right(product: Callable[..., Tensor]) -> bool:
    """Whether products of whole numbers, small enough to be rounded nowhere, come out as they are."""
    numbers = torch.arange(41 * 3 * MULTIPLE).view(41, -1) % 7 % 3 - 1
    weight = numbers[MOST_ROWS:]
    return all(torch.equal(product(x.to(dtype), weight.to(dtype)), (x @ weight.T).to(dtype))
               for dtype in TYPES for x in (numbers[:rows] for rows in range(1, MOST_ROWS + 1)))


def _openmp_runtimes() -> set[str]:
    """Libraries of OpenMP in this process."""
    paths = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines()}
    return {str(path) for path in paths if path.name.startswith(("libgomp", "libomp", "libiomp"))}
