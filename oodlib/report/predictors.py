"""Predictors: measures of ID data alone, and how they rank the runs against the OOD AUROC of one detector."""

import itertools

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.report.means import group_means
from oodlib.report.results import SETTING, Results, of_classes

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
