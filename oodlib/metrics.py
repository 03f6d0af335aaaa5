"""Metrics of out-of-distribution detection: AUROC, AUPR and FPR95 of ID and OOD scores, and of the model's own errors.

Scores are real, id_scores (n,) and ood_scores (m,), arrays or tensors; higher is more normal. They are compared as
float64; -inf and +inf are legal, NaN, no score at all and another shape raise ValueError.

Metrics of errors ask how well a score rejects wrong answers (selective prediction). An OOD input has no right answer,
so ID and OOD inputs go in together and every OOD input counts as wrong (Guérin et al. 2023, "Out-of-distribution
detection is not all you need"). correct (n,) is bool, False for every OOD input. The most normal are answered first,
tied scores together or, where a count has to be reached in between, in random order (the expected value).

All that a metric needs is how many scores of each group stand at each distinct score, highest first: (k,) integers. So
one sort serves all metrics, and ties are exact.
"""

import math
from statistics import NormalDist

import numpy as np

from oodlib.arrays import as_array, check_scores


def auroc(id_scores, ood_scores) -> float:
    """Return the chance that an ID score beats an OOD score, ties one half. In [0, 1], higher is better."""
    return _auroc(*_count(id_scores, ood_scores))


def aupr_in(id_scores, ood_scores) -> float:
    """Return the average precision with ID as the positive class.

    In (0, 1], higher is better, chance is n / (n + m). Step-wise (no interpolation), tied scores enter together.
    """
    return _aupr_in(*_count(id_scores, ood_scores))


def aupr_out(id_scores, ood_scores) -> float:
    """Return the average precision with OOD as the positive class. In (0, 1], higher is better, chance m / (n + m)."""
    return _aupr_out(*_count(id_scores, ood_scores))


def fpr95(id_scores, ood_scores) -> float:
    """Return the share of OOD accepted (score >= t) by the largest t that accepts at least 95 % of ID.

    In [0, 1], lower is better. ID is the positive class, as in SSD, KNN, CIDER and most papers.
    """
    return _fpr95(*_count(id_scores, ood_scores))


def fpr95_ood_positive(id_scores, ood_scores) -> float:
    """Return the share of ID flagged (score <= t) by the smallest t that flags at least 95 % of OOD.

    In [0, 1], lower is better. OOD is the positive class, as in OpenOOD and pytorch-ood.
    """
    return _fpr95_ood_positive(*_count(id_scores, ood_scores))


def ood_metrics(id_scores, ood_scores) -> dict:
    """Return every metric by name, plus n_id and n_ood, from one sort; Python floats and ints."""
    id_counts, ood_counts = _count(id_scores, ood_scores)
    values = {name: metric(id_counts, ood_counts) for name, metric in METRICS.items()}
    return values | {"n_id": int(id_counts.sum()), "n_ood": int(ood_counts.sum())}


def auroc_interval(id_scores, ood_scores, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high), the DeLong confidence interval of the AUROC, on the logit scale so that it stays in [0, 1].

    n and m at least 2, ties one half. Where the variance estimate is zero (AUROC 0 or 1, or one single score) DeLong
    would claim certainty; the interval is then the conservative one that min(n, m) independent ID-OOD pairs give:
    [((1 - level) / 2) ** (1 / min(n, m)), 1] at 1. Raises ValueError for a level outside (0, 1). DeLong et al. 1988;
    Sun and Xu 2014.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    id_counts, ood_counts = _count(id_scores, ood_scores)
    n, m = int(id_counts.sum()), int(ood_counts.sum())
    if min(n, m) < 2:
        raise ValueError(f"DeLong needs 2 ID and 2 OOD scores at least, got {n} and {m}")
    value, variance = _delong(id_counts, ood_counts)
    if variance == 0:
        shrink = ((1 - level) / 2) ** (1 / min(n, m))  # pairs that all came out at value (Markov's inequality)
        return value * shrink, 1 - (1 - value) * shrink
    z = -NormalDist().inv_cdf((1 - level) / 2)
    logit, half = math.log(value / (1 - value)), z * math.sqrt(variance) / (value * (1 - value))
    return 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit))


# Errors


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
    id_scores, id_correct = _check(id_scores, id_correct, "id_")
    groups = id_scores[id_correct], id_scores[~id_correct], check_scores("ood_scores", ood_scores)
    return _oscr(*count_groups(*groups))


# Counts


def count_groups(*groups: np.ndarray) -> list[np.ndarray]:
    """Return how many scores of each group, (n_g,) float64, stand at each distinct score of all: (k,) int64 each."""
    sizes = [len(group) for group in groups]
    pooled = np.concatenate([np.sort(group) for group in groups])
    order = np.argsort(pooled, kind="stable")  # merges the sorted runs: faster than sorting the pool
    pooled, owner = pooled[order], np.repeat(np.arange(len(groups)), sizes)[order]
    last = np.flatnonzero(np.append(pooled[1:] != pooled[:-1], True))  # (k,) last index of each distinct score
    up_to = [np.cumsum(owner == g)[last] for g in range(len(groups))]
    return [np.diff(total, prepend=0)[::-1] for total in up_to]


