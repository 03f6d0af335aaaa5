"""Ranks: how detectors rank over blocks, with the tests of Friedman and Nemenyi (Demšar 2006)."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.report.detectors import detector_names, names_by_classes
from oodlib.report.results import SETTING, Results, n_classes, sized_as_classes

BLOCK = [*SETTING, "ood_dataset"]


@dataclass(frozen=True)
class Ranking:
    """AUROC in points, one row a block and one column a detector; mean ranks, best first; the critical difference.

    Mean ranks further apart than the critical difference differ at 5 % (Nemenyi), whichever two of all are compared;
    p is that of the Friedman test that all rank alike.
    """

    group: str
    blocks: pd.DataFrame
    ranks: pd.Series
    critical_difference: float
    p: float


def auroc_points(results: Results, group: str) -> pd.DataFrame:
    """Return AUROC points over the near or the far sets, of detectors that have seen no outliers.

    One row a run, detector and OOD set. Of a clustering that takes a number of clusters one stands for all, with as
    many as there are classes, called by the clustering alone: twenty Ks of one clustering are no twenty rivals.
    """
    metrics = results.metrics[(results.metrics.group == group) & (results.metrics.seen == 0)]
    metrics = metrics[_is_rival(metrics, results)]
    names = names_by_classes(metrics, n_classes(results)).str.replace("-{classes}/", "/", regex=False)
    return metrics.assign(detector=names, points=100 * metrics.auroc)


def _is_rival(metrics: pd.DataFrame, results: Results) -> pd.Series:
    """Return which detectors are compared, the same for every seed: one K of each clustering, and all without one."""
    return sized_as_classes(metrics, results) | metrics.clustering.eq("none")


def ranking(results: Results, group: str) -> Ranking | None:
    """Return the ranking of detectors over the near or the far sets; None where there are no two to rank.

    A block is an ID set, architecture, objective and OOD set; its seeds, which are no blocks of their own, are
    averaged. Detectors that a block lacks are left out.
    """
    points = auroc_points(results, group)
    blocks = points.pivot_table(index=BLOCK, columns="detector", values="points").dropna(axis=1)
    if blocks.empty or blocks.shape[1] < 2:
        return None
    ranks = blocks.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    return Ranking(group, blocks, ranks, critical_difference(*blocks.shape[::-1]), friedman(blocks))


def critical_difference(k: int, n: int) -> float:
    """Return how far two of k mean ranks over n blocks must lie apart to differ at 5 % (Demšar 2006, Nemenyi)."""
    return float(stats.studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n)))


def friedman(blocks: pd.DataFrame) -> float:
    """Return the p-value of the Friedman test that all columns rank alike; NaN for fewer than 3 or one block."""
    if len(blocks) < 2 or blocks.shape[1] < 3:
        return np.nan
    return float(stats.friedmanchisquare(*blocks.to_numpy().T).pvalue)


ALWAYS = ("labels/cosine", "labels/mahalanobis", "labels/mahalanobis-shrunk++", "knn", "fisher")
BY_CLUSTERS = "best silhouette, cosine"
BY_HEAD = "energy, or knn without a classifier"
COLUMNS = [*SETTING, "seed", "run", "rule", "chosen", "ood_dataset", "group", "auroc", "best", "best_any_k", "regret"]


def chosen_detectors(results: Results) -> pd.DataFrame:
    """Return the detector (chosen) of every rule (rule) for every run (run)."""
    rows = []
    choices = results.choices.assign(detector=detector_names(results.choices))
    for (run, rule), found in choices.groupby(["run", "rule"], sort=False):
        rows.append((run, rule, found.detector.iloc[found.auroc.fillna(-1).argmax()]))
    quality = results.clusters[results.clusters.measure.eq("silhouette") & results.clusters.value.notna()]
    quality = quality.assign(distance="cosine")
    for run, found in quality.assign(detector=detector_names(quality)).groupby("run", sort=False):
        rows.append((run, BY_CLUSTERS, found.detector.iloc[found.value.argmax()]))
    rows += [(run, f"always {name}", name) for run in results.runs.run for name in ALWAYS]
    with_head = set(results.metrics.run[results.metrics.detector == "energy"])
    rows += [(run, BY_HEAD, "energy" if run in with_head else "knn") for run in results.runs.run]
    return pd.DataFrame(rows, columns=["run", "rule", "chosen"])


def regrets(results: Results) -> pd.DataFrame:
    """Return one row a run, rule and OOD set: AUROC of the chosen detector, that of the best, and the regret.

    In AUROC points. The best is one of the detectors of `auroc_points`, the same for every seed; best_any_k is the best
    of all, whose K OOD images would choose. Detectors that have seen outliers, thresholds a cluster and sanity sets are
    left out, and so are rules that have chosen a detector that was not evaluated: the other runs of such a rule are no
    fair sample. A rule that chooses a K itself may be ahead of the best, with a regret below 0.
    """
    metrics = results.metrics
    metrics = metrics[metrics.threshold.eq("global") & metrics.seen.eq(0) & metrics.group.ne("sanity")]
    metrics = metrics.assign(auroc=100 * metrics.auroc)
    for name, rivals in (("best", metrics[_is_rival(metrics, results)]), ("best_any_k", metrics)):
        best = rivals.groupby(["run", "ood_dataset"]).auroc.max().rename(name)
        metrics = metrics.join(best, on=["run", "ood_dataset"])
    table = chosen_detectors(results).merge(metrics, "left", left_on=["run", "chosen"], right_on=["run", "detector"])
    table = table[~table.rule.isin(table.rule[table.detector.isna()])]
    return table.assign(regret=table.best - table.auroc)[COLUMNS]


def pooled(studies: dict[str, Results]) -> pd.DataFrame:
    """Return the regret of each rule over all runs of some studies: one row a rule, AUROC points, best rule first.

    near, far: means over runs and OOD sets; worst: the largest mean over one study, ID set and group of sets, worst_at
    where that is, and worst_any_k the same against the best of all K; n: runs × OOD sets. The first row is the
    recommended rule: of those that have chosen for every run, the one with the least worst regret.
    """
    found = pd.concat([regrets(results).assign(study=study) for study, results in studies.items()])
    found = found.assign(any_k=found.best_any_k - found.auroc)
    places = (
        found.groupby(["rule", "study", "id_dataset", "group"], sort=False)[["regret", "any_k"]].mean().reset_index()
    )
    worst = places.loc[places.groupby("rule").regret.idxmax()].set_index("rule")
    means = found.groupby(["rule", "group"]).regret.mean().unstack("group").reindex(columns=["near", "far"])
    table = means.assign(
        worst=worst.regret,
        worst_at=worst.study + ", " + worst.id_dataset + ", " + worst.group,
        worst_any_k=places.groupby("rule").any_k.max(),
        n=found.groupby("rule").size(),
    )
    order = table.assign(fewer=-table.n).sort_values(["fewer", "worst"], kind="stable").index
    return table.loc[order].reset_index().rename_axis(columns=None)
