"""Separation and purity: how good clusters of embeddings are, each by itself and all together.

The measures of each cluster are (K,) float64, one number for each of the K distinct assignments in increasing order.
Embeddings z (n, d) must be finite, assignments and labels (n,) integers >= 0 (-1 means unknown and raises ValueError);
all may be arrays or torch tensors. What compares clusters is nan where there is but one. `max_samples` keeps a
stratified sample: about that many rows, drawn without replacement in proportion to the cluster sizes, at least two of
each cluster (or the one it has); None keeps all.
"""

from collections.abc import Sequence

import numpy as np

from oodlib.arrays import check_labels, check_rows, to_unit_norm
from oodlib.clustering.collapse import cdnv, compactness, dispersion, neural_collapse, rankme, uniformity
from oodlib.clustering.pair_distances import mean_distances

PAIR_METRICS = ("euclidean", "cosine")


def global_separation(
    z,
    assignments,
    fraction: float = 1.0,
    metric: str = "euclidean",
    include_self: bool = False,
    max_samples: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the global separation (K,) of every cluster: is it nearer to itself than to its nearest other cluster?

    z (n, d), assignments (n,) int. GS_c = (min P_cc' - P_cc) / max(min P_cc', P_cc), the minimum over c' ≠ c, where
    P_cc' is the mean of the smallest `fraction` of the distances between members of c and c': max(1, floor(fraction m))
    of m pairs. P_cc is over pairs of distinct points, each once; with include_self over all n_c² ordered pairs, as
    earlier code had it. In [-1, 1], larger is better; 0 where both sides are zero, so where duplicates make clusters.
    A one-member cluster has P_cc = 0, hence GS 1 unless another cluster holds its duplicate; a single cluster has nan.
    metric is "euclidean" or "cosine" (1 - cos; a zero row is at 1 of everything). Memory: copies of z, and a quarter of
    a gigabyte at most. Bojchevski, Matkovic and Günnemann 2017.
    """
    return separation_curve(z, assignments, (fraction,), metric, include_self, max_samples, seed)[0]


def separation_curve(
    z,
    assignments,
    fractions: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    metric: str = "euclidean",
    include_self: bool = False,
    max_samples: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return `global_separation` at several fractions, (len(fractions), K), from one computation of the distances."""
    if metric not in PAIR_METRICS:
        raise ValueError(f"metric must be one of {', '.join(PAIR_METRICS)}, got {metric!r}")
    if len(fractions) == 0 or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"a fraction must lie in (0, 1], got {', '.join(map(str, fractions)) or 'none'}")
    z = _as_float64(z)
    members = _sample(_members("assignments", assignments, len(z)), max_samples, seed)
    if len(members) == 1:
        return np.full((len(fractions), 1), np.nan)
    z = to_unit_norm(z) if metric == "cosine" else z
    sizes = np.array([len(rows) for rows in members])
    means = mean_distances(z[np.concatenate(members)], sizes, fractions, metric, include_self)  # (f, K, K)
    within = np.diagonal(means, axis1=1, axis2=2)  # (f, K)
    nearest = np.where(np.eye(len(members), dtype=bool), np.inf, means).min(axis=2)
    largest = np.maximum(nearest, within)
    return np.divide(nearest - within, largest, out=np.zeros_like(largest), where=largest > 0)


def cluster_purity(assignments, y) -> np.ndarray:
    """Return the share (K,) of the largest class inside every cluster.

    assignments (n,) int, y (n,) int labels. In (0, 1], larger is better; 1 for a one-member cluster.
    """
    clusters, codes = check_labels("assignments", assignments, len(assignments))
    classes, class_codes = check_labels("y", y, len(codes))
    table = np.bincount(codes * len(classes) + class_codes, minlength=len(clusters) * len(classes))
    table = table.reshape(len(clusters), len(classes))  # (K, C) members of each class
    return table.max(axis=1) / table.sum(axis=1)


def local_purity(z, y, n_neighbors: int = 10, max_samples: int | None = None, seed: int = 0) -> float:
    """Return the mean over embeddings of the largest class share among the n_neighbors + 1 nearest, itself included.

    z (n, d), y (n,) int, Euclidean distance. In (0, 1], larger is better. max_samples limits the embeddings that are
    averaged over; their neighbours are looked for among all. Raises ValueError unless 1 <= n_neighbors < n.
    Bojchevski, Matkovic and Günnemann 2017.
    """
    z = _standard(_as_float64(z))
    _, codes = check_labels("y", y, len(z))
    if not 1 <= n_neighbors < len(z):
        raise ValueError(f"n_neighbors must lie in [1, n - 1] = [1, {len(z) - 1}], got {n_neighbors}")
    from sklearn.neighbors import NearestNeighbors

    rows = np.concatenate(_sample(_members("y", codes, len(z)), max_samples, seed))  # (q,)
    index = NearestNeighbors(n_neighbors=n_neighbors + 1, algorithm="brute").fit(z)
    neighbors = index.kneighbors(z[rows], return_distance=False)  # (q, n_neighbors + 1)
    crowded_out = ~(neighbors == rows[:, None]).any(axis=1)  # by its duplicates
    neighbors[crowded_out, -1] = rows[crowded_out]
    votes = np.sort(codes[neighbors], axis=1)
    # a class that is there L times is a run of L, and a run of more than r is what makes votes r apart equal
    longest = 1 + sum((votes[:, r:] == votes[:, :-r]).any(axis=1) for r in range(1, n_neighbors + 1))  # (q,)
    return float(longest.mean() / (n_neighbors + 1))


