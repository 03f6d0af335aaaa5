"""Figures: the text artefacts of a study in; matplotlib figures out, through seaborn.

Score figures are drawn from the 101 quantiles that a run keeps. A figure of one seed shows the runs of the study's
first architecture.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from oodlib.plots.style import COLORS, ID_COLOR, nothing_figure, objective_name, ood_colors
from oodlib.report.provenance import class_names, display_name
from oodlib.report.ranks import Ranking
from oodlib.report.results import Results, choose, group_means, names_by_classes, of_classes

OF_CLUSTERS = (
    "labels/euclidean",
    "labels/cosine",
    "labels/mahalanobis",
    "labels/relative-mahalanobis",
    "labels/ssd",
    "kmeans-{classes}/cosine",
)
MAIN = (*OF_CLUSTERS, "gmm-{classes}/cosine", "knn", "msp", "energy")  # the detectors of the main figure
RANKED = (*OF_CLUSTERS, "knn")  # of the rank diagrams: among more, the critical difference would tell nothing apart


def auroc_figure(results: Results) -> Figure:
    """Draw mean AUROC over near and over far sets, two panels an ID set: a point a run, a bar their mean.

    Of the detectors of MAIN that there are. A K that is the number of classes is called C.
    """
    shown = choose(results, [name for name in MAIN if _is_there(results, name)] or ["*"])
    shown = replace(shown, metrics=shown.metrics.assign(detector=names_by_classes(shown)))
    means = group_means(shown, ["auroc"])
    means["detector"] = means.detector.str.replace("{classes}", "C", regex=False)
    datasets, detectors, objectives = (
        list(dict.fromkeys(means[name])) for name in ("id_dataset", "detector", "objective")
    )
    size = (1.5 + 5 * len(datasets), (0.1 * len(objectives) + 0.1) * len(detectors) + 1.4)
    panels = [(dataset, group) for dataset in datasets for group in ("near", "far")]
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (dataset, group) in zip(axes[0], panels, strict=True):
        part = means[(means.id_dataset == dataset) & (means.group == group)]
        _draw_rows(axis, part, detectors, objectives)
        axis.set(title=f"{display_name(dataset)}: {group} OOD", xlabel="AUROC, %")
    axes[0, 0].set(yticks=range(len(detectors)), yticklabels=detectors, ylim=(len(detectors) - 0.5, -0.5))
    handles = [plt.Line2D([], [], color=COLORS.get(name, "0.4"), marker="o", linestyle="none") for name in objectives]
    names = [objective_name(name) for name in objectives]
    figure.legend(handles, names, loc="outside lower center", ncol=len(names), frameon=False)
    return figure


def _is_there(results: Results, name: str) -> bool:
    return name in set(results.metrics.detector) | set(names_by_classes(results))


def _draw_rows(axis: Axes, table: pd.DataFrame, detectors: list[str], objectives: list[str]) -> None:
    """Draw AUROC of the detectors, a row each, in lanes of the objectives, with 50 % and lines between the rows."""
    for row, detector in enumerate(detectors):
        for lane, objective in enumerate(objectives):
            y = row + 0.8 * ((lane + 0.5) / len(objectives) - 0.5)
            values = 100 * table[(table.detector == detector) & (table.objective == objective)].auroc
            if len(values):
                color = COLORS.get(objective, "0.4")
                axis.plot(values, [y] * len(values), "o", color=color, markersize=4, alpha=0.5, markeredgewidth=0)
                axis.plot(values.mean(), y, "|", color=color, markersize=9, markeredgewidth=2)
        axis.axhline(row + 0.5, color="0.85", linewidth=0.8, zorder=0)
    axis.axvline(50, color="0.2", linewidth=1.1, linestyle="--", zorder=1)
    axis.grid(visible=False, axis="y")


def draw_projection(axis: Axes, table: pd.DataFrame, id_dataset: str) -> None:
    """Draw the projected test embeddings of one run, ID in grey over OOD in colour; up to 12 classes are named."""
    inside = table[table.dataset == id_dataset]
    if inside.label.nunique() <= 12:
        names = class_names(id_dataset)
        for label, members in inside.groupby("label"):
            name = names[label] if names else label
            text = axis.text(members.x.median(), members.y.median(), name, ha="center", va="center", weight="bold")
            text.set(zorder=5, path_effects=[withStroke(linewidth=3, foreground="white")])
    axis.set_rasterization_zorder(4.5)  # thousands of points: as circles they would make a large svg
    points = {"linewidth": 0}
    axis.scatter(
        inside.x,
        inside.y,
        s=9,
        color=ID_COLOR,
        alpha=0.6,
        label=f"{display_name(id_dataset)} (ID)",
        zorder=4,
        **points,
    )
    for name, color in ood_colors([name for name in dict.fromkeys(table.dataset) if name != id_dataset]).items():
        outside = table[table.dataset == name]
        axis.scatter(outside.x, outside.y, s=11, color=[color], alpha=0.7, label=display_name(name), zorder=3, **points)


def projection_figure(results: Results, id_dataset: str, seed: int) -> Figure:
    """Draw ID and OOD test embeddings, a panel an objective, in the plane that parts the training classes."""
    table = of_seed(results.projection, id_dataset, seed)
    objectives = list(dict.fromkeys(table.objective))
    size = (4.6 * len(objectives), 4.8)
    figure, axes = plt.subplots(1, len(objectives), figsize=size, squeeze=False, layout="constrained")
    for axis, objective in zip(axes[0], objectives, strict=True):
        part = table[table.objective == objective]
        draw_projection(axis, part, id_dataset)
        axis.set(
            title=objective_name(objective),
            xticks=[],
            yticks=[],
            xlabel="first discriminant",
            ylabel="second discriminant",
        )
    handles, names = axes[0][0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncol=min(len(names), 5), frameon=False)
    for handle in legend.legend_handles:
        handle.set(sizes=[40], alpha=1)
    return figure


def of_seed(table: pd.DataFrame, id_dataset: str, seed: int) -> pd.DataFrame:
    """Return the rows of one ID set, seed and (the first) architecture. Raises ValueError where there are none."""
    table = table[table.id_dataset == id_dataset]
    if seed not in set(table.seed):
        known = ", ".join(map(str, sorted(set(table.seed))))
        raise ValueError(f"no run of {id_dataset!r} with seed {seed} has what is drawn; these seeds have: {known}")
    table = table[table.seed == seed]
    return table[table.arch == table.arch.iloc[0]]


def _panels(results: Results, detector: str, id_dataset: str, seed: int) -> tuple[pd.DataFrame, list[str], list[str]]:
    table = of_seed(results.scores, id_dataset, seed)
    table = table[table.detector == detector]
    return table, list(dict.fromkeys(table.objective)), [d for d in dict.fromkeys(table.dataset) if d != id_dataset]


def histogram_figure(results: Results, detector: str, id_dataset: str, seed: int) -> Figure:
    """Draw the densities of the ID and OOD scores of one detector, a panel an objective; right is more normal.

    Scores are shown as minus the logarithm of the distance, in which near and far both have room.
    """
    table, objectives, oods = _panels(results, detector, id_dataset, seed)
    if table.empty:
        return nothing_figure(f"{display_name(id_dataset)}: no scores of {detector} were kept")
    colors = {id_dataset: ID_COLOR} | ood_colors(oods)
    size = (4.6 * len(objectives), 3.6)
    figure, axes = plt.subplots(1, len(objectives), figsize=size, squeeze=False, layout="constrained")
    for axis, objective in zip(axes[0], objectives, strict=True):
        part = table[table.objective == objective]
        part = part.assign(normality=-np.log10(np.maximum(-part.score, 1e-9)))
        for name, color in colors.items():
            values = part[part.dataset == name].normality
            sns.kdeplot(
                values,
                ax=axis,
                color=color,
                gridsize=100,
                fill=name == id_dataset,
                alpha=0.4 if name == id_dataset else 1,
                label=display_name(name),
            )
        axis.set(title=objective_name(objective), xlabel=f"−log₁₀ distance ({detector})", ylabel="density", yticks=[])
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=min(len(names), 5), frameon=False)
    figure.suptitle(f"{display_name(id_dataset)}, {detector}, seed {seed}")
    return figure


def roc_figure(results: Results, detector: str, id_dataset: str, seed: int) -> Figure:
    """Draw ROC curves, ID positive: share of ID kept against OOD kept, a panel an OOD set, a line an objective."""
    table, objectives, oods = _panels(results, detector, id_dataset, seed)
    if table.empty:
        return nothing_figure(f"{display_name(id_dataset)}: no scores of {detector} were kept")
    size = (3.2 * len(oods), 4.2)
    figure, axes = plt.subplots(1, len(oods), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, ood in zip(axes[0], oods, strict=True):
        for objective in objectives:
            part = table[table.objective == objective]
            inside, outside = (np.sort(part[part.dataset == name].score) for name in (id_dataset, ood))
            thresholds = np.sort(np.concatenate([inside, outside, [-np.inf, np.inf]]))[::-1]
            kept = [1 - np.searchsorted(scores, thresholds, side="left") / len(scores) for scores in (inside, outside)]
            axis.plot(kept[1], kept[0], color=COLORS.get(objective), label=objective_name(objective))
        axis.axhline(0.95, color="0.6", linewidth=0.8, linestyle=":")
        axis.set(title=display_name(ood), xlabel="OOD kept (false positives)", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axis.set(xticks=[0, 0.25, 0.5, 0.75, 1], xticklabels=["0", "", "0.5", "", "1"])
    axes[0][0].set_ylabel("ID kept (true positives)")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=len(names), frameon=False)
    figure.suptitle(f"{display_name(id_dataset)}, {detector}, seed {seed}; dotted: 95 % of ID kept")
    return figure


def separation_figure(results: Results, id_dataset: str) -> Figure:
    """Draw box plots by objective: global separation of each class, and purity of each k-means cluster, all seeds."""
    clusters = results.clusters[results.clusters.id_dataset == id_dataset]
    parts = {
        "global separation of classes": of_classes(clusters, "labels", "global_separation"),
        "purity of k-means clusters, as many as classes": of_classes(clusters, "kmeans", "cluster_purity"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (name, part) in zip(axes, parts.items(), strict=True):
        part = part.assign(objective=part.objective.map(objective_name))
        palette = {objective_name(key): color for key, color in COLORS.items()}
        common = {"data": part, "x": "objective", "y": "value", "hue": "objective", "palette": palette, "ax": axis}
        sns.boxplot(**common, legend=False, showfliers=False, boxprops={"alpha": 0.5})
        _draw_beside(axis, part, palette)
        axis.set(title=f"{name} ({display_name(id_dataset)})", xlabel="", ylabel="")
    return figure


def _draw_beside(axis: Axes, table: pd.DataFrame, palette: dict[str, tuple]) -> None:
    """Draw a point a value over the box of its objective, spread to the sides the same way every time."""
    spread = np.random.default_rng(0)
    for place, (objective, part) in enumerate(table.groupby("objective", sort=False)):
        x = place + spread.uniform(-0.25, 0.25, len(part))
        color = palette.get(objective, "0.4")
        axis.scatter(x, part.value, s=7, color=[color], alpha=0.7, linewidth=0, zorder=3, rasterized=True)


def history_figure(results: Results) -> Figure:
    """Draw the held-out nearest-neighbour accuracy against training seconds, by the fastest epoch, a line a run."""
    history = results.history
    history = history.assign(elapsed=history.epoch * history.groupby("run").seconds.transform("min"))
    datasets = list(dict.fromkeys(history.id_dataset))
    size = (5.5 * len(datasets), 3.6)
    figure, axes = plt.subplots(1, len(datasets), figsize=size, squeeze=False, layout="constrained")
    for axis, dataset in zip(axes[0], datasets, strict=True):
        common = {"x": "elapsed", "y": "knn_accuracy", "hue": "objective", "units": "run", "estimator": None}
        style = {"palette": COLORS, "linewidth": 1.2, "marker": "o", "markersize": 4, "markeredgewidth": 0}
        sns.lineplot(history[history.id_dataset == dataset], **common, **style, ax=axis)
        axis.set(
            title=f"{display_name(dataset)}, a line a run", xlabel="training seconds", ylabel="held-out k-NN accuracy"
        )
        handles, names = axis.get_legend_handles_labels()
        axis.legend(handles, [objective_name(name) for name in names], loc="lower right")
    return figure


def rank_figure(found: Ranking | None, n_shown: int = 20) -> Figure:
    """Draw the critical-difference diagram of the best combinations: joined are those that Nemenyi does not part.

    Their mean ranks, and the critical difference, are those among all. Colours are those of the objectives.
    """
    import scikit_posthocs

    if found is None:
        return nothing_figure("no two combinations are in every block: nothing to rank")
    shown = found.ranks.head(n_shown)
    apart = np.abs(np.subtract.outer(shown.to_numpy(), shown.to_numpy())) > found.critical_difference
    figure, axis = plt.subplots(figsize=(9, 0.28 * len(shown) + 1.2))
    scikit_posthocs.critical_difference_diagram(
        shown,
        pd.DataFrame(np.where(apart, 0.0, 1.0), shown.index, shown.index),  # as p-values
        ax=axis,
        label_fmt_left="{label} ({rank:.1f})  ",
        label_fmt_right="  {label} ({rank:.1f})",
        color_palette={name: COLORS.get(name.split()[0], "0.4") for name in shown.index},
    )
    for line in axis.lines:  # what is joined is drawn in the order of a set, which is another one each time
        if len(set(line.get_ydata())) == 1:
            line.set_xdata(sorted(line.get_xdata()))
    axis.grid(visible=False)
    axis.set_title(
        f"{found.group} OOD: mean ranks of the best {len(shown)} of {len(found.ranks)} combinations, "
        f"{len(found.blocks)} blocks; joined: nearer than the critical difference, {found.critical_difference:.1f}",
        fontsize=10,
    )
    return figure
