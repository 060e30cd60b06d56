"""Writing by index where PyTorch is told to be deterministic."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def distinct_places() -> Iterator[None]:
    """For writes no two of which meet in one place. Told to be deterministic, PyTorch would sort them first on a GPU,
    in fifteen kernels, as if two could."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
