"""Nearest neighbours: exact, whatever the scale, the shape and the duplicates."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from oodlib.neighbors import NeighborIndex, kneighbors

RNG = np.random.default_rng(0)


def clustered(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(5, d))[rng.integers(5, size=n)] + 0.1 * rng.normal(size=(n, d))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def check(queries: np.ndarray, reference: np.ndarray, k: int, resolution: float = 1e-5) -> None:
    distances, places = kneighbors(queries, reference, k)
    exact = cdist(queries.astype(np.float64), reference.astype(np.float64))
    scale = exact.max()
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :k], rtol=0, atol=resolution * scale)
    np.testing.assert_allclose(np.take_along_axis(exact, places, axis=1), distances, rtol=0, atol=resolution * scale)
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize(("n", "d", "k"), [(1, 3, 1), (10, 2, 10), (60, 128, 7), (3000, 32, 50), (5000, 64, 5)])
def test_exact(n, d, k):
    check(clustered(200, d, seed=1), clustered(n, d), k)
    check(RNG.normal(size=(100, d)).astype(np.float32), RNG.normal(size=(n, d)).astype(np.float32), k)


@pytest.mark.parametrize("scale", [1e-5, 1e3])
def test_scale_does_not_matter(scale):
    check(clustered(100, 16, seed=1) * np.float32(scale), clustered(2000, 16) * np.float32(scale), 9)


def test_shift_costs_no_more_than_float32_does():
    check(clustered(100, 16, seed=1) + np.float32(1000), clustered(2000, 16) + np.float32(1000), 9, resolution=1e-4)


def test_order_that_bfloat16_cannot_see():
    reference = (1 + 1e-4 * np.arange(2000)[:, None] * np.ones((1, 8))).astype(np.float32)
    check(reference[::97] + np.float32(3e-5), reference, 5)


def test_duplicates_and_zero_vectors():
    reference = np.concatenate([np.zeros((20, 4)), np.ones((30, 4))]).astype(np.float32)
    distances, _ = kneighbors(np.zeros((1, 4), np.float32), reference, 25)
    np.testing.assert_allclose(distances[0], [0.0] * 20 + [2.0] * 5, atol=1e-6)


def test_same_index_same_answers():
    index, queries = NeighborIndex(clustered(3000, 32)), clustered(50, 32, seed=1)
    first, second = index.kneighbors(queries, 10), index.kneighbors(queries, 10)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.zeros((2, 3), np.float32), 5, r"k must lie in \[1, 4\]"),
        (np.zeros((2, 3), np.float32), 0, r"k must lie in \[1, 4\]"),
        (np.zeros((2, 2), np.float32), 1, r"queries must be \(m, 3\)"),
        (np.full((2, 3), np.nan, np.float32), 1, "finite"),
    ],
)
def test_bad_input_is_refused(queries, k, message):
    with pytest.raises(ValueError, match=message):
        kneighbors(queries, np.eye(4, 3, dtype=np.float32), k)
