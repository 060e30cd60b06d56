"""Which attention kernel a model trains on: the fastest of those there are, by a short measurement."""

import time
from functools import cache
from statistics import median

import torch
import torch.nn.functional as F

from nanochat.model import ModelConfig
from nanochat.model.attention import BACKENDS, Documents, attend, unavailable
from nanochat.planning.hardware import Hardware

REPEATS = 10
ROWS = 4  # enough to fill a GPU
DOCUMENT_TOKENS = 512  # where attention stays within documents


def choose_attention(hardware: Hardware, model: ModelConfig, compute_dtype: str) -> tuple[str, str]:
    """The training backend, and the reason."""
    if hardware.device_type == "cpu":
        return "blocked", "plain products train faster than the fused CPU kernel, as measured at rows of 256 and 512"
    if not (hardware.measured and torch.cuda.is_available()):
        return "sdpa", "PyTorch's own choice; where there is a GPU, the fastest there is measured"
    return _fastest_here(model, compute_dtype)


@cache
def _fastest_here(model: ModelConfig, compute_dtype: str) -> tuple[str, str]:
    chosen = fastest(attention_ms(model, ROWS, getattr(torch, compute_dtype), torch.device("cuda")))
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
    why it is out of the question."""
    windows = [model.window(layer) for layer in range(model.depth)]
    found: dict[str, float | str] = {}
    for backend in BACKENDS:
        if why := unavailable(backend, device, dtype):
            found[backend] = why
            continue
        try:
            each = {window: _milliseconds(backend, window, model, rows, dtype, device) for window in set(windows)}
            found[backend] = sum(each[window] for window in windows)
        except Exception as error:  # a kernel that fails on this machine is one that is not there
            found[backend] = f"fails: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:80]}"
    return found


def _milliseconds(
    backend: str, window: int | None, model: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device
) -> float:
    """The median of some repetitions, after one that may compile; deterministic, as training is."""
    shape = (rows, model.max_seq_len, model.num_heads, model.head_dim)  # (batch, time, head, head_dim), as models do
    parts = (F.rms_norm(torch.randn(shape, device=device, dtype=dtype), shape[-1:]).transpose(1, 2) for _ in range(4))
    places = torch.arange(model.max_seq_len, device=device).expand(rows, -1)
    documents = Documents(places - places % DOCUMENT_TOKENS) if model.document_attention else None
    query, key, value, upstream = (part.requires_grad_() for part in parts)
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    times = []
    try:
        for _ in range(REPEATS + 1):
            began = _now(device)
            out = attend(query, key, value, window, backend, documents)
            torch.autograd.grad(out, (query, key, value), upstream)
            times.append(1e3 * (_now(device) - began))
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    return median(times[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
