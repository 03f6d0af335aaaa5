"""Scores and whether the model's answer was right in; how well the score rejects the model's own errors out.

An OOD input has no right answer, so ID and OOD inputs go in together and every OOD input counts as wrong (Guérin et al.
2023, "Out-of-distribution detection is not all you need"). Higher scores are more normal: they are answered first, and
tied scores are answered together or, where a count has to be reached in between, in random order (the expected value).
"""

from collections.abc import Callable

import numpy as np

from oodlib import counts
from oodlib.arrays import as_array
from oodlib.counts import count_groups, normal_quantile
from oodlib.metrics import auroc, auroc_interval, check_scores


def error_auroc(scores, correct) -> float:
    """Return the AUROC of right answers against wrong ones, ties one half.

    scores (n,) real, higher is more normal; correct (n,) bool, False for every OOD input. In [0, 1], higher is better.
    Raises ValueError where no answer or every answer is right. Guérin et al. 2023.
    """
    scores, correct = _check(scores, correct)
    if correct.all() or not correct.any():
        raise ValueError(f"correct must hold right and wrong answers, got {correct.sum()} right of {correct.size}")
    return auroc(scores[correct], scores[~correct])


def risk_coverage(scores, correct) -> tuple[np.ndarray, np.ndarray]:
    """Return the risk-coverage curve, one point for each distinct score taken as threshold, highest first.

    scores (n,) real, higher is more normal; correct (n,) bool, False for every OOD input. Two (k,) float64: coverage is
    the share of inputs answered (score >= t), ascending to 1; risk the share of these that are wrong. El-Yaniv and
    Wiener 2010.
    """
    right, wrong = _right_and_wrong(*_check(scores, correct))
    answered, wrong = np.cumsum(right + wrong), np.cumsum(wrong)
    return answered / answered[-1], wrong / answered


def aurc(scores, correct) -> float:
    """Return the area under the risk-coverage curve: the risk, averaged over answering the 1, 2, …, n most normal.

    scores (n,) real, higher is more normal; correct (n,) bool, False for every OOD input. In [0, 1], lower is better; a
    constant score gives the error rate. Geifman et al. 2019.
    """
    return counts.aurc(*_right_and_wrong(*_check(scores, correct)))


def augrc(scores, correct) -> float:
    """Return the area under the generalised risk-coverage curve: errors answered over all n inputs, against coverage.

    scores (n,) real, higher is more normal; correct (n,) bool, False for every OOD input. The chance that an input
    is answered and wrong, averaged over coverages from 0 to 1 with straight lines between them. Lower is better: with
    error rate e, from e² / 2 (every right answer first) to e - e² / 2; a constant score gives e / 2. Unlike AURC it
    weighs the first few answers no more than the others. Traub et al. 2024.
    """
    return counts.augrc(*_right_and_wrong(*_check(scores, correct)))


def excess_aurc(scores, correct) -> float:
    """Return AURC minus the AURC of the best score there is, which answers every right one first.

    scores (n,) real, higher is more normal; correct (n,) bool, False for every OOD input. In [0, 1), lower is better, 0
    where every right answer scores above every wrong one. Comparable between models of different accuracy, with the
    exact optimum for n inputs instead of its limit. Geifman et al. 2019.
    """
    return aurc(scores, correct) - aurc(correct, correct)


def oscr(id_scores, id_correct, ood_scores) -> float:
    """Return the area under the open-set classification rate curve, ties one half.

    id_scores (n,) and ood_scores (m,) real, higher is more normal; id_correct (n,) bool. The curve is the share of ID
    that is right and accepted (score >= t) against the share of OOD accepted. In [0, ID accuracy], higher is better.
    Dhamija et al. 2018.
    """
    id_scores, id_correct = _check(id_scores, id_correct, "id_")
    ood_scores = check_scores("ood_scores", ood_scores)
    return counts.oscr(*count_groups(id_scores[id_correct], id_scores[~id_correct], ood_scores))


def error_auroc_interval(scores, correct, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high), the DeLong interval of `error_auroc`, as `oodlib.metrics.auroc_interval` describes it."""
    scores, correct = _check(scores, correct)
    n_right, n_wrong = int(correct.sum()), int((~correct).sum())
    if min(n_right, n_wrong) < 2:
        raise ValueError(f"an interval needs 2 right and 2 wrong answers, got {n_right} and {n_wrong}")
    return auroc_interval(scores[correct], scores[~correct], level)


def oscr_interval(id_scores, id_correct, ood_scores, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high), the interval of `oscr` with DeLong's variance, in [0, 1].

    Where the variance estimate is zero it is conservative, as in `oodlib.metrics.auroc_interval`. Raises ValueError for
    less than two ID or OOD scores, or a level outside (0, 1).
    """
    id_scores, id_correct = _check(id_scores, id_correct, "id_")
    ood_scores = check_scores("ood_scores", ood_scores)
    if min(id_scores.size, ood_scores.size) < 2:
        raise ValueError(f"an interval needs 2 ID and 2 OOD scores, got {id_scores.size} and {ood_scores.size}")
    return counts.oscr_interval(*count_groups(id_scores[id_correct], id_scores[~id_correct], ood_scores), level)


def aurc_interval(scores, correct, n_resamples: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return (low, high), the percentile bootstrap interval of `aurc`; inputs are resampled with their answers.

    scores (n,) real, correct (n,) bool. Raises ValueError for n_resamples below 1 or a level outside (0, 1).
    """
    return _bootstrap(counts.aurc, scores, correct, n_resamples, level, seed)


def augrc_interval(scores, correct, n_resamples: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return (low, high), the interval of `augrc`, from the resamples that `aurc_interval` draws."""
    return _bootstrap(counts.augrc, scores, correct, n_resamples, level, seed)


def _bootstrap(measure: Callable, scores, correct, n_resamples: int, level: float, seed: int) -> tuple[float, float]:
    """Return the percentile interval of a measure of the counts of right and wrong answers."""
    normal_quantile(level)
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    groups = _right_and_wrong(*_check(scores, correct))
    k, both, rng = groups[0].size, np.concatenate(groups), np.random.default_rng(seed)
    values = []
    for _ in range(n_resamples):
        drawn = counts.resample(both, 1, rng)[0]
        values.append(measure(drawn[:k], drawn[k:]))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(scores, correct, prefix=""):
    scores, correct = check_scores(f"{prefix}scores", scores), np.asarray(as_array(correct))
    if correct.shape != scores.shape:
        raise ValueError(f"{prefix}correct must have the shape of {prefix}scores {scores.shape}, got {correct.shape}")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"{prefix}correct must be True or False (or 1 and 0), got {np.unique(correct)[:5].tolist()}")
    return scores, correct.astype(bool)


def _right_and_wrong(scores, correct):
    """Count right and wrong answers at each distinct score, highest first: two (k,) int64."""
    return count_groups(scores[correct], scores[~correct])
