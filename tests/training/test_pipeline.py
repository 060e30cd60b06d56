"""The pipeline in this process, without Ray: where checkpoints are kept, and what is remembered of a run."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat.config import to_dict
from nanochat.data.sources import cache_directory
from nanochat.errors import UserError
from nanochat.events import JsonlSink, Note, Resumed, StepDone, read_events
from nanochat.files import exclusive, write_json
from nanochat.inference.load import load_model, newest_checkpoint
from nanochat.model import ModelConfig, Transformer
from nanochat.optim.scaling import hyperparameters
from nanochat.planning.hardware import Hardware
from nanochat.planning.memory import MemoryRecord
from nanochat.planning.resolve import Request, resolve
from nanochat.report import mishaps
from nanochat.run import Run, create
from nanochat.training import pipeline
from nanochat.training.checkpoint import CheckpointStore
from nanochat.training.loop import Interrupted
from nanochat.training.pipeline import run_pipeline
from nanochat.training.stage import Trainee
from nanochat.training.trainee import build_trainee
from nanochat.workers import Workers
from tests.training.places import s3_place

HARDWARE = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 1e11, "bfloat16": 1e11})
SETTINGS = ("tokenizer.vocab_size=512", "tokenizer.max_chars=300000", "base.num_iterations=8",
            "base.checkpoint_every=2", "base.eval_tokens=512", "base.eval_every=4")  # fmt: skip


def small_run(directory: Path, hardware: str = HARDWARE.name, record: dict | None = None, **changes: object) -> Run:
    request = Request(stages=("tokenizer", "base"), depth=1, max_seq_len=128, total_batch_size=512, device_batch_size=4,
                      compile="off", assignments=SETTINGS)  # fmt: skip
    config = replace(resolve(request, HARDWARE, compiler=None).config, **changes)
    return create(directory, config, {"hardware": {"name": hardware}, **(record or {})})


def go(run: Run, stop_after: int = 99, fault: Callable[[str], None] = lambda point: None) -> None:
    steps = 0

    def emit(event: object) -> None:
        nonlocal steps
        steps += isinstance(event, StepDone)
        sink(event)

    sink = JsonlSink(run.directory)
    run_pipeline(run, Workers(), emit, lambda: steps >= stop_after, fault)


def test_checkpoints_on_an_object_store(server, tmp_path):
    """Stopped and resumed, the weights in S3 are those of a run on the disk, and a model can be made of them."""
    at_home, away = small_run(tmp_path / "home"), small_run(tmp_path / "away", storage=s3_place(server, "e2e").location)
    go(at_home)
    with pytest.raises(Interrupted):
        go(away, stop_after=5)
    go(away)
    assert not (away.directory / "base" / "checkpoints").exists()
    theirs, ours = (newest_checkpoint(run.directory, warn=pytest.fail) for run in (at_home, away))
    assert (ours.step, ours.location.startswith("s3://")) == (8, True)
    weights = theirs.tensors("model")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.tensors("model").items())
    model, _ = load_model(ours, away.tokenizer_directory, "cpu", torch.float32)
    assert torch.equal(model.head, weights["head"])
    assert Resumed("base", 5) in read_events(away.directory, "base")
    assert "base: taken up again at step 5" in mishaps(away)


def test_weight_decay_is_that_of_the_text_and_its_repetitions_and_falls(tmp_path, monkeypatch):
    """Of a short text that a run goes through many times, and of one that it does not get through."""
    texts = [f"The {n}th of these short sentences says {n * n}." for n in range(60)]
    (tmp_path / "short.txt").write_text("<|endoftext|>".join(texts))
    decays: dict[str, list[float]] = {"tinyworld": [], "short.txt": []}

    def watched(*args: Any, **options: Any) -> Trainee:
        trainee = build_trainee(*args, **options)
        update = trainee.optimizer.step

        def step(lr: float, momentum: float, decay_factor: float, *others: Any) -> None:
            decays[name].append(trainee.optimizer.peak.weight_decay * decay_factor)
            update(lr, momentum, decay_factor, *others)

        monkeypatch.setattr(trainee.optimizer, "step", step)
        return trainee

    monkeypatch.setattr(pipeline, "build_trainee", watched)
    for name, unique in (("tinyworld", 1e6), ("short.txt", 1e3)):
        run = small_run(tmp_path / f"run-{name}", data=name if name == "tinyworld" else str(tmp_path / name))
        base, sft = replace(run.config().base, num_iterations=40), replace(run.config().sft, num_iterations=4)
        sft, stages = replace(sft, eval_questions=0), ("tokenizer", "base", "sft")
        config = replace(run.config(), base=base, sft=sft, stages=stages)
        run = create(tmp_path / f"{name}-40", config, {"hardware": {"name": "a test's"}})
        go(run)
        rule = partial(hyperparameters, config.model, 512, 40 * 512, base.lr_multiplier)
        in_base = [rule(unique).weight_decay * (1 - step / 40) for step in range(40)]
        assert decays[name] == pytest.approx([*in_base, *(rule().weight_decay * (1 - step / 4) for step in range(4))])


def test_memory_that_ran_out_is_remembered_for_the_next_run(tmp_path):
    ran_out = []

    def fault(point: str) -> None:
        if point == "forward" and not ran_out:
            ran_out.append(point)
            raise torch.OutOfMemoryError("CUDA out of memory")

    # Hardware of its own: other tests share the cache, perhaps at the same time, and must not train by halves.
    small = "a processor with little memory"
    first, second = small_run(tmp_path / "first", small), small_run(tmp_path / "second", small)
    record = MemoryRecord(cache_directory(), small)
    go(first, fault=fault)
    assert record.limit(first.config().model, "float32") == 2
    warnings = [event.text for event in read_events(first.directory, "base") if isinstance(event, Note)]
    assert ["device_batch_size 4 -> 2" in text for text in warnings] == [True]
    go(second)
    saved = [CheckpointStore(run.checkpoints("base")).newest(pytest.fail).state for run in (first, second)]
    assert [state["position"]["device_batch_size"] for state in saved] == [2, 2]
    assert [state["result"]["out_of_memory"] for state in saved] == [1, 0]
    assert [state["result"]["tokens"] for state in saved] == [8 * 512] * 2
    for asked in ({"device_batch_size": 4, "assignments": []}, {"assignments": ["base.device_batch_size=4"]}):
        run = small_run(tmp_path / f"asked{len(asked)}", small, {"request": asked})
        go(run)
        state = CheckpointStore(run.checkpoints("base")).newest(pytest.fail).state
        assert state["position"]["device_batch_size"] == 4, "what the user asks for is tried"


def test_the_best_checkpoint_is_kept_where_asked_for(tmp_path):
    run = small_run(tmp_path / "r", keep_best_checkpoint=True, keep_checkpoints=1)
    go(run)
    steps = CheckpointStore(run.checkpoints("base")).steps()
    assert steps[-1] == 8
    assert len(steps) <= 2


def test_a_later_stage_starts_from_the_weights_this_run_has(tmp_path):
    """Asked for mid alone, a run that has trained its base goes on from that, not from new weights."""
    run = small_run(tmp_path / "r")
    go(run)
    base = CheckpointStore(run.checkpoints("base")).newest(pytest.fail).tensors("model")
    mid = replace(run.config().base, num_iterations=1, max_skipped_steps=9, lr_multiplier=1e-9)
    write_json(run.record_path, run.record() | {"config": to_dict(replace(run.config(), stages=("mid",), mid=mid))})
    go(run)
    after = CheckpointStore(run.checkpoints("mid")).newest(pytest.fail).tensors("model")
    assert all(torch.allclose(after[name], base[name], atol=1e-6) for name in base)


def test_a_checkpoint_of_an_earlier_version_is_of_the_same_model():
    """It says nothing of switches that were added to the model since."""
    ours = {"model": to_dict(ModelConfig.from_depth(2, 512, 32))}
    theirs = {key: value for key, value in ours["model"].items() if key != "document_attention"}
    checkpoint = SimpleNamespace(location="x", state={"model": theirs})
    pipeline._check_identity(checkpoint, ours)
    for other in ({**theirs, "width": 64}, {**theirs, "document_attention": True}, {}, None):
        checkpoint.state["model"] = other
        with pytest.raises(UserError, match="another model"):
            pipeline._check_identity(checkpoint, ours)


def test_weights_are_drawn_where_they_are_trained_from_and_nowhere_else(tmp_path, monkeypatch):
    """Drawing takes seconds for a large model."""
    drawn: list[int] = []
    initialise = Transformer.initialise

    def counted(model: Transformer, seed: int) -> None:
        drawn.append(seed)
        initialise(model, seed)

    monkeypatch.setattr(Transformer, "initialise", counted)
    run = small_run(tmp_path)
    with pytest.raises(Interrupted):
        go(run, stop_after=3)
    assert drawn == [run.config().seed]
    go(run)
    newest = newest_checkpoint(run.directory, warn=pytest.fail)
    load_model(newest, run.tokenizer_directory, "cpu", torch.float32)
    assert len(drawn) == 1


def test_without_compiling_the_compiler_is_not_imported():
    """It takes 0.7 s, of every start."""
    code = """
