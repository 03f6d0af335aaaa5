"""k-means, Euclidean and spherical.

Lloyd's algorithm from greedy k-means++ seeds, with several starts that race. Euclidean data is centred and brought to
unit scale first, so neither a shift nor the unit changes the result; products are float32, sums of points float64.
"""

import numbers

import numpy as np

from oodlib.arrays import check_matrix, slices, to_unit_norm

MAX_ITERATIONS = 300
FIRST_LEG = 4  # Lloyd iterations before the starts are first compared; every next leg is twice as long


def kmeans(
    z: np.ndarray, n_clusters: int, spherical: bool = False, n_init: int = 16, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Find the K groups of embeddings z (n, d) with a small sum of squared distances to their means.

    Return assignments (n,) int64, centres (K, d) float32 and the inertia, which is that sum. With `spherical` the
    vectors count as directions: centres have unit length and the inertia is the sum of squared chords, 2 - 2 cos; a
    zero vector, at the same distance of every centre, has no say in them and goes to cluster 0.

    All `n_init` starts run a few iterations, the better half goes on for twice as many, and so on; the last one runs
    until no point moves. No cluster is empty: one that loses its points gets the point farthest from its own centre.
    Raises ValueError for `n_init` below 1 and as `check_matrix`, `check_n_clusters` and `check_distinct`.
    Lloyd 1982; Arthur and Vassilvitskii 2007 (seeds); Dhillon and Modha 2001 (spherical).
    """
    z = check_matrix("z", z)
    check_n_clusters(n_clusters, len(z))
    if n_init < 1:
        raise ValueError(f"n_init must be at least 1, got {n_init}")
    if spherical:
        unit = to_unit_norm(z).astype(np.float32, copy=False)
        directed = unit.any(axis=1)
        x, origin, scale = unit[directed], 0.0, 1.0
    else:
        x, origin, scale = standardize(z)  # (n, d) float32
    check_distinct(x, n_clusters)
    assignments, centers = _best_of(x, n_clusters, spherical, n_init, np.random.default_rng(seed))
    inertia = float(_squared_distances(x, centers[assignments]).sum()) * scale**2
    if spherical and not directed.all():
        assignments = np.where(directed, assignments[np.cumsum(directed) - 1], 0)
    return assignments, (centers * scale + origin).astype(np.float32), inertia


def assign(z: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the index (n,) int64 of the centre (K, d) nearest to each row of z (n, d), the first of equally near ones.

    Raises ValueError for widths that differ and as `check_matrix`.
    """
    z, centers = check_matrix("z", z), check_matrix("centers", centers)
    if z.shape[1] != centers.shape[1]:
        raise ValueError(f"z and centers must have the same width, got {z.shape[1]} and {centers.shape[1]}")
    centers, origin, scale = standardize(centers)
    blocks = (z[part] for part in slices(len(z)))
    return np.concatenate([_nearest(((block - origin) / scale).astype(np.float32), centers) for block in blocks])


def check_n_clusters(n_clusters: int, n: int) -> None:
    """Raise ValueError unless K is a whole number from 1 to the number of points n."""
    if not isinstance(n_clusters, numbers.Integral) or n_clusters < 1:
        raise ValueError(f"n_clusters must be a positive whole number, got {n_clusters!r}")
    if n_clusters > n:
        raise ValueError(f"n_clusters = {n_clusters} is larger than the number of points, {n}")


def check_distinct(x: np.ndarray, n_clusters: int, among: str = "points") -> None:
    """Raise ValueError if K is larger than the number of distinct rows of x (n, d), which the message calls `among`."""
    found = count_distinct(x, n_clusters)
    if found < n_clusters:
        raise ValueError(f"K = {n_clusters} is larger than the number of distinct {among}, {found}")


def count_distinct(x: np.ndarray, at_most: int) -> int:
    """Return the number of distinct rows of x (n, d), of which it looks at no more than it takes to find `at_most`."""
    seen = set()
    for row in x:
        seen.add((row + x.dtype.type(0)).tobytes())  # -0.0 + 0.0 is 0.0
        if len(seen) == at_most:
            break
    return len(seen)


def standardize(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return x (n, d) float32 of mean zero and mean squared norm one, origin (d,) and scale: z = x scale + origin.

    Where all points are one, x is zero and the scale 1.
    """
    origin = z.mean(axis=0, dtype=np.float64)
    x, total = np.empty(z.shape, np.float32), 0.0
    for part in slices(len(z)):
        block = z[part] - origin  # float64: cast once the shift is gone
        total += np.vdot(block, block)
        x[part] = block
    scale = np.sqrt(total / len(z)) or 1.0
    x /= np.float32(scale)
    return x, origin, float(scale)


def _best_of(
    x: np.ndarray, n_clusters: int, spherical: bool, n_init: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Race the starts; return the assignments (n,) and float64 centres (K, d) of the winner."""
    starts = [x[rows] for rows in _seed_rows(x, n_clusters, n_init, rng)]  # n_init × (K, d)
    leg = FIRST_LEG
    while len(starts) > 1:
        runs = sorted((_lloyd(x, centers, spherical, leg) for centers in starts), key=lambda run: run[2])
        starts = [centers for _, centers, _ in runs[: (len(runs) + 1) // 2]]
        leg *= 2
    return _lloyd(x, starts[0], spherical, MAX_ITERATIONS)[:2]


def _seed_rows(x: np.ndarray, n_clusters: int, n_starts: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the rows (n_starts, K) of greedy k-means++ seeds, for all starts at once so that they share the products.

    The next seed is the best of 2 + ln K points drawn with a probability proportional to the squared distance to the
    nearest seed so far. Distances are kept as scores x·c - |c|²/2, larger is nearer: |x - c|² = |x|² - 2 score.
    """
    n, trials, every = len(x), 2 + int(np.log(n_clusters)), np.arange(n_starts)
    half_norms = np.einsum("nd,nd->n", x, x) / 2  # (n,)
    rows = np.empty((n_starts, n_clusters), np.int64)
    rows[:, 0] = rng.integers(n, size=n_starts)
    best = x[rows[:, 0]] @ x.T - half_norms[rows[:, 0], None]  # (starts, n) score of the nearest seed
    for k in range(1, n_clusters):
        weights = np.maximum(half_norms - best, 0).cumsum(axis=1, dtype=np.float64)  # (starts, n)
        draws = rng.random((n_starts, trials)) * weights[:, -1:]
        tried = np.stack([np.searchsorted(weights[s], draws[s], side="right") for s in every])
        tried = np.minimum(tried, n - 1)  # (starts, trials)
        scores = _scores_with(x, tried, half_norms, best)  # (starts, trials, n)
        winner = scores.sum(axis=2, dtype=np.float64).argmax(axis=1)  # (starts,)
        rows[:, k], best = tried[every, winner], scores[every, winner]
    return rows


def _scores_with(x: np.ndarray, tried: np.ndarray, half_norms: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return the score (starts, trials, n) of the nearest seed if each point tried were added to the seeds."""
    candidates, offsets = x[tried.ravel()], half_norms[tried.ravel(), None]
    scores = np.empty((*tried.shape, len(x)), np.float32)
    for part in slices(len(x)):
        block = candidates @ x[part].T - offsets
        np.maximum(block.reshape(*tried.shape, -1), best[:, None, part], out=scores[:, :, part])
    return scores


def _lloyd(
    x: np.ndarray, centers: np.ndarray, spherical: bool, n_iterations: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Alternate nearest centres and means; return assignments, means, and inertia less what no partition changes."""
    assignments, objective = None, np.inf
    for _ in range(n_iterations):
        nearest = _fill_empty(x, _nearest(x, centers.astype(np.float32, copy=False)), centers)
        if assignments is None:
            sums, sizes = _sums(x, nearest, len(centers))
        else:  # only what moved: after a few iterations that is little
            moved = np.flatnonzero(nearest != assignments)
            joined, left = (_sums(x[moved], a[moved], len(centers)) for a in (nearest, assignments))
            sums, sizes = sums + joined[0] - left[0], sizes + joined[1] - left[1]
        before, assignments = objective, nearest
        centers, objective = _means(sums, sizes, centers, spherical)
        if before - objective <= 1e-12 * abs(objective):  # no point moved, or only to and fro within rounding
            break
    return assignments, centers, objective


def _nearest(x: np.ndarray, centers: np.ndarray) -> np.ndarray:
    half_norms = np.einsum("kd,kd->k", centers, centers) / 2
    nearest = np.empty(len(x), np.int64)
    for part in slices(len(x)):
        scores = x[part] @ centers.T  # (b, K)
        scores -= half_norms
        nearest[part] = scores.argmax(axis=1)
    return nearest


def _fill_empty(x: np.ndarray, nearest: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Give every empty cluster the point farthest from its own centre, out of a cluster that keeps another point."""
    sizes = np.bincount(nearest, minlength=len(centers))
    if sizes.all():
        return nearest
    distances = _squared_distances(x, centers[nearest])
    for k in np.flatnonzero(sizes == 0):
        row = np.where(sizes[nearest] > 1, distances, -1).argmax()
        sizes[nearest[row]] -= 1
        sizes[k], nearest[row] = 1, k
        distances = np.minimum(distances, _squared_distances(x, x[row : row + 1]))  # its duplicates are no longer far
    return nearest


def _squared_distances(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return |x - other|² (n,) float64 by differences, others (n, d) or (1, d)."""
    return np.einsum("nd,nd->n", difference := x - others.astype(np.float64), difference)


def _sums(x: np.ndarray, assignments: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the float64 sum (K, d) and the number (K,) of the rows of every cluster."""
    order, sizes = np.argsort(assignments, kind="stable"), np.bincount(assignments, minlength=n_clusters)
    members = np.split(order, sizes.cumsum()[:-1])
    return np.stack([x[rows].sum(axis=0, dtype=np.float64) for rows in members]), sizes


def _means(sums: np.ndarray, sizes: np.ndarray, centers: np.ndarray, spherical: bool) -> tuple[np.ndarray, float]:
    """Return the centres (K, d) float64 of the sums, and the inertia less the sum of the points' squared norms."""
    if not spherical:
        means = sums / sizes[:, None]
        return means, -float((means * sums).sum())
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)  # zero where directions cancel: the centre stays
    return np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centers), -2 * float(lengths.sum())
