"""Figures of the factors: clustering × distance as a heat map, thresholds and their promise, risk, what predicts AUROC.

Tables of one run or of a study in, matplotlib figures out; objectives have the colours of `oodlib.figures`.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oodlib.figures import COLORS, nothing_figure, objective_name
from oodlib.findings import id_measures, ood_auroc
from oodlib.report import Results, clustering_names


def product_figure(metrics: pd.DataFrame, by: str, measure: str = "auroc") -> Figure:
    """Draw a measure in percent of every clustering (a row) and distance (a column), a panel a value of column `by`.

    The references, which have no clusters, stand in a row of their own below. metrics: rows with the columns of
    metrics.csv, of which those of the global threshold are drawn; several rows of one cell are averaged.
    """
    metrics = metrics[(metrics.threshold == "global") & (metrics.seen == 0)]
    if metrics.empty:
        return nothing_figure("no OOD set of this kind: nothing to compare")
    panels = list(dict.fromkeys(metrics[by]))
    metrics = metrics.assign(row=clustering_names(metrics).where(metrics.clustering != "none", "no clusters"))
    parts = metrics[metrics.clustering != "none"], metrics[metrics.clustering == "none"]
    n_rows = parts[0].row.nunique()
    size = (5.2 * len(panels) + 1, 0.33 * n_rows + 3)
    ratios = {"height_ratios": [n_rows, 1.2]}
    figure, axes = plt.subplots(2, len(panels), figsize=size, squeeze=False, layout="constrained", gridspec_kw=ratios)
    for line, part in zip(axes, parts, strict=True):
        names = {"index": list(dict.fromkeys(part.row)), "columns": list(dict.fromkeys(part.distance))}
        for axis, panel in zip(line, panels, strict=True):
            cells = part[part[by] == panel].pivot_table(index="row", columns="distance", values=measure)
            _draw_heat(axis, 100 * cells.reindex(**names))  # the same rows and columns in all panels
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set_title(objective_name(panel))
    for axis in axes[:, 1:].flat:
        axis.set_yticklabels([])
    figure.suptitle(f"{measure.upper()} %")
    plt.close(figure)
    return figure


def _draw_heat(axis: Axes, cells: pd.DataFrame) -> None:
    """Draw a table as a heat map; seaborn's own draws the whole figure anew for each."""
    axis.imshow(cells, cmap="crest", vmin=50, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(cells.to_numpy()):
        if not np.isnan(value):
            color = "white" if value > 65 else "0.15"
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", size=8, color=color)
    axis.set_xticks(range(cells.shape[1]), cells.columns, rotation=40, ha="right")
    axis.set_yticks(range(cells.shape[0]), cells.index)
    axis.grid(visible=False)
    sns.despine(ax=axis, left=True, bottom=True)


def false_alarm_figure(false_alarms: pd.DataFrame, detector: str, by: str = "") -> Figure:
    """Draw realised against promised false-alarm rates of one detector, a panel a value of column `by`.

    Of the conformal thresholds: mean over random splits, with the range of 95 % of them, and in grey where 95 % are
    expected (beta-binomial). The threshold from training images makes no promise and keeps none. Raises ValueError for
    a detector whose rates are not there.
    """
    known = list(dict.fromkeys(false_alarms.detector))
    if detector not in known:
        raise ValueError(f"false alarms of {detector!r} are not kept for figures; known: {', '.join(known)}")
    table = false_alarms[false_alarms.detector == detector]
    panels = list(dict.fromkeys(table[by])) if by else [""]
    size = (4.4 * len(panels) + 0.5, 4.6)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        part = (table[table[by] == panel] if by else table).groupby(["threshold", "alpha"]).mean(numeric_only=True)
        axis.plot([0, 0.5], [0, 0.5], color="0.5", linewidth=1, linestyle=":", label="as promised")
        conformal = part.loc["conformal"]
        band = {"color": "0.85", "label": "95 % expected"}
        axis.fill_between(conformal.index, conformal.band_low, conformal.band_high, **band)
        for color, threshold in zip(sns.color_palette("Dark2"), part.index.unique(0), strict=False):
            rates = part.loc[threshold]
            axis.plot(rates.index, rates.rate, marker="o", markersize=4, color=color, label=threshold)
            axis.vlines(rates.index, rates.low, rates.high, color=color, linewidth=1.5, alpha=0.6)
        axis.set(title=objective_name(panel), xlabel="promised false-alarm rate", xlim=(0, 0.52))
    axes[0][0].set(ylabel="realised on ID images", ylim=(0, None))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncol=3, frameon=False)
    figure.suptitle(detector)
    plt.close(figure)
    return figure


