"""What the loop does when the loss diverges, memory runs out or a save fails."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.data.batches import Batch, Batches
from nanochat.data.dataset import TokenDataset
from nanochat.errors import UserError
from nanochat.events import Event, Note, RolledBack, Saved, StepDone
from nanochat.training.checkpoint import CheckpointError, CheckpointStore
from nanochat.training.loop import Interrupted, is_out_of_memory
from nanochat.training.stage import Trainee
from tests.training.stages import ROW, STAGE, same, train, trainee


class Poisoned(Batches):
    """Batches of which some make the loss not finite, as a corrupt document might: they are marked by a token."""

    def __init__(self, dataset: TokenDataset, bad: set[int]) -> None:
        super().__init__(dataset, 8, seed=1)
        self.bad, self.given = bad, []

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        self.given.append(step)
        batch = super().batch(step, rank, world_size)
        return Batch(torch.full_like(batch.inputs, MARK), batch.targets) if step in self.bad else batch


MARK = 511  # a token that no text contains


def fragile() -> Trainee:
    """A trainee whose loss is not a number on marked batches."""
    subject = trainee()
    plain = subject.model.loss_sum
    subject.model.loss_sum = lambda ids, targets: plain(ids, targets) * (float("nan") if ids[0, 0] == MARK else 1.0)
    return subject


def test_divergence_rolls_back_past_the_data_at_a_lower_rate(dataset, tmp_path):
    """Batches 5, 6 and 7 are bad: after the third, training goes back to step 4 and takes batch 8 next."""
    events: list[Event] = []
    weights = train(dataset, tmp_path, subject=fragile(), batches=Poisoned(dataset, {5, 6, 7}), events=events)
    (back,) = (event for event in events if isinstance(event, RolledBack))
    assert (back.step, back.to_step, back.lr_scale) == (8, 4, 0.5)
    steps = [(event.step, event.skipped) for event in events if isinstance(event, StepDone)]
    assert steps == [(s, 5 < s < 9) for s in range(1, 9)] + [(s, False) for s in range(5, 13)]
    state = CheckpointStore(tmp_path).newest(pytest.fail).state
    assert (state["position"]["left_out"], state["position"]["lr_scale"]) == (4, 0.5)
    assert (state["result"]["rollbacks"], state["result"]["skipped_steps"]) == (1, 3)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_rollback_before_the_first_checkpoint_goes_to_the_beginning(dataset, tmp_path):
    events: list[Event] = []
    train(dataset, tmp_path, subject=fragile(), batches=Poisoned(dataset, {0, 1, 2}), events=events)
    (back,) = (event for event in events if isinstance(event, RolledBack))
    assert (back.step, back.to_step) == (3, 0)


@pytest.mark.parametrize("stops", [(3,), (7,), (9,), (12,), (15,), (5, 6, 7)])
def test_a_run_that_rolls_back_resumes_exactly(dataset, tmp_path, stops):
    """Stopped before, while and after it diverges, also several times between two regular checkpoints, it ends with
    the same bits."""
    bad = {5, 6, 7}
    undisturbed = train(dataset, tmp_path / "a", subject=fragile(), batches=Poisoned(dataset, bad))
    events: list[Event] = []

    def reached(step: int) -> bool:
        return sum(isinstance(event, StepDone) for event in events) == step

    for stop_after in stops:
        around = {"should_stop": partial(reached, stop_after), "events": events}
        with pytest.raises(Interrupted):
            train(dataset, tmp_path / "b", subject=fragile(), batches=Poisoned(dataset, bad), **around)
    assert same(train(dataset, tmp_path / "b", subject=fragile(), batches=Poisoned(dataset, bad)), undisturbed)


def test_divergence_that_does_not_end_fails_clearly_and_keeps_what_was_saved(dataset, tmp_path):
    events: list[Event] = []
    with pytest.raises(UserError, match=r"diverges.*after 2 rollbacks") as failure:
        train(dataset, tmp_path, replace(STAGE, max_rollbacks=2), subject=fragile(),
              batches=Poisoned(dataset, set(range(5, 99))), events=events)  # fmt: skip
    assert "lr_multiplier" in failure.value.hint
    assert [event.lr_scale for event in events if isinstance(event, RolledBack)] == [0.5, 0.25]
    assert CheckpointStore(tmp_path).newest(pytest.fail).step == 4


def out_of_memory_above(rows: int) -> Trainee:
    subject = trainee()
    plain = subject.model.loss_sum

    def limited(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(ids, targets)

    subject.model.loss_sum = limited
    return subject


def test_out_of_memory_halves_the_rows_and_keeps_the_total_batch(dataset, tmp_path):
    """8 rows do not fit, 4 do not, 2 do: the result is that of a run asked for 2."""
    stage, events, remembered = replace(STAGE, device_batch_size=8), [], []
    weights = train(dataset, tmp_path / "a", stage, out_of_memory_above(2), events, remember_rows=remembered.append)
    warnings = [event.text for event in events if isinstance(event, Note) and event.warning]
    assert [text.partition(",")[0] for text in warnings] == [
        "out of memory: device_batch_size 8 -> 4",
        "out of memory: device_batch_size 4 -> 2",
    ]
    assert remembered == [4, 2]
    state = CheckpointStore(tmp_path / "a").newest(pytest.fail).state
    assert state["position"]["device_batch_size"] == 2
    assert state["result"]["tokens"] == 12 * 8 * ROW
    assert same(weights, train(dataset, tmp_path / "b", replace(stage, device_batch_size=2)))


def test_memory_that_does_not_hold_one_row_is_the_users_to_change(dataset, tmp_path):
    with pytest.raises(UserError, match="a single row of 32 tokens does not fit") as failure:
        train(dataset, tmp_path, subject=out_of_memory_above(0))
    assert "--max-seq-len" in failure.value.hint


@pytest.mark.parametrize("says", [
    "CUDA error: out of memory", "Triton Error [CUDA]: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "[enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
])  # fmt: skip
def test_libraries_without_an_error_of_their_own_for_it_are_understood(says):
    assert is_out_of_memory(RuntimeError(says))
    assert not is_out_of_memory(ValueError(says))


def test_another_error_is_not_taken_for_lack_of_memory(dataset, tmp_path):
    subject = trainee()

    def broken(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    subject.model.loss_sum = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(dataset, tmp_path, subject=subject)


def test_a_save_that_fails_warns_and_the_next_one_tries_again(dataset, tmp_path, monkeypatch):
    """The disk is full at step 4 only: training goes on, and step 8 is saved."""
    save = CheckpointStore.save

    def full_at_4(store: CheckpointStore, step: int, *args: Any, **more: Any) -> Path:
        if step == 4:
            raise CheckpointError("cannot save the checkpoint of step 4: No space left on device")
        return save(store, step, *args, **more)

    monkeypatch.setattr(CheckpointStore, "save", full_at_4)
    events: list[Event] = []
    weights = train(dataset, tmp_path / "a", events=events)
    assert [event.step for event in events if isinstance(event, Saved)] == [8, 12]
    (warning,) = (event.text for event in events if isinstance(event, Note))
    assert "No space left" in warning
    monkeypatch.undo()
    assert same(weights, train(dataset, tmp_path / "b"))


def test_a_last_save_that_fails_is_an_error(dataset, tmp_path, monkeypatch):
    save = CheckpointStore.save

    def full_at_12(store: CheckpointStore, step: int, *args: Any, **more: Any) -> Path:
        if step == 12:
            raise CheckpointError("cannot save the checkpoint of step 12: No space left on device")
        return save(store, step, *args, **more)

    monkeypatch.setattr(CheckpointStore, "save", full_at_12)
    with pytest.raises(CheckpointError, match="step 12"):
        train(dataset, tmp_path)
    assert CheckpointStore(tmp_path).newest(pytest.fail).step == 8
