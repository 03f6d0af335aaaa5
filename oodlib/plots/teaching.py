"""Drawings of the notebooks that teach: points in a plane and on the unit circle, contours of a score."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from oodlib.arrays import sample_rows, to_unit_norm
from oodlib.data.sets import ImageSet, load_images, take
from oodlib.plots.style import nothing_figure, show_saved
from oodlib.report.results import Results
from oodlib.study.run import Run

GRID, LEVELS = 120, 9  # points a side, and levels, of contours
REACH = 0.7  # length of the longest arrow on a circle of radius 1


def class_colors(y: Sequence[int]) -> np.ndarray:
    """Return a colour (n, 3) for each label of y (n,)."""
    codes = np.unique(np.asarray(y), return_inverse=True)[1]
    return np.array(sns.color_palette("husl", int(codes.max()) + 1))[codes]


def draw_points(axis: Axes, z: np.ndarray, y: Sequence[int], title: str = "", size: float = 14) -> None:
    """Draw points z (n, 2) in the colours of their labels y (n,), one unit as long across as up."""
    axis.scatter(*np.asarray(z).T, s=size, color=class_colors(y), linewidth=0, zorder=3)
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=10)


def draw_circle(
    axis: Axes, z: np.ndarray, y: Sequence[int], title: str = "", arrows: np.ndarray | None = None, spread: float = 0.0
) -> None:
    """Draw the directions of z (n, 2) on the unit circle, in the colours of their labels y (n,).

    arrows (n, 2): where each point would move, the longest REACH long. spread: how far points are moved off the circle
    at random, so that one sees how many lie at the same place.
    """
    z = np.asarray(z)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.8", zorder=1))
    off = 1 + spread * np.random.default_rng(0).uniform(-1, 1, (len(z), 1))
    draw_points(axis, unit * off, y, title, size=10 if spread else 60)
    if arrows is not None:
        moves = np.asarray(arrows)
        moves = REACH * moves / max(np.linalg.norm(moves, axis=1).max(), 1e-12)
        axis.quiver(*unit.T, *moves.T, color=class_colors(y), angles="xy", scale_units="xy", scale=1, width=0.012)
    axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    axis.axis("off")


def draw_contours(
    axis: Axes, score: Callable[[np.ndarray], np.ndarray], z: np.ndarray, y: Sequence[int], title: str = ""
) -> None:
    """Draw where in the plane of z (n, 2) a score is how high, dark is more normal; `score` maps (m, 2) to (m,).

    Between two neighbouring levels lies the same share of the plane, whatever the unit of the score.
    """
    low, high = z.min(axis=0), z.max(axis=0)
    sides = [np.linspace(a - 0.4 * (b - a), b + 0.4 * (b - a), GRID) for a, b in zip(low, high, strict=True)]
    plane = np.stack(np.meshgrid(*sides), axis=-1)  # (GRID, GRID, 2)
    values = score(plane.reshape(-1, 2)).reshape(GRID, GRID)
    levels = np.unique(np.quantile(values, np.linspace(0, 1, LEVELS)))
    axis.contourf(*sides, values, levels=levels, cmap="Greys", alpha=0.4)
    axis.contour(*sides, values, levels=levels, colors="0.4", linewidths=0.6, linestyles="solid")
    draw_points(axis, z, y, title, size=6)


def snapshots_figure(run: Run, images: ImageSet) -> Figure:
    """Draw training images as the encoders that a run kept on its way embed them, a panel an encoder.

    A panel is the plane of the two directions in which the embeddings at unit norm vary most.
    """
    from oodlib.encoders.embedding import embed_images
    from oodlib.encoders.encoder import load_encoder
    from oodlib.encoders.training import snapshots_of

    kept = snapshots_of(run.path)
    if not kept:
        return nothing_figure("this run kept no encoders on its way: snapshot_epochs is 0")
    kept = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, 4).astype(int))]
    some = sample_rows(len(images), 500)
    figure, axes = plt.subplots(1, len(kept), figsize=(2.6 * len(kept), 2.8), squeeze=False, layout="constrained")
    for axis, path in zip(axes[0], kept, strict=True):
        z = to_unit_norm(embed_images(load_encoder(path), take(images.images, some))[0])
        z = z - z.mean(axis=0)
        plane = z @ np.linalg.svd(z, full_matrices=False)[2][:2].T  # (n, 2)
        draw_points(axis, plane, images.labels[some], f"epoch {int(path.stem)}", size=8)
    plt.close(figure)
    return figure


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
