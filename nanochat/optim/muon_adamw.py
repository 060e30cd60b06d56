"""One optimizer for the whole model: Muon for matrices, AdamW for tables, head, gates and scalars.

The state is a flat dict of named tensors, so it is saved and loaded as safetensors. AdamW is PyTorch's fused kernel;
Muon works on all matrices of a shape at once. Workers share the work and the state.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from nanochat.optim.groups import group_parameters
from nanochat.optim.orthogonalize import orthogonalize
from nanochat.optim.partition import Piece, partition
from nanochat.optim.scaling import Hyperparameters
from nanochat.optim.segments import pack, unpack, views
from nanochat.optim.state import StateLayout
from nanochat.workers import Workers

MUON_BETA2 = 0.95  # of the second moment that evens out the sizes of an update's rows (NorMuon, arXiv:2510.05491)
EPSILON = 1e-10


def muon_update(parameters: Sequence[Tensor], gradients: Sequence[Tensor], momentum: Tensor, square: Tensor, lr: Tensor,
                decay: Tensor, beta: Tensor, steps: int, dtype: torch.dtype,
                apply: Callable[..., None] | None = None) -> None:
    """Muon (Jordan et al. 2024) with Nesterov momentum, rows evened out as in NorMuon and cautious weight decay
    (arXiv:2510.12402), in place.

    Args:
        parameters, gradients: tensors (…, rows, columns), each holding one or more matrices of the same shape.
        momentum: (matrices, rows, columns).
        square: one number for each row of the longer side, (matrices, rows, 1) or (matrices, 1, columns).
        lr, decay, beta: 0-d.
        steps, dtype: of the orthogonalisation.
        apply: `apply_update` or its compiled form.
    """
    update = torch.cat([gradient.reshape(-1, *gradient.shape[-2:]) for gradient in gradients])
    momentum.lerp_(update, 1 - beta)
    update = orthogonalize(update.lerp_(momentum, beta).to(dtype), steps)
    counts = [parameter.numel() // update[0].numel() for parameter in parameters]
    for parts in zip(parameters, update.split(counts), square.split(counts), strict=True):
        (apply or apply_update)(*parts, lr, decay)


def apply_update(parameter: Tensor, update: Tensor, square: Tensor, lr: Tensor, decay: Tensor) -> None:
    """The part of `muon_update` after the orthogonalisation, for one parameter: elementwise, or sums over a side."""
    update = update.float()
    rows, columns = update.shape[-2:]
    long, short = (-2, -1) if rows >= columns else (-1, -2)
    power = update.square().mean(short, keepdim=True)
    square.lerp_(power, 1 - MUON_BETA2)
    even = square.clamp_min(EPSILON).rsqrt()
    # rescale so that evening out keeps each matrix's Frobenius norm
    norm = (power.sum(long, keepdim=True) / (power * even.square()).sum(long, keepdim=True).clamp_min(EPSILON)).sqrt()
    # an orthogonal matrix taller than wide has smaller entries; keep the update's effect on outputs (Muon's reference)
    delta = (update * (even * norm * (lr * max(1.0, rows / columns) ** 0.5))).view_as(parameter)
    agrees = delta * parameter >= 0
    parameter.mul_(1 - lr * decay * agrees).sub_(delta)


class MuonAdamW:
    """The optimizer of a `Transformer`, sharded over the workers.

    Each worker holds the state of its own pieces of the parameters, see `partition`; it receives the sum of their
    gradients, updates them and sends them to the others. One worker's pieces are the whole parameters and gradients,
    used in place. `reduce_gradients`, `step` and `state_dict` are collective: all workers call them.

    Args:
        model: its parameters, contiguous and of one dtype, are grouped by name and shape.
        peak: learning rates at a schedule factor of 1, and weight decay.
        workers: who shares the work; None is a single worker.
        compiler: wraps what Muon does after its products, e.g. `torch.compile`; None runs it as it is.
        muon_steps: polynomials of the orthogonalisation.
        compute_dtype: what the orthogonalisation multiplies in; bf16 is enough where it is faster.
    """

    def __init__(self, model: nn.Module, peak: Hyperparameters, *, workers: Workers | None = None,
                 compiler: Callable[[Callable[..., None]], Callable[..., None]] | None = None,
                 muon_steps: int = 5, compute_dtype: torch.dtype = torch.float32) -> None:
        self.parameters = dict(model.named_parameters())
        self.peak, self.muon_steps, self.compute_dtype = peak, muon_steps, compute_dtype
        self.workers = workers or Workers()
        self._apply_update = compiler(apply_update) if compiler else apply_update
        adamw_groups, muon_groups = group_parameters(self.parameters, peak)
        self.partition = partition(
            {name: self.parameters[name].shape for muon in muon_groups for name in muon.names},
            {name: self.parameters[name].numel() for adamw in adamw_groups for name in adamw.names}, self.workers.size)
        self.own = self.partition.segments[self.workers.rank]
        self.own_adamw = [(group, [p for p in self.own if p.name in group.names]) for group in adamw_groups]
        self.own_muon = [(group, [p for p in self.own if p.name in group.names]) for group in muon_groups]
        self.layout = StateLayout.of(self.parameters, adamw_groups, muon_groups)
        like = next(iter(self.parameters.values()))
        self.state: dict[str, Tensor] = {
            name: like.new_zeros(sum(piece.size for piece in pieces))
            for name, pieces in self.layout.pieces(self.own).items()}
        """This worker's part of each tensor of the state, flat; absent where it has none."""
        self.steps = torch.zeros((), device=like.device)
        self._own_gradient: Tensor | None = None  # (partition.length,), summed; None with one worker

    @torch.no_grad()
    def reduce_gradients(self) -> Tensor:
        """Sum the gradients over the workers, each receiving its own segment of the sum.

        Returns:
            this worker's part of the square of the sum's norm, 0-d, fp64; a GPU may still be working on it. Weights are
            still what they were: call `step`, or `drop_gradients` where the workers' parts do not add up to a finite
            number.
        """
        if self.workers.size == 1:
            norm = torch.nn.utils.get_total_norm(self._local_gradients().values()).double()
        else:
            segments = pack(self._local_gradients(), self.partition.segments, self.partition.length)
            self.drop_gradients()
            self._own_gradient = self.workers.reduce_scatter(segments)
            norm = torch.linalg.vector_norm(self._own_gradient, dtype=torch.float64)  # the padding is zeros
        return norm.square()

    @torch.no_grad()
    def step(self, lr_factor: float, momentum: float, decay_factor: float = 1.0,
             fault: Callable[[str], None] = lambda point: None) -> None:
        """Update every parameter from its gradient, then drop the gradients. With several workers, `reduce_gradients`
        comes first.

        Args:
            lr_factor: the schedule's factor on all learning rates.
            momentum: Muon's momentum at this step.
            decay_factor: factor on the weight decay.
            fault: told the name of each point passed, for tests that break things there: "update" half way through
                this worker's update, "all_gather" before the others have it.
        """
        gradients = self._own_gradients()
        self.steps += 1
        self._step_adamw(gradients, lr_factor)
        fault("update")
        self._step_muon(gradients, lr_factor * self.peak.matrix_lr, self.peak.weight_decay * decay_factor, momentum)
        self.drop_gradients()
        fault("all_gather")
        if self.workers.size > 1:
            (segment,) = pack(self.parameters, [self.own], self.partition.length)
            unpack(self.workers.all_gather(segment), self.partition.segments, self.parameters)

    def reset(self) -> None:
        """Forget everything, as before the first step."""
        for tensor in (self.steps, *self.state.values()):
            tensor.zero_()

    def drop_gradients(self) -> None:
        self._own_gradient = None
        for parameter in self.parameters.values():
            parameter.grad = None

    def _local_gradients(self) -> dict[str, Tensor]:
        """What this worker's backward passes left, by parameter."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        assert len(gradients) == len(self.parameters), "every parameter takes part in every step"
        return gradients

    def _own_gradients(self) -> dict[Piece, Tensor]:
        """The summed gradient of each own piece, flat."""
        if self.workers.size == 1:
            return dict(zip(self.own, views(self._local_gradients(), self.own), strict=True))
        assert self._own_gradient is not None, "reduce_gradients comes before step"
        sizes = [piece.size for piece in self.own]
        return dict(zip(self.own, self._own_gradient[:sum(sizes)].split(sizes), strict=True))

    def _step_adamw(self, gradients: Mapping[Piece, Tensor], lr_factor: float) -> None:
        """AdamW without weight decay (arXiv:1711.05101), with the kernel behind `torch.optim.AdamW(fused=True)`."""
        for group, own in self.own_adamw:
            if own:
                torch._fused_adamw_(
                    views(self.parameters, own), [gradients[piece] for piece in own],
                    [self.state[f"mean.{piece.name}"] for piece in own],
                    [self.state[f"square.{piece.name}"] for piece in own], [], [self.steps] * len(own),
                    lr=lr_factor * group.lr, beta1=group.betas[0], beta2=group.betas[1], eps=EPSILON, weight_decay=0.0,
                    amsgrad=False, maximize=False)

    def _step_muon(self, gradients: Mapping[Piece, Tensor], *factors: float) -> None:
        # As tensors, so that compiled code does not take a new learning rate for a new function; filled in where they
        # are, as the host would wait for a GPU to copy them.
        lr, decay, beta = (self.steps.new_full((), factor) for factor in factors)
        for index, (_, own) in enumerate(self.own_muon):
            if own:
                # (matrices, rows, columns); row_square has 1 for the shorter side
                momentum, row_square = (self.state[name].view(-1, *self.layout.shapes[name][1:])
                                        for name in (f"momentum.{index}", f"row_square.{index}"))
                matrices = [flat.view(-1, *momentum.shape[1:]) for flat in views(self.parameters, own)]
                muon_update(matrices, [gradients[piece].view(-1, *momentum.shape[1:]) for piece in own], momentum,
                            row_square, lr, decay, beta, self.muon_steps, self.compute_dtype, self._apply_update)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor the next step depends on, whole, in names and shapes that do not depend on the workers.

        One worker returns its own tensors. Several send theirs to rank 0, which holds the state twice for a moment;
        the others get an empty dict.
        """
        if self.workers.size == 1:
            return {"step": self.steps} | {name: part.view(self.layout.shapes[name])
                                           for name, part in self.state.items()}
        segments = [tuple(chain(*self.layout.pieces(segment).values())) for segment in self.partition.segments]
        length = max(sum(piece.size for piece in segment) for segment in segments)
        own = torch.cat([*self.state.values(), self.steps.new_empty(0)])
        gathered = self.workers.gather(torch.nn.functional.pad(own, (0, length - len(own))))
        if not self.workers.leads:
            return {}
        whole = {name: own.new_empty(shape) for name, shape in self.layout.shapes.items()}
        unpack(gathered, segments, whole)
        return {"step": self.steps} | whole

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take this worker's part of a saved state, which any number of workers may have written.

        Raises:
            ValueError: names or shapes differ from this model's.
        """
        shapes = {"step": self.steps.shape, **self.layout.shapes}
        if state.keys() != shapes.keys():
            raise ValueError(f"optimizer state differs in {sorted(state.keys() ^ shapes.keys())[:5]}")
        for name, shape in shapes.items():
            if state[name].shape != shape:
                raise ValueError(f"optimizer state {name} is {tuple(state[name].shape)}, not {tuple(shape)}")
        self.steps.copy_(state["step"])
        for name, pieces in self.layout.pieces(self.own).items():
            self.state[name].copy_(torch.cat(views(state, pieces)))
