"""The law that predicts val_bpb from parameters, tokens, batch and learning rate, and what trials teach about it.

    E + K [(Ne/N0)^-a + (a/b) (D/(r N0))^-b] + (D/1e9)^-0.2 [kB bowl(log2 B/Bopt) + kL bowl(log2 m - x0)]
      + 0.4 exp(-steps/80) + P (Ne/N0)^p (Dref/U)^q (D/U - 1)^s

The first part is Hoffmann et al. 2022 (arXiv:2203.15556) in the form whose r is the best ratio of tokens to parameters
at N0. The best batch grows with the tokens, Bopt = Bref 2^lB (D/Dref)^e (Bergsma et al. 2025, arXiv:2505.13738). m
multiplies the learning rates that the scaling rules give. The last two parts are the price of too few steps, and of
learning U unique tokens by heart: a penalty that is added describes repeated data better than a discount on its tokens
(Lovelace et al. 2026, arXiv:2605.01640). Ne are the parameters that so many unique tokens can make use of, a thought of
Muennighoff et al. 2023 (arXiv:2305.16264). The figures of both are fitted here (`bench.py epochs`; LOG.md, 2026-11-28).

Eleven numbers are uncertain: they have Student-t priors and are fitted by Gauss-Newton; what is left uncertain is a
Gaussian around the fit (Laplace's approximation). Runs also differ by noise and by what no such law holds:
`model_error`, which runs of like size and length share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NAMES = ("E", "ln_K", "ln_r", "a", "b", "lB", "e", "x0", "ln_kB", "ln_kL", "ln_P")
TOO_FEW, STEP_SCALE = 0.4, 80.0
MOST_EPOCHS = 1000.0
FREEDOM = 5.0  # degrees of the Student-t priors
ITERATIONS = 12
Array = np.ndarray


@dataclass(frozen=True)
class Prior:
    """What is believed before any trial; each number of the law with its standard deviation."""

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    reference_parameters: float = 1e8
    reference_tokens: float = 1.3e9
    reference_batch: float = 524_288
    noise: float = 0.002
    """Standard deviation of val_bpb between seeds."""
    model_error: float = 0.003
    """That of what the law misses, shared by runs that are alike."""
    usable: float = 12.0
    """Parameters a unique token; more change little."""
    by_size: float = 0.3
    by_data: float = 0.6
    by_repeats: float = 1.05
    """Exponents of what learning by heart costs: of the parameters, of 1 / unique tokens, and of the repetitions."""
    source: str = "published runs"
    runs: tuple[tuple[float, float, float, float, float], ...] = ()
    """Trainings that come with it: parameters, tokens, batch, lr_multiplier, val_bpb."""

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.sd) == len(NAMES):
            raise ValueError(f"a prior has {len(NAMES)} numbers: {', '.join(NAMES)}")


# From 1,911 published pretraining runs and nanochat's scaling tables. What learning by heart costs is that of 61 runs
# of huggingface/datablations (Muennighoff et al.; 0.1 to 58 billion unique tokens), two to five times over, as the
# trainings known here learn by heart faster than theirs (LOG.md, 2026-11-28).
PUBLISHED = Prior(
    mean=(0.52, np.log(0.19), np.log(12.0), 0.283, 0.285, 0.0, 0.42, 0.0, np.log(0.0025), np.log(0.004), -6.0),
    sd=(0.12, 0.5, 0.5, 0.04, 0.04, 1.6, 0.12, 1.3, 0.5, 0.5, 1.3),
    by_size=0.5,
    by_data=0.45,
    by_repeats=0.85,
)


@dataclass(frozen=True)
class Points:
    """Trainings to predict; arrays of one shape."""

    parameters: Array
    tokens: Array
    batch: Array
    lr_multiplier: Array

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float, float, float]]) -> "Points":
        """From (parameters, tokens, batch, lr_multiplier)."""
        return cls(*np.array(rows, dtype=float).reshape(-1, 4).T)

    def rows(self) -> list[tuple[float, float, float, float]]:
        """What `of` was given."""
        return list(zip(*(part.tolist() for part in vars(self).values()), strict=True))


def predict(theta: Array, points: Points, prior: Prior, unique_tokens: float | Array = np.inf) -> Array:
    """val_bpb by the law.

    Args:
        theta: (..., 11) numbers of the law, in the order of `NAMES`.
        points: of shape (n,).
        unique_tokens: of the data; of shape (n,) where these are trainings on different data.

    Returns:
        (..., n)
    """
    E, ln_K, ln_r, a, b, lB, e, x0, ln_kB, ln_kL, ln_P = np.moveaxis(np.asarray(theta)[..., None], -2, 0)
    usable = points.parameters * used_share(points.parameters / prior.usable / unique_tokens)
    ln_n = np.log(usable / prior.reference_parameters)
    ln_d = np.log(points.tokens / prior.reference_parameters)
    level = E + np.exp(ln_K) * (np.exp(-a * ln_n) + a / b * np.exp(-b * (ln_d - ln_r)))
    best = lB + e * np.log2(points.tokens / prior.reference_tokens) + np.log2(prior.reference_batch)
    off = np.exp(ln_kB) * bowl(np.log2(points.batch) - best) + np.exp(ln_kL) * bowl(np.log2(points.lr_multiplier) - x0)
    too_few = TOO_FEW * np.exp(-points.tokens / points.batch / STEP_SCALE)
    repeats = np.maximum(points.tokens / unique_tokens - 1, 0)
    of_size = (usable / prior.reference_parameters) ** prior.by_size
    of_data = (prior.reference_tokens / unique_tokens) ** prior.by_data
    by_heart = np.exp(ln_P) * of_size * of_data * repeats**prior.by_repeats
    return level + (points.tokens / 1e9) ** -0.2 * off + too_few + by_heart


def used_share(plenty: Array) -> Array:
    """Of a model's parameters that data makes use of, where these are `plenty` times what it can make use of."""
    return np.where(plenty < 1e-8, 1.0, -np.expm1(-plenty) / np.maximum(plenty, 1e-8))


