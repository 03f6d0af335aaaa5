"""Detectors that need no clusters: neighbours, the classifier's own geometry and logits, heads that have seen outliers.

They stand beside the cluster detectors as references, with the same API; higher is more normal. Scores from logits
are plain functions.
"""

from typing import Self

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.utils.validation import check_consistent_length

from oodlib.blocks import UnitRows, as_array, read_blocks
from oodlib.detector import Detector
from oodlib.distances import squared_distances
from oodlib.moments import Moments, cluster_means, mean_of, scatter_around
from oodlib.neighbors import NeighborIndex

ORIGIN_CUT = 1e-6  # relative cut of the pseudo-inverse that gives ViM's origin
LEAST_RESIDUAL = 1e-5  # of the largest principal deviation; below it a residual may be rounding
GAMMA, LARGEST = 0.1, 100  # of GEN: the power, and how many of the largest probabilities take part
JUDGED = 10_000  # training embeddings that KNN's threshold is taken from, at most


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
        sample = np.sort(np.random.default_rng(0).permutation(len(z))[:JUDGED])
        # a training embedding is its own nearest neighbour, which a new one is not
        self._set_threshold(self._kth(z[sample], self.n_neighbors + 1), False, np.float32)
        return self

    @property
    def embeddings_(self) -> np.ndarray:
        """The training embeddings (n, d) float32 at unit norm, put together from index_ when asked for."""
        embeddings, table = np.empty(self.index_.shape, dtype=np.float32), self.index_.table
        if table is None:
            for part, block in read_blocks(self.index_.reference):
                embeddings[part] = block
        else:
            embeddings[table.ids.numpy()] = table.rows.numpy()
        return embeddings

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

    weight (C, d), bias (C,): the linear classifier on the embeddings; without them the score is minus the residual
    alone, around the mean. n_components: dimension of the principal subspace, None takes half of d.
    alpha: false-alarm rate of the threshold.
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
        self.weight_, self.bias_ = check_classifier(self.weight, self.bias, d)
        kept = d // 2 if self.n_components is None else self.n_components
        if not 0 <= kept <= d:
            raise ValueError(f"n_components must be between 0 and d = {d}, got {kept}")
        nowhere = -np.linalg.pinv(self.weight_, rcond=ORIGIN_CUT) @ self.bias_  # where all logits are nearest to zero
        self.origin_ = mean_of(z) if self.weight is None else nowhere
        eigenvalues, vectors = np.linalg.eigh(scatter_around(z, self.origin_))  # ascending
        self.residual_ = vectors[:, : d - kept].copy()  # a view would hold all of vectors
        largest = lengths = 0.0
        for _, block in read_blocks(z):
            lengths += self._residual(block).sum()
            largest += logits_of(block, self.weight_, self.bias_).max(axis=1).sum()
        lengths = max(lengths, LEAST_RESIDUAL * np.sqrt(n * max(eigenvalues[-1], 0)))
        self.scale_ = 1.0 if self.weight is None else largest / lengths if lengths > 0 else 0.0
        held_out = z_calibration is not None
        self._set_threshold(self._score(self._check(z_calibration) if held_out else z)[0], held_out)
        return self

    def layout(self) -> dict[str, str]:
        classifier = {"weight_": "float64 c d", "bias_": "float64 c"}
        subspace = {"origin_": "float64 d", "residual_": "float64 d r", "scale_": "float64"}
        return super().layout() | classifier | subspace

    def _residual(self, z: np.ndarray) -> np.ndarray:
        return np.linalg.norm((z - self.origin_) @ self.residual_, axis=1)

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = np.empty(len(z))
        for part, block in read_blocks(z):
            known = 0.0 if self.weight is None else logsumexp(logits_of(block, self.weight_, self.bias_), axis=1)
            scores[part] = known - self.scale_ * self._residual(block)
        return scores, np.zeros(len(z), dtype=np.int64)


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


