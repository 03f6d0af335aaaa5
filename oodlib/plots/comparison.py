"""Figures that compare detectors: AUROC by detector, clustering × distance as a heat map, mean ranks."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator

from oodlib.data.catalogue import display_name
from oodlib.plots.style import (
    legend_below,
    name_rows,
    nothing_figure,
    objective_color,
    objective_colors,
    objective_handles,
    objective_name,
    panel_grid,
)
from oodlib.report.detectors import ACROSS_STUDIES, MAIN, clustering_names, names_by_classes
from oodlib.report.means import group_means
from oodlib.report.measures import id_measures, ood_auroc
from oodlib.report.published import with_accuracy
from oodlib.report.ranks import Ranking
from oodlib.report.results import SETTING, Results, choose, n_classes, sized_as_classes


def auroc_figure(results: Results) -> Figure:
    """Draw mean AUROC over near and over far sets, two panels an ID set: a point a run, a bar their mean.

    The detectors are those of MAIN that there are. A K that is the number of classes is called C.
    """
    shown = choose(results, [], MAIN)
    names = names_by_classes(shown.metrics, n_classes(shown))
    shown = replace(shown, metrics=shown.metrics.assign(detector=names.str.replace("{classes}", "C", regex=False)))
    if shown.metrics.empty:
        return nothing_figure("no detector of the main figure was evaluated")
    means = group_means(shown, ["auroc"])
    detectors, objectives = list(dict.fromkeys(shown.metrics.detector)), list(dict.fromkeys(means.objective))
    panels = [(dataset, group) for dataset in dict.fromkeys(means.id_dataset) for group in ("near", "far")]
    height = (0.09 * len(objectives) + 0.12) * len(detectors) + 0.9
    figure, axes = panel_grid(len(panels), 4.8, height, n_columns=2, sharex=True, sharey=True)
    for axis, (dataset, group) in zip(axes, panels, strict=True):
        part = means[(means.id_dataset == dataset) & (means.group == group)]
        _draw_rows(axis, part, detectors, objectives)
        axis.set(title=f"{display_name(dataset)}: {group} OOD", xlabel="AUROC, %")
        name_rows(axis, detectors)
    legend_below(figure, objective_handles(objectives), 6)
    plt.close(figure)
    return figure


def _draw_rows(axis: Axes, table: pd.DataFrame, detectors: list[str], objectives: list[str]) -> None:
    """Draw AUROC of the detectors, a row each, in lanes of the objectives, with 50 % and lines between the rows."""
    for row, detector in enumerate(detectors):
        for lane, objective in enumerate(objectives):
            y = row + 0.8 * ((lane + 0.5) / len(objectives) - 0.5)
            values = 100 * table[(table.detector == detector) & (table.objective == objective)].auroc
            if len(values):
                color = objective_color(objective)
                axis.plot(values, [y] * len(values), "o", color=color, markersize=4, alpha=0.5, markeredgewidth=0)
                axis.plot(values.mean(), y, "|", color=color, markersize=9, markeredgewidth=2)
        axis.axhline(row + 0.5, color="0.85", linewidth=0.8, zorder=0)
    axis.axvline(50, color="0.2", linewidth=1.1, linestyle="--", zorder=1)
    axis.grid(visible=False, axis="y")


def product_figure(metrics: pd.DataFrame, by: str) -> Figure:
    """Draw the AUROC in percent of every clustering (a row) and distance (a column), a panel a value of column `by`.

    The references, which have no clusters, stand in a row of their own below. metrics: rows with the columns of
    metrics.csv, of which those of the global threshold are drawn; several rows of one cell are averaged.
    """
    metrics = metrics[(metrics.threshold == "global") & (metrics.seen == 0)]
    if metrics.empty:
        return nothing_figure("no OOD set of this kind: nothing to compare")
    panels = list(dict.fromkeys(metrics[by]))
    metrics = metrics.assign(row=clustering_names(metrics).where(metrics.clustering != "none", "no clusters"))
    place = metrics.clustering.map({name: i for i, name in enumerate(dict.fromkeys(metrics.clustering))})
    metrics = metrics.assign(place=place).sort_values(["place", "n_clusters"], kind="stable")
    parts = metrics[metrics.clustering != "none"], metrics[metrics.clustering == "none"]
    cells = [part.groupby([by, "row", "distance"], sort=False)["auroc"].mean().mul(100) for part in parts]
    low, high = (getattr(pd.concat(cells), end)() for end in ("min", "max"))
    n_rows, n_columns = parts[0].row.nunique(), max(part.distance.nunique() for part in parts)
    size = ((0.55 * n_columns + 0.2) * len(panels) + 2.4, 0.27 * n_rows + 3)
    ratios = {"height_ratios": [max(n_rows, 1), 1.2]}
    figure, axes = plt.subplots(2, len(panels), figsize=size, squeeze=False, layout="constrained", gridspec_kw=ratios)
    for line, part, values in zip(axes, parts, cells, strict=True):
        names = {"index": list(dict.fromkeys(part.row)), "columns": list(dict.fromkeys(part.distance))}
        for axis, panel in zip(line, panels, strict=True):
            own = values.xs(panel).unstack() if panel in values.index else pd.DataFrame(dtype=float)
            image = _draw_heat(axis, own.reindex(**names), low, high)  # the same rows and columns in all panels
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set_title(objective_name(panel))
    for axis in axes[:, 1:].flat:
        axis.set_yticklabels([])
    figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01, label="AUROC, %")
    figure.suptitle("AUROC %")
    plt.close(figure)
    return figure


def factors_figure(results: Results, id_dataset: str) -> Figure:
    """Draw mean AUROC, in percent, of objective and clustering (a row) with each distance (a column), near and far.

    Clusterings that take a number of clusters have as many as there are classes; the others stand in product.csv.
    """
    metrics = results.metrics[(results.metrics.id_dataset == id_dataset) & (results.metrics.threshold == "global")]
    metrics = metrics[
        sized_as_classes(metrics, results) & metrics.clustering.ne("none") & metrics.group.isin(["near", "far"])
    ]
    if metrics.empty:
        return nothing_figure(f"{display_name(id_dataset)}: no near or far OOD set")
    metrics = metrics.assign(row=metrics.objective.map(objective_name) + ", " + metrics.clustering)
    cells = metrics.groupby(["group", "row", "distance"], sort=False).auroc.mean().mul(100)
    groups = [group for group in ("near", "far") if group in set(metrics.group)]
    rows, columns = (list(dict.fromkeys(metrics[name])) for name in ("row", "distance"))
    rows.sort(key=lambda name: name.split(", ")[0] != objective_name("ce"))
    figure, axes = panel_grid(len(groups), 0.45 * len(columns) + 1, 0.25 * len(rows) + 1.6, sharey=True)
    for axis, group in zip(axes, groups, strict=True):
        _draw_heat(axis, cells[group].unstack().reindex(index=rows, columns=columns), cells.min(), cells.max())
        axis.set_title(f"{group} OOD")
        axis.tick_params(left=False)
    figure.suptitle(f"{display_name(id_dataset)}: AUROC %, mean over seeds and sets")
    plt.close(figure)
    return figure


def _draw_heat(axis: Axes, cells: pd.DataFrame, low: float, high: float) -> AxesImage:
    """Draw a table as a heat map of colours from low to high; seaborn's own draws the whole figure anew for each."""
    image = axis.imshow(cells.to_numpy(dtype=float), cmap="crest", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(cells.to_numpy(dtype=float)):
        if not np.isnan(value):
            color = "white" if value > low + 0.3 * (high - low) else "0.15"
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", size=8, color=color)
    axis.set_xticks(range(cells.shape[1]), cells.columns, rotation=40, ha="right")
    axis.set_yticks(range(cells.shape[0]), cells.index)
    axis.grid(visible=False)
    sns.despine(ax=axis, left=True, bottom=True)
    return image


def rank_figure(found: Ranking | None, n_shown: int = 8) -> Figure:
    """Draw the critical-difference diagram of the best detectors: joined are those that Nemenyi does not part."""
    import scikit_posthocs

    if found is None:
        return nothing_figure("no two detectors are in every block: nothing to rank")
    shown = found.ranks.head(n_shown)
    apart = np.abs(np.subtract.outer(shown.to_numpy(), shown.to_numpy())) > found.critical_difference
    figure, axis = plt.subplots(figsize=(9, 0.28 * len(shown) + 1.2))
    scikit_posthocs.critical_difference_diagram(
        shown,
        pd.DataFrame(np.where(apart, 0.0, 1.0), shown.index, shown.index),  # as p-values
        ax=axis,
        label_fmt_left="{label} ({rank:.1f})  ",
        label_fmt_right="  {label} ({rank:.1f})",
        color_palette=["0.2"] * len(shown),
    )
    for line in axis.lines:  # what is joined is drawn in the order of a set, which is another one each time
        if len(set(line.get_ydata())) == 1:
            line.set_xdata(sorted(line.get_xdata()))
    axis.grid(visible=False)
    axis.set_title(
        f"{found.group} OOD: mean ranks over {len(found.blocks)} blocks; Friedman p = {found.p:.1g}; joined: nearer "
        f"than the critical difference, {found.critical_difference:.1f}",
        fontsize=10,
    )
    plt.close(figure)
    return figure


BY_PAPER = ("global_separation", "k-means cluster_purity")  # the paper's own measures, drawn whatever they predict
MARKERS = ("o", "s", "^", "D", "v", "P")
PUBLISHED = {"marker": "*", "markersize": 13, "markeredgecolor": "0.1", "linestyle": "none"}


def accuracy_points(studies: dict[str, Results]) -> pd.DataFrame:
    """Return near AUROC and ID accuracy, in percent, of the detectors of ACROSS_STUDIES: one row a run and detector.

    Columns: study, id_dataset, objective, detector, accuracy, auroc. Published figures whose accuracy is known are of
    the study "published".
    """
    parts = []
    for study, results in studies.items():
        means = group_means(results, ["auroc"]).query("group == 'near' and detector in @ACROSS_STUDIES")
        accuracy = results.runs.set_index([*SETTING, "seed"]).id_accuracy.rename("accuracy") * 100
        means = means.join(accuracy, on=[*SETTING, "seed"]).assign(study=study)
        parts.append(means.assign(auroc=100 * means.auroc))
    theirs = with_accuracy().query("against == 'near mean' and detector in @ACROSS_STUDIES").dropna(subset="accuracy")
    parts.append(theirs.assign(study="published", auroc=theirs.published))
    return pd.concat(parts)[["study", "id_dataset", "objective", "detector", "accuracy", "auroc"]]


def accuracy_figure(studies: dict[str, Results]) -> Figure:
    """Draw near AUROC against ID accuracy over studies: a row an ID set, a column a detector, a point a run.

    A colour an objective, a mark a study; stars are published.
    """
    points = accuracy_points(studies)
    own = points[points.study != "published"]
    if own.empty:
        return nothing_figure("no near OOD set, so no AUROC to hold against accuracy")
    detectors = [name for name in ACROSS_STUDIES if name in set(own.detector)]
    datasets = list(dict.fromkeys(own.id_dataset))
    marks = dict(zip(studies, MARKERS * len(studies), strict=False))
    panels = [(dataset, detector) for dataset in datasets for detector in detectors]
    figure, axes = panel_grid(len(panels), n_columns=len(detectors), height=2.9)
    for axis, (dataset, detector) in zip(axes, panels, strict=True):
        part = points[(points.id_dataset == dataset) & (points.detector == detector)]
        for (study, objective), runs in part.groupby(["study", "objective"], sort=False):
            look = {
                "marker": marks.get(study),
                "linestyle": "none",
                "markersize": 6,
                "markeredgewidth": 0,
                "alpha": 0.8,
            }
            axis.plot(
                runs.accuracy, runs.auroc, color=objective_color(objective), **look if study in marks else PUBLISHED
            )
        axis.set(title=f"{display_name(dataset)}, {detector}", xlabel="ID accuracy, %", ylabel="near AUROC, %")
        for line in (axis.xaxis, axis.yaxis):
            low, high = line.get_view_interval()
            middle = (low + high) / 2  # a tenth of a percent is nothing to show
            line.set_view_interval(min(low, middle - 2), min(max(high, middle + 2), 100.5), ignore=True)
            line.set_major_locator(FixedLocator([tick for tick in line.get_ticklocs() if tick <= 100]))
    handles = objective_handles(own.objective)
    handles |= {name: plt.Line2D([], [], color="0.3", marker=mark, linestyle="none") for name, mark in marks.items()}
    if set(datasets) & set(points[points.study == "published"].id_dataset):
        handles["published"] = plt.Line2D([], [], color="0.8", **PUBLISHED)
    legend_below(figure, handles, 6)
    plt.close(figure)
    return figure


def predictor_figure(results: Results, detector: str, table: pd.DataFrame, n_shown: int = 4) -> Figure:
    """Draw OOD AUROC of one detector against measures of ID data, a point a run: the paper's, then the strongest.

    table: what `oodlib.report.measures` found; a row of panels an ID set and group of OOD sets.
    """
    if table.empty:
        return nothing_figure("fewer than three runs, or all alike: nothing to correlate")
    points = id_measures(results).join(100 * ood_auroc(results, detector)).reset_index()
    rows = list(table.groupby(["id_dataset", "group"], sort=False))
    size = (2.6 * n_shown, 2.6 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), n_shown, figsize=size, squeeze=False, sharey="row", layout="constrained")
    for line, ((id_dataset, group), best) in zip(axes, rows, strict=True):
        by_paper = best.measure.isin(BY_PAPER)
        best = pd.concat([best[by_paper], best[~by_paper].head(n_shown - by_paper.sum())])
        for axis in line[len(best) :]:
            axis.axis("off")
        own = points[points.id_dataset == id_dataset]
        for axis, found in zip(line, best.itertuples(), strict=False):
            look = {"hue": "objective", "palette": objective_colors(own.objective), "legend": False, "s": 40}
            sns.scatterplot(own, x=found.measure, y=group, **look, ax=axis)
            axis.set_title(f"Spearman {found.spearman:+.2f}, n = {found.n}", fontsize=10)
            axis.set_xlabel(found.measure.replace("_", " "))
        line[0].set_ylabel(f"{display_name(id_dataset)}: {group} AUROC %")
    legend_below(figure, objective_handles(points.objective), 6)
    plt.close(figure)
    return figure


