"""Distances to clusters: embeddings and their cluster assignments in; arrays that hold the fit, then distances, out.

Every distance is two functions: `fit(z, assignments, n_clusters)` returns its state, a dictionary of arrays (so that a
detector is arrays and nothing else), and `measure(z, state)` returns the (n, K) distances, smaller is closer. Sums that
decide (means, covariances) are float64; products over all samples stay in the dtype of z, after centring.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

State = dict[str, np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray, int], State]
Measure = Callable[[np.ndarray, State], np.ndarray]


@dataclass(frozen=True)
class Distance:
    """A distance: how it is fitted, how it is measured."""

    fit: Fit
    measure: Measure


def to_unit_norm(z: np.ndarray) -> np.ndarray:
    """Return the rows of z (n, d) at unit length; a zero row stays zero, at cosine distance 1 of everything."""
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    return z / np.where(norms > 0, norms, 1).astype(z.dtype)


def cluster_means(z: np.ndarray, assignments: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the float64 mean (K, d) of every cluster's rows of z (n, d)."""
    counts = np.bincount(assignments, minlength=n_clusters)
    sums = np.stack([z[assignments == k].sum(axis=0, dtype=np.float64) for k in range(n_clusters)])
    return sums / counts[:, None]


def whitening(rows: np.ndarray, resolution: float = 0.0) -> np.ndarray:
    """Return W (d, r), float64, with W Wᵀ the pseudo-inverse of the covariance of `rows` (n, d), which have mean zero.

    Eigenvalues below 1e-10 of the largest count as zero, and so do those below `resolution`: variance that rounding
    of the input alone would make. Raises ValueError when nothing is left.
    """
    rows = rows.astype(np.float64, copy=False)
    eigenvalues, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    kept = eigenvalues > max(1e-10 * eigenvalues[-1], resolution)
    if not kept.any():
        raise ValueError("embeddings do not vary within clusters, so Mahalanobis distances are not defined")
    return vectors[:, kept] / np.sqrt(eigenvalues[kept])


def squared_distances(z: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances (n, K) of z (n, d) to centers (K, d), both near the origin."""
    distances = (z**2).sum(axis=1, keepdims=True) - 2 * z @ centers.T + (centers**2).sum(axis=1)
    return np.maximum(distances, 0, out=distances)


def _resolution(z: np.ndarray) -> float:
    """Return the variance that rounding to the dtype of z can make."""
    return float(np.finfo(z.dtype).eps * np.abs(z).max()) ** 2


def fit_euclidean(z: np.ndarray, assignments: np.ndarray, n_clusters: int) -> State:
    """Fit cluster means, relative to the mean of all so that a common shift costs no digits."""
    origin = z.mean(axis=0, dtype=np.float64)
    centers = cluster_means(z, assignments, n_clusters) - origin
    return {"origin": origin.astype(z.dtype), "centers": centers.astype(z.dtype)}


def measure_euclidean(z: np.ndarray, state: State) -> np.ndarray:
    """Return squared Euclidean distances (n, K)."""
    return squared_distances(z - state["origin"], state["centers"])


def fit_cosine(z: np.ndarray, assignments: np.ndarray, n_clusters: int) -> State:
    """Fit mean directions: the cluster means of unit vectors, at unit length."""
    return {"centers": to_unit_norm(cluster_means(to_unit_norm(z), assignments, n_clusters)).astype(z.dtype)}


def measure_cosine(z: np.ndarray, state: State) -> np.ndarray:
    """Return one minus the cosine to each mean direction, (n, K) in [0, 2]."""
    return 1 - to_unit_norm(z) @ state["centers"].T


def fit_mahalanobis(z: np.ndarray, assignments: np.ndarray, n_clusters: int) -> State:
    """Fit cluster means and one tied within-cluster covariance (Lee et al. 2018), as a whitening."""
    means = cluster_means(z, assignments, n_clusters)
    origin = z.mean(axis=0, dtype=np.float64)
    whiten = whitening(z - means[assignments], _resolution(z))
    return {
        "origin": origin.astype(z.dtype),
        "whiten": whiten.astype(z.dtype),
        "centers": ((means - origin) @ whiten).astype(z.dtype),
    }


def measure_mahalanobis(z: np.ndarray, state: State) -> np.ndarray:
    """Return squared Mahalanobis distances (n, K) under the tied covariance."""
    return squared_distances((z - state["origin"]) @ state["whiten"], state["centers"])


DISTANCES = {
    "euclidean": Distance(fit_euclidean, measure_euclidean),
    "cosine": Distance(fit_cosine, measure_cosine),
    "mahalanobis": Distance(fit_mahalanobis, measure_mahalanobis),
}
