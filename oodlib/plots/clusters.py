"""Figures of clusters: embeddings in a plane, separation and purity of clusters, over seeds, K and fractions."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from oodlib.data.catalogue import display_name, look_up
from oodlib.plots.scores import of_seed
from oodlib.plots.style import (
    ID_COLOR,
    label_rows,
    legend_below,
    nothing_figure,
    objective_colors,
    objective_handles,
    objective_name,
    ood_colors,
    panel_grid,
)
from oodlib.report.results import Results, of_classes
from oodlib.separation import PAIR_METRICS, separation_curve
from oodlib.study.artefacts import id_embeddings
from oodlib.study.run import Run

N_JUDGED = 3000  # embeddings that separation curves are drawn from, at most
AXES = {"xticks": [], "yticks": [], "xlabel": "first discriminant", "ylabel": "second discriminant"}


def draw_projection(axis: Axes, table: pd.DataFrame, id_dataset: str) -> None:
    """Draw the projected test embeddings of one run, ID in grey over OOD in colour; up to 12 classes are named."""
    inside = table[table.dataset == id_dataset]
    if inside.label.nunique() <= 12:
        names = look_up(id_dataset).classes
        for label, members in inside.groupby("label"):
            name = names[label] if names else label
            text = axis.text(members.x.median(), members.y.median(), name, ha="center", va="center", weight="bold")
            text.set(zorder=5, path_effects=[withStroke(linewidth=3, foreground="white")])
    points = {"linewidth": 0, "s": 10}
    of_id = {"color": ID_COLOR, "alpha": 0.6, "label": f"{display_name(id_dataset)} (ID)", "zorder": 4}
    axis.scatter(inside.x, inside.y, **of_id, **points)
    for name, color in ood_colors([name for name in dict.fromkeys(table.dataset) if name != id_dataset]).items():
        outside = table[table.dataset == name]
        axis.scatter(outside.x, outside.y, color=[color], alpha=0.7, label=display_name(name), zorder=3, **points)


def projection_figure(run: Run) -> Figure:
    """Draw the run's projected ID and OOD test embeddings."""
    figure, axis = plt.subplots(figsize=(7, 5.5))
    draw_projection(axis, pd.read_csv(run.path / "projection.csv"), run.record["train"]["parameters"]["id_dataset"])
    axis.set(title=run.name, **AXES)
    axis.legend(bbox_to_anchor=(1, 1), loc="upper left", markerscale=2)
    plt.close(figure)
    return figure


def projections_figure(projection: pd.DataFrame, id_dataset: str, seed: int) -> Figure:
    """Draw ID and OOD test embeddings, a panel an objective, in the plane that parts the training classes."""
    table = of_seed(projection, id_dataset, seed)
    objectives = list(dict.fromkeys(table.objective))
    figure, axes = panel_grid(len(objectives), height=3.4)
    for axis, objective in zip(axes, objectives, strict=True):
        draw_projection(axis, table[table.objective == objective], id_dataset)
        axis.set(title=objective_name(objective), **AXES)
    handles, names = axes[0].get_legend_handles_labels()
    legend_below(figure, dict(zip(names, handles, strict=True)), 4)
    for handle in figure.legends[0].legend_handles:
        handle.set(sizes=[40], alpha=1)
    plt.close(figure)
    return figure


def separation_figure(results: Results, id_dataset: str) -> Figure:
    """Draw box plots by objective: global separation of each class, and purity of each k-means cluster, all seeds."""
    clusters = results.clusters[results.clusters.id_dataset == id_dataset]
    parts = {
        "global separation of classes": of_classes(clusters, "labels", "global_separation"),
        "purity of k-means clusters, as many as classes": of_classes(clusters, "kmeans", "cluster_purity"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, (name, part) in zip(axes, parts.items(), strict=True):
        palette = objective_colors(part.objective)
        common = {"data": part, "x": "objective", "y": "value", "hue": "objective", "palette": palette, "ax": axis}
        sns.boxplot(**common, legend=False, showfliers=False, boxprops={"alpha": 0.5})
        spread = np.random.default_rng(0)  # points lie beside each other the same way every time
        for place, (objective, values) in enumerate(part.groupby("objective", sort=False).value):
            x = place + spread.uniform(-0.25, 0.25, len(values))
            axis.scatter(x, values, s=7, color=[palette[objective]], alpha=0.7, linewidth=0, zorder=3)
        axis.set_xticks(range(len(palette)), [objective_name(objective) for objective in palette])
        axis.set(title=name, xlabel="", ylabel="")
    figure.suptitle(display_name(id_dataset))
    plt.close(figure)
    return figure


def cluster_size_figure(clusters: pd.DataFrame, id_dataset: str, clustering: str = "kmeans") -> Figure:
    """Draw box plots by K: global separation and purity of the clusters of one clustering, a box an objective."""
    clusters = clusters[(clusters.id_dataset == id_dataset) & (clusters.clustering == clustering)]
    if clusters.empty:
        return nothing_figure(f"no run has clustering {clustering!r}")
    figure, axes = plt.subplots(2, 1, figsize=(10, 5.5), sharex=True, layout="constrained")
    for axis, measure in zip(axes, ("global_separation", "cluster_purity"), strict=True):
        part = clusters[clusters.measure == measure]
        style = {"hue": "objective", "palette": objective_colors(part.objective), "showfliers": False, "linewidth": 0.8}
        sns.boxplot(part, x="n_clusters", y="value", **style, ax=axis, legend=False)
        axis.set(title=f"{measure.replace('_', ' ')} of {clustering} clusters ({display_name(id_dataset)})", ylabel="")
        axis.set_xlabel("K")
    legend_below(figure, objective_handles(clusters.objective), 6)
    plt.close(figure)
    return figure


def separation_curves_figure(run: Run, fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)) -> Figure:
    """Draw the global separation of the run's classes against the fraction of smallest distances that it counts.

    A panel a metric, a line a class. Small fractions look at the nearest members of two clusters, 1 at all of them.
    """
    data = id_embeddings(run)["train"]
    figure, axes = panel_grid(len(PAIR_METRICS), width=4, sharey=True)
    for axis, metric in zip(axes, PAIR_METRICS, strict=True):
        curves = separation_curve(data["z"], data["y"], fractions, metric, max_samples=N_JUDGED)  # (fractions, C)
        axis.set_prop_cycle(color=sns.color_palette("viridis", curves.shape[1]))
        axis.plot(fractions, curves)
        axis.set(title=metric, xlabel="fraction of smallest distances", ylim=(None, 1))
    label_rows(axes, "global separation")
    plt.close(figure)
    return figure
