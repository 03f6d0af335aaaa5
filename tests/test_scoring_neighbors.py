"""Neighbours against float64 brute force and SciPy's tree, for any shape, scale, shift and tie."""

import numpy as np
import pytest
import torch

from oodlib.scoring import knn
from oodlib.scoring.knn import NeighborIndex, kneighbors


def brute_force(queries, reference) -> np.ndarray:
    """Return all distances (m, n), by differences in float64."""
    return np.stack([np.linalg.norm(reference.astype(np.float64) - x, axis=1) for x in queries.astype(np.float64)])


def check(queries, reference, k, found=None) -> None:
    distances, ids = found or kneighbors(queries, reference, k)
    assert distances.shape == ids.shape == (len(queries), k)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    truth = brute_force(queries, reference)
    resolution = 1e-5 * np.linalg.norm(reference - reference.astype(np.float64).mean(axis=0), axis=1).mean()
    np.testing.assert_allclose(distances, np.sort(truth, axis=1)[:, :k], rtol=1e-5, atol=resolution)
    np.testing.assert_allclose(distances, np.take_along_axis(truth, ids, axis=1), rtol=1e-5, atol=resolution)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert all(len(set(row)) == k for row in ids.tolist())


def clusters(seed, n, d, n_clusters=8, noise=0.3) -> np.ndarray:
    """Return rows (n, d) float32 of unit norm around centres that do not depend on the seed."""
    centers = np.random.default_rng(9).normal(size=(n_clusters, d))
    rng = np.random.default_rng(seed)
    z = centers[rng.integers(n_clusters, size=n)] + noise * rng.normal(size=(n, d))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("n", "d", "m", "k"),
    [(1, 1, 3, 1), (1, 7, 2, 1), (5, 1, 4, 5), (17, 100, 5, 3), (40, 300, 9, 40), (700, 33, 11, 1), (3000, 64, 50, 7)],
)
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-5, 0), (1e3, 0), (1, 1000), (1e3, -1e6)])
def test_shapes_scales_and_shifts(n, d, m, k, scale, shift):
    rng = np.random.default_rng(0)
    reference, queries = (rng.normal(size=(rows, d)) * scale + shift for rows in (n, m))
    check(queries.astype(np.float32), reference.astype(np.float32), k)


@pytest.mark.parametrize("noise", [1e-4, 0.1, 1.0])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_clusters_in_and_out_of_distribution(noise, k):
    reference, inside = clusters(0, 4000, 48, noise=noise), clusters(1, 60, 48, noise=noise)
    outside = np.random.default_rng(2).normal(size=(40, 48)).astype(np.float32)
    check(np.vstack([inside, outside, 30 * outside, 0 * outside[:1]]), reference, k)


def test_duplicates_and_zero_vectors():
    rng = np.random.default_rng(0)
    distinct = rng.normal(size=(30, 16)).astype(np.float32)
    distinct[0] = 0
    reference = distinct[rng.integers(30, size=2000)]
    for k in (20, 50, 2000):
        check(distinct, reference, k)
    assert not kneighbors(distinct, reference, 20)[0].any()


