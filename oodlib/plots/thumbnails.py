"""Thumbnails: image sets and places in them in; figures of the images, side by side, out."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oodlib.data.sets import load_images
from oodlib.plots.figures import of_seed
from oodlib.plots.style import objective_name
from oodlib.report.results import Results


def thumbnail_figures(results: Results, detector: str, seed: int, data_root: str = "") -> Iterator[tuple[str, Figure]]:
    """Yield (ID set and objective, figure) of the most and least normal images, by one detector and seed.

    Image sets that are not on this machine are left out, and said so.
    """
    extremes = results.extremes[results.extremes.detector == detector]
    extremes = pd.concat([of_seed(extremes, name, seed) for name in dict.fromkeys(extremes.id_dataset)])
    images = {}
    for name in dict.fromkeys(extremes.dataset):
        try:
            images[name] = load_images(name, "test", data_root or None).images
        except (OSError, ValueError):  # what it says names a folder of this machine, and reports are shared
            print(f"no thumbnails of {name}: load_images({name!r}) says why")
    for (id_dataset, objective), part in extremes.groupby(["id_dataset", "objective"], sort=False):
        if id_dataset in images:
            yield (
                f"{id_dataset}_{objective}",
                _thumbnails(part, images, f"{objective_name(objective)}, {detector}, seed {seed}"),
            )


def _thumbnails(extremes: pd.DataFrame, images: dict[str, np.ndarray], title: str) -> Figure:
    sets = [name for name in dict.fromkeys(extremes.dataset) if name in images]
    rows = [(name, extreme) for name in sets for extreme in ("most", "least")]
    n_columns = int(extremes["rank"].max()) + 1
    size = (0.75 * n_columns + 1.6, 0.78 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, extreme) in zip(axes.flat, rows, strict=True):
        chosen = extremes[(extremes.dataset == name) & (extremes.extreme == extreme)].sort_values("rank")
        show_images(axis, images[name][chosen["index"]], f"{name}\n{extreme} normal", n_columns)
    figure.suptitle(title, fontsize=11)
    return figure


def show_images(axis: Axes, images: np.ndarray, label: str, n: int) -> None:
    """Show up to n images (m, h, w[, c]) uint8 side by side in an axis with room for n, with a label at the left."""
    axis.imshow(strip(images, n), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    sns.despine(ax=axis, left=True, bottom=True)
    axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)


def strip(images: np.ndarray, n: int) -> np.ndarray:
    """Return one image of up to n images (m, h, w[, c]) uint8 from left to right, with white between them and after.

    An axis for each would look the same, but a hundred axes take seconds to draw.
    """
    height, width = images.shape[1:3]
    step = width + max(1, width // 8)
    shown = np.full((height, n * step - (step - width), *images.shape[3:]), 255, dtype=np.uint8)
    for i, image in enumerate(images[:n]):
        shown[:, i * step : i * step + width] = image
    return shown
