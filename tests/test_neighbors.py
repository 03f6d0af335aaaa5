"""Neighbours against float64 brute force and SciPy's tree, for any shape, scale, shift and tie; and the bounds."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from oodlib import neighbor_search, neighbor_table, neighbors
from oodlib.neighbors import NeighborIndex, kneighbors


def brute_force(queries, reference) -> np.ndarray:
    """Return all distances (m, n), by differences in float64."""
    return np.stack([np.linalg.norm(reference.astype(np.float64) - x, axis=1) for x in queries.astype(np.float64)])


def check(queries, reference, k, found=None) -> None:
    distances, ids = found or kneighbors(queries, reference, k)
    assert distances.shape == ids.shape == (len(queries), k)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    truth = brute_force(queries, reference)
    np.testing.assert_allclose(distances, np.sort(truth, axis=1)[:, :k], rtol=1e-6)
    np.testing.assert_allclose(distances, np.take_along_axis(truth, ids, axis=1), rtol=1e-6)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert all(len(set(row)) == k for row in ids.tolist())


def clusters(seed, n, d, n_clusters=8, noise=0.3) -> np.ndarray:
    """Return rows (n, d) float32 of unit norm around centres that do not depend on the seed."""
    centers = np.random.default_rng(9).normal(size=(n_clusters, d))
    rng = np.random.default_rng(seed)
    z = centers[rng.integers(n_clusters, size=n)] + noise * rng.normal(size=(n, d))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small_cells(monkeypatch):
    monkeypatch.setattr(neighbor_table, "CELL_ROWS", 100)


@pytest.fixture(params=["bfloat16", "float32"])
def product(request, monkeypatch):
    monkeypatch.setattr(neighbor_table, "has_fast_bfloat16", lambda device: request.param == "bfloat16")
    return request.param


def test_hand_counted():
    reference = np.array([[0, 0], [3, 4], [6, 8], [0, 1]], dtype=np.float32)
    distances, ids = kneighbors(np.zeros((1, 2), np.float32), reference, 3)
    np.testing.assert_array_equal(distances, [[0, 1, 5]])  # not squared
    np.testing.assert_array_equal(ids, [[0, 3, 1]])


@pytest.mark.parametrize(
    ("n", "d", "m", "k"),
    [(1, 1, 3, 1), (1, 7, 2, 1), (5, 1, 4, 5), (17, 100, 5, 3), (40, 300, 9, 40), (700, 33, 11, 1), (3000, 64, 50, 7)],
)
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-5, 0), (1e3, 0), (1, 1000), (1e3, -1e6)])
def test_shapes_scales_and_shifts(n, d, m, k, scale, shift, small_cells):
    rng = np.random.default_rng(0)
    reference, queries = (rng.normal(size=(rows, d)) * scale + shift for rows in (n, m))
    check(queries.astype(np.float32), reference.astype(np.float32), k)


@pytest.mark.parametrize("noise", [1e-4, 0.1, 1.0])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_clusters_in_and_out_of_distribution(noise, k, small_cells, product):
    reference, inside = clusters(0, 4000, 48, noise=noise), clusters(1, 60, 48, noise=noise)
    outside = np.random.default_rng(2).normal(size=(40, 48)).astype(np.float32)
    check(np.vstack([inside, outside, 30 * outside, 0 * outside[:1]]), reference, k)


def test_agrees_with_a_tree_in_three_dimensions():
    rng = np.random.default_rng(0)
    reference, queries = rng.random((20_000, 3), np.float32), rng.random((500, 3), np.float32)
    distances, ids = kneighbors(queries, reference, 4)
    expected_distances, expected_ids = cKDTree(reference).query(queries, 4)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-6, atol=1e-9)
    assert (ids == expected_ids).mean() > 0.999  # float32 may swap neighbours


def test_duplicates_and_zero_vectors(small_cells):
    rng = np.random.default_rng(0)
    distinct = rng.normal(size=(30, 16)).astype(np.float32)
    distinct[0] = 0
    reference = distinct[rng.integers(30, size=2000)]
    check(distinct, reference, 50)
    check(distinct, reference, 2000)
    distances, _ = kneighbors(distinct, reference, 20)
    np.testing.assert_array_equal(distances, 0)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-5, 123.456])
def test_collapsed_embeddings(value):
    reference = np.full((3000, 8), value, np.float32)
    distances, ids = kneighbors(reference[:5], reference, 10)
    np.testing.assert_array_equal(distances, 0)
    assert all(len(set(row)) == 10 for row in ids.tolist())


def test_order_that_bfloat16_cannot_see(small_cells, product):
    """Neighbours differ by 1e-4 of their length: their bfloat16 values are in the wrong order, the answer is not."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=64)
    reference = (center * (1 + 1e-4 * rng.normal(size=(2000, 64)))).astype(np.float32)
    queries = (center * (1 + 1e-4 * rng.normal(size=(20, 64)))).astype(np.float32)
    rounded = [torch.from_numpy(z).bfloat16().float().numpy() for z in (queries, reference)]
    right, naive = brute_force(queries, reference).argsort(axis=1), brute_force(*rounded).argsort(axis=1)
    assert (right[:, :5] == naive[:, :5]).mean() < 0.05
    far = np.vstack([reference, -reference])  # so that the centre of all rows is not theirs
    np.testing.assert_array_equal(kneighbors(queries, far, 5)[1], right[:, :5])
    check(queries, far, 5)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("shift", [0, 100])
