"""Gaussian mixtures: embeddings (n, d) in; weights, means, covariances and natural log densities out.

Expectation maximisation (Dempster, Laird and Rubin 1977) from k-means clusters. It runs in coordinates x in which the
data is white: the likelihood is the same up to a constant, and there float32 is enough for the large products of the E
step even where covariances are nearly singular. Sums over samples and factorisations are float64.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, eigh, solve_triangular
from threadpoolctl import threadpool_limits

from oodlib import expectation
from oodlib.expectation import BLOCK
from oodlib.kmeans import assign, check_matrix, check_n_clusters, count_distinct, kmeans

COVARIANCES = ("full", "tied", "diag")
SAMPLE = 5000  # rows that k-means sees, from where EM goes on with all; at least 100 a component
N_INIT = 4  # starts of k-means
RIDGE = 1e-6  # added to every variance, in units of the mean variance of the data
NEGLIGIBLE = 40.0  # nats: float64 loses what is added to e^40 times as much


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
        joint = expectation.log_joint(_enter(z, frame), self.weights, means, covariances, self.covariance)
        return joint - frame.log_volume

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Return the natural log density (n,) float64 at z (n, d); higher is more normal. Raises as `log_joint`."""
        return expectation.log_sum(self.log_joint(z))

    def take(self, components: np.ndarray) -> "Gaussians":
        """Return some of the components (k,) int, with the weights that they have."""
        covariances = self.covariances if self.covariance == "tied" else self.covariances[components]
        return Gaussians(self.covariance, self.weights[components], self.means[components], covariances)

    def whitened(self) -> dict[str, np.ndarray]:
        """Return origin (d,), whiten (d, d), centers (K, d), factors (K, d, d) and log_weights (K,), all float64.

        With x = (z - origin) whiten, log(weight × density) is log_weights - |(x - center) factor|² / 2.
        """
        frame, centers, covariances = self._in_frame()
        if self.covariance == "diag":
            factors = np.stack([np.diag(1 / np.sqrt(variances)) for variances in covariances])
        else:
            factors = np.broadcast_to(expectation.precision_factors(covariances), (len(centers), *frame.enter.shape))
        volumes = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
        log_weights = np.log(self.weights) + volumes - centers.shape[1] / 2 * np.log(2 * np.pi) - frame.log_volume
        return {
            "origin": frame.origin,
            "whiten": frame.enter,
            "centers": centers,
            "factors": np.array(factors),
            "log_weights": log_weights,
        }

    def _in_frame(self) -> tuple["_Frame", np.ndarray, np.ndarray]:
        """Return a frame in which the mixture as a whole is white, and its means and covariances there."""
        origin = self.weights @ self.means / self.weights.sum()
        offsets = self.means - origin
        frame = _frame(origin, _total(self.weights, offsets, self.covariances, self.covariance))
        return frame, offsets @ frame.enter, _map(self.covariances, frame.enter, self.covariance)


@dataclass(frozen=True)
class Mixture(Gaussians):
    """A Gaussian mixture that was fitted.

    log_likelihood is the mean natural log density of the samples it was fitted to, bic their Bayesian information
    criterion (Schwarz 1978; smaller is better).
    """

    log_likelihood: float
    bic: float
    n_iterations: int
    converged: bool


class _Frame(NamedTuple):
    """Coordinates x = (z - origin) enter, in which the data has covariance 1 - ridge."""

    origin: np.ndarray  # (d,)
    enter: np.ndarray  # (d, d), diagonal for "diag"
    leave: np.ndarray  # (d, d), its inverse
    ridge: np.ndarray  # (d, d), what is added to the covariances of x, or for "diag" (d,), to the variances
    log_volume: float  # log density of x minus log density of z