def useful_epochs(prior: Prior, parameters: float, unique_tokens: float) -> float:
    """How often to go through a text before once more is believed to harm a model of that size, in the best batches."""
    theta = fit(prior, None, np.zeros(0), unique_tokens).theta.copy()
    theta[[NAMES.index("ln_kB"), NAMES.index("ln_kL")]] = -np.inf
    epochs = np.geomspace(1, MOST_EPOCHS, 400)
    points = Points.of([(parameters, unique_tokens * count, 1.0, 1.0) for count in epochs])
    return float(epochs[np.argmin(predict(theta, points, prior, unique_tokens))])


def bowl(x: Array, linear_from: float = 2.0) -> Array:
    """x^2 near 0, growing no faster than linearly further out."""
    return 2 * linear_from**2 * (np.sqrt(1 + (x / linear_from) ** 2) - 1)


@dataclass(frozen=True)
class Fit:
    """The law after some observations."""

    prior: Prior
    unique_tokens: float | Array
    theta: Array
    covariance: Array
    seen: Points | None = None
    residual_weights: Array = field(default_factory=lambda: np.zeros(0))
    """Observation covariance^-1 times what the fit leaves unexplained."""

    def predict(self, points: Points) -> tuple[Array, Array]:
        """Mean and standard deviation of the val_bpb that a training would end with."""
        mean = predict(self.theta, points, self.prior, self.unique_tokens)
        if self.seen is not None:
            mean = mean + shared_error(points, self.seen, self.prior) @ self.residual_weights
        slope = gradient(self.theta, points, self.prior, self.unique_tokens)
        spread = np.einsum("ni,ij,nj->n", slope, self.covariance, slope)
        return mean, np.sqrt(spread + self.prior.model_error**2 + self.prior.noise**2)

    def after(self, points: Points, samples: int, rng: np.random.Generator) -> Array:
        """(samples, 11): where the fit may move once the val_bpb of `points` is known."""
        slope = gradient(self.theta, points, self.prior, self.unique_tokens)
        towards = self.covariance @ slope.T
        seen = slope @ towards + observation_covariance(points, self.prior)
        moves = np.linalg.cholesky(seen + 1e-14 * np.eye(len(seen)))
        steps = np.linalg.solve(seen, moves @ rng.standard_normal((len(seen), samples)))  # (n, samples)
        return self.theta + (towards @ steps).T


