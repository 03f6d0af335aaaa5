"""E step of a Gaussian mixture: log(weight × density) of K components at points x (n, d) float32, and its parts.

Coordinates are those of `oodlib.clustering.mixture`: centred, and of variance about one in every direction, where
float32 is enough for the large products even if covariances are nearly singular. Factorisations and results
are float64.
"""

import numpy as np
from scipy.linalg import cholesky
from scipy.linalg.lapack import dtrtri
from threadpoolctl import threadpool_limits

from oodlib.arrays import slices

FIRST, PANEL = 32, 128  # coordinates that are looked at for all components; at a time for those that are left


def log_joint(
    x: np.ndarray,
    weights: np.ndarray,
    means: np.ndarray,
    covariances: np.ndarray,
    covariance: str,
    margin: float = np.inf,
) -> np.ndarray:
    """Return log(weight × density) (n, K) float64 of x (n, d) float32.

    Means are (K, d), covariances full (K, d, d), tied (d, d) or diag (K, d). With full ones, to save time, values more
    than `margin` nats below another component's are -inf.
    """
    if covariance == "diag":
        factors = 1 / np.sqrt(covariances)  # (K, d)
        log_determinants = np.log(factors).sum(axis=1)
    else:
        factors = precision_factors(covariances)
        log_determinants = np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)
    peaks = np.log(weights) + log_determinants - x.shape[1] / 2 * np.log(2 * np.pi)  # (K,) the values at the means
    if covariance == "full":
        return _log_joint_full(x, peaks, means.astype(np.float32), factors.astype(np.float32), margin)
    squared_distances = {"tied": _distances_tied, "diag": _distances_diag}[covariance]
    blocks = (x[part] for part in slices(len(x)))
    return np.concatenate([peaks - squared_distances(block, means, factors) / 2 for block in blocks])


def log_sum(values: np.ndarray) -> np.ndarray:
    """Return the log of the sum (n,) of exp(values) over the components; values (n, K)."""
    largest = values.max(axis=1)
    return largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))


def precision_factors(covariances: np.ndarray) -> np.ndarray:
    """Return upper triangular P with P Pᵀ the inverse of each covariance, (K, d, d) or (d, d)."""
    each = covariances.reshape(-1, *covariances.shape[-2:])
    with threadpool_limits(1):  # SciPy's threads, apart from NumPy's, would wait busily on the cores that it needs
        factors = [dtrtri(cholesky(matrix.T, check_finite=False))[0] for matrix in each]
    return np.stack(factors).reshape(covariances.shape)


def _log_joint_full(
    x: np.ndarray, peaks: np.ndarray, means: np.ndarray, factors: np.ndarray, margin: float
) -> np.ndarray:
    """Bound all values from above with the first coordinates, then go on where a value can come within the margin.

    The first p coordinates of (x - mean) P need only the first p of x - mean, because P is upper triangular, and the
    sum of their squares only grows with further ones.
    """
    values = np.empty((len(x), len(means)))
    for part in slices(len(x)):
        for k, (mean, factor) in enumerate(zip(means, factors, strict=True)):
            gaps = x[part, :FIRST] - mean[:FIRST]
            values[part, k] = peaks[k] - _half_squares(gaps @ factor[:FIRST, :FIRST])
    likely = np.eye(len(means), dtype=bool)[values.argmax(axis=1)]  # (n, K) one a row, which sets the floor
    _complete(values, likely, np.full(len(x), -np.inf), x, means, factors)
    _complete(values, ~likely, values[likely] - margin, x, means, factors)
    values[values < values.max(axis=1, keepdims=True) - margin] = -np.inf
    return values


def _complete(
    values: np.ndarray, chosen: np.ndarray, floors: np.ndarray, x: np.ndarray, means: np.ndarray, factors: np.ndarray
) -> None:
    """Bring the chosen values (n, K) from the first coordinates to all of them, unless they fall below the floor."""
    for k, (mean, factor) in enumerate(zip(means, factors, strict=True)):
        rows = np.flatnonzero(chosen[:, k] & (values[:, k] > floors))
        for part in slices(len(rows)):
            some = rows[part]
            limits = values[some, k] - floors[some]
            values[some, k] -= _half_distances(x, some, mean, factor, limits)


def _half_distances(
    x: np.ndarray, rows: np.ndarray, mean: np.ndarray, factor: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Return half the squared norms (b,) of (x[rows] - mean) P past the first coordinates, or a part over the limit."""
    halves, left = np.zeros(len(rows)), np.arange(len(rows))
    edges = [*range(PANEL, x.shape[1], PANEL), x.shape[1]]
    for start, end in zip([FIRST, *edges], edges, strict=False):
        gaps = x[rows[left], :end]
        gaps -= mean[:end]  # in place: fresh memory for every block costs more than the difference
        halves[left] += _half_squares(gaps @ factor[:end, start:end])
        left = left[halves[left] < limits[left]]
    return halves


def _half_squares(x: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", x, x) / 2


def _distances_tied(x: np.ndarray, means: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return _distances_diag(x @ factor.astype(np.float32), means @ factor, np.ones_like(means))


def _distances_diag(x: np.ndarray, means: np.ndarray, factors: np.ndarray) -> np.ndarray:
    x, precisions = x.astype(np.float64), factors**2  # float64: large terms nearly cancel
    return x**2 @ precisions.T - 2 * x @ (means * precisions).T + (means**2 * precisions).sum(axis=1)
