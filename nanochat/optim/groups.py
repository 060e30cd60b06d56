"""Which parameter is updated how."""

from dataclasses import dataclass

from torch import nn

from nanochat.optim.scaling import Hyperparameters


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
        elif name in ("smear_gate", "smear_scale", "backout_scale"):  # public nanochat's, March 2026
            adamw.setdefault((peak.scalar_lr * 0.4, (0.8, 0.95)), []).append(name)
        elif name == "input_scalars" or name.endswith("value_gate"):
            adamw.setdefault((peak.scalar_lr, (0.96, 0.95)), []).append(name)
        else:
            rows, columns = parameter.shape[-2:]
            muon.setdefault((rows, columns), []).append(name)
    return ([AdamWGroup(tuple(names), lr, betas) for (lr, betas), names in adamw.items()],
            [MuonGroup(tuple(names)) for names in muon.values()])
