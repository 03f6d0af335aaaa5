"""Queries and reference embeddings in; Euclidean distances to the k nearest reference rows, and their places, out.

The search is faiss's, over all rows. It takes |x|² + |y|² - 2 x·y in float32, which is fast, and blind to distances
below some thousandth of the lengths. So rows are centred; where they fall into tight groups far from each other, each
group is, and is searched apart; and what is nearer than the resolution all the same is measured again by differences.
A reference that is too large to be kept in memory is read in blocks at every query.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from oodlib.blocks import as_array, release
from oodlib.kmeans import assign, count_distinct, kmeans

IN_MEMORY = 2**30  # bytes that the rows may take
BLOCK = 2**24  # numbers in a block of a larger reference, and of queries
LARGEST = 1e15  # sums of squares stay far from the limits of float32
SAMPLE = 2048  # rows that tell whether there are tight groups
GROUPS = 32  # of rows, at most
RESOLVED = 1e-3  # of the squared lengths; squared distances above it are good in float32


def kneighbors(queries, reference, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Euclidean distances (m, k) float32, ascending, of the k nearest reference rows, and their places.

    queries (m, d), reference (n, d): arrays (memory-mapped ones too) or tensors, taken as float32. Distances are not
    squared; places (m, k) are int64. `NeighborIndex` says how exact they are and which errors are raised.
    """
    return NeighborIndex(reference).kneighbors(queries, k)


@dataclass(frozen=True)
class Group:
    """Reference rows near each other: rows (n, d) float32 relative to their center (d,), and their places ids (n,)."""

    rows: np.ndarray
    center: np.ndarray
    ids: np.ndarray
    radius: float