def test_estimates_stay_within_their_bounds(noise, shift, small_cells, product):
    """The margins are the proof: every estimate of s, and every cell's smallest distance, against float64."""
    reference = torch.from_numpy(clusters(0, 2000, 96, noise=noise) + np.float32(shift))
    outside = np.random.default_rng(2).normal(size=(10, 96)).astype(np.float32)
    queries = torch.from_numpy(np.vstack([clusters(1, 15, 96, noise=noise), outside]) + np.float32(shift))
    table = neighbor_table.make_table(reference, torch.arange(len(reference)))
    assert len(table.centers) > 8
    block = neighbor_search._make_block(table, queries, neighbor_table.nearest_center(queries, table.centers))
    everything = neighbor_search._certain_reach(table, block, len(reference))
    squares = torch.from_numpy(brute_force(queries.numpy(), table.rows.numpy())) ** 2  # (b, n')
    assert (squares.sqrt() <= everything[:, None]).all()
    for reach in (everything, squares.sqrt().median(dim=1).values):
        screen = neighbor_search._screen(table, block, list(range(len(table.centers))), reach)
        estimates = torch.cat([screen.as_numbers(part.flatten(1)) for part in screen.by_cell()], dim=1)
        s = (reach[:, None] ** 2 - squares) / 2
        rounding = neighbor_search.ROUNDING * estimates.abs()
        for c, (start, stop) in enumerate(zip(table.starts[:-1], table.starts[1:], strict=True)):
            assert (block.possible[:, c] <= squares[:, start:stop].min(dim=1).values.sqrt()).all()
            real = slice(start, start + int(table.counts[c]))
            wanted = block.possible[:, c] <= reach
            assert (s[wanted, real] <= (estimates + rounding)[wanted, real]).all()
            assert (s[wanted, real] >= (estimates - rounding - screen.error[:, None])[wanted, real]).all()
            assert (estimates[~wanted, start:stop] < -1e37).all()
            assert (estimates[:, real.stop : stop] < -1e37).all()  # what fills a group


def test_margins_are_needed(monkeypatch):
    """Without them the estimates lose neighbours, so the other tests can tell."""

    def claims_no_error(offset):
        rounded, length, moved = neighbor_table.round_offsets(offset)
        return rounded, length, 0 * moved

    queries, reference = clusters(1, 200, 48, noise=1.0), clusters(0, 2000, 48, noise=1.0)
    table = NeighborIndex(reference)
    object.__setattr__(table.table, "moved", 0 * table.table.moved)
    monkeypatch.setattr(neighbor_search, "round_offsets", claims_no_error)
    monkeypatch.setattr(neighbor_search, "summing_error", lambda z: 0)
    monkeypatch.setattr(neighbor_search, "ROUNDING", 0)
    with pytest.raises(AssertionError):
        check(queries, reference, 10, table.kneighbors(queries, 10))


def test_far_cells_are_left_out(small_cells, monkeypatch):
    seen = []
    screen = neighbor_search._screen

    def spy(table, block, cells, reach):
        seen.append(len(block.x) * int(table.counts[cells].sum()))
        return screen(table, block, cells, reach)

    monkeypatch.setattr(neighbor_search, "_screen", spy)
    monkeypatch.setattr(neighbor_search, "LARGEST_BLOCK", 64)
    kneighbors(clusters(1, 2000, 48, noise=0.1), clusters(0, 4000, 48, noise=0.1), 10)
    assert sum(seen) < 0.35 * 2000 * 4000  # eight clusters, and a first look at the cells that queries are in


@pytest.mark.parametrize("k", [3, 70])
def test_reads_a_large_reference_in_blocks(k, tmp_path, monkeypatch):
    reference, queries = clusters(0, 1000, 24).astype(np.float16), clusters(1, 50, 24).astype(np.float16)
    np.save(tmp_path / "z.npy", reference)
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    check(queries, reference, k, kneighbors(queries, mapped, k))
    monkeypatch.setattr(neighbors, "IN_MEMORY", 0)
    monkeypatch.setattr(neighbors, "BLOCK", 24 * 60)  # the last block has fewer rows than k
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


def test_an_index_is_a_copy_and_answers_alike_every_time(small_cells):
    reference, queries = clusters(0, 2000, 12), clusters(1, 50, 12)
    reference[1000:] = reference[:1000]  # ties
    threads = torch.get_num_threads()
    first, index = kneighbors(queries, reference, 9), NeighborIndex(reference)
    reference[:] = 0
    for again in (index.kneighbors(queries, 9), index.kneighbors(queries, 9)):
        np.testing.assert_array_equal(again[0], first[0])
        np.testing.assert_array_equal(again[1], first[1])
    assert torch.get_num_threads() == threads


def test_both_products_give_the_same_neighbors(monkeypatch):
    reference, queries = clusters(0, 3000, 40), clusters(1, 100, 40)
    found = []
    for fast in (True, False):
        monkeypatch.setattr(neighbor_table, "has_fast_bfloat16", lambda device, fast=fast: fast)
        found.append(kneighbors(queries, reference, 20))
    np.testing.assert_array_equal(found[0][0], found[1][0])


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
