"""k-means: plain loops, scikit-learn, cases counted by hand; duplicates, empty clusters, zeros, units and shifts."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_iris
from sklearn.metrics import adjusted_rand_score

from oodlib.clustering import kmeans as module
from oodlib.clustering.kmeans import assign, kmeans, standardize

SQUARE = np.array([[0, 0], [0, 1], [10, 0], [10, 1]], dtype=np.float32)
NOISE = np.random.default_rng(0).normal(size=(600, 7)).astype(np.float32)
GROUP = np.arange(600) % 3
GROUPS = NOISE + 20 * np.eye(7, dtype=np.float32)[GROUP]


def squared_distances(z, centers):
    """Return (n, K) in float64, from differences."""
    return ((z.astype(np.float64)[:, None] - centers.astype(np.float64)) ** 2).sum(axis=2)


def spherical_by_loop(z, k, rng):
    """Return assignments (n,) and the sum of squared chords where one random start of spherical k-means ends."""
    unit = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)
    centers, before = unit[rng.permutation(len(unit))[:k]], None
    while True:
        cosines = unit @ centers.T
        assignments = cosines.argmax(axis=1)
        if np.array_equal(assignments, before):
            return assignments, (2 - 2 * cosines.max(axis=1)).sum()
        before = assignments
        for i in set(assignments):
            total = unit[assignments == i].sum(axis=0)
            centers[i] = total / np.linalg.norm(total)


@pytest.mark.parametrize(
    ("z", "k"), [(load_iris().data, 3), (load_digits().data, 10), (load_digits().data, 50), (NOISE, 12)]
)
def test_inertia_is_no_worse_than_that_of_scikit_learn(z, k):
    assert kmeans(z, k)[2] <= 1.01 * KMeans(k, n_init=10, random_state=0).fit(z).inertia_


@pytest.mark.parametrize("spherical", [False, True])
def test_it_ends_where_points_are_nearest_their_centre_and_centres_are_means_the_same_for_a_seed(spherical):
    assignments, centers, inertia = kmeans(NOISE, 9, spherical=spherical, seed=5)
    z = NOISE / np.linalg.norm(NOISE, axis=1, keepdims=True) if spherical else NOISE
    distances = squared_distances(z, centers)
    np.testing.assert_array_equal(assignments, distances.argmin(axis=1))
    means = np.stack([z[assignments == k].mean(axis=0) for k in range(9)])
    means /= np.linalg.norm(means, axis=1, keepdims=True) if spherical else 1
    np.testing.assert_allclose(centers, means, atol=1e-5)
    assert inertia == pytest.approx(distances.min(axis=1).sum(), rel=1e-5)
    again = kmeans(NOISE, 9, spherical=spherical, seed=5)
    assert all(map(np.array_equal, again, (assignments, centers, inertia)))
    if spherical:  # zero vectors have no say
        with_zeros = np.insert(NOISE, [0, 299, 600], 0, axis=0)
        directed = with_zeros.any(axis=1)
        found = kmeans(with_zeros, 9, spherical=True, seed=5)
        assert all(map(np.array_equal, (found[0][directed], *found[1:]), (assignments, centers, inertia)))
        assert found[0][~directed].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("scale", "shift"), [(1e-5, 0), (1e3, 0), (1, 1000)])
def test_unit_and_shift_do_not_matter(scale, shift):
    found, centers, inertia = kmeans(np.float32(scale) * GROUPS + np.float32(shift), 3)
    expected, expected_centers, expected_inertia = kmeans(GROUPS, 3)
    assert adjusted_rand_score(expected, found) == adjusted_rand_score(GROUP, found) == 1
    back = (centers.astype(np.float64) - shift) / scale
    np.testing.assert_allclose(back[found], expected_centers[expected], atol=1e-3)
    assert inertia == pytest.approx(expected_inertia * scale**2, rel=1e-4)


def test_spherical_is_what_a_plain_loop_finds():
    rng = np.random.default_rng(3)
    z = NOISE[:150]
    assert kmeans(z, 4, spherical=True)[2] <= 1.01 * min(spherical_by_loop(z, 4, rng)[1] for _ in range(10))
    apart = NOISE[:90] / 4 + np.eye(7)[GROUP[:90]] * rng.uniform(5, 50, size=(90, 1))
    expected, inertia = min((spherical_by_loop(apart, 3, rng) for _ in range(10)), key=lambda end: end[1])
    assert adjusted_rand_score(GROUP[:90], expected) == 1
    found = kmeans(apart, 3, spherical=True)
    assert adjusted_rand_score(expected, found[0]) == 1
    assert found[2] == pytest.approx(inertia, rel=1e-5)


@pytest.mark.parametrize("spherical", [False, True])
def test_as_many_clusters_as_distinct_points_finds_each_of_them(spherical):
    points = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)
    copies = [1, 2, 300, 5, 1, 40, 7, 1, 90, 3, 1, 2]
    z = np.repeat(points, copies, axis=0)
    assignments, centers, inertia = kmeans(z, 12, spherical=spherical)
    assert adjusted_rand_score(np.repeat(np.arange(12), copies), assignments) == 1
    assert inertia == pytest.approx(0, abs=1e-6)
    if not spherical:
        np.testing.assert_allclose(centers[assignments], z, atol=1e-6)
        np.testing.assert_allclose(kmeans(z, 1)[1], [z.mean(axis=0, dtype=np.float64)], atol=1e-6)
    with pytest.raises(ValueError, match="K = 13 is larger than the number of distinct points, 12"):
        kmeans(z, 13, spherical=spherical)


@pytest.mark.parametrize(
    ("points", "nearest", "centers", "expected"),
    [
        ([0, 1, 9, 9, -5], [0, 0, 0, 0, 0], [0, 100, 100], [0, 0, 1, 0, 2]),  # with one 9 gone, the other is near
        ([0, 1, 50], [0, 0, 1], [0, 60, 100], [0, 2, 1]),  # 50 is farther, but alone
    ],
)
def test_an_empty_cluster_gets_the_point_farthest_from_its_centre(points, nearest, centers, expected):
    x, centers = np.array(points, np.float32)[:, None], np.array(centers, np.float64)[:, None]
    assert module._fill_empty(x, np.array(nearest), centers).tolist() == expected


@pytest.mark.parametrize("spherical", [False, True])
def test_starts_that_leave_clusters_empty_still_give_all_k(monkeypatch, spherical):
    monkeypatch.setattr(module, "_seed_rows", lambda x, k, n_starts, rng: np.zeros((n_starts, k), np.int64))
    assert adjusted_rand_score(GROUP, kmeans(GROUPS, 3, spherical=spherical)[0]) == 1
    assert np.bincount(kmeans(NOISE, 40, spherical=spherical)[0], minlength=40).all()


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-5, 0), (1e3, 0), (1, 1000)])
def test_assign_takes_the_nearest_centre_in_any_unit_and_the_first_of_equals(scale, shift):
    z = NOISE.astype(np.float64) * scale + shift
    expected = squared_distances(NOISE, NOISE[:9]).argmin(axis=1)
    found = assign(z, z[:9])
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)
    centers = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 0.0]]) * scale + shift
    assert assign(np.array([[1.0, 3.0], [3.0, 0.0]]) * scale + shift, centers).tolist() == [0, 1]
    with pytest.raises(ValueError, match="same width, got 2 and 1"):
        assign(SQUARE, SQUARE[:, :1])


def test_standardized_data_goes_back():
    x, origin, scale = standardize(NOISE * 1e-5 + 3)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)
    assert (x**2).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(x * scale + origin, NOISE * 1e-5 + 3, atol=1e-6)
    x, origin, scale = standardize(np.full((5, 2), 3.0))
    assert (x.tolist(), origin.tolist(), scale) == ([[0, 0]] * 5, [3, 3], 1)


@pytest.mark.parametrize(
    ("z", "arguments", "message"),
    [
        (SQUARE, {"n_clusters": 0}, "n_clusters must be a positive whole number, got 0"),
        (SQUARE, {"n_clusters": 2.0}, "n_clusters must be a positive whole number, got 2.0"),
        (SQUARE, {"n_clusters": 5}, "n_clusters = 5 is larger than the number of points, 4"),
        (SQUARE, {"n_init": 0}, "n_init must be at least 1, got 0"),
        (SQUARE[0], {}, r"z must have shape \(n, d\) with n, d >= 1, got \(2,\)"),
        (SQUARE.astype(str), {}, r"z must be real numbers \(float or int\), got dtype <U32"),
        (np.where(SQUARE > 5, np.inf, SQUARE), {}, "z must be finite, got 2 of 4 rows with NaN or infinity"),
        (np.ones((4, 2)), {"n_clusters": 2}, "K = 2 is larger than the number of distinct points, 1"),
        (np.zeros((4, 2)), {"spherical": True}, "K = 1 is larger than the number of distinct points, 0"),
    ],
)
def test_bad_input_is_refused(z, arguments, message):
    with pytest.raises(ValueError, match=message):
        kmeans(z, **({"n_clusters": 1} | arguments))
