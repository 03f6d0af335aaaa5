"""Counts in; metrics out: how many scores of each group stand at each distinct score is all that a metric needs.

Counts are (..., k) integers, highest score first: one sort serves all metrics, ties are exact, and the bootstrap only
redraws counts; leading dimensions are resamples. Higher scores are more normal. The functions of `oodlib.metrics` and
`oodlib.selective` take scores.
"""

import math
from statistics import NormalDist

import numpy as np


def count_groups(*groups: np.ndarray) -> list[np.ndarray]:
    """Return how many scores of each group, (n_g,) float64, stand at each distinct score of all: (k,) int64 each."""
    sizes = [len(group) for group in groups]
    pooled = np.concatenate([np.sort(group) for group in groups])
    order = np.argsort(pooled, kind="stable")  # merges the sorted runs: faster than sorting the pool
    pooled, owner = pooled[order], np.repeat(np.arange(len(groups)), sizes)[order]
    last = np.flatnonzero(np.append(pooled[1:] != pooled[:-1], True))  # (k,) last index of each distinct score
    up_to = [np.cumsum(owner == g)[last] for g in range(len(groups))]
    return [np.diff(total, prepend=0)[::-1] for total in up_to]


def auroc(id_counts: np.ndarray, ood_counts: np.ndarray) -> float | np.ndarray:
    """Return the chance that an ID score beats an OOD score, ties one half."""
    return _plain(_twice_wins(id_counts, ood_counts) / (2 * id_counts.sum(axis=-1) * ood_counts.sum(axis=-1)))


def aupr_in(id_counts: np.ndarray, ood_counts: np.ndarray) -> float | np.ndarray:
    """Return the average precision with ID as the positive class."""
    id_above, ood_above = np.cumsum(id_counts, axis=-1), np.cumsum(ood_counts, axis=-1)
    precision = id_above / np.maximum(id_above + ood_above, 1)  # 0 / 0 only where a resample has no score yet
    return _plain((id_counts * precision).sum(axis=-1) / id_above[..., -1])


def aupr_out(id_counts: np.ndarray, ood_counts: np.ndarray) -> float | np.ndarray:
    """Return the average precision with OOD as the positive class."""
    return aupr_in(ood_counts[..., ::-1], id_counts[..., ::-1])


def fpr95(id_counts: np.ndarray, ood_counts: np.ndarray) -> float | np.ndarray:
    """Return the share of OOD accepted where at least 95 % of ID are."""
    id_above = np.cumsum(id_counts, axis=-1)
    too_strict = 20 * id_above < 19 * id_above[..., -1:]  # integers, as 0.95 n rounds
    threshold = too_strict.sum(axis=-1, keepdims=True)
    accepted = np.take_along_axis(np.cumsum(ood_counts, axis=-1), threshold, axis=-1)[..., 0]
    return _plain(accepted / ood_counts.sum(axis=-1))


def fpr95_ood_positive(id_counts: np.ndarray, ood_counts: np.ndarray) -> float | np.ndarray:
    """Return the share of ID flagged where at least 95 % of OOD are."""
    return fpr95(ood_counts[..., ::-1], id_counts[..., ::-1])


def aurc(right_counts: np.ndarray, wrong_counts: np.ndarray) -> float | np.ndarray:
    """Return the mean share of wrong answers among the 1, 2, …, n most normal; ties in random order, expected value.

    Among c tied scores of which w are wrong, after a answered with b wrong: Σ_{i=1..c} (b + w i / c) / (a + i).
    """
    tied = right_counts + wrong_counts
    answered, errors = np.cumsum(tied, axis=-1), np.cumsum(wrong_counts, axis=-1)
    n = int(answered.reshape(-1, answered.shape[-1])[0, -1])
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])
    before = answered - tied
    growth = harmonic[answered] - harmonic[before]  # Σ 1 / (a + i)
    share = wrong_counts / np.maximum(tied, 1)
    total = (errors - wrong_counts) * growth + share * (tied - before * growth)
    return _plain(total.sum(axis=-1) / n)


def augrc(right_counts: np.ndarray, wrong_counts: np.ndarray) -> float | np.ndarray:
    """Return the area under generalised risk, wrong and answered of all n, against coverage; ties in random order.

    Each wrong answer adds the share of inputs that come after it and half of itself: a count of pairs, so exact.
    """
    tied = right_counts + wrong_counts
    return _plain(_twice_wins(wrong_counts, tied) / (2 * tied.sum(axis=-1) ** 2))


