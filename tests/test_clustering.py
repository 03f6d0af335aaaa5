"""Clusterings: known groups are found, centres are means, choices use ID data only, bad input is refused."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.metrics import adjusted_rand_score, silhouette_score

from oodlib.clustering import CLUSTERINGS, choose_n_clusters, cluster
from oodlib.clustering import clusters as clustering
from oodlib.clustering.clusters import CANDIDATES, OWN_SIZE

RNG = np.random.default_rng(0)
MEANS = 6 * RNG.normal(size=(4, 8))
Y = np.repeat([0, 1, 2, 3], 100)
Z = (MEANS[Y] + RNG.normal(size=(400, 8))).astype(np.float32)
WITH_K = [name for name in CLUSTERINGS if name not in OWN_SIZE]


@pytest.mark.parametrize("method", [name for name in CLUSTERINGS if name != "one"])
def test_separated_groups_are_found(method):
    found = cluster(Z, Y, method)
    assert adjusted_rand_score(Y, found.assignments) == 1
    assert (found.assignments.dtype, found.centers.dtype) == (np.int64, np.float32)
    spherical = method == "spherical-kmeans"
    members = Z / np.linalg.norm(Z, axis=1, keepdims=True) if spherical else Z
    means = np.stack([members[found.assignments == k].mean(axis=0) for k in range(4)])
    means /= np.linalg.norm(means, axis=1, keepdims=True) if spherical else 1
    np.testing.assert_allclose(found.centers, means, atol=1e-5)
    if method == "labels":  # clusters in increasing order of the classes
        assert cluster([[0.0], [2.0], [10.0]], np.array([7, 7, 3]), "labels").assignments.tolist() == [1, 1, 0]
        return
    z = np.repeat([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]], 4, axis=0)
    assert len(cluster(z, method=method, n_clusters=3).centers) == 3
    with pytest.raises(ValueError, match="K = 4 is larger than the number of distinct points, 3"):
        cluster(z, method=method, n_clusters=4)


def test_agglomerative_links_a_sample_and_assigns_the_rest_by_nearest_centre(monkeypatch):
    monkeypatch.setattr(clustering, "LINKED", 120)
    assert adjusted_rand_score(Y, cluster(Z, method="agglomerative", n_clusters=4).assignments) == 1


@pytest.mark.parametrize("method", WITH_K)
def test_auto_finds_seven_small_groups_in_any_unit(method):
    y = np.repeat(np.arange(7), 40)
    # far apart: a full covariance costs BIC so much that it would join two groups of 40 at a distance of 14
    z = 40 * np.eye(8)[y] + np.random.default_rng(1).normal(size=(280, 8))
    for given in (z, z * 1e-5, z + (1000 if method != "spherical-kmeans" else 0)):
        found = cluster(given.astype(np.float32), method=method, n_clusters="auto", seed=1).assignments
        assert adjusted_rand_score(y, found) == 1


@pytest.mark.parametrize(
    ("method", "metric"), [("kmeans", "euclidean"), ("spherical-kmeans", "cosine"), ("agglomerative", "euclidean")]
)
def test_auto_takes_the_largest_silhouette(monkeypatch, method, metric):
    z = 2 * MEANS[Y] / 6 + RNG.normal(size=(400, 8))  # groups that overlap: not every K is far from the best
    expected = [silhouette_score(z, cluster(z, None, method, k).assignments, metric=metric) for k in range(2, 9)]
    judged = []

    def recorded(distances, assignments, **options):
        judged.append(silhouette_score(distances, assignments, **options))
        return judged[-1]

    monkeypatch.setattr(metrics, "silhouette_score", recorded)
    assert choose_n_clusters(z, method, range(2, 9)) == range(2, 9)[np.argmax(expected)]
    np.testing.assert_allclose(judged, expected, rtol=1e-5)


def test_auto_clusters_a_sample_for_every_candidate_and_all_rows_once(monkeypatch):
    calls, measured = [], []
    kmeans, pairwise = CLUSTERINGS["kmeans"], metrics.pairwise_distances
    monkeypatch.setitem(CLUSTERINGS, "kmeans", lambda z, y, k, seed: calls.append((len(z), k)) or kmeans(z, y, k, seed))
    monkeypatch.setattr(metrics, "pairwise_distances", lambda x, **o: measured.append(len(x)) or pairwise(x, **o))
    monkeypatch.setattr(clustering, "TRIED", 120)
    monkeypatch.setattr(clustering, "JUDGED", 50)
    found = cluster(Z, method="kmeans", n_clusters="auto").assignments
    assert adjusted_rand_score(Y, found) == 1
    assert calls == [(120, k) for k in CANDIDATES if k <= 12] + [(400, 4)]
    assert measured == [50]


@pytest.mark.parametrize(
    ("z", "method", "message"),
    [
        (Z, "labels", "chosen for clustering 'labels', but for kmeans, spherical-kmeans, gmm"),
        (Z[:10], "kmeans", "needs at least 20 embeddings, 2 of them distinct, got 10 and 10"),
        (np.ones((40, 2)), "gmm", "needs at least 20 embeddings, 2 of them distinct, got 40 and 1"),
        (np.zeros((40, 2)), "spherical-kmeans", "needs at least 20 embeddings, 2 of them distinct, got 0 and 0"),
        (np.full((40, 2), np.nan), "kmeans", "z must be finite"),
    ],
)
def test_auto_says_why_it_cannot_choose(z, method, message):
    with pytest.raises(ValueError, match=message):
        choose_n_clusters(z, method)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dbscan"}, "unknown clustering 'dbscan'; known: labels, one, kmeans"),
        ({"method": "labels", "y": None}, "needs labels y"),
        ({"method": "kmeans", "y": None}, "needs n_clusters, or labels y"),
        ({"y": Y[:-1]}, r"one label for each of the 400 embeddings, got shape \(399,\)"),
        ({"method": "kmeans", "n_clusters": 401}, "n_clusters = 401 is larger than the number of points, 400"),
        ({"method": "kmeans", "n_clusters": "many"}, "n_clusters must be a positive whole number, got 'many'"),
        ({"z": np.full((4, 2), np.nan), "y": None, "method": "one"}, "z must be finite, got 4 of 4 rows"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cluster(**({"z": Z, "y": Y} | arguments))


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.where(Y == 2, -1, Y), r">= 0 \(-1 means unknown\), got 100 negative labels"),
        (Y + 0.5, "integers, got dtype float64"),
        (Y > 1, "integers, got dtype bool"),
    ],
)
def test_labels_that_are_no_classes_are_refused_where_they_are_needed(y, said):
    for method in ("labels", "kmeans"):
        with pytest.raises(ValueError, match="labels y must be " + said):
            cluster(Z, y, method)
    assert len(cluster(Z, y, "kmeans", n_clusters=4).centers) == 4  # labels have no say there


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_tensors_are_clustered_as_the_arrays_that_they_hold(method):
    z, y = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    rounded = torch.from_numpy(z).bfloat16()
    for tensor, array in ((torch.from_numpy(z).requires_grad_(), z), (rounded, rounded.float().numpy())):
        found, expected = cluster(tensor, torch.from_numpy(y), method), cluster(array, y, method)
        assert np.array_equal(found.assignments, expected.assignments)
        assert np.array_equal(found.centers, expected.centers)
