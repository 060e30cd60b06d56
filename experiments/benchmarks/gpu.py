"""All there is to know of a GPU, unattended, in about eight minutes, without Ray: kernels, steps, memory, losses."""

import argparse
import gc
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from nanochat.config import RunConfig
from nanochat.events import Event, StepDone, Validated
from nanochat.files import write_json
from nanochat.model import ModelConfig, count_parameters, train_flops_per_token
from nanochat.model.fp8 import fp8_unavailable
from nanochat.model.loss import chunk_terms, linear_cross_entropy
from nanochat.planning.estimate import modelled_memory
from nanochat.planning.hardware import DATA_SHEETS, Hardware, choose_dtype, detect_hardware, peak_memory_bytes
from nanochat.planning.kernels import MOST_ROWS, attention_ms
from nanochat.planning.resolve import Request, resolve
from nanochat.run import create
from nanochat.training.loop import Interrupted, is_out_of_memory
from nanochat.training.pipeline import run_pipeline
from nanochat.training.trainee import build_trainee, prepare_process
from nanochat.workers import Workers

STEP_TOKENS = 524_288  # what the rates of training are for: as many pieces, then one update
PIECES = 8  # of those in a row that are timed
SEARCHED_S = 75.0  # for the rows of one depth
PRODUCTS = ((65_536, 768, 3072), (65_536, 1280, 5120), (16_384, 4096, 4096))  # (tokens, in, out) of fp8 beside bfloat16

Part = Callable[[argparse.Namespace, Hardware], Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="written after each part")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no further part begins")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 20])
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 16, 64, 8], help="of a forward pass")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--seconds", type=float, default=60.0, help="of real training")
    parser.add_argument("--compile", choices=("on", "off"), default="on")


