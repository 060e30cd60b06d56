"""What is trained: model and optimizer as a run's configuration has them, in a process made ready for it."""

import math
from functools import partial
from typing import Any

import torch

from nanochat.config import RunConfig
from nanochat.errors import UserError
from nanochat.model import Transformer
from nanochat.model.attention import unavailable
from nanochat.model.fp8 import fp8_unavailable
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.scaling import Hyperparameters, hyperparameters
from nanochat.planning.hardware import keep_freed_memory
from nanochat.training.checkpoint import Checkpoint
from nanochat.training.stage import Trainee
from nanochat.workers import Workers


def prepare_process() -> None:
    """The same steps give the same weights, to the bit, and memory once taken stays; for the whole process."""
    keep_freed_memory()
    torch.set_deterministic_debug_mode("error")  # without the compiler, see `tell_of_determinism`
    # Nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def build_trainee(
    config: RunConfig,
    workers: Workers,
    bos_id: int | None = None,
    *,
    draw: bool = True,
    unique_tokens: float = math.inf,
) -> Trainee:
    """Model and this worker's share of the optimizer, compiled if the config says so.

    Args:
        draw: the initial weights; else the caller puts weights in.
        unique_tokens: of the base stage's text.
    """
    device = workers.device
    dtype = getattr(torch, config.compute_dtype)
    if config.fp8 and (why := fp8_unavailable(device)):
        raise UserError(f"fp8 {why}", "leave --set fp8=true out, under another --name")
    if why := unavailable(config.attention, device, dtype):
        raise UserError(f"attention {config.attention} {why}", "another --set attention=…, under another --name")
    model = Transformer(
        config.model,
        compute_dtype=dtype,
        attention=config.attention,
        seed=config.seed if draw else None,
        bos_id=bos_id,
        fp8=config.fp8,
    ).to(device)
    peak = peak_rates(config, unique_tokens)
    if config.compile:
        model.compile_training()
    compiler: Any = partial(torch.compile, fullgraph=True, dynamic=False) if config.compile else None
    return Trainee(model, MuonAdamW(model, peak, workers=workers, compiler=compiler, compute_dtype=dtype))


def peak_rates(config: RunConfig, unique_tokens: float) -> Hyperparameters:
    """Peak learning rates and weight decay of a run, by its base stage; see `hyperparameters`."""
    base = config.base
    tokens = base.total_batch_size * base.horizon
    return hyperparameters(config.model, base.total_batch_size, tokens, base.lr_multiplier, unique_tokens)


def load_weights(model: Transformer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into the model. Raises UserError naming what is missing or of another shape."""
    theirs, ours = checkpoint.tensors("model"), model.state_dict()
    wrong = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    ]
    if wrong:
        raise UserError(
            f"the weights of {checkpoint.location} do not fit this model: {', '.join(wrong[:5])}"
            + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            "use the --depth and architecture the checkpoint was trained with",
        )
    model.load_state_dict(theirs)
