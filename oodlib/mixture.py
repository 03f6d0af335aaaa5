"""Gaussian mixtures: embeddings (n, d) in; weights, means, covariances and natural log densities out.

Expectation maximisation (Dempster, Laird and Rubin 1977) from k-means clusters. It runs in coordinates x in which the
data is white: the likelihood is the same up to a constant, and there float32 is enough for the large products of the E
step even where covariances are nearly singular. Sums over samples and factorisations are float64.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.blas import strmm

from oodlib.kmeans import check_matrix, kmeans

COVARIANCES = ("full", "tied", "diag")
BLOCK = 4096  # rows at a time
N_INIT = 4  # starts of k-means, from where EM goes on
RIDGE = 1e-6  # added to every variance, in units of the mean variance of the data


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture: float64 arrays in the units of the embeddings.

    log_likelihood is the mean natural log density of the samples it was fitted to, bic their Bayesian information
    criterion (Schwarz 1978; smaller is better).
    """

    covariance: str
    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K, d)
    covariances: np.ndarray  # full (K, d, d), tied (d, d), diag (K, d)
    log_likelihood: float
    bic: float
    n_iterations: int
    converged: bool

    def log_joint(self, z: np.ndarray) -> np.ndarray:
        """Return log(weight × density), (n, K) float64, of every component at z (n, d).

        Raises ValueError for another width than the mixture's and as `check_matrix`.
        """
        z = check_matrix("z", z)
        if z.shape[1] != self.means.shape[1]:
            raise ValueError(f"z must have the width of the mixture, {self.means.shape[1]}, got {z.shape[1]}")
        origin = self.weights @ self.means
        offsets = self.means - origin
        frame = _frame(origin, _total(self.weights, offsets, self.covariances, self.covariance))
        covariances = _map(self.covariances, frame.enter, self.covariance)
        x = _enter(z, frame)
        return _log_joint(x, self.weights, offsets @ frame.enter, covariances, self.covariance) - frame.log_volume

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Return the natural log density (n,) float64 at z (n, d); higher is more normal. Raises as `log_joint`."""
        return _log_sum(self.log_joint(z))


class _Frame(NamedTuple):
    """Coordinates x = (z - origin) enter, in which the data has covariance diag(1 - ridge)."""

    origin: np.ndarray  # (d,)
    enter: np.ndarray  # (d, d), diagonal for "diag"
    leave: np.ndarray  # (d, d), its inverse
    ridge: np.ndarray  # (d,), what is added to the variances of x
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
    assignments = kmeans(z, n_components, n_init=N_INIT, seed=seed)[0]
    frame = _frame(*_moments(z, covariance))
    x = _enter(z, frame)  # (n, d) float32
    responsibilities = np.eye(n_components)[assignments]  # (n, K)
    mean_density, converged, n_iterations = -np.inf, False, 0
    while not converged and n_iterations < max_iterations:
        weights, means, covariances = _maximize(x, responsibilities, covariance, frame.ridge)
        log_joint = _log_joint(x, weights, means, covariances, covariance)  # (n, K)
        log_densities = _log_sum(log_joint)  # (n,)
        responsibilities = np.exp(log_joint - log_densities[:, None])
        before, mean_density = mean_density, float(log_densities.mean())
        converged, n_iterations = abs(mean_density - before) < tolerance, n_iterations + 1
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


def _moments(z: np.ndarray, covariance: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (d,) and the covariance (d, d) of z; for "diag" the variances (d,)."""
    mean = z.mean(axis=0, dtype=np.float64)
    blocks = (z[i : i + BLOCK] - mean for i in range(0, len(z), BLOCK))
    scatters = ((block**2).sum(axis=0) if covariance == "diag" else block.T @ block for block in blocks)
    return mean, sum(scatters) / len(z)


def _total(weights: np.ndarray, offsets: np.ndarray, covariances: np.ndarray, covariance: str) -> np.ndarray:
    """Return the covariance (d, d), for "diag" the variances (d,), of the mixture as a whole; offsets: means (K, d)."""
    if covariance == "diag":
        return weights @ (covariances + offsets**2)
    within = np.tensordot(weights, covariances, 1) if covariance == "full" else covariances
    return within + (weights * offsets.T) @ offsets


