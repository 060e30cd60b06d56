"""What going through a text again and again does: val_bpb by depth, unique tokens and epochs, a training each."""

import argparse
import shutil
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks import short_training
from nanochat.config import RunConfig
from nanochat.data.shards import build_text_shards
from nanochat.data.sources import Sources, cache_directory, open_sources
from nanochat.errors import UserError
from nanochat.evaluation.bpb import bits_per_byte
from nanochat.files import write_json
from nanochat.model import Transformer, count_parameters
from nanochat.planning.hardware import Hardware, detect_hardware
from nanochat.planning.resolve import Request, resolve
from nanochat.run import read_json
from nanochat.search.law import NAMES, Points, fit, predict
from nanochat.search.priors import SMALL_TEXT
from nanochat.tokenizer import Tokenizer
from nanochat.training.trainee import build_trainee, prepare_process
from nanochat.workers import Workers

NEAR = 0.3  # val_bpb above the best of as many unique tokens
FEWEST_STEPS, FEWEST_ROWS = 40, 12
GRID_NAMES = ("usable", "by_size", "by_data", "by_repeats")
GRID = ((6.0, 12.0, 25.0, np.inf), (0.1, 0.2, 0.3, 0.4), (0.4, 0.6, 0.8), (0.9, 1.05, 1.2, 1.35))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="a path to text")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--unique", type=int, nargs="+", default=[45_000, 180_000, 720_000], help="tokens, at most")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--most-tokens", type=int, default=4_000_000, help="of a training; longer ones are left out")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="on")
    parser.add_argument("--threads", type=int, help="of each matrix product (default: every core)")
    parser.add_argument("--out", type=Path, default=Path("epochs.json"), help="rows; those in it are not done again")


def run(args: argparse.Namespace) -> int:
    """Print a row for each training: parameters as the law counts them, unique tokens, tokens, batch, val_bpb."""
    if min(*args.depths, *args.unique, *args.epochs, args.batch_tokens) < 1:
        raise UserError("depths, tokens and epochs must be positive", "leave them out")
    if args.threads:
        torch.set_num_threads(args.threads)
    prepare_process()
    hardware, sources = detect_hardware(), open_sources(args.data, cache_directory())
    print(hardware.describe())
    done: dict[str, dict] = read_json(args.out) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        asked = Request(data=args.data, total_batch_size=args.batch_tokens, seed=args.seed,
                        compile=args.compile, stages=("tokenizer", "base"))  # fmt: skip
        tokenizer = Tokenizer.train(sources.tokenizer_texts(20_000_000), _config(asked, hardware).tokenizer.vocab_size)
        for unique, epochs, depth in product(args.unique, args.epochs, args.depths):
            name = (f"{Path(args.data).absolute()}, depth {depth}, {unique} tokens, {epochs} epochs, batch "
                    f"{args.batch_tokens}, seed {args.seed}")  # fmt: skip
            if name not in done and unique * epochs <= args.most_tokens:
                config = _config(replace(asked, depth=depth), hardware)
                done[name] = _train(config, sources, tokenizer, unique, epochs, Path(scratch))
                write_json(args.out, done)
            if row := done.get(name):
                print(f"{name}: {row['parameters'] / 1e6:.2f}M parameters, {row['unique_tokens']:,} unique tokens, "
                      f"{row['tokens']:,} in all, val_bpb {row['val_bpb']:.4f}, of what was trained on "
                      f"{row['train_bpb']:.4f}, {row['seconds']:.0f} s", flush=True)  # fmt: skip
    _tell_fit(list(done.values()))
    return 0


def _tell_fit(rows: list[dict]) -> None:
    """What the law makes of those that a search would look at: not of far too many tokens, nor of far too few steps.

    How good a text of some size is at all is left to it, as a search has one text: only differences are judged.
    """
    best: dict[int, float] = {}
    for row in rows:
        best[row["unique_tokens"]] = min(row["val_bpb"], best.get(row["unique_tokens"], np.inf))
    rows = [row for row in rows if row["val_bpb"] < best[row["unique_tokens"]] + NEAR
            and row["tokens"] >= FEWEST_STEPS * row["batch"]]  # fmt: skip
    if len(rows) < FEWEST_ROWS:
        return
    points = Points.of([(row["parameters"], row["tokens"], row["batch"], row["lr_multiplier"]) for row in rows])
    unique, seen = (np.array([row[name] for row in rows], dtype=float) for name in ("unique_tokens", "val_bpb"))
    found = []
    for numbers in product(*GRID):
        prior = replace(SMALL_TEXT, **dict(zip(GRID_NAMES, numbers, strict=True)))
        levels = np.zeros(len(rows))
        for _ in range(4):  # in turn the law and the texts' levels
            theta = fit(prior, points, seen - levels, unique).theta
            left = seen - predict(theta, points, prior, unique)
            levels = np.array([left[unique == each].mean() for each in unique])
        found.append((float((left - levels).std()), *numbers, float(theta[NAMES.index("ln_P")])))
    print(f"\nThe law of {len(rows)} of them, what it leaves unexplained (standard deviation) with the best figures:")
    for off, *numbers in sorted(found)[:5]:
        told = ", ".join(f"{name} {value:.3g}" for name, value in zip((*GRID_NAMES, "ln_P"), numbers, strict=True))
        print(f"{off:.4f} val_bpb: {told}")


def _config(request: Request, hardware: Hardware) -> RunConfig:
    return resolve(request, hardware, compiler=shutil.which("g++")).config


def _train(
    config: RunConfig, sources: Sources, tokenizer: Tokenizer, unique: int, epochs: int, scratch: Path
) -> dict[str, float]:
    """Train on the first `unique` tokens of the text, and look at its validation documents."""
    steps = max(unique * epochs // config.base.total_batch_size, 1)
    config = replace(
        config, base=replace(config.base, num_iterations=steps, eval_every=steps, checkpoint_every=steps)
    )
    train, val = (
        build_text_shards(sources.base_train, tokenizer, scratch / "shards", split=split, one_in=sources.one_in,
                          row_tokens=config.model.max_seq_len, packing=config.base.packing, max_tokens=most)
        for split, most in (("train", unique), ("val", None))
    )  # fmt: skip
    trainee = build_trainee(config, Workers(), tokenizer.bos_id, unique_tokens=train.num_tokens)
    result = short_training.train(config, trainee, train, scratch)
    exact = Transformer(config.model, attention="sdpa", seed=None, bos_id=tokenizer.bos_id)  # judged in float32
    exact.load_state_dict(trainee.model.state_dict())
    sizes = torch.from_numpy(tokenizer.token_bytes()).long()
    of_train, of_val = (
        bits_per_byte(exact, rows, sizes, max_tokens=100_000, rows_per_batch=8, workers=Workers())
        for rows in (train, val)
    )
    return {
        "depth": config.model.depth,
        "parameters": count_parameters(config.model).scaling,
        "unique_tokens": train.num_tokens,
        "tokens": result.tokens,
        "batch": config.base.total_batch_size,
        "lr_multiplier": config.base.lr_multiplier,
        "val_bpb": of_val,
        "train_bpb": of_train,
        "seconds": result.train_s,
    }
