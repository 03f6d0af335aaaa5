"""Regret: what choosing a detector with ID data alone costs against the best one, over one study or several.

A rule chooses one detector for a run, without a look at OOD images. Its regret on an OOD set is the AUROC of the best
detector there, the oracle's choice, less that of the one it chose: nobody could have known the former.
"""

import pandas as pd

from oodlib.report.detectors import detector_names
from oodlib.report.results import SETTING, Results

ALWAYS = ("labels/cosine", "labels/mahalanobis", "knn")
BY_CLUSTERS = "best silhouette, cosine"
COLUMNS = [*SETTING, "seed", "run", "rule", "chosen", "ood_dataset", "group", "auroc", "best", "regret"]


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
    return pd.DataFrame(rows, columns=["run", "rule", "chosen"])


def regrets(results: Results) -> pd.DataFrame:
    """Return one row a run, rule and OOD set: AUROC of the chosen detector, that of the best, and the regret.

    In AUROC points. Detectors that have seen outliers, thresholds a cluster and sanity sets are left out, and so are
    rules that have chosen a detector that was not evaluated: the other runs of such a rule are no fair sample.
    """
    metrics = results.metrics
    metrics = metrics[metrics.threshold.eq("global") & metrics.seen.eq(0) & metrics.group.ne("sanity")]
    best = metrics.groupby(["run", "ood_dataset"]).auroc.transform("max")
    metrics = metrics.assign(auroc=100 * metrics.auroc, best=100 * best)
    table = chosen_detectors(results).merge(metrics, "left", left_on=["run", "chosen"], right_on=["run", "detector"])
    table = table[~table.rule.isin(table.rule[table.detector.isna()])]
    return table.assign(regret=table.best - table.auroc)[COLUMNS]


def pooled(studies: dict[str, Results]) -> pd.DataFrame:
    """Return the regret of each rule over all runs of some studies: one row a rule, AUROC points, best rule first.

    near, far: means over runs and OOD sets; worst: the largest mean over one study, ID set and group of sets, and
    worst_at where that is; n: runs × OOD sets. The first row is the recommended rule: of those that have chosen for
    every run, the one with the least worst regret.
    """
    found = pd.concat([regrets(results).assign(study=study) for study, results in studies.items()])
    by_place = found.groupby(["rule", "study", "id_dataset", "group"], sort=False).regret.mean().reset_index()
    worst = by_place.loc[by_place.groupby("rule").regret.idxmax()].set_index("rule")
    means = found.groupby(["rule", "group"]).regret.mean().unstack("group").reindex(columns=["near", "far"])
    table = means.assign(
        worst=worst.regret,
        worst_at=worst.study + ", " + worst.id_dataset + ", " + worst.group,
        n=found.groupby("rule").size(),
    )
    order = table.assign(fewer=-table.n).sort_values(["fewer", "worst"], kind="stable").index
    return table.loc[order].reset_index().rename_axis(columns=None)
