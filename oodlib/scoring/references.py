"""Detectors that need no clusters: neighbours, a subspace and the classifier's energy, heads that have seen outliers.

They stand beside the cluster detectors as references, with the same API; higher is more normal. The scores that are
plain functions are in `oodlib.scoring.logit_scores` and `oodlib.scoring.classifier_scores`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Self

import numpy as np
from scipy.special import logsumexp
from sklearn.utils.validation import check_consistent_length

from oodlib.arrays import UnitRows, as_array, read_blocks, sample_rows, working_dtype
from oodlib.clustering.moments import Moments, cluster_means, mean_of, spectrum
from oodlib.scoring.classifier_scores import check_classifier, logits_of
from oodlib.scoring.detector import Detector
from oodlib.scoring.distances import squared_distances
from oodlib.scoring.neighbors import NeighborIndex

ORIGIN_CUT = 1e-6  # relative cut of the pseudo-inverse that gives ViM's origin
LEAST_RESIDUAL = 1e-5  # of the largest principal deviation; below it a residual may be rounding


class KNNDetector(Detector):
    """Score an image by minus the distance to its k-th nearest training embedding, at unit norm (Sun et al. 2022).

    n_neighbors: k, smaller than the number of training embeddings. alpha: false-alarm rate of the threshold.
    """

    def __init__(self, n_neighbors: int = 50, alpha: float = 0.05):
        self.n_neighbors = n_neighbors
        self.alpha = alpha

    def fit(self, z: np.ndarray, y: np.ndarray | None = None, z_calibration: np.ndarray | None = None) -> Self:
        """Keep the training embeddings z (n, d) and set the threshold; y is ignored.

        The threshold comes from z_calibration (m, d), which no training has seen, else from the training embeddings
        themselves, a seeded sample of them where they are many. Raises ValueError for NaN, alpha outside (0, 1) and
        n < k + 1.
        """
        self.check_parameters()
        z = self._check(z, reset=True)
        self.embeddings_ = UnitRows(z)
        if z_calibration is not None:
            self._set_threshold(self._score(self._check(z_calibration))[0], True, np.float32)
            return self
        # a training embedding is its own nearest neighbour, which a new one is not
        self._set_threshold(self._kth(z[sample_rows(len(z))], self.n_neighbors + 1), False, np.float32)
        return self

    @property
    def embeddings_(self) -> np.ndarray:
        """The training embeddings (n, d) float32 at unit norm; read from where they are, if there are too many."""
        return np.asarray(self.index_.reference[:], dtype=np.float32)

    @embeddings_.setter
    def embeddings_(self, rows: UnitRows | np.ndarray) -> None:
        if not 1 <= self.n_neighbors < len(rows):
            raise ValueError(f"n_neighbors must be between 1 and n - 1 = {len(rows) - 1}, got {self.n_neighbors}")
        self.index_ = NeighborIndex(rows)

    def layout(self) -> dict[str, str]:
        return super().layout() | {"embeddings_": "float32 n d"}

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._kth(z, self.n_neighbors), np.zeros(len(z), dtype=np.int64)

    def _kth(self, z: np.ndarray, k: int) -> np.ndarray:
        return -self.index_.kneighbors(UnitRows(z), k)[0][:, -1].astype(np.float64)


class ViMDetector(Detector):
    """Score by energy minus the scaled residual outside the principal subspace (ViM, Wang et al. 2022).

    weight (C, d), bias (C,): the linear classifier on the embeddings, arrays or tensors such as the parameters of a
    layer; without them the score is minus the residual alone, around the mean. n_components: dimension of the principal
    subspace, None takes half of d. alpha: false-alarm rate of the threshold.
    """

    def __init__(
        self,
        weight: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        n_components: int | None = None,
        alpha: float = 0.05,
    ):
        self.weight = weight
        self.bias = bias
        self.n_components = n_components
        self.alpha = alpha

    def fit(self, z: np.ndarray, y: np.ndarray | None = None, z_calibration: np.ndarray | None = None) -> Self:
        """Fit the principal subspace of z (n, d) around the classifier's origin and set the threshold; y is ignored.

        The threshold comes from z_calibration (m, d), which no training has seen, else from z. Raises ValueError when
        weight, bias and z do not fit each other, or n_components is not between 0 and d.
        """
        self.check_parameters()
        z = self._check(z, reset=True)
        n, d = z.shape
        if self.weight is None and self.bias is None:
            self.weight_, self.bias_ = np.zeros((1, d)), np.zeros(1)
        else:
            self.weight_, self.bias_ = check_classifier(self.weight, self.bias, d)
        kept = d // 2 if self.n_components is None else self.n_components
        if not 0 <= kept <= d:
            raise ValueError(f"n_components must be between 0 and d = {d}, got {kept}")
        nowhere = -np.linalg.pinv(self.weight_, rcond=ORIGIN_CUT) @ self.bias_  # where all logits are nearest to zero
        self.origin_ = mean_of(z) if self.weight is None else nowhere
        eigenvalues, vectors = spectrum(partial(self._centred, z), working_dtype(z), n, d)  # ascending
        self.residual_ = vectors[:, : d - kept].astype(working_dtype(z))
        residuals, largest, energies = self._measure(z)
        lengths = max(residuals.sum(), n * LEAST_RESIDUAL * np.sqrt(eigenvalues[-1]))
        self.scale_ = 1.0 if self.weight is None else largest.sum() / lengths if lengths > 0 else 0.0
        held_out = z_calibration is not None
        scores = self._score(self._check(z_calibration))[0] if held_out else energies - self.scale_ * residuals
        self._set_threshold(scores, held_out)
        return self

    def layout(self) -> dict[str, str]:
        classifier = {"weight_": "float64 c d", "bias_": "float64 c"}
        subspace = {"origin_": "float64 d", "residual_": "float d r", "scale_": "float64"}
        return super().layout() | classifier | subspace

    def _centred(self, z: np.ndarray, dtype: type) -> Iterator[np.ndarray]:
        origin = self.origin_.astype(dtype)
        for _, block in read_blocks(z):
            yield block.astype(dtype, copy=False) - origin

    def _measure(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the residual, the largest logit and the energy, each (n,) float64; no classifier has energy zero."""
        residuals, largest, energies = np.empty((3, len(z)))
        for (part, block), x in zip(read_blocks(z), self._centred(z, self.residual_.dtype), strict=True):
            residuals[part] = np.linalg.norm(x @ self.residual_, axis=1)
            logits = logits_of(block, self.weight_, self.bias_)
            largest[part], energies[part] = logits.max(axis=1), logsumexp(logits, axis=1)
        return residuals, largest, energies

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        residuals, _, energies = self._measure(z)
        return energies - self.scale_ * residuals, np.zeros(len(z), dtype=np.int64)


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
        classes = _codes(z, y)
        moments = Moments(z, classes, int(classes.max()) + 1)
        self.origin_, self.whiten_ = moments.origin, moments.whiten
        self.centers_, self.log_weights_ = moments.means @ self.whiten_, np.log(moments.weights)
        self.outlier_centers_, self.widths_ = np.empty((0, self.whiten_.shape[1])), np.empty(0)
        if z_outliers is not None:
            x = self._whiten(self._check(z_outliers))
            kinds = _codes(x, y_outliers)
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


def _codes(z: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    """Return the class of every row as 0 … C - 1; one class without labels."""
    y = np.zeros(len(z), dtype=np.int64) if y is None else np.asarray(as_array(y))
    codes = np.unique(y, return_inverse=True)[1]
    check_consistent_length(z, codes)
    return codes
