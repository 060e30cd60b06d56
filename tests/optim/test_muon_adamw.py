"""The optimizer against an independent, matrix-by-matrix computation; its state; which parameter goes where."""

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch import Tensor

from nanochat.model import ModelConfig, Transformer
from nanochat.optim.groups import group_parameters
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.orthogonalize import orthogonalize
from nanochat.optim.scaling import Hyperparameters

CONFIG = replace(ModelConfig.from_depth(3, 60, 16), width=32, head_dim=16)
PEAK = Hyperparameters(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.03, scalar_lr=0.05, weight_decay=0.3)


def gradients(model: Transformer, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(p.shape, generator=generator) * 0.1 for name, p in model.named_parameters()}


def step(model: Transformer, optimizer: MuonAdamW, number: int) -> None:
    for name, gradient in gradients(model, number).items():
        model.get_parameter(name).grad = gradient
    optimizer.step(lr_factor=1 - 0.1 * number, momentum=0.85 + 0.02 * number, decay_factor=0.5)


class PlainMuon:
    """One matrix (rows, columns), in double precision where it does not matter to be the same."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.momentum = matrix.clone(), torch.zeros_like(matrix)
        self.row_square = torch.zeros(max(matrix.shape))

    def step(self, gradient: Tensor, lr: float, decay: float, beta: float) -> None:
        self.momentum = beta * self.momentum + (1 - beta) * gradient
        nesterov = beta * self.momentum + (1 - beta) * gradient
        wide = nesterov.size(0) < nesterov.size(1)
        update = orthogonalize((nesterov.T if wide else nesterov)[None])[0]
        size = update.norm()
        self.row_square = 0.95 * self.row_square + 0.05 * update.square().mean(1)
        update = update / self.row_square.sqrt()[:, None]
        update = update * size / update.norm()
        update = update.T if wide else update
        shrink = torch.where(update * self.matrix >= 0, self.matrix, 0.0)
        scale = sqrt(max(1.0, update.size(0) / update.size(1)))
        self.matrix = self.matrix - lr * (scale * update + decay * shrink)


def test_muon_equals_the_plain_computation() -> None:
    model = Transformer(CONFIG, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    optimizer = MuonAdamW(model, PEAK)
    matrices = {name: [PlainMuon(m) for m in p.detach().reshape(-1, *p.shape[-2:])]
                for name, p in model.named_parameters() if name.startswith("blocks") and "gate" not in name}
    for number in range(4):
        step(model, optimizer, number)
        for name, parts in matrices.items():
            for part, gradient in zip(parts, gradients(model, number)[name].reshape(-1, *parts[0].matrix.shape),
                                      strict=True):
                part.step(gradient, 0.02 * (1 - 0.1 * number), 0.3 * 0.5, 0.85 + 0.02 * number)
    for name, parts in matrices.items():
        expected = torch.stack([part.matrix for part in parts]).view_as(model.get_parameter(name))
        torch.testing.assert_close(model.get_parameter(name).detach(), expected, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("name", "lr", "betas"), [
    ("embedding", 0.1, (0.8, 0.95)), ("value_embeddings.0", 0.1, (0.8, 0.95)), ("head", 0.03, (0.8, 0.95)),
    ("residual_scalars", 0.0005, (0.8, 0.95)), ("input_scalars", 0.05, (0.96, 0.95)),
    ("blocks.2.value_gate", 0.05, (0.96, 0.95))])
def test_adamw_equals_torch(name: str, lr: float, betas: tuple[float, float]) -> None:
    model = Transformer(CONFIG)
    optimizer = MuonAdamW(model, PEAK)
    reference = torch.nn.Parameter(model.get_parameter(name).detach().clone())
    torch_optimizer = torch.optim.AdamW([reference], lr=lr, betas=betas, eps=1e-10, weight_decay=0.0)
    for number in range(4):
        step(model, optimizer, number)
        reference.grad = gradients(model, number)[name]
        torch_optimizer.param_groups[0]["lr"] = lr * (1 - 0.1 * number)
        torch_optimizer.step()
    torch.testing.assert_close(model.get_parameter(name), reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("classic", [False, True])
def test_every_parameter_is_in_exactly_one_group(classic: bool) -> None:
    model = Transformer(ModelConfig.from_depth(3, 60, 16, classic=classic))
    adamw, muon = group_parameters(dict(model.named_parameters()), PEAK)
    grouped = [name for group in (*adamw, *muon) for name in group.names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    for name in [name for group in muon for name in group.names]:
        assert name.startswith("blocks.")
        assert "gate" not in name


def test_a_reloaded_state_continues_with_the_same_bits() -> None:
    whole, resumed = Transformer(CONFIG), Transformer(CONFIG, seed=9)
    optimizer = MuonAdamW(whole, PEAK)
    for number in range(2):
        step(whole, optimizer, number)
    saved = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    resumed.load_state_dict(whole.state_dict())
    continued = MuonAdamW(resumed, PEAK)
    continued.load_state_dict(saved)
    for number in range(2, 4):
        step(whole, optimizer, number)
        step(resumed, continued, number)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    for name, tensor in optimizer.state_dict().items():
        assert torch.equal(tensor, continued.state_dict()[name]), name


def test_a_foreign_state_is_refused_by_name() -> None:
    optimizer = MuonAdamW(Transformer(CONFIG), PEAK)
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"mean\.head"):
        optimizer.load_state_dict({name: tensor for name, tensor in state.items() if name != "mean.head"})
    with pytest.raises(ValueError, match=r"mean\.head"):
        optimizer.load_state_dict({**state, "mean.head": torch.zeros(2, 2)})


def test_a_step_drops_the_gradients() -> None:
    model = Transformer(CONFIG)
    step(model, MuonAdamW(model, PEAK), 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_few_steps_on_one_batch_learn_it() -> None:
    model = Transformer(CONFIG)
    optimizer = MuonAdamW(model, PEAK)
    ids = torch.randint(CONFIG.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss = model.loss_sum(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
        loss.backward()
        optimizer.step(1.0, 0.9)
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_reset_forgets_and_dropped_gradients_are_gone() -> None:
    model, fresh = Transformer(CONFIG), Transformer(CONFIG)
    optimizer = MuonAdamW(model, PEAK)
    step(model, optimizer, 0)
    optimizer.reset()
    model.load_state_dict(fresh.state_dict())
    step(model, optimizer, 1)
    step(fresh, MuonAdamW(fresh, PEAK), 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    model.head.grad = torch.ones_like(model.head)
    optimizer.drop_gradients()
    assert model.head.grad is None


def test_bf16_orthogonalisation_takes_nearly_the_same_step() -> None:
    exact, rounded = Transformer(CONFIG), Transformer(CONFIG)
    step(exact, MuonAdamW(exact, PEAK), 0)
    step(rounded, MuonAdamW(rounded, PEAK, compute_dtype=torch.bfloat16), 0)
    before = dict(Transformer(CONFIG).named_parameters())
    for name, parameter in exact.named_parameters():
        if name.endswith(("qkv", "attention_out", "mlp_in", "mlp_out")):
            moved = (parameter - before[name]).norm()
            assert 0 < (parameter - rounded.get_parameter(name)).norm() < 0.1 * moved, name
