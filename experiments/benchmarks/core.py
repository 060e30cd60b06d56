"""CORE's examples together, what their options share read once, beside each option alone from start to end."""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from nanochat.data.sources import cache_directory, open_sources
from nanochat.evaluation.core import answer_task
from nanochat.inference.engine import Engine
from nanochat.model import ModelConfig, Transformer
from nanochat.tasks.core import CoreTask, Example, find_core_tasks, prompts, read_core_task
from nanochat.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--core", type=Path, required=True, help="folder with tasks of CORE")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--max-seq-len", type=int, default=1024)
    parser.add_argument("--examples", type=int, default=32, help="of each task")


def run(options: argparse.Namespace) -> int:
    """Print for each task the time of both ways and whether their answers are the same."""
    texts = open_sources("tinyworld", cache_directory()).tokenizer_texts(5_000_000)
    tokenizer = Tokenizer.train(texts, 4096)
    config = ModelConfig.from_depth(options.depth, 4096, options.max_seq_len)
    model = Transformer(config)
    with torch.no_grad():  # as it begins, a model writes nothing into its stream
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0 if parameter.ndim == 1 else parameter.size(-1) ** -0.5)
    engine = Engine(model, tokenizer)
    print(f"depth {config.depth}, context {config.max_seq_len}, {options.examples} examples of each task, fp32, "
          f"{torch.get_num_threads()} threads, random weights")  # fmt: skip
    together_s = alone_s = 0.0
    different = 0
    for task, path in find_core_tasks(options.core).items():
        examples = read_core_task(task, path)
        indices = range(min(options.examples, len(examples)))
        began = time.perf_counter()
        fast = answer_task(engine, task, examples, indices)
        between = time.perf_counter()
        slow = {index: answer_alone(engine, task, examples, index) for index in indices}
        ended = time.perf_counter()
        differ = sum(fast[index] != slow[index] for index in indices)
        together_s, alone_s, different = together_s + between - began, alone_s + ended - between, different + differ
        print(f"{task.label:28s} {task.shots:2d} shots  together {between - began:6.2f} s  "
              f"alone {ended - between:6.2f} s  {(ended - between) / (between - began):5.1f} times as long  "
              f"{differ} answers differ", flush=True)  # fmt: skip
    print(f"all: {together_s:.1f} s beside {alone_s:.1f} s, {alone_s / together_s:.1f} times as long; "
          f"{different} answers differ")  # fmt: skip
    return int(different > 0)


@torch.inference_mode()
def answer_alone(engine: Engine, task: CoreTask, examples: list[Example], index: int) -> bool:
    """Whether the model answers an example: an option at a time, without batches, cache or anything shared."""
    tokenizer, context = engine.tokenizer, engine.model.config.max_seq_len
    texts = list(prompts(task, examples, index))
    rows = [[tokenizer.bos_id, *tokenizer.encode(whole)] for _, whole in texts]
    losses, exact = [], True
    for (before, _), row in zip(texts, rows, strict=True):
        if task.kind == "multiple_choice":
            start = _common(rows)
        elif task.kind == "schema":
            start = len(row) - _common([each[::-1] for each in rows])
        else:
            start = _common([[tokenizer.bos_id, *tokenizer.encode(before.strip())], row])
        start = min(max(start, 1), len(row) - 1)
        cut = max(len(row) - context, 0)
        ids, start = torch.tensor([row[cut:]], device=engine.device), max(start - cut, 1)
        logits = engine.model(ids)[0, start - 1 : -1, : tokenizer.vocab_size]
        losses.append(F.cross_entropy(logits, ids[0, start:]).item())
        exact = bool((logits.argmax(-1) == ids[0, start:]).all())
    return exact if task.kind == "language_modeling" else losses.index(min(losses)) == examples[index].gold


def _common(rows: list[list[int]]) -> int:
    count = 0
    while all(len(row) > count and row[count] == rows[0][count] for row in rows):
        count += 1
    return count