import sys
import torch
from nanochat.planning.hardware import Hardware
from nanochat.planning.resolve import Request, resolve
from nanochat.training.trainee import build_trainee, prepare_process
from nanochat.workers import Workers
prepare_process()
hardware = Hardware("a CPU", "cpu", 1, 2, 2**34, {"float32": 4e11, "bfloat16": 1e11})
config = resolve(Request(depth=2, compile="off"), hardware, compiler=None).config
trainee = build_trainee(config, Workers())
ids = torch.zeros(1, 16, dtype=torch.int64)
trainee.model.loss_sum(ids, ids).backward()
trainee.optimizer.reduce_gradients()
trainee.optimizer.step(1.0, 0.9)
print(torch.are_deterministic_algorithms_enabled(), "torch._inductor" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_what_a_stage_started_from_is_not_needed_to_go_on(tmp_path):
    source, run = small_run(tmp_path / "source"), small_run(tmp_path / "r")
    go(source)
    newest = CheckpointStore(source.checkpoints("base")).newest(pytest.fail)
    config = replace(run.config(), start_from=newest.location, start_tokenizer=str(source.tokenizer_directory))
    write_json(run.record_path, run.record() | {"config": to_dict(config)})
    with pytest.raises(Interrupted):
        go(run, stop_after=3)
    shutil.rmtree(source.directory)
    go(run)
    assert run.results()["base"]["iterations"] == 8


def test_it_waits_for_another_that_makes_shards_says_so_and_stops_when_asked(tmp_path, cache):
    run, since = small_run(tmp_path / "r"), []

    def should_stop() -> bool:
        """Once it has said that it waits."""
        texts = [event.text for event in read_events(run.directory, "tokenizer") if isinstance(event, Note)]
        since.extend(text for text in texts if "waiting for another run" in text)
        return bool(since)

    (cache / "shards").mkdir(exist_ok=True)
    with exclusive(cache / "shards" / ".lock"), pytest.raises(Interrupted):
        run_pipeline(run, Workers(), JsonlSink(run.directory), should_stop)
    assert len(set(since)) == 1


def test_tokenising_stops_when_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "cache"))  # where there is everything still to be made
    run, asked = small_run(tmp_path / "r"), []
    with pytest.raises(Interrupted):
        run_pipeline(run, Workers(), JsonlSink(run.directory), lambda: bool(asked),
                     lambda point: asked.append(point) if point == "tokenising" else None)  # fmt: skip
    assert asked == ["tokenising"]
