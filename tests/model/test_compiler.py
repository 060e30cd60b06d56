"""What is spared at a start is only what is known."""

import os
from pathlib import Path

import pytest
import torch
from torch._inductor import config

from nanochat.model.compiler import take_vector_instructions_for_granted
from tests.model.test_transformer import awake

here = pytest.mark.skipif(
    os.uname().machine != "x86_64" or "CXX" in os.environ, reason="the rule is for g++ on x86-64"
)


@pytest.fixture(autouse=True)
def undecided():
    with config.patch({"cpp.vec_isa_ok": None}):
        yield


def gcc(version: str, directory: Path, monkeypatch) -> None:
    program = directory / "g++"
    program.write_text(f"#!/bin/sh\n{version}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))


@here
@pytest.mark.parametrize(
    ("said", "granted"),
    [("echo 12", True), ("echo 14.2.0", True), ("echo 11", None), ("echo 9.4.0", None), ("echo what", None),
     ("exit 1", None)],
)  # fmt: skip
def test_a_compiler_that_may_not_know_them_is_tested(said, granted, tmp_path, monkeypatch):
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this CPU has no such instructions")
    gcc(said, tmp_path, monkeypatch)
    awake().compile_training()
    assert config.cpp.vec_isa_ok is granted


@here
def test_so_is_a_pytorch_that_leaves_them_out(tmp_path, monkeypatch):
    gcc("echo 14", tmp_path, monkeypatch)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    take_vector_instructions_for_granted()
    assert config.cpp.vec_isa_ok is None


@pytest.mark.parametrize("program", ["clang++", "g++-14"])
def test_so_is_another_compiler_or_none(program, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", program)
    take_vector_instructions_for_granted()
    assert config.cpp.vec_isa_ok is None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    take_vector_instructions_for_granted()
    assert config.cpp.vec_isa_ok is None


@here
def test_who_has_decided_is_obeyed(tmp_path, monkeypatch):
    gcc("echo 14", tmp_path, monkeypatch)
    config.cpp.vec_isa_ok = False
    take_vector_instructions_for_granted()
    assert config.cpp.vec_isa_ok is False


@pytest.mark.parametrize("mode", ["default", "error"])
def test_the_compiler_is_as_deterministic_as_torch(mode):
    before = torch.get_deterministic_debug_mode()
    try:
        with config.patch({"deterministic": mode == "default"}):
            torch.set_deterministic_debug_mode(mode)
            awake().compile_training()
            assert config.deterministic == (mode == "error")
    finally:
        torch.set_deterministic_debug_mode(before)
