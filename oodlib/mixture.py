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
RIDGE = 1e-6  # added to every variance, in units of the mean variance of the data
NEGLIGIBLE = 37.0  # nats: below e^-37 < 1e-16 of the most likely component, one is not plausible
N_INIT = 4  # starts of k-means, from where EM goes on
REFRESH = 5  # EM iterations from one look at all components to the next


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

        -inf where it is less than 1e-16 of another component's. Raises ValueError for another width than the mixture's
        and as `check_matrix`.
        """
        z = check_matrix("z", z)
        if z.shape[1] != self.means.shape[1]:
            raise ValueError(f"z must have the width of the mixture, {self.means.shape[1]}, got {z.shape[1]}")
        origin = self.weights @ self.means
        offsets = self.means - origin
        frame = _frame(origin, _total(self.weights, offsets, self.covariances, self.covariance))
        covariances = _map(self.covariances, frame.enter, self.covariance)
        components = _components(self.weights, offsets @ frame.enter, covariances, self.covariance)
        return _log_joint(_enter(z, frame), components, self.covariance) - frame.log_volume

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Return the natural log density (n,) float64 at z (n, d); higher is more normal. Raises as `log_joint`."""
        return _log_sum(self.log_joint(z))


class _Frame(NamedTuple):
    """Coordinates x = (z - origin) enter, in which the data has covariance diag(1 - ridge)."""

    origin: np.ndarray  # (d,)
    enter: np.ndarray  # (d, d), the first column along the largest variance; diagonal for "diag"
    leave: np.ndarray  # (d, d) its inverse
    ridge: np.ndarray  # (d,) what RIDGE is in these coordinates
    log_volume: float  # log density of x minus log density of z


class _Components(NamedTuple):
    """What the E step needs."""

    offsets: np.ndarray  # (K,) log(weight × density at the mean)
    means: np.ndarray  # (K, d)
    factors: np.ndarray  # P with P Pᵀ the inverse covariance: upper triangular (K, d, d) or (d, d), diagonal (K, d)


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
    Raises ValueError for another covariance and as `kmeans`.
    """
    if covariance not in COVARIANCES:
        raise ValueError(f"unknown covariance {covariance!r}; known: {', '.join(COVARIANCES)}")
    z = check_matrix("z", z)
    assignments = kmeans(z, n_components, n_init=N_INIT, seed=seed)[0]
    frame = _frame(*_moments(z, covariance))
    x = _enter(z, frame)  # (n, d) float32
    responsibilities = np.eye(n_components)[assignments]  # (n, K)
    plausible, gain, log_likelihood, converged = None, np.inf, -np.inf, False
    for iteration in range(1, max_iterations + 1):  # noqa: B007
        weights, means, covariances = _maximize(x, responsibilities, covariance, frame.ridge)
        components = _components(weights, means, covariances, covariance)
        complete = iteration % REFRESH == 1 or gain < tolerance or iteration == max_iterations
        log_joint = _log_joint(x, components, covariance, None if complete else plausible)  # (n, K)
        log_densities = _log_sum(log_joint)  # (n,)
        gain, log_likelihood = abs(log_densities.mean() - log_likelihood), log_densities.mean()
        if converged := complete and gain < tolerance:
            break
        responsibilities = np.exp(log_joint - log_densities[:, None])
        if complete:
            plausible = log_joint > log_joint.max(axis=1, keepdims=True) - NEGLIGIBLE
    log_likelihood = float(log_likelihood - frame.log_volume)
    return Mixture(
        covariance=covariance,
        weights=weights,
        means=means @ frame.leave + frame.origin,
        covariances=_map(covariances, frame.leave, covariance),
        log_likelihood=log_likelihood,
        bic=_n_parameters(means, covariance) * np.log(len(z)) - 2 * len(z) * log_likelihood,
        n_iterations=iteration,
        converged=bool(converged),
    )


def _n_parameters(means: np.ndarray, covariance: str) -> int:
    k, d = means.shape
    return k - 1 + k * d + {"full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2, "diag": k * d}[covariance]


def _moments(z: np.ndarray, covariance: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (d,) and the covariance (d, d) of z; for "diag" the variances (d,)."""
    mean = z.mean(axis=0, dtype=np.float64)
    blocks = (z[i : i + BLOCK] - mean for i in range(0, len(z), BLOCK))
    scatters = ((block**2).sum(axis=0) if covariance == "diag" else block.T @ block for block in blocks)
    return mean, sum(scatters) / len(z)


def _total(weights: np.ndarray, offsets: np.ndarray, covariances: np.ndarray, covariance: str) -> np.ndarray:
    """Return the covariance (d, d), for "diag" the variances (d,), of a whole mixture with means (K, d) `offsets`."""
    if covariance == "diag":
        return weights @ (covariances + offsets**2)
    within = np.tensordot(weights, covariances, 1) if covariance == "full" else covariances
    return within + (weights * offsets.T) @ offsets


def _frame(origin: np.ndarray, total: np.ndarray) -> _Frame:
    if total.ndim == 1:
        variances, axes = total, np.eye(len(total))
    else:
        variances, axes = np.linalg.eigh(total)
        variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
    ridge = RIDGE * (variances.mean() or 1.0)
    deviations = np.sqrt(variances + ridge)
    return _Frame(origin, axes / deviations, (axes * deviations).T, ridge / deviations**2, np.log(deviations).sum())


