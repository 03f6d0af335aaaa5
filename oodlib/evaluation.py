"""Scores of one detector in; one row of metrics for every threshold and OOD set out, with intervals.

Everything that depends on the order of the scores alone comes from one sort. An ID input counts as right or wrong by
the run's own classifier, an OOD input always as wrong: so the metrics of `oodlib.selective` ask whether the score
rejects the model's errors.
"""

from collections.abc import Iterator

import numpy as np

from oodlib import counts
from oodlib.counts import METRICS, count_groups
from oodlib.metrics import bootstrap_interval
from oodlib.product import Scored
from oodlib.selective import aurc, aurc_interval
from oodlib.thresholds import (
    cluster_p_values,
    conformal_threshold,
    per_cluster_thresholds,
    truncated_auroc,
)

INTERVALS = ("auroc_low", "auroc_high", "error_auroc_low", "error_auroc_high", "oscr_low", "oscr_high")


def evaluate(scored: Scored, ood_sets: list[str], correct: np.ndarray, alpha: float) -> Iterator[dict]:
    """Yield one row for every OOD set and threshold of a detector.

    correct (n,) bool: which ID test images the run's own classifier gets right. `id_rejected` and `ood_rejected` are
    the shares below the threshold at false-alarm rate `alpha`. Thresholds a cluster are for detectors with clusters.
    """
    about = {key: getattr(scored, key) for key in ("clustering", "n_clusters", "pca", "distance", "seen")}
    for ood in ood_sets:
        if ood in scored.scores:
            for threshold, values in _by_threshold(scored, ood, correct, alpha).items():
                yield {"ood_dataset": ood} | about | {"threshold": threshold} | values


def _by_threshold(scored: Scored, ood: str, correct: np.ndarray, alpha: float) -> dict[str, dict[str, float]]:
    prefix = f" {ood}" if scored.seen else ""
    train, calibration, inside = (scored.scores[split + prefix] for split in ("train", "calibration", "test"))
    outside = scored.scores[ood]
    ranking = rank_metrics(inside, outside, correct)
    rows = {}
    for threshold, reference in (("global", train), ("conformal", calibration)):
        limit = conformal_threshold(reference, alpha)
        rows[threshold] = ranking | _rejected(inside < limit, outside < limit)
    if scored.nearest is None:
        return rows
    new = (inside, scored.nearest["test"]), (outside, scored.nearest[ood])
    n_clusters = 1 + max(int(nearest.max()) for nearest in scored.nearest.values())
    for threshold, split in (("per-cluster", "train"), ("conformal-cluster", "calibration")):
        reference = scored.scores[split], scored.nearest[split]
        limits = per_cluster_thresholds(*reference, n_clusters, alpha, borrow=threshold == "per-cluster")
        p_values = [cluster_p_values(*part, *reference) for part in new]
        rejected = _rejected(*(scores < limits[nearest] for scores, nearest in new))
        rows[threshold] = rank_metrics(*p_values, correct) | rejected
        if threshold == "per-cluster":
            shares = (_shares(p, nearest, reference[1]) for p, (_, nearest) in zip(p_values, new, strict=True))
            rows[threshold]["auroc_101"] = truncated_auroc(*shares)
    return rows


def _shares(p_values: np.ndarray, nearest: np.ndarray, reference_nearest: np.ndarray) -> np.ndarray:
    """Return the share (n,) of its cluster's m reference images that each image is as normal as, from its p-value.

    p = (1 + m share) / (m + 1); in a cluster without reference images the share is 1.
    """
    m = np.bincount(reference_nearest, minlength=nearest.max() + 1)[nearest]
    return np.divide(p_values * (m + 1) - 1, m, out=np.ones(len(m)), where=m > 0)


def rank_metrics(inside: np.ndarray, outside: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Return what the order of ID scores (n,) and OOD scores (m,) decides, AUROC and the like with 95 % intervals."""
    right, wrong, ood = count_groups(inside[correct], inside[~correct], outside)
    id_ = right + wrong
    values = {name: metric(id_, ood) for name, metric in METRICS.items()}
    values |= {"n_id": len(inside), "n_ood": len(outside)} | dict.fromkeys(INTERVALS, np.nan)
    values |= {"error_auroc": counts.auroc(right, wrong + ood) if right.any() else np.nan}
    values |= {"aurc": counts.aurc(right, wrong + ood), "oscr": counts.oscr(right, wrong, ood)}
    if min(len(inside), len(outside)) > 1:  # an interval needs a variance
        values["auroc_low"], values["auroc_high"] = counts.auroc_interval(id_, ood)
        values["oscr_low"], values["oscr_high"] = counts.oscr_interval(right, wrong, ood)
        if right.sum() > 1:
            values["error_auroc_low"], values["error_auroc_high"] = counts.auroc_interval(right, wrong + ood)
    return values


def _rejected(id_rejected: np.ndarray, ood_rejected: np.ndarray) -> dict[str, float]:
    return {"id_rejected": float(id_rejected.mean()), "ood_rejected": float(ood_rejected.mean())}


def bootstrap_rows(inside: np.ndarray, outside: np.ndarray, correct: np.ndarray, n_resamples: int) -> Iterator[dict]:
    """Yield measure, value, low and high for the metrics whose intervals need a bootstrap."""
    for name in ("aupr_in", "aupr_out", "fpr95", "fpr95_ood_positive"):
        low, high = bootstrap_interval(name, inside, outside, n_resamples)
        yield {"measure": name, "value": METRICS[name](*count_groups(inside, outside)), "low": low, "high": high}
    scores = np.concatenate([inside, outside])
    answers = np.concatenate([correct, np.zeros(len(outside), dtype=bool)])
    low, high = aurc_interval(scores, answers, n_resamples)
    yield {"measure": "aurc", "value": aurc(scores, answers), "low": low, "high": high}