def _twice_wins(id_counts: np.ndarray, ood_counts: np.ndarray) -> np.int64:
    """Return twice the number of pairs in which ID beats OOD, ties one half: an integer, so exact."""
    return (ood_counts * (2 * np.cumsum(id_counts) - id_counts)).sum()


def _delong(id_counts: np.ndarray, ood_counts: np.ndarray) -> tuple[float, float]:
    """Return the share of pairs won and its variance."""
    n, m = int(id_counts.sum()), int(ood_counts.sum())
    above = 2 * np.cumsum(id_counts) - id_counts  # twice the ID scores above each OOD score; ties count one
    below = 2 * (m - np.cumsum(ood_counts)) + ood_counts  # twice the OOD scores below each ID score
    variance = _variance(below, id_counts, n) / (4 * m * m * n) + _variance(above, ood_counts, m) / (4 * n * n * m)
    return int((id_counts * below).sum()) / (2 * n * m), variance


def _variance(values, counts, n):
    mean = (counts * values).sum() / n
    return float((counts * (values - mean) ** 2).sum() / (n - 1))


def _count(id_scores, ood_scores) -> list[np.ndarray]:
    return count_groups(check_scores("id_scores", id_scores), check_scores("ood_scores", ood_scores))


def _check(scores, correct, prefix=""):
    scores, correct = check_scores(f"{prefix}scores", scores), np.asarray(as_array(correct))
    if correct.shape != scores.shape:
        raise ValueError(f"{prefix}correct must have the shape of {prefix}scores {scores.shape}, got {correct.shape}")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"{prefix}correct must be True or False (or 1 and 0), got {np.unique(correct)[:5].tolist()}")
    return scores, correct.astype(bool)


def _right_and_wrong(scores, correct) -> list[np.ndarray]:
    scores, correct = _check(scores, correct)
    return count_groups(scores[correct], scores[~correct])


def _auroc(id_counts, ood_counts):
    return float(_twice_wins(id_counts, ood_counts) / (2 * id_counts.sum() * ood_counts.sum()))


def _aupr_in(id_counts, ood_counts):
    id_above, ood_above = np.cumsum(id_counts), np.cumsum(ood_counts)
    return float((id_counts * (id_above / (id_above + ood_above))).sum() / id_above[-1])


def _aupr_out(id_counts, ood_counts):
    return _aupr_in(ood_counts[::-1], id_counts[::-1])


def _fpr95(id_counts, ood_counts):
    id_above = np.cumsum(id_counts)
    threshold = (20 * id_above < 19 * id_above[-1]).sum()  # integers, as 0.95 n rounds
    return float(np.cumsum(ood_counts)[threshold] / ood_counts.sum())


def _fpr95_ood_positive(id_counts, ood_counts):
    return _fpr95(ood_counts[::-1], id_counts[::-1])


def _aurc(right, wrong):
    """Among c tied scores of which w are wrong, after a answered with b wrong: Σ_{i=1..c} (b + w i / c) / (a + i)."""
    tied = right + wrong
    answered, errors = np.cumsum(tied), np.cumsum(wrong)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, answered[-1] + 1))])
    before = answered - tied
    growth = harmonic[answered] - harmonic[before]  # Σ 1 / (a + i)
    total = (errors - wrong) * growth + wrong / tied * (tied - before * growth)
    return float(total.sum() / answered[-1])


def _augrc(right, wrong):
    """Each wrong answer adds the share of inputs that come after it and half of itself: a count of pairs, so exact."""
    tied = right + wrong
    return float(_twice_wins(wrong, tied) / (2 * tied.sum() ** 2))


def _oscr(right, wrong, ood):
    return float(_twice_wins(right, ood) / (2 * (right.sum() + wrong.sum()) * ood.sum()))


METRICS = {  # of the counts of ID and of OOD scores
    "auroc": _auroc,
    "aupr_in": _aupr_in,
    "aupr_out": _aupr_out,
    "fpr95": _fpr95,
    "fpr95_ood_positive": _fpr95_ood_positive,
}
ERROR_METRICS = {  # of the counts of right and wrong ID answers and of OOD inputs
    "error_auroc": lambda right, wrong, ood: _auroc(right, wrong + ood) if right.any() else np.nan,
    "aurc": lambda right, wrong, ood: _aurc(right, wrong + ood),
    "augrc": lambda right, wrong, ood: _augrc(right, wrong + ood),
    "oscr": _oscr,
}
