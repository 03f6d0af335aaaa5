"""Embeddings (n, d) in, with labels (n,) where a method needs them; each one's cluster and the centres (K, d) out.

A method finds its clusters on the embeddings as they are, except that spherical k-means takes their directions. No
cluster is empty. The number of clusters is given, that of the classes, or chosen from the embeddings alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from oodlib.distances import cluster_means
from oodlib.kmeans import assign, check_matrix, check_n_clusters, kmeans, standardize
from oodlib.mixture import fit_mixture

__all__ = ["CLUSTERINGS", "Clusters", "assign", "choose_n_clusters", "cluster"]

SAMPLE = 5_000  # points of which all pairwise distances are taken: Ward linkage and silhouettes
CANDIDATES = (*range(1, 13), 15, 20, 25, 30, 40, 50, 75, 100)
PATIENCE = 3  # numbers of components in a row without a better BIC, after which larger ones are not tried


@dataclass(frozen=True)
class Clusters:
    """Which cluster each embedding belongs to, and where the clusters are.

    Centres are the means of their members; unit vectors for spherical k-means, the means of the components for mixtures.
    inertia is the sum of squared distances to the own centre, where the method minimises it, else None.
    """

    assignments: np.ndarray  # (n,) int64 in 0 … K - 1
    centers: np.ndarray  # (K, d) float32
    method: str
    inertia: float | None


Found = tuple[np.ndarray, np.ndarray, float | None]  # assignments, centers, inertia


def cluster(
    z: np.ndarray,
    y: np.ndarray | None = None,
    method: str = "labels",
    n_clusters: int | str | None = None,
    seed: int = 0,
) -> Clusters:
    """Group embeddings z (n, d) with one of the CLUSTERINGS.

    n_clusters: K, or None for the number of classes in y (n,), or "auto" for `choose_n_clusters`. The methods "labels",
    whose cluster k is the k-th class in increasing order, and "one" have their own K and pass over it. Mixtures return
    fewer clusters where a component is no sample's most likely one.
    Raises ValueError for another method, z not finite or not (n, d), y missing or not one label a row, K < 1 or K > n.
    """
    if method not in CLUSTERINGS:
        raise ValueError(f"unknown clustering {method!r}; known: {', '.join(CLUSTERINGS)}")
    z = check_matrix("z", z)
    y = None if y is None else _check_labels(y, len(z))
    if method not in ("labels", "one"):
        n_clusters = _resolve(z, y, method, n_clusters, seed)
    assignments, centers, inertia = CLUSTERINGS[method](z, y, n_clusters, seed)
    return Clusters(assignments.astype(np.int64), centers.astype(np.float32), method, inertia)


def choose_n_clusters(z: np.ndarray, method: str, candidates: Sequence[int] | None = None, seed: int = 0) -> int:
    """Choose the number of clusters of z (n, d) by the embeddings alone, so without labels and without OOD data.

    Mixtures: the smallest BIC (Schwarz 1978), fitted to all points, candidates in increasing order, until three in a
    row bring no better one. Other methods: the largest mean silhouette (Rousseeuw 1987) of a clustering of the
    embeddings, or of a seeded sample of 5,000 if there are more; with cosine distances for spherical k-means.
    candidates: None tries 1 to 12 and then ever fewer up to 100, as far as there are points; silhouettes need at least
    2 clusters. Raises ValueError for a method that has no K to choose, and where no candidate fits.
    """
    z = check_matrix("z", z)
    if method not in CLUSTERINGS or method in ("labels", "one"):
        known = ", ".join(name for name in CLUSTERINGS if name not in ("labels", "one"))
        raise ValueError(f"no number of clusters to choose for {method!r}; known: {known}")
    if not method.startswith("gmm") and len(z) > SAMPLE:
        z = z[_sample(len(z), seed)]
    n_distinct = len(np.unique(z, axis=0))
    fitting = sorted(CANDIDATES if candidates is None else candidates)
    if not method.startswith("gmm")