def risk_figure(risk_coverage: pd.DataFrame) -> Figure:
    """Draw risk-coverage curves of one run, a panel an OOD set, a line a detector; lower is better."""
    datasets, detectors = (list(dict.fromkeys(risk_coverage[name])) for name in ("ood_dataset", "detector"))
    size = (3.4 * len(datasets), 3.9)
    figure, axes = plt.subplots(1, len(datasets), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for color, detector in zip(sns.color_palette("Dark2"), detectors, strict=False):
            chosen = (risk_coverage.ood_dataset == dataset) & (risk_coverage.detector == detector)
            axis.plot(*risk_coverage.loc[chosen, ["coverage", "risk"]].to_numpy().T, color=color, label=detector)
        axis.set(title=dataset, xlabel="coverage: share answered", xlim=(0, 1), ylim=(0, 1))
    axes[0][0].set_ylabel("risk: share of answers that are wrong")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncol=4, frameon=False)
    plt.close(figure)
    return figure


def fraction_figure(curves: pd.DataFrame) -> Figure:
    """Draw global separation against the fraction of distances it counts, a panel a metric, a line a cluster.

    curves: columns metric, fraction, cluster, value. Small fractions look at the nearest members of two clusters, 1 at
    all of them.
    """
    grid = sns.relplot(
        curves, x="fraction", y="value", col="metric", hue="cluster", kind="line", height=3.2, palette="viridis"
    )
    grid.set(ylim=(None, 1)).set_axis_labels("fraction of smallest distances", "global separation")
    plt.close(grid.figure)
    return grid.figure


def predictor_figure(results: Results, detector: str, table: pd.DataFrame, n_shown: int = 4) -> Figure:
    """Draw OOD AUROC of one detector against the measures of ID data that rank the runs most like it, a point a run.

    table: what `oodlib.findings.predictors` found; a row of panels an ID set and group of OOD sets.
    """
    if table.empty:
        return nothing_figure("fewer than three runs, or all alike: nothing to correlate")
    points = id_measures(results).join(100 * ood_auroc(results, detector)).reset_index()
    rows = list(table.groupby(["id_dataset", "group"], sort=False))
    size = (3.1 * n_shown, 3.1 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), n_shown, figsize=size, squeeze=False, sharey="row", layout="constrained")
    for line, ((id_dataset, group), best) in zip(axes, rows, strict=True):
        for axis in line[len(best) :]:
            axis.axis("off")
        for axis, found in zip(line, best.itertuples(), strict=False):
            common = {"x": found.measure, "y": group, "hue": "objective", "palette": COLORS, "legend": False}
            sns.scatterplot(points[points.id_dataset == id_dataset], **common, ax=axis, s=45)
            axis.set_title(f"Spearman {found.spearman:+.2f}, n = {found.n}", fontsize=10)
        line[0].set_ylabel(f"{id_dataset}: {group} OOD AUROC %")
    looks = {objective_name(name): {"color": COLORS.get(name, "0.4"), "marker": "o"} for name in points.objective}
    dots = [plt.Line2D([], [], linestyle="none", **look) for look in looks.values()]
    figure.legend(dots, looks, loc="outside lower center", ncol=len(looks), frameon=False)
    plt.close(figure)
    return figure
