"""Detector tables: the results of a study in; its main table by ID set, and all of the product of factors, out."""

from dataclasses import replace

import pandas as pd

from oodlib.report.intervals import auroc_intervals
from oodlib.report.provenance import display_name
from oodlib.report.results import SETTING, Results, cost_table, group_means, over_seeds, wide

CHOSEN = "kmeans-chosen"


def chosen_sizes(results: Results) -> pd.Series:
    """Return the K of k-means that each setting chooses with ID data alone: that of the best mean silhouette."""
    quality = results.clusters[results.clusters.measure.eq("silhouette") & results.clusters.clustering.eq("kmeans")]
    means = quality.groupby([*SETTING, "n_clusters"], sort=False).value.mean().dropna().reset_index()
    best = means.loc[means.groupby(SETTING, sort=False).value.idxmax()]
    return best.set_index(SETTING).n_clusters.rename("chosen")


def with_chosen_size(shown: Results, results: Results, distance: str = "cosine") -> Results:
    """Return the results shown with one detector more, k-means with the K that a setting chooses, from all results."""
    sizes = chosen_sizes(results)
    if sizes.empty:
        return shown
    metrics = results.metrics.join(sizes, on=SETTING)
    own = metrics.clustering.eq("kmeans") & metrics.n_clusters.eq(metrics.chosen)
    own &= metrics.distance.eq(distance) & metrics.threshold.eq("global")
    rows = metrics[own].drop(columns="chosen").assign(detector=f"{CHOSEN}/{distance}")
    order = {run: place for place, run in enumerate(results.runs.run)}
    both = pd.concat([shown.metrics, rows]).sort_values("run", key=lambda run: run.map(order), kind="stable")
    return replace(shown, metrics=both.reset_index(drop=True))


def with_intervals(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Return a tidy table of AUROC with the columns low and high: DeLong's 95 % interval, in percent, where n is 1."""
    keys = [*SETTING, "detector", "ood_dataset"]
    known = auroc_intervals(results).merge(results.runs[["run", *SETTING]], on="run")
    known = known.groupby(keys)[["low", "high"]].mean() * 100  # of one run; where there are several, it is not shown
    table = table.merge(known, left_on=keys, right_index=True, how="left")
    table.loc[table.n > 1, ["low", "high"]] = float("nan")
    return table


def reading_tables(results: Results, table: pd.DataFrame, best: str = "max") -> dict[str, pd.DataFrame]:
    """Return the main table for reading, one an ID set, with accuracy and cost beside it.

    Sets have the names that people know them by.
    """
    cost = cost_table(results)[[*SETTING, "ID accuracy %", "training seconds"]]
    tables = {}
    for id_dataset, part in table.groupby("id_dataset", sort=False):
        found = wide(part, best).merge(cost, on=SETTING).drop(columns="id_dataset")
        if found.arch.nunique() == 1:
            found = found.drop(columns="arch")
        found.insert(found.shape[1] - 3, "n", found.pop("n"))
        tables[display_name(id_dataset)] = found.rename(columns=display_name)
    return tables


def product_table(results: Results) -> pd.DataFrame:
    """Return AUROC, in percent, of all combinations of the factors: a row each, with K in numerical order.

    Columns: setting, clustering, n_clusters, distance, threshold, and of the means over near and over far sets, as
    near, near_sd, near_n and so on, mean and sd over the seeds, with n.
    """
    parts = ["clustering", "n_clusters", "distance", "threshold"]
    about = results.metrics[results.metrics.seen == 0].drop_duplicates("detector").set_index("detector")[parts]
    means = group_means(results, ["auroc"])
    means = means[means.detector.isin(about.index)]
    columns = {}
    for group, own in means.groupby("group", sort=False):
        found = over_seeds(own.assign(auroc=100 * own.auroc), [*SETTING, "detector"], "auroc")
        columns |= {group: found["mean"], f"{group}_sd": found.sd, f"{group}_n": found.n}
    table = pd.DataFrame(columns).reset_index()
    for group in dict.fromkeys(means.group):
        table[f"{group}_n"] = table[f"{group}_n"].fillna(0).astype(int)
    table = table.join(about, on="detector").drop(columns="detector")
    order = {name: list(dict.fromkeys(results.metrics[name])) for name in [*SETTING, "clustering", "distance"]}
    table = table.sort_values(
        [*SETTING, "clustering", "n_clusters", "distance", "threshold"],
        key=lambda column: column.map(order[column.name].index) if column.name in order else column,
    )
    return table[[*SETTING, *parts, *columns]].reset_index(drop=True)


def four_digits(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its floats to four significant digits."""
    floats = table.select_dtypes("float").columns
    return table.assign(**{name: [float(f"{value:.4g}") for value in table[name]] for name in floats})
