"""The detector of the four factors: clusters of the training embeddings, a distance to them, and a threshold.

Embeddings are taken as the encoder gives them; a distance that works on unit vectors normalises by itself.
"""

from typing import Self

import numpy as np
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from oodlib.arrays import as_array, working_dtype
from oodlib.clustering.clusters import CLUSTERINGS, cluster
from oodlib.scoring.detector import Detector, below_rounding
from oodlib.scoring.distances import DISTANCES, fit_distances, nearest_cluster
from oodlib.scoring.thresholds import THRESHOLDS, cluster_p_values, warn_of_too_few


class ClusterDetector(Detector):
    """Score an image by its distance to the nearest cluster of the training embeddings.

    clustering: how the training embeddings are grouped, see `oodlib.clustering.CLUSTERINGS`; "labels" needs y in `fit`.
    n_clusters: K, where the clustering needs one; None takes the number of classes in y, "auto" looks for one.
    distance: see `oodlib.scoring.distances.DISTANCES`. The clusters are found on the embeddings as they are; a distance
        that works on unit vectors fits its centres on unit vectors.
    threshold: see `oodlib.scoring.THRESHOLDS`: "global" (α-quantile of the training scores), "per-cluster" (the
        same within each cluster), "conformal" (from held-out images: the one that keeps its promise of at most α false
        alarms) or "conformal-cluster" (which keeps it within each cluster; Mondrian).
    alpha: the false-alarm rate, in (0, 1).
    offset_: the threshold after `fit`: one number, or one a cluster, (K,).
    """

    def __init__(
        self,
        clustering: str = "labels",
        n_clusters: int | str | None = None,
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
        Raises ValueError for unknown names, NaN, labels of the wrong length, K larger than n; warns where a conformal
        threshold has too few images to reject any.
        """
        self.check_parameters()
        z = self._check(z, reset=True)
        if y is not None:
            y = np.asarray(as_array(y))
            check_consistent_length(z, y)
        threshold = THRESHOLDS[self.threshold]
        if threshold.held_out and z_calibration is None:
            z, y, z_calibration = _hold_out(z, y, self.seed)
        clusters = cluster(z, y, self.clustering, self.n_clusters, self.seed)
        self.n_clusters_ = len(clusters.centers)
        states = fit_distances([self.distance], z, clusters.assignments, self.n_clusters_, clusters.mixture)
        self.state_ = states[self.distance]
        reference = self._score(self._check(z_calibration) if threshold.held_out else z)
        offset = threshold.set(*reference, self.n_clusters_, self.alpha)
        if threshold.held_out:
            sizes = np.bincount(reference[1], minlength=self.n_clusters_)
            warn_of_too_few(sizes if threshold.by_cluster else sizes.sum(keepdims=True), offset, self.alpha)
        self.offset_ = below_rounding(offset, reference[0], working_dtype(z))
        self.held_out_ = threshold.held_out
        self.reference_, self.reference_nearest_ = reference
        return self

    def check_parameters(self) -> None:
        _check_choice("clustering", self.clustering, CLUSTERINGS)
        _check_choice("distance", self.distance, DISTANCES)
        _check_choice("threshold", self.threshold, THRESHOLDS)
        super().check_parameters()

    def layout(self) -> dict[str, str]:
        offset = "float64 k" if THRESHOLDS[self.threshold].by_cluster else "float64"
        shapes = DISTANCES[self.distance].state
        if not shapes:
            raise ValueError(f"{self.distance!r} does not say what its state is, so no file can hold it")
        state = {f"state_.{part}": shape for part, shape in shapes.items()}
        return super().layout() | {"reference_nearest_": "int64 m", "offset_": offset} | state

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return nearest_cluster(z, self.distance, self.state_)

    def p_values(self, z: np.ndarray) -> np.ndarray:
        """Return the p-value (n,) in (0, 1] of each row of z, within its own cluster where the threshold is.

        What it promises depends on the threshold, see `oodlib.scoring.thresholds`.
        """
        if not THRESHOLDS[self.threshold].by_cluster:
            return super().p_values(z)
        check_is_fitted(self)
        return cluster_p_values(*self._score(self._check(z)), self.reference_, self.reference_nearest_)


def _check_choice(what: str, value: str, allowed: dict | tuple) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(allowed)}")


def _hold_out(z: np.ndarray, y: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return (z, y, z_calibration) with a random fifth of the rows, of every class where there are labels, held out."""
    order = np.random.default_rng(seed).permutation(len(z))
    if y is None:
        held = order[: len(z) // 5]
    else:
        members = (order[y[order] == c] for c in np.unique(y))
        held = np.concatenate([own[: len(own) // 5] for own in members])
    if not len(held):
        raise ValueError(f"a held-out threshold needs z_calibration, or 5 embeddings (of some class), got {len(z)}")
    kept = np.setdiff1d(order, held)
    return z[kept], None if y is None else y[kept], z[held]
