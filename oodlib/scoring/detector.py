"""What all detectors share: checks of embeddings, scores, p-values, and decisions by a threshold.

They follow scikit-learn's outlier detectors: `fit`, `score_samples`, `decision_function` (below 0 means
out-of-distribution) and `predict` (+1 in-distribution, -1 out-of-distribution). Higher scores are more normal.
Embeddings and labels may be arrays or torch tensors; what comes out is an array.
"""

from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from oodlib.arrays import as_array, read_blocks
from oodlib.scoring.detector_file import save_detector
from oodlib.scoring.thresholds import conformal_p_values, conformal_threshold, warn_of_too_few

if TYPE_CHECKING:  # it brings torch and timm
    from oodlib.encoders.encoder import Encoder


class Detector(OutlierMixin, BaseEstimator):
    """A detector: `fit` sets reference_ (m,), the scores its threshold rests on, and offset_, the threshold.

    held_out_: whether these scores are of images that took no part in the fit: only then may new images be compared.
    encoder_: the fingerprint of the encoder whose embeddings it takes where `load_detector` found one, else "".
    class_names_: the names of the labels 0 … C - 1 that it was fitted with, where whoever fitted it has set them.
    """

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "reference_")  # set last, so a fit that failed half way is none

    def check_parameters(self) -> None:
        """Raise ValueError for a parameter that fits no embeddings."""
        check_alpha(self.alpha)

    def layout(self) -> dict[str, str]:
        """Return the dtype and shape of every array that a file holds of it, see `oodlib.scoring.detector_file`."""
        return {"reference_": "float64 m", "offset_": "float64"}

    def save(self, path: str | Path, encoder: "Encoder | str | None" = None) -> None:
        """Write the fitted detector to a file for `load_detector`, see `oodlib.scoring.detector_file.save_detector`."""
        save_detector(self, path, encoder)

    def _check(self, z: np.ndarray, reset: bool = False) -> np.ndarray:
        """Return z (n, d) as checked embeddings; half precision, as large files have, stays what and where it is."""
        z, least = as_array(z), 2 if reset else 1
        if reset:
            self.encoder_, self.class_names_, self.held_out_ = "", (), False
            vars(self).pop("reference_", None)
        if getattr(z, "dtype", None) != np.float16 or np.ndim(z) != 2:
            return validate_data(self, z, dtype=[np.float32, np.float64], reset=reset, ensure_min_samples=least)
        validate_data(self, z[:2], dtype=np.float32, reset=reset, ensure_min_samples=least)
        if not all(np.isfinite(block).all() for _, block in read_blocks(z)):
            raise ValueError("Input X contains NaN or infinity.")
        return z

    def _score(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores (n,) float64 of checked embeddings, and each one's nearest cluster (n,)."""
        raise NotImplementedError

    def _set_threshold(self, scores: np.ndarray, held_out: bool, dtype: type = np.float64) -> None:
        """Take the threshold from scores (m,) of in-distribution embeddings, perhaps held out, computed in dtype.

        Warns where too few are held out for a threshold.
        """
        self.held_out_ = held_out
        threshold = conformal_threshold(scores, self.alpha)
        if held_out:
            warn_of_too_few(np.array([len(scores)]), threshold, self.alpha)
        self.offset_ = below_rounding(threshold, scores, dtype)
        self.reference_ = np.sort(scores)

    def score_samples(self, z: np.ndarray) -> np.ndarray:
        """Return the normality (n,) float64 of embeddings z (n, d); higher is more normal.

        Raises ValueError for NaN, infinity or another width than fitted, NotFittedError before `fit`.
        """
        check_is_fitted(self)
        return self._score(self._check(z))[0]

    def decision_function(self, z: np.ndarray) -> np.ndarray:
        """Return score minus threshold (n,): below 0 means out-of-distribution."""
        check_is_fitted(self)
        scores, nearest = self._score(self._check(z))
        return scores - (self.offset_[nearest] if np.ndim(self.offset_) else self.offset_)

    def predict(self, z: np.ndarray) -> np.ndarray:
        """Return +1 (in-distribution) or -1 (out-of-distribution) for each row of z, (n,) int."""
        return np.where(self.decision_function(z) < 0, -1, 1)

    def fit_predict(self, z: np.ndarray, y: np.ndarray | None = None, **held_out) -> np.ndarray:
        """Return +1 or -1 for each row of the embeddings z (n, d) that it is fitted to; see `fit`."""
        return self.fit(z, y, **held_out).predict(z)

    def p_values(self, z: np.ndarray) -> np.ndarray:
        """Return the p-value (n,) in (0, 1] of each row of z: the share of reference images as little normal or less.

        What it promises depends on the reference images, see `thresholds`: an in-distribution image has a
        p-value of at most alpha with a probability of at most alpha where they were held out of all training.
        """
        check_is_fitted(self)
        return conformal_p_values(self._score(self._check(z))[0], self.reference_)


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless a false-alarm rate is a number between 0 and 1."""
    if not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha!r}")


def below_rounding(threshold: float | np.ndarray, scores: np.ndarray, dtype: type) -> float | np.ndarray:
    """Return a threshold lowered by the rounding of scores: their last digits depend on what is scored with them."""
    return threshold - 128 * np.finfo(dtype).eps * (np.abs(threshold) + np.median(np.abs(scores)))
