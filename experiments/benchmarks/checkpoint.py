"""What a checkpoint costs the training: the wait for its snapshot, and the steps that go slower while it is written."""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from nanochat.errors import UserError
from nanochat.model import ModelConfig, Transformer
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.scaling import hyperparameters
from nanochat.planning.hardware import detect_hardware
from nanochat.planning.kernels import choose_attention
from nanochat.training.checkpoint import CheckpointError, CheckpointStore
from nanochat.training.saving import BackgroundSaver

MINUTE_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--directory", type=Path, help="where to write (default: the system's temporary directory)")


def run(options: argparse.Namespace) -> int:
    """Train with and without checkpoints in turn, and print their cost as a share of a minute."""
    for name in ("depth", "vocab_size", "seq_len", "rows", "checkpoints"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    hardware = detect_hardware()
    config = ModelConfig.from_depth(options.depth, options.vocab_size, options.seq_len)
    attention, _ = choose_attention(hardware, config, "float32", options.rows)
    model = Transformer(config, attention=attention).to(hardware.device_type)
    tokens = options.rows * options.seq_len
    optimizer = MuonAdamW(model, hyperparameters(model.config, tokens, tokens * 1000))
    print(hardware.describe())
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        store = CheckpointStore(Path(scratch) / "checkpoints", keep_last=1)
        steps = _steps(model, optimizer, options)
        for _ in range(3):  # warm up
            next(steps)
        quiet, stalls, slowed, writes = [], [], [], []
        with BackgroundSaver(store) as saver:
            for number in range(options.checkpoints):
                quiet += [next(steps) for _ in range(6)]
                start = time.perf_counter()
                tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                saver.start(number, tensors, {})
                stalls.append(time.perf_counter() - start)
                beside: list[float] = []
                while not (ended := saver.ended()):
                    beside.append(next(steps))
                slowed.append(sum(beside) - len(beside) * median(quiet))
                for save in ended:
                    if isinstance(save, CheckpointError):
                        raise save
                    writes.append(save.seconds)
        size = sum(file.stat().st_size for file in store.newest(print).path.iterdir())  # type: ignore[union-attr]
        plain = min(_plain_write(Path(scratch) / "plain", size) for _ in range(3))
    print(f"checkpoint of {size / 1e6:,.0f} MB; a step takes {median(quiet) * 1e3:,.0f} ms")
    print(f"written in {median(writes):.2f} s, {size / 1e6 / median(writes):,.0f} MB/s, "
          f"a plain file of that size in {plain:.2f} s, {size / 1e6 / plain:,.0f} MB/s")  # fmt: skip
    stall, slow = median(stalls[1:] or stalls), max(median(slowed), 0.0)
    print(f"training waited {stall * 1e3:.1f} ms (first {stalls[0] * 1e3:.1f}), "
          f"and its steps beside the writing took {slow * 1e3:.0f} ms longer")  # fmt: skip
    print(f"at one checkpoint a minute: {stall / MINUTE_S:.3%} waiting, {(stall + slow) / MINUTE_S:.3%} in all")
    return 0


def _steps(model: Transformer, optimizer: MuonAdamW, options: argparse.Namespace) -> Iterator[float]:
    """Seconds of training steps, without end."""
    device = model.head.device
    ids = torch.randint(model.config.vocab_size, (options.rows, options.seq_len + 1), device=device)
    while True:
        start = time.perf_counter()
        (model.loss_sum(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()).backward()
        optimizer.reduce_gradients().item()  # waits for a GPU
        optimizer.step(1.0, 0.95)
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - start


def _plain_write(path: Path, size: int) -> float:
    """Seconds to write and flush a file of random bytes."""
    data = os.urandom(size)
    start = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start
