"""The loop against its promises: same seed same bits, exact resume, one loss however the batch is cut, steps timed as
they are, and one wait for the device in each."""

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from nanochat.data.batches import IGNORE, Batch, Batches
from nanochat.evaluation.bpb import bits_per_byte
from nanochat.events import Event, Saved, StepDone, Validated
from nanochat.model import Transformer
from nanochat.model.loss import CHUNK_TOKENS
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.planning.estimate import evaluations
from nanochat.training import loop
from nanochat.training.checkpoint import CheckpointStore
from nanochat.training.loop import Interrupted
from nanochat.training.stage import Trainee
from nanochat.workers import Workers
from tests.training.stages import MODEL, PEAK, ROW, STAGE, same, train, trainee


def test_the_same_seed_gives_the_same_bits_and_the_loss_falls(dataset, tmp_path):
    events: list[Event] = []
    assert same(train(dataset, tmp_path / "a", events=events), train(dataset, tmp_path / "b"))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    assert losses[0] == pytest.approx(math.log(512), rel=0.02)
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize(("iterations", "every"), [(4, 2), (5, 2), (2, 5)])
def test_there_are_as_many_evaluations_as_are_planned(dataset, tmp_path, iterations, every):
    events: list[Event] = []
    train(dataset, tmp_path, replace(STAGE, num_iterations=iterations, eval_every=every), events=events)
    assert sum(isinstance(event, Validated) for event in events) == evaluations(iterations, every)


@pytest.mark.parametrize("stop_after", [1, 4, 6, 11])
def test_resume_is_exact(dataset, tmp_path, stop_after):
    undisturbed = train(dataset, tmp_path / "a")
    events: list[Event] = []

    def stop() -> bool:
        return sum(isinstance(event, StepDone) for event in events) == stop_after

    with pytest.raises(Interrupted):
        train(dataset, tmp_path / "b", should_stop=stop, events=events)
    assert CheckpointStore(tmp_path / "b").newest(pytest.fail).step == stop_after
    assert same(train(dataset, tmp_path / "b"), undisturbed)


def test_a_fresh_optimizer_would_be_noticed(dataset, tmp_path):
    """The test above can fail: forgetting the optimizer's state at the resume changes the result."""
    undisturbed = train(dataset, tmp_path / "a")
    events: list[Event] = []
    with pytest.raises(Interrupted):
        train(dataset, tmp_path / "b", should_stop=lambda: len(events) > 8, events=events)
    subject = trainee()
    subject.optimizer.load_state_dict = lambda state: None
    assert not same(train(dataset, tmp_path / "b", subject=subject), undisturbed)


def test_the_loss_does_not_depend_on_how_the_batch_is_cut(dataset, tmp_path):
    runs = []
    for rows in (1, 2, 8, 3):
        events: list[Event] = []
        train(
            dataset, tmp_path / str(rows), replace(STAGE, device_batch_size=rows, num_iterations=3), events=events
        )
        runs.append([event.loss for event in events if isinstance(event, StepDone)])
    for losses in runs[1:]:
        assert losses[0] == pytest.approx(runs[0][0], rel=1e-6)
        assert losses == pytest.approx(runs[0], rel=1e-3)  # the optimizer magnifies what summation order changes


