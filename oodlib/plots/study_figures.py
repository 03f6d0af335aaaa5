"""Figures over the runs of a study: results in; how clusters form, and what choices and accuracy have to do with it."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oodlib.plots.style import COLORS, nothing_figure, objective_name
from oodlib.report import published
from oodlib.report.provenance import display_name
from oodlib.report.regret import ORACLE
from oodlib.report.results import SETTING, Results, group_means

ACCURACY_DETECTORS = ("msp", "knn")
PUBLISHED_NEAR = (87.0, 91.0)  # AUROC of CE with MSP and KNN on the near sets of CIFAR-10
MARKERS = ("o", "^", "s", "D")
OPEN_OOD = {"color": "0.4", "markersize": 8, "markerfacecolor": "none", "clip_on": False}  # how its figures look


def epoch_figure(results: Results, id_dataset: str) -> Figure:
    """Draw, epoch by epoch, separation of the classes, accuracy and mean near and far AUROC, a line an objective.

    Of the runs that kept encoders on their way; accuracy, where it was measured, is that of the nearest class mean by
    cosine, and AUROC that of the same distance.
    """
    epochs = results.epochs[results.epochs.id_dataset == id_dataset]
    panels = [
        ("global separation", "ID", "global_separation", 1),
        ("nearest class mean, accuracy, %", "ID", "nearest_class_mean_accuracy", 100),
        ("near AUROC, %", "near", "auroc", 100),
        ("far AUROC, %", "far", "auroc", 100),
    ]
    panels = [panel for panel in panels if panel[2] in set(epochs.measure)]
    if epochs.empty:
        return nothing_figure("no run kept encoders on its way (snapshot_epochs)")
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.6), layout="constrained")
    for axis, (title, group, measure, times) in zip(axes, panels, strict=True):
        part = epochs[(epochs.group == group) & (epochs.measure == measure)]
        part = part.groupby(["objective", "run", "epoch"], sort=False).value.mean().mul(times).reset_index()
        style = {"hue": "objective", "palette": COLORS, "units": "run", "estimator": None, "marker": "o"}
        sns.lineplot(part, x="epoch", y="value", **style, ax=axis, legend=axis is axes[0])
        axis.set(title=title, xlabel="epoch", ylabel="")
    _name_objectives(figure, axes[0])
    n = "–".join(str(k) for k in sorted(set(epochs.groupby("objective").run.nunique())))
    figure.suptitle(f"{display_name(id_dataset)}, cosine to class means, n = {n} run an objective")
    return figure


def cluster_size_figure(results: Results, id_dataset: str, clustering: str = "kmeans") -> Figure:
    """Draw box plots by K: global separation and purity of the clusters of one clustering, a box an objective."""
    clusters = results.clusters[results.clusters.id_dataset == id_dataset]
    clusters = clusters[clusters.clustering == clustering]
    if clusters.empty:
        return nothing_figure(f"no run has clustering {clustering!r}")
    figure, axes = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    for axis, measure in zip(axes, ("global_separation", "cluster_purity"), strict=True):
        part = clusters[clusters.measure == measure]
        style = {"hue": "objective", "palette": COLORS, "showfliers": False, "linewidth": 0.8}
        sns.boxplot(part, x="n_clusters", y="value", **style, ax=axis, legend=measure == "cluster_purity")
        axis.set(title=f"{measure.replace('_', ' ')} of {clustering} clusters ({display_name(id_dataset)})", ylabel="")
        axis.set_xlabel("K")
    _name_objectives(figure, axes[1])
    return figure


def accuracy_figure(results: Results) -> Figure:
    """Draw near AUROC against accuracy: a point a run, a panel a detector; then the epochs of runs that kept them.

    A marker an ID set. In grey what others reach: the range of published CE on CIFAR-10 and, at the edge, since its
    accuracy is not known here, OpenOOD's CE (ResNet-18) with each detector.
    """
    means = group_means(results, ["auroc"])
    accuracy = results.runs.set_index([*SETTING, "seed"]).id_accuracy.rename("accuracy")
    points = means[means.group == "near"].join(accuracy, on=list(accuracy.index.names))
    points = points.assign(auroc=100 * points.auroc, accuracy=100 * points.accuracy)
    panels = {f"{name}, a point a run": points[points.detector == name] for name in ACCURACY_DETECTORS}
    panels = {title: part for title, part in panels.items() if len(part)}
    ways = epoch_ways(results)
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(dict.fromkeys(results.runs.id_dataset))}
    n_panels = len(panels) + bool(len(ways))
    if n_panels == 0:
        return nothing_figure("no near OOD set, so no AUROC to hold against accuracy")
    figure, axes = plt.subplots(1, n_panels, figsize=(4.2 * n_panels, 4.2), squeeze=False, layout="constrained")
    for axis, (title, part) in zip(axes[0], panels.items(), strict=False):
        _draw_accuracy(axis, part, markers)
        _draw_published(axis, title.split(",")[0], markers)
        axis.set(title=title, xlabel="ID accuracy, %", ylabel="near AUROC, %")
        low, high = axis.get_xlim()
        middle = (low + high) / 2
        axis.set_xlim(min(low, middle - 2), max(high, middle + 2))  # a tenth of a percent is no difference to show
    if len(ways):
        for _, way in ways.groupby("run", sort=False):
            axes[0, -1].plot(way.accuracy, way.auroc, color=COLORS.get(way.objective.iloc[0], "0.4"), linewidth=0.8)
        _draw_accuracy(axes[0, -1], ways, markers)
        name = ways.measured.iloc[0]
        axes[0, -1].set(title="labels/cosine, a point an epoch", xlabel=f"{name}, %", ylabel="near AUROC, %")
    looks = _objective_looks(points.objective)
    looks |= {display_name(n): plt.Line2D([], [], color="0.3", marker=m, linestyle="none") for n, m in markers.items()}
    if {"cifar10", "cifar100"} & set(markers):
        looks["at the edge: OpenOOD, ResNet-18"] = plt.Line2D([], [], marker="o", linestyle="none", **OPEN_OOD)
    figure.legend(looks.values(), looks, loc="outside lower center", ncol=len(looks), frameon=False)
    return figure


def epoch_ways(results: Results) -> pd.DataFrame:
    """Return near AUROC (cosine) and accuracy, in percent, of every epoch that was kept: one row a run and epoch.

    Accuracy is that of the nearest class mean or, where some run did not measure it, of held-out nearest neighbours.
    """
    keys = [*SETTING, "run", "epoch"]
    epochs = results.epochs
    near = epochs[(epochs.measure == "auroc") & (epochs.group == "near")]
    table = near.groupby(keys, sort=False).value.mean().mul(100).rename("auroc").reset_index()
    own = epochs[epochs.measure == "nearest_class_mean_accuracy"].set_index(["run", "epoch"]).value
    if set(table.run) <= set(own.index.get_level_values("run")):
        table = table.assign(measured="nearest-class-mean accuracy")
    else:
        own = results.history.set_index(["run", "epoch"]).knn_accuracy
        table = table.assign(measured="held-out k-NN accuracy")
    return table.join((100 * own).rename("accuracy"), on=["run", "epoch"]).dropna()


def _draw_accuracy(axis: Axes, points: pd.DataFrame, markers: dict[str, str]) -> None:
    for (id_dataset, objective), part in points.groupby(["id_dataset", "objective"], sort=False):
        color = COLORS.get(objective, "0.4")
        axis.plot(
            part.accuracy, part.auroc, markers[id_dataset], color=color, markersize=6, alpha=0.8, markeredgewidth=0
        )


def _draw_published(axis: Axes, detector: str, markers: dict[str, str]) -> None:
    """Draw the range of published near AUROC of CE on CIFAR-10, and at the edge OpenOOD's CE with this detector."""
    if "cifar10" in markers:
        axis.axhspan(*PUBLISHED_NEAR, color="0.9", zorder=0)
        axis.text(
            0.02, PUBLISHED_NEAR[1], "published CE, CIFAR-10", transform=axis.get_yaxis_transform(), va="bottom", size=8
        )
    near = published.figures().query("against == 'near mean' and objective == 'ce' and detector == @detector")
    for id_dataset, value in zip(near.id_dataset, near.published, strict=True):
        if id_dataset in markers:
            axis.plot(1, value, markers[id_dataset], transform=axis.get_yaxis_transform(), **OPEN_OOD)


