"""Which way of making rows out of documents, and of attending in them, trains best: in the same steps, or seconds."""

import argparse
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from experiments.benchmarks import short_training
from nanochat.config import PACKINGS, TINYWORLD
from nanochat.data.shards import build_text_shards
from nanochat.data.sources import cache_directory, open_sources
from nanochat.evaluation.bpb import bits_per_byte
from nanochat.planning.hardware import detect_hardware
from nanochat.planning.resolve import Request, resolve
from nanochat.tokenizer import Tokenizer
from nanochat.training.trainee import build_trainee
from nanochat.workers import Workers

MANY = 10**6  # steps: the clock ends them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default=TINYWORLD, help="tinyworld, or a path to text")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, help="of training, in place of a number of steps")
    parser.add_argument("--max-seq-len", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=2)


def run(args: argparse.Namespace) -> int:
    """Train the demo's model with each packing, across documents and within them; print val_bpb beside the speed."""
    torch.use_deterministic_algorithms(True)
    config = resolve(
        Request(data=args.data, max_seq_len=args.max_seq_len, total_batch_size=args.batch_tokens),
        detect_hardware(),
        compiler=None,
    ).config
    sources = open_sources(args.data, cache_directory())
    tokenizer = Tokenizer.train(sources.tokenizer_texts(20_000_000), config.tokenizer.vocab_size)
    sizes = torch.from_numpy(tokenizer.token_bytes()).long()
    split = ("all", "all") if sources.base_val else ("train", "val")
    length = f"{args.seconds:g} s in steps" if args.seconds else f"{args.steps} steps"
    print(f"{args.data}: {length} of {args.batch_tokens} tokens, rows of {args.max_seq_len}")
    with tempfile.TemporaryDirectory() as scratch:

        def build(files: tuple[Path, ...], part: str, packing: str):
            return build_text_shards(
                files, tokenizer, Path(scratch) / "shards", split=part, one_in=sources.one_in,
                row_tokens=args.max_seq_len, packing=packing,
            )  # fmt: skip

        val = {packing: build(sources.base_val or sources.base_train, split[1], packing) for packing in PACKINGS}
        steps = MANY if args.seconds else args.steps
        stage = replace(config.base, num_iterations=steps, eval_every=steps, checkpoint_every=steps,
                        deadline_s=args.seconds)  # fmt: skip
        for packing in PACKINGS:
            train = build(sources.base_train, split[0], packing)
            for seed, within in product(range(args.seeds), (False, True)):
                model = replace(config.model, document_attention=within)
                changed = replace(config, seed=seed, base=stage, model=model)
                trainee = build_trainee(changed, Workers(), tokenizer.bos_id)

                def bpb(rows: str, model=trainee.model) -> float:
                    return bits_per_byte(
                        model, val[rows], sizes, max_tokens=40_960, rows_per_batch=8, workers=Workers()
                    )

                result = short_training.train(changed, trainee, train, Path(scratch))
                attending = "within" if within else "across"
                print(
                    f"{packing:8s} {attending} documents, seed {seed}  "
                    f"padded {train.padded_fraction:.2%}  "
                    f"{result.tokens:,} tokens, {result.tokens_per_second:,.0f} tok/s  "
                    f"val_bpb {bpb('stream'):.4f} on stream rows, {bpb('best_fit'):.4f} on best-fit rows",
                    flush=True,
                )
    return 0
