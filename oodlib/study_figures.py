"""Figures over the runs of a study: results in; how clusters form, and what choices and accuracy have to do with it."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from oodlib.figures import COLORS, nothing_figure, objective_name
from oodlib.report import Results, group_means

ACCURACY_DETECTORS = ("msp", "knn")


def epoch_figure(results: Results, id_dataset: str) -> Figure:
    """Draw, epoch by epoch, global separation of the classes and mean near and far AUROC, a line an objective.

    Of the runs that kept encoders on their way; AUROC is that of the cosine distance to class means.
    """
    epochs = results.epochs[results.epochs.id_dataset == id_dataset]
    epochs = epochs[epochs.measure.isin(["global_separation", "auroc"])]  # of the ID set there is accuracy, too
    panels = [("global separation", "ID"), ("near AUROC, cosine", "near"), ("far AUROC, cosine", "far")]
    if epochs.empty:
        return nothing_figure("no run kept encoders on its way (snapshot_epochs)")
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.4), layout="constrained")
    for axis, (title, group) in zip(axes, panels, strict=True):
        part = (
            epochs[epochs.group == group].groupby(["objective", "run", "epoch"], sort=False).value.mean().reset_index()
        )
        style = {"hue": "objective", "palette": COLORS, "units": "run", "estimator": None, "marker": "o"}
        sns.lineplot(part, x="epoch", y="value", **style, ax=axis, legend=axis is axes[0])
        axis.set(title=f"{title} ({id_dataset})", xlabel="epoch", ylabel="")
    _name_objectives(axes[0])
    return figure


def cluster_size_figure(results: Results, id_dataset: str, clustering: str = "kmeans") -> Figure:
    """Draw box plots by K: global separation and purity of the clusters of one clustering, a box an objective."""
    clusters = results.clusters[(results.clusters.id_dataset == id_dataset) & (results.clusters.pca == 0)]
    clusters = clusters[clusters.clustering == clustering]
    if clusters.empty:
        return nothing_figure(f"no run has clustering {clustering!r}")
    figure, axes = plt.subplots(2, 1, figsize=(10, 6), sharex=True, layout="constrained")
    for axis, measure in zip(axes, ("global_separation", "cluster_purity"), strict=True):
        part = clusters[clusters.measure == measure]
        style = {"hue": "objective", "palette": COLORS, "showfliers": False, "linewidth": 0.8}
        sns.boxplot(part, x="n_clusters", y="value", **style, ax=axis, legend=axis is axes[0])
        axis.set(title=f"{measure.replace('_', ' ')} of {clustering} clusters ({id_dataset})", ylabel="", xlabel="K")
    _name_objectives(axes[0])
    return figure


def accuracy_figure(results: Results) -> Figure:
    """Draw near AUROC against ID accuracy, a point a run, a panel a detector, a marker an ID set."""
    means = group_means(results, ["auroc"])
    accuracy = results.runs.set_index(["id_dataset", "arch", "objective", "seed"]).id_accuracy.rename("accuracy")
    points = means[means.group == "near"].join(accuracy, on=list(accuracy.index.names))
    points = points.assign(auroc=100 * points.auroc, accuracy=100 * points.accuracy)
    shown = [name for name in ACCURACY_DETECTORS if name in set(points.detector)]
    figure, axes = plt.subplots(1, len(shown), figsize=(5 * len(shown), 3.8), squeeze=False, layout="constrained")
    for axis, detector in zip(axes[0], shown, strict=True):
        part = points[points.detector == detector]
        style = {"hue": "objective", "palette": COLORS, "style": "id_dataset", "s": 60}
        sns.scatterplot(part, x="accuracy", y="auroc", **style, ax=axis)
        axis.set(title=f"{detector}, a point a run", xlabel="ID accuracy, %", ylabel="near AUROC, %")
        _name_objectives(axis)
    return figure


def regret_figure(regrets: pd.DataFrame) -> Figure:
    """Draw the regret of each rule, AUROC points: a point a run and OOD set, and the mean, near and far apart."""
    order = regrets.groupby("rule").regret.mean().sort_values().index
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.4 * len(order) + 1.4), sharey=True, layout="constrained")
    for axis, group in zip(axes, ("near", "far"), strict=True):
        part = regrets[regrets.group == group]
        common = {"data": part, "x": "regret", "y": "rule", "order": order, "ax": axis}
        sns.stripplot(**common, hue="id_dataset", palette="Set2", size=4, alpha=0.7, legend=axis is axes[1])
        sns.pointplot(**common, color="0.2", linestyle="none", marker="|", markersize=16, errorbar=None)
        axis.set(title=f"{group} OOD", xlabel="regret, AUROC points", ylabel="")
    return figure


def _name_objectives(axis) -> None:
    handles, names = axis.get_legend_handles_labels()
    axis.legend(handles, [objective_name(name) for name in names], fontsize=8)
