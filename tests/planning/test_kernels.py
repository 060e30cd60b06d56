"""The attention kernel is the fastest that works, and all that was found is said."""

from dataclasses import replace

import pytest
import torch

from nanochat.model import ModelConfig
from nanochat.model import attention as model_attention
from nanochat.model.attention import BACKENDS
from nanochat.planning import kernels
from nanochat.planning.hardware import DATA_SHEETS, Hardware
from nanochat.planning.kernels import attention_ms, choose_attention, fastest

CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})
MODEL = ModelConfig(depth=3, width=64, head_dim=32, vocab_size=64, max_seq_len=48, window_pattern="SL")


@pytest.mark.parametrize("hardware", [CPU, DATA_SHEETS["h100"]], ids=lambda hardware: hardware.name)
def test_the_choice_comes_with_its_reason(hardware):
    backend, reason = choose_attention(hardware, MODEL, "float32", rows=2)
    assert backend in BACKENDS
    assert reason


@pytest.mark.parametrize(("dtype", "tokens", "pattern", "documents", "backend"), [
    ("bfloat16", 4096, "L", False, "sdpa"), ("bfloat16", 2048, "L", False, "blocked"),
    ("float32", 1024, "L", False, "blocked"), ("float32", 2048, "L", False, "sdpa"),
    ("bfloat16", 4096, "SL", False, "blocked"), ("bfloat16", 4096, "L", True, "blocked"),
])  # fmt: skip
def test_a_cpu_fuses_long_whole_rows(dtype, tokens, pattern, documents, backend):
    model = replace(MODEL, max_seq_len=tokens, window_pattern=pattern, document_attention=documents)
    assert choose_attention(CPU, model, dtype, rows=4)[0] == backend


def test_a_gpu_is_measured_once(monkeypatch, tmp_path):
    """Not in each command: it takes ten seconds and more. Anew with another torch, model or number of rows, and where
    a kernel has failed, for which the next time may be better."""
    asked = []

    def attention_ms(model, rows, dtype, device):
        asked.append(rows)
        failing = {"flex": "fails: OutOfMemoryError"} if rows == 7 else {}
        return {"sdpa": 3.0, "varlen": 2.0, **failing}

    def choose(rows=4, model=MODEL):
        kernels._measured_now.cache_clear()  # as in another process
        return choose_attention(gpu, model, "bfloat16", rows, tmp_path)

    gpu = replace(DATA_SHEETS["h100"], measured=True)
    monkeypatch.setattr(kernels, "attention_ms", attention_ms)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert choose() == choose()
    assert choose()[0] == "varlen"
    assert asked == [4]
    choose(rows=5)
    choose(model=replace(MODEL, document_attention=True))
    assert asked == [4, 5, 4]
    monkeypatch.setattr(kernels, "_version", lambda package: "99")
    choose()
    choose(rows=7)
    choose(rows=7)
    assert asked == [4, 5, 4, 4, 7, 7]
    for kept in tmp_path.glob("attention/*.json"):
        kept.write_text("{")
    assert choose()[0] == "varlen", "what cannot be read is measured"


def test_every_backend_is_measured_or_says_why_not():
    found = attention_ms(MODEL, 2, torch.float32, torch.device("cpu"))
    assert found.keys() == set(BACKENDS)
    assert found["sdpa"] > 0
    assert found["blocked"] > 0
    assert found["varlen"] == found["flash3"] == found["flash4"] == found["flex"] == "needs a GPU"


def test_the_fastest_is_chosen_and_all_are_told():
    chosen, why = fastest({"sdpa": 3.0, "varlen": 2.5, "flash3": "needs the package", "flex": "fails: boom"})
    assert chosen == "varlen"
    assert why.endswith("varlen 2.50 ms, sdpa 3.00 ms, flash3 needs the package, flex fails: boom")


def test_a_kernel_that_fails_is_not_chosen(monkeypatch):
    def attend(query, key, value, window, backend, documents):
        if backend == "blocked":
            raise RuntimeError("no kernel image\nis available")
        return query * key * value

    monkeypatch.setattr(kernels, "attend", attend)
    found = attention_ms(MODEL, 2, torch.float32, torch.device("cpu"))
    assert found["blocked"] == "fails: RuntimeError: no kernel image"
    assert fastest(found)[0] == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wrong", ["window", "window one too wide", "one ahead", "documents", "no number"])
def test_a_kernel_that_is_wrong_is_not_chosen(monkeypatch, wrong, dtype):
    def attend(query, key, value, window, backend, documents):
        if backend != "blocked":
            return model_attention.attend(query, key, value, window, backend, documents)
        if window is not None and "window" in wrong:
            window = window + 1 if "one" in wrong else None
        if wrong == "documents":
            documents = model_attention.Documents(documents.starts.clamp_max(8))
        if wrong == "one ahead":
            key, value = key.roll(-1, dims=2), value.roll(-1, dims=2)
        out = model_attention.attend(query, key, value, window, backend, documents)
        return out * float("nan") if wrong == "no number" else out

    monkeypatch.setattr(kernels, "attend", attend)
    monkeypatch.setattr(kernels, "DOCUMENT_TOKENS", 16)
    model = replace(MODEL, max_seq_len=256, document_attention=wrong == "documents")
    found = attention_ms(model, 2, dtype, torch.device("cpu"))
    assert found["blocked"].startswith(("is off by ", "sees other positions"))
    assert fastest(found)[0] == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_right_kernels_are_far_from_being_called_wrong(monkeypatch, dtype):
    monkeypatch.setattr(kernels, "MOST_OFF", kernels.MOST_OFF / 3)
    monkeypatch.setattr(kernels, "DOCUMENT_TOKENS", 16)
    for short_window, documents in ((0, False), (1, False), (5, False), (0, True)):
        model = replace(MODEL, short_window=short_window, document_attention=documents)
        assert attention_ms(model, 2, dtype, torch.device("cpu"))["blocked"] > 0
