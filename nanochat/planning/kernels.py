"""Which attention kernel a model trains on: the fastest of those that are right here, by a short measurement."""

import functools
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.files import write_json
from nanochat.model import ModelConfig
from nanochat.model.attention import BACKENDS, Documents, attend, unavailable
from nanochat.planning.hardware import Hardware

REPEATS = 10
MOST_ROWS = 32  # more would tell nothing new
FUSED_FROM = {"bfloat16": 4096, "float32": 2048}  # tokens of a row; on a CPU, LOG.md, 2026-11-27
MOST_OFF = 0.05  # from PyTorch's own, relative to its largest norm: 16-bit kernels are 0.003 to 0.01 apart
FAILS = "fails: "
DOCUMENT_TOKENS = 512  # where attention stays within documents
KERNELS = 1  # how they are called and compared: raise it when that changes, and GPUs are measured anew
PACKAGES = ("torch", "triton", "flash-attn-3", "flash-attn-4")  # another version of one is measured anew


def choose_attention(
    hardware: Hardware, model: ModelConfig, compute_dtype: str, rows: int, cache: Path | None = None
) -> tuple[str, str]:
    """The training backend for so many rows at a time, and the reason.

    Args:
        cache: directory where a GPU's measurements are kept: one takes ten seconds and more; None: nowhere.
    """
    if hardware.device_type == "cpu":  # by a rule, so that the same command gives the same run
        whole = not model.document_attention and all(model.window(layer) is None for layer in range(model.depth))
        if whole and model.max_seq_len >= FUSED_FROM[compute_dtype]:
            return "sdpa", f"the fused CPU kernel trains faster on whole rows of {FUSED_FROM[compute_dtype]:,} and more"
        return "blocked", "plain products train faster than the fused CPU kernel on shorter rows and on parts of them"
    if not (hardware.measured and torch.cuda.is_available()):
        return "sdpa", "PyTorch's own choice; where there is a GPU, the fastest there is measured"
    return fastest(_measured_here(hardware, model, compute_dtype, min(rows, MOST_ROWS), cache))


def cannot_attend(hardware: Hardware, backend: str, compute_dtype: str) -> str | None:
    """Why a backend cannot train there; None: it can, as far as is known of hardware that is not this machine's."""
    if hardware.device_type == "cuda" and not (hardware.measured and torch.cuda.is_available()):
        return None
    return unavailable(backend, torch.device(hardware.device_type), getattr(torch, compute_dtype))


def _measured_here(
    hardware: Hardware, model: ModelConfig, compute_dtype: str, rows: int, cache: Path | None
) -> dict[str, float | str]:
    """What `attention_ms` comes to on this GPU, unless that is known: then what it came to."""
    key = {
        "hardware": hardware.name,
        "kernels": [KERNELS, *BACKENDS],
        "versions": {name: _version(name) for name in PACKAGES},
        "model": asdict(model),
        "compute_dtype": compute_dtype,
        "rows": rows,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    kept = cache / "attention" / f"{name}.json" if cache else None
    with suppress(OSError, ValueError, KeyError, TypeError):
        if kept:
            return dict(json.loads(kept.read_bytes())["milliseconds"])
    found = _measured_now(model, compute_dtype, rows)
    failed = any(str(ms).startswith(FAILS) for ms in found.values())  # which a GPU that others use too may make it do
    if kept and not failed:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, {**key, "milliseconds": found})
    return found


