"""Selective prediction: how well a score rejects the model's own errors, OOD inputs among them.

An OOD input has no right answer, so ID and OOD inputs go in together and every OOD input counts as wrong (Guérin et al.
2023, "Out-of-distribution detection is not all you need"). scores (n,) are real, higher is more normal; correct (n,) is
bool, False for every OOD input. The most normal are answered first, tied scores together or, where a count has to be
reached in between, in random order (the expected value). Other shapes, values and NaN raise ValueError.
"""

import math

import numpy as np

from oodlib.arrays import as_array, check_scores
from oodlib.metrics import (
    METRICS,
    auroc,
    auroc_interval,
    bootstrap,
    count_groups,
    delong,
    normal_quantile,
    plain,
    twice_wins,
    zero_variance_interval,
)


def error_auroc(scores, correct) -> float:
    """Return the AUROC of right answers against wrong ones, ties one half. In [0, 1], higher is better.

    Raises ValueError where no answer or every answer is right. Guérin et al. 2023.
    """
    scores, correct = _check(scores, correct)
    if correct.all() or not correct.any():
        raise ValueError(f"correct must hold right and wrong answers, got {correct.sum()} right of {correct.size}")
    return auroc(scores[correct], scores[~correct])


def risk_coverage(scores, correct) -> tuple[np.ndarray, np.ndarray]:
    """Return the risk-coverage curve, one point for each distinct score taken as threshold, highest first.

    Two (k,) float64: coverage is the share of inputs answered (score >= t), ascending to 1; risk the share of these
    that are wrong. El-Yaniv and Wiener 2010.
    """
    right, wrong = _right_and_wrong(scores, correct)
    answered, wrong = np.cumsum(right + wrong), np.cumsum(wrong)
    return answered / answered[-1], wrong / answered


def aurc(scores, correct) -> float:
    """Return the area under the risk-coverage curve: the risk, averaged over answering the 1, 2, …, n most normal.

    In [0, 1], lower is better; a constant score gives the error rate. Geifman et al. 2019.
    """
    return _aurc(*_right_and_wrong(scores, correct))


def augrc(scores, correct) -> float:
    """Return the area under the generalised risk-coverage curve: errors answered over all n inputs, against coverage.

    The chance that an input is answered and wrong, averaged over coverages from 0 to 1 with straight lines between
    them. Lower is better: with error rate e, from e² / 2 (every right answer first) to e - e² / 2; a constant score
    gives e / 2. Unlike AURC it weighs the first few answers no more than the others. Traub et al. 2024.
    """
    return _augrc(*_right_and_wrong(scores, correct))


def oscr(id_scores, id_correct, ood_scores) -> float:
    """Return the area under the open-set classification rate curve, ties one half.

    id_scores and id_correct (n,), ood_scores (m,). The curve is the share of ID that is right and accepted (score >= t)
    against the share of OOD accepted. In [0, ID accuracy], higher is better. Dhamija et al. 2018.
    """
    return _oscr(*_right_wrong_and_ood(id_scores, id_correct, ood_scores))


def error_auroc_interval(scores, correct, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high), the DeLong interval of `error_auroc`, as `oodlib.metrics.auroc_interval` describes it."""
    scores, correct = _check(scores, correct)
    n_right, n_wrong = int(correct.sum()), int((~correct).sum())
    if min(n_right, n_wrong) < 2:
        raise ValueError(f"an interval needs 2 right and 2 wrong answers, got {n_right} and {n_wrong}")
    return auroc_interval(scores[correct], scores[~correct], level)


def oscr_interval(id_scores, id_correct, ood_scores, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high), the interval of `oscr` with DeLong's variance, in [0, 1].

    OSCR is a mean over pairs of an ID and an OOD input, as the AUROC is; a wrong ID input wins none of its pairs. Where
    the variance estimate is zero it is conservative, as in `oodlib.metrics.auroc_interval`. Raises ValueError for less
    than two ID or OOD scores, or a level outside (0, 1).
    """
    right, wrong, ood = _right_wrong_and_ood(id_scores, id_correct, ood_scores)
    z, n, m = normal_quantile(level), int(right.sum() + wrong.sum()), int(ood.sum())
    if min(n, m) < 2:
        raise ValueError(f"an interval needs 2 ID and 2 OOD scores, got {n} and {m}")
    value, variance = delong(right, ood, int(wrong.sum()))
    if variance == 0:
        return zero_variance_interval(value, 0.0, 1.0, min(n, m), level)
    return max(0.0, value - z * math.sqrt(variance)), min(1.0, value + z * math.sqrt(variance))


