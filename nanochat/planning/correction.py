"""By how much estimates are off, learned from what was measured."""

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
EVERYWHERE = float("inf")


class Correction:
    """The logarithm of measured over estimated, as a sum of parts, each shared by places that are alike: a Gaussian
    process. Without measurements it is 0, and uncertain.

    Args:
        places: (n, d), where was measured, in coordinates whose differences say how unlike places are.
        errors: (n,), the logarithms found there.
        parts: of each how large it may be beforehand (standard deviation), and the distance over which places share
            it: EVERYWHERE, or one for each of the d dimensions.
        noise: of a measurement.
    """

    def __init__(
        self, places: Array, errors: Array, parts: Sequence[tuple[float, float | Sequence[float]]], *, noise: float
    ) -> None:
        self.places, self.noise = places, noise
        self._parts = [(sd**2, np.asarray(reach)) for sd, reach in parts]
        self._known = self._covariance(places, places) + noise**2 * np.eye(len(places))
        self._weights = np.linalg.solve(self._known, errors) if len(places) else np.zeros(0)

    def mean(self, places: Array) -> Array:
        """(m,): what is to be expected at (m, d) places."""
        return self._covariance(places, self.places) @ self._weights

    def belief(self, places: Array, others: Array) -> Array:
        """(m, k): covariance of what is still possible there."""
        towards = np.linalg.solve(self._known, self._covariance(self.places, others))
        return self._covariance(places, others) - self._covariance(places, self.places) @ towards

    def _covariance(self, places: Array, others: Array) -> Array:
        apart = places[:, None] - others[None]
        shared = [variance * np.exp(-0.5 * ((apart / reach) ** 2).sum(axis=-1)) for variance, reach in self._parts]
        return np.sum(shared, axis=0)
