"""Findings: the results of a study in; tables on thresholds, the model's errors, and what predicts OOD AUROC, out.

What predicts is computed on ID data alone; the AUROC it is held against is that of a detector named beforehand.
"""

import itertools

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.report.results import SETTING, Results, group_means, mean_sd, of_classes, over_seeds

RUN = [*SETTING, "seed"]
ERROR_MEASURES = ["auroc", "error_auroc", "aurc", "augrc", "oscr"]
N_PERMUTATIONS = 9999
KMEANS_MEASURES = ("cluster_purity", "nmi", "silhouette")  # purity of unsupervised clusters is the paper's own measure


def threshold_table(results: Results, detectors: list[str]) -> pd.DataFrame:
    """Return false alarms and detections in percent at the shipped thresholds, mean ± sd over seeds, with n.

    One row a setting, detector and threshold; detections are averaged over the near and over the far sets of a run.
    Raises ValueError for an unknown detector.
    """
    known = list(dict.fromkeys(results.decisions.base))
    if unknown := [name for name in detectors if name not in known]:
        raise ValueError(f"unknown detector {unknown[0]!r}; known: {', '.join(known)}")
    decisions = results.decisions[results.decisions.base.isin(detectors)]
    keys = [*SETTING, "base", "threshold"]
    parts = {"false alarms %": over_seeds(_percent(decisions, [*keys, "seed"], "id_rejected"), keys, "id_rejected")}
    for group in ("near", "far"):
        chosen = decisions[decisions.group == group]
        if len(chosen):
            rates = _percent(chosen, [*keys, "seed"], "ood_rejected")
            parts[f"{group} OOD detected %"] = over_seeds(rates, keys, "ood_rejected")
    return _beside(parts, keys).rename(columns={"base": "detector"})


def _beside(parts: dict[str, pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """Return tables of mean, sd and n with the same index as one: keys, n, and a column "mean ± sd" a table."""
    first = next(iter(parts.values()))
    parts = {name: part.reindex(first.index) for name, part in parts.items()}
    cells = {name: [mean_sd(m, s) for m, s in zip(p["mean"], p.sd, strict=True)] for name, p in parts.items()}
    return first.index.to_frame(index=False)[keys].assign(n=first.n.to_numpy(), **cells)


def _percent(table: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Return the mean of a share over the rows of each group, in percent."""
    return table.groupby(keys, sort=False)[value].mean().mul(100).reset_index()


def error_table(results: Results) -> pd.DataFrame:
    """Return how well scores reject OOD images and the model's own errors together, mean ± sd over seeds, with n.

    One row a setting, detector and group of OOD sets, near or far: AUROC, AUROC of errors, AURC and AUGRC (lower is
    better) and OSCR, all times 100, each averaged over the sets of a run first. What some run has not measured, as
    earlier ones AUGRC, is left out.
    """
    keys = [*SETTING, "detector", "group"]
    measured = results.metrics.reindex(columns=["run", *ERROR_MEASURES]).groupby("run").count().all()
    measures = [measure for measure in ERROR_MEASURES if measured[measure]]
    means = group_means(results, measures)
    means[measures] *= 100
    parts = {measure: over_seeds(means, keys, measure) for measure in measures}
    return _beside(parts, keys)


def mistake_table(results: Results) -> pd.DataFrame:
    """Return what mistakes of earlier code would change, in points of AUROC or FPR95, mean ± sd over runs, with n.

    One row a mistake, ID set and detector, over the runs of all objectives; near and far sets apart, each averaged
    within a run first. Some mistakes come from step 04, on the first 2,000 images of each set, and one is a column of
    metrics.csv: FPR95 with OOD as positive.
    """
    decisions = results.decisions
    groups = decisions[["run", "ood_dataset", "group"]].drop_duplicates()
    ablations = results.ablations.assign(detector="labels/" + results.ablations.distance)
    ablations = ablations.merge(groups, on=["run", "ood_dataset"])
    swapped = decisions[decisions.threshold == "global"]
    swapped = swapped.assign(mistake="OOD as positive, FPR95", right=swapped.fpr95, wrong=swapped.fpr95_ood_positive)
    kept = ["labels/cosine", "labels/mahalanobis"]
    swapped = swapped[swapped.base.isin(kept)]
    rows = pd.concat([ablations, swapped.assign(detector=swapped.base)])
    rows = rows.assign(change=100 * (rows.wrong - rows.right), right=100 * rows.right)
    rows["mistake"] = pd.Categorical(rows.mistake, list(dict.fromkeys(rows.mistake)), ordered=True)
    keys = ["mistake", "id_dataset", "detector"]
    per_run = rows.groupby([*keys, "group", "run"], observed=True)[["right", "change"]].mean().reset_index()
    parts = {
        f"{group} {name}": over_seeds(per_run[per_run.group == group], keys, value)
        for group in ("near", "far")
        if group in set(per_run.group)
        for name, value in (("right %", "right"), ("change", "change"))
    }
    return _beside(parts, keys)


def id_measures(results: Results) -> pd.DataFrame:
    """Return one row a run and one column a measure that needs ID data alone: accuracies, and quality of the clusters.

    Of the classes and, as "k-means …", of k-means with as many clusters. Measures a cluster are averaged over the
    clusters.
    """
    clusters = results.clusters
    whole = clusters[clusters.clustering.isin(["labels", "none"])]
    kmeans = [of_classes(clusters, "kmeans", measure) for measure in KMEANS_MEASURES]
    kmeans = pd.concat(kmeans)
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
