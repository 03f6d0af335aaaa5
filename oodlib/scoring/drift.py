"""Drift: scores of a stream of images and of held-out ID images in; evidence that the stream has changed out.

Each new image gets a conformal p-value among the calibration images and all images of the stream before it. As long as
nothing changes these are independent and uniform, whatever the scores are, and a bettor who stakes on small p-values
cannot expect to win: the capital is a martingale that starts at 1, and the probability that it ever reaches 1/α is at
most α (Ville 1939; Vovk, Nouretdinov and Gammerman 2003, Testing exchangeability on-line).
"""

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass

import numpy as np
from sklearn.utils.validation import check_is_fitted

from oodlib.scoring.detector import Detector

POWERS = (1.0, 0.8, 0.6, 0.4, 0.2)  # κ of the bets κ p^(κ-1); 1 does not bet
SWITCH = 0.01  # share of the capital that is spread anew over the bets at each step


@dataclass(frozen=True)
class Drift:
    """The capital (n,) after each image of a stream, on a natural logarithm, and where it first reached 1/α."""

    log_capital: np.ndarray
    p_values: np.ndarray
    alpha: float

    @property
    def alarm(self) -> int | None:
        """The index of the image at which the alarm is raised; None where it never is."""
        reached = np.flatnonzero(self.log_capital >= -np.log(self.alpha))
        return int(reached[0]) if len(reached) else None


def drift_test(
    calibration_scores: np.ndarray | Detector, stream_scores: np.ndarray, alpha: float = 0.01, seed: int = 0
) -> Drift:
    """Test a stream of scores (n,), in order of arrival, for drift away from the calibration scores (m,).

    The calibration scores are those of images that took no part in training, or a detector that keeps such
    (`held_out_`). Higher scores are more normal; only drift to lower ones is looked for. An alarm is false, ever, with
    probability at most `alpha`, if calibration and stream images are exchangeable. Raises ValueError for a detector
    that was calibrated on its training images, no calibration scores, NaN, or an alpha outside (0, 1).
    """
    if isinstance(calibration_scores, Detector):
        calibration_scores = _held_out_scores(calibration_scores)
    calibration, stream = (np.asarray(scores, dtype=np.float64) for scores in (calibration_scores, stream_scores))
    for name, scores in (("calibration_scores", calibration), ("stream_scores", stream)):
        if scores.ndim != 1 or np.isnan(scores).any():
            raise ValueError(f"{name} must be (n,) without NaN, got shape {scores.shape}")
    if not len(calibration) or not 0 < alpha < 1:
        raise ValueError(f"needs calibration scores and alpha in (0, 1), got {len(calibration)} and {alpha}")
    p_values = _online_p_values(calibration, stream, np.random.default_rng(seed))
    return Drift(_log_capital(p_values), p_values, alpha)


def _held_out_scores(detector: Detector) -> np.ndarray:
    check_is_fitted(detector)
    if not detector.held_out_:
        raise ValueError(
            "the detector's reference scores are those of its training images, which are too good: every stream would "
            "seem to drift. Fit it with z_calibration (a ClusterDetector with threshold='conformal', too)"
        )
    return detector.reference_


def _online_p_values(calibration: np.ndarray, stream: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the smoothed p-value (n,) of each score among all before it and itself; ties are broken at random."""
    seen, p_values = sorted(calibration), np.empty(len(stream))
    for i, (score, u) in enumerate(zip(stream, 1 - rng.random(len(stream)), strict=True)):  # u in (0, 1]
        below = bisect_left(seen, score)
        equal = bisect_right(seen, score) - below + 1  # and itself
        p_values[i] = (below + u * equal) / (len(seen) + 1)
        insort(seen, score)
    return p_values


def _log_capital(p_values: np.ndarray) -> np.ndarray:
    """Return the logarithm of the capital (n,) of bets on small p-values, which may change over time."""
    powers = np.array(POWERS)
    shares, total, log_capital = np.full(len(powers), 1 / len(powers)), 0.0, np.empty(len(p_values))
    for i, p in enumerate(p_values):
        shares = (1 - SWITCH) * shares + SWITCH / len(powers)
        shares *= powers * p ** (powers - 1)
        total += np.log(shares.sum())
        shares /= shares.sum()
        log_capital[i] = total
    return log_capital
