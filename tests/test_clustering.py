"""Clusterings: known groups are found, centres are means, choices use ID data only, bad input is refused."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from oodlib.clustering import CLUSTERINGS, LINKED, OWN_SIZE, choose_n_clusters, cluster
from oodlib.kmeans import assign, kmeans

RNG = np.random.default_rng(0)
MEANS = 6 * RNG.normal(size=(4, 8))
Y = np.repeat([0, 1, 2, 3], 100)
Z = (MEANS[Y] + RNG.normal(size=(400, 8))).astype(np.float32)


@pytest.mark.parametrize("method", [name for name in CLUSTERINGS if name != "one"])
def test_separated_groups_are_found(method):
    found = cluster(Z, Y, method)
    assert adjusted_rand_score(Y, found.assignments) == 1
    assert found.assignments.dtype == np.int64
    assert found.centers.dtype == np.float32
    members = Z / np.linalg.norm(Z, axis=1, keepdims=True) if method == "spherical-kmeans" else Z
    means = np.stack([members[found.assignments == k].mean(axis=0) for k in range(4)])
    if method == "spherical-kmeans":
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(found.centers, means, atol=1e-5)


def test_labels_are_clusters_in_increasing_order_of_the_classes():
    found = cluster(np.array([[0.0], [2.0], [10.0]]), np.array([7, 7, 3]), "labels")
    assert found.assignments.tolist() == [1, 1, 0]
    assert found.centers.tolist() == [[10.0], [1.0]]


def test_one_is_a_single_cluster_around_the_mean():
    found = cluster(Z, method="one")
    assert set(found.assignments) == {0}
    np.testing.assert_allclose(found.centers, Z.mean(axis=0, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("method", [name for name in CLUSTERINGS if name not in OWN_SIZE])
def test_auto_finds_the_number_of_groups(method):
    assert choose_n_clusters(Z, method) == 4
    assert len(cluster(Z, method=method, n_clusters="auto").centers) == 4


@pytest.mark.parametrize("method", ["kmeans", "spherical-kmeans", "gmm-diag"])
def test_same_seed_same_clusters(method):
    first, second = (cluster(Z, method=method, n_clusters=6, seed=3).assignments for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("scale", [1e-5, 1e3])
@pytest.mark.parametrize("method", ["kmeans", "gmm", "agglomerative"])
def test_unit_and_shift_do_not_matter(method, scale):
    found = cluster((Z * scale).astype(np.float32), method=method, n_clusters=4).assignments
    assert adjusted_rand_score(Y, found) == 1
    found = cluster(Z + np.float32(1000), method=method, n_clusters=4).assignments
    assert adjusted_rand_score(Y, found) == 1


@pytest.mark.parametrize("k", [2, 5, 20])
def test_kmeans_is_no_worse_than_scikit_learn(k):
    z = np.random.default_rng(k).normal(size=(1000, 5)).astype(np.float32)
    theirs = KMeans(k, n_init=10, random_state=0).fit(z).inertia_
    assignments, centers, inertia = kmeans(z, k, seed=0)
    assert inertia <= 1.01 * theirs
    assert inertia == pytest.approx(((z - centers[assignments]) ** 2).sum(), rel=1e-4)


def test_agglomerative_links_a_sample_and_assigns_the_rest_by_nearest_centre():
    z = np.concatenate([Z] * (LINKED // len(Z) + 2))
    found = cluster(z, method="agglomerative", n_clusters=4).assignments
    assert len(z) > LINKED
    assert adjusted_rand_score(np.concatenate([Y] * (LINKED // len(Z) + 2)), found) == 1


def test_assign_takes_the_nearest_centre():
    centers = np.array([[0.0, 1.0], [3.0, 0.0]])
    z = np.array([[0.1, 0.9], [0.5, 0.1]])
    assert assign(z, centers).tolist() == [0, 0]
    assert assign(z, centers, "cosine").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dbscan"}, "unknown clustering 'dbscan'; known: labels, one, kmeans"),
        ({"method": "labels", "y": None}, "needs labels y"),
        ({"method": "kmeans", "y": None}, "needs n_clusters, or labels y"),
        ({"y": Y[:-1]}, "one label for each of the 400 embeddings"),
        ({"method": "kmeans", "n_clusters": 401}, "401"),
        ({"method": "kmeans", "n_clusters": 0}, "0"),
        ({"z": np.full((4, 2), np.nan), "y": None, "method": "one"}, "finite"),
        ({"z": np.ones((5, 2)), "y": None, "method": "kmeans", "n_clusters": 2}, "distinct"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cluster(**({"z": Z, "y": Y} | arguments))


@pytest.mark.parametrize(("z", "method"), [(Z, "labels"), (Z[:10], "kmeans")])
def test_auto_says_why_it_cannot_choose(z, method):
    with pytest.raises(ValueError, match="chosen for clustering 'labels'|needs at least 20 embeddings, got 10"):
        choose_n_clusters(z, method)
