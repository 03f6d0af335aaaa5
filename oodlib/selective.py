"""Scores and whether the model's answer was right in; how well the score rejects the model's own errors out.

An OOD input has no right answer, so ID and OOD inputs go in together and every OOD input counts as wrong (Guérin et al.
2023, "Out-of-distribution detection is not all you need"). Higher scores are more normal: they are answered first, and
tied scores are answered together or, where a count has to be reached in between, in random order (the expected value).
"""

import numpy as np

from oodlib.metrics import auroc, check_scores


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
    answered, wrong = _answered_and_wrong(*_check(scores, correct))
    return answered / answered[-1], wrong / answered


def aurc(scores, correct) -> float:
    """Return the area under the risk-coverage curve: the risk, averaged over answering the 1, 2, …, n most normal.

    scores (n,) real, higher is more normal; correct (n,) bool, False for every OOD input. In [0, 1], lower is better; a
    constant score gives the error rate. Geifman et al. 2019.
    """
    answered, wrong = _answered_and_wrong(*_check(scores, correct))
    n_answered = np.arange(1, answered[-1] + 1)  # (n,)
    # Linear between distinct scores: the expected number of errors when ties are answered in random order.
    n_wrong = np.interp(n_answered, np.append(0, answered), np.append(0, wrong))  # (n,)
    return float((n_wrong / n_answered).mean())


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
    if not id_correct.any():
        return 0.0
    return float(id_correct.mean()) * auroc(id_scores[id_correct], ood_scores)  # wrong ID inputs never raise the curve


def _check(scores, correct, prefix=""):
    scores, correct = check_scores(f"{prefix}scores", scores), np.asarray(correct)
    if correct.shape != scores.shape:
        raise ValueError(f"{prefix}correct must have the shape of {prefix}scores {scores.shape}, got {correct.shape}")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"{prefix}correct must be True or False (or 1 and 0), got {np.unique(correct)[:5].tolist()}")
    return scores, correct.astype(bool)


def _answered_and_wrong(scores, correct):
    """Count inputs and errors at or above each distinct score, highest first: two (k,) int64."""
    order = np.argsort(-scores)
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # (k,) last index of each distinct score
    return last + 1, np.cumsum(~correct[order])[last]
