"""Mean distances between the members of every two clusters, of all pairs or of the nearest.

No n × n matrix is held: distances come in blocks of matrix products, in float64. z (n, d) is sorted by cluster, the
first sizes[0] rows are cluster 0 and so on; for the metric "cosine", whose distance is 1 - cos, at unit norm (a row of
zeros is at 1 of every other row).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

PAIRS = 2**20  # in one block of distances
HELD = 3 * 2**23  # distances of two clusters that are held at once, 200 MB; of more, the smallest are found in passes
BITS = 21  # of the 63 of a distance that one pass looks at
RESOLUTION = 1e-14  # squared distances below this share of the squared norms are rounding, and count as zero


def mean_distances(
    z: np.ndarray, sizes: np.ndarray, fractions: Sequence[float], metric: str, include_self: bool
) -> np.ndarray:
    """Return P (f, K, K), the mean of the smallest fraction of the distances between every two clusters.

    A fraction of m distances is max(1, floor(fraction m)) of them. Within a cluster they are over pairs of distinct
    rows, each once, or with include_self over all n_k² ordered pairs; one row alone has mean 0. Memory: a copy of z and
    one block where every fraction is 1, else a copy of a cluster and, with five fractions, 250 MB at most.
    """
    if not all(fraction == 1 for fraction in fractions):
        return _smallest_means(z, sizes, fractions, metric, include_self)
    sums = _cosine_sums(z, sizes) if metric == "cosine" else _euclidean_sums(z, sizes)
    n_pairs = np.outer(sizes, sizes) - (0 if include_self else np.diag(sizes))
    means = sums / np.maximum(n_pairs, 1)
    return np.repeat(means[None], len(fractions), axis=0)


def _cosine_sums(z, sizes) -> np.ndarray:
    """Return the sums (K, K) of the cosine distances over ordered pairs, which sums of unit rows give without pairs."""
    starts = np.cumsum(sizes) - sizes
    totals = np.add.reduceat(z, starts, axis=0)  # (K, d)
    n_pairs = np.outer(sizes, sizes)
    sums = n_pairs - totals @ totals.T
    sums -= np.diag(np.add.reduceat((z == 0).all(axis=1), starts, dtype=np.int64))  # a zero row, too, is at 0 of itself
    return np.where(sums < RESOLUTION * n_pairs, 0, sums)


def _euclidean_sums(z, sizes) -> np.ndarray:
    """Return the sums (K, K) of the Euclidean distances over ordered pairs."""
    starts = np.cumsum(sizes) - sizes
    sums = np.zeros((len(sizes), len(sizes)))
    for c, start in enumerate(starts):
        for distances in _distance_blocks(z[start : start + sizes[c]], z[start:], "euclidean"):
            sums[c, c:] += np.add.reduceat(distances.sum(axis=0), starts[c:] - start)
        sums[c:, c] = sums[c, c:]
    return sums


def _smallest_means(z, sizes, fractions, metric, include_self) -> np.ndarray:
    ends = np.cumsum(sizes)
    starts = ends - sizes
    means = np.empty((len(fractions), len(sizes), len(sizes)))
    for c, (start, end) in enumerate(zip(starts, ends, strict=True)):
        first = c
        while first < len(sizes):  # as many clusters at once as fit in a block: few large products, not many small
            last = max(first + 1, np.searchsorted(ends, starts[first] + PAIRS // sizes[c], side="right"))
            columns = z[starts[first] : ends[last - 1]]
            if sizes[c] * len(columns) > PAIRS:
                found = _means_of_many(z[start:end], columns, fractions, metric, first == c, include_self)
                means[:, c, first] = means[:, first, c] = found
            else:
                (distances,) = _distance_blocks(z[start:end], columns, metric)
                for other in range(first, last):
                    pairs = distances[:, starts[other] - starts[first] : ends[other] - starts[first]]
                    pairs = _counted(pairs, 0, include_self) if other == c else pairs.ravel()
                    means[:, c, other] = means[:, other, c] = _means_of_smallest(pairs, fractions)
            first = last
    return means


def _counted(block, row, include_self) -> np.ndarray:
    """Return the distances (m,) that count of a block (rows, n), from a row on, of a cluster to itself."""
    ahead = np.arange(block.shape[1]) - np.arange(row, row + len(block))[:, None]
    block[ahead == 0] = 0
    return block.ravel() if include_self else block[ahead > 0]


def _means_of_many(a, b, fractions, metric, within, include_self) -> list[float]:
    """Return what `_means_of_smallest` does of the distances between a and b that count; within a cluster, a is b."""

    def pairs() -> Iterator[np.ndarray]:
        row = 0
        for block in _distance_blocks(a, b, metric):
            yield _counted(block, row, include_self) if within else block.ravel()
            row += len(block)

    n = len(a) * (len(a) - 1) // 2 if within and not include_self else len(a) * len(b)
    if n > HELD:
        return _means_in_passes(pairs, _numbers_kept(fractions, n))
    distances, done = np.empty(n), 0
    for part in pairs():
        distances[done : done + len(part)] = part
        done += len(part)
    return _means_of_smallest(distances, fractions)


def _means_of_smallest(distances, fractions) -> list[float]:
    if len(distances) == 0:
        return [0.0] * len(fractions)
    kept = _numbers_kept(fractions, len(distances))
    distances.partition([k - 1 for k in kept])
    return [distances[:k].mean() for k in kept]


def _numbers_kept(fractions, n) -> list[int]:
    return [max(1, int(fraction * n + 1e-9)) for fraction in fractions]  # 0.29 · 100 is 28.999…


def _means_in_passes(pairs: Callable[[], Iterator[np.ndarray]], kept: list[int]) -> list[float]:
    """Return the means of the `kept` smallest of the distances that pairs() yields, anew with every call.

    Numbers of one sign are in the order of their bits: each pass finds the next BITS of every k-th smallest distance,
    and the last one adds up what lies below.
    """
    found, rest = [0] * len(kept), list(kept)  # the leading bits, and how many are kept of the distances that have them
    for shift in range(63 - BITS, -1, -BITS):
        counts = {leading: np.zeros(2**BITS, np.int64) for leading in found}
        for distances in pairs():
            bits = distances.view(np.int64) >> shift
            for leading in counts:
                np.add.at(counts[leading], bits[bits >> BITS == leading] & (2**BITS - 1), 1)
        for i, leading in enumerate(found):
            up_to = np.cumsum(counts[leading])
            following = int(np.searchsorted(up_to, rest[i]))
            rest[i] -= int(up_to[following] - counts[leading][following])
            found[i] = leading << BITS | following
    largest = np.array(found).view(np.float64)
    sums = rest * largest
    for distances in pairs():
        sums += [distances[distances < value].sum() for value in largest]
    return list(sums / kept)


def _distance_blocks(a, b, metric) -> Iterator[np.ndarray]:
    """Yield the distances of the rows of a to all rows of b, a block of rows at a time: (rows, n_b) each."""
    rows, ones = max(1, PAIRS // len(b)), np.ones((len(b), 1))
    if metric == "cosine":
        right, noise = np.hstack([b, ones]), RESOLUTION
    else:
        origin = a.mean(axis=0)  # of this cluster, so that neither a shift nor a far cluster costs it digits
        a_squares, b_squares = _squares(a, origin), _squares(b, origin)
        right = np.hstack([b, ones, b_squares])  # |a|² + |b|² - 2 a·b as one product
        right[:, : b.shape[1]] -= origin
        noise = RESOLUTION * (a_squares.max() + b_squares[:, 0])  # (n_b,)
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        one = np.ones((len(part), 1))
        if metric == "cosine":
            left = np.hstack([-part, one])
        else:
            left = np.hstack([-2 * (part - origin), a_squares[start : start + rows], one])
        distances = left @ right.T
        distances[distances < noise] = 0
        yield distances if metric == "cosine" else np.sqrt(distances, out=distances)


def _squares(z, origin) -> np.ndarray:
    """Return the squared distance (n, 1) of every row from a point."""
    rows = max(1, PAIRS // z.shape[1])
    parts = (z[start : start + rows] - origin for start in range(0, len(z), rows))
    return np.concatenate([(part**2).sum(axis=1, keepdims=True) for part in parts])
