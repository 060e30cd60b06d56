"""One optimizer for the whole model: Muon for matrices, AdamW for tables, head, gates and scalars.

The state is a flat dict of named tensors, so it is saved and loaded as safetensors. The update itself is a handful of
pure tensor functions that `torch.compile` turns into one graph each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanochat.optim.orthogonalize import orthogonalize
from nanochat.optim.scaling import Hyperparameters

MUON_BETA2 = 0.95  # of the running second moment that evens out the sizes of an update's rows (NorMuon, arXiv:2510.05491)
EPSILON = 1e-10


@dataclass(frozen=True)
class AdamWGroup:
    """Parameters that share AdamW's settings."""

    names: tuple[str, ...]
    lr: float
    betas: tuple[float, float]


@dataclass(frozen=True)
class MuonGroup:
    """Matrices of one shape, updated as one batch. `tall` matrices have at least as many rows as columns."""

    names: tuple[str, ...]
    tall: bool


def adamw_update(parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, lr: Tensor, beta1: float,
                 beta2: float, step: Tensor) -> None:
    """AdamW without weight decay (arXiv:1711.05101), in place. `lr` and `step` are 0-d tensors."""
    mean.lerp_(gradient, 1 - beta1)
    square.lerp_(gradient.square(), 1 - beta2)
    corrected = (square / (1 - beta2**step)).sqrt_().add_(EPSILON)
    parameter.sub_(lr / (1 - beta1**step) * (mean / corrected))


def muon_update(parameters: list[Tensor], gradients: list[Tensor], momentum: Tensor, square: Tensor, lr: Tensor,
                decay: Tensor, beta: Tensor, tall: bool, steps: int) -> None:
    """Muon (Jordan et al. 2024) with Nesterov momentum, rows evened out as in NorMuon and cautious weight decay
    (arXiv:2510.12402), in place.

    parameters, gradients: n tensors of shape (…, rows, columns), each holding one or more matrices; momentum:
    (matrices, long side, short side); square: (matrices, long side, 1); lr, decay, beta: 0-d tensors.
    """
    stacked = torch.cat([g.reshape(-1, *g.shape[-2:]) for g in gradients])
    oriented = stacked if tall else stacked.mT
    momentum.lerp_(oriented, 1 - beta)
    update = orthogonalize(oriented.lerp(momentum, beta), steps)
    row_power = update.square().mean(-1, keepdim=True)
    square.lerp_(row_power, 1 - MUON_BETA2)
    even = square.clamp_min(EPSILON).rsqrt()
    # rescale so that evening out keeps each matrix's Frobenius norm
    norm = row_power.sum(-2, keepdim=True).sqrt() / (row_power * even.square()).sum(-2, keepdim=True).sqrt().clamp_min(EPSILON)
    update = update * (even * norm)
    update = update if tall else update.mT
    # an orthogonal matrix taller than wide has smaller entries; keep the update's effect on outputs (Muon's reference)
    scale = max(1.0, update.size(-2) / update.size(-1)) ** 0.5
    start = 0
    for parameter in parameters:
        count = parameter.numel() // (parameter.size(-1) * parameter.size(-2))
        delta = update[start : start + count].view_as(parameter)
        agrees = (delta * parameter) >= 0
        parameter.sub_(lr * scale * delta + lr * decay * parameter * agrees)
        start += count


