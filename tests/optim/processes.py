"""Real worker processes for tests: gloo over loopback, one thread each."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat.workers import Workers


def in_processes(size: int, directory: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(workers, *args)`, a function of a module, returns in each of `size` processes."""
    mp.spawn(_run, (size, directory, work, args), nprocs=size)
    return [torch.load(directory / f"{rank}.pt") for rank in range(size)]


def _run(rank: int, size: int, directory: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=size)
    torch.save(work(Workers.current(torch.device("cpu")), *args), directory / f"{rank}.pt")
    dist.destroy_process_group()
