"""KNN: the distance to the k-th nearest training embedding as a score."""

from typing import Self

import numpy as np

from oodlib.arrays import UnitRows, sample_rows
from oodlib.scoring.detector import Detector
from oodlib.scoring.neighbors import NeighborIndex


class KNNDetector(Detector):
    """Score an image by minus the distance to its k-th nearest training embedding, at unit norm (Sun et al. 2022).

    n_neighbors: k, smaller than the number of training embeddings. alpha: false-alarm rate of the threshold.
    """

    def __init__(self, n_neighbors: int = 50, alpha: float = 0.05):
        self.n_neighbors = n_neighbors
        self.alpha = alpha

    def fit(self, z: np.ndarray, y: np.ndarray | None = None, z_calibration: np.ndarray | None = None) -> Self:
        """Keep the training embeddings z (n, d) and set the threshold; y is ignored.

        The threshold comes from z_calibration (m, d), which no training has seen, else from the training embeddings
        themselves, a seeded sample of them where they are many. Raises ValueError for NaN, alpha outside (0, 1) and
        n < k + 1.
        """
        self.check_parameters()
        z = self._check(z, reset=True)
        self.embeddings_ = UnitRows(z)
        if z_calibration is not None:
            self._set_threshold(self._score(self._check(z_calibration))[0], True, np.float32)
            return self
        # a training embedding is its own nearest neighbour, which a new one is not
        self._set_threshold(self._kth(z[sample_rows(len(z))], self.n_neighbors + 1), False, np.float32)
        return self

    @property
    def embeddings_(self) -> np.ndarray:
        """The training embeddings (n, d) float32 at unit norm; read from where they are, if there are too many."""
        return np.asarray(self.index_.reference[:], dtype=np.float32)

    @embeddings_.setter
    def embeddings_(self, rows: UnitRows | np.ndarray) -> None:
        if not 1 <= self.n_neighbors < len(rows):
            raise ValueError(f"n_neighbors must be between 1 and n - 1 = {len(rows) - 1}, got {self.n_neighbors}")
        self.index_ = NeighborIndex(rows)

    def layout(self) -> dict[str, str]:
        return super().layout() | {"embeddings_": "float32 n d"}

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._kth(z, self.n_neighbors), np.zeros(len(z), dtype=np.int64)

    def _kth(self, z: np.ndarray, k: int) -> np.ndarray:
        return -self.index_.kneighbors(UnitRows(z), k)[0][:, -1].astype(np.float64)
