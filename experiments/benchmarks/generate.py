"""Generation beside what memory allows: every token reads all matrices once, so bandwidth bounds tokens a second."""

import argparse
import time
from statistics import median

import torch

from nanochat.errors import UserError
from nanochat.inference.engine import Engine
from nanochat.inference.load import frozen
from nanochat.model import ModelConfig, Transformer, count_parameters
from nanochat.planning.hardware import choose_dtype, detect_hardware
from nanochat.tokenizer import Tokenizer

PROMPT = list(range(100, 116))
READ_BYTES = {"cpu": 1 << 29, "cuda": 1 << 32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64, help="to generate in each row")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16], help="at once")


def run(options: argparse.Namespace) -> int:
    """Print tokens a second by rows at once, and the share of the bound that is at one row."""
    if options.tokens < 2 or len(PROMPT) + options.tokens > options.seq_len:
        raise UserError("--tokens must be at least 2 and fit into --seq-len", "leave them out for 64 of 512")
    hardware = detect_hardware()
    dtype = getattr(torch, choose_dtype(hardware)[0])
    config = ModelConfig.from_depth(options.depth, options.vocab_size, options.seq_len)
    model = frozen(Transformer(config, compute_dtype=dtype), dtype, hardware.device_type)
    engine = Engine(model, Tokenizer.train(["only its special tokens matter here"], 300))
    print(hardware.describe())
    per_token = count_parameters(config).multiplied * dtype.itemsize
    read = _read_bytes_per_s(hardware.device_type)
    print(f"depth {config.depth}: {per_token / 1e6:,.0f} MB of matrices a step; reading {read / 1e9:.1f} GB/s: "
          f"at most {read / per_token:.1f} steps/s")  # fmt: skip
    for rows in options.rows:
        first_s, step_s = _measure(engine, rows, options.tokens)
        print(f"{rows:>3} rows: {rows / step_s:8.1f} tok/s, {1e3 * step_s:.1f} ms a step, "
              f"{per_token / step_s / read:.0%} of the bandwidth; first token after {1e3 * first_s:.0f} ms",
              flush=True)  # fmt: skip
    return 0


def _measure(engine: Engine, rows: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and the median of those between tokens."""
    times, start = [], time.perf_counter()
    for _ in engine.generate([PROMPT] * rows, max_new_tokens=tokens, stop_ids=()):
        now = time.perf_counter()
        times.append(now - start)
        start = now
    return times[0], median(times[1:])


def _read_bytes_per_s(device: str) -> float:
    """Of a product of one row with a matrix that no cache holds: what a step of generation mostly is."""
    width = 4096
    matrix = torch.ones(READ_BYTES[device] // 4 // width, width, device=device)
    row, best = torch.ones(width, device=device), float("inf")
    for _ in range(10):
        start = time.perf_counter()
        float((matrix @ row)[0])  # waits for the GPU
        best = min(best, time.perf_counter() - start)
    return matrix.nbytes / best
