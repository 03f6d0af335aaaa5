"""Distances to clusters: embeddings and their cluster assignments in; arrays that hold the fit, then distances, out.

Every distance is two functions: `fit(z, assignments, n_clusters)` returns its state, a dictionary of arrays (so that a
detector is arrays and nothing else), and `measure(z, state)` returns the (n, K) distances, smaller is closer. Sums that
decide (means, covariances) are float64; products over all samples stay in the dtype of z, after centring.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

State = dict[str, np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray, int], State]
Measure = Callable[[np.ndarray, State], np.ndarray]


@dataclass(frozen=True)
class Distance:
    """A distance: how it is fitted, how it is measured, and whether a score joins all clusters or takes the nearest.

    `joint`: the distances are minus log densities, and a score is the log of their sum, not that of the largest alone.
    """

    fit: Fit
    measure: Measure
    joint: bool = False


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


def fit_per_cluster(z: np.ndarray, assignments: np.ndarray, n_clusters: int, shrink: bool = False) -> State:
    """Fit means and one covariance a cluster, as a factor in the space that the tied covariance makes white.

    There the tied covariance is the identity, so neither unit nor redundant dimensions matter. A cluster that has no
    more members than this space has dimensions takes the tied covariance, because its own is singular. With `shrink`
    every covariance is drawn towards a multiple of the tied one, as far as Ledoit and Wolf (2004) say.
    """
    tied = fit_mahalanobis(z, assignments, n_clusters)
    x = ((z - tied["origin"]) @ tied["whiten"]).astype(np.float64)  # (n, r)
    means = cluster_means(x, assignments, n_clusters)
    rank = x.shape[1]
    factors, volumes = np.tile(np.eye(rank), (n_clusters, 1, 1)), np.zeros(n_clusters)
    for k in range(n_clusters):
        rows = x[assignments == k] - means[k]
        if len(rows) > rank or (shrink and len(rows) > 1):
            factors[k], volumes[k] = _inverse_root(rows, shrink)
    weights = np.bincount(assignments, minlength=n_clusters) / len(z)
    return {
        **tied,
        "centers": means.astype(z.dtype),
        "factors": factors.astype(z.dtype),
        "log_weights": (np.log(weights) - volumes - rank / 2 * np.log(2 * np.pi)).astype(z.dtype),
    }


def _inverse_root(rows: np.ndarray, shrink: bool) -> tuple[np.ndarray, float]:
    """Return F (r, r) with F Fᵀ the inverse covariance of rows (n, r), and half the covariance's log determinant."""
    covariance = rows.T @ rows / len(rows)
    if shrink:
        from sklearn.covariance import ledoit_wolf_shrinkage

        amount = ledoit_wolf_shrinkage(rows, assume_centered=True)
        target = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        covariance = (1 - amount) * covariance + amount * target
    eigenvalues, vectors = np.linalg.eigh(covariance)
    # in the tied-white space 1e-6 is a millionth of the usual variance: what a cluster lacks, it lacks up to there
    eigenvalues = np.maximum(eigenvalues, 1e-6)
    return vectors / np.sqrt(eigenvalues), float(np.log(eigenvalues).sum() / 2)


def measure_per_cluster(z: np.ndarray, state: State) -> np.ndarray:
    """Return squared Mahalanobis distances (n, K), each under its cluster's own covariance."""
    x = (z - state["origin"]) @ state["whiten"]
    pairs = zip(state["centers"], state["factors"], strict=True)
    return np.stack([(((x - center) @ factor) ** 2).sum(axis=1) for center, factor in pairs], axis=1)


def measure_log_density(z: np.ndarray, state: State) -> np.ndarray:
    """Return minus the log of weight times density (n, K) of each cluster's Gaussian, up to a common constant."""
    return measure_per_cluster(z, state) / 2 - state["log_weights"]


def fit_relative(z: np.ndarray, assignments: np.ndarray, n_clusters: int) -> State:
    """Fit the tied Mahalanobis distance, and that to all training embeddings as one cluster (Ren et al. 2021).

    Raises ValueError for a single cluster: the two would be the same, and their difference zero everywhere.
    """
    if n_clusters < 2:
        raise ValueError("relative-mahalanobis needs at least two clusters")
    state = fit_mahalanobis(z, assignments, n_clusters)
    background = fit_mahalanobis(z, np.zeros_like(assignments), 1)
    return state | {"background": background["whiten"]}


def measure_relative(z: np.ndarray, state: State) -> np.ndarray:
    """Return squared tied Mahalanobis distances (n, K) minus that to the Gaussian of all; they may be negative."""
    background = (((z - state["origin"]) @ state["background"]) ** 2).sum(axis=1, keepdims=True)
    return measure_mahalanobis(z, state) - background


def fit_ssd(z: np.ndarray, assignments: np.ndarray, n_clusters: int) -> State:
    """Fit SSD's distance (Sehwag et al. 2021): one covariance a cluster, of unit vectors.

    SSD standardises each dimension first; Mahalanobis distances do not depend on that, so it is left out.
    """
    return fit_per_cluster(to_unit_norm(z), assignments, n_clusters)


def measure_ssd(z: np.ndarray, state: State) -> np.ndarray:
    """Return SSD's squared distances (n, K)."""
    return measure_per_cluster(to_unit_norm(z), state)


DISTANCES = {
    "euclidean": Distance(fit_euclidean, measure_euclidean),
    "cosine": Distance(fit_cosine, measure_cosine),
    "mahalanobis": Distance(fit_mahalanobis, measure_mahalanobis),
    "mahalanobis-cluster": Distance(fit_per_cluster, measure_per_cluster),
    "mahalanobis-shrunk": Distance(partial(fit_per_cluster, shrink=True), measure_per_cluster),
    "relative-mahalanobis": Distance(fit_relative, measure_relative),
    "ssd": Distance(fit_ssd, measure_ssd),
    "log-density": Distance(fit_per_cluster, measure_log_density, joint=True),
}
