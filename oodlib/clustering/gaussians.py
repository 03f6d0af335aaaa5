"""Weighted Gaussians: their log densities, and coordinates in which they are white.

In white coordinates x = (z - origin) enter the likelihood is the same up to a constant, and float32 is enough for large
products even where covariances are nearly singular.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.lapack import dtrtri
from threadpoolctl import threadpool_limits

from oodlib.arrays import check_matrix, slices

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


RIDGE = 1e-6  # added to every variance, in units of the mean variance of the data


class Frame(NamedTuple):
    """Coordinates x = (z - origin) enter, in which the data has covariance 1 - ridge."""

    origin: np.ndarray  # (d,)
    enter: np.ndarray  # (d, d), diagonal for "diag"
    leave: np.ndarray  # (d, d), its inverse
    ridge: np.ndarray  # (d, d), what is added to the covariances of x, or for "diag" (d,), to the variances
    log_volume: float  # log density of x minus log density of z


@dataclass(frozen=True)
class Gaussians:
    """Weighted Gaussians: float64 arrays in the units of the embeddings."""

    covariance: str
    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K, d)
    covariances: np.ndarray  # full (K, d, d), tied (d, d), diag (K, d)

    def log_joint(self, z: np.ndarray) -> np.ndarray:
        """Return log(weight × density), (n, K) float64, of every component at z (n, d).

        Raises ValueError for another width than the mixture's and as `check_matrix`.
        """
        z = check_matrix("z", z)
        if z.shape[1] != self.means.shape[1]:
            raise ValueError(f"z must have the width of the mixture, {self.means.shape[1]}, got {z.shape[1]}")
        frame, means, covariances = self._in_frame()
        joint = log_joint(enter_frame(z, frame), self.weights, means, covariances, self.covariance)
        return joint - frame.log_volume

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Return the natural log density (n,) float64 at z (n, d); higher is more normal. Raises as `log_joint`."""
        return log_sum(self.log_joint(z))

    def take(self, components: np.ndarray) -> "Gaussians":
        """Return some of the components (k,) int, with the weights that they have."""
        covariances = self.covariances if self.covariance == "tied" else self.covariances[components]
        return Gaussians(self.covariance, self.weights[components], self.means[components], covariances)

    def whitened(self) -> dict[str, np.ndarray]:
        """Return origin (d,), whiten (d, d), centers (K, d), own (f,) int, factors (f, d, d) and log_weights (K,).

        With x = (z - origin) whiten, log(weight × density) is log_weights - |(x - center) factor|² / 2. `own` are the
        components that have a factor: all, or none where the covariance is tied and stands in whiten.
        """
        frame, centers, covariances = self._in_frame()
        whiten, own = frame.enter, np.arange(len(centers))
        if self.covariance == "diag":
            factors = np.stack([np.diag(1 / np.sqrt(variances)) for variances in covariances])
        else:
            factors = precision_factors(covariances)
        volumes = np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)
        if self.covariance == "tied":
            whiten, centers, own, factors = whiten @ factors, centers @ factors, own[:0], np.empty((0, *factors.shape))
        log_weights = np.log(self.weights) + volumes - centers.shape[1] / 2 * np.log(2 * np.pi) - frame.log_volume
        parts = {"origin": frame.origin, "whiten": whiten, "centers": centers, "log_weights": log_weights}
        return parts | {"own": own, "factors": factors}

    def _in_frame(self) -> tuple[Frame, np.ndarray, np.ndarray]:
        """Return a frame in which the mixture as a whole is white, and its means and covariances there."""
        origin = self.weights @ self.means / self.weights.sum()
        offsets = self.means - origin
        frame = frame_of(origin, total_covariance(self.weights, offsets, self.covariances, self.covariance))
        return frame, offsets @ frame.enter, map_covariances(self.covariances, frame.enter, self.covariance)


def total_covariance(weights: np.ndarray, offsets: np.ndarray, covariances: np.ndarray, covariance: str) -> np.ndarray:
    """Return the covariance (d, d), for "diag" the variances (d,), of the mixture as a whole; offsets: means (K, d)."""
    if covariance == "diag":
        return weights @ (covariances + offsets**2)
    within = np.tensordot(weights, covariances, 1) if covariance == "full" else covariances
    return within + (weights * offsets.T) @ offsets


def frame_of(origin: np.ndarray, total: np.ndarray) -> Frame:
    """Whiten by the Cholesky factor of the covariance (d, d) of the data, or for "diag" by its variances (d,)."""
    matrix = np.diag(total) if total.ndim == 1 else total
    ridge, identity = RIDGE * (np.trace(matrix) / len(matrix) or 1.0), np.eye(len(matrix))
    with threadpool_limits(1):
        leave = cholesky(matrix + ridge * identity)  # upper triangular
        enter = solve_triangular(leave, identity)
    shares = ridge * enter.T @ enter
    log_volume = float(np.log(np.diag(leave)).sum())
    return Frame(origin, enter, leave, np.diag(shares) if total.ndim == 1 else shares, log_volume)


def enter_frame(z: np.ndarray, frame: Frame) -> np.ndarray:
    """Return the coordinates (n, d) float32 of z (n, d) in a frame, a block at a time."""
    x = np.empty(z.shape, np.float32)
    for part in slices(len(z)):
        x[part] = (z[part] - frame.origin) @ frame.enter
    return x


def map_covariances(covariances: np.ndarray, matrix: np.ndarray, covariance: str) -> np.ndarray:
    """Return the covariances of x matrix, given those of x."""
    return covariances * np.diag(matrix) ** 2 if covariance == "diag" else matrix.T @ covariances @ matrix
