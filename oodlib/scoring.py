"""Detectors: embeddings in; a normality score, and a decision, for each out. Higher is more normal.

The detectors follow scikit-learn's outlier detectors: `fit`, `score_samples`, `decision_function` (below 0 means
out-of-distribution) and `predict` (+1 in-distribution, -1 out-of-distribution). They take embeddings as the encoder
gives them and normalise where their distance says so. Scores from logits are plain functions.
"""

from typing import Self

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from oodlib.clustering import cluster
from oodlib.distances import DISTANCES, State, to_unit_norm
from oodlib.neighbors import NeighborIndex
from oodlib.thresholds import THRESHOLDS, conformal_threshold, per_cluster_thresholds

BLOCK = 8192  # rows scored at a time, so that memory does not grow with the number of images


def nearest_cluster(z: np.ndarray, distance: str, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Return the score (n,) of each row of z, minus the distance to its nearest cluster, and that cluster (n,).

    Where the distance is joint, the score is the log density under all clusters together.
    """
    scores, nearest = [], []
    for start in range(0, len(z), BLOCK):
        distances = DISTANCES[distance].measure(z[start : start + BLOCK], state)  # (block, K)
        nearest.append(distances.argmin(axis=1))
        joined = logsumexp(-distances, axis=1) if DISTANCES[distance].joint else -distances.min(axis=1)
        scores.append(joined.astype(np.float64))
    return np.concatenate(scores), np.concatenate(nearest)


class _Detector(OutlierMixin, BaseEstimator):
    """What the detectors share: checked input, and a decision from a score and its threshold."""

    def _check(self, z: np.ndarray, reset: bool = False) -> np.ndarray:
        return validate_data(self, z, dtype=[np.float32, np.float64], reset=reset, ensure_min_samples=2 if reset else 1)

    def score_samples(self, z: np.ndarray) -> np.ndarray:
        """Return the normality (n,) float64 of embeddings z (n, d); higher is more normal.

        Raises ValueError for NaN, infinity or another width than fitted, NotFittedError before `fit`.
        """
        check_is_fitted(self)
        return self._score(self._check(z))[0]

    def decision_function(self, z: np.ndarray) -> np.ndarray:
        """Return score minus threshold (n,): below 0 means out-of-distribution."""
        check_is_fitted(self)
        scores, nearest = self._score(self._check(z))
        return scores - (self.offset_[nearest] if np.ndim(self.offset_) else self.offset_)

    def predict(self, z: np.ndarray) -> np.ndarray:
        """Return +1 (in-distribution) or -1 (out-of-distribution) for each row of z, (n,) int."""
        return np.where(self.decision_function(z) < 0, -1, 1)


class ClusterDetector(_Detector):
    """Score an image by its distance to the nearest cluster of the training embeddings.

    clustering: how the training embeddings are grouped, see `oodlib.clustering.CLUSTERINGS`; "labels" needs y in `fit`.
    n_clusters: K, where the clustering needs one; None takes the number of classes in y.
    distance: see `oodlib.distances.DISTANCES`. The clusters are found on the embeddings as they are; a distance
        that works on unit vectors fits its centres on unit vectors.
    threshold: "global" (α-quantile of the training scores), "per-cluster" (the same within each cluster) or
        "conformal" (from held-out images: the one that keeps its promise of at most α false alarms).
    alpha: the false-alarm rate, in (0, 1).
    offset_: the threshold after `fit`: one number, with "per-cluster" one a cluster, (K,).
    """

    def __init__(
        self,
        clustering: str = "labels",
        n_clusters: int | None = None,
        distance: str = "mahalanobis",
        threshold: str = "global",
        alpha: float = 0.05,
        seed: int = 0,
    ):
        self.clustering = clustering
        self.n_clusters = n_clusters
        self.distance = distance
        self.threshold = threshold
        self.alpha = alpha
        self.seed = seed

    def fit(self, z: np.ndarray, y: np.ndarray | None = None, z_calibration: np.ndarray | None = None) -> Self:
        """Cluster the training embeddings z (n, d), fit the distance and set the threshold.

        z_calibration (m, d): in-distribution embeddings that neither encoder nor clusters have seen, for the
        conformal threshold; without them a fifth of z is held out, which the encoder has seen in its training.
        Raises ValueError for unknown names, NaN, labels of the wrong length, K larger than n.
        """
        _check_choice("distance", self.distance, DISTANCES)
        _check_choice("threshold", self.threshold, THRESHOLDS)
        _check_alpha(self.alpha)
        z = self._check(z, reset=True)
        if y is not None:
            y = np.asarray(y)
            check_consistent_length(z, y)
        if self.threshold == "conformal" and z_calibration is None:
            z, y, z_calibration = _hold_out(z, y, self.seed)
        clusters = cluster(z, y, self.clustering, self.n_clusters, self.seed)
        self.n_clusters_ = len(clusters.centers)
        self.state_ = DISTANCES[self.distance].fit(z, clusters.assignments, self.n_clusters_)
        reference = self._check(z_calibration) if self.threshold == "conformal" else z
        self.offset_ = _below(self._threshold(*self._score(reference)), z.dtype)
        return self

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return nearest_cluster(z, self.distance, self.state_)

    def _threshold(self, scores: np.ndarray, nearest: np.ndarray) -> float | np.ndarray:
        if self.threshold == "per-cluster":
            return per_cluster_thresholds(scores, nearest, self.n_clusters_, self.alpha)
        return conformal_threshold(scores, self.alpha)


class KNNDetector(_Detector):
    """Score an image by minus the distance to its k-th nearest training embedding, at unit norm (Sun et al. 2022).

    n_neighbors: k, at most the number of training embeddings. alpha: false-alarm rate of the global threshold.
    """

    def __init__(self, n_neighbors: int = 50, alpha: float = 0.05):
        self.n_neighbors = n_neighbors
        self.alpha = alpha

    def fit(self, z: np.ndarray, y: np.ndarray | None = None) -> Self:
        """Keep the training embeddings z (n, d) and set the threshold; y is ignored.

        Raises ValueError for NaN, alpha outside (0, 1) and n < k + 1.
        """
        _check_alpha(self.alpha)
        z = self._check(z, reset=True)
        if not 1 <= self.n_neighbors < len(z):
            raise ValueError(f"n_neighbors must be between 1 and n - 1 = {len(z) - 1}, got {self.n_neighbors}")
        unit = to_unit_norm(z)
        self.index_ = NeighborIndex(unit)
        # a training embedding is its own nearest neighbour, which a new one is not
        itself_and_others = self.index_.kneighbors(unit, self.n_neighbors + 1)[0]
        scores = -itself_and_others[:, -1].astype(np.float64)
        self.offset_ = _below(conformal_threshold(scores, self.alpha), np.float32)
        return self

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances = self.index_.kneighbors(to_unit_norm(z), self.n_neighbors)[0]
        return -distances[:, -1].astype(np.float64), np.zeros(len(z), dtype=np.int64)


def msp(logits: np.ndarray) -> np.ndarray:
    """Return the maximum softmax probability (n,) of logits (n, C), in (0, 1] (Hendrycks & Gimpel 2017)."""
    return softmax(_check_logits(logits), axis=1).max(axis=1)


def max_logit(logits: np.ndarray) -> np.ndarray:
    """Return the largest logit (n,) of logits (n, C) (Hendrycks et al. 2022)."""
    return _check_logits(logits).max(axis=1)


def energy(logits: np.ndarray) -> np.ndarray:
    """Return the negative free energy (n,), logsumexp of logits (n, C) (Liu et al. 2020); larger is more normal."""
    return logsumexp(_check_logits(logits), axis=1)


def _check_logits(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(f"logits must be finite and (n, C), got shape {logits.shape}")
    return logits


def _check_choice(what: str, value: str, allowed: dict | tuple) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(allowed)}")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")


def _below(threshold: float | np.ndarray, dtype: type) -> float | np.ndarray:
    """Return a threshold lowered by the rounding of scores: their last digits depend on what is scored with them."""
    return threshold - 64 * np.finfo(dtype).eps * np.abs(threshold)


def _hold_out(z: np.ndarray, y: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return (z, y, z_calibration) with a random fifth of the rows held out."""
    order = np.random.default_rng(seed).permutation(len(z))
    held, kept = order[: len(z) // 5], order[len(z) // 5 :]
    return z[kept], None if y is None else y[kept], z[held]


LOGIT_SCORES = {"msp": msp, "maxlogit": max_logit, "energy": energy}