def run(options: argparse.Namespace) -> int:
    """Measure part by part; what fails is noted, and the next part goes on."""
    prepare_process()  # as training is
    began, hardware = time.monotonic(), detect_hardware()
    print(hardware.describe(), flush=True)
    if hardware.device_type != "cuda":
        print("There is no GPU here: these are figures of the CPU, to try the benchmark.")
    found: dict[str, Any] = {"hardware": _about(hardware), "seconds": {}}
    failed = False
    for name in options.parts:
        start = time.monotonic()
        try:
            late = start - began > 60 * options.minutes
            found[name] = {"left out": "the time was up"} if late else PARTS[name](options, hardware)
        except Exception as error:  # one part that fails on a machine nobody has seen must not cost the others
            found[name], failed = {"error": f"{type(error).__name__}: {error}"}, True
        _free()
        found["seconds"][name] = round(time.monotonic() - start, 1)
        write_json(options.out, found)
        print(f"\n{name}, {found['seconds'][name]} s", flush=True)
        _show(found[name])
    print(f"\nEverything is in {options.out}, after {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _about(hardware: Hardware) -> dict[str, Any]:
    about: dict[str, Any] = {
        "name": hardware.name,
        "memory_bytes": hardware.memory_bytes,
        "peak_flops": hardware.peak_flops,
        "data_sheet_flops": _data_sheet_flops(hardware),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if hardware.device_type == "cuda":
        about |= {"capability": list(torch.cuda.get_device_capability()), "cuda": torch.version.cuda}
    return about


def _data_sheet_flops(hardware: Hardware) -> float | None:
    """Of bfloat16 products, dense; None: of no GPU known here."""
    name = hardware.name.lower()
    if set(name.split()) & {"pcie", "nvl", "laptop", "ti", "d", "mig"}:  # other chips and boards of the same name
        return None
    known = (sheet for key, sheet in DATA_SHEETS.items() if all(word in name for word in key.split("-")))
    return next((sheet.peak_flops["bfloat16"] for sheet in known), None)


def _shares(rate: float, model: ModelConfig, dtype: str, hardware: Hardware) -> dict[str, float]:
    """Model FLOPs of so many tokens a second, over those of the largest products here and of the data sheet."""
    flops, sheet = rate * train_flops_per_token(model, model.max_seq_len), _data_sheet_flops(hardware)
    shares = {"share_of_measured_peak": flops / hardware.peak_flops[dtype]}
    return shares | ({"mfu": flops / sheet} if sheet else {})


def _show(found: Any, indent: str = "  ") -> None:
    """Rows of figures, one a line."""
    if isinstance(found, dict) and any(isinstance(part, dict | list) for part in found.values()):
        for name, part in found.items():
            print(f"{indent}{name}")
            _show(part, indent + "  ")
    elif isinstance(found, list):
        for part in found:
            _show(part, indent)
    else:
        figures = found.items() if isinstance(found, dict) else [("", found)]
        print(indent + "  ".join(f"{name} {_figure(value)}".strip() for name, value in figures), flush=True)


def _figure(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


# --- memory --------------------------------------------------------------------------------------------------------


def bandwidth(options: argparse.Namespace, hardware: Hardware) -> dict[str, float]:
    """Bytes a second of copying within the device, the yardstick of all that does not multiply."""
    size = 1 << (30 if hardware.device_type == "cuda" else 26)
    source = torch.zeros(size // 4, device=hardware.device_type)
    target = torch.empty_like(source)
    seconds = _median_s(lambda: target.copy_(source), hardware, 10)
    return {"bytes_per_s": 2 * size / seconds}


# --- attention -----------------------------------------------------------------------------------------------------


def attention(options: argparse.Namespace, hardware: Hardware) -> dict[str, Any]:
    """Milliseconds of each backend for all layers of a model, with full attention and with windows in half of them."""
    found, rows = {}, min(MOST_ROWS, options.rows[0])
    for depth in options.depths:
        for pattern in ("L", "SL"):
            model = ModelConfig.from_depth(depth, options.vocab_size, options.seq_len)
            dtype, device = getattr(torch, choose_dtype(hardware)[0]), torch.device(hardware.device_type)
            found[f"depth {depth}, windows {pattern}"] = attention_ms(replace(model, window_pattern=pattern), rows,
                                                                      dtype, device)  # fmt: skip
            _free()
    return found


# --- training steps ------------------------------------------------------------------------------------------------


def steps(options: argparse.Namespace, hardware: Hardware) -> dict[str, Any]:
    """Tokens a second, share of the matmul peak and peak memory, by depth and rows of a forward pass."""
    found = {}
    for depth in options.depths:
        config = _config(options, depth, hardware)
        _free()  # of what choosing the kernel has held
        found[f"depth {depth}"] = _steps_of(config, hardware, options.rows)
    return found


def demo(options: argparse.Namespace, hardware: Hardware) -> dict[str, Any]:
    """What mode demo's base stage takes here, by the step of its model: in bfloat16 and, where there is fp8, in it."""
    config = resolve(Request(compile=options.compile), hardware, compiler="g++").config
    rows = min(config.base.device_batch_size, max(options.rows))
    found = {}
    for fp8 in (False,) if fp8_unavailable(torch.device(hardware.device_type)) else (False, True):
        _free()
        step = _step(replace(config, fp8=fp8), rows, hardware)
        tokens = config.base.num_iterations * config.base.total_batch_size
        found["fp8" if fp8 else "bf16"] = {"base_minutes": tokens / step["tokens_per_second"] / 60, **step}
    return found


def fp8_steps(options: argparse.Namespace, hardware: Hardware) -> dict[str, Any]:
    """The same in fp8 beside bfloat16, with 32 rows or the most there are to be tried."""
    if why := fp8_unavailable(torch.device(hardware.device_type)):
        return {"error": why}
    config = _config(options, options.depths[-1], hardware)
    rows = min(32, max(options.rows))
    each = [rows, rows // 2, rows // 4]  # of which the first that fits tells enough
    return {name: _steps_of(replace(config, fp8=fp8), hardware, each, most=1)
            for name, fp8 in (("bf16", False), ("fp8", True))}  # fmt: skip


def _steps_of(config: RunConfig, hardware: Hardware, each: Sequence[int], most: int = 100) -> list[dict[str, Any]]:
    """By rows of a forward pass, as far as memory and time reach, at most so many that fit."""
    began, found, too_many = time.monotonic(), list[dict[str, Any]](), float("inf")
    for rows in each:
        fitting = sum("error" not in one for one in found)
        if rows < 1 or rows >= too_many or fitting == most or (fitting and time.monotonic() - began > SEARCHED_S):
            continue
        try:
            found.append(_step(config, rows, hardware))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            found.append({"rows": rows, "error": "out of memory"})
            too_many = rows
        finally:
            _free()
    return found


def _step(config: RunConfig, rows: int, hardware: Hardware) -> dict[str, Any]:
    """One shape: a model of its own, compiled unless the compiler has kept it from another run. A step is as many
    pieces of so many rows as make its tokens, and one update, for which the host waits as it does in training."""
    model, device = config.model, hardware.device_type
    trainee = build_trainee(config, Workers(device=torch.device(device)))
    _fill_zeros(trainee.model)
    ids, targets = (_zipf_ids(model.vocab_size, (rows, model.max_seq_len), device) for _ in range(2))
    pieces = max(STEP_TOKENS // ids.numel(), 1)
    timed = max(min(pieces, PIECES), 2)

    def step(pieces: int) -> None:
        for _ in range(pieces):
            (trainee.model.loss_sum(ids, targets) / ids.numel()).backward()
        trainee.optimizer.reduce_gradients().item()
        trainee.optimizer.step(0.0, 0.95)

    first_s = _median_s(lambda: step(1), hardware, 1, warm_up=0)
    one_s = _median_s(lambda: step(1), hardware, 2, warm_up=1)
    piece_s = (_median_s(lambda: step(timed), hardware, 2, warm_up=0) - one_s) / (timed - 1)
    step_s = one_s + (pieces - 1) * piece_s
    rate = pieces * ids.numel() / step_s
    return {
        "rows": rows,
        "attention": config.attention,
        "tokens_per_second": rate,
        **_shares(rate, model, config.compute_dtype, hardware),
        "step_s": step_s,
        "piece_ms": 1e3 * piece_s,
        "update_ms": 1e3 * (one_s - piece_s),
        "first_step_s": first_s,
        "peak_memory_gb": peak_memory_bytes(device) / 1e9,
        "modelled_memory_gb": modelled_memory(config, rows, device).total / 1e9,
        "parameters": count_parameters(model).total,
    }


def _zipf_ids(vocab_size: int, shape: tuple[int, int], device: str) -> Tensor:
    """Token ids of which the n-th most frequent is 1/n times as frequent as the first, about as in text."""
    return (vocab_size ** torch.rand(shape, device=device, dtype=torch.float64)).long() - 1


def _fill_zeros(model: torch.nn.Module) -> None:
    """Weights for matrices that begin as zeros: products with zeros draw less power, and a GPU then runs faster than
    it does in training (LOG.md, 2026-11-27)."""
    with torch.no_grad():
        for matrix in model.parameters():
            if matrix.ndim > 1 and not matrix.any():
                matrix.normal_(0, matrix.shape[-1] ** -0.5)


# --- the loss ------------------------------------------------------------------------------------------------------


def loss(options: argparse.Namespace, hardware: Hardware) -> dict[str, Any]:
    """The chunked loss beside the plain one: milliseconds forward and backward, and the memory on top."""
    config = ModelConfig.from_depth(options.depths[0], options.vocab_size, options.seq_len)
    dtype, _ = choose_dtype(hardware)
    tokens, device = 8 * config.max_seq_len, hardware.device_type
    hidden = torch.randn(tokens, config.width, device=device, dtype=getattr(torch, dtype)).requires_grad_()
    head = torch.randn(config.vocab_size, config.width, device=device).requires_grad_()
    targets = torch.randint(config.vocab_size, (tokens,), device=device)
    cap = config.logit_softcap

    def plain() -> Tensor:
        logits = cap * torch.tanh((hidden @ head.to(hidden.dtype).T).float() / cap)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

    terms = torch.compile(chunk_terms, dynamic=False) if options.compile == "on" and device == "cuda" else chunk_terms
    ways = {"plain": plain, "chunked": lambda: linear_cross_entropy(hidden, head, targets, cap, terms)}
    return {name: _loss_of(way, (hidden, head), hardware) for name, way in ways.items()}


def _loss_of(way: Callable[[], Tensor], inputs: tuple[Tensor, ...], hardware: Hardware) -> dict[str, float]:
    _free()
    before = torch.cuda.memory_allocated() if hardware.device_type == "cuda" else 0
    seconds = _median_s(lambda: torch.autograd.grad(way(), inputs), hardware, 5)
    more = torch.cuda.max_memory_allocated() - before if hardware.device_type == "cuda" else 0
    return {"ms": 1e3 * seconds, "memory_gb": more / 1e9, "loss": float(way().detach())}


# --- fp8 -----------------------------------------------------------------------------------------------------------


def fp8(options: argparse.Namespace, hardware: Hardware) -> list[dict[str, Any]]:
    """Products in fp8 with a scale a row beside bfloat16 ones: what a model could gain at the most."""
    if why := fp8_unavailable(torch.device(hardware.device_type)):
        return [{"error": why}]
    return [_fp8_of(*shape, hardware) for shape in PRODUCTS]


def _fp8_of(tokens: int, width: int, out: int, hardware: Hardware) -> dict[str, Any]:
    left, right = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ((tokens, width), (out, width)))
    left8, right8 = (part.to(torch.float8_e4m3fn) for part in (left, right))
    scales = torch.ones(tokens, 1, device="cuda"), torch.ones(1, out, device="cuda")
    seconds = {
        "bf16": _median_s(lambda: left @ right.T, hardware, 20),
        "fp8": _median_s(lambda: torch._scaled_mm(left8, right8.T, *scales, out_dtype=torch.bfloat16), hardware, 20),
        "cast": _median_s(lambda: left.to(torch.float8_e4m3fn), hardware, 20),
    }
    seconds["fp8_with_cast"] = seconds["fp8"] + seconds.pop("cast")
    flops = 2 * tokens * width * out
    return {"shape": f"{tokens}x{width}x{out}", **{f"{name}_tflops": flops / s / 1e12 for name, s in seconds.items()}}


# --- real training -------------------------------------------------------------------------------------------------


def training(options: argparse.Namespace, hardware: Hardware) -> dict[str, Any]:
    """The base stage on TinyWorld for some seconds after its first step, by the pipeline that runs use."""
    config, heard = _config(options, options.depths[0], hardware), list[Event]()
    rows = max(STEP_TOKENS // 8 // options.seq_len, 4)  # 65,536 tokens a step: some hundred steps a minute
    base = replace(config.base, total_batch_size=rows * options.seq_len, device_batch_size=min(rows, options.rows[0]),
                   eval_every=100, eval_tokens=16 * options.seq_len)  # fmt: skip
    end_s = float("inf")

    def emit(event: Event) -> None:
        nonlocal end_s
        heard.append(event)
        if isinstance(event, StepDone) and event.step == 1:
            end_s = time.monotonic() + options.seconds

    with tempfile.TemporaryDirectory() as directory:
        run = create(Path(directory) / "run", replace(config, base=base, keep_checkpoints=0),
                     {"hardware": {"name": hardware.name}})  # fmt: skip
        with suppress(Interrupted):
            run_pipeline(run, Workers(device=torch.device(hardware.device_type)), emit,
                         lambda: time.monotonic() > end_s)  # fmt: skip
    done = [event for event in heard if isinstance(event, StepDone)]
    rate = median(event.tokens_per_second for event in done[1:])
    last = done[-max(len(done) // 10, 1) :]
    return {
        "steps": len(done),
        "tokens_per_step": base.total_batch_size,
        "rows": base.device_batch_size,
        "tokens_per_second": rate,
        **_shares(rate, config.model, config.compute_dtype, hardware),
        "first_step_s": done[0].seconds,
        "loss_first": done[0].loss,
        "loss_last": median(event.loss for event in last),
        "val_bpb": [event.val_bpb for event in heard if isinstance(event, Validated)],
        "peak_memory_gb": peak_memory_bytes(hardware.device_type) / 1e9,
    }


# --- shared --------------------------------------------------------------------------------------------------------


def _config(options: argparse.Namespace, depth: int, hardware: Hardware) -> RunConfig:
    """What run_stage.py would train at this depth here."""
    settings = (f"model.vocab_size={options.vocab_size}", f"tokenizer.vocab_size={options.vocab_size}")
    request = Request(stages=("tokenizer", "base"), depth=depth, max_seq_len=options.seq_len, compile=options.compile,
                      assignments=settings)  # fmt: skip
    return resolve(request, hardware, compiler="g++").config


def _free() -> None:
    """Forget what the last measurement held."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _median_s(run: Callable[[], object], hardware: Hardware, repeats: int, warm_up: int = 2) -> float:
    """Seconds of a call."""
    times = []
    for _ in range(warm_up + repeats):
        start = _now(hardware)
        run()
        times.append(_now(hardware) - start)
    return median(times[warm_up:])


def _now(hardware: Hardware) -> float:
    if hardware.device_type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


PARTS: dict[str, Part] = {"bandwidth": bandwidth, "attention": attention, "steps": steps, "training": training,
                          "demo": demo, "loss": loss, "fp8": fp8, "fp8_steps": fp8_steps}  # fmt: skip
