"""Moments: embeddings and their cluster assignments in; means, covariances and whitenings, in float64, out."""

from functools import cached_property

import numpy as np

from oodlib.blocks import read_blocks


class Moments:
    """Means and covariances of embeddings z (n, d) in K clusters, assignments (n,) in 0 … K - 1; found when asked for.

    weights (K,) are the shares of the clusters, origin (d,) the mean of all, means (K, d) relative to the origin.
    Raises ValueError for an empty cluster.
    """

    def __init__(self, z: np.ndarray, assignments: np.ndarray, n_clusters: int):
        self.z, self.assignments = z, assignments
        means = cluster_means(z, assignments, n_clusters)
        self.weights = np.bincount(assignments, minlength=n_clusters) / len(z)
        self.origin = self.weights @ means
        self.means = means - self.origin

    @cached_property
    def whiten(self) -> np.ndarray:
        """W (d, r) with W Wᵀ the pseudo-inverse of the covariance within clusters, one for all."""
        return whitening(*self._within)

    @cached_property
    def whiten_total(self) -> np.ndarray:
        """The same for the covariance of all embeddings."""
        within, resolution = self._within
        return whitening(within + (self.weights * self.means.T) @ self.means, resolution)

    @cached_property
    def _within(self) -> tuple[np.ndarray, float]:
        """Covariance within clusters (d, d), and the variance that rounding of the input can make."""
        scatter, largest = np.zeros((self.z.shape[1],) * 2), 0.0
        means = self.means + self.origin
        for part, block in read_blocks(self.z):
            largest = max(largest, float(np.abs(block).max()))
            centred = block - means[self.assignments[part]]  # float64
            scatter += centred.T @ centred
        return scatter / len(self.z), float(np.finfo(self.z.dtype).eps * largest) ** 2


def cluster_means(z: np.ndarray, assignments: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the float64 mean (K, d) of every cluster's rows of z (n, d). Raises ValueError for an empty cluster."""
    counts = np.bincount(assignments, minlength=n_clusters)
    if not counts.all():
        raise ValueError(f"cluster {int(counts.argmin())} of {n_clusters} is empty")
    sums = np.zeros((n_clusters, z.shape[1]))
    for part, block in read_blocks(z):
        order = np.argsort(assignments[part], kind="stable")
        present, first = np.unique(assignments[part][order], return_index=True)
        sums[present] += np.add.reduceat(block[order], first, axis=0, dtype=np.float64)
    return sums / counts[:, None]


def mean_of(z: np.ndarray) -> np.ndarray:
    """Return the float64 mean (d,) of z (n, d)."""
    return sum(block.sum(axis=0, dtype=np.float64) for _, block in read_blocks(z)) / len(z)


def scatter_around(z: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Return the float64 sum (d, d) of (z - origin)(z - origin)ᵀ over the rows of z (n, d); origin (d,) float64."""
    scatter = np.zeros((z.shape[1],) * 2)
    for _, block in read_blocks(z):
        centred = block - origin  # float64
        scatter += centred.T @ centred
    return scatter


def whitening(covariance: np.ndarray, resolution: float = 0.0) -> np.ndarray:
    """Return W (d, r), float64, with W Wᵀ the pseudo-inverse of a covariance (d, d).

    Eigenvalues below 1e-10 of the largest count as zero, and so do those below `resolution`: variance that rounding
    of the input alone would make. Raises ValueError when nothing is left.
    """
    eigenvalues, vectors = np.linalg.eigh(covariance)
    kept = eigenvalues > max(1e-10 * eigenvalues[-1], resolution)
    if not kept.any():
        about = f"n_features = {len(covariance)}"
        raise ValueError(f"embeddings do not vary within clusters ({about}), so Mahalanobis distances are not defined")
    return vectors[:, kept] / np.sqrt(eigenvalues[kept])
