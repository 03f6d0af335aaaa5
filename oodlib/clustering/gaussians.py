"""Weighted Gaussians: their log densities, and coordinates in which they are white.

In white coordinates x = (z - origin) enter the likelihood is the same up to a constant, and float32 is enough for large
products even where covariances are nearly singular.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from threadpoolctl import threadpool_limits

from oodlib.arrays import check_matrix, slices
from oodlib.clustering import e_step as expectation

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
        joint = expectation.log_joint(enter_frame(z, frame), self.weights, means, covariances, self.covariance)
        return joint - frame.log_volume

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Return the natural log density (n,) float64 at z (n, d); higher is more normal. Raises as `log_joint`."""
        return expectation.log_sum(self.log_joint(z))

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
            factors = expectation.precision_factors(covariances)
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