def aurc_interval(scores, correct, n_resamples: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return (low, high), the percentile bootstrap interval of `aurc`; inputs are resampled with their answers.

    Raises ValueError for n_resamples below 1 or a level outside (0, 1).
    """
    return _bootstrap(_aurc, scores, correct, n_resamples, level, seed)


def augrc_interval(scores, correct, n_resamples: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return (low, high), the interval of `augrc`, from the resamples that `aurc_interval` draws."""
    return _bootstrap(_augrc, scores, correct, n_resamples, level, seed)


def _bootstrap(measure, scores, correct, n_resamples, level, seed):
    groups = _right_and_wrong(scores, correct)
    k = groups[0].size
    both = [np.concatenate(groups)]  # one group, so that the share of right answers varies, too
    return bootstrap(lambda drawn: measure(drawn[:, :k], drawn[:, k:]), both, n_resamples, level, seed)


def _check(scores, correct, prefix=""):
    scores, correct = check_scores(f"{prefix}scores", scores), np.asarray(as_array(correct))
    if correct.shape != scores.shape:
        raise ValueError(f"{prefix}correct must have the shape of {prefix}scores {scores.shape}, got {correct.shape}")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"{prefix}correct must be True or False (or 1 and 0), got {np.unique(correct)[:5].tolist()}")
    return scores, correct.astype(bool)


def _right_and_wrong(scores, correct) -> list[np.ndarray]:
    """Return the counts of right and of wrong answers, as of `oodlib.metrics`."""
    scores, correct = _check(scores, correct)
    return count_groups(scores[correct], scores[~correct])


def _right_wrong_and_ood(id_scores, id_correct, ood_scores) -> list[np.ndarray]:
    id_scores, id_correct = _check(id_scores, id_correct, "id_")
    return count_groups(id_scores[id_correct], id_scores[~id_correct], check_scores("ood_scores", ood_scores))


def _aurc(right, wrong):
    """Among c tied scores of which w are wrong, after a answered with b wrong: Σ_{i=1..c} (b + w i / c) / (a + i)."""
    tied = right + wrong
    answered, errors = np.cumsum(tied, axis=-1), np.cumsum(wrong, axis=-1)
    n = int(answered.reshape(-1, answered.shape[-1])[0, -1])
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])
    before = answered - tied
    growth = harmonic[answered] - harmonic[before]  # Σ 1 / (a + i)
    share = wrong / np.maximum(tied, 1)
    total = (errors - wrong) * growth + share * (tied - before * growth)
    return plain(total.sum(axis=-1) / n)


def _augrc(right, wrong):
    """Each wrong answer adds the share of inputs that come after it and half of itself: a count of pairs, so exact."""
    tied = right + wrong
    return plain(twice_wins(wrong, tied) / (2 * tied.sum(axis=-1) ** 2))


def _oscr(right, wrong, ood):
    n = right.sum(axis=-1) + wrong.sum(axis=-1)
    return plain(twice_wins(right, ood) / (2 * n * ood.sum(axis=-1)))


ERROR_METRICS = {  # of the counts of right and wrong ID answers and of OOD inputs, as of `oodlib.metrics`
    "error_auroc": lambda right, wrong, ood: METRICS["auroc"](right, wrong + ood) if right.any() else np.nan,
    "aurc": lambda right, wrong, ood: _aurc(right, wrong + ood),
    "augrc": lambda right, wrong, ood: _augrc(right, wrong + ood),
    "oscr": _oscr,
}
