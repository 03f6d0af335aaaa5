"""Clustering: training embeddings, and labels where there are any, in; a cluster for each embedding, and centres, out.

Every clustering is a function (z, y, n_clusters, seed) -> assignments in CLUSTERINGS. Centres are the means of the
members, unit vectors where the clustering works on directions; OOD data has no part in any choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from oodlib.distances import cluster_means, to_unit_norm
from oodlib.kmeans import assign, check_matrix, check_n_clusters, kmeans
from oodlib.mixture import fit_mixture

CANDIDATES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50)  # what "auto" chooses from
JUDGED = 2000  # rows whose silhouette decides for "auto"
LINKED = 5000  # rows that agglomerative clustering links; it needs memory for every pair of them


@dataclass(frozen=True)
class Clusters:
    """A partition of n embeddings: the cluster of each, and the centre of each cluster."""

    assignments: np.ndarray  # (n,) int64 in 0 … K - 1
    centers: np.ndarray  # (K, d) float32


def cluster(
    z: np.ndarray,
    y: np.ndarray | None = None,
    method: str = "labels",
    n_clusters: int | str | None = None,
    seed: int = 0,
) -> Clusters:
    """Group embeddings z (n, d); labels y (n,) int are needed by "labels" and where `n_clusters` is None.

    `n_clusters` is K; None takes the number of classes in y, "auto" what `choose_n_clusters` finds. "labels" (classes
    in increasing order) and "one" have a K of their own. Raises ValueError for an unknown method, NaN or infinity,
    labels that are missing or of another length, and K larger than the number of distinct embeddings.
    """
    if method not in CLUSTERINGS:
        raise ValueError(f"unknown clustering {method!r}; known: {', '.join(CLUSTERINGS)}")
    z = check_matrix("z", z)
    y = None if y is None else np.asarray(y)
    if y is not None and y.shape != z.shape[:1]:
        raise ValueError(f"y must have one label for each of the {len(z)} embeddings, got shape {y.shape}")
    if method not in OWN_SIZE:
        if n_clusters is None and y is None:
            raise ValueError(f"clustering {method!r} needs n_clusters, or labels y to count the classes of")
        n_clusters = len(np.unique(y)) if n_clusters is None else n_clusters
        if n_clusters == "auto":
            n_clusters = choose_n_clusters(z, method, seed=seed)
        check_n_clusters(n_clusters, len(z))
    assignments = CLUSTERINGS[method](z, y, n_clusters, seed)
    members = to_unit_norm(z) if method in ON_DIRECTIONS else z
    centers = cluster_means(members, assignments, int(assignments.max()) + 1)
    return Clusters(assignments, (to_unit_norm(centers) if method in ON_DIRECTIONS else centers).astype(np.float32))


def choose_n_clusters(z: np.ndarray, method: str, candidates: Sequence[int] = CANDIDATES, seed: int = 0) -> int:
    """Return the K that fits embeddings z (n, d) best: by BIC for mixtures, else by the silhouette of a seeded sample.

    Candidates above a tenth of n are left out. Raises ValueError when none is left, or for a method without a K.
    """
    from sklearn.metrics import silhouette_score

    if method in OWN_SIZE or method not in CLUSTERINGS:
        raise ValueError(f"no number of clusters can be chosen for clustering {method!r}")
    possible = [k for k in candidates if k <= len(z) // 10]
    if not possible:
        raise ValueError(f"n_clusters 'auto' needs at least {10 * min(candidates)} embeddings, got {len(z)}")
    if method in MIXTURES:
        return min(possible, key=lambda k: fit_mixture(z, k, MIXTURES[method], seed).bic)
    sample = np.random.default_rng(seed).permutation(len(z))[:JUDGED]
    metric = "cosine" if method in ON_DIRECTIONS else "euclidean"

    def silhouette(k: int) -> float:
        assignments = CLUSTERINGS[method](z, None, k, seed)[sample]
        return silhouette_score(z[sample], assignments, metric=metric) if len(np.unique(assignments)) > 1 else -1.0

    return max(possible, key=silhouette)


def _labels(z: np.ndarray, y: np.ndarray | None, n_clusters: int | None, seed: int) -> np.ndarray:
    if y is None:
        raise ValueError("clustering 'labels' needs labels y")
    return np.unique(y, return_inverse=True)[1]


def _one(z: np.ndarray, y: np.ndarray | None, n_clusters: int | None, seed: int) -> np.ndarray:
    return np.zeros(len(z), dtype=np.int64)


def _kmeans(z: np.ndarray, y: np.ndarray | None, n_clusters: int, seed: int) -> np.ndarray:
    return kmeans(z, n_clusters, seed=seed)[0]


def _spherical_kmeans(z: np.ndarray, y: np.ndarray | None, n_clusters: int, seed: int) -> np.ndarray:
    return kmeans(z, n_clusters, spherical=True, seed=seed)[0]


def _mixture(covariance: str) -> Callable:
    def assignments(z: np.ndarray, y: np.ndarray | None, n_clusters: int, seed: int) -> np.ndarray:
        most_likely = fit_mixture(z, n_clusters, covariance, seed).log_joint(z).argmax(axis=1)
        # a component that is nowhere the likeliest has no cluster
        return np.unique(most_likely, return_inverse=True)[1]

    return assignments


def _agglomerative(z: np.ndarray, y: np.ndarray | None, n_clusters: int, seed: int) -> np.ndarray:
    """Link a seeded sample by Ward's criterion; the rest goes to the nearest centre."""
    from sklearn.cluster import AgglomerativeClustering

    check_n_clusters(n_clusters, min(len(z), LINKED))
    sample = np.sort(np.random.default_rng(seed).permutation(len(z))[:LINKED])
    linked = np.arange(len(sample))
    if n_clusters < len(sample):
        linked = AgglomerativeClustering(n_clusters).fit_predict(z[sample])
    assignments = assign(z, cluster_means(z[sample], linked, n_clusters))
    assignments[sample] = linked
    return assignments


CLUSTERINGS = {
    "labels": _labels,
    "one": _one,
    "kmeans": _kmeans,
    "spherical-kmeans": _spherical_kmeans,
    "gmm": _mixture("full"),
    "gmm-tied": _mixture("tied"),
    "gmm-diag": _mixture("diag"),
    "agglomerative": _agglomerative,
}
MIXTURES = {"gmm": "full", "gmm-tied": "tied", "gmm-diag": "diag"}
OWN_SIZE = ("labels", "one")
ON_DIRECTIONS = ("spherical-kmeans",)
