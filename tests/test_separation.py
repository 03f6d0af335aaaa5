"""Separation and purity against plain float64 loops, hand-counted sets and scikit-learn."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn import metrics

from oodlib import separation
from oodlib.clustering import pair_distances
from oodlib.separation import cluster_purity, cluster_quality, embedding_quality, global_separation, local_purity

LINE = np.array([[0.0], [2.0], [10.0], [14.0]])  # within: 2 and 4; across: 8, 10, 12, 14
PAIRS = np.array([0, 0, 1, 1])
INDICES = ["silhouette", "davies_bouldin", "calinski_harabasz"]
OVERALL = [*INDICES, "cdnv", "nc1", "nc2_norms", "nc2_angles", "dispersion", "compactness"]


def blobs(n=90, d=5, k=4, seed=0):
    """Return n embeddings around k centres, unequal clusters with gaps between their labels."""
    rng = np.random.default_rng(seed)
    assignments = rng.choice(np.array([3, 7, 8, 20])[:k], n, p=np.arange(1, k + 1) / sum(range(1, k + 1)))
    return rng.normal(size=(k, d))[np.searchsorted([3, 7, 8, 20], assignments)] + rng.normal(size=(n, d)), assignments


def sorted_means(z, sizes, fractions, metric, include_self):
    """P (f, K, K) from all distances of every two clusters at once, each a difference of two rows, sorted."""
    parts = np.split(z, np.cumsum(sizes)[:-1])
    means = np.empty((len(fractions), len(parts), len(parts)))
    for i, a in enumerate(parts):
        for j, b in enumerate(parts):
            found = 1 - a @ b.T if metric == "cosine" else np.sqrt(((a[:, None] - b) ** 2).sum(axis=2))
            if i == j:
                np.fill_diagonal(found, 0)
            found = np.sort(found[np.triu_indices(len(a), 1)] if i == j and not include_self else found.ravel())
            kept = [max(1, int(fraction * len(found) + 1e-9)) for fraction in fractions]
            means[:, i, j] = [found[:k].mean() for k in kept]
    return means


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("fraction", [0.01, 0.35, 1.0])
def test_global_separation_is_that_of_sorted_distances(fraction, metric, include_self, monkeypatch):
    z, assignments = blobs()
    order, sizes = np.argsort(assignments, kind="stable"), np.unique(assignments, return_counts=True)[1]
    rows = z[order] / np.linalg.norm(z[order], axis=1, keepdims=True) if metric == "cosine" else z[order]
    (means,) = sorted_means(rows, sizes, (fraction,), metric, include_self)
    within, nearest = np.diag(means), np.where(np.eye(4, dtype=bool), np.inf, means).min(axis=1)
    expected = (nearest - within) / np.maximum(nearest, within)
    found = global_separation(z, assignments, fraction, metric, include_self)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    curve = separation.separation_curve(z, assignments, (fraction, 0.5), metric, include_self)  # 1.0 alone is shorter
    np.testing.assert_allclose(curve[0], expected, rtol=0, atol=1e-12)
    monkeypatch.setattr(pair_distances, "PAIRS", 1)  # the smallest blocks
    found = global_separation(z, assignments, fraction, metric, include_self)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


SINGLE, ZEROS = ([[0.0], [1], [3]], [0, 0, 1]), ([[0.0, 0], [0, 0], [1, 0], [-1, 0], [1, 0]], [0, 0, 0, 1, 1])
BY_HAND = [  # embeddings, clusters, arguments, the separation of each cluster
    (LINE, PAIRS, {}, [9 / 11, 7 / 11]),
    (LINE, PAIRS, {"fraction": 0.5}, [7 / 9, 5 / 9]),
    # with the zero distances to oneself: P is (0 + 0 + 2 + 2) / 4 = 1 and 2
    (LINE, PAIRS, {"include_self": True}, [10 / 11, 9 / 11]),
    # two clusters in one place, mixed: P_00 = 2, P_11 = 2, across 1, 3, 1, 1 -> 1.5
    ([[0], [2], [1], [3]], PAIRS, {}, [-0.25, -0.25]),
    # a cluster of one has no distance within; a duplicate of it may be elsewhere
    (*SINGLE, {}, [(2.5 - 1) / 2.5, 1]),
    (*SINGLE, {"fraction": 0.3}, [(2 - 1) / 2, 1]),
    ([[1.0], [1]], [0, 1], {}, [0, 0]),
    (LINE, [5, 5, 5, 5], {}, [np.nan]),  # one cluster alone
    # a zero row is at cosine distance 1 of every other: within 0: 1, 1, 1; within 1: 2; across: 1, 1, 1, 1, 2, 0
    (*ZEROS, {"metric": "cosine"}, [0, -1 / 2]),
    (*ZEROS, {"metric": "cosine", "fraction": 0.5}, [(2 / 3 - 1) / 1, (2 / 3 - 2) / 2]),
    (*ZEROS, {"metric": "cosine", "include_self": True}, [1 - 6 / 9, 0]),
    (*ZEROS, {"metric": "cosine", "include_self": True, "fraction": 0.5}, [1 - 1 / 4 * 3 / 2, 1]),
]


@pytest.mark.parametrize(("z", "y", "arguments", "expected"), BY_HAND)
def test_global_separation_counted_by_hand(z, y, arguments, expected):
    np.testing.assert_allclose(global_separation(z, y, **arguments), expected, rtol=1e-14, atol=1e-14)


def test_a_fraction_keeps_its_floor_and_at_least_one_distance():
    z, sizes = np.array([[0.0], *[[100.0 + i] for i in range(100)]]), np.array([1, 100])
    across = pair_distances.mean_distances(z, sizes, (0.29, 0.299, 0.001), "euclidean", False)[:, 0, 1]
    # 100, 101, …: the mean of the first 29 is 114; 0.29 · 100 is 28.999… in floating point
    np.testing.assert_allclose(across, [114, 114, 100], rtol=1e-12)


@pytest.mark.parametrize("bits", [9, 21])
@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("duplicates", [False, True])
def test_what_is_found_in_passes_is_what_sorting_finds(monkeypatch, metric, include_self, duplicates, bits):
    rng = np.random.default_rng(0)
    z, sizes, fractions = rng.normal(size=(160, 4)) + 3, np.array([90, 50, 20]), (1e-9, 0.1, 0.5, 0.77, 1.0)
    z[100] *= 1e3  # an outlier, beside which all other distances are nearly zero
    z = z.round() if duplicates else z  # many equal distances
    z = z / np.linalg.norm(z, axis=1, keepdims=True) if metric == "cosine" else z
    plain = pair_distances.mean_distances(z, sizes, fractions, metric, include_self)
    for held in (10**9, 300):  # all of a pair of clusters at once, then in passes
        for name, value in (("PAIRS", 200), ("HELD", held), ("BITS", bits)):
            monkeypatch.setattr(pair_distances, name, value)
        found = pair_distances.mean_distances(z, sizes, fractions, metric, include_self)
        np.testing.assert_allclose(found, plain, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found, sorted_means(z, sizes, fractions, metric, include_self), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("metric", "include_self"), [("euclidean", False), ("cosine", True)])
def test_memory_does_not_grow_with_the_pairs(monkeypatch, metric, include_self):
    z, sizes = np.random.default_rng(0).normal(size=(1500, 3)), np.array([1100, 400])
    expected = pair_distances.mean_distances(z, sizes, (0.2, 0.7), metric, include_self)
    for name, value in (("PAIRS", 2**14), ("HELD", 2**16), ("BITS", 9)):
        monkeypatch.setattr(pair_distances, name, value)
    tracemalloc.start()
    found = pair_distances.mean_distances(z, sizes, (0.2, 0.7), metric, include_self)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert peak < 2e6  # all pairs of the larger cluster are 5 MB, or 10 MB with itself


@pytest.mark.parametrize("fraction", [0.2, 1.0])
@pytest.mark.parametrize(("scale", "shift"), [(1e-5, 0), (1e3, 0), (1e-60, 0), (1, 1000), (1e-5, 1000)])
def test_euclidean_separation_ignores_scale_and_shift(scale, shift, fraction):
    z, assignments = blobs()
    expected = global_separation(z, assignments, fraction)
    tolerance = 1e-7 if shift and scale < 1 else 1e-11  # the input itself is rounded to 1e-13 of 1000
    np.testing.assert_allclose(global_separation(z * scale + shift, assignments, fraction), expected, atol=tolerance)


def test_tight_clusters_keep_their_digits():
    # members 1e-6 apart, clusters 1 apart: a product of uncentred rows would lose all of P_cc
    z = np.array([[5.0, 0], [5 + 1e-6, 0], [5, 1], [5, 1 + 3e-6]])
    for fraction in (1, 0.5):
        np.testing.assert_allclose(1 - global_separation(z, PAIRS, fraction), [1e-6, 3e-6], rtol=1e-4)


@pytest.mark.parametrize("metric", separation.PAIR_METRICS)
def test_duplicates_are_at_distance_zero(metric):
    place = np.random.default_rng(0).normal(size=(2, 2048)) + 7
    z, y = np.repeat(place, [6, 3], axis=0), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    for fraction, include_self in ((0.5, False), (0.5, True), (1.0, False), (1.0, True)):
        np.testing.assert_array_equal(global_separation(z, y, fraction, metric, include_self), [0, 0, 1])


def test_a_sample_is_seeded_stratified_and_close():
    z, assignments = blobs(3000)
    exact = global_separation(z, assignments)
    many = [global_separation(z, assignments, max_samples=1000, seed=seed) for seed in range(10)]
    np.testing.assert_array_equal(many[1], global_separation(z, assignments, max_samples=1000, seed=1))
    assert (many[1] != many[2]).all()
    np.testing.assert_allclose(np.mean(many, axis=0), exact, atol=0.02)
    np.testing.assert_array_equal(global_separation(z, assignments, max_samples=3000), exact)
    members = [np.arange(800), np.arange(800, 997), np.arange(997, 1000), np.array([1000])]
    kept = separation._sample(members, 100, seed=0)
    assert [len(rows) for rows in kept] == [80, 20, 2, 1]  # shares, and two where there are two
    for rows, of in zip(kept, members, strict=True):
        assert set(rows) <= set(of)
        assert len(set(rows)) == len(rows)


def test_cluster_purity_counted_by_hand():
    assignments, y = [4, 4, 4, 0, 0, 9], [0, 0, 7, 7, 1, 1]
    np.testing.assert_allclose(cluster_purity(assignments, y), [1 / 2, 2 / 3, 1])
    np.testing.assert_array_equal(cluster_purity(y, y), [1, 1, 1])


def local_purity_by_loops(z, y, n_neighbors):
    shares = []
    for i in range(len(z)):
        others = sorted((math.dist(z[i], z[j]), j) for j in range(len(z)) if j != i)
        votes = [y[i]] + [y[j] for _, j in others[:n_neighbors]]
        shares.append(max(votes.count(label) for label in votes) / (n_neighbors + 1))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("n_neighbors", [1, 4, 89])
def test_local_purity_is_the_plain_loop(n_neighbors):
    z, y = blobs()
    expected = local_purity_by_loops(z, y.tolist(), n_neighbors)
    assert local_purity(z, y, n_neighbors) == pytest.approx(expected, abs=1e-14)
    assert local_purity(z * 1e-5 + 1000, y, n_neighbors) == pytest.approx(expected, abs=1e-14)


def test_local_purity_counts_the_point_itself_among_its_duplicates():
    # whichever duplicates are its neighbours, the last is with one of the other class, and others may be with it
    assert local_purity(np.ones((5, 3)), [0, 0, 0, 0, 1], n_neighbors=1) <= (4 + 1 / 2) / 5
    assert local_purity(np.ones((5, 3)), [0, 1, 2, 3, 4], n_neighbors=4) == pytest.approx(1 / 5)


def values_of(rows, cluster="all"):
    return {row["measure"]: row["value"] for row in rows if row["cluster"] == cluster}


def test_cluster_quality_has_a_row_a_cluster_and_a_row_overall():
    z, assignments = blobs()
    y = np.random.default_rng(1).integers(0, 3, len(z))
    rows = cluster_quality(z, assignments, y)
    assert all(list(row) == ["cluster", "size", "measure", "value"] for row in rows)
    assert all(type(row["size"]) is int and type(row["value"]) is float for row in rows)
    for cluster, size, *expected in zip(
        *np.unique(assignments, return_counts=True),
        global_separation(z, assignments),
        global_separation(z, assignments, metric="cosine"),
        cluster_purity(assignments, y),
        strict=True,
    ):
        assert {row["size"] for row in rows if row["cluster"] == cluster} == {size}
        names = ("global_separation", "global_separation_cosine", "cluster_purity")
        assert values_of(rows, cluster) == dict(zip(names, expected, strict=True))
    overall = values_of(rows)
    assert list(overall) == OVERALL + ["nmi", "ari"]
    assert overall["nmi"] == pytest.approx(metrics.normalized_mutual_info_score(y, assignments), abs=1e-14)
    assert overall["ari"] == pytest.approx(metrics.adjusted_rand_score(y, assignments), abs=1e-14)


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-12, 0), (1e3, 1000)])
def test_indices_are_scikit_learns_in_any_unit(scale, shift):
    z, assignments = blobs()
    found = values_of(cluster_quality(z * scale + shift, assignments))
    for name in INDICES:  # scikit-learn's own Davies-Bouldin is 0 at 1e-12
        assert found[name] == pytest.approx(getattr(metrics, f"{name}_score")(z, assignments), rel=1e-9)


def test_a_silhouette_of_a_sample_is_close():
    z, assignments = blobs(1500)
    sampled, whole = (values_of(cluster_quality(z, assignments, max_samples=n)) for n in (600, None))
    assert sampled["silhouette"] == pytest.approx(whole["silhouette"], abs=0.03)
    assert sampled["davies_bouldin"] == whole["davies_bouldin"]


def test_quality_is_nan_where_there_is_nothing_to_compare():
    assert all(math.isnan(values_of(cluster_quality(LINE, [0, 1, 2, 3]))[name]) for name in INDICES)  # clusters of one
    assert separation.separation_curve(LINE, [0] * 4).shape == (5, 1)
    values = values_of(cluster_quality(LINE, [0] * 4, PAIRS)) | {"purity": cluster_purity([0] * 4, PAIRS)[0]}
    assert values.pop("purity") == 0.5
    assert values.pop("nmi") == values.pop("ari") == 0
    assert values.pop("compactness") == 90 / 4  # three rows in one direction, and a zero row
    assert all(math.isnan(value) for value in values.values())


def test_embedding_quality_has_three_overall_rows():
    z, y = blobs()
    rows = embedding_quality(z, y, n_neighbors=3)
    named = [("all", 90, name) for name in ("local_purity", "rankme", "uniformity")]
    assert [(row["cluster"], row["size"], row["measure"]) for row in rows] == named
    assert rows[0]["value"] == local_purity(z, y, 3)
    assert len(embedding_quality(z, y, max_samples=30)) == 3


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: global_separation(LINE, PAIRS, metric="manhattan"), "metric must be one of euclidean, cosine, got "),
        (lambda: global_separation(LINE, PAIRS, 0), r"a fraction must lie in \(0, 1\], got 0"),
        (lambda: global_separation(LINE, PAIRS, 1.5), r"a fraction must lie in \(0, 1\], got 1.5"),
        (lambda: separation.separation_curve(LINE, PAIRS, ()), "a fraction must lie in .* got none"),
        (lambda: global_separation(LINE, PAIRS, max_samples=0), "max_samples must be at least 1, or None for all"),
        (lambda: global_separation(LINE[:, 0], PAIRS), r"z must have shape \(n, d\) with n, d >= 1, got \(4,\)"),
        (lambda: global_separation(LINE * np.nan, PAIRS), "z must be finite, got 4 of 4 rows with NaN or infinity"),
        (lambda: global_separation(LINE.astype(str), PAIRS), "z must be real numbers"),
        (lambda: global_separation(LINE, PAIRS[1:]), r"assignments must have shape \(n,\).* n = 4, got \(3,\)"),
        (lambda: global_separation(LINE, PAIRS / 1), "assignments must be integers, got dtype float64"),
        (lambda: global_separation(LINE, PAIRS - 1), r"assignments must be >= 0 \(-1 means unknown\), got 2 negative"),
        (lambda: cluster_purity(PAIRS, [-1] * 4), r"y must be >= 0 \(-1 means unknown\), got 4 negative"),
        (lambda: cluster_purity(PAIRS, [0, 1]), "y must have shape"),
        (lambda: cluster_purity([], []), "assignments must have shape .* n = at least 1"),
        (lambda: local_purity(LINE, PAIRS, 4), r"n_neighbors must lie in \[1, n - 1\] = \[1, 3\], got 4"),
        (lambda: embedding_quality(LINE, [-1, 0, 1, 1], 1), "y must be"),
        (lambda: cluster_quality(LINE, PAIRS, [-1, 0, 1, 1]), "y must be"),
    ],
)
def test_bad_input_is_named(ask, said):
    with pytest.raises(ValueError, match=said):
        ask()


def test_tensors_are_measured_as_the_arrays_that_they_hold():
    z, assignments = blobs()
    y = np.arange(90) % 4
    tensors = torch.from_numpy(z).requires_grad_(), torch.from_numpy(assignments), torch.from_numpy(y)
    assert cluster_quality(*tensors) == cluster_quality(z, assignments, y)
    assert embedding_quality(tensors[0], tensors[2]) == embedding_quality(z, y)
    assert np.array_equal(separation.separation_curve(*tensors[:2]), separation.separation_curve(z, assignments))
    rounded = torch.from_numpy(z).bfloat16()
    assert np.array_equal(global_separation(rounded, tensors[1]), global_separation(rounded.float(), assignments))
