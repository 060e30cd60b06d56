"""Whether speed costs quality: the fast training step beside the plain one, and with --fp8 beside itself with products
in 8 bits, the same tokens, several seeds."""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from experiments.benchmarks import short_training
from nanochat.config import TINYWORLD
from nanochat.data.shards import build_text_shards
from nanochat.data.sources import cache_directory, open_sources
from nanochat.errors import UserError
from nanochat.evaluation.bpb import bits_per_byte
from nanochat.model import Transformer
from nanochat.model.fp8 import fp8_linear
from nanochat.planning.hardware import detect_hardware
from nanochat.planning.resolve import Request, resolve
from nanochat.tokenizer import Tokenizer
from nanochat.training.trainee import build_trainee, prepare_process
from nanochat.workers import Workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default=TINYWORLD, help="tinyworld, or a path to text")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="on", help="of the fast step")
    parser.add_argument("--fp8", action="store_true", help="train with products in fp8 too, as a GPU rounds them; slow")


def run(args: argparse.Namespace) -> int:
    """Print val_bpb and speed of each training, and the differences beside what seeds alone make."""
    if args.seeds < 2 or args.steps < 10:
        raise UserError("--seeds must be at least 2 and --steps at least 10", "leave them out")
    prepare_process()
    hardware = detect_hardware()
    fast = resolve(
        Request(data=args.data, depth=args.depth, total_batch_size=args.batch_tokens, stages=("tokenizer", "base"),
                compile=args.compile),
        hardware, compiler=shutil.which("g++")).config  # fmt: skip
    base = replace(fast.base, num_iterations=args.steps, eval_every=args.steps, checkpoint_every=args.steps)
    fast = replace(fast, base=base)
    plain = replace(fast, compute_dtype="float32", attention="sdpa", compile=False)
    if args.fp8:
        _check_fp8(getattr(torch, fast.compute_dtype))
    print(hardware.describe())
    print(f"depth {args.depth}, {args.steps} steps of {args.batch_tokens} tokens of {args.data}")
    sources = open_sources(args.data, cache_directory())
    tokenizer = Tokenizer.train(sources.tokenizer_texts(20_000_000), fast.tokenizer.vocab_size)
    sizes, row_tokens = torch.from_numpy(tokenizer.token_bytes()).long(), fast.model.max_seq_len
    split = ("all", "all") if sources.base_val else ("train", "val")
    kinds = {"plain": plain, "fast": fast} | ({"fp8": fast} if args.fp8 else {})
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as scratch:
        train, val = (
            build_text_shards(files, tokenizer, Path(scratch) / "shards", split=part, one_in=sources.one_in,
                              row_tokens=row_tokens, packing=base.packing)
            for files, part in ((sources.base_train, split[0]), (sources.base_val or sources.base_train, split[1]))
        )  # fmt: skip
        for seed in range(args.seeds):
            for name, config in kinds.items():
                seeded = replace(config, seed=seed)
                trainee = build_trainee(seeded, Workers(), tokenizer.bos_id)
                if name == "fp8":  # which a run is refused where it is not faster
                    for block in trainee.model.blocks:
                        block.fp8 = True
                result = short_training.train(seeded, trainee, train, Path(scratch))
                # All are judged in float32.
                exact = Transformer(config.model, attention="sdpa", seed=None, bos_id=tokenizer.bos_id)
                exact.load_state_dict(trainee.model.state_dict())
                bpb = bits_per_byte(exact, val, sizes, max_tokens=200_000, rows_per_batch=8, workers=Workers())
                found[name].append(bpb)
                print(f"seed {seed}  {name:5}  {config.compute_dtype}, {config.attention}, "
                      f"{'compiled' if config.compile else 'not compiled'}  val_bpb {bpb:.4f}  "
                      f"{result.tokens_per_second:,.0f} tok/s", flush=True)  # fmt: skip
    _tell("fast", found["fast"], "plain", found["plain"])
    if args.fp8:
        _tell("fp8", found["fp8"], "fast", found["fast"])
    return 0


def _check_fp8(dtype: torch.dtype) -> None:
    try:
        fp8_linear(*torch.ones(2, 16, 16, dtype=dtype, requires_grad=True)).sum().backward()
    except (RuntimeError, ValueError) as error:
        hint = "PyTorch 2.13 has them on CPUs"
        raise UserError(f"PyTorch {torch.__version__} has no products in fp8 here: {error}", hint) from None


def _tell(name: str, losses: list[float], beside: str, others: list[float]) -> None:
    differences = [a - b for a, b in zip(losses, others, strict=True)]
    error = stdev(differences) / len(losses) ** 0.5
    print(f"{name} - {beside}: {mean(differences):+.4f} ± {error:.4f} (standard error); "
          f"seeds alone: ± {stdev(others):.4f} (standard deviation)")  # fmt: skip