def regret_figure(regrets: pd.DataFrame) -> Figure:
    """Draw the regret of each rule, AUROC points: a point a run and OOD set, and the mean, near and far apart.

    A panel an ID set and group; colours and lanes are those of the objectives.
    """
    regrets = regrets[regrets.rule != ORACLE]
    order = list(regrets.groupby("rule").regret.mean().sort_values().index)
    objectives, datasets = (list(dict.fromkeys(regrets[name])) for name in ("objective", "id_dataset"))
    size = (10, (0.42 * len(order) + 0.5) * len(datasets) + 0.9)
    figure, axes = plt.subplots(
        len(datasets), 2, figsize=size, sharey=True, sharex="col", squeeze=False, layout="constrained"
    )
    for line, dataset in zip(axes, datasets, strict=True):
        for axis, group in zip(line, ("near", "far"), strict=True):
            part = regrets[(regrets.group == group) & (regrets.id_dataset == dataset)]
            y = part.rule.map(order.index) + 0.7 * (
                (part.objective.map(objectives.index) + 0.5) / len(objectives) - 0.5
            )
            colors = [COLORS.get(name, "0.4") for name in part.objective]
            axis.scatter(part.regret, y, s=14, c=colors, alpha=0.7, linewidth=0, rasterized=True)
            means = part.groupby("rule").regret.mean().reindex(order)
            axis.plot(means, range(len(order)), "|", color="0.2", markersize=20, markeredgewidth=1.5)
            axis.set(title=f"{display_name(dataset)}: {group} OOD", yticks=range(len(order)), yticklabels=order)
            axis.set_ylim(len(order) - 0.5, -0.5)
    for axis in axes[-1]:
        axis.set_xlabel("regret, AUROC points")
    looks = _objective_looks(regrets.objective)
    figure.legend(looks.values(), looks, loc="outside lower center", ncol=len(looks), frameon=False)
    return figure


def _objective_looks(objectives: pd.Series) -> dict[str, plt.Line2D]:
    """Return a dot for the legend by the name of each objective."""
    names = dict.fromkeys(objectives)
    return {
        objective_name(n): plt.Line2D([], [], color=COLORS.get(n, "0.4"), marker="o", linestyle="none") for n in names
    }


def _name_objectives(figure: Figure, axis: Axes) -> None:
    """Move the legend of one axis below the figure, with the objectives' names for people."""
    handles, names = axis.get_legend_handles_labels()
    axis.get_legend().remove()
    names = [objective_name(name) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncol=len(names), frameon=False)
