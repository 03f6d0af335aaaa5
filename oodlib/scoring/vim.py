"""ViM: the classifier's energy, and what of an embedding lies outside the subspace of the training embeddings."""

from collections.abc import Iterator
from functools import partial
from typing import Self

import numpy as np
from scipy.special import logsumexp

from oodlib.arrays import read_blocks, working_dtype
from oodlib.clustering.moments import mean_of, spectrum
from oodlib.scoring.classifier_scores import check_classifier, logits_of
from oodlib.scoring.detector import Detector

ORIGIN_CUT = 1e-6  # relative cut of the pseudo-inverse that gives the origin
LEAST_RESIDUAL = 1e-5  # of the largest principal deviation; below it a residual may be rounding


class ViMDetector(Detector):
    """Score by energy minus the scaled residual outside the principal subspace (ViM, Wang et al. 2022).

    weight (C, d), bias (C,): the linear classifier on the embeddings, arrays or tensors such as the parameters of a
    layer; without them the score is minus the residual alone, around the mean. n_components: dimension of the principal
    subspace, None takes half of d. alpha: false-alarm rate of the threshold.
    """

    def __init__(
        self,
        weight: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        n_components: int | None = None,
        alpha: float = 0.05,
    ):
        self.weight = weight
        self.bias = bias
        self.n_components = n_components
        self.alpha = alpha

    def fit(self, z: np.ndarray, y: np.ndarray | None = None, z_calibration: np.ndarray | None = None) -> Self:
        """Fit the principal subspace of z (n, d) around the classifier's origin and set the threshold; y is ignored.

        The threshold comes from z_calibration (m, d), which no training has seen, else from z. Raises ValueError when
        weight, bias and z do not fit each other, or n_components is not between 0 and d.
        """
        self.check_parameters()
        z = self._check(z, reset=True)
        n, d = z.shape
        if self.weight is None and self.bias is None:
            self.weight_, self.bias_ = np.zeros((1, d)), np.zeros(1)
        else:
            self.weight_, self.bias_ = check_classifier(self.weight, self.bias, d)
        kept = d // 2 if self.n_components is None else self.n_components
        if not 0 <= kept <= d:
            raise ValueError(f"n_components must be between 0 and d = {d}, got {kept}")
        nowhere = -np.linalg.pinv(self.weight_, rcond=ORIGIN_CUT) @ self.bias_  # where all logits are nearest to zero
        self.origin_ = mean_of(z) if self.weight is None else nowhere
        eigenvalues, vectors = spectrum(partial(self._centred, z), working_dtype(z), n, d)  # ascending
        self.residual_ = vectors[:, : d - kept].astype(working_dtype(z))
        residuals, largest, energies = self._measure(z)
        lengths = max(residuals.sum(), n * LEAST_RESIDUAL * np.sqrt(eigenvalues[-1]))
        self.scale_ = 1.0 if self.weight is None else largest.sum() / lengths if lengths > 0 else 0.0
        held_out = z_calibration is not None
        scores = self._score(self._check(z_calibration))[0] if held_out else energies - self.scale_ * residuals
        self._set_threshold(scores, held_out)
        return self

    def layout(self) -> dict[str, str]:
        classifier = {"weight_": "float64 c d", "bias_": "float64 c"}
        subspace = {"origin_": "float64 d", "residual_": "float d r", "scale_": "float64"}
        return super().layout() | classifier | subspace

    def _centred(self, z: np.ndarray, dtype: type) -> Iterator[np.ndarray]:
        origin = self.origin_.astype(dtype)
        for _, block in read_blocks(z):
            yield block.astype(dtype, copy=False) - origin

    def _measure(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the residual, the largest logit and the energy, each (n,) float64; no classifier has energy 0."""
        residuals, largest, energies = np.empty((3, len(z)))
        for (part, block), x in zip(read_blocks(z), self._centred(z, self.residual_.dtype), strict=True):
            residuals[part] = np.linalg.norm(x @ self.residual_, axis=1)
            logits = logits_of(block, self.weight_, self.bias_)
            largest[part], energies[part] = logits.max(axis=1), logsumexp(logits, axis=1)
        return residuals, largest, energies

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        residuals, _, energies = self._measure(z)
        return energies - self.scale_ * residuals, np.zeros(len(z), dtype=np.int64)
