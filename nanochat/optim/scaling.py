"""Hyperparameters that follow from the size of the model, the batch and the horizon, each with its source."""

from dataclasses import dataclass
from math import inf, log2

from nanochat.model import ModelConfig, count_parameters

REFERENCE_BATCH = 524_288  # tokens a step at which the reference learning rates below were tuned (nanochat, d12)
REFERENCE_WIDTH = 768
REFERENCE_TOKENS_PER_PARAMETER = 10.5  # compute-optimal ratio of data to `scaling` parameters (nanochat, 2026)
STRONGEST = 8.0  # times as much weight decay, see `for_repetitions`
MOST_A_STEP = 0.5  # of a weight that decay takes away in one step, however few there are
REFERENCE_MODEL = ModelConfig.from_depth(12, 32_768, 2048)


@dataclass(frozen=True)
class Hyperparameters:
    """Peak learning rates by kind of parameter, and weight decay of the matrices at its beginning."""

    matrix_lr: float
    embedding_lr: float
    head_lr: float
    scalar_lr: float
    weight_decay: float


def reference_tokens() -> float:
    """Training tokens of the reference model at the compute-optimal ratio."""
    return REFERENCE_TOKENS_PER_PARAMETER * count_parameters(REFERENCE_MODEL).scaling


def optimal_tokens(config: ModelConfig, ratio: float = REFERENCE_TOKENS_PER_PARAMETER) -> int:
    """Training tokens for a model by a tokens:parameters ratio (Hoffmann et al. 2022, arXiv:2203.15556; the ratio is
    the smaller one that Muon and the counted parameters give)."""
    return round(ratio * count_parameters(config).scaling)


def optimal_batch_tokens(tokens: float) -> int:
    """Tokens a step for a run over `tokens`: B ∝ D^0.383 (Bergsma et al. 2025, "Power Lines", arXiv:2505.13738), to
    the nearest power of two."""
    batch = REFERENCE_BATCH * (tokens / reference_tokens()) ** 0.383
    return 2 ** max(round(log2(batch)), 0)


def hyperparameters(config: ModelConfig, batch_tokens: int, tokens: float,
                    lr_multiplier: float = 1.0, unique_tokens: float = inf) -> Hyperparameters:
    """What a base training of `tokens` tokens in steps of `batch_tokens` should use.

    Args:
        lr_multiplier: the factor on these learning rates that it will use.
        unique_tokens: of the data.

    - Learning rates follow the square root of the batch (Malladi et al. 2022, arXiv:2205.10287).
    - Those of AdamW follow width^-1/2, tuned at width 768 (nanochat); Muon's are width-free, because an orthogonal
      update has the same effect at every width (Bernstein & Newhouse 2024, arXiv:2409.20325).
    - Weight decay keeps the averaging time scale, 1 / (lr · λ) steps, the same share of the training: λ ∝ B / (lr · D)
      (Wang & Aitchison 2024, arXiv:2405.13698), times `for_repetitions`, and at most `MOST_A_STEP`.
    """
    batch_ratio = batch_tokens / REFERENCE_BATCH
    by_batch = batch_ratio**0.5
    by_width = (config.width / REFERENCE_WIDTH) ** -0.5
    matrix_lr = 0.02 * by_batch
    decay = 0.2 * batch_ratio / (lr_multiplier * by_batch) * reference_tokens() / tokens
    decay *= for_repetitions(count_parameters(config).scaling, tokens, unique_tokens)
    return Hyperparameters(
        matrix_lr=matrix_lr,
        embedding_lr=0.3 * by_batch * by_width,
        head_lr=0.008 * by_batch * by_width,
        scalar_lr=0.1 * by_batch,
        weight_decay=min(decay, MOST_A_STEP / (lr_multiplier * matrix_lr)),
    )


def for_repetitions(parameters: float, tokens: float, unique_tokens: float) -> float:
    """Factor on the weight decay of a training that goes through its data again. It keeps a model with more parameters
    than there are tokens from learning them by heart (Kim et al. 2025, arXiv:2509.14786); how much is measured on
    WikiText-2, see experiments/LOG.md, 2026-11-28."""
    again = max(tokens / unique_tokens - 1, 0.0)
    return min(1 + again * (parameters / unique_tokens) ** 1.5 / 2, STRONGEST)