class NeighborIndex:
    """Reference embeddings (n, d), made ready once for exact nearest-neighbour queries.

    reference: array (a memory-mapped one too) or tensor, taken as float32. It is copied, except where the copy would
    take more than IN_MEMORY bytes: it is then read at every query. Raises ValueError unless it has two dimensions,
    neither empty, and values are finite and at most 1e15.
    """

    def __init__(self, reference):
        if len(reference.shape) != 2 or 0 in reference.shape:
            raise ValueError(f"reference must be (n, d), neither of them 0, got shape {tuple(reference.shape)}")
        self.reference, self.shape = reference, tuple(reference.shape)
        in_memory = 4 * self.shape[0] * self.shape[1] <= IN_MEMORY
        self.groups = _make_groups(_as_float32(reference[:], "reference"), 0) if in_memory else None

    def kneighbors(self, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the Euclidean distances (m, k) float32, ascending, of the k nearest rows, and their places (m, k).

        queries (m, d): array or tensor, taken as float32; places are int64. Distances have the resolution of float32,
        and rows that it cannot tell apart come in an order that is unspecified, but always the same. Raises ValueError
        unless 1 <= k <= n, the width is that of the reference, and values are finite and at most 1e15.
        """
        n, d = self.shape
        if len(queries.shape) != 2 or queries.shape[1] != d:
            raise ValueError(f"queries must be (m, {d}) as the reference is ({n}, {d}), got {tuple(queries.shape)}")
        if not 1 <= k <= n:
            raise ValueError(f"k must lie in [1, {n}], the number of reference rows, got {k}")
        distances, ids = np.full((len(queries), k), np.inf, np.float32), np.zeros((len(queries), k), np.int64)
        size = max(1, BLOCK // d)
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            block = _as_float32(queries[part], "queries")
            for groups in self._read_groups():
                _search(groups, block, distances[part], ids[part])
        return distances, ids

    def _read_groups(self) -> Iterator[list[Group]]:
        if self.groups is not None:
            yield self.groups
            return
        size = max(1, BLOCK // self.shape[1])
        for start in range(0, self.shape[0], size):
            yield _make_groups(_as_float32(self.reference[start : start + size], "reference"), start)
            release(self.reference)


def _make_groups(rows: np.ndarray, start: int) -> list[Group]:
    """Return rows (n, d), which are at places start, start + 1, … of the reference, as one group or as tight ones."""
    sample = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:SAMPLE])]
    centers, nearest = sample.mean(axis=0, dtype=np.float64)[None], np.zeros(len(rows), np.int64)
    n_groups = min(GROUPS, count_distinct(sample, GROUPS))
    if n_groups > 1:
        own, tight_centers, _ = kmeans(sample, n_groups, n_init=1)
        within = ((sample - tight_centers[own].astype(np.float64)) ** 2).sum(axis=1)
        spread = np.bincount(own, within) / np.bincount(own)
        if spread.min() < RESOLVED * ((sample - centers) ** 2).sum(axis=1).mean():
            centers, nearest = tight_centers, assign(rows, tight_centers)
    groups = []
    for i, center in enumerate(centers.astype(np.float32)):
        ids = np.flatnonzero(nearest == i)
        if len(ids):
            members = (rows if len(ids) == len(rows) else rows[ids]) - center
            groups.append(Group(members, center, start + ids, float(np.sqrt(_squares(members).max()))))
    return groups


def _search(groups: list[Group], queries: np.ndarray, distances: np.ndarray, ids: np.ndarray) -> None:
    """Bring distances and ids (m, k) of the rows nearest to queries (m, d) up to date with groups of rows."""
    apart = np.stack([np.sqrt(_squares(queries - group.center)) for group in groups], axis=1)  # (m, G)
    nearest = apart.argmin(axis=1)
    for i, group in enumerate(groups):
        _search_group(group, queries, np.flatnonzero(nearest == i), distances, ids)
    for i, group in enumerate(groups):
        reached = (1 - 1e-5) * (apart[:, i] - group.radius) <= distances[:, -1]
        _search_group(group, queries, np.flatnonzero(reached & (nearest != i)), distances, ids)


def _search_group(
    group: Group, queries: np.ndarray, asking: np.ndarray, distances: np.ndarray, ids: np.ndarray
) -> None:
    """Bring the lists of the queries `asking` (a,) up to date with the rows of one group."""
    import faiss

    if not len(asking):
        return
    x, k = queries[asking] - group.center, distances.shape[1]
    squares, places = faiss.knn(x, group.rows, min(k, len(group.rows)))
    found = np.sqrt(np.maximum(squares, 0))
    row, column = np.nonzero(squares < RESOLVED * (_squares(x)[:, None] + group.radius**2))
    for part in np.array_split(np.arange(len(row)), 1 + len(row) * x.shape[1] // BLOCK):
        differences = x[row[part]] - group.rows[places[row[part], column[part]]]
        found[row[part], column[part]] = np.sqrt(_squares(differences))
    again = np.unique(row)
    found[again], places[again] = _sorted(found[again], places[again], found.shape[1])
    found_ids = group.ids[places]
    if not np.isinf(distances[asking[0], 0]):  # there are neighbours in other groups
        found, found_ids = (np.hstack([own[asking], new]) for own, new in ((distances, found), (ids, found_ids)))
        found, found_ids = _sorted(found, found_ids, k)
    distances[asking, : found.shape[1]], ids[asking, : found.shape[1]] = found, found_ids


def _sorted(distances: np.ndarray, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k smallest of every row of distances (m, p), ascending, and their places, of (m, p)."""
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(places, order, axis=1)


def _squares(rows: np.ndarray) -> np.ndarray:
    """Return the squared lengths (n,) of rows (n, d)."""
    return np.einsum("nd,nd->n", rows, rows)


def _as_float32(block, name: str) -> np.ndarray:
    """Return a block of an array or tensor as a float32 array; check its values."""
    block = np.require(as_array(block), np.float32, ["C"])
    if not max(-block.min(), block.max()) <= LARGEST:
        raise ValueError(f"{name} must be finite and at most {LARGEST:g}, found {block.min()} to {block.max()}")
    return block
