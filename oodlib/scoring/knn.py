"""KNN: the distance to the k-th nearest training embedding as a score."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from threadpoolctl import threadpool_limits

from oodlib.arrays import UnitRows, as_array, release, sample_rows, squared_distances
from oodlib.clustering.kmeans import assign, count_distinct, kmeans
from oodlib.scoring.detector import Detector

IN_MEMORY = 2**30  # bytes that the rows may take
NUMBERS = 2**24  # in a block of a larger reference, and of queries
LARGEST = 1e15  # sums of squares stay far from the limits of float32
QUERIES = 4096  # in a block of faiss's
SAMPLE = 2048  # rows that the centres are found with
PROBE = 16  # queries that show whether groups pay
GROUPS, GROUP_ROWS = 16, 256  # groups at most, and rows in one on average at least
PAYS = 0.4  # of the rows, as the cost of a query: where groups cost more, all rows are searched at once
VISIT = 20  # rows that could be searched while one neighbour is put into the list of a group
TIGHT = 0.01  # of the sample in groups that need their own centre: more, and all have one
RESOLVED = 1e-3  # of the squared lengths; squared distances above it are good in float32
ROUNDING = 1e-5  # of the squared lengths; rows may be so much nearer to another centre than to their own


def kneighbors(queries, reference, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Euclidean distances (m, k) float32, ascending, of the k nearest reference rows, and their places.

    queries (m, d), reference (n, d): arrays (memory-mapped ones too) or tensors, taken as float32. Distances are not
    squared; places (m, k) are int64. `NeighborIndex` says how exact they are and which errors are raised.
    """
    return NeighborIndex(reference).kneighbors(queries, k)


@dataclass
class Group:
    """Reference rows (n, d) relative to an origin (d,), their places, squared lengths and largest length.

    `ids` are the places (n,), or the first of them where rows lie as in the reference.
    """

    rows: np.ndarray
    origin: np.ndarray
    ids: np.ndarray | int

    def locate(self, found: np.ndarray) -> None:
        """Turn places among these rows into places in the reference."""
        if isinstance(self.ids, int):
            found += self.ids
        else:
            found[:] = self.ids[found]

    @cached_property
    def squares(self) -> np.ndarray:
        return _squares(self.rows)  # (n,)

    @cached_property
    def radius(self) -> float:
        return float(np.sqrt(self.squares.max(initial=0)))