def _frame(origin: np.ndarray, total: np.ndarray) -> _Frame:
    if total.ndim == 1:
        variances, axes = total, np.eye(len(total))
    else:
        variances, axes = np.linalg.eigh(total)
        variances = np.maximum(variances, 0)
    ridge = RIDGE * (variances.mean() or 1.0)
    deviations = np.sqrt(variances + ridge)
    log_volume = float(np.log(deviations).sum())
    return _Frame(origin, axes / deviations, (axes * deviations).T, ridge / deviations**2, log_volume)


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
        scatters = np.stack([_scatter(x, column) for column in responsibilities.T])
        between = means[:, :, None] * means[:, None, :]
        return weights, means, scatters / sizes[:, None, None] - between + np.diag(ridge)
    if covariance == "tied":  # in all, x has covariance 1 - ridge along every axis
        return weights, means, np.eye(len(ridge)) - (weights * means.T) @ means
    return weights, means, _weighted_sums(x, responsibilities, power=2) / sizes[:, None] - means**2 + ridge


def _weighted_sums(x: np.ndarray, responsibilities: np.ndarray, power: int = 1) -> np.ndarray:
    """Return the sums (K, d) of responsibility × x to a power, over the samples."""
    blocks = range(0, len(x), BLOCK)
    return sum(responsibilities[i : i + BLOCK].T @ x[i : i + BLOCK].astype(np.float64) ** power for i in blocks)


def _scatter(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sum (d, d) of weight × x xᵀ over the samples."""
    rows = np.flatnonzero(weights)
    total = np.zeros((x.shape[1], x.shape[1]))
    for i in range(0, len(rows), BLOCK):
        block = x[rows[i : i + BLOCK]] * np.sqrt(weights[rows[i : i + BLOCK], None])  # float64
        total += block.T @ block
    return total


def _log_joint(
    x: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, covariance: str
) -> np.ndarray:
    """Return log(weight × density) (n, K) float64 of x (n, d) float32, the E step before it is normalised."""
    if covariance == "diag":
        factors = 1 / np.sqrt(covariances)  # (K, d)
        log_determinants = np.log(factors).sum(axis=1)
    else:
        factors = _precision_factors(covariances)
        log_determinants = np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)
    peaks = np.log(weights) + log_determinants - x.shape[1] / 2 * np.log(2 * np.pi)  # (K,) the values at the means
    squared_distances = {"full": _distances_full, "tied": _distances_tied, "diag": _distances_diag}[covariance]
    blocks = (x[i : i + BLOCK] for i in range(0, len(x), BLOCK))
    return np.concatenate([peaks - squared_distances(block, means, factors) / 2 for block in blocks])


def _precision_factors(covariances: np.ndarray) -> np.ndarray:
    """Return upper triangular P with P Pᵀ the inverse of each covariance, (K, d, d) or (d, d)."""
    lower, identity = np.linalg.cholesky(covariances), np.eye(covariances.shape[-1])
    inverses = [solve_triangular(matrix, identity, lower=True) for matrix in lower.reshape(-1, *identity.shape)]
    return np.stack([inverse.T for inverse in inverses]).reshape(covariances.shape)


def _distances_full(x: np.ndarray, means: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return squared Mahalanobis distances (n, K)."""
    distances = np.empty((len(x), len(means)))
    for k, (mean, factor) in enumerate(zip(means.astype(np.float32), factors.astype(np.float32), strict=True)):
        gaps = x - mean  # (n, d)
        whitened = strmm(1.0, factor.T, gaps.T, lower=1, overwrite_b=1)  # (d, n), at half the work of a full product
        distances[:, k] = np.einsum("dn,dn->n", whitened, whitened)
    return distances


def _distances_tied(x: np.ndarray, means: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return _distances_diag(x @ factor.astype(np.float32), means @ factor, np.ones_like(means))


def _distances_diag(x: np.ndarray, means: np.ndarray, factors: np.ndarray) -> np.ndarray:
    x, precisions = x.astype(np.float64), factors**2  # float64: large terms nearly cancel
    return x**2 @ precisions.T - 2 * x @ (means * precisions).T + (means**2 * precisions).sum(axis=1)


def _log_sum(log_joint: np.ndarray) -> np.ndarray:
    """Return the log of the sum (n,) of exp(log_joint) over the components."""
    largest = log_joint.max(axis=1)
    return largest + np.log(np.exp(log_joint - largest[:, None]).sum(axis=1))