class MuonAdamW:
    """The optimizer of a `Transformer`.

    Args:
        model: its parameters are grouped by name and shape.
        peak: learning rates at a schedule factor of 1, and weight decay.
        compiler: wraps each update function, e.g. `torch.compile`; None runs them as they are.
        muon_steps: products of the orthogonalisation.
    """

    def __init__(self, model: nn.Module, peak: Hyperparameters, *,
                 compiler: Callable[[Callable[..., None]], Callable[..., None]] | None = None,
                 muon_steps: int = 5) -> None:
        self.parameters = dict(model.named_parameters())
        self.peak, self.muon_steps = peak, muon_steps
        self.adamw_groups, self.muon_groups = group_parameters(self.parameters, peak)
        self.state: dict[str, Tensor] = {"step": torch.zeros(())}
        for adamw in self.adamw_groups:
            for name in adamw.names:
                self.state[f"mean.{name}"] = torch.zeros_like(self.parameters[name], requires_grad=False)
                self.state[f"square.{name}"] = torch.zeros_like(self.parameters[name], requires_grad=False)
        for index, muon in enumerate(self.muon_groups):
            shape = self._stacked_shape(muon)
            like = self.parameters[muon.names[0]]
            self.state[f"momentum.{index}"] = like.new_zeros(shape, requires_grad=False)
            self.state[f"row_square.{index}"] = like.new_zeros((*shape[:-1], 1), requires_grad=False)
        wrap = compiler or (lambda function: function)
        self._adamw, self._muon = wrap(self._adamw_all), wrap(self._muon_all)

    def _stacked_shape(self, group: MuonGroup) -> tuple[int, int, int]:
        rows, columns = self.parameters[group.names[0]].shape[-2:]
        count = sum(self.parameters[name].numel() for name in group.names) // (rows * columns)
        return count, max(rows, columns), min(rows, columns)

    @torch.no_grad()
    def step(self, lr_factor: float, momentum: float, decay_factor: float = 1.0) -> None:
        """Update every parameter that has a gradient, then drop the gradients.

        Args:
            lr_factor: the schedule's factor on all learning rates.
            momentum: Muon's momentum at this step.
            decay_factor: factor on the weight decay.
        """
        self.state["step"] += 1
        factor = torch.tensor(lr_factor)
        self._adamw(factor)
        self._muon(factor * self.peak.matrix_lr, torch.tensor(self.peak.weight_decay * decay_factor),
                   torch.tensor(momentum))
        self.drop_gradients()

    def reset(self) -> None:
        """Forget everything, as before the first step."""
        for tensor in self.state.values():
            tensor.zero_()

    def drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def _adamw_all(self, factor: Tensor) -> None:
        for group in self.adamw_groups:
            for name in group.names:
                parameter = self.parameters[name]
                assert parameter.grad is not None
                adamw_update(parameter, parameter.grad, self.state[f"mean.{name}"], self.state[f"square.{name}"],
                             factor * group.lr, *group.betas, self.state["step"])

    def _muon_all(self, lr: Tensor, decay: Tensor, momentum: Tensor) -> None:
        for index, group in enumerate(self.muon_groups):
            parameters = [self.parameters[name] for name in group.names]
            muon_update(parameters, [p.grad for p in parameters if p.grad is not None],
                        self.state[f"momentum.{index}"], self.state[f"row_square.{index}"],
                        lr, decay, momentum, group.tall, self.muon_steps)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor the next step depends on."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a saved state. Raises ValueError when names or shapes differ from this model's."""
        if state.keys() != self.state.keys():
            raise ValueError(f"optimizer state differs in {sorted(state.keys() ^ self.state.keys())[:5]}")
        for name, tensor in self.state.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"optimizer state {name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(state[name])


def group_parameters(parameters: dict[str, nn.Parameter], peak: Hyperparameters) -> tuple[list[AdamWGroup], list[MuonGroup]]:
    """Which parameter is updated how. Matrices of blocks go to Muon by shape, everything else to AdamW."""
    adamw: dict[tuple[float, tuple[float, float]], list[str]] = {}
    muon: dict[tuple[int, int], list[str]] = {}
    for name, parameter in parameters.items():
        if name == "embedding" or name.startswith("value_embeddings"):
            adamw.setdefault((peak.embedding_lr, (0.8, 0.95)), []).append(name)
        elif name == "head":
            adamw.setdefault((peak.head_lr, (0.8, 0.95)), []).append(name)
        elif name == "residual_scalars":  # a factor on the whole stream: moved a hundred times more carefully
            adamw.setdefault((peak.scalar_lr * 0.01, (0.8, 0.95)), []).append(name)
        elif name == "input_scalars" or name.endswith("value_gate"):
            adamw.setdefault((peak.scalar_lr, (0.96, 0.95)), []).append(name)
        else:
            rows, columns = parameter.shape[-2:]
            muon.setdefault((rows, columns), []).append(name)
    return ([AdamWGroup(tuple(names), lr, betas) for (lr, betas), names in adamw.items()],
            [MuonGroup(tuple(names), tall=rows >= columns) for (rows, columns), names in muon.items()])