def regret_figure(regrets: pd.DataFrame) -> Figure:
    """Draw the regret of each rule, AUROC points: a point a run and OOD set, and the mean, near and far apart.

    A panel an ID set and group; colours and lanes are those of the objectives.
    """
    order = list(regrets.groupby("rule").regret.mean().sort_values().index)
    objectives = list(dict.fromkeys(regrets.objective))
    panels = [(dataset, group) for dataset in dict.fromkeys(regrets.id_dataset) for group in ("near", "far")]
    figure, axes = panel_grid(len(panels), 5, 0.4 * len(order) + 0.8, n_columns=2, sharex="col", sharey=True)
    for axis, (dataset, group) in zip(axes, panels, strict=True):
        part = regrets[(regrets.group == group) & (regrets.id_dataset == dataset)]
        lane = (part.objective.map(objectives.index) + 0.5) / len(objectives) - 0.5
        y = part.rule.map(order.index) + 0.7 * lane
        colors = [objective_color(name) for name in part.objective]
        axis.scatter(part.regret, y, s=14, c=colors, alpha=0.7, linewidth=0)
        means = part.groupby("rule").regret.mean().reindex(order)
        axis.plot(means, range(len(order)), "|", color="0.2", markersize=20, markeredgewidth=1.5)
        axis.set(title=f"{display_name(dataset)}: {group} OOD", xlabel="regret, AUROC points")
        name_rows(axis, order)
    legend_below(figure, objective_handles(objectives), 6)
    plt.close(figure)
    return figure
