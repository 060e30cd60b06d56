"""One optimizer for the whole model: Muon for matrices, AdamW for tables, head, gates and scalars.

The state is a flat dict of named tensors, so it is saved and loaded as safetensors. AdamW is PyTorch's fused kernel;
Muon works on all matrices of a shape at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanochat.optim.orthogonalize import orthogonalize
from nanochat.optim.scaling import Hyperparameters

MUON_BETA2 = 0.95  # of the second moment that evens out the sizes of an update's rows (NorMuon, arXiv:2510.05491)
EPSILON = 1e-10


@dataclass(frozen=True)
class AdamWGroup:
    """Parameters that share AdamW's settings."""

    names: tuple[str, ...]
    lr: float
    betas: tuple[float, float]


@dataclass(frozen=True)
class MuonGroup:
    """Matrices of one shape, updated as one batch."""

    names: tuple[str, ...]


def muon_update(parameters: Sequence[Tensor], gradients: Sequence[Tensor], momentum: Tensor, square: Tensor, lr: Tensor,
                decay: Tensor, beta: Tensor, steps: int, dtype: torch.dtype) -> None:
    """Muon (Jordan et al. 2024) with Nesterov momentum, rows evened out as in NorMuon and cautious weight decay
    (arXiv:2510.12402), in place.

    Args:
        parameters, gradients: tensors (…, rows, columns), each holding one or more matrices of the same shape.
        momentum: (matrices, rows, columns).
        square: one number for each row of the longer side, (matrices, rows, 1) or (matrices, 1, columns).
        lr, decay, beta: 0-d.
        steps, dtype: of the orthogonalisation.
    """
    update = torch.cat([gradient.reshape(-1, *gradient.shape[-2:]) for gradient in gradients])
    momentum.lerp_(update, 1 - beta)
    update = orthogonalize(update.lerp_(momentum, beta).to(dtype), steps).float()
    rows, columns = update.shape[-2:]
    long, short = (-2, -1) if rows >= columns else (-1, -2)
    power = update.square().mean(short, keepdim=True)
    square.lerp_(power, 1 - MUON_BETA2)
    even = square.clamp_min(EPSILON).rsqrt()
    # rescale so that evening out keeps each matrix's Frobenius norm
    norm = (power.sum(long, keepdim=True) / (power * even.square()).sum(long, keepdim=True).clamp_min(EPSILON)).sqrt()
    # an orthogonal matrix taller than wide has smaller entries; keep the update's effect on outputs (Muon's reference)
    update *= even * norm * (lr * max(1.0, rows / columns) ** 0.5)
    counts = [parameter.numel() // (rows * columns) for parameter in parameters]
    for parameter, part in zip(parameters, update.split(counts), strict=True):
        delta = part.view_as(parameter)
        agrees = delta * parameter >= 0
        parameter.mul_(1 - lr * decay * agrees).sub_(delta)


class MuonAdamW:
    """The optimizer of a `Transformer`.

    Args:
        model: its parameters are grouped by name and shape.
        peak: learning rates at a schedule factor of 1, and weight decay.
        compiler: wraps Muon's update, e.g. `torch.compile`; None runs it as it is. At depth 4 on CPU compiling took
            25 s and saved 25 ms of one core's time a step: a thousand steps only repay it.
        muon_steps: polynomials of the orthogonalisation.
        compute_dtype: what the orthogonalisation multiplies in; bf16 is enough where it is faster.
    """

    def __init__(self, model: nn.Module, peak: Hyperparameters, *,
                 compiler: Callable[[Callable[..., None]], Callable[..., None]] | None = None,
                 muon_steps: int = 5, compute_dtype: torch.dtype = torch.float32) -> None:
        self.parameters = dict(model.named_parameters())
        self.peak, self.muon_steps, self.compute_dtype = peak, muon_steps, compute_dtype
        self.adamw_groups, self.muon_groups = group_parameters(self.parameters, peak)
        self._muon_update = compiler(muon_update) if compiler else muon_update
        self.state: dict[str, Tensor] = {"step": torch.zeros((), device=next(iter(self.parameters.values())).device)}
        for adamw in self.adamw_groups:
            for name in adamw.names:
                self.state[f"mean.{name}"] = torch.zeros_like(self.parameters[name], requires_grad=False)
                self.state[f"square.{name}"] = torch.zeros_like(self.parameters[name], requires_grad=False)
        for index, muon in enumerate(self.muon_groups):
            like = self.parameters[muon.names[0]]
            rows, columns = like.shape[-2:]
            count = sum(self.parameters[name].numel() for name in muon.names) // (rows * columns)
            self.state[f"momentum.{index}"] = like.new_zeros((count, rows, columns))
            long_side = (count, rows, 1) if rows >= columns else (count, 1, columns)
            self.state[f"row_square.{index}"] = like.new_zeros(long_side)

    @torch.no_grad()
    def step(self, lr_factor: float, momentum: float, decay_factor: float = 1.0) -> None:
        """Update every parameter from its gradient, then drop the gradients.

        Args:
            lr_factor: the schedule's factor on all learning rates.
            momentum: Muon's momentum at this step.
            decay_factor: factor on the weight decay.
        """
        self.state["step"] += 1
        self._step_adamw(lr_factor)
        self._step_muon(lr_factor * self.peak.matrix_lr, self.peak.weight_decay * decay_factor, momentum)
        self.drop_gradients()

    def reset(self) -> None:
        """Forget everything, as before the first step."""
        for tensor in self.state.values():
            tensor.zero_()

    def drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def _step_adamw(self, lr_factor: float) -> None:
        """AdamW without weight decay (arXiv:1711.05101), with the kernel behind `torch.optim.AdamW(fused=True)`."""
        for group in self.adamw_groups:
            parameters: list[Tensor] = [self.parameters[name] for name in group.names]
            torch._fused_adamw_(
                parameters, _gradients(parameters), [self.state[f"mean.{name}"] for name in group.names],
                [self.state[f"square.{name}"] for name in group.names], [], [self.state["step"]] * len(parameters),
                lr=lr_factor * group.lr, beta1=group.betas[0], beta2=group.betas[1], eps=EPSILON, weight_decay=0.0,
                amsgrad=False, maximize=False)

    def _step_muon(self, *factors: float) -> None:
        # as tensors, so that compiled code does not take a new learning rate for a new function
        lr, decay, beta = torch.tensor(factors, device=self.state["step"].device).unbind()
        for index, group in enumerate(self.muon_groups):
            parameters = [self.parameters[name] for name in group.names]
            self._muon_update(parameters, _gradients(parameters), self.state[f"momentum.{index}"],
                              self.state[f"row_square.{index}"], lr, decay, beta, self.muon_steps, self.compute_dtype)

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


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters), "every parameter takes part in every step"
    return gradients


def group_parameters(parameters: dict[str, nn.Parameter],
                     peak: Hyperparameters) -> tuple[list[AdamWGroup], list[MuonGroup]]:
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
            [MuonGroup(tuple(names)) for names in muon.values()])
