"""ID and OOD scores in; AUROC, AUPR and FPR95 with their intervals out.

Higher scores are more normal. Every metric is a function of how many ID and OOD scores stand at each distinct score, so
one sort serves all of them, ties are exact and the bootstrap only redraws counts. Scores are compared as float64;
-inf and +inf are legal (the least and the most normal score there is), NaN raises ValueError, and so does an empty or
not one-dimensional array or tensor.
"""

import math

import numpy as np

from oodlib import counts
from oodlib.arrays import as_array
from oodlib.counts import METRICS, count_groups, normal_quantile, zero_variance_interval

BLOCK = 2**17  # counts in one block of bootstrap resamples, so that a block stays in cache


def auroc(id_scores, ood_scores) -> float:
    """Return the chance that an ID score beats an OOD score, ties one half.

    id_scores (n,), ood_scores (m,), real, higher is more normal. In [0, 1], higher is better, 0.5 is chance.
    """
    return counts.auroc(*count_scores(id_scores, ood_scores))


def aupr_in(id_scores, ood_scores) -> float:
    """Return the average precision with ID as the positive class.

    id_scores (n,), ood_scores (m,), real, higher is more normal. In (0, 1], higher is better, chance is n / (n + m).
    Step-wise (no interpolation), tied scores enter together.
    """
    return counts.aupr_in(*count_scores(id_scores, ood_scores))


def aupr_out(id_scores, ood_scores) -> float:
    """Return the average precision with OOD as the positive class, on negated scores.

    id_scores (n,), ood_scores (m,), real, higher is more normal. In (0, 1], higher is better, chance is m / (n + m).
    """
    return counts.aupr_out(*count_scores(id_scores, ood_scores))


def fpr95(id_scores, ood_scores) -> float:
    """Return the share of OOD accepted (score >= t) by the largest t that accepts at least 95 % of ID.

    id_scores (n,), ood_scores (m,), real, higher is more normal. In [0, 1], lower is better. ID is the positive class
    (SSD, KNN, CIDER and most papers); `fpr95_ood_positive` is the other meaning.
    """
    return counts.fpr95(*count_scores(id_scores, ood_scores))


def fpr95_ood_positive(id_scores, ood_scores) -> float:
    """Return the share of ID flagged (score <= t) by the smallest t that flags at least 95 % of OOD.

    id_scores (n,), ood_scores (m,), real, higher is more normal. In [0, 1], lower is better. OOD is the positive class
    (OpenOOD, pytorch-ood); `fpr95` is the other meaning.
    """
    return counts.fpr95_ood_positive(*count_scores(id_scores, ood_scores))


def ood_metrics(id_scores, ood_scores) -> dict:
    """Return every metric by name, plus n_id and n_ood, from one sort.

    id_scores (n,), ood_scores (m,), real, higher is more normal. Values are Python floats and ints.
    """
    id_counts, ood_counts = count_scores(id_scores, ood_scores)
    values = {name: metric(id_counts, ood_counts) for name, metric in METRICS.items()}
    return values | {"n_id": int(id_counts.sum()), "n_ood": int(ood_counts.sum())}


