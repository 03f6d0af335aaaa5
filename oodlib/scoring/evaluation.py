"""Scores of one detector in; one row of metrics for every threshold and OOD set, and intervals, out.

Everything that depends on the order of the scores alone comes from one sort. An ID input counts as right or wrong by
the run's own classifier, an OOD input always as wrong: so the metrics of `oodlib.selective` ask whether the score
rejects the model's errors.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from oodlib import counts
from oodlib.counts import METRICS, count_groups
from oodlib.metrics import bootstrap_interval, check_scores
from oodlib.scoring.product import Scored
from oodlib.scoring.thresholds import THRESHOLDS, cluster_p_values, truncated_auroc
from oodlib.selective import augrc_interval, aurc_interval

SPLITS = {False: "train", True: "calibration"}  # of the reference images, by whether they have been held out


def evaluate(
    scored: Scored,
    ood_sets: list[str],
    correct: np.ndarray,
    alpha: float,
    thresholds: Sequence[str] = (),
) -> Iterator[dict]:
    """Yield one row for every OOD set and threshold of a detector.

    correct (n,) bool: which ID test images the run's own classifier gets right. `id_rejected` and `ood_rejected` are
    the shares below the threshold at false-alarm rate `alpha`. No names of `thresholds` take all there are; those a
    cluster are for detectors with clusters.
    """
    about = {key: getattr(scored, key) for key in ("clustering", "n_clusters", "distance", "seen")}
    for ood in ood_sets:
        if ood in scored.scores:
            for threshold, values in _by_threshold(scored, ood, correct, alpha, thresholds).items():
                yield {"ood_dataset": ood} | about | {"threshold": threshold} | values


def _by_threshold(
    scored: Scored, ood: str, correct: np.ndarray, alpha: float, thresholds: Sequence[str]
) -> dict[str, dict[str, float]]:
    prefix = f" {ood}" if scored.seen else ""
    inside, outside = _with_nearest(scored, "test" + prefix), _with_nearest(scored, ood)
    references = {held_out: _with_nearest(scored, split + prefix) for held_out, split in SPLITS.items()}
    n_clusters = 1 + max(int(nearest.max()) for nearest in (scored.nearest or {"": inside[1]}).values())
    ranking = rank_metrics(inside[0], outside[0], correct)
    rows = {}
    for name in thresholds or THRESHOLDS:
        threshold = THRESHOLDS[name]
        if threshold.by_cluster and scored.nearest is None:
            continue
        reference = references[threshold.held_out]
        limits = np.broadcast_to(threshold.set(*reference, n_clusters, alpha), n_clusters)
        rejected = [float((scores < limits[nearest]).mean()) for scores, nearest in (inside, outside)]
        if threshold.by_cluster:
            p_values = [cluster_p_values(*part, *reference) for part in (inside, outside)]
        of_cluster = rank_metrics(*p_values, correct) if threshold.by_cluster else ranking
        rows[name] = of_cluster | {"id_rejected": rejected[0], "ood_rejected": rejected[1], "auroc_101": np.nan}
        if name == "per-cluster":
            nearest = (inside[1], outside[1])
            shares = (_shares(p, own, reference[1]) for p, own in zip(p_values, nearest, strict=True))
            rows[name]["auroc_101"] = truncated_auroc(*shares)
    return rows


def _with_nearest(scored: Scored, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (n,) of a set and each one's nearest cluster (n,): 0 where there are no clusters."""
    scores = scored.scores[name]
    return scores, np.zeros(len(scores), dtype=np.int64) if scored.nearest is None else scored.nearest[name]


def _shares(p_values: np.ndarray, nearest: np.ndarray, reference_nearest: np.ndarray) -> np.ndarray:
    """Return the share (n,) of its cluster's m reference images that each image is as normal as, from its p-value.

    p = (1 + m share) / (m + 1); in a cluster without reference images the share is 1.
    """
    m = np.bincount(reference_nearest, minlength=nearest.max() + 1)[nearest]
    return np.divide(p_values * (m + 1) - 1, m, out=np.ones(len(m)), where=m > 0)


def rank_metrics(inside: np.ndarray, outside: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Return what the order of ID scores (n,) and OOD scores (m,) decides; correct (n,) bool. NaN raises ValueError."""
    return _of_counts(*_count(inside, outside, correct))


def _of_counts(right: np.ndarray, wrong: np.ndarray, ood: np.ndarray) -> dict[str, float]:
    id_ = right + wrong
    values = {name: metric(id_, ood) for name, metric in METRICS.items()}
    values |= {"n_id": int(id_.sum()), "n_ood": int(ood.sum())}
    values |= {"error_auroc": counts.auroc(right, wrong + ood) if right.any() else np.nan}
    values |= {"aurc": counts.aurc(right, wrong + ood), "augrc": counts.augrc(right, wrong + ood)}
    return values | {"oscr": counts.oscr(right, wrong, ood)}


def interval_rows(inside: np.ndarray, outside: np.ndarray, correct: np.ndarray, n_resamples: int) -> Iterator[dict]:
    """Yield measure, value, low and high, a 95 % interval, of every metric of `rank_metrics`.

    Those that count pairs have DeLong's, none where a group has less than two scores; the others a bootstrap's.
    """
    right, wrong, ood = _count(inside, outside, correct)
    values, intervals = _of_counts(right, wrong, ood), {}
    if min(len(inside), len(outside)) > 1:
        intervals["auroc"] = counts.auroc_interval(right + wrong, ood)
        intervals["oscr"] = counts.oscr_interval(right, wrong, ood)
        if right.sum() > 1:
            intervals["error_auroc"] = counts.auroc_interval(right, wrong + ood)
    for name in ("aupr_in", "aupr_out", "fpr95", "fpr95_ood_positive"):
        intervals[name] = bootstrap_interval(name, inside, outside, n_resamples)
    answers = np.concatenate([correct, np.zeros(len(outside), dtype=bool)])
    for name, interval in (("aurc", aurc_interval), ("augrc", augrc_interval)):
        intervals[name] = interval(np.concatenate([inside, outside]), answers, n_resamples)
    for name, (low, high) in intervals.items():
        yield {"measure": name, "value": values[name], "low": low, "high": high}


def _count(inside: np.ndarray, outside: np.ndarray, correct: np.ndarray) -> list[np.ndarray]:
    inside, outside = check_scores("ID scores", inside), check_scores("OOD scores", outside)
    return count_groups(inside[correct], inside[~correct], outside)
