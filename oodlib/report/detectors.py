"""Detectors in reports: what they are called in tables, and the lists of those that tables and figures show.

In a list, {classes} is the number of classes of the ID set.
"""

import pandas as pd

from oodlib.clustering.clusters import OWN_SIZE
from oodlib.study.reported import RANKING

MAIN = (  # in tables for reading, in figures and rank diagrams: as many as a reader takes in
    "labels/cosine",
    "labels/mahalanobis",
    "labels/mahalanobis-shrunk++",
    "labels/relative-mahalanobis",
    "kmeans-{classes}/cosine",
    "knn",
    "msp",
    "energy",
)
ACROSS_STUDIES = ("msp", "knn", "labels/cosine")  # held against accuracy
SHOWN = (  # in tables for programs, and the rivals of the verdicts, unless a study names others
    *MAIN,
    "labels/euclidean",
    "labels/ssd",
    "labels/cosine/per-cluster",
    "labels/mahalanobis/per-cluster",
    "one/mahalanobis",
    "one/ssd",
    "kmeans-{classes}/ssd",
    "gmm-{classes}/cosine",
    "gmm-{classes}/ssd",
    "vim",
    "residual",
    "nnguide",
    "fdbd",
    "nci",
    "react",
    "ash",
    "scale",
)


def detector_names(table: pd.DataFrame) -> pd.Series:
    """Return what a detector is called in tables: clustering-K/distance, or the distance alone where none clusters."""
    return (clustering_names(table) + "/" + table.distance).where(table.clustering != "none", table.distance)


def clustering_names(table: pd.DataFrame) -> pd.Series:
    """Return what a clustering is called in tables: "labels" or, with its K, "kmeans-10"."""
    own_size = table.clustering.isin(OWN_SIZE)
    return table.clustering.where(own_size, table.clustering + "-" + table.n_clusters.astype(str))


def ranked(decisions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of thresholds that rank images differently, with the column detector."""
    rows = decisions[decisions.threshold.isin(RANKING)]
    names = rows.base.where(rows.threshold == "global", rows.base + "/" + rows.threshold)
    return rows.assign(detector=names).reset_index(drop=True)


def names_by_classes(metrics: pd.DataFrame, n_classes: dict[str, int]) -> pd.Series:
    """Return the detectors of metrics, with {classes} for a K that is the number of classes of the ID set."""
    of_classes = metrics.n_clusters.eq(metrics.id_dataset.map(n_classes)) & ~metrics.clustering.isin(OWN_SIZE)
    sized = metrics.clustering + "-" + metrics.n_clusters.astype(str) + "/"
    names = [
        name.replace(own, f"{clustering}-{{classes}}/") if same else name
        for name, own, clustering, same in zip(metrics.detector, sized, metrics.clustering, of_classes, strict=True)
    ]
    return pd.Series(names, metrics.index, dtype=object)
