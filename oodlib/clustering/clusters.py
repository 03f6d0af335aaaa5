"""Clustering: the groups of training embeddings, by their labels or without any, and the centres of the groups.

Every clustering is a function (z, y, n_clusters, seed) -> assignments in CLUSTERINGS; one that rests on a mixture of
Gaussians may return (assignments, mixture). Centres are the means of the members, unit vectors where the clustering
works on directions; OOD data has no part in any choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from oodlib.arrays import as_array, check_labels, check_matrix, check_rows, sample_rows, to_unit_norm
from oodlib.clustering.gaussians import Gaussians
from oodlib.clustering.kmeans import assign, check_distinct, check_n_clusters, count_distinct, kmeans, standardize
from oodlib.clustering.mixture import fit_mixture
from oodlib.clustering.moments import cluster_means

CANDIDATES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50)  # what "auto" chooses from
TRIED = 10_000  # rows that "auto" clusters with every candidate
JUDGED = 2000  # of these, rows whose silhouettes decide
LINKED = 5000  # rows that agglomerative clustering links; it needs memory for every pair of them


@dataclass(frozen=True)
class Clusters:
    """A partition of n embeddings: the cluster of each, and the centre of each cluster."""

    assignments: np.ndarray  # (n,) int64 in 0 … K - 1
    centers: np.ndarray  # (K, d) float32
    mixture: Gaussians | None = None  # whose likeliest components the clusters are, for mixtures


def cluster(
    z: np.ndarray,
    y: np.ndarray | None = None,
    method: str = "labels",
    n_clusters: int | str | None = None,
    seed: int = 0,
) -> Clusters:
    """Group embeddings z (n, d), array or tensor; labels y (n,) int are needed by "labels" and without `n_clusters`.

    `n_clusters` is K; None takes the number of classes in y, "auto" what `choose_n_clusters` finds. "labels" (classes
    in increasing order) and "one" have a K of their own. Where labels are not needed, their values are not looked at.
    Raises ValueError for an unknown method, NaN or infinity, labels that are missing, of another length or not
    integers >= 0 (-1 marks OOD data), and K larger than the number of distinct embeddings (directions, if the method
    works on those).
    """
    if method not in CLUSTERINGS:
        raise ValueError(f"unknown clustering {method!r}; known: {', '.join(CLUSTERINGS)}")
    z = check_rows("z", z) if method in OWN_SIZE else check_matrix("z", z)  # those read z in blocks, from a file too
    y = None if y is None else np.asarray(as_array(y))
    if y is not None and y.shape != z.shape[:1]:
        raise ValueError(f"y must have one label for each of the {len(z)} embeddings, got shape {y.shape}")
    if method not in OWN_SIZE:
        if n_clusters is None and y is None:
            raise ValueError(f"clustering {method!r} needs n_clusters, or labels y to count the classes of")
        n_clusters = len(check_labels("labels y", y, len(z))[0]) if n_clusters is None else n_clusters
        if n_clusters == "auto":
            n_clusters = choose_n_clusters(z, method, seed=seed)
        check_n_clusters(n_clusters, len(z))
    found = CLUSTERINGS[method](z, y, n_clusters, seed)
    assignments, mixture = found if isinstance(found, tuple) else (found, None)
    members = to_unit_norm(z) if method in ON_DIRECTIONS else z
    centers = cluster_means(members, assignments, int(assignments.max()) + 1)
    centers = (to_unit_norm(centers) if method in ON_DIRECTIONS else centers).astype(np.float32)
    return Clusters(assignments, centers, mixture)


def choose_n_clusters(z: np.ndarray, method: str, candidates: Sequence[int] = CANDIDATES, seed: int = 0) -> int:
    """Return the K that fits embeddings z (n, d) best: by BIC for mixtures (lower), else by the silhouette (higher).

    Every candidate clusters the same seeded sample. Those above a tenth of its size, or above the number of distinct
    embeddings in it, are left out. Raises ValueError when none is left, for a method without a K, as `check_matrix`.
    Schwarz 1978 (BIC); Rousseeuw 1987 (silhouette: by cosine distance for spherical k-means, else by Euclidean).
    """
    if method in OWN_SIZE or method not in CLUSTERINGS:
        known = ", ".join(name for name in CLUSTERINGS if name not in OWN_SIZE)
        raise ValueError(f"no number of clusters can be chosen for clustering {method!r}, but for {known}")
    z = check_matrix("z", z)
    z = z[sample_rows(len(z), TRIED, seed)]
    if method in ON_DIRECTIONS:
        z = z[z.any(axis=1)]  # a zero vector has no direction
    x = to_unit_norm(z).astype(np.float32) if method in ON_DIRECTIONS else standardize(z)[0]
    n_distinct = count_distinct(x, max(candidates))
    possible = [k for k in candidates if k <= min(len(z) // 10, n_distinct)]
    if not possible:
        least = f"{10 * min(candidates)} embeddings, {min(candidates)} of them distinct"
        raise ValueError(f"n_clusters 'auto' needs at least {least}, got {len(z)} and {n_distinct}")
    if method in MIXTURES:
        return min(possible, key=lambda k: fit_mixture(z, k, MIXTURES[method], seed).bic)
    return max(possible, key=_silhouette_of(z, x, method, seed))


def _silhouette_of(z: np.ndarray, x: np.ndarray, method: str, seed: int) -> Callable[[int], float]:
    """Return the function K -> mean silhouette of a seeded sample, whose distances in x (n, d) are taken once."""
    from sklearn.metrics import pairwise_distances, silhouette_score

    judged = sample_rows(len(z), JUDGED, seed)
    distances = pairwise_distances(x[judged], metric="cosine" if method in ON_DIRECTIONS else "euclidean")

    def silhouette(k: int) -> float:
        assignments = CLUSTERINGS[method](z, None, k, seed)[judged]
        several = len(np.unique(assignments)) > 1  # else silhouettes are not defined
        return silhouette_score(distances, assignments, metric="precomputed") if several else -1.0

    return silhouette


def _labels(z: np.ndarray, y: np.ndarray | None, n_clusters: int | None, seed: int) -> np.ndarray:
    if y is None:
        raise ValueError("clustering 'labels' needs labels y")
    return check_labels("labels y", y, len(z))[1]


def _one(z: np.ndarray, y: np.ndarray | None, n_clusters: int | None, seed: int) -> np.ndarray:
    return np.zeros(len(z), dtype=np.int64)


def _kmeans(z: np.ndarray, y: np.ndarray | None, n_clusters: int, seed: int) -> np.ndarray:
    return kmeans(z, n_clusters, seed=seed)[0]


def _spherical_kmeans(z: np.ndarray, y: np.ndarray | None, n_clusters: int, seed: int) -> np.ndarray:
    return kmeans(z, n_clusters, spherical=True, seed=seed)[0]


def _mixture(covariance: str) -> Callable:
    def likeliest(z: np.ndarray, y: np.ndarray | None, n_clusters: int, seed: int) -> tuple[np.ndarray, Gaussians]:
        mixture = fit_mixture(z, n_clusters, covariance, seed)
        # a component that is nowhere the likeliest has no cluster
        components, assignments = np.unique(mixture.log_joint(z).argmax(axis=1), return_inverse=True)
        return assignments, mixture.take(components)

    return likeliest


def _agglomerative(z: np.ndarray, y: np.ndarray | None, n_clusters: int, seed: int) -> np.ndarray:
    """Link a seeded sample by Ward's criterion; the rest goes to the nearest centre."""
    from sklearn.cluster import AgglomerativeClustering

    sample = sample_rows(len(z), LINKED, seed)
    check_distinct(z[sample], n_clusters, "points" if len(sample) == len(z) else "points in the sample that is linked")
    linked = np.arange(len(sample))
    if n_clusters < len(sample):
        linked = AgglomerativeClustering(n_clusters).fit_predict(z[sample])
    assignments = assign(z, cluster_means(z[sample], linked, n_clusters))
    assignments[sample] = linked
    return assignments


MIXTURES = {"gmm": "full", "gmm-tied": "tied", "gmm-diag": "diag"}  # their covariances
CLUSTERINGS = {
    "labels": _labels,
    "one": _one,
    "kmeans": _kmeans,
    "spherical-kmeans": _spherical_kmeans,
    **{name: _mixture(covariance) for name, covariance in MIXTURES.items()},
    "agglomerative": _agglomerative,
}
OWN_SIZE = ("labels", "one")
ON_DIRECTIONS = ("spherical-kmeans",)
