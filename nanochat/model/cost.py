"""What a model costs: exact parameter counts and floating-point operations."""

from dataclasses import dataclass

from nanochat.model.config import SMEAR_CHANNELS, ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by what they do. Only `matrices`, `gates` and `head` take part in matrix products."""

    embedding: int
    value_embeddings: int
    matrices: int
    gates: int
    head: int
    scalars: int

    @property
    def total(self) -> int:
        return self.embedding + self.value_embeddings + self.matrices + self.gates + self.head + self.scalars

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with."""
        return self.matrices + self.gates + self.head

    @property
    def scaling(self) -> int:
        """The N of scaling laws here: transformer matrices and head, which predicts losses best across small models
        with large tables (nanochat's scaling study, January 2026)."""
        return self.matrices + self.head


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Parameters of the model of this config; equal to counting those of the built module."""
    table = config.vocab_size * config.width
    value_layers = sum(config.has_value_embedding(layer) for layer in range(config.depth))
    return ParameterCount(
        embedding=table,
        value_embeddings=value_layers * table,
        matrices=config.depth * 12 * config.width**2,
        gates=value_layers * config.value_gate_channels * config.num_heads + SMEAR_CHANNELS * int(config.smear),
        head=table,
        scalars=config.depth * (int(config.residual_scalars) + int(config.input_scalars))
        + int(config.smear)
        + int(config.backout),
    )


def forward_flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Multiply-adds counted as two operations, for one token of a row of `seq_len` tokens.

    Attention counts every position a query may see within its window as if there were no causal mask, as in PaLM's
    model-FLOPs convention (arXiv:2204.02311, appendix B): scores and weighted values are 2·2·width per key.
    """
    attended = sum(min(config.window(layer) or seq_len, seq_len) for layer in range(config.depth))
    return 2 * count_parameters(config).multiplied + 4 * config.width * attended


def train_flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Forward and backward: the backward pass multiplies twice for each product of the forward pass."""
    return 3 * forward_flops_per_token(config, seq_len)
