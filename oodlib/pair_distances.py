"""Clusters of embeddings in; the mean distance between the members of every two clusters out, all or the nearest pairs.

No n × n matrix is held: distances come in blocks of matrix products, in float64. z (n, d) is sorted by cluster, the
first sizes[0] rows are cluster 0 and so on; for the metric "cosine", whose distance is 1 - cos, at unit norm (a row of
zeros is at 1 of every other row).
"""

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 2**20  # distances in one block
RESOLUTION = 1e-14  # squared distances below this share of the squared norms are rounding, and count as zero


def mean_distances(
    z: np.ndarray, sizes: np.ndarray, fractions: Sequence[float], metric: str, include_self: bool
) -> np.ndarray:
    """Return P (f, K, K), the mean of the smallest fraction of the distances between every two clusters.

    A fraction of m distances is max(1, floor(fraction m)) of them. Within a cluster they are over pairs of distinct
    rows, each once, or with include_self over all n_k² ordered pairs; one row alone has mean 0. Memory: one block where
    every fraction is 1, else 8 bytes a pair of the two clusters at hand.
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
            last = max(first + 1, np.searchsorted(ends, starts[first] + BLOCK // sizes[c], side="right"))
            columns = z[starts[first] : ends[last - 1]]
            distances = np.empty((sizes[c], len(columns)))
            row = 0
            for block in _distance_blocks(z[start:end], columns, metric):
                distances[row : row + len(block)] = block
                row += len(block)
            for other in range(first, last):
                pairs = distances[:, starts[other] - starts[first] : ends[other] - starts[first]]
                if other == c:
                    np.fill_diagonal(pairs, 0)
                    pairs = pairs if include_self else pairs[~np.tri(sizes[c], dtype=bool)]
                means[:, c, other] = means[:, other, c] = _means_of_smallest(pairs.ravel(), fractions)
            first = last
    return means


def _means_of_smallest(distances, fractions) -> list[float]:
    if len(distances) == 0:
        return [0.0] * len(fractions)
    kept = [max(1, int(fraction * len(distances) + 1e-9)) for fraction in fractions]  # 0.29 · 100 is 28.999…
    distances = np.partition(distances, [k - 1 for k in kept])
    return [distances[:k].mean() for k in kept]


def _distance_blocks(a, b, metric) -> Iterator[np.ndarray]:
    """Yield the distances of the rows of a to all rows of b, a block of rows at a time: (rows, n_b) each."""
    if metric == "cosine":
        left, right = np.hstack([-a, np.ones((len(a), 1))]), np.hstack([b, np.ones((len(b), 1))])
        noise = RESOLUTION
    else:
        origin = a.mean(axis=0)  # of this cluster, so that neither a shift nor a far cluster costs it digits
        a, b = a - origin, b - origin
        a_squares, b_squares = (a**2).sum(axis=1, keepdims=True), (b**2).sum(axis=1, keepdims=True)
        left = np.hstack([-2 * a, a_squares, np.ones_like(a_squares)])  # |a|² + |b|² - 2 a·b as one product
        right = np.hstack([b, np.ones_like(b_squares), b_squares])
        noise = RESOLUTION * (a_squares.max() + b_squares[:, 0])  # (n_b,)
    rows = max(1, BLOCK // len(b))
    for start in range(0, len(a), rows):
        distances = left[start : start + rows] @ right.T
        distances[distances < noise] = 0
        yield distances if metric == "cosine" else np.sqrt(distances, out=distances)
