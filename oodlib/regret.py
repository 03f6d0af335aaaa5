"""Regret: the results of a study in; what choosing a detector with ID data alone costs against the best one out.

A rule chooses one detector for a run, without a look at OOD images. Its regret on an OOD set is the AUROC of the best
detector there, the oracle's choice, less that of the one it chose: nobody could have known the former.
"""

import pandas as pd

from oodlib.report import SETTING, Results, detector_names, mean_sd, over_seeds

ALWAYS = ("labels/cosine", "labels/mahalanobis", "knn")
BY_CLUSTERS = "best silhouette, cosine"
COLUMNS = [*SETTING, "seed", "run", "rule", "chosen", "ood_dataset", "group", "auroc", "best", "regret"]


def chosen_detectors(results: Results) -> pd.DataFrame:
    """Return the detector (chosen) of every rule (rule) for every run (run)."""
    rows = []
    choices = results.choices.assign(detector=detector_names(results.choices))
    for (run, rule), found in choices.groupby(["run", "rule"], sort=False):
        rows.append((run, rule, found.detector.iloc[found.auroc.argmax()]))
    quality = results.clusters[results.clusters.measure.eq("silhouette") & results.clusters.value.notna()]
    quality = quality.assign(distance="cosine")
    for run, found in quality.assign(detector=detector_names(quality)).groupby("run", sort=False):
        rows.append((run, BY_CLUSTERS, found.detector.iloc[found.value.argmax()]))
    rows += [(run, f"always {name}", name) for run in results.runs.run for name in ALWAYS]
    return pd.DataFrame(rows, columns=["run", "rule", "chosen"])


def regrets(results: Results) -> pd.DataFrame:
    """Return one row a run, rule and OOD set: AUROC of the chosen detector, that of the best, and the regret.

    In AUROC points. Detectors that have seen outliers, thresholds a cluster and sanity sets are left out.
    """
    metrics = results.metrics
    metrics = metrics[metrics.threshold.eq("global") & metrics.seen.eq(0) & metrics.group.ne("sanity")]
    metrics = metrics.assign(
        auroc=100 * metrics.auroc, best=100 * metrics.groupby(["run", "ood_dataset"]).auroc.transform("max")
    )
    table = chosen_detectors(results).merge(metrics, left_on=["run", "chosen"], right_on=["run", "detector"])
    return table.assign(regret=table.best - table.auroc)[COLUMNS]


def regret_table(results: Results) -> pd.DataFrame:
    """Return the mean regret of each rule over near and over far sets, AUROC points, mean ± sd over runs, with n.

    One row an ID set and rule, least near regret first; the sets of a group are averaged within a run.
    """
    keys = ["id_dataset", "rule"]
    per_run = regrets(results).groupby([*keys, "run", "group"], sort=False).regret.mean().reset_index()
    found = over_seeds(per_run, [*keys, "group"], "regret").reset_index()
    found["cell"] = [mean_sd(mean, sd) for mean, sd in zip(found["mean"], found.sd, strict=True)]
    wide = found.pivot(index=[*keys, "n"], columns="group", values=["cell", "mean"])
    order = wide["mean"].mean(axis=1).rename("order").reset_index().sort_values(["id_dataset", "order"]).index
    groups = [group for group in ("near", "far") if group in wide["cell"]]
    cells = wide["cell"][groups].rename(columns=lambda group: f"{group} regret").reset_index()
    return cells.loc[order].reset_index(drop=True).rename_axis(columns=None)
