"""Figures of training: accuracy against seconds, and clusters and AUROC epoch by epoch."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from oodlib.data.catalogue import display_name
from oodlib.plots.style import legend_below, nothing_figure, objective_colors, objective_handles, panel_grid


def history_figure(history: pd.DataFrame) -> Figure:
    """Draw the held-out nearest-neighbour accuracy against training seconds, by the fastest epoch, a line a run."""
    history = history.assign(elapsed=history.epoch * history.groupby("run").seconds.transform("min"))
    datasets = list(dict.fromkeys(history.id_dataset))
    figure, axes = panel_grid(len(datasets), width=4.6)
    for axis, dataset in zip(axes, datasets, strict=True):
        part = history[history.id_dataset == dataset]
        common = {"x": "elapsed", "y": "knn_accuracy", "hue": "objective", "units": "run", "estimator": None}
        style = {"palette": objective_colors(part.objective), "linewidth": 1.2, "marker": "o", "markersize": 4}
        sns.lineplot(part, **common, **style, markeredgewidth=0, ax=axis, legend=False)
        axis.set(
            title=f"{display_name(dataset)}, a line a run", xlabel="training seconds", ylabel="held-out k-NN accuracy"
        )
    legend_below(figure, objective_handles(history.objective), 6)
    plt.close(figure)
    return figure


def epoch_figure(epochs: pd.DataFrame, id_dataset: str) -> Figure:
    """Draw, epoch by epoch, separation of the classes, accuracy and mean near and far AUROC, a line a run.

    For the runs that kept encoders on their way; accuracy, where it was measured, is that of the nearest class mean by
    cosine, and AUROC that of the same distance.
    """
    epochs = epochs[epochs.id_dataset == id_dataset]
    panels = [
        ("global separation", "ID", "global_separation", 1),
        ("nearest class mean, accuracy %", "ID", "nearest_class_mean_accuracy", 100),
        ("near AUROC %", "near", "auroc", 100),
        ("far AUROC %", "far", "auroc", 100),
    ]
    panels = [panel for panel in panels if panel[2] in set(epochs.measure)]
    if epochs.empty:
        return nothing_figure("no run kept encoders on its way (snapshot_epochs)")
    figure, axes = panel_grid(len(panels), width=2.7, height=2.5, n_columns=4)
    for axis, (title, group, measure, times) in zip(axes, panels, strict=True):
        part = epochs[(epochs.group == group) & (epochs.measure == measure)]
        part = part.groupby(["objective", "run", "epoch"], sort=False).value.mean().mul(times).reset_index()
        style = {"hue": "objective", "palette": objective_colors(part.objective), "units": "run", "estimator": None}
        sns.lineplot(part, x="epoch", y="value", **style, marker="o", ax=axis, legend=False)
        axis.set(title=title, xlabel="epoch", ylabel="")
    legend_below(figure, objective_handles(epochs.objective), 6)
    figure.suptitle(f"{display_name(id_dataset)}, cosine to class means, a line a run")
    plt.close(figure)
    return figure
