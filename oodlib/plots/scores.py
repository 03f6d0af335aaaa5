"""Figures of scores and what is decided by them: densities, ROC, false alarms, risk against coverage.

Scores are drawn from the 101 quantiles that a run keeps. A figure of one seed shows the runs of the study's first
architecture.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from oodlib.data.catalogue import display_name
from oodlib.plots.style import (
    ID_COLOR,
    label_rows,
    legend_below,
    nothing_figure,
    objective_color,
    objective_name,
    ood_colors,
    panel_grid,
)


def of_seed(table: pd.DataFrame, id_dataset: str, seed: int) -> pd.DataFrame:
    """Return the rows of one ID set, seed and (the first) architecture. Raises ValueError where there are none."""
    table = table[table.id_dataset == id_dataset]
    if seed not in set(table.seed):
        known = ", ".join(map(str, sorted(set(table.seed))))
        raise ValueError(f"no run of {id_dataset!r} with seed {seed} has what is drawn; these seeds have: {known}")
    table = table[table.seed == seed]
    return table[table.arch == table.arch.iloc[0]]


def _of_detector(scores: pd.DataFrame, detector: str, id_dataset: str, seed: int) -> tuple[pd.DataFrame, list, list]:
    """Return the scores of one detector and seed, the objectives, and the OOD sets."""
    table = of_seed(scores, id_dataset, seed)
    table = table[table.detector == detector]
    return table, list(dict.fromkeys(table.objective)), [d for d in dict.fromkeys(table.dataset) if d != id_dataset]


def histogram_figure(scores: pd.DataFrame, detector: str, id_dataset: str, seed: int) -> Figure:
    """Draw the densities of the ID and OOD scores of one detector, a panel an objective; right is more normal.

    Scores are shown as minus the logarithm of the distance, in which near and far both have room.
    """
    table, objectives, oods = _of_detector(scores, detector, id_dataset, seed)
    if table.empty:
        return nothing_figure(f"{display_name(id_dataset)}: no scores of {detector} were kept")
    colors = {id_dataset: ID_COLOR} | ood_colors(oods)
    figure, axes = panel_grid(len(objectives), height=2.7)
    for axis, objective in zip(axes, objectives, strict=True):
        part = table[table.objective == objective]
        part = part.assign(normality=-np.log10(np.maximum(-part.score, 1e-9)))
        for name, color in colors.items():
            is_id = name == id_dataset
            values = part[part.dataset == name].normality
            look = {"color": color, "fill": is_id, "alpha": 0.4 if is_id else 1, "label": display_name(name)}
            sns.kdeplot(values, ax=axis, gridsize=100, **look)
        axis.set(title=objective_name(objective), xlabel="−log₁₀ distance", ylabel="density", yticks=[])
    handles, names = axes[0].get_legend_handles_labels()
    legend_below(figure, dict(zip(names, handles, strict=True)), 4)
    figure.suptitle(f"{display_name(id_dataset)}, {detector}, seed {seed}")
    plt.close(figure)
    return figure


def roc_figure(scores: pd.DataFrame, detector: str, id_dataset: str, seed: int) -> Figure:
    """Draw ROC curves, ID positive: share of ID kept against OOD kept, a panel an OOD set, a line an objective."""
    table, objectives, oods = _of_detector(scores, detector, id_dataset, seed)
    if table.empty:
        return nothing_figure(f"{display_name(id_dataset)}: no scores of {detector} were kept")
    figure, axes = panel_grid(len(oods), height=2.9, sharey=True)
    for axis, ood in zip(axes, oods, strict=True):
        for objective in objectives:
            part = table[table.objective == objective]
            inside, outside = (np.sort(part[part.dataset == name].score) for name in (id_dataset, ood))
            thresholds = np.sort(np.concatenate([inside, outside, [-np.inf, np.inf]]))[::-1]
            kept = [1 - np.searchsorted(scores, thresholds, side="left") / len(scores) for scores in (inside, outside)]
            axis.plot(kept[1], kept[0], color=objective_color(objective), label=objective_name(objective))
        axis.axhline(0.95, color="0.6", linewidth=0.8, linestyle=":")
        axis.set(title=display_name(ood), xlabel="OOD kept", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    label_rows(axes, "ID kept")
    handles, names = axes[0].get_legend_handles_labels()
    legend_below(figure, dict(zip(names, handles, strict=True)))
    figure.suptitle(f"{display_name(id_dataset)}, {detector}, seed {seed}; dotted: 95 % of ID kept")
    plt.close(figure)
    return figure


def false_alarm_figure(false_alarms: pd.DataFrame, detector: str, by: str = "", title: str = "") -> Figure:
    """Draw realised against promised false-alarm rates of one detector, a panel a value of column `by`.

    For the conformal thresholds: mean over random splits, with the range of 95 % of them, and in grey where 95 % are
    expected (beta-binomial). The threshold from training images makes no promise and keeps none. Raises ValueError for
    a detector whose rates are not there.
    """
    known = list(dict.fromkeys(false_alarms.detector))
    if detector not in known:
        raise ValueError(f"false alarms of {detector!r} are not kept for figures; known: {', '.join(known)}")
    table = false_alarms[false_alarms.detector == detector]
    panels = list(dict.fromkeys(table[by])) if by else [""]
    figure, axes = panel_grid(len(panels), height=2.9 if by else 4.2, width=3.4 if by else 4.9, sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        part = (table[table[by] == panel] if by else table).groupby(["threshold", "alpha"]).mean(numeric_only=True)
        axis.plot([0, 0.5], [0, 0.5], color="0.5", linewidth=1, linestyle=":", label="as promised")
        conformal = part.loc["conformal"]
        band = {"color": "0.85", "label": "95 % expected"}
        axis.fill_between(conformal.index, conformal.band_low, conformal.band_high, **band)
        for color, threshold in zip(sns.color_palette("Dark2"), part.index.unique(0), strict=False):
            rates = part.loc[threshold]
            axis.plot(rates.index, rates.rate, marker="o", markersize=4, color=color, label=threshold)
            axis.vlines(rates.index, rates.low, rates.high, color=color, linewidth=1.5, alpha=0.6)
        axis.set(title=objective_name(panel), xlabel="promised", xlim=(0, 0.52), ylim=(0, None))
    label_rows(axes, "realised")
    handles, names = axes[0].get_legend_handles_labels()
    legend_below(figure, dict(zip(names, handles, strict=True)), 5 if by else 3)
    figure.suptitle(f"{title}, {detector}: false alarms" if title else f"{detector}: false alarms")
    plt.close(figure)
    return figure


def risk_figure(risk_coverage: pd.DataFrame, by: str = "detector", title: str = "") -> Figure:
    """Draw risk-coverage curves, a panel an OOD set, a line a value of column `by`; lower is better.

    Risk is the share of wrong answers, among ID and OOD images together: an OOD image is always answered wrong.
    """
    if risk_coverage.empty:
        return nothing_figure("no risk-coverage curves were kept")
    sets, lines = (list(dict.fromkeys(risk_coverage[name])) for name in ("ood_dataset", by))
    palette = dict(zip(lines, sns.color_palette("Dark2", len(lines)), strict=True))
    figure, axes = panel_grid(len(sets), height=2.7, sharey=True)
    for axis, dataset in zip(axes, sets, strict=True):
        for line in lines:
            chosen = (risk_coverage.ood_dataset == dataset) & (risk_coverage[by] == line)
            color = objective_color(line) if by == "objective" else palette[line]
            coverage, risk = risk_coverage.loc[chosen, ["coverage", "risk"]].to_numpy().T
            axis.plot(coverage, risk, color=color, label=objective_name(line))
        axis.set(title=display_name(dataset), xlabel="coverage: share answered", xlim=(0, 1), ylim=(0, 1))
    label_rows(axes, "risk")
    handles, names = axes[0].get_legend_handles_labels()
    legend_below(figure, dict(zip(names, handles, strict=True)))
    figure.suptitle(title)
    plt.close(figure)
    return figure