def cluster_quality(z, assignments, y=None, max_samples: int | None = 10_000, seed: int = 0) -> list[dict]:
    """Return all measures of a clustering as rows with cluster, size, measure, value.

    Per cluster (cluster = its label, size = its members): global_separation, global_separation_cosine, with y
    cluster_purity. Overall (cluster "all", size n): silhouette (Rousseeuw 1987), davies_bouldin, calinski_harabasz,
    cdnv, nc1, nc2_norms, nc2_angles, dispersion, compactness of the clusters, with y nmi (normalised mutual
    information) and ari (adjusted Rand index). max_samples holds for the Euclidean separation and the silhouette, the
    rest is over all n.
    """
    z = _as_float64(z)
    labels, codes = check_labels("assignments", assignments, len(z))
    per_cluster = {
        "global_separation": global_separation(z, codes, max_samples=max_samples, seed=seed),
        "global_separation_cosine": global_separation(z, codes, metric="cosine"),
    }
    overall = {
        **_indices(z, codes, max_samples, seed),
        "cdnv": cdnv(z, codes),
        **neural_collapse(z, codes),
        "dispersion": dispersion(z, codes),
        "compactness": compactness(z, codes),
    }
    if y is not None:
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        per_cluster["cluster_purity"] = cluster_purity(codes, y)
        _, classes = check_labels("y", y, len(z))
        overall["nmi"] = float(normalized_mutual_info_score(classes, codes))
        overall["ari"] = float(adjusted_rand_score(classes, codes))
    rows = [
        {"cluster": int(label), "size": int(size), "measure": measure, "value": float(value)}
        for measure, values in per_cluster.items()
        for label, size, value in zip(labels, np.bincount(codes), values, strict=True)
    ]
    return rows + _overall_rows(len(z), overall)


def embedding_quality(z, y, n_neighbors: int = 10, max_samples: int | None = 10_000, seed: int = 0) -> list[dict]:
    """Return local_purity, rankme and uniformity as rows of `cluster_quality`'s form: they depend on no clustering.

    z (n, d), y (n,) int labels. max_samples (stratified by y) holds for all three. Computed once a run, not once a
    clustering.
    """
    z = _as_float64(z)
    sample = z[np.concatenate(_sample(_members("y", y, len(z)), max_samples, seed))]
    purity = local_purity(z, y, n_neighbors, max_samples, seed)
    return _overall_rows(len(z), {"local_purity": purity, "rankme": rankme(sample), "uniformity": uniformity(sample)})


def _overall_rows(n, values):
    return [{"cluster": "all", "size": n, "measure": measure, "value": value} for measure, value in values.items()]


def _members(name, assignments, n) -> list[np.ndarray]:
    """Return the row numbers of every cluster, clusters in increasing label order."""
    _, codes = check_labels(name, assignments, n)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def _sample(members, max_samples, seed) -> list[np.ndarray]:
    """Return the row numbers that a stratified sample keeps of every cluster."""
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, or None for all, got {max_samples}")
    n = sum(map(len, members))
    if max_samples is None or max_samples >= n:
        return members
    rng = np.random.default_rng(seed)
    sizes = [min(len(rows), max(2, round(len(rows) * max_samples / n))) for rows in members]
    return [np.sort(rng.choice(rows, size, replace=False)) for rows, size in zip(members, sizes, strict=True)]


def _standard(z):
    """Return z (n, d) at mean zero and mean squared norm one: no scale is too small for a tolerance downstream."""
    z = z - z.mean(axis=0)
    return z / (np.sqrt((z**2).sum(axis=1).mean()) or 1.0)


def _indices(z, codes, max_samples, seed) -> dict[str, float]:
    """Return scikit-learn's indices; nan unless there are two clusters, and one of them has two members."""
    from sklearn import config_context, metrics

    def index(name: str, max_samples: int | None = None) -> float:
        members = _sample(_members("assignments", codes, len(z)), max_samples, seed)
        sizes = [len(rows) for rows in members]
        if not 1 < len(members) < sum(sizes):
            return np.nan
        standard, assigned = _standard(z[np.concatenate(members)]), np.repeat(np.arange(len(sizes)), sizes)
        with config_context(working_memory=64):  # MB a block of distances, 1024 by default
            return float(getattr(metrics, f"{name}_score")(standard, assigned))

    names = ("davies_bouldin", "calinski_harabasz")
    return {"silhouette": index("silhouette", max_samples)} | {name: index(name) for name in names}


def _as_float64(z) -> np.ndarray:
    return check_rows("z", z).astype(np.float64, copy=False)
