"""Tables beside AUROC: accuracy and cost, clusters, thresholds, and the model's own errors; mean ± sd over seeds."""

import itertools

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.report.means import beside, group_means, mean_sd, over_seeds
from oodlib.report.results import SETTING, Results, of_classes

ERROR_MEASURES = ["auroc", "error_auroc", "aurc", "augrc", "oscr"]


def cost_table(results: Results) -> pd.DataFrame:
    """Return, for each setting, accuracy and training cost as mean ± sd over seeds, with n."""
    runs = results.runs.groupby(SETTING, sort=False)
    table = runs.epochs.agg(lambda epochs: "–".join(str(e) for e in sorted(set(epochs)))).reset_index()
    table.insert(len(SETTING), "n", runs.size().to_numpy())
    columns = {
        "ID accuracy %": ("id_accuracy", 100),
        "nearest class mean %": ("nearest_class_mean", 100),
        "training seconds": ("training_seconds", 1),
    }
    for name, (column, times) in columns.items():
        spread = zip(runs[column].mean() * times, runs[column].std() * times, strict=True)
        table[name] = [mean_sd(mean, sd) for mean, sd in spread]
    return table.assign(**{"network inputs": [f"{n:,.0f}" for n in runs.network_inputs.mean()]})


def cluster_table(
    results: Results, measures: tuple[str, ...] = ("global_separation", "cluster_purity")
) -> pd.DataFrame:
    """Return, for each setting, clustering and K, the measures' means over clusters: mean ± sd over seeds, with n."""
    keys = [*SETTING, "clustering", "n_clusters"]
    chosen = results.clusters[results.clusters.measure.isin(measures)]
    per_run = chosen.groupby([*keys, "measure", "seed"], sort=False).value.mean().dropna().reset_index()
    table = over_seeds(per_run, [*keys, "measure"], "value").reset_index()
    table["cell"] = [
        f"{m:.3f}" if pd.isna(s) else f"{m:.3f} ± {s:.3f}" for m, s in zip(table["mean"], table.sd, strict=True)
    ]
    spread = table.pivot_table(index=[*keys, "n"], columns="measure", values="cell", aggfunc="first", sort=False)
    spread = spread.fillna("").reset_index().rename_axis(columns=None)
    spread["place"] = spread.groupby([*SETTING, "clustering"], sort=False).ngroup()
    return spread.sort_values(["place", "n_clusters"], kind="stable", ignore_index=True).drop(columns="place")


def threshold_table(results: Results, detectors: list[str]) -> pd.DataFrame:
    """Return false alarms and detections in percent at the shipped thresholds, mean ± sd over seeds, with n.

    One row a setting, detector and threshold; detections are averaged over the near and over the far sets of a run.
    Raises ValueError for an unknown detector.
    """
    known = list(dict.fromkeys(results.decisions.base))
    if unknown := [name for name in detectors if name not in known]:
        raise ValueError(f"unknown detector {unknown[0]!r}; known: {', '.join(known)}")
    decisions = results.decisions[results.decisions.base.isin(detectors)].rename(columns={"base": "detector"})
    keys = [*SETTING, "detector", "threshold"]
    parts = {"false alarms %": over_seeds(_percent(decisions, [*keys, "seed"], "id_rejected"), keys, "id_rejected")}
    for group in ("near", "far"):
        chosen = decisions[decisions.group == group]
        if len(chosen):
            rates = _percent(chosen, [*keys, "seed"], "ood_rejected")
            parts[f"{group} OOD detected %"] = over_seeds(rates, keys, "ood_rejected")
    return beside(parts)