def fit_mixture(
    z: np.ndarray,
    n_components: int,
    covariance: str = "full",
    seed: int = 0,
    max_iterations: int = 100,
    tolerance: float = 1e-3,
) -> Mixture:
    """Fit K Gaussians to embeddings z (n, d) by expectation maximisation.

    covariance: "full" (one a component), "tied" (one for all) or "diag" (variances only). It ends after
    `max_iterations`, or when the mean log density of a sample changes by less than `tolerance` nats. A millionth of the
    mean variance of the data is added to every variance, so that singular covariances are safe whatever the unit.
    Raises ValueError for another covariance or number of iterations, and as `kmeans`.
    """
    if covariance not in COVARIANCES:
        raise ValueError(f"unknown covariance {covariance!r}; known: {', '.join(COVARIANCES)}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    z = check_matrix("z", z)
    check_n_clusters(n_components, len(z))
    frame, weights, means, covariances = _start(z, _clusters(z, n_components, seed), covariance)
    x = _enter(z, frame)  # (n, d) float32
    mean_density = -np.inf
    for n_iterations in range(1, max_iterations + 1):
        values = expectation.log_joint(x, weights, means, covariances, covariance, margin=NEGLIGIBLE)  # (n, K)
        log_densities = expectation.log_sum(values)  # (n,)
        before, mean_density = mean_density, float(log_densities.mean())
        converged = abs(mean_density - before) < tolerance
        if converged or n_iterations == max_iterations:
            break
        responsibilities = np.exp(values - log_densities[:, None])
        weights, means, covariances = _maximize(x, responsibilities, covariance, frame.ridge)
    log_likelihood = mean_density - frame.log_volume
    return Mixture(
        covariance=covariance,
        weights=weights,
        means=means @ frame.leave + frame.origin,
        covariances=_map(covariances, frame.leave, covariance),
        log_likelihood=log_likelihood,
        bic=_n_parameters(covariance, *means.shape) * float(np.log(len(z))) - 2 * len(z) * log_likelihood,
        n_iterations=n_iterations,
        converged=converged,
    )


def _n_parameters(covariance: str, k: int, d: int) -> int:
    triangle = d * (d + 1) // 2
    return k - 1 + k * d + {"full": k * triangle, "tied": triangle, "diag": k * d}[covariance]


def _clusters(z: np.ndarray, n_components: int, seed: int) -> np.ndarray:
    """Return the k-means cluster (n,) of every row, none of them empty; of many rows a sample finds the centres."""
    size = min(max(SAMPLE, 100 * n_components), len(z))
    rows = np.sort(np.random.default_rng(seed).choice(len(z), size, replace=False))
    if size == len(z) or count_distinct(z[rows], n_components) < n_components:
        return kmeans(z, n_components, n_init=N_INIT, seed=seed)[0]
    sampled, centers, _ = kmeans(z[rows], n_components, n_init=N_INIT, seed=seed)
    assignments = assign(z, centers)
    assignments[rows] = sampled
    return assignments


def _start(
    z: np.ndarray, assignments: np.ndarray, covariance: str
) -> tuple[_Frame, np.ndarray, np.ndarray, np.ndarray]:
    """Return a frame for z and, in its coordinates, the weights, means and covariances of the clusters."""
    weights, means, covariances = _moments(z, assignments, covariance)
    origin = weights @ means
    frame = _frame(origin, _total(weights, means - origin, covariances, covariance))
    if covariance == "full":
        frame = _turn(frame, weights, covariances)
    return frame, weights, (means - origin) @ frame.enter, _map(covariances, frame.enter, covariance) + frame.ridge


def _moments(z: np.ndarray, assignments: np.ndarray, covariance: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the weights (K,), means (K, d) and covariances of the clusters, with no ridge, all in float64."""
    sizes, means, scatters = np.bincount(assignments), [], []
    for k in range(len(sizes)):
        rows = np.flatnonzero(assignments == k)
        blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
        mean = sum(z[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
        gaps = (z[block] - mean for block in blocks)  # (b, d) each
        scatters.append(sum((part**2).sum(axis=0) if covariance == "diag" else part.T @ part for part in gaps))
        means.append(mean)
    if covariance == "tied":
        return sizes / len(z), np.stack(means), sum(scatters) / len(z)
    return sizes / len(z), np.stack(means), np.stack([a / size for a, size in zip(scatters, sizes, strict=True)])


def _total(weights: np.ndarray, offsets: np.ndarray, covariances: np.ndarray, covariance: str) -> np.ndarray:
    """Return the covariance (d, d), for "diag" the variances (d,), of the mixture as a whole; offsets: means (K, d)."""
    if covariance == "diag":
        return weights @ (covariances + offsets**2)
    within = np.tensordot(weights, covariances, 1) if covariance == "full" else covariances
    return within + (weights * offsets.T) @ offsets


def _frame(origin: np.ndarray, total: np.ndarray) -> _Frame:
    """Whiten by the Cholesky factor of the covariance (d, d) of the data, or for "diag" by its variances (d,)."""
    matrix = np.diag(total) if total.ndim == 1 else total
    ridge, identity = RIDGE * (np.trace(matrix) / len(matrix) or 1.0), np.eye(len(matrix))
    with threadpool_limits(1):
        leave = cholesky(matrix + ridge * identity)  # upper triangular
        enter = solve_triangular(leave, identity)
    shares = ridge * enter.T @ enter
    log_volume = float(np.log(np.diag(leave)).sum())
    return _Frame(origin, enter, leave, np.diag(shares) if total.ndim == 1 else shares, log_volume)


def _turn(frame: _Frame, weights: np.ndarray, covariances: np.ndarray) -> _Frame:
    """Turn the frame to the axes of the mean precision, largest first, given the covariances (K, d, d) of z.

    Along the first ones the components are narrow next to the data as a whole: they tell soonest which ones are far.
    """
    ridge = frame.leave.T @ frame.ridge @ frame.leave
    precision = np.tensordot(weights, np.linalg.inv(covariances + ridge), 1)  # of z
    precision = frame.leave @ precision @ frame.leave.T  # of x
    with threadpool_limits(1):
        axes = eigh(precision)[1][:, ::-1]
    return frame._replace(enter=frame.enter @ axes, leave=axes.T @ frame.leave, ridge=axes.T @ frame.ridge @ axes)


def _enter(z: np.ndarray, frame: _Frame) -> np.ndarray:
    x = np.empty(z.shape, np.float32)
    for i in range(0, len(z), BLOCK):
        x[i : i + BLOCK] = (z[i : i + BLOCK] - frame.origin) @ frame.enter
    return x


def _map(covariances: np.ndarray, matrix: np.ndarray, covariance: str) -> np.ndarray:
    """Return the covariances of x matrix, given those of x."""
    return covariances * np.diag(matrix) ** 2 if covariance == "diag" else matrix.T @ covariances @ matrix


def _maximize(
    x: np.ndarray, responsibilities: np.ndarray, covariance: str, ridge: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Do the M step: return the weights (K,), means (K, d) and covariances of the weighted samples."""
    responsibilities = np.where(responsibilities > 1e-8, responsibilities, 0)  # most are less: rows that need no sum
    sizes = responsibilities.sum(axis=0) + 10 * np.finfo(float).eps  # (K,), not zero where a component lost all
    weights, means = sizes / sizes.sum(), _weighted_sums(x, responsibilities) / sizes[:, None]
    if covariance == "full":
        scatters = [_scatter(x, *part) for part in zip(means, responsibilities.T, strict=True)]
        return weights, means, np.stack(scatters) / sizes[:, None, None] + ridge
    if covariance == "tied":  # in all, x has covariance 1 - ridge
        return weights, means, np.eye(len(ridge)) - (weights * means.T) @ means
    return weights, means, _weighted_sums(x, responsibilities, power=2) / sizes[:, None] - means**2 + ridge


def _weighted_sums(x: np.ndarray, responsibilities: np.ndarray, power: int = 1) -> np.ndarray:
    """Return the sums (K, d) of responsibility × x to a power, over the samples."""
    blocks = range(0, len(x), BLOCK)
    return sum(responsibilities[i : i + BLOCK].T @ x[i : i + BLOCK].astype(np.float64) ** power for i in blocks)


def _scatter(x: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sum (d, d) of weight × (x - mean) (x - mean)ᵀ over the samples."""
    rows = np.flatnonzero(weights)
    total = np.zeros((x.shape[1], x.shape[1]))
    for i in range(0, len(rows), BLOCK):
        gaps = x[rows[i : i + BLOCK]] - mean  # float64: a covariance may be nearly singular where that of all is not
        gaps *= np.sqrt(weights[rows[i : i + BLOCK], None])
        total += gaps.T @ gaps
    return total
