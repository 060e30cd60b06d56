"""The optimizer sharded over real processes: the same bits as one worker, whatever the number of workers.

A step's gradient is the sum of four parts, dealt to the workers. They are multiples of 2^-10, so that their sum is
exact in any order.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.model import ModelConfig, Transformer
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.scaling import Hyperparameters
from nanochat.workers import Workers
from tests.optim.processes import in_processes

CONFIG = replace(ModelConfig.from_depth(3, 60, 16), width=32, head_dim=16)
PEAK = Hyperparameters(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.03, scalar_lr=0.05, weight_decay=0.3)
PARTS, STEPS, SAVED_AT = 4, 10, 5

Tensors = dict[str, Tensor]
Saved = tuple[Tensors, Tensors]  # the optimizer's state, the weights


def give_gradients(model: Transformer, number: int, workers: Workers) -> None:
    """This worker's parts of step `number`'s gradient."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for part in range(PARTS):
        generator = torch.Generator().manual_seed(number * PARTS + part)
        for parameter in model.parameters():
            whole = torch.randint(-512, 513, parameter.shape, generator=generator) / 1024
            if part % workers.size == workers.rank and parameter.grad is not None:
                parameter.grad += whole


def reduced_norm(optimizer: MuonAdamW) -> float:
    """Of the sum of all workers' gradients, which are reduced."""
    (square,) = optimizer.workers.sum_tensors(optimizer.reduce_gradients())
    return square**0.5


def train(model: Transformer, optimizer: MuonAdamW, first: int, last: int) -> list[float]:
    """Gradient norms of steps first to last - 1."""
    norms = []
    for number in range(first, last):
        give_gradients(model, number, optimizer.workers)
        norms.append(reduced_norm(optimizer))
        optimizer.step(1 - 0.05 * number, 0.85 + 0.01 * number, 0.5)
    return norms