@functools.cache
def _measured_now(model: ModelConfig, compute_dtype: str, rows: int) -> dict[str, float | str]:
    """Once in a process."""
    found = attention_ms(model, rows, getattr(torch, compute_dtype), torch.device("cuda"))
    torch.cuda.empty_cache()  # for the worker that is to train
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
    why it is out of the question, which it is too where a position sees other ones than with PyTorch's own, or
    something else comes out."""
    windows = [model.window(layer) for layer in range(model.depth)]
    found: dict[str, float | str] = {}
    for backend in BACKENDS:
        if backend == "blocked" and device.type == "cuda":
            found[backend] = "is for CPUs"  # 93 ms where sdpa took 15 on an H200 (LOG.md, 2026-11-27)
            continue
        if why := unavailable(backend, device, dtype):
            found[backend] = why
            continue
        try:
            cases = {window: _Case.of(model, window, rows, dtype, device) for window in set(windows)}
            wrong = next(filter(None, (_wrong(backend, case) for case in cases.values())), None)
            found[backend] = wrong or sum(_milliseconds(backend, case) * windows.count(window)
                                          for window, case in cases.items())  # fmt: skip
        except Exception as error:  # a kernel that fails on this machine is one that is not there
            found[backend] = f"{FAILS}{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:80]}"
    return found


@dataclass(frozen=True)
class _Case:
    """Attention to be tried: queries, keys, values and the gradient of what comes out, (rows, head, time, head_dim)."""

    parts: tuple[Tensor, Tensor, Tensor, Tensor]
    window: int | None
    documents: Documents | None

    @classmethod
    def of(cls, model: ModelConfig, window: int | None, rows: int, dtype: torch.dtype, device: torch.device) -> "_Case":
        shape = (rows, model.max_seq_len, model.num_heads, model.head_dim)  # in memory, as models have it
        generator = torch.Generator(device).manual_seed(0)
        q, k, v, upstream = (torch.randn(shape, device=device, dtype=dtype, generator=generator) for _ in range(4))
        parts = (F.rms_norm(q, shape[-1:]), F.rms_norm(k, shape[-1:]), v, upstream)
        places = torch.arange(model.max_seq_len, device=device).expand(rows, -1)
        documents = Documents(places - places % DOCUMENT_TOKENS) if model.document_attention else None
        return cls(tuple(part.transpose(1, 2) for part in parts), window, documents)  # type: ignore[arg-type]

    def spotted(self) -> "_Case":
        """The same with values and upstream gradients that are 1 in one channel of one position in so many and 0
        elsewhere: where what comes out is 0 says which positions see which, and are seen."""
        query, key, value, _ = self.parts
        time, channels = value.shape[-2:]
        spots = torch.zeros_like(value)
        channel = torch.arange(channels, device=value.device)
        spots[:, :, channel * (time - 1) // max(channels - 1, 1), channel] = 1
        return replace(self, parts=(query, key, spots, spots))

    def last_row(self) -> "_Case":
        query, key, value, upstream = (part[-1:] for part in self.parts)
        documents = None if self.documents is None else Documents(self.documents.starts[-1:])
        return replace(self, parts=(query, key, value, upstream), documents=documents)

    def run(self, backend: str) -> tuple[Tensor, ...]:
        """What attention comes to, and the gradients of queries, keys and values."""
        query, key, value, upstream = (part.detach().requires_grad_() for part in self.parts)
        with _deterministic():
            out = attend(query, key, value, self.window, backend, self.documents)
            return out.detach(), *torch.autograd.grad(out, (query, key, value), upstream)


def _wrong(backend: str, case: _Case) -> str | None:
    """How a backend differs from PyTorch's own, which with a window may have no memory for more than the last row;
    None: by no more than rounding."""
    if backend == "sdpa":
        return None
    results = zip(case.run(backend), case.last_row().run("sdpa"), strict=True)
    pairs = [(found[-1:].float(), expected.float()) for found, expected in results]
    largest = max(expected.norm() for _, expected in pairs)
    for found, expected in pairs:
        off = (found - expected).norm() / largest  # the gradient of a query that sees one key is nothing but rounding
        if not off < MOST_OFF:
            return f"is off by {float(off):.0%}"
    spotted = case.spotted()
    (out, _, _, dv), (expected_out, _, _, expected_dv) = spotted.run(backend), spotted.last_row().run("sdpa")
    same = torch.equal(out[-1:] != 0, expected_out != 0) and torch.equal(dv[-1:] != 0, expected_dv != 0)
    return None if same else "sees other positions"


@contextmanager
def _deterministic() -> Iterator[None]:
    """As training is."""
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def _milliseconds(backend: str, case: _Case) -> float:
    """The mean of some repetitions, after two of which the first may compile. On a GPU the host runs ahead, as it does
    in training."""
    for _ in range(2):
        case.run(backend)
    began = _now(case.parts[0].device)
    for _ in range(REPEATS):
        case.run(backend)
    return 1e3 * (_now(case.parts[0].device) - began) / REPEATS


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
