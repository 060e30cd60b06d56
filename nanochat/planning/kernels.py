"""Which attention kernel a model trains on: the fastest of those that are right here, by a short measurement."""

import math
import time
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model import ModelConfig
from nanochat.model.attention import BACKENDS, Documents, attend, unavailable
from nanochat.planning.hardware import Hardware

REPEATS = 10
MOST_ROWS = 32  # more would tell nothing new
FUSED_FROM = {"bfloat16": 4096, "float32": 2048}  # tokens of a row; on a CPU, LOG.md, 2026-11-27
MOST_OFF = 0.05  # from PyTorch's own, relative: 16-bit kernels are 0.003 to 0.01 apart, a wrong mask 0.1 and more
DOCUMENT_TOKENS = 512  # where attention stays within documents


def choose_attention(hardware: Hardware, model: ModelConfig, compute_dtype: str, rows: int) -> tuple[str, str]:
    """The training backend for so many rows at a time, and the reason."""
    if hardware.device_type == "cpu":  # by a rule, so that the same command gives the same run
        whole = not model.document_attention and all(model.window(layer) is None for layer in range(model.depth))
        if whole and model.max_seq_len >= FUSED_FROM[compute_dtype]:
            return "sdpa", f"the fused CPU kernel trains faster on whole rows of {FUSED_FROM[compute_dtype]:,} and more"
        return "blocked", "plain products train faster than the fused CPU kernel on shorter rows and on parts of them"
    if not (hardware.measured and torch.cuda.is_available()):
        return "sdpa", "PyTorch's own choice; where there is a GPU, the fastest there is measured"
    return _fastest_here(model, compute_dtype, min(rows, MOST_ROWS))


@cache
def _fastest_here(model: ModelConfig, compute_dtype: str, rows: int) -> tuple[str, str]:
    chosen = fastest(attention_ms(model, rows, getattr(torch, compute_dtype), torch.device("cuda")))
    torch.cuda.empty_cache()  # for the worker that is to train
    return chosen


def fastest(measured: dict[str, float | str]) -> tuple[str, str]:
    """The backend of the least milliseconds, and what all have shown, in words."""
    times = {backend: ms for backend, ms in measured.items() if not isinstance(ms, str)}
    order = sorted(times, key=lambda backend: times[backend])
    told = [f"{backend} {times[backend]:.2f} ms" for backend in order]
    told += [f"{backend} {why}" for backend, why in measured.items() if isinstance(why, str)]
    chosen = order[0] if order else "sdpa"
    return chosen, f"all layers forward and backward, measured: {', '.join(told)}"


def attention_ms(model: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device) -> dict[str, float | str]:
    """Milliseconds that each backend takes for all layers of a model, forward and backward, `rows` rows at once; or
    why it is out of the question, which it is too where it comes to something else than PyTorch's own."""
    windows = [model.window(layer) for layer in range(model.depth)]
    expected = {window: _timed("sdpa", window, model, rows, dtype, device, repeats=1)[1] for window in set(windows)}
    found: dict[str, float | str] = {}
    for backend in BACKENDS:
        if backend == "blocked" and device.type == "cuda":
            continue  # six times as long as the others on an H200 (LOG.md, 2026-11-27), and the memory of all weights
        if why := unavailable(backend, device, dtype):
            found[backend] = why
            continue
        try:
            each, off = {}, 0.0
            for window in set(windows):
                each[window], results = _timed(backend, window, model, rows, dtype, device, REPEATS)
                off = max(off, *map(_difference, results, expected[window]))
            found[backend] = sum(each[window] for window in windows) if off < MOST_OFF else f"is off by {off:.0%}"
        except Exception as error:  # a kernel that fails on this machine is one that is not there
            found[backend] = f"fails: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:80]}"
    return found


def _difference(found: Tensor, expected: Tensor) -> float:
    """The norm of what two tensors differ by over that of the second; infinite where a number is not one."""
    off = float((found.float() - expected.float()).norm() / expected.float().norm())
    return off if math.isfinite(off) else math.inf


def _timed(backend: str, window: int | None, model: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device,
           repeats: int) -> tuple[float, tuple[Tensor, ...]]:
    """Mean milliseconds of some repetitions, after two of which the first may compile; deterministic, as training is.
    On a GPU the host runs ahead, as it does in training. And what comes out: attention, and the gradients of queries,
    keys and values."""
    shape = (rows, model.max_seq_len, model.num_heads, model.head_dim)  # (batch, time, head, head_dim), as models do
    generator = torch.Generator(device).manual_seed(0)
    parts = (F.rms_norm(torch.randn(shape, device=device, dtype=dtype, generator=generator), shape[-1:]).transpose(1, 2)
             for _ in range(4))  # fmt: skip
    places = torch.arange(model.max_seq_len, device=device).expand(rows, -1)
    documents = Documents(places - places % DOCUMENT_TOKENS) if model.document_attention else None
    query, key, value, upstream = (part.requires_grad_() for part in parts)
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        for repeat in range(2 + repeats):
            if repeat == 2:
                began = _now(device)
            out = attend(query, key, value, window, backend, documents)
            gradients = torch.autograd.grad(out, (query, key, value), upstream)
        return 1e3 * (_now(device) - began) / repeats, (out.detach(), *gradients)
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
