"""Evaluation: metrics of a detector for every threshold and OOD set, and their intervals.

Everything that depends on the order of the scores alone comes from one sort. An ID input counts as right or wrong by
the run's own classifier, an OOD input always as wrong: so the metrics of `oodlib.selective` ask whether the score
rejects the model's errors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from oodlib.arrays import check_scores
from oodlib.metrics import METRICS, auroc_interval, bootstrap_interval, count_groups
from oodlib.scoring.thresholds import THRESHOLDS, cluster_p_values
from oodlib.selective import ERROR_METRICS, augrc_interval, aurc_interval, error_auroc_interval, oscr_interval

SPLITS = {False: "train", True: "calibration"}  # of the reference images, by whether they have been held out


@dataclass(frozen=True)
class Scored:
    """The scores (n,) of one detector by the name of the set, and the nearest cluster (n,) where it has clusters.

    `seen` is how many images of each class of the OOD set the detector has seen; where there are some, it is another
    detector for every OOD set, and its scores of ID images stand under "train NAME", "calibration NAME", "test NAME".
    """

    clustering: str
    n_clusters: int
    distance: str
    scores: dict[str, np.ndarray]
    nearest: dict[str, np.ndarray] | None = None
    seen: int = 0


def evaluate(
    scored: Scored, ood_sets: list[str], correct: np.ndarray, alpha: float, thresholds: Sequence[str] = ()
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
    """Return the metrics and the rejected shares by threshold; a threshold a cluster ranks by p-values within it."""
    prefix = f" {ood}" if scored.seen else ""
    inside, outside = _with_nearest(scored, "test" + prefix), _with_nearest(scored, ood)
    n_clusters = 1 + max(int(nearest.max()) for nearest in (scored.nearest or {"": inside[1]}).values())
    ranking, rows = rank_metrics(inside[0], outside[0], correct), {}
    for name in thresholds or THRESHOLDS:
        threshold = THRESHOLDS[name]
        if threshold.by_cluster and scored.nearest is None:
            continue
        reference = _with_nearest(scored, SPLITS[threshold.held_out] + prefix)
        limits = np.broadcast_to(threshold.set(*reference, n_clusters, alpha), n_clusters)
        rejected = [float((scores < limits[nearest]).mean()) for scores, nearest in (inside, outside)]
        if threshold.by_cluster:
            p_values = (cluster_p_values(*part, *reference) for part in (inside, outside))
            rows[name] = rank_metrics(*p_values, correct)
        else:
            rows[name] = ranking
        rows[name] = rows[name] | {"id_rejected": rejected[0], "ood_rejected": rejected[1]}
    return rows


def _with_nearest(scored: Scored, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (n,) of a set and each one's nearest cluster (n,): 0 where there are no clusters."""
    scores = scored.scores[name]
    return scores, np.zeros(len(scores), dtype=np.int64) if scored.nearest is None else scored.nearest[name]


def rank_metrics(inside: np.ndarray, outside: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Return what the order of ID scores (n,) and OOD scores (m,) decides; correct (n,) bool. NaN raises ValueError."""
    inside, outside = check_scores("ID scores", inside), check_scores("OOD scores", outside)
    right, wrong, ood = count_groups(inside[correct], inside[~correct], outside)
    values = {name: metric(right + wrong, ood) for name, metric in METRICS.items()}
    values |= {"n_id": len(inside), "n_ood": len(outside)}
    return values | {name: metric(right, wrong, ood) for name, metric in ERROR_METRICS.items()}


def interval_rows(inside: np.ndarray, outside: np.ndarray, correct: np.ndarray, n_resamples: int) -> Iterator[dict]:
    """Yield measure, value, low and high, a 95 % interval, of every metric of `rank_metrics`.

    Those that count pairs have DeLong's, none where a group has less than two scores; the others a bootstrap's.
    """
    values, intervals = rank_metrics(inside, outside, correct), {}
    scores, answers = np.concatenate([inside, outside]), np.concatenate([correct, np.zeros(len(outside), dtype=bool)])
    if min(len(inside), len(outside)) > 1:
        intervals["auroc"] = auroc_interval(inside, outside)
        intervals["oscr"] = oscr_interval(inside, correct, outside)
        if correct.sum() > 1:
            intervals["error_auroc"] = error_auroc_interval(scores, answers)
    for name in list(METRICS)[1:]:  # all but the AUROC
        intervals[name] = bootstrap_interval(name, inside, outside, n_resamples)
    intervals["aurc"] = aurc_interval(scores, answers, n_resamples)
    intervals["augrc"] = augrc_interval(scores, answers, n_resamples)
    for name, (low, high) in intervals.items():
        yield {"measure": name, "value": values[name], "low": low, "high": high}
