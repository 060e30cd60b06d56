"""By how much estimates are off, learned from what was measured."""

import numpy as np

Array = np.ndarray


class Correction:
    """The logarithm of measured over estimated: one part that all places share, and one that places alike share; a
    Gaussian process. Without measurements it is 0, and uncertain.

    Args:
        places: (n, d), where was measured; logarithms of what matters.
        errors: (n,), the logarithms found there.
        common_sd, local_sd: how large both parts may be beforehand.
        reach: distance over which places are alike.
        noise: of a measurement.
    """

    def __init__(
        self, places: Array, errors: Array, *, common_sd: float, local_sd: float, reach: float, noise: float
    ) -> None:
        self.places, self.noise = places, noise
        self._common, self._local, self._reach = common_sd**2, local_sd**2, reach
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
        distance = ((places[:, None] - others[None]) ** 2).sum(axis=-1)
        return self._common + self._local * np.exp(-0.5 * distance / self._reach**2)