def copied(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def train_all(workers: Workers) -> dict[str, Any]:
    """Ten steps from the beginning, with the state after five."""
    model = Transformer(CONFIG)
    optimizer = MuonAdamW(model, PEAK, workers=workers)
    norms = train(model, optimizer, 0, 1)
    sent = workers.traffic.bytes_sent
    norms += train(model, optimizer, 1, SAVED_AT)
    saved = copied(optimizer.state_dict()), copied(model.state_dict())
    norms += train(model, optimizer, SAVED_AT, STEPS)
    return {"norms": norms, "saved": saved, "state": copied(optimizer.state_dict()),
            "weights": copied(model.state_dict()), "length": optimizer.partition.length, "bytes_sent": sent,
            "state_elements": sum(tensor.numel() for tensor in optimizer.state.values())}


def resume(workers: Workers, saved: Saved, *, forget: str = "", by: int = 0) -> Saved:
    """State and weights after the steps that follow the saved ones, where rank `by` forgets some of the state."""
    state, weights = saved
    model = Transformer(CONFIG, seed=9)
    model.load_state_dict(weights)
    optimizer = MuonAdamW(model, PEAK, workers=workers)
    optimizer.load_state_dict(state)
    for name, tensor in optimizer.state.items():
        if forget and workers.rank == by and name.startswith(forget):
            tensor.zero_()
    train(model, optimizer, SAVED_AT, STEPS)
    return copied(optimizer.state_dict()), copied(model.state_dict())


def resume_well_and_badly(workers: Workers, saved: Saved) -> dict[str, Saved]:
    outcomes = {"whole": resume(workers, saved)}
    for forget in ("momentum", "row_square", "mean", "square"):
        for by in range(workers.size):
            outcomes[f"rank {by} without {forget}"] = resume(workers, saved, forget=forget, by=by)
    return outcomes


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # products of matrices may add in another order on more
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(one_thread: None) -> dict[str, Any]:
    return train_all(Workers())


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of several workers has after ten steps."""
    return in_processes(request.param, tmp_path_factory.mktemp("ranks"), train_all)


def test_all_ranks_have_the_weights_of_one_worker(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for outcome in ranks:
        assert same(outcome["weights"], alone["weights"])
        assert outcome["norms"] == ranks[0]["norms"]
        assert outcome["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    assert not same(alone["weights"], alone["saved"][1])


def test_rank_0_has_the_whole_state_and_the_others_nothing(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert same(ranks[0]["state"], alone["state"])
    assert same(ranks[0]["saved"][0], alone["saved"][0])
    assert all(outcome["state"] == {} for outcome in ranks[1:])


def test_the_state_is_divided_evenly(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    held = [outcome["state_elements"] for outcome in ranks]
    assert sum(held) == alone["state_elements"] == sum(tensor.numel() for tensor in alone["state"].values()) - 1
    assert max(held) < 1.1 * alone["state_elements"] / len(ranks)


def test_one_step_sends_no_more_than_an_all_reduce(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """A reduce-scatter and an all-gather of the padded fp32 parameters, and the norm as one float64; updating
    everything everywhere would need the all-reduce of the gradients, the same but for the padding."""
    size = len(ranks)
    elements = sum(parameter.numel() for parameter in Transformer(CONFIG).parameters())
    share = 2 * (size - 1) / size
    for outcome in ranks:
        padding = size * outcome["length"] - elements
        assert outcome["bytes_sent"] == share * (4 * (elements + padding) + 8)
        assert 0 <= padding < 0.005 * elements
        assert outcome["bytes_sent"] - share * 4 * elements == share * (4 * padding + 8)
    assert alone["bytes_sent"] == 0


def test_a_state_of_several_workers_continues_on_one(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    state, weights = resume(Workers(), ranks[0]["saved"])
    assert same(state, alone["state"])
    assert same(weights, alone["weights"])


def test_a_state_continues_on_other_workers_and_no_shard_may_be_forgotten(
        ranks: list[dict[str, Any]], alone: dict[str, Any], tmp_path: Path) -> None:
    """What four saved on two, what two saved on four."""
    outcomes = in_processes(6 - len(ranks), tmp_path, resume_well_and_badly, ranks[0]["saved"])
    for outcome in outcomes:
        for how, (_, weights) in outcome.items():
            assert same(weights, alone["weights"]) == (how == "whole"), how
    assert same(outcomes[0]["whole"][0], alone["state"])


def refuse_what_is_not_finite(workers: Workers) -> dict[str, Any]:
    """The second step's gradient holds one NaN, on the last rank."""
    model = Transformer(CONFIG)
    optimizer = MuonAdamW(model, PEAK, workers=workers)
    train(model, optimizer, 0, 1)
    before = copied(model.state_dict())
    give_gradients(model, 1, workers)
    if workers.rank == workers.size - 1:
        model.embedding.grad[3, 3] = float("nan")
    norm = reduced_norm(optimizer)
    untouched = same(before, model.state_dict())
    optimizer.drop_gradients()
    with pytest.raises(AssertionError, match="reduce_gradients"):
        optimizer.step(1.0, 0.9)
    with pytest.raises(AssertionError, match="every parameter"):
        optimizer.reduce_gradients()
    train(model, optimizer, 1, 2)
    return {"norm": norm, "untouched": untouched, "weights": model.state_dict()}


def test_every_rank_learns_of_one_that_is_not_finite(one_thread: None, tmp_path: Path) -> None:
    model = Transformer(CONFIG)
    train(model, MuonAdamW(model, PEAK), 0, 2)
    for outcome in in_processes(2, tmp_path, refuse_what_is_not_finite):
        assert outcome["norm"] != outcome["norm"]
        assert outcome["untouched"]
        assert same(outcome["weights"], model.state_dict())


def test_one_worker_updates_in_place() -> None:
    """Gradients stay where they are until the step; the state dict is the state itself."""
    model = Transformer(CONFIG)
    optimizer = MuonAdamW(model, PEAK)
    give_gradients(model, 0, Workers())
    before = {name: (p.data_ptr(), p.grad.data_ptr()) for name, p in model.named_parameters()}
    optimizer.reduce_gradients()
    assert before == {name: (p.data_ptr(), p.grad.data_ptr()) for name, p in model.named_parameters()}
    optimizer.step(1.0, 0.9)
    assert {name: pointers[0] for name, pointers in before.items()} == {
        name: p.data_ptr() for name, p in model.named_parameters()}
    for name, tensor in optimizer.state.items():
        assert optimizer.state_dict()[name].data_ptr() == tensor.data_ptr()


def test_faults_can_strike_within_a_step() -> None:
    model = Transformer(CONFIG)
    optimizer = MuonAdamW(model, PEAK)
    give_gradients(model, 0, Workers())
    points: list[str] = []
    optimizer.step(1.0, 0.9, fault=points.append)
    assert points == ["update", "all_gather"]
