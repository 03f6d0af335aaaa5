"""The idea in one picture: images, their embeddings in a plane, and the scores that tell known from unknown."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from oodlib.data.sets import ImageSet, load_images
from oodlib.plots.saving import show_saved
from oodlib.report.results import Results

KNOWN, UNKNOWN = "C0", "C3"
ROWS, COLUMNS = 2, 7  # thumbnails of each kind


def show_idea(results: Results, seed: int, data_root: str, folder: Path) -> None:
    """Write and show the idea on the first run of a seed and its first near OOD set, where the images are at hand."""
    run = results.runs[results.runs.seed == seed].run.iloc[0]
    projection, scores = (table[table.run == run] for table in (results.projection, results.scores))
    metrics = results.metrics[(results.metrics.run == run) & (results.metrics.group == "near")]
    if projection.empty or scores.empty or metrics.empty:
        return
    try:
        known, unknown = (
            load_images(name, "test", data_root or None)
            for name in (metrics.id_dataset.iloc[0], metrics.ood_dataset.iloc[0])
        )
    except (OSError, ValueError):  # the report is made without images, too
        return
    scores = scores[scores.detector == scores.detector.iloc[0]]
    show_saved(idea_figure(known, unknown, projection, scores), folder, "idea")


def idea_figure(known: ImageSet, unknown: ImageSet, projection: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Draw test images of the ID set and of an OOD set, the plane of their embeddings, and their scores.

    projection: columns dataset, label, x, y, and scores: columns dataset, level, score (quantiles of one detector), as
    a run's projection.csv and scores.csv hold them. The line is the score that 95 % of the ID images reach.
    """
    figure = plt.figure(figsize=(10, 3.1), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=[1.05, 1, 1])
    _draw_images(left, known, unknown)
    _draw_plane(middle.subplots(), projection, known.name, unknown.name)
    _draw_scores(right.subplots(), scores, known.name, unknown.name)
    return figure


def _draw_images(figure: Figure, known: ImageSet, unknown: ImageSet) -> None:
    upper, lower = figure.subfigures(2, 1)
    for part, images, color, title in (
        (upper, known, KNOWN, "images like those it was trained on"),
        (lower, unknown, UNKNOWN, "images unlike any of them"),
    ):
        chosen = np.random.default_rng(0).permutation(len(images))[: ROWS * COLUMNS]
        part.suptitle(title, fontsize=10, color=color)
        for axis, image in zip(part.subplots(ROWS, COLUMNS).flat, images.images[np.sort(chosen)], strict=True):
            axis.imshow(image, cmap="gray_r")
            axis.axis("off")


def _draw_plane(axis: Axes, projection: pd.DataFrame, known: str, unknown: str) -> None:
    inside, outside = (projection[projection.dataset == name] for name in (known, unknown))
    axis.scatter(inside.x, inside.y, s=9, color=KNOWN, alpha=0.5)
    axis.scatter(outside.x, outside.y, s=9, color=UNKNOWN, alpha=0.35, marker="x", linewidths=0.8)
    for _, cluster in inside.groupby("label"):
        axis.plot(cluster.x.median(), cluster.y.median(), marker="*", markersize=13, color="k", markeredgecolor="w")
    axis.set(title="embeddings: a cluster a class", xticks=[], yticks=[], xlabel="", ylabel="")
    axis.title.set_fontsize(10)
    axis.grid(False)


def _draw_scores(axis: Axes, scores: pd.DataFrame, known: str, unknown: str) -> None:
    inside, outside = (scores[scores.dataset == name].score.to_numpy() for name in (known, unknown))
    threshold = np.quantile(inside, 0.05)
    lowest = min(np.quantile(outside, 0.02), threshold)
    for values, color in ((inside, KNOWN), (outside, UNKNOWN)):
        sns.kdeplot(x=values, ax=axis, fill=True, color=color, alpha=0.4, clip=(lowest, inside.max()))
    axis.axvline(threshold, color="0.2", linestyle="--", linewidth=1.2)
    height = axis.get_ylim()[1] * 1.15
    axis.set_ylim(0, height)
    axis.text(threshold, height * 0.97, "unknown ", ha="right", va="top", color=UNKNOWN, fontsize=10)
    axis.text(threshold, height * 0.97, " known", ha="left", va="top", color=KNOWN, fontsize=10)
    axis.set(title="score: minus the distance to the nearest cluster", yticks=[], xlabel="more normal →", ylabel="")
    axis.title.set_fontsize(10)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.grid(False)
