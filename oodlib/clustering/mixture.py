"""Gaussian mixtures fitted to embeddings.

Expectation maximisation (Dempster, Laird and Rubin 1977) from k-means clusters. It runs in coordinates x in which the
data is white: the likelihood is the same up to a constant, and there float32 is enough for the large products of the E
step even where covariances are nearly singular. Sums over samples and factorisations are float64.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from oodlib.arrays import check_matrix, slices
from oodlib.clustering import gaussians
from oodlib.clustering.gaussians import Frame, Gaussians, enter_frame, frame_of, map_covariances, total_covariance
from oodlib.clustering.kmeans import assign, check_n_clusters, count_distinct, kmeans

COVARIANCES = ("full", "tied", "diag")
SAMPLE = 5000  # rows that k-means sees, from where EM goes on with all; at least 100 a component
N_INIT = 4  # starts of k-means
NEGLIGIBLE = 40.0  # nats: float64 loses what is added to e^40 times as much


@dataclass(frozen=True)
class Mixture(Gaussians):
    """A Gaussian mixture that was fitted.

    log_likelihood is the mean natural log density of the samples it was fitted to, bic their Bayesian information
    criterion (Schwarz 1978; smaller is better).
    """

    log_likelihood: float
    bic: float


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
    x = enter_frame(z, frame)  # (n, d) float32
    mean_density = -np.inf
    for iteration in range(max_iterations):
        values = gaussians.log_joint(x, weights, means, covariances, covariance, margin=NEGLIGIBLE)  # (n, K)
        log_densities = gaussians.log_sum(values)  # (n,)
        before, mean_density = mean_density, float(log_densities.mean())
        if abs(mean_density - before) < tolerance or iteration == max_iterations - 1:
            break
        responsibilities = np.exp(values - log_densities[:, None])
        weights, means, covariances = _maximize(x, responsibilities, covariance, frame.ridge)
    log_likelihood = mean_density - frame.log_volume
    return Mixture(
        covariance=covariance,
        weights=weights,
        means=means @ frame.leave + frame.origin,
        covariances=map_covariances(covariances, frame.leave, covariance),
        log_likelihood=log_likelihood,
        bic=_n_parameters(covariance, *means.shape) * float(np.log(len(z))) - 2 * len(z) * log_likelihood,
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


def _start(z: np.ndarray, assignments: np.ndarray, covariance: str) -> tuple[Frame, np.ndarray, np.ndarray, np.ndarray]:
    """Return a frame for z and, in its coordinates, the weights, means and covariances of the clusters."""
    weights, means, covariances = _moments(z, assignments, covariance)
    origin = weights @ means
    frame = frame_of(origin, total_covariance(weights, means - origin, covariances, covariance))
    if covariance == "full":
        frame = _turn(frame, weights, covariances)
    inside = map_covariances(covariances, frame.enter, covariance) + frame.ridge
    return frame, weights, (means - origin) @ frame.enter, inside


def _moments(z: np.ndarray, assignments: np.ndarray, covariance: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the weights (K,), means (K, d) and covariances of the clusters, with no ridge, all in float64."""
    sizes, means, scatters = np.bincount(assignments), [], []
    for k in range(len(sizes)):
        rows = np.flatnonzero(assignments == k)
        blocks = [rows[part] for part in slices(len(rows))]
        mean = sum(z[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
        gaps = (z[block] - mean for block in blocks)  # (b, d) each
        scatters.append(sum((part**2).sum(axis=0) if covariance == "diag" else part.T @ part for part in gaps))
        means.append(mean)
    if covariance == "tied":
        return sizes / len(z), np.stack(means), sum(scatters) / len(z)
    return sizes / len(z), np.stack(means), np.stack([a / size for a, size in zip(scatters, sizes, strict=True)])


def _turn(frame: Frame, weights: np.ndarray, covariances: np.ndarray) -> Frame:
    """Turn the frame to the axes of the mean precision, largest first, given the covariances (K, d, d) of z.

    Along the first ones the components are narrow next to the data as a whole: they tell soonest which ones are far.
    """
    ridge = frame.leave.T @ frame.ridge @ frame.leave
    precision = np.tensordot(weights, np.linalg.inv(covariances + ridge), 1)  # of z
    precision = frame.leave @ precision @ frame.leave.T  # of x
    with threadpool_limits(1):
        axes = eigh(precision)[1][:, ::-1]
    return frame._replace(enter=frame.enter @ axes, leave=axes.T @ frame.leave, ridge=axes.T @ frame.ridge @ axes)


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
    parts = slices(len(x))
    return sum(responsibilities[part].T @ x[part].astype(np.float64) ** power for part in parts)


def _scatter(x: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sum (d, d) of weight × (x - mean) (x - mean)ᵀ over the samples."""
    rows = np.flatnonzero(weights)
    total = np.zeros((x.shape[1], x.shape[1]))
    for part in slices(len(rows)):
        # float64: a covariance may be nearly singular where that of all is not
        gaps = x[rows[part]] - mean
        gaps *= np.sqrt(weights[rows[part], None])
        total += gaps.T @ gaps
    return total
