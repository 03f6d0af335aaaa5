"""Metrics of out-of-distribution detection: AUROC, AUPR and FPR95 of ID and OOD scores, and their intervals.

Scores are real, id_scores (n,) and ood_scores (m,), arrays or tensors; higher is more normal. They are compared as
float64; -inf and +inf are legal, NaN, no score at all and another shape raise ValueError.

All that a metric needs is how many scores of each group stand at each distinct score, highest first: (..., k) integers,
leading dimensions are resamples. So one sort serves all metrics, ties are exact, and the bootstrap only redraws counts.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from oodlib.arrays import check_scores

REDRAWN = 2**17  # counts in one block of bootstrap resamples, so that a block stays in cache


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
    z = normal_quantile(level)
    id_counts, ood_counts = _count(id_scores, ood_scores)
    n, m = int(id_counts.sum()), int(ood_counts.sum())
    if min(n, m) < 2:
        raise ValueError(f"DeLong needs 2 ID and 2 OOD scores at least, got {n} and {m}")
    value, variance = delong(id_counts, ood_counts)
    if variance == 0:
        return zero_variance_interval(value, 0.0, 1.0, min(n, m), level)
    logit, half = math.log(value / (1 - value)), z * math.sqrt(variance) / (value * (1 - value))
    return 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit))


def bootstrap_interval(
    metric: str, id_scores, ood_scores, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return (low, high), the percentile bootstrap interval of a metric of METRICS; ID and OOD are resampled apart.

    O(n_resamples (n + m)) after one sort. A value at the end of its range (perfect separation) has an interval of width
    zero: no resample can leave it. Raises ValueError for another metric, n_resamples below 1 or a level outside (0, 1).
    Efron and Tibshirani 1993.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    return bootstrap(METRICS[metric], _count(id_scores, ood_scores), n_resamples, level, seed)


def bootstrap(
    measure: Callable, groups: list[np.ndarray], n_resamples: int, level: float, seed: int
) -> tuple[float, float]:
    """Return the percentile interval of a measure of counts, whose groups (k,) are resampled each by itself."""
    normal_quantile(level)
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    rng, rows, values = np.random.default_rng(seed), max(1, REDRAWN // groups[0].size), []
    for start in range(0, n_resamples, rows):
        b = min(rows, n_resamples - start)
        values.append(measure(*(_resample(counts, b, rng) for counts in groups)))  # (b,)
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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


def twice_wins(id_counts: np.ndarray, ood_counts: np.ndarray) -> np.ndarray:
    """Return twice the number of pairs in which ID beats OOD, ties one half: an integer, so exact."""
    return (ood_counts * (2 * np.cumsum(id_counts, axis=-1) - id_counts)).sum(axis=-1)


def delong(winners: np.ndarray, ood_counts: np.ndarray, n_losers: int = 0) -> tuple[float, float]:
    """Return the share of pairs won and its variance, of winners (k,) and of n_losers ID scores that win none."""
    n, m = int(winners.sum()) + n_losers, int(ood_counts.sum())
    ood_above, above = np.cumsum(ood_counts), 2 * np.cumsum(winners) - winners  # twice the winners above each OOD score
    below = 2 * (m - ood_above) + ood_counts  # twice the OOD scores below each winner; ties count one
    if n_losers:
        below, winners = np.append(below, 0), np.append(winners, n_losers)
    variance = _variance(below, winners, n) / (4 * m * m * n) + _variance(above, ood_counts, m) / (4 * n * n * m)
    return int((winners * below).sum()) / (2 * n * m), variance


def plain(values: np.ndarray) -> float | np.ndarray:
    """Return a value as a float, the values of resamples as the array (b,) that they are."""
    return values if np.ndim(values) else float(values)


def normal_quantile(level: float) -> float:
    """Return the number of standard errors either way of an interval. Raises ValueError for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    return -NormalDist().inv_cdf((1 - level) / 2)


def zero_variance_interval(
    value: float, lowest: float, highest: float, n_pairs: int, level: float
) -> tuple[float, float]:
    """Bound the mean of independent pairs in [lowest, highest] that all came out at value (Markov's inequality)."""
    shrink = ((1 - level) / 2) ** (1 / n_pairs)
    return lowest + (value - lowest) * shrink, highest - (highest - value) * shrink


def _count(id_scores, ood_scores) -> list[np.ndarray]:
    return count_groups(check_scores("id_scores", id_scores), check_scores("ood_scores", ood_scores))


def _auroc(id_counts, ood_counts):
    return plain(twice_wins(id_counts, ood_counts) / (2 * id_counts.sum(axis=-1) * ood_counts.sum(axis=-1)))


def _aupr_in(id_counts, ood_counts):
    id_above, ood_above = np.cumsum(id_counts, axis=-1), np.cumsum(ood_counts, axis=-1)
    precision = id_above / np.maximum(id_above + ood_above, 1)  # 0 / 0 only where a resample has no score yet
    return plain((id_counts * precision).sum(axis=-1) / id_above[..., -1])


def _aupr_out(id_counts, ood_counts):
    return _aupr_in(ood_counts[..., ::-1], id_counts[..., ::-1])


def _fpr95(id_counts, ood_counts):
    id_above = np.cumsum(id_counts, axis=-1)
    too_strict = 20 * id_above < 19 * id_above[..., -1:]  # integers, as 0.95 n rounds
    threshold = too_strict.sum(axis=-1, keepdims=True)
    accepted = np.take_along_axis(np.cumsum(ood_counts, axis=-1), threshold, axis=-1)[..., 0]
    return plain(accepted / ood_counts.sum(axis=-1))


def _fpr95_ood_positive(id_counts, ood_counts):
    return _fpr95(ood_counts[..., ::-1], id_counts[..., ::-1])


def _resample(counts: np.ndarray, b: int, rng: np.random.Generator) -> np.ndarray:
    """Draw b bootstrap samples of the scores behind counts (k,), as counts (b, k)."""
    k, n = counts.size, int(counts.sum())
    owner = np.repeat(np.arange(k), counts)  # (n,) the distinct score of each sample
    draws = owner[rng.integers(n, size=(b, n))] + k * np.arange(b)[:, None]
    return np.bincount(draws.ravel(), minlength=b * k).reshape(b, k)


def _variance(values, counts, n):
    mean = (counts * values).sum() / n
    return float((counts * (values - mean) ** 2).sum() / (n - 1))


METRICS = {
    "auroc": _auroc,
    "aupr_in": _aupr_in,
    "aupr_out": _aupr_out,
    "fpr95": _fpr95,
    "fpr95_ood_positive": _fpr95_ood_positive,
}