def _enter(z: np.ndarray, frame: _Frame) -> np.ndarray:
    x = np.empty(z.shape, np.float32)
    for i in range(0, len(z), BLOCK):
        x[i : i + BLOCK] = (z[i : i + BLOCK] - frame.origin) @ frame.enter
    return x


def _map(covariances: np.ndarray, matrix: np.ndarray, covariance: str) -> np.ndarray:
    """Return the covariances of x matrix from those of x."""
    return covariances * np.diag(matrix) ** 2 if covariance == "diag" else matrix.T @ covariances @ matrix


def _maximize(
    x: np.ndarray, responsibilities: np.ndarray, covariance: str, ridge: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Do the M step: return the weights (K,), means (K, d) and covariances of the weighted samples."""
    responsibilities = np.where(responsibilities > 1e-8, responsibilities, 0)  # fewer rows in every sum
    sizes = responsibilities.sum(axis=0) + 10 * np.finfo(float).eps  # (K,) not zero if a component has lost everything
    means = _weighted_sums(x, responsibilities) / sizes[:, None]
    weights = sizes / sizes.sum()
    if covariance == "full":
        covariances = np.stack([_scatter(x, r) for r in responsibilities.T]) / sizes[:, None, None]
        return weights, means, covariances - means[:, :, None] * means[:, None, :] + np.diag(ridge)
    if covariance == "tied":  # of all data, 1 - ridge along every coordinate, less that of the means
        return weights, means, np.eye(len(ridge)) - (weights * means.T) @ means
    return weights, means, _weighted_sums(x, responsibilities, power=2) / sizes[:, None] - means**2 + ridge


def _weighted_sums(x: np.ndarray, responsibilities: np.ndarray, power: int = 1) -> np.ndarray:
    blocks = range(0, len(x), BLOCK)
    return sum(responsibilities[i : i + BLOCK].T @ x[i : i + BLOCK].astype(np.float64) ** power for i in blocks)


def _scatter(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sum (d, d) of weight × x xᵀ."""
    rows = np.flatnonzero(weights)
    total = np.zeros((x.shape[1], x.shape[1]))
    for i in range(0, len(rows), BLOCK):
        block = x[rows[i : i + BLOCK]] * np.sqrt(weights[rows[i : i + BLOCK], None])  # float64
        total += block.T @ block
    return total


def _components(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, covariance: str) -> _Components:
    if covariance == "diag":
        factors = 1 / np.sqrt(covariances)
        log_dets = np.log(factors).sum(axis=1)  # (K,)
    else:
        lower, identity = np.linalg.cholesky(covariances), np.eye(means.shape[1])
        inverses = [solve_triangular(part, identity, lower=True).T for part in lower.reshape(-1, *identity.shape)]
        factors = np.reshape(inverses, lower.shape)
        log_dets = np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)
    offsets = np.log(weights) + log_dets - means.shape[1] / 2 * np.log(2 * np.pi)
    return _Components(offsets, means, factors)


def _log_joint(
    x: np.ndarray, components: _Components, covariance: str, plausible: np.ndarray | None = None
) -> np.ndarray:
    """Return log(weight × density) (n, K) of x (n, d) float32; full covariances: -inf where not `plausible` (n, K)."""
    if covariance == "full":
        every = np.ones((len(x), len(components.means)), bool)
        return _log_joint_full(x, components, every if plausible is None else plausible)
    offsets, means, factors = components
    if covariance == "tied":
        means, precisions = means @ factors, np.ones_like(means)
        factors = factors.astype(np.float32)
    else:
        precisions = factors**2  # (K, d)
    log_joint = np.empty((len(x), len(means)))
    for i in range(0, len(x), BLOCK):
        block = x[i : i + BLOCK] @ factors if covariance == "tied" else x[i : i + BLOCK]
        block = block.astype(np.float64)  # the squares below nearly cancel
        distances = block**2 @ precisions.T - 2 * block @ (means * precisions).T + (means**2 * precisions).sum(axis=1)
        log_joint[i : i + BLOCK] = offsets - distances / 2
    return log_joint


def _log_joint_full(x: np.ndarray, components: _Components, plausible: np.ndarray) -> np.ndarray:
    offsets, means, factors = components
    means, factors = means.astype(np.float32), factors.astype(np.float32)
    log_joint = np.full(plausible.shape, -np.inf)
    for k, offset in enumerate(offsets):
        rows = np.flatnonzero(plausible[:, k])
        for i in range(0, len(rows), BLOCK):
            some = rows[i : i + BLOCK]
            gaps = x[some] - means[k]  # (b, d)
            whitened = strmm(1.0, factors[k].T, gaps.T, lower=1)  # (d, b): a triangular product is half a full one
            log_joint[some, k] = offset - np.einsum("db,db->b", whitened, whitened) / 2
    return log_joint


def _log_sum(log_joint: np.ndarray) -> np.ndarray:
    """Return the log of the sum (n,) of exp(log_joint) over the components."""
    largest = log_joint.max(axis=1)
    return largest + np.log(np.exp(log_joint - largest[:, None]).sum(axis=1))
