"""Throughput by depth: an estimate, and what measurements say of its error."""

from collections.abc import Callable, Sequence

import numpy as np

from nanochat.planning.correction import EVERYWHERE, Correction

COMMON_SD, DEPTH_SD, NOISE = 0.25, 0.06, 0.02  # of the logarithm of throughput over its estimate
REACH = 0.03  # of the logarithm of depth, over which depths share what is their own: hardly a neighbour
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
        parts = [(COMMON_SD, EVERYWHERE), (DEPTH_SD, REACH)]
        self._correction = Correction(_places(self.measured_depths), errors, parts, noise=NOISE)
        self._factors: dict[int, float] = {}

    def tokens_per_second(self, depth: int, batch: int) -> float:
        """By all that was measured."""
        if depth not in self._factors:  # asked for thousands of times
            error = self._correction.mean(_places(np.array([float(depth)])))
            self._factors[depth] = float(np.exp(error[0]))
        return self._estimate(depth, batch) * self._factors[depth]

    def sd(self, depth: int) -> float:
        """Of the logarithm of what a training's throughput will turn out to be."""
        place = _places(np.array([float(depth)]))
        return float(np.sqrt(self._correction.belief(place, place)[0, 0] + NOISE**2))

    def learned(self, asked: Array, depths: Array, samples: int, rng: np.random.Generator) -> Array:
        """(depths, samples): how the errors may turn out to be once the depths in `asked` are measured."""
        asked, depths = _places(asked), _places(depths)
        seen = self._correction.belief(asked, asked) + NOISE**2 * np.eye(len(asked))
        towards = np.linalg.solve(seen, self._correction.belief(asked, depths))  # (asked, depths)
        return towards.T @ np.linalg.cholesky(seen) @ rng.standard_normal((len(asked), samples))


def _places(depths: Array) -> Array:
    """(n, 1)"""
    return np.log(depths)[:, None]
