"""Outlier exposure: a linear head that has seen a few known outliers."""

from typing import Self

import numpy as np
from scipy.special import logsumexp
from sklearn.utils.validation import check_consistent_length

from oodlib.arrays import as_array, read_blocks, squared_distances
from oodlib.clustering.moments import Moments, cluster_means
from oodlib.scoring.detector import Detector


class OutlierExposureDetector(Detector):
    """Score by a linear head that has seen a few known outliers (few-shot outlier exposure; Fort et al. 2021).

    The head is a linear discriminant in closed form: every ID class and every class of known outliers is a Gaussian
    with the tied covariance of the ID classes, and the score is the log-odds of ID against outliers. The mean of a
    class of m outliers is uncertain, which widens its Gaussian by 1 + 1/m. It has seen outliers: never compare it with
    detectors that have not without saying so. alpha: false-alarm rate of the threshold.
    """

    def __init__(self, alpha: float = 0.05):
        self.alpha = alpha

    def fit(
        self,
        z: np.ndarray,
        y: np.ndarray | None = None,
        z_calibration: np.ndarray | None = None,
        z_outliers: np.ndarray | None = None,
        y_outliers: np.ndarray | None = None,
    ) -> Self:
        """Fit the head on z (n, d), labels y (n,), and known outliers (m, d) with their classes (m,), default one.

        Without y there is one ID class; without outliers the score is the log density of ID alone. The threshold
        comes from z_calibration, which no training has seen, else from z.
        """
        self.check_parameters()
        z = self._check(z, reset=True)
        classes = _places(z, y)
        moments = Moments(z, classes, int(classes.max()) + 1)
        self.origin_, self.whiten_ = moments.origin, moments.whiten
        self.centers_, self.log_weights_ = moments.means @ self.whiten_, np.log(moments.weights)
        self.outlier_centers_, self.widths_ = np.empty((0, self.whiten_.shape[1])), np.empty(0)
        if z_outliers is not None:
            x = self._whiten(self._check(z_outliers))
            kinds = _places(x, y_outliers)
            self.outlier_centers_ = cluster_means(x, kinds, int(kinds.max()) + 1)
            self.widths_ = 1 + 1 / np.bincount(kinds)
        held_out = z_calibration is not None
        self._set_threshold(self._score(self._check(z_calibration) if held_out else z)[0], held_out)
        return self

    def layout(self) -> dict[str, str]:
        space = {"origin_": "float64 d", "whiten_": "float64 d r"}
        classes = {"centers_": "float64 c r", "log_weights_": "float64 c"}
        outliers = {"outlier_centers_": "float64 o r", "widths_": "float64 o"}
        return super().layout() | space | classes | outliers

    def _whiten(self, z: np.ndarray) -> np.ndarray:
        return (z - self.origin_) @ self.whiten_

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = np.empty(len(z))
        for part, block in read_blocks(z):
            x = self._whiten(block)  # float64
            scores[part] = logsumexp(self.log_weights_ - squared_distances(x, self.centers_) / 2, axis=1)
            if len(self.widths_):
                volumes = x.shape[1] * np.log(self.widths_) + 2 * np.log(len(self.widths_))
                distances = squared_distances(x, self.outlier_centers_) / self.widths_
                scores[part] -= logsumexp(-(distances + volumes) / 2, axis=1)
        return scores, np.zeros(len(z), dtype=np.int64)


def _places(z: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    """Return the class of every row as 0 … C - 1; one class without labels."""
    y = np.zeros(len(z), dtype=np.int64) if y is None else np.asarray(as_array(y))
    check_consistent_length(z, y)
    return np.unique(y, return_inverse=True)[1]
