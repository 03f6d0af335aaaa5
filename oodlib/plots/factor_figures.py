"""Figures of the factors: clustering × distance as a heat map, thresholds and their promise, risk, what predicts AUROC.

Tables of one run or of a study in, matplotlib figures out; objectives have the colours of `oodlib.plots.figures`.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from oodlib.plots.style import COLORS, nothing_figure, objective_name
from oodlib.report.findings import id_measures, ood_auroc
from oodlib.report.provenance import display_name
from oodlib.report.results import Results, clustering_names

OF_PAPER = ("global_separation", "k-means cluster_purity")  # the paper's own measures, drawn whatever they predict


def product_figure(metrics: pd.DataFrame, by: str, measure: str = "auroc", title: str = "") -> Figure:
    """Draw a measure in percent of every clustering (a row) and distance (a column), a panel a value of column `by`.

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
    cells = [part.groupby([by, "row", "distance"], sort=False)[measure].mean().mul(100) for part in parts]
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
    figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01, label=f"{measure.upper()}, %")
    figure.suptitle(f"{measure.upper()} %{', ' * bool(title)}{title}")
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


def false_alarm_figure(false_alarms: pd.DataFrame, detector: str, by: str = "", title: str = "") -> Figure:
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
    figure.suptitle(f"{title}, {detector}" if title else detector)
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


def study_risk_figure(results: Results, detector: str, id_dataset: str, seed: int) -> Figure:
    """Draw risk-coverage curves of one detector and seed, a panel an OOD set, a line an objective, with its AURC.

    Lower is better. The curve is that of ID and OOD images together, OOD images being answered wrongly.
    """
    chosen = results.risk_coverage[
        results.risk_coverage.id_dataset.eq(id_dataset) & results.risk_coverage.seed.eq(seed)
    ]
    chosen = chosen[chosen.detector == detector]
    if chosen.empty:
        return nothing_figure(f"no risk-coverage curves of {detector} and seed {seed}")
    chosen = chosen[chosen.arch == chosen.arch.iloc[0]]
    areas = results.metrics[results.metrics.detector == detector].set_index(["run", "ood_dataset"]).aurc
    sets = list(dict.fromkeys(chosen.ood_dataset))
    size = (3.1 * len(sets), 3.6)
    figure, axes = plt.subplots(1, len(sets), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, dataset in zip(axes[0], sets, strict=True):
        for (run, objective), curve in chosen[chosen.ood_dataset == dataset].groupby(["run", "objective"], sort=False):
            label = f"{objective_name(objective)}: {areas[run, dataset]:.2f}"
            axis.plot(curve.coverage, curve.risk, color=COLORS.get(objective, "0.4"), label=label)
        axis.set(title=display_name(dataset), xlabel="coverage", xlim=(0, 1), ylim=(0, 1))
        axis.legend(title="AURC", fontsize=8, title_fontsize=8, loc="best")
    axes[0][0].set_ylabel("risk: share of answers that are wrong")
    figure.suptitle(f"{display_name(id_dataset)} with each OOD set, {detector}, seed {seed}")
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
    """Draw OOD AUROC of one detector against measures of ID data, a point a run: the paper's, then the strongest.

    table: what `oodlib.report.findings.predictors` found; a row of panels an ID set and group of OOD sets.
    """
    if table.empty:
        return nothing_figure("fewer than three runs, or all alike: nothing to correlate")
    points = id_measures(results).join(100 * ood_auroc(results, detector)).reset_index()
    rows = list(table.groupby(["id_dataset", "group"], sort=False))
    size = (3.1 * n_shown, 3.1 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), n_shown, figsize=size, squeeze=False, sharey="row", layout="constrained")
    for line, ((id_dataset, group), best) in zip(axes, rows, strict=True):
        of_paper = best.measure.isin(OF_PAPER)
        best = pd.concat([best[of_paper], best[~of_paper].head(n_shown - of_paper.sum())])
        for axis in line[len(best) :]:
            axis.axis("off")
        for axis, found in zip(line, best.itertuples(), strict=False):
            common = {"x": found.measure, "y": group, "hue": "objective", "palette": COLORS, "legend": False}
            sns.scatterplot(points[points.id_dataset == id_dataset], **common, ax=axis, s=45)
            axis.set_title(f"Spearman {found.spearman:+.2f}, n = {found.n}", fontsize=10)
        line[0].set_ylabel(f"{display_name(id_dataset)}: {group} OOD AUROC %")
    looks = {objective_name(name): {"color": COLORS.get(name, "0.4"), "marker": "o"} for name in points.objective}
    dots = [plt.Line2D([], [], linestyle="none", **look) for look in looks.values()]
    figure.legend(dots, looks, loc="outside lower center", ncol=len(looks), frameon=False)
    plt.close(figure)
    return figure