class Table:
    """Reference rows (n, d), at places start, start + 1, …, and the centers (G, d) float64 around which they gather.

    `all` holds all rows around their mean, `groups` those nearest to each centre, made once a search needs them. Where
    groups are tight, each has an origin of its own, and `all` is None.
    """

    # in short products threads wait for each other longer than they work
    @threadpool_limits.wrap(limits=1, user_api="blas")
    def __init__(self, rows: np.ndarray, start: int):
        sample = rows[sample_rows(len(rows), SAMPLE)]
        mean = sample.mean(axis=0, dtype=np.float64)
        n_groups = min(GROUPS, 1 + len(rows) // GROUP_ROWS, count_distinct(sample, GROUPS))
        own, centers, _ = kmeans(sample, n_groups, n_init=1)
        within = ((sample - centers[own].astype(np.float64)) ** 2).sum(axis=1)
        sizes = np.bincount(own)
        spread = (np.bincount(own, within) / sizes)[own]  # (s,) of the group of each
        tight = (spread < RESOLVED * ((sample - mean) ** 2).sum(axis=1).mean()).mean() > TIGHT
        self.centers, self.sizes = centers.astype(np.float64), sizes * (len(rows) / len(sample))  # (G,) estimated
        origin = mean.astype(np.float32)
        self.all, self.groups = None, None
        if tight:
            parts = zip(*_split(rows, start, centers), centers, strict=True)
            self.groups = [Group(part - center, center, own) for part, own, center in parts]
        else:
            self.all = Group(rows - origin, origin, start)

    @property
    def radius(self) -> float:
        """The length of the longest row, relative to its origin."""
        return self.all.radius if self.groups is None else max(group.radius for group in self.groups)

    @threadpool_limits.wrap(limits=1, user_api="blas")
    def group(self) -> None:
        """Sort the rows by the centre that each is nearest to."""
        if self.groups is None:
            origin = self.all.origin
            rows, ids = _split(self.all.rows, self.all.ids, self.centers - origin)
            self.groups = [Group(part, origin, own) for part, own in zip(rows, ids, strict=True)]
            self.all = Group(rows[0].base, origin, ids[0].base)


def _split(rows: np.ndarray, start: int, centers: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the rows (n, d) nearest to each of the centers (G, d), and their places, as parts of one array each."""
    nearest = assign(rows, centers)
    order, counts = np.argsort(nearest, kind="stable"), np.bincount(nearest, minlength=len(centers))
    return tuple(np.split(array, counts.cumsum()[:-1]) for array in (rows[order], start + order))


class NeighborIndex:
    """Reference embeddings (n, d), made ready once for exact nearest-neighbour queries.

    reference: array (a memory-mapped one too) or tensor, taken as float32. It is copied, except where the copy would
    take more than IN_MEMORY bytes: it is then read at every query. Raises ValueError unless it has two dimensions,
    neither empty, and values are finite and at most 1e15.
    """

    def __init__(self, reference):
        if len(reference.shape) != 2 or 0 in reference.shape:
            raise ValueError(f"reference must be (n, d), neither of them 0, got shape {tuple(reference.shape)}")
        self.reference, self.shape, self.table = reference, tuple(reference.shape), None
        if 4 * self.shape[0] * self.shape[1] <= IN_MEMORY:
            self.reference = _as_float32(reference[:], "reference")
            self.table = Table(self.reference, 0)

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
        size = max(1, NUMBERS // d)
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            block = _as_float32(queries[part], "queries")
            for table in self._read_tables():
                _search(table, block, distances[part], ids[part])
        return distances, ids

    def _read_tables(self) -> Iterator[Table]:
        if self.table is not None:
            yield self.table
            return
        size = max(1, NUMBERS // self.shape[1])
        for start in range(0, self.shape[0], size):
            yield Table(_as_float32(self.reference[start : start + size], "reference"), start)
            release(self.reference)


def _search(table: Table, queries: np.ndarray, distances: np.ndarray, ids: np.ndarray) -> None:
    """Bring distances and ids (m, k) of the rows nearest to queries (m, d) up to date with a table."""
    if table.all is not None and not _groups_pay(table, queries, distances):
        _search_all(table.all, queries, distances, ids)
        return
    table.group()
    bounds = _bounds(table, queries)  # (m, G)
    for i, group in enumerate(table.groups):
        _search_group(group, queries, np.flatnonzero(bounds[:, i] == -np.inf), distances, ids)
    for i, group in enumerate(table.groups):
        within_reach = (bounds[:, i] > -np.inf) & (bounds[:, i] <= distances[:, -1])
        _search_group(group, queries, np.flatnonzero(within_reach), distances, ids)


@threadpool_limits.wrap(limits=1, user_api="blas")
def _groups_pay(table: Table, queries: np.ndarray, distances: np.ndarray) -> bool:
    """Return whether groups cost less than all rows at once, as some of the queries tell."""
    if len(table.centers) == 1:
        return False
    some, k, rows = sample_rows(len(queries), PROBE), distances.shape[1], table.all.rows
    x, last = queries[some] - table.all.origin, min(k, len(rows)) - 1
    squares = table.all.squares - 2 * (x @ rows.T)  # float32 is enough to choose by; less those of the queries
    kth = np.partition(squares, last, axis=1)[:, last] + _squares(x)
    reach = np.minimum(distances[some, -1], np.sqrt(np.maximum(kth, 0)))
    costs = table.sizes + VISIT * k
    return ((_bounds(table, queries[some]) <= reach[:, None]) @ costs).mean() <= PAYS * len(rows)


def _bounds(table: Table, queries: np.ndarray) -> np.ndarray:
    """Return distances (m, G) that no row of a group is below; -inf for the group of the nearest centre.

    A row that is as near to its own centre c as to that of the query, o, lies on the far side of the plane half-way
    between them, which is (|x - c|² - |x - o|²) / (2 |c - o|) away from the query x.
    """
    squares = squared_distances(queries, table.centers)
    nearest = squares.argmin(axis=1)
    apart = np.sqrt(squared_distances(table.centers, table.centers))[nearest]
    rise = squares - squares.min(axis=1, keepdims=True)
    rise -= ROUNDING * (squares.max(axis=1, keepdims=True) + table.radius**2)
    bounds = rise / (2 * np.maximum(apart, np.finfo(np.float32).tiny))
    bounds[np.arange(len(queries)), nearest] = -np.inf
    return bounds


def _search_all(group: Group, queries: np.ndarray, distances: np.ndarray, ids: np.ndarray) -> None:
    """Bring distances and ids (m, k) up to date with all rows; where they are empty, lists are made in their place."""
    if np.isfinite(distances[:1, :1]).any() or distances.shape[1] > len(group.rows):
        _search_group(group, queries, np.arange(len(queries)), distances, ids)
        return
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        _find(group, queries[part] - group.origin, distances[part], ids[part])


def _search_group(
    group: Group, queries: np.ndarray, asking: np.ndarray, distances: np.ndarray, ids: np.ndarray
) -> None:
    """Bring the lists of the queries `asking` (a,) up to date with the rows of one group."""
    k = distances.shape[1]
    if not len(group.rows):
        return
    for some in np.array_split(asking, range(QUERIES, len(asking), QUERIES)):
        lists = len(some), min(k, len(group.rows))
        found, found_ids = np.empty(lists, np.float32), np.empty(lists, np.int64)
        _find(group, queries[some] - group.origin, found, found_ids)
        if np.isfinite(distances[some, :1]).any():  # there are neighbours in other groups
            nearer = found[:, 0] < distances[some, -1]
            some, found, found_ids = some[nearer], found[nearer], found_ids[nearer]
            found, found_ids = (np.hstack([own[some], new]) for own, new in ((distances, found), (ids, found_ids)))
            found, found_ids = _sorted(found, found_ids, k)
        distances[some, : found.shape[1]], ids[some, : found.shape[1]] = found, found_ids


def _find(group: Group, x: np.ndarray, distances: np.ndarray, ids: np.ndarray) -> None:
    """Write the distances (a, k) of the rows of a group nearest to x (a, d), relative to its origin, and their ids.

    x and distances are float32, ids int64, all in C order, because their memory is read and written as it lies.
    """
    import faiss

    k, at = ids.shape[1], faiss.swig_ptr
    faiss.knn_L2sqr(at(x), at(group.rows), x.shape[1], len(x), len(group.rows), k, at(distances), at(ids))
    unclear = RESOLVED * (_squares(x) + group.radius**2)  # (a,) below which squares are measured again
    again = np.flatnonzero(distances[:, 0] < unclear)
    row, column = np.nonzero(distances[again] < unclear[again, None])
    row = again[row]
    np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
    for part in np.array_split(np.arange(len(row)), 1 + len(row) * x.shape[1] // NUMBERS):
        differences = x[row[part]] - group.rows[ids[row[part], column[part]]]
        distances[row[part], column[part]] = np.sqrt(_squares(differences))
    distances[again], ids[again] = _sorted(distances[again], ids[again], k)
    group.locate(ids)


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


class KNNDetector(Detector):
    """Score an image by minus the distance to its k-th nearest training embedding, at unit norm (Sun et al. 2022).

    n_neighbors: k, smaller than the number of training embeddings. alpha: false-alarm rate of the threshold.
    """

    def __init__(self, n_neighbors: int = 50, alpha: float = 0.05):
        self.n_neighbors = n_neighbors
        self.alpha = alpha

    def fit(self, z: np.ndarray, y: np.ndarray | None = None, z_calibration: np.ndarray | None = None) -> Self:
        """Keep the training embeddings z (n, d) and set the threshold; y is ignored.

        The threshold comes from z_calibration (m, d), which no training has seen, else from the training embeddings
        themselves, a seeded sample of them where they are many. Raises ValueError for NaN, alpha outside (0, 1) and
        n < k + 1.
        """
        self.check_parameters()
        z = self._check(z, reset=True)
        self.embeddings_ = UnitRows(z)
        if z_calibration is not None:
            self._set_threshold(self._score(self._check(z_calibration))[0], True, np.float32)
            return self
        # a training embedding is its own nearest neighbour, which a new one is not
        self._set_threshold(self._kth(z[sample_rows(len(z))], self.n_neighbors + 1), False, np.float32)
        return self

    @property
    def embeddings_(self) -> np.ndarray:
        """The training embeddings (n, d) float32 at unit norm; read from where they are, if there are too many."""
        return np.asarray(self.index_.reference[:], dtype=np.float32)

    @embeddings_.setter
    def embeddings_(self, rows: UnitRows | np.ndarray) -> None:
        if not 1 <= self.n_neighbors < len(rows):
            raise ValueError(f"n_neighbors must be between 1 and n - 1 = {len(rows) - 1}, got {self.n_neighbors}")
        self.index_ = NeighborIndex(rows)

    def layout(self) -> dict[str, str]:
        return super().layout() | {"embeddings_": "float32 n d"}

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._kth(z, self.n_neighbors), np.zeros(len(z), dtype=np.int64)

    def _kth(self, z: np.ndarray, k: int) -> np.ndarray:
        return -self.index_.kneighbors(UnitRows(z), k)[0][:, -1].astype(np.float64)
