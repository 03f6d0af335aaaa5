"""Regret: the results of a study in; what choosing a detector with ID data alone costs against the best one out.

A rule chooses one detector for a run, without a look at OOD images. Its regret on an OOD set is the AUROC of the best
detector there, the oracle's choice, less that of the one it chose: nobody could have known the former.
"""

import pandas as pd

from oodlib.report.results import SETTING, Results, detector_names, mean_sd, over_seeds

ALWAYS = ("labels/cosine", "labels/mahalanobis", "knn")
BY_CLUSTERS = "best silhouette, cosine"
ORACLE = "oracle"
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

    In AUROC points. The rule "oracle" takes the best, which it knows from OOD data, and has none. Detectors that have
    seen outliers, thresholds a cluster and sanity sets are left out, and so are rules that have chosen a detector that
    was not evaluated: the other runs of such a rule are no fair sample.
    """
    metrics = results.metrics
    metrics = metrics[metrics.threshold.eq("global") & metrics.seen.eq(0) & metrics.group.ne("sanity")]
    metrics = metrics.assign(
        auroc=100 * metrics.auroc, best=100 * metrics.groupby(["run", "ood_dataset"]).auroc.transform("max")
    )
    table = chosen_detectors(results).merge(metrics, "left", left_on=["run", "chosen"], right_on=["run", "detector"])
    table = table[~table.rule.isin(table.rule[table.detector.isna()])]
    best = metrics.loc[metrics.groupby(["run", "ood_dataset"], sort=False).auroc.idxmax()]
    table = pd.concat([table, best.assign(rule=ORACLE, chosen=best.detector)], ignore_index=True)
    return table.assign(regret=table.best - table.auroc)[COLUMNS]


def regret_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return the mean regret of each rule, AUROC points, near, far and by OOD set: mean ± sd over seeds, with n.

    One row an ID set and rule, least near regret first. Sets and objectives are averaged within a seed, since runs of
    one seed share its choices; seeds that lack an objective of their ID set are left out where another has all. The
    oracle, which has no regret, is named with the detector it takes most often.
    """
    found = _whole_seeds(found[found.group.isin(["near", "far"])])
    by_set = found.assign(column=found.ood_dataset)
    both = pd.concat([found.assign(column=found.group + " mean"), by_set])
    cells = _over_seeds(both, ["id_dataset", "rule", "column"]).reset_index()
    cells["cell"] = [mean_sd(mean, sd) for mean, sd in zip(cells["mean"], cells.sd, strict=True)]
    cells = pd.concat([_oracle_cells(both), cells])
    return _spread(cells)


def told(found: pd.DataFrame) -> str:
    """Return which rule has the least mean regret, by ID set and group, and which the least where it is worst."""
    rows = _whole_seeds(found[found.group.isin(["near", "far"])])
    means = _over_seeds(rows, ["id_dataset", "group", "rule"])["mean"].unstack("rule")
    least = [
        f"{' '.join(key)} OOD: {own.idxmin()} ({own.min():.1f}; the worst, {own.idxmax()}, {own.max():.1f})"
        for key, own in means.iterrows()
    ]
    worst = means.max(skipna=False)
    return (
        f"Least regret, AUROC points. {'; '.join(least)}. Least where it is worst: {worst.idxmin()}, {worst.min():.1f}."
    )


def _over_seeds(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return mean, sd and n of the regret of all rules but the oracle; sets and objectives are averaged in a seed."""
    seeds = rows[rows.rule != ORACLE].groupby([*keys, "seed"], sort=False).regret.mean()
    return over_seeds(seeds.reset_index(), keys, "regret")


def _whole_seeds(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of seeds that have all objectives of their ID set and architecture, where there are any."""
    keys = ["id_dataset", "arch"]
    all_there, of_seed = (found.groupby(by).objective.transform("nunique") for by in (keys, [*keys, "seed"]))
    whole = of_seed == all_there
    return found[whole | ~whole.groupby([found[key] for key in keys]).transform("any")]


def _oracle_cells(both: pd.DataFrame) -> pd.DataFrame:
    """Return what the oracle takes: the detector it takes most often, and for how many of its choices."""
    oracle = both[both.rule == ORACLE]
    taken = oracle.groupby(["id_dataset", "rule", "column"], sort=False)
    cells = taken.chosen.agg(lambda names: f"{names.mode()[0]} ({names.eq(names.mode()[0]).sum()}/{len(names)})")
    n = oracle.groupby("id_dataset").seed.nunique()
    return cells.rename("cell").reset_index().assign(n=lambda own: own.id_dataset.map(n), mean=-1.0)  # before all rules


def _spread(cells: pd.DataFrame) -> pd.DataFrame:
    """Return cells as a table: one row an ID set and rule, least near regret first; means before sets."""
    means = [name for name in ("near mean", "far mean") if name in set(cells.column)]
    columns = means + [name for name in dict.fromkeys(cells.column) if name not in means]
    keys = ["id_dataset", "rule"]
    wide = cells.pivot(index=keys, columns="column", values="cell")[columns]
    order = cells[cells.column == columns[0]].set_index(keys)
    table = wide.assign(n=order.n, order=order["mean"]).reset_index().sort_values(["id_dataset", "order"])
    table = table[[*keys, "n", *columns]].fillna("").reset_index(drop=True)
    return table.rename_axis(columns=None)
