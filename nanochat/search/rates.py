"""Throughput by depth: an estimate, and what measurements say of its error."""

from collections.abc import Callable, Sequence

import numpy as np

COMMON_SD, DEPTH_SD, NOISE = 0.25, 0.06, 0.02  # of the logarithm of throughput over its estimate
REACH = 0.1  # of the logarithm of depth, over which depths share what is their own
Array = np.ndarray


class Rates:
    """One error that all depths share, and one that depths alike share, learned in logarithms.

    Args:
        estimate: tokens per second by depth and total batch size.
        measured: (depth, total batch size, tokens per second) of trainings.
    """

    def __init__(self, estimate: Callable[[int, int], float], measured: Sequence[tuple[int, int, float]]) -> None:
        self._estimate = estimate
        self.measured_depths = np.array([depth for depth, _, _ in measured], dtype=float)
        errors = np.array([np.log(rate / estimate(depth, batch)) for depth, batch, rate in measured])
        self._known = self._covariance(self.measured_depths, self.measured_depths) + NOISE**2 * np.eye(len(measured))
        self._weights = np.linalg.solve(self._known, errors) if len(measured) else np.zeros(0)

    def tokens_per_second(self, depth: int, batch: int) -> float:
        """By all that was measured."""
        error = self._covariance(np.array([float(depth)]), self.measured_depths) @ self._weights
        return self._estimate(depth, batch) * float(np.exp(error[0]))

    def belief(self, depths: Array, others: Array) -> Array:
        """(n, m): covariance of the errors still believed possible."""
        towards = np.linalg.solve(self._known, self._covariance(self.measured_depths, others))
        return self._covariance(depths, others) - self._covariance(depths, self.measured_depths) @ towards

    def learned(self, asked: Array, depths: Array, samples: int, rng: np.random.Generator) -> Array:
        """(depths, samples): how the errors may turn out to be once the depths in `asked` are measured."""
        seen = self.belief(asked, asked) + NOISE**2 * np.eye(len(asked))
        towards = np.linalg.solve(seen, self.belief(asked, depths))  # (asked, depths)
        return towards.T @ np.linalg.cholesky(seen) @ rng.standard_normal((len(asked), samples))

    def _covariance(self, depths: Array, others: Array) -> Array:
        distance = np.log(depths[:, None] / others)
        return COMMON_SD**2 + DEPTH_SD**2 * np.exp(-0.5 * (distance / REACH) ** 2)
