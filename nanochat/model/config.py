"""The architecture of a model, as data."""

from dataclasses import dataclass

SMEAR_CHANNELS = 24  # channels of the embedding that decide how much of the one before is let in
_LEAST_WIDTH = 32
MOST_IN_EXP = 70  # e to it, summed over 65,536 tokens, is a thousandth of the largest fp32


@dataclass(frozen=True)
class ModelConfig:
    """Shape and parts of a transformer. `depth` is the dial; see `ModelConfig.from_depth` for what follows from it."""

    depth: int
    """Number of transformer blocks."""
    width: int
    """Channels of the residual stream; a multiple of `head_dim`."""
    head_dim: int
    """Channels of one attention head."""
    vocab_size: int
    """Rows of the embedding and the head; at least the tokenizer's vocabulary."""
    max_seq_len: int
    """Tokens of context the model is trained on."""
    value_embeddings: bool = True
    """Every second layer adds a gated per-token embedding to its attention values (modded-nanogpt, 2025)."""
    residual_scalars: bool = True
    """A learned factor on the residual stream before each block."""
    input_scalars: bool = True
    """A learned share of the input embedding added back before each block."""
    window_pattern: str = "L"
    """One letter a layer, repeated: L sees the whole context, S half of it. The last layer always sees all."""
    document_attention: bool = False
    """A position sees only its own document, not those before it in the row; see `attention.Documents`."""
    short_window: int = 0
    """Tokens that an S layer sees, itself included; 0 for half the context."""
    value_gate_channels: int = 32
    """Channels of the residual stream that decide how much of a value embedding is let in."""
    value_gate_range: float = 2.0
    """The most of a value embedding that is let in."""
    query_key_scale: float = 1.0
    """Factor on normed queries and on normed keys: above 1, attention is sharper."""
    smear: bool = False
    """A gated share of the embedding before it is added to each embedding (modded-nanogpt, 2025)."""
    backout: bool = False
    """A learned share of what the middle block left is taken out of the stream at its end (modded-nanogpt, 2025)."""
    logit_softcap: float = 15.0
    """Logits are squashed smoothly into ±this (Gemma 2, arXiv:2408.00118)."""
    rope_base: float = 10_000.0
    """Base of the rotary position angles (arXiv:2104.09864)."""

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ValueError("; ".join(problems))

    def problems(self) -> list[str]:
        """Everything that makes this shape impossible, all at once."""
        found = [f"{name} must be at least {least}, not {value}" for name, value, least in (
            ("depth", self.depth, 1), ("width", self.width, _LEAST_WIDTH), ("head_dim", self.head_dim, 2),
            ("vocab_size", self.vocab_size, 2), ("max_seq_len", self.max_seq_len, 2)) if value < least]
        if self.head_dim % 2:
            found.append(f"head_dim must be even for rotary positions, not {self.head_dim}")
        if self.head_dim > 0 and self.width % self.head_dim:
            found.append(f"width {self.width} is not a multiple of head_dim {self.head_dim}")
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            found.append(f"window_pattern must be made of S and L, not {self.window_pattern!r}")
        if self.short_window < 0:
            found.append(f"short_window must be positive, or 0 for half the context, not {self.short_window}")
        if not 1 <= self.value_gate_channels <= max(self.width, 1):
            found.append(f"value_gate_channels must be between 1 and the width, not {self.value_gate_channels}")
        if self.logit_softcap <= 0:
            found.append(f"logit_softcap must be positive, not {self.logit_softcap}")
        # Loss and attention take exponentials of these without subtracting a row's largest first.
        if self.logit_softcap > MOST_IN_EXP:
            found.append(f"logit_softcap must be at most {MOST_IN_EXP}, not {self.logit_softcap}")
        if self.query_key_scale**2 * max(self.head_dim, 0) ** 0.5 > MOST_IN_EXP:
            found.append(
                f"query_key_scale² · √head_dim must be at most {MOST_IN_EXP}, not {self.query_key_scale}² · "
                f"√{self.head_dim}"
            )
        return found

    @classmethod
    def from_depth(cls, depth: int, vocab_size: int, max_seq_len: int, *, classic: bool = False) -> "ModelConfig":
        """The model of this depth: 64 channels of width a layer, heads of 128 channels where there are four of them.

        The aspect ratio of 64 is nanochat's; losses are flat in it over a wide range (Kaplan et al. 2020,
        arXiv:2001.08361, figure 5). `classic` is the October 2025 architecture without the later additions.
        """
        width = 64 * depth
        head_dim = 128 if width >= 512 else 64
        width = -(-width // head_dim) * head_dim
        extras = not classic
        return cls(depth=depth, width=width, head_dim=head_dim, vocab_size=vocab_size, max_seq_len=max_seq_len,
                   value_embeddings=extras, residual_scalars=extras, input_scalars=extras)

    @property
    def num_heads(self) -> int:
        return self.width // self.head_dim

    def has_value_embedding(self, layer: int) -> bool:
        """Every second layer, counted so that the last one always has it."""
        return self.value_embeddings and layer % 2 == (self.depth - 1) % 2

    def window(self, layer: int) -> int | None:
        """How many tokens (itself included) a position of this layer sees back; None for all of them."""
        letter = self.window_pattern[layer % len(self.window_pattern)]
        if letter == "L" or layer == self.depth - 1:
            return None
        return self.short_window or max(self.max_seq_len // 2, 1)