class Masked(Batches):
    """Batches of which all but the first row of each step carry no loss."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        batch = super().batch(step, rank, world_size)
        targets = torch.full_like(batch.targets, IGNORE)
        targets[0] = batch.targets[0]
        return Batch(batch.inputs, targets)


def test_a_micro_batch_without_targets_is_harmless(dataset, tmp_path):
    """The loss is the mean over valid tokens: rows without any neither dilute nor poison it (invariant 5)."""
    losses = []
    for rows in (1, 8):
        events: list[Event] = []
        train(
            dataset,
            tmp_path / str(rows),
            replace(STAGE, device_batch_size=rows, num_iterations=3),
            events=events,
            batches=Masked(dataset, 8, seed=1),
        )
        losses.append([e.loss for e in events if isinstance(e, StepDone)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] == pytest.approx(math.log(512), rel=0.02)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_number_never_reaches_the_weights(dataset, tmp_path, where):
    subject = trainee()
    plain, calls = subject.model.loss_sum, []

    def poisoned(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        loss = plain(ids, targets)
        if len(calls) == 5:  # the first micro-batch of the third step
            return loss * float("nan") if where == "loss" else loss + (subject.model.head * 0).sum().sqrt()
        return loss

    subject.model.loss_sum = poisoned
    events: list[Event] = []
    weights = train(dataset, tmp_path, subject=subject, events=events)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps if event.skipped] == [3]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert CheckpointStore(tmp_path).newest(pytest.fail).state["result"]["skipped_steps"] == 1


def test_evaluations_checkpoints_and_measurements_come_when_they_should(dataset, tmp_path):
    events: list[Event] = []
    train(dataset, tmp_path, events=events)
    assert [event.step for event in events if isinstance(event, Validated)] == [0, 5, 10, 12]
    assert [event.step for event in events if isinstance(event, Saved)] == [4, 8, 12]
    result = CheckpointStore(tmp_path).newest(pytest.fail).state["result"]
    assert (result["iterations"], result["tokens"], result["starts"]) == (12, 12 * 8 * ROW, 1)
    assert result["tokens_per_second"] > 0
    assert 0 < result["peak_share"] < 1
    assert result["peak_memory_bytes"] > 10**7


def test_speed_leaves_the_first_steps_out(dataset, tmp_path):
    """Steps of 1 s, but a first one of 100 s: the speed reported is that of the others."""
    now = [0.0]
    slow = [100.0]

    def clock() -> float:
        return now[0]

    subject = trainee()
    plain = subject.model.loss_sum

    def timed(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        now[0] += slow.pop() if slow else 0.5  # two micro-batches a step
        return plain(ids, targets)

    subject.model.loss_sum = timed
    train(dataset, tmp_path, subject=subject, clock=clock)
    result = CheckpointStore(tmp_path).newest(pytest.fail).state["result"]
    assert result["first_step_s"] == pytest.approx(100.5)
    assert result["tokens_per_second"] == pytest.approx(8 * ROW)
    assert result["train_s"] == pytest.approx(100.5 + 11)


class Late(Batches):
    """Each batch is there when it has been asked for three times."""

    asked = 0

    def ready(self, step: int) -> bool:
        self.asked += 1
        return self.asked % 3 == 0


def test_a_step_is_timed_with_the_agreement_before_it_and_without_waiting_for_data(dataset, tmp_path, monkeypatch):
    """There workers on GPUs have to wait for the last update. Agreeing takes 1 s here, and so does all else a step."""
    now, events = [0.0], []

    def pass_a_second(*args: object) -> bool:
        now[0] += 1.0
        return False

    monkeypatch.setattr(loop, "time", SimpleNamespace(sleep=lambda seconds: pass_a_second()))
    around = {"clock": lambda: now[0], "should_stop": pass_a_second, "events": events,
              "fault": lambda point: pass_a_second() if point == "backward" else None}  # fmt: skip
    train(dataset, tmp_path / "a", **around)
    assert [event.seconds for event in events if isinstance(event, StepDone)] == [2.0] * 12
    events.clear()
    train(dataset, tmp_path / "b", batches=Late(dataset, 8, seed=1), **around)
    found = CheckpointStore(tmp_path / "b").newest(pytest.fail).state["result"]
    assert {event.seconds for event in events if isinstance(event, StepDone)} <= {1.0, 2.0}
    assert found["other_s"] > 12


@dataclass(frozen=True)
class Blind(Workers):
    """A worker whose device, which has no numbers to be read, answers where the loop waits for it and nowhere else."""

    device: torch.device = field(default_factory=lambda: torch.device("meta"))
    waits: list[int] = field(default_factory=list)

    def sum_tensors(self, *values: torch.Tensor) -> list[float]:
        assert all(value.is_meta for value in values)
        self.waits.append(len(values))
        return [1.0] * len(values)


@pytest.mark.parametrize("attention", ["sdpa", "blocked"])
def test_the_host_waits_for_the_device_once_in_a_step(dataset, tmp_path, monkeypatch, attention):
    monkeypatch.setitem(CHUNK_TOKENS, "meta", 64)
    model = Transformer(MODEL, attention=attention, seed=None).to("meta")
    events, workers = [], Blind()
    stage = replace(STAGE, num_iterations=3)
    train(dataset, tmp_path, stage, Trainee(model, MuonAdamW(model, PEAK)), events, workers=workers, saves=False)
    assert [event.skipped for event in events if isinstance(event, StepDone)] == [False] * 3
    assert workers.waits == [2] * 3


def test_an_evaluation_waits_for_the_device_once(dataset, monkeypatch):
    monkeypatch.setitem(CHUNK_TOKENS, "meta", 64)
    model, workers = Transformer(MODEL, seed=None).to("meta"), Blind()
    sizes = torch.ones(MODEL.vocab_size, dtype=torch.int64, device="meta")
    bits_per_byte(model, dataset, sizes, max_tokens=10 * ROW, rows_per_batch=4, workers=workers)
    assert workers.waits == [2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nor_does_it_wait_within_a_step_of_a_gpu():
    """Copies to it, which the device above takes without a word, included."""
    model = Transformer(MODEL).to("cuda")
    optimizer = MuonAdamW(model, PEAK)
    ids = torch.randint(MODEL.vocab_size, (2, 4, ROW)).pin_memory()
    for mode in ("default", "error"):  # the first step makes what all share
        torch.cuda.set_sync_debug_mode(mode)
        try:
            inputs, targets = (part.to("cuda", non_blocking=True) for part in ids)
            model.loss_sum(inputs, targets).backward()
            square = optimizer.reduce_gradients()
            optimizer.step(1.0, 0.9)
            if mode == "error":
                with pytest.raises(RuntimeError, match="synchronizing"):  # as the loop then does, and as would be told
                    square.item()
        finally:
            torch.cuda.set_sync_debug_mode("default")
