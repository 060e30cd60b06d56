"""Steps of base training on random tokens: tokens a second, beside the matmul peak of the same process."""

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from experiments.benchmarks import public_parts
from nanochat.errors import UserError
from nanochat.model import ModelConfig, Transformer, train_flops_per_token
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.scaling import hyperparameters
from nanochat.planning.hardware import choose_dtype, detect_hardware, measure_peaks
from nanochat.planning.kernels import choose_attention
from nanochat.training.trainee import prepare_process

WARM_UP_STEPS = 3  # after the first, which compiles


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of one optimizer step."""

    forward: float
    backward: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.optimizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of a step, in one piece")
    parser.add_argument("--steps", type=int, default=40, help="measured, after the first and three to warm up")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: where g++ is found")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: what is faster here")
    parser.add_argument("--public", action="store_true", help="the same step from public parts too, on CPU")


def run(options: argparse.Namespace) -> int:
    """Print what a step costs, part by part, and what share of the matmul peak that is."""
    _check(options)
    hardware = detect_hardware()
    device = torch.device(hardware.device_type)
    dtype, why_dtype = (options.dtype, "as asked for") if options.dtype else choose_dtype(hardware)
    config = ModelConfig.from_depth(options.depth, options.vocab_size, options.seq_len)
    rows = max(options.batch_tokens // options.seq_len, 1)
    attention, why_attention = choose_attention(hardware, config, dtype, rows)
    compiled = options.compile == "on" or (options.compile == "auto" and shutil.which("g++") is not None)
    print(hardware.describe())
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"dtype {dtype}: {why_dtype}")
    print(f"attention {attention}: {why_attention}")
    print(f"compiled: {'yes' if compiled else 'no'}")

    prepare_process()
    model = Transformer(config, compute_dtype=getattr(torch, dtype), attention=attention).to(device)
    if compiled:
        model.compile_training()
    peak = hyperparameters(config, options.batch_tokens, options.batch_tokens * 1000)
    compiler = partial(torch.compile, fullgraph=True, dynamic=False) if compiled else None
    optimizer = MuonAdamW(model, peak, compiler=compiler,
                          compute_dtype=getattr(torch, dtype))
    first, times = measure(_stepper(model, optimizer, options, device), options.steps)
    peaks_after = measure_peaks(hardware.device_type)
    report(config, options, dtype, first, times, (hardware.peak_flops[dtype], peaks_after[dtype]))
    if options.public:
        for each in ("float32", "bfloat16"):
            rows = options.batch_tokens // options.seq_len
            ms = public_parts.step_ms(config, rows, each, options.steps, compiled=compiled)
            ratio = ms / 1e3 / median(t.total for t in times)
            print(f"public parts in {each}: {ms:.0f} ms, {1e3 * options.batch_tokens / ms:,.0f} tok/s; "
                  f"here {ratio:.2f} times as many")
    return 0


def _check(options: argparse.Namespace) -> None:
    problems = [f"--{name.replace('_', '-')} must be at least {least}, not {getattr(options, name)}"
                for name, least in (("depth", 1), ("vocab_size", 2), ("seq_len", 2), ("steps", 1))
                if getattr(options, name) < least]
    if not problems and (options.batch_tokens < options.seq_len or options.batch_tokens % options.seq_len):
        problems.append(f"--batch-tokens {options.batch_tokens} is not a multiple of --seq-len {options.seq_len}")
    if problems:
        raise UserError("; ".join(problems), "the defaults are 2,048 tokens in rows of 256")
    if options.public:
        public_parts.check()
    if options.compile == "on" and shutil.which("g++") is None:
        raise UserError("torch.compile needs a C++ compiler and there is no g++ here", "install g++, or --compile off")


def _stepper(model: Transformer, optimizer: MuonAdamW, options: argparse.Namespace,
             device: torch.device) -> Callable[[], StepTime]:
    """One optimizer step on random tokens, timed."""
    shape = (options.batch_tokens // options.seq_len, options.seq_len)
    generator = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(options.vocab_size, shape, generator=generator).to(device) for _ in range(2))

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step() -> StepTime:
        start = now()
        loss = model.loss_sum(ids, targets) / options.batch_tokens
        forward = now()
        loss.backward()
        backward = now()
        optimizer.step(1.0, 0.95)
        return StepTime(forward - start, backward - forward, now() - backward)

    return step


def measure(step: Callable[[], StepTime], steps: int) -> tuple[float, list[StepTime]]:
    """Seconds of the first step, and the times of `steps` more after a few to warm up."""
    first = step().total
    for _ in range(WARM_UP_STEPS):
        step()
    return first, [step() for _ in range(steps)]


def report(config: ModelConfig, options: argparse.Namespace, dtype: str, first: float, times: list[StepTime],
           peaks: tuple[float, float]) -> None:
    """Print the figures. Model FLOP/s count forward and backward only, as MFU does; the optimizer's time counts too."""
    per_token = train_flops_per_token(config, options.seq_len)
    shape = f"{options.batch_tokens // options.seq_len}x{options.seq_len}"
    print(f"depth {config.depth}, width {config.width}, vocabulary {config.vocab_size:,}, {shape} tokens a step, "
          f"{per_token / 1e6:.1f} MFLOP a token")
    print(f"first step {first:.1f} s; then {len(times)} steps:")
    for name, choose in (("median", median), ("fastest", min)):
        parts = {part: choose(getattr(t, part) for t in times) for part in ("forward", "backward", "optimizer")}
        total = choose(t.total for t in times)
        speed = options.batch_tokens / total
        split = "  ".join(f"{part} {seconds * 1e3:.0f}" for part, seconds in parts.items())
        print(f"  {name:8s}{total * 1e3:6.0f} ms ({split})  {speed:,.0f} tok/s  "
              f"{speed * per_token / 1e9:,.0f} GFLOP/s = {speed * per_token / max(peaks):.0%} of the peak")
    before, after = (f"{peak / 1e9:,.0f}" for peak in peaks)
    print(f"matmul peak, {dtype}: {before} GFLOP/s before, {after} after; "
          f"no trainer of this model can pass {max(peaks) / per_token:,.0f} tok/s at the higher")