def test_tight_groups_far_from_each_other():
    """Neighbours differ by 1e-4 of their length: products in float32 are in the wrong order, the answer is not."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=64)
    reference = (center * (1 + 1e-4 * rng.normal(size=(2000, 64)))).astype(np.float32)
    queries = (center * (1 + 1e-4 * rng.normal(size=(20, 64)))).astype(np.float32)
    far = np.vstack([reference, -reference])  # so that the centre of all rows is not theirs
    squares = (far**2).sum(axis=1) - 2 * queries @ far.T
    right, naive = brute_force(queries, far).argsort(axis=1), squares.argsort(axis=1)
    assert (right[:, :5] == naive[:, :5]).mean() < 0.8
    distances, ids = kneighbors(queries, far, 5)
    np.testing.assert_array_equal(ids, right[:, :5])
    np.testing.assert_allclose(distances, np.sort(brute_force(queries, far), axis=1)[:, :5], rtol=1e-3)
    assert NeighborIndex(far).table.all is None


def test_groups_that_cannot_be_reached_are_not_searched(monkeypatch):
    reference, queries = clusters(0, 4000, 48, noise=1e-3), clusters(1, 500, 48, noise=1e-3)
    asked = []
    search = knn._search_group

    def spy(group, queries, asking, *lists):
        asked.append(len(asking) * len(group.rows))
        search(group, queries, asking, *lists)

    monkeypatch.setattr(knn, "_search_group", spy)
    check(queries, reference, 10)
    assert sum(asked) < 0.3 * 500 * 4000  # eight clusters


@pytest.mark.parametrize("k", [3, 70])
def test_reads_a_large_reference_in_blocks(k, tmp_path, monkeypatch):
    reference, queries = clusters(0, 1000, 24).astype(np.float16), clusters(1, 50, 24).astype(np.float16)
    np.save(tmp_path / "z.npy", reference)
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    check(queries, reference, k, kneighbors(queries, mapped, k))
    monkeypatch.setattr(knn, "IN_MEMORY", 0)
    monkeypatch.setattr(knn, "NUMBERS", 24 * 60)  # the last block has fewer rows than k
    check(queries, reference, k, kneighbors(queries, mapped, k))
    check(queries, reference, k, kneighbors(queries, mapped[::-1][::-1], k))
    check(queries, reference, k, kneighbors(queries, torch.from_numpy(reference), k))


def test_takes_arrays_and_tensors_alike():
    reference, queries = clusters(0, 300, 10), clusters(1, 20, 10)
    distances, ids = kneighbors(queries, reference, 5)
    frozen = reference.copy()
    frozen.flags.writeable = False
    for other in (frozen, reference.astype(np.float64), np.asfortranarray(reference), torch.from_numpy(reference)):
        np.testing.assert_array_equal(kneighbors(queries, other, 5)[1], ids)
    by_tensor = kneighbors(torch.from_numpy(queries).requires_grad_(), reference, 5)
    assert all(isinstance(part, np.ndarray) for part in by_tensor)
    np.testing.assert_array_equal(by_tensor[0], distances)
    assert kneighbors(queries[:0], reference, 5)[0].shape == (0, 5)


def test_an_index_is_a_copy_and_answers_alike_every_time():
    reference, queries = clusters(0, 2000, 12), clusters(1, 50, 12)
    reference[1000:] = reference[:1000]  # ties
    first, index = kneighbors(queries, reference, 9), NeighborIndex(reference)
    reference[:] = 0
    for again in (index.kneighbors(queries, 9), index.kneighbors(queries, 9)):
        np.testing.assert_array_equal(again[0], first[0])
        np.testing.assert_array_equal(again[1], first[1])


@pytest.mark.parametrize(
    ("queries", "reference", "k", "message"),
    [
        (np.zeros((2, 3)), np.zeros((4, 3)), 0, r"k must lie in \[1, 4\].* got 0"),
        (np.zeros((2, 3)), np.zeros((4, 3)), 5, r"k must lie in \[1, 4\].* got 5"),
        (np.zeros((2, 3)), np.zeros((4, 2)), 1, r"queries must be \(m, 2\).* got \(2, 3\)"),
        (np.zeros(3), np.zeros((4, 3)), 1, r"queries must be \(m, 3\).* got \(3,\)"),
        (np.zeros((2, 3)), np.zeros(4), 1, r"reference must be \(n, d\).* got shape \(4,\)"),
        (np.zeros((2, 3)), np.zeros((0, 3)), 1, r"reference must be \(n, d\).* got shape \(0, 3\)"),
        (np.full((2, 3), np.nan), np.zeros((4, 3)), 1, "queries must be finite.* nan"),
        (np.zeros((2, 3)), np.full((4, 3), -np.inf), 1, "reference must be finite.* -inf"),
        (np.zeros((2, 3)), np.full((4, 3), 2e15), 1, "reference must be finite and at most 1e[+]15"),
    ],
)
def test_bad_input_is_named(queries, reference, k, message):
    with pytest.raises(ValueError, match=message):
        kneighbors(queries.astype(np.float32), reference.astype(np.float32), k)