def fit(prior: Prior, points: Points | None, val_bpb: Array, unique_tokens: float | Array = np.inf) -> Fit:
    """The numbers of the law that make prior and observations most likely; from several starts, the best."""
    mean, sd = np.array(prior.mean), np.array(prior.sd)
    if prior.runs:
        assert np.ndim(unique_tokens) == 0, "they are of one text"
        points = Points.of([*(run[:4] for run in prior.runs), *(points.rows() if points else ())])
        val_bpb = np.concatenate([[run[4] for run in prior.runs], val_bpb])
    if points is None or len(val_bpb) == 0:
        return Fit(prior, unique_tokens, mean, np.diag(sd**2))
    inverse = np.linalg.inv(observation_covariance(points, prior))
    starts = [mean]
    for index in (NAMES.index("x0"), NAMES.index("lB")):
        for shift in (-1.5, 1.5):
            start = mean.copy()
            start[index] += shift * sd[index]
            starts.append(start)

    def loss(theta: Array) -> float:
        left = val_bpb - predict(theta, points, prior, unique_tokens)
        z = (theta - mean) / sd
        return float(left @ inverse @ left + (FREEDOM + 1) * np.log1p(z**2 / FREEDOM).sum())

    theta = min((_descend(start, loss, points, val_bpb, inverse, prior, unique_tokens) for start in starts), key=loss)
    slope = gradient(theta, points, prior, unique_tokens)
    covariance = np.linalg.inv(slope.T @ inverse @ slope + _prior_precision(theta, mean, sd))
    left = val_bpb - predict(theta, points, prior, unique_tokens)
    return Fit(prior, unique_tokens, theta, covariance, points, inverse @ left)


def _descend(
    theta: Array, loss: Any, points: Points, val_bpb: Array, inverse: Array, prior: Prior, unique_tokens: float | Array
) -> Array:
    """Gauss-Newton with step halving; the Student-t priors as reweighted Gaussians."""
    mean, sd = np.array(prior.mean), np.array(prior.sd)
    current = loss(theta)
    for _ in range(ITERATIONS):
        slope = gradient(theta, points, prior, unique_tokens)
        precision = _prior_precision(theta, mean, sd)
        left = val_bpb - predict(theta, points, prior, unique_tokens)
        step = np.linalg.solve(
            slope.T @ inverse @ slope + precision, slope.T @ inverse @ left - precision @ (theta - mean)
        )
        for scale in (1.0, 0.5, 0.25, 0.1, 0.02):
            moved = theta + scale * step
            if np.all(np.abs(moved - mean) < 8 * sd) and (better := loss(moved)) < current:
                break
        else:
            break
        settled = current - better < 1e-6
        theta, current = moved, better
        if settled:
            break
    return theta


def _prior_precision(theta: Array, mean: Array, sd: Array) -> Array:
    weights = (FREEDOM + 1) / (FREEDOM + ((theta - mean) / sd) ** 2)
    return np.diag(weights / sd**2)


def gradient(theta: Array, points: Points, prior: Prior, unique_tokens: float | Array) -> Array:
    """(n, 11) by central differences, in steps of a thousandth of the prior's standard deviations."""
    steps = 1e-3 * np.array(prior.sd)
    shifts = np.concatenate([np.diag(steps), -np.diag(steps)])
    values = predict(theta + shifts, points, prior, unique_tokens)  # (22, n)
    return ((values[: len(steps)] - values[len(steps) :]) / (2 * steps[:, None])).T


def observation_covariance(points: Points, prior: Prior) -> Array:
    """(n, n): noise, and what the law misses."""
    return prior.noise**2 * np.eye(len(points.tokens)) + shared_error(points, points, prior)


def shared_error(left: Points, right: Points, prior: Prior) -> Array:
    """(n, m): model error in common, which fades over a factor e of parameters or tokens."""
    distance = (np.log(left.parameters)[:, None] - np.log(right.parameters)) ** 2
    distance = distance + (np.log(left.tokens)[:, None] - np.log(right.tokens)) ** 2
    return prior.model_error**2 * np.exp(-distance / 2)