def fdbd(z: np.ndarray, weight: np.ndarray, bias: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the fast decision boundary score (n,) of embeddings z (n, d); higher is more normal (Liu and Qin 2024).

    The mean distance to the boundaries between the predicted class and each other class, over the distance of z to
    the training mean (d,); weight (C, d), bias (C,) are the classifier's. An embedding at the mean scores infinity.
    Raises ValueError where weight, bias, mean and z do not fit each other, for NaN, and for less than two classes.
    """
    z, mean = as_array(z), np.asarray(as_array(mean), dtype=np.float64)
    if z.ndim != 2 or mean.shape != z.shape[1:]:
        raise ValueError(f"z must be (n, d) and mean (d,), got {z.shape} and {mean.shape}")
    weight, bias = check_classifier(weight, bias, z.shape[1])
    if len(weight) < 2:
        raise ValueError("fdbd needs a classifier of at least two classes")
    squares = (weight**2).sum(axis=1)
    normals = np.sqrt(np.maximum(squares[:, None] + squares - 2 * weight @ weight.T, 0))  # (C, C) |w_i - w_j|
    scores = np.empty(len(z))
    for part, block in read_blocks(z):
        if not np.isfinite(block).all():
            raise ValueError("z contains NaN or infinity")
        logits = logits_of(block, weight, bias)
        predicted = logits.argmax(axis=1)
        gaps = logits.max(axis=1, keepdims=True) - logits  # (b, C), 0 for the predicted class
        normal = normals[predicted]  # 0 to itself, and where two classes differ by their biases alone: no boundary
        boundary = np.divide(gaps, normal, out=np.zeros_like(gaps), where=normal > 0).sum(axis=1)
        radius = np.linalg.norm(block - mean, axis=1) * (len(weight) - 1)
        scores[part] = np.divide(boundary, radius, out=np.full(len(block), np.inf), where=radius > 0)
    return scores


def check_classifier(weight: np.ndarray | None, bias: np.ndarray | None, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (C, d) and bias (C,) in float64; zeros of one class where both are None."""
    if weight is None and bias is None:
        return np.zeros((1, d)), np.zeros(1)
    weight, bias = (np.asarray(as_array(part), dtype=np.float64) for part in (weight, bias))
    if weight.ndim != 2 or weight.shape[1] != d or bias.shape != weight.shape[:1]:
        raise ValueError(f"weight must be (C, {d}) and bias (C,), got {weight.shape} and {bias.shape}")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError("weight and bias must be finite")
    return weight, bias


def logits_of(z: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the logits (n, C) float64 of embeddings z (n, d)."""
    return z @ weight.T + bias


def msp(logits: np.ndarray) -> np.ndarray:
    """Return the maximum softmax probability (n,) of logits (n, C), in (0, 1] (Hendrycks & Gimpel 2017)."""
    return softmax(_check_logits(logits), axis=1).max(axis=1)


def max_logit(logits: np.ndarray) -> np.ndarray:
    """Return the largest logit (n,) of logits (n, C) (Hendrycks et al. 2022)."""
    return _check_logits(logits).max(axis=1)


def energy(logits: np.ndarray) -> np.ndarray:
    """Return the negative free energy (n,), logsumexp of logits (n, C) (Liu et al. 2020); larger is more normal."""
    return logsumexp(_check_logits(logits), axis=1)


def gen(logits: np.ndarray) -> np.ndarray:
    """Return minus the generalised entropy (n,) of logits (n, C), Σ p^γ (1 - p)^γ over their softmax p.

    Larger is more normal. γ is GAMMA, and of more than LARGEST classes the likeliest take part (Liu et al. 2023, GEN).
    """
    log_p = log_softmax(_check_logits(logits), axis=1)
    largest = log_p == log_p.max(axis=1, keepdims=True)
    largest &= largest.cumsum(axis=1) == 1  # of equal ones the first
    smaller = np.where(largest, -np.inf, log_p)
    # of the largest, 1 - p is what the others have together: 1 minus a p near 1 would have no digits left
    log_others = np.where(largest, logsumexp(smaller, axis=1, keepdims=True), np.log1p(-np.exp(smaller)))
    terms = np.exp(GAMMA * (log_p + log_others))
    if terms.shape[1] > LARGEST:
        terms = np.take_along_axis(terms, np.argpartition(log_p, -LARGEST, axis=1)[:, -LARGEST:], axis=1)
    return -terms.sum(axis=1)


def _check_logits(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(as_array(logits), dtype=np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(f"logits must be finite and (n, C), got shape {logits.shape}")
    return logits


LOGIT_SCORES = {"msp": msp, "maxlogit": max_logit, "energy": energy, "gen": gen}