def _percent(table: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Return the mean of a share over the rows of each group, in percent."""
    return table.groupby(keys, sort=False)[value].mean().mul(100).reset_index()


def error_table(results: Results) -> pd.DataFrame:
    """Return how well scores reject OOD images and the model's own errors together, mean ± sd over seeds, with n.

    One row a setting, detector and group of OOD sets, near or far: AUROC, AUROC of errors, AURC and AUGRC (lower is
    better) and OSCR, all times 100, each averaged over the sets of a run first. A measure that some run lacks, as
    earlier ones AUGRC, is left out.
    """
    keys = [*SETTING, "detector", "group"]
    measured = results.metrics.reindex(columns=["run", *ERROR_MEASURES]).groupby("run").count().all()
    measures = [measure for measure in ERROR_MEASURES if measured[measure]]
    means = group_means(results, measures)
    means[measures] *= 100
    return beside({measure: over_seeds(means, keys, measure) for measure in measures})


RUN = [*SETTING, "seed"]
N_PERMUTATIONS = 9999
KMEANS_MEASURES = ("cluster_purity", "nmi", "silhouette")  # purity of unsupervised clusters is the paper's own measure


def id_measures(results: Results) -> pd.DataFrame:
    """Return one row a run and one column a measure that needs ID data alone: accuracies, and quality of the clusters.

    The clusters are the classes and, as "k-means …", k-means with as many clusters. A measure of each cluster is
    averaged over the clusters.
    """
    clusters = results.clusters
    whole = clusters[clusters.clustering.isin(["labels", "none"])]
    kmeans = pd.concat([of_classes(clusters, "kmeans", measure) for measure in KMEANS_MEASURES])
    kmeans = kmeans.assign(measure="k-means " + kmeans.measure)
    quality = pd.concat([whole, kmeans]).pivot_table(index=RUN, columns="measure", values="value", aggfunc="mean")
    constant = quality.columns[quality.nunique() < 2]  # purity of the classes themselves, and the like
    accuracy = results.runs.set_index(RUN)[["id_accuracy", "nearest_class_mean"]]
    return accuracy.join(quality.drop(columns=constant))


def ood_auroc(results: Results, detector: str) -> pd.DataFrame:
    """Return the mean AUROC of one detector over near and over far sets: one row a run, one column a group."""
    means = group_means(results, ["auroc"])
    return means[means.detector == detector].pivot(index=RUN, columns="group", values="auroc")


def rank_correlation(x: pd.Series, y: pd.Series) -> tuple[float, float]:
    """Return Spearman's rank correlation of x (n,) and y (n,), and its two-sided p by random permutations.

    The usual p of a t distribution needs hundreds of points; of four in perfect order it says 0, where 1/12 is right.
    """
    ranks = [stats.zscore(stats.rankdata(values)) for values in (x, y)]
    shuffled = np.random.default_rng(0).permuted(np.tile(ranks[0], (N_PERMUTATIONS, 1)), axis=1)  # (permutations, n)
    spearman = ranks[0] @ ranks[1] / len(x)
    as_strong = np.abs(shuffled @ ranks[1] / len(x)) >= abs(spearman) - 1e-9
    return float(spearman), float((1 + as_strong.sum()) / (1 + N_PERMUTATIONS))


def predictors(results: Results, detector: str) -> pd.DataFrame:
    """Return how each measure that needs ID data alone ranks the runs, against their OOD AUROC with one detector.

    Columns: id_dataset, measure, group (near or far), spearman (rank correlation over the runs of an ID set; over
    several sets it would say which set is easy), p (of no correlation, by random permutations), n (runs). Seeds of one
    setting are not independent, so p is too small; a sign that differs from the expected one is a finding.
    """
    reached, measures = ood_auroc(results, detector), id_measures(results)
    rows = []
    for id_dataset, group, measure in itertools.product(dict.fromkeys(results.runs.id_dataset), reached, measures):
        pair = measures[[measure]].join(reached[group]).xs(id_dataset, level="id_dataset")
        pair = pair.replace([np.inf, -np.inf], np.nan).dropna()
        if len(pair) > 2 and pair.nunique().min() > 1:
            spearman, p = rank_correlation(pair[measure], pair[group])
            rows.append((id_dataset, measure, group, spearman, p, len(pair)))
    table = pd.DataFrame(rows, columns=["id_dataset", "measure", "group", "spearman", "p", "n"])
    order = {name: place for place, name in enumerate(dict.fromkeys(table.id_dataset))}
    by = {"id_dataset": order.get, "group": {"near": 0, "far": 1}.get, "spearman": lambda value: -abs(value)}
    return table.sort_values(list(by), key=lambda column: column.map(by[column.name]), ignore_index=True)