def auroc_interval(id_scores, ood_scores, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high), the DeLong confidence interval of the AUROC, on the logit scale so that it stays in [0, 1].

    id_scores (n,), ood_scores (m,), n and m at least 2; O((n + m) log(n + m)), ties one half. Where the variance
    estimate is zero (AUROC 0 or 1, or one single score) DeLong would claim certainty; the interval is then the
    conservative one that min(n, m) independent ID-OOD pairs give: [((1 - level) / 2) ** (1 / min(n, m)), 1] at 1.
    Raises ValueError for a level outside (0, 1). DeLong et al. 1988; Sun and Xu 2014.
    """
    normal_quantile(level)
    id_counts, ood_counts = count_scores(id_scores, ood_scores)
    _check_two(id_counts.sum(), ood_counts.sum())
    return counts.auroc_interval(id_counts, ood_counts, level)


def auroc_difference_interval(
    id_scores_a, ood_scores_a, id_scores_b, ood_scores_b, level: float = 0.95
) -> tuple[float, float, float, float]:
    """Return (difference, low, high, p_value) of AUROC(a) - AUROC(b), two detectors on the same images.

    Paired DeLong. id_scores_a and id_scores_b (n,), ood_scores_a and ood_scores_b (m,), row i the same image, n and m
    at least 2. The difference and its interval are in [-1, 1], the p-value is two-sided. Where the variance estimate is
    zero, interval and p-value are conservative as in `auroc_interval`, the p-value of difference 0 is 1. Raises
    ValueError for different lengths or a level outside (0, 1). DeLong et al. 1988.
    """
    z = normal_quantile(level)
    value_a, id_a, ood_a = _placements(id_scores_a, ood_scores_a)
    value_b, id_b, ood_b = _placements(id_scores_b, ood_scores_b)
    if id_a.size != id_b.size or ood_a.size != ood_b.size:
        sizes = f"got {id_a.size} and {id_b.size} ID, {ood_a.size} and {ood_b.size} OOD scores"
        raise ValueError(f"both detectors must score the same images: {sizes}")
    difference, variance = value_a - value_b, _placement_variance(id_a - id_b, ood_a - ood_b)
    if variance == 0:
        n_pairs = min(id_a.size, ood_a.size)
        p_value = 1.0 if difference == 0 else min(1.0, 2 * (1 + abs(difference)) ** -n_pairs)
        return difference, *zero_variance_interval(difference, -1.0, 1.0, n_pairs, level), p_value
    error = math.sqrt(variance)
    p_value = math.erfc(abs(difference) / error / math.sqrt(2))
    return difference, max(-1.0, difference - z * error), min(1.0, difference + z * error), p_value


def bootstrap_interval(
    metric: str, id_scores, ood_scores, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return (low, high), the percentile bootstrap interval of a metric; ID and OOD are resampled apart.

    metric is a name of METRICS ("fpr95", "aupr_in", …); id_scores (n,), ood_scores (m,). O(n_resamples (n + m)) after
    one sort. A value at the end of its range (perfect separation) has an interval of width zero: no resample can leave
    it. Raises ValueError for another metric, n_resamples below 1 or a level outside (0, 1). Efron and Tibshirani 1993.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    normal_quantile(level)
    rng = np.random.default_rng(seed)
    id_counts, ood_counts = count_scores(id_scores, ood_scores)
    rows = max(1, BLOCK // id_counts.size)
    values = []
    for start in range(0, n_resamples, rows):
        b = min(rows, n_resamples - start)
        values.append(METRICS[metric](counts.resample(id_counts, b, rng), counts.resample(ood_counts, b, rng)))  # (b,)
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def check_scores(name: str, scores) -> np.ndarray:
    """Return scores as float64 (n,); raise ValueError, with the name, if they are not real, not 1-d, empty or NaN."""
    scores = np.asarray(as_array(scores))
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"{name} must have shape (n,) with n >= 1, got {scores.shape}")
    if scores.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers (float, int or bool), got dtype {scores.dtype}")
    scores = scores.astype(np.float64, copy=False)
    if np.isnan(scores).any():
        raise ValueError(f"{name} must not hold NaN, got {np.isnan(scores).sum()} of {scores.size}")
    return scores


def count_scores(id_scores, ood_scores) -> tuple[np.ndarray, np.ndarray]:
    """Return how many ID and how many OOD scores stand at each distinct score, highest first: two (k,) int64."""
    id_counts, ood_counts = count_groups(check_scores("id_scores", id_scores), check_scores("ood_scores", ood_scores))
    return id_counts, ood_counts


def _placements(id_scores, ood_scores):
    """Return the AUROC, twice the OOD scores below each ID score (n,) and twice the ID scores above each OOD (m,)."""
    id_scores, ood_scores = check_scores("id_scores", id_scores), check_scores("ood_scores", ood_scores)
    _check_two(id_scores.size, ood_scores.size)
    n, m = id_scores.size, ood_scores.size
    below_id = _twice_below(np.sort(ood_scores), id_scores)
    return int(below_id.sum()) / (2 * n * m), below_id, 2 * n - _twice_below(np.sort(id_scores), ood_scores)


def _twice_below(ordered, scores):
    return np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")  # a tie adds one


def _placement_variance(id_ranks, ood_ranks):
    n, m = id_ranks.size, ood_ranks.size
    return float(id_ranks.var(ddof=1) / (4 * m * m * n) + ood_ranks.var(ddof=1) / (4 * n * n * m))


def _check_two(n, m):
    if min(n, m) < 2:
        raise ValueError(f"DeLong needs 2 ID and 2 OOD scores at least, got {n} and {m}")
