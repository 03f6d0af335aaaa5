"""Drawings of the notebooks that teach: points in a plane and on the unit circle, contours of a score."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oodlib.arrays import sample_rows, to_unit_norm
from oodlib.data.sets import ImageSet, take
from oodlib.plots.style import nothing_figure
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


def snapshots_figure(run: Run, images: ImageSet, n_snapshots: int = 4, n_images: int = 500) -> Figure:
    """Draw training images as the encoders that a run kept on its way embed them, a panel an encoder.

    A panel is the plane of the two directions in which the embeddings at unit norm vary most.
    """
    from oodlib.encoders.embedding import embed_images
    from oodlib.encoders.encoder import load_encoder
    from oodlib.encoders.training import snapshots_of

    kept = snapshots_of(run.path)
    if not kept:
        return nothing_figure("this run kept no encoders on its way: snapshot_epochs is 0")
    kept = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, n_snapshots).astype(int))]
    some = sample_rows(len(images), n_images)
    figure, axes = plt.subplots(1, len(kept), figsize=(2.6 * len(kept), 2.8), squeeze=False, layout="constrained")
    for axis, path in zip(axes[0], kept, strict=True):
        z = to_unit_norm(embed_images(load_encoder(path), take(images.images, some))[0])
        z = z - z.mean(axis=0)
        plane = z @ np.linalg.svd(z, full_matrices=False)[2][:2].T  # (n, 2)
        draw_points(axis, plane, images.labels[some], f"epoch {int(path.stem)}", size=8)
    plt.close(figure)
    return figure
