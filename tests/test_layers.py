"""Imports point downwards only, and the core library keeps to itself (DESIGN.md, Layers)."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "nanochat").rglob("*.py"))
FORBIDDEN = {"ray", "argparse", "wandb", "experiments", "pickle", "rich"}
BELOW = {  # what each package may import of its siblings
    "model": set(),
    "tokenizer": set(),
    "tasks": set(),
    "optim": {"model"},
    "data": {"tokenizer", "tasks"},
    "inference": {"model", "tokenizer", "training"},  # training: the checkpoint store
    "evaluation": {"model", "tokenizer", "data", "tasks", "inference"},
    "planning": {"model", "optim", "data"},  # data: which files there are
    "search": {"planning"},
    "interchange": {"model", "tokenizer", "data", "inference", "training"},
    "training": {"model", "optim", "tokenizer", "data", "tasks", "inference", "evaluation", "planning"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_no_executor_and_prints_nothing(path):
    found = {name.split(".")[0] for name in imported(path)}
    if path.name == "unpickling.py":  # its Unpickler's allow-list has tests of its own
        found -= {"pickle"}
    assert not found & FORBIDDEN
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"print", "eval", "exec", "input"}


@pytest.mark.parametrize("package", BELOW)
def test_packages_import_only_what_is_below_them(package):
    siblings = {
        name.split(".")[1]
        for path in (ROOT / "nanochat" / package).rglob("*.py")
        for name in imported(path)
        if name.startswith("nanochat.")
    }
    assert siblings & BELOW.keys() <= BELOW[package] | {package}


def test_only_these_files_import_ray():
    users = {
        path.name
        for path in (ROOT / "experiments").rglob("*.py")
        if any(name.split(".")[0] == "ray" for name in imported(path))
    }
    assert users <= {"cluster.py", "ray_train.py", "lean_trainer.py", "ray_tune.py", "contest.py"}


def test_importing_everything_does_nothing():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in CORE]
    modules += [f"experiments.{path.stem}" for path in (ROOT / "experiments").glob("*.py")]
    if find_spec("triton") is None:  # it comes with PyTorch for GPUs
        modules.remove("nanochat.model.token_sums")
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
