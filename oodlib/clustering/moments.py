"""Moments of embeddings in clusters: means, covariances, and the whitenings that these give.

Means are summed in float64. Covariances are sums of float32 products of blocks, which is twice as fast, unless
directions differ so much in variance that float32 would blur the smallest: then the products are float64, too.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from oodlib.arrays import UnitRows, read_blocks, working_dtype

USUAL = (1e-24, 1e24)  # variances in whose products float32 neither overflows nor loses digits
BLURRED = 1e-4  # of the largest variance; smaller ones take products in float64, since float32 errs by 1e-7 of it


class Moments:
    """Means and covariances of embeddings z (n, d) in K clusters, assignments (n,) in 0 … K - 1; found when asked for.

    unit: of the embeddings at unit norm. weights (K,) are the shares of the clusters, origin (d,) the mean of all,
    means (K, d) relative to the origin, dtype that of large products. Raises ValueError for an empty cluster.
    """

    def __init__(self, z: np.ndarray, assignments: np.ndarray, n_clusters: int, unit: bool = False):
        self.z, self.assignments = UnitRows(z) if unit else z, assignments
        self.unit, self.dtype, self.eps = unit, working_dtype(z), np.finfo(z.dtype).eps
        means = cluster_means(self.z, assignments, n_clusters)
        self.weights = np.bincount(assignments, minlength=n_clusters) / len(z)
        self.origin = self.weights @ means
        self.means = means - self.origin

    @cached_property
    def whiten(self) -> np.ndarray:
        """W (d, r) with W Wᵀ the pseudo-inverse of the covariance within clusters, one for all.

        Directions whose variance rounding of the embeddings alone would make are left out.
        """
        return self._whitening(*self._spectrum)

    @cached_property
    def whiten_total(self) -> np.ndarray:
        """The same for the covariance of all embeddings."""
        eigenvalues, vectors = self._spectrum
        if len(self.z) < len(vectors):
            within = (vectors * np.sqrt(eigenvalues)).T[eigenvalues > 0]
            return self._whitening(*_spectrum_of_few(np.vstack([within, np.sqrt(self.weights)[:, None] * self.means])))
        within = (vectors * eigenvalues) @ vectors.T
        return self._whitening(*np.linalg.eigh(within + (self.weights * self.means.T) @ self.means))

    @cached_property
    def whiten_shrunk(self) -> np.ndarray:
        """W (d, d) with W Wᵀ the inverse of the covariance within clusters, shrunk as Ledoit and Wolf (2004) say.

        It is drawn towards the mean variance in every direction, as far as the variances of n embeddings differ by
        chance, so that directions in which they do not vary have a variance, too.
        """
        eigenvalues, vectors = self._spectrum
        squares, mean = (eigenvalues**2).sum(), eigenvalues.mean()
        spread = squares - len(eigenvalues) * mean**2
        fourth_powers = sum(float((np.einsum("nd,nd->n", x, x) ** 2).sum()) for x in self._centred(np.float64))
        chance = (fourth_powers / len(self.z) - squares) / len(self.z)
        amount = min(chance / spread, 1) if spread > 0 else 0
        return whitening((1 - amount) * eigenvalues + amount * mean, vectors)

    @cached_property
    def _spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        return spectrum(self._centred, self.dtype, *self.z.shape)

    def _centred(self, dtype: type) -> Iterator[np.ndarray]:
        """Yield blocks (b, d) of the embeddings relative to the means of their clusters."""
        means = (self.means + self.origin).astype(np.result_type(working_dtype(self.z), dtype))
        for part, block in read_blocks(self.z):
            yield (block - means[self.assignments[part]]).astype(dtype, copy=False)

    @cached_property
    def _largest(self) -> float:
        return max(max(float(block.max()), -float(block.min())) for _, block in read_blocks(self.z))

    def _whitening(self, eigenvalues: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Return the whitening without the directions in which rounding of the embeddings can make the variance."""
        shares = np.ones(len(vectors))  # of the variance that rounding makes, along each vector
        if self.unit:  # all but along the embeddings themselves, whose length is one
            along = self.weights @ ((self.means + self.origin) @ vectors) ** 2 + eigenvalues
            shares = np.maximum(1 - along, 0)
        return whitening(eigenvalues, vectors, shares * (self.eps * self._largest) ** 2)


def cluster_means(z: np.ndarray, assignments: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the float64 mean (K, d) of every cluster's rows of z (n, d). Raises ValueError for an empty cluster."""
    counts = np.bincount(assignments, minlength=n_clusters)
    if not counts.all():
        raise ValueError(f"cluster {int(counts.argmin())} of {n_clusters} is empty")
    sums = np.zeros((n_clusters, z.shape[1]))
    for part, block in read_blocks(z):
        members = csr_array(
            (np.ones(len(block)), assignments[part], np.arange(len(block) + 1)), (len(block), n_clusters)
        )
        sums += members.T @ block
    return sums / counts[:, None]


def mean_of(z: np.ndarray) -> np.ndarray:
    """Return the float64 mean (d,) of z (n, d)."""
    return sum(block.sum(axis=0, dtype=np.float64) for _, block in read_blocks(z)) / len(z)


def spectrum(
    centred: Callable[[type], Iterator[np.ndarray]], dtype: type, n: int, d: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (d,), ascending and at least 0, and eigenvectors (d, d) of Σ x xᵀ / n, float64.

    centred(dtype) yields blocks (b, d) in all of the n rows x; they are asked for in this dtype, and in float64 where
    it is not enough.
    """
    if n < d:
        return _spectrum_of_few(np.concatenate([*centred(np.float64)]) / np.sqrt(n))
    for product in (dtype, np.float64):
        covariance = np.zeros((d, d))
        with np.errstate(over="ignore", invalid="ignore"):
            for x in centred(product):
                covariance += x.T @ x / n
        if product == np.float64 or USUAL[0] < covariance.trace() < USUAL[1]:
            eigenvalues, vectors = np.linalg.eigh(covariance)
            if product == np.float64 or eigenvalues[0] > BLURRED * eigenvalues[-1]:
                break
    return np.maximum(eigenvalues, 0), vectors


def _spectrum_of_few(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the spectrum of xᵀ x for fewer rows than columns, in a time that grows with the rows, not as d³."""
    _, values, vectors = np.linalg.svd(x, full_matrices=True)
    eigenvalues = np.zeros(x.shape[1])
    eigenvalues[: len(values)] = values**2
    return eigenvalues[::-1], vectors[::-1].T


def whitening(eigenvalues: np.ndarray, vectors: np.ndarray, least: np.ndarray | float = 0.0) -> np.ndarray:
    """Return W (d, r), float64, with W Wᵀ the pseudo-inverse of the covariance with this spectrum.

    Eigenvalues (d,), ascending, below 1e-10 of the largest count as zero, and so do those below `least`. Raises
    ValueError when nothing is left.
    """
    kept = eigenvalues > np.maximum(1e-10 * eigenvalues[-1], least)
    if not kept.any():
        about = f"n_features = {len(vectors)}"
        raise ValueError(f"embeddings do not vary within clusters ({about}), so Mahalanobis distances are not defined")
    return vectors[:, kept] / np.sqrt(eigenvalues[kept])
