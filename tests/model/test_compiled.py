"""Compiled training: the numbers of plain training, and the same bits every time."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from nanochat.model import ModelConfig, Transformer
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.scaling import Hyperparameters

CONFIG = replace(ModelConfig.from_depth(2, 200, 160), width=64, head_dim=16)
PEAK = Hyperparameters(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.03, scalar_lr=0.05, weight_decay=0.3)


@pytest.fixture
def deterministic() -> Iterator[None]:
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)
    yield
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(threads)


def train(compiled: bool, steps: int = 3) -> tuple[list[float], dict[str, Tensor], Transformer]:
    """Losses, the first step's gradients, and the model after the last."""
    model = Transformer(CONFIG, attention="blocked")
    with torch.no_grad():  # output projections start at zero and would hide the gradients before them
        for block in model.blocks:
            block.attention_out.copy_(block.qkv[0])
            block.mlp_out.copy_(block.mlp_in.T)
    if compiled:
        model.compile_training()
    optimizer = MuonAdamW(model, PEAK)
    ids = torch.randint(20, (4, 161), generator=torch.Generator().manual_seed(0))  # tokens that repeat often
    losses, gradients = [], {}
    for _ in range(steps):
        loss = model.loss_sum(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) / 640
        loss.backward()
        gradients = gradients or {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step(1.0, 0.9)
        losses.append(loss.item())
    return losses, gradients, model


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.usefixtures("deterministic")
def test_compiled_training_repeats_to_the_bit_and_follows_the_plain_one() -> None:
    losses, gradients, model = train(compiled=True)
    again_losses, _, again = train(compiled=True)
    plain_losses, plain_gradients, _ = train(compiled=False)
    assert losses == again_losses
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert losses[0] == pytest.approx(plain_losses[0], rel=1e-5)
    assert losses[-1] < losses[0]
    for name, gradient in plain_gradients.items():
        assert (gradients[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_rows_can_be_halved_to_a_single_one(monkeypatch) -> None:
    """Each number of them is compiled for; by default the compiler refuses the fifth."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, plain = Transformer(CONFIG, attention="blocked"), Transformer(CONFIG, attention="blocked")
    model.compile_training()
    ids = torch.randint(200, (64, 8), generator=torch.Generator().manual_seed(0))
    for rows in (64, 32, 16, 8, 4, 2, 1):
        losses = [each.loss_sum(ids[:rows], ids[:rows]) for each in (model, plain)]
        for loss in losses:
            loss.backward()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert torch.allclose(model.head.grad, plain.head.grad, rtol=1e-4, atol=1e-6)


def test_evaluation_does_not_compile_anew() -> None:
    model = Transformer(CONFIG, attention="blocked")
    model._enter = model._leave = None  # what training would call
    ids = torch.zeros(2, 7, dtype=torch.int64)
    with torch.no_grad():
        assert model.token_losses(ids, ids).shape == (2, 7)
