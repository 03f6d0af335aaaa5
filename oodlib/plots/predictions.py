"""Figures of what tells OOD AUROC beforehand: accuracy, measures of ID data, rules that choose a detector."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from oodlib.data.catalogue import display_name
from oodlib.plots.style import (
    legend_below,
    name_rows,
    nothing_figure,
    objective_color,
    objective_colors,
    objective_handles,
    panel_grid,
)
from oodlib.report.detectors import ACROSS_STUDIES
from oodlib.report.means import group_means
from oodlib.report.predictors import id_measures, ood_auroc
from oodlib.report.published import with_accuracy
from oodlib.report.results import SETTING, Results

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
        for limits, widen in ((axis.get_xlim(), axis.set_xlim), (axis.get_ylim(), axis.set_ylim)):
            middle = sum(limits) / 2
            widen(min(limits[0], middle - 2), max(limits[1], middle + 2))  # a tenth of a percent is nothing to show
    handles = objective_handles(own.objective)
    handles |= {name: plt.Line2D([], [], color="0.3", marker=mark, linestyle="none") for name, mark in marks.items()}
    if set(datasets) & set(points[points.study == "published"].id_dataset):
        handles["published"] = plt.Line2D([], [], color="0.8", **PUBLISHED)
    legend_below(figure, handles, 6)
    plt.close(figure)
    return figure


def predictor_figure(results: Results, detector: str, table: pd.DataFrame, n_shown: int = 4) -> Figure:
    """Draw OOD AUROC of one detector against measures of ID data, a point a run: the paper's, then the strongest.

    table: what `oodlib.report.predictors` found; a row of panels an ID set and group of OOD sets.
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
