"""Batches from token shards on one core, beside a copy of memory; what rows lose; how tokenising uses the cores."""

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch

from experiments.cluster import cluster, spread
from nanochat.config import PACKINGS, TINYWORLD
from nanochat.data.batches import Batches
from nanochat.data.dataset import TokenDataset
from nanochat.data.documents import read_documents
from nanochat.data.shards import SOURCE_BYTES, build_text_shards
from nanochat.data.sources import Sources, cache_directory, open_sources
from nanochat.errors import UserError
from nanochat.planning.hardware import detect_hardware, usable_cpus
from nanochat.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default=TINYWORLD, help="tinyworld, or a path to text")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--batch-tokens", type=int, default=65_536, help="of a step")
    parser.add_argument("--megabytes", type=int, default=256, help="of text, sharded as Ray tasks; 0: none")
    parser.add_argument("--seconds", type=float, default=10.0, help="of reading, for each length of rows")


def run(options: argparse.Namespace) -> int:
    """Print tokens a second, memory, and what is padded, by packing and length of rows."""
    if options.seconds <= 0 or options.batch_tokens < max(options.seq_lens):
        raise UserError("--seconds must be positive and --batch-tokens hold a row", "leave them out")
    torch.set_num_threads(1)
    sources = open_sources(options.data, cache_directory())
    tokenizer = Tokenizer.train(sources.tokenizer_texts(20_000_000), options.vocab_size)
    print(f"{options.data}; copying memory, one core: {_copy_bytes_per_s() / 1e9:.1f} GB/s")
    with tempfile.TemporaryDirectory() as scratch:
        if options.megabytes:
            _sharding(sources, tokenizer, Path(scratch), options.megabytes)
        for seq_len in options.seq_lens:
            for packing in PACKINGS:
                split = "all" if sources.base_val else "train"
                data = build_text_shards(sources.base_train, tokenizer, Path(scratch), split=split,
                                         one_in=sources.one_in, row_tokens=seq_len, packing=packing)  # fmt: skip
                rate, grown = _read(data, options.batch_tokens // seq_len, options.seconds)
                print(
                    f"rows of {seq_len:>5}, {packing:8}  {rate / 1e6:6.1f}M tok/s = {8 * 2 * rate / 1e9:4.1f} GB/s of "
                    f"int64 pairs  padded {data.padded_fraction:.2%}  "
                    f"memory {grown / 2**20:+.1f} MiB",
                    flush=True,
                )
    return 0


def _read(data: TokenDataset, rows: int, seconds: float) -> tuple[float, int]:
    """Tokens a second of making batches, and by how much the process has grown since a tenth of the time."""
    batches, process = Batches(data, rows, seed=0), psutil.Process()
    begun, step, before = time.perf_counter(), 0, 0
    while (now := time.perf_counter() - begun) < seconds:
        if not before and now > 0.1 * seconds:
            before = process.memory_info().rss
        batches.batch(step)
        step += 1
    return step * rows * data.row_tokens / now, process.memory_info().rss - before


def _copy_bytes_per_s() -> float:
    """Read and written, of a plain copy."""
    source = np.ones(1 << 25, dtype=np.int64)
    target, best = np.empty_like(source), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def _sharding(sources: Sources, tokenizer: Tokenizer, scratch: Path, megabytes: int) -> None:
    """Characters a second from text to token shards: by one core, and by Ray tasks on all of them."""
    text = "\n".join(islice(read_documents(sources.base_train), 20_000))[: SOURCE_BYTES // 8]
    files = []
    for number in range(max(megabytes * 2**20 // SOURCE_BYTES, 2)):
        files.append(scratch / f"{number}.jsonl")
        with files[-1].open("w") as file:
            while file.tell() < SOURCE_BYTES:
                start = (number * 997 + file.tell()) % (len(text) // 2)
                file.write(json.dumps({"text": f"{number} {text[start : start + 4000]}"}) + "\n")
    size = sum(file.stat().st_size for file in files)
    start = time.perf_counter()
    settings = {"split": "all", "row_tokens": 2048, "packing": "stream"}
    alone = build_text_shards(files, tokenizer, scratch / "alone", num_threads=1, **settings)
    alone_s = time.perf_counter() - start
    with cluster(detect_hardware()):
        list(spread(len, ["ab"] * usable_cpus()))  # the processes are there
        start = time.perf_counter()
        together = build_text_shards(files, tokenizer, scratch / "together", spread=spread, **settings)
        together_s = time.perf_counter() - start
    assert together.fingerprint == alone.fingerprint
    print(f"sharding {size / 2**20:.0f} MiB of text: {size / alone_s / 1e6:.1f} MB/s on one core, "
          f"{size / together_s / 1e6:.1f} as Ray tasks on {usable_cpus()}: {alone_s / together_s / usable_cpus():.0%} "
          f"of cores x the rate of one", flush=True)  # fmt: skip