def oscr(right_counts: np.ndarray, wrong_counts: np.ndarray, ood_counts: np.ndarray) -> float | np.ndarray:
    """Return the area under right and accepted ID against accepted OOD; wrong ID inputs never raise the curve."""
    n = right_counts.sum(axis=-1) + wrong_counts.sum(axis=-1)
    return _plain(_twice_wins(right_counts, ood_counts) / (2 * n * ood_counts.sum(axis=-1)))


def auroc_interval(id_counts: np.ndarray, ood_counts: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the DeLong interval of the AUROC, on the logit scale, as `oodlib.metrics.auroc_interval` describes it."""
    n, m = int(id_counts.sum()), int(ood_counts.sum())
    below, above = _twice_beaten(id_counts, ood_counts)
    value = int((id_counts * below).sum()) / (2 * n * m)
    variance = _delong_variance(below, id_counts, above, ood_counts)
    if variance == 0:
        return zero_variance_interval(value, 0.0, 1.0, min(n, m), level)
    logit, half = math.log(value / (1 - value)), normal_quantile(level) * math.sqrt(variance) / (value * (1 - value))
    return _expit(logit - half), _expit(logit + half)


def oscr_interval(
    right_counts: np.ndarray, wrong_counts: np.ndarray, ood_counts: np.ndarray, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of OSCR, from DeLong's variance, clipped to [0, 1]; without variance as that of the AUROC.

    OSCR is a mean over pairs of an ID and an OOD input, as the AUROC is; a wrong ID input wins none of its pairs.
    """
    z = normal_quantile(level)
    n_wrong, m = int(wrong_counts.sum()), int(ood_counts.sum())
    n = n_wrong + int(right_counts.sum())
    below, above = _twice_beaten(right_counts, ood_counts)
    wins, counts = np.append(below, 0), np.append(right_counts, n_wrong)
    variance = _delong_variance(wins, counts, above, ood_counts)
    value, half = oscr(right_counts, wrong_counts, ood_counts), z * math.sqrt(variance)
    if variance == 0:
        return zero_variance_interval(value, 0.0, 1.0, min(n, m), level)
    return max(0.0, value - half), min(1.0, value + half)


def _twice_wins(id_counts, ood_counts):
    """Return twice the number of pairs in which ID beats OOD, ties one half: an integer, so exact."""
    return (ood_counts * (2 * np.cumsum(id_counts, axis=-1) - id_counts)).sum(axis=-1)


def _twice_beaten(id_counts, ood_counts):
    """Return, at each distinct score, twice the OOD below it and twice the ID above it; ties count one."""
    ood_above, id_above = np.cumsum(ood_counts), np.cumsum(id_counts)
    return 2 * (ood_above[-1] - ood_above) + ood_counts, 2 * id_above - id_counts


def _delong_variance(below, id_counts, above, ood_counts):
    """Return the variance of the mean over pairs, each ID winning and each OOD losing half of what is given."""
    n, m = int(id_counts.sum()), int(ood_counts.sum())
    return _variance(below, id_counts, n) / (4 * m * m * n) + _variance(above, ood_counts, m) / (4 * n * n * m)


def _variance(values, counts, n):
    mean = (counts * values).sum() / n
    return float((counts * (values - mean) ** 2).sum() / (n - 1))


def zero_variance_interval(value: float, lowest: float, highest: float, n_pairs: int, level: float):
    """Bound the mean of independent pairs in [lowest, highest] that all came out at value (Markov's inequality)."""
    shrink = ((1 - level) / 2) ** (1 / n_pairs)
    return lowest + (value - lowest) * shrink, highest - (highest - value) * shrink


def normal_quantile(level: float) -> float:
    """Return the number of standard errors either way of an interval. Raises ValueError for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    return -NormalDist().inv_cdf((1 - level) / 2)


def resample(counts: np.ndarray, b: int, rng: np.random.Generator) -> np.ndarray:
    """Draw b bootstrap samples of the scores behind counts (k,), as counts (b, k)."""
    k, n = counts.size, int(counts.sum())
    owner = np.repeat(np.arange(k), counts)  # (n,) the distinct score of each sample
    draws = owner[rng.integers(n, size=(b, n))] + k * np.arange(b)[:, None]
    return np.bincount(draws.ravel(), minlength=b * k).reshape(b, k)


def _plain(values):
    return values if np.ndim(values) else float(values)


def _expit(x):
    return 1 / (1 + math.exp(-x))


METRICS = {
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
    "fpr95": fpr95,
    "fpr95_ood_positive": fpr95_ood_positive,
}
