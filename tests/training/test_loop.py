"""The loop against its promises: same seed same bits, exact resume, one loss however the batch is cut."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.config import StageConfig
from nanochat.data.batches import IGNORE, Batch, Batches
from nanochat.data.dataset import TokenDataset
from nanochat.data.shards import build_text_shards
from nanochat.errors import UserError
from nanochat.events import Event, Note, RolledBack, Saved, StepDone, Validated
from nanochat.model import ModelConfig, Transformer
from nanochat.model.loss import CHUNK_TOKENS
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.scaling import Hyperparameters
from nanochat.optim.schedule import Schedule
from nanochat.tokenizer import Tokenizer
from nanochat.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from nanochat.training.loop import Interrupted, train_stage
from nanochat.training.stage import Surroundings, Trainee
from nanochat.workers import Workers

ROW = 32
MODEL = ModelConfig.from_depth(2, 512, ROW)
STAGE = StageConfig(
    num_iterations=12,
    total_batch_size=8 * ROW,
    device_batch_size=4,
    schedule=Schedule(),
    eval_every=5,
    checkpoint_every=4,
)
PEAK = Hyperparameters(0.01, 0.1, 0.005, 0.05, 0.1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    directory = tmp_path_factory.mktemp("loop")
    words = "the cat saw a red bird on one old tree while two dogs slept near her small green door".split()  # noqa: SIM905
    texts = [" ".join(words[(i * 7 + j * j) % len(words)] for j in range(5 + i % 40)) for i in range(400)]
    (directory / "text.txt").write_text("<|endoftext|>".join(texts))
    tokenizer = Tokenizer.train(texts, 300)
    return build_text_shards(
        [directory / "text.txt"], tokenizer, directory / "shards", split="all", row_tokens=ROW, packing="best_fit"
    )


def trainee() -> Trainee:
    model = Transformer(MODEL, seed=3)
    return Trainee(model, MuonAdamW(model, PEAK))


def train(
    dataset: TokenDataset,
    directory: Path,
    stage: StageConfig = STAGE,
    subject: Trainee | None = None,
    events: list[Event] | None = None,
    batches: Batches | None = None,
    **around: Any,
) -> dict[str, torch.Tensor]:
    """Train from the newest checkpoint in `directory`, or from the start; the final weights."""
    subject = subject or trainee()
    store = CheckpointStore(directory)

    def regular(step: int) -> bool:
        return step % stage.checkpoint_every == 0

    def restore(wanted: Callable[[int], bool] = regular) -> Checkpoint | None:
        found = store.newest(pytest.fail, wanted)
        if found:
            subject.model.load_state_dict(found.tensors("model"))
            subject.optimizer.load_state_dict(found.tensors("optimizer"))
        else:
            subject.model.initialise(3)
            subject.optimizer.reset()
        return found

    surroundings = Surroundings(
        workers=around.pop("workers", Workers()),
        store=store,
        emit=(events if events is not None else []).append,
        validate=lambda rows: 1.0,
        should_stop=around.pop("should_stop", lambda: False),
        restore=restore,
        identity={},
        peak_flops=1e12,
        **around,
    )
    found = restore(lambda step: True)
    train_stage("base", stage, subject, batches or Batches(dataset, 8, seed=1), surroundings, found)
    return {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left.keys() | right.keys())


def test_the_same_seed_gives_the_same_bits_and_the_loss_falls(dataset, tmp_path):
    events: list[Event] = []
    assert same(train(dataset, tmp_path / "a", events=events), train(dataset, tmp_path / "b"))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    assert losses[0] == pytest.approx(math.log(512), rel=0.02)
    assert losses[-1] < losses[0] - 1


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


@pytest.mark.parametrize("stop_after", [3, 7, 9, 12, 15])
def test_a_run_that_rolls_back_resumes_exactly(dataset, tmp_path, stop_after):
    """Stopped before, while and after it diverges, it ends with the same bits."""
    bad = {5, 6, 7}
    undisturbed = train(dataset, tmp_path / "a", subject=fragile(), batches=Poisoned(dataset, bad))
    events: list[Event] = []

    def stop() -> bool:
        return sum(isinstance(event, StepDone) for event in events) == stop_after

    around = {"should_stop": stop, "events": events}
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
            optimizer.reduce_gradients()
            optimizer.step(1.0, 0.9)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# --- a deadline -----------------------------------------------------------------------------------------------------


class Timed:
    """A clock that steps and evaluations move on, and nothing else."""

    def __init__(self, step_s: float, evaluation_s: float, now: float = 0.0) -> None:
        self.seconds, self.now = {"backward": step_s, "evaluation": evaluation_s}, now

    def __call__(self) -> float:
        return self.now

    def pass_(self, point: str) -> None:
        self.now += self.seconds.get(point, 0.0)


@pytest.mark.parametrize("step_s", [0.7, 3.0, 20.0])
def test_a_stage_ends_before_its_deadline_evaluated_and_cooled_down(dataset, tmp_path, step_s):
    """As many steps as there is time for, the last of them at a low learning rate, and the rest kept as asked."""
    stage = replace(STAGE, num_iterations=1000, deadline_s=60.0, tail_s=4.0, eval_every=1000, checkpoint_every=1000)
    time, events = Timed(step_s, evaluation_s=2.0), []
    train(dataset, tmp_path, stage, events=events, clock=time, run_clock=time, fault=time.pass_)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert 60 - 4 - 1.3 * 2 - step_s - 1 < time.now - 2 <= 60 - 4 - 2
    assert [event.step for event in events if isinstance(event, Validated)] == [0, len(steps)]
    assert CheckpointStore(tmp_path).steps() == [len(steps)]
    assert steps[-1].lr_factor < 0.05 + 4 * step_s / 50
    factors = [event.lr_factor for event in steps]
    assert all(abs(a - b) < 4 * step_s / 60 for a, b in itertools.pairwise(factors))


def test_an_evaluation_that_compiled_keeps_no_time_from_the_steps(dataset, tmp_path):
    stage = replace(STAGE, num_iterations=1000, deadline_s=100.0, eval_every=10, checkpoint_every=1000)
    time, events = Timed(1.0, 20.0), []

    def pass_(point: str) -> None:
        time.pass_(point)
        if point == "evaluation":
            time.seconds["evaluation"] = 2.0

    train(dataset, tmp_path, stage, events=events, clock=time, run_clock=time, fault=pass_)
    assert 95 < time.now <= 100
    assert [e for e in events if isinstance(e, StepDone)][-1].lr_factor < 0.15


def test_resumed_before_a_deadline_it_goes_on_at_the_same_rate_and_ends_in_time(dataset, tmp_path):
    stage = replace(STAGE, num_iterations=1000, deadline_s=100.0, checkpoint_every=10)
    time, first, second = Timed(1.0, 0.5), [], []
    with pytest.raises(Interrupted):
        train(dataset, tmp_path, stage, events=first, clock=time, run_clock=time, fault=time.pass_,
              should_stop=lambda: time.now > 60)  # fmt: skip
    time = Timed(1.0, 0.5, now=time.now + 15)
    train(dataset, tmp_path, stage, events=second, clock=time, run_clock=time, fault=time.pass_)
    before, after = ([e.lr_factor for e in part if isinstance(e, StepDone)] for part in (first, second))
    assert after[0] == pytest.approx(before[-1], abs=0.03)
    assert 97 < time.now <= 100
    assert after[-1] < 0.15


def test_past_its_deadline_a_stage_only_evaluates_and_saves(dataset, tmp_path):
    time, events = Timed(1.0, 1.0, now=70.0), []
    train(dataset, tmp_path, replace(STAGE, deadline_s=60.0), events=events, clock=time, run_clock=time)
    assert not [event for event in events if isinstance(event, StepDone)]
    assert [event.text for event in events if isinstance(event, Note) and event.warning] == [
        "the time was up before the first step: the weights are what they were"
    ]
    assert CheckpointStore(tmp_path).steps() == [0]
