"""Figures of images: what the network sees in training and after, and the most and the least normal images."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oodlib.data.catalogue import display_name
from oodlib.data.sets import ImageSet, load_images, prepare
from oodlib.plots.scores import of_seed
from oodlib.plots.style import nothing_figure, objective_name

if TYPE_CHECKING:
    import torch

    from oodlib.encoders.encoder import Encoder
    from oodlib.encoders.settings import TrainingConfig

AUGMENTATIONS = {
    "crop, flip": {"crop": 0.2, "flip": 0.5},
    "colour": {"jitter": 0.8, "hue": 0.2, "jitter_p": 1.0},
    "grayscale": {"grayscale": 1.0},
    "blur": {"blur": 1.0},
    "rotation": {"rotate": 45.0},
    "erasing": {"erase": 1.0},
}


def views_figure(config: "TrainingConfig", images: ImageSet, n_images: int = 6, n_views: int = 10) -> Figure:
    """Draw some training images, a row each: the prepared image, then random views of it as training draws them."""
    import torch

    prepared = _prepared(config, images, n_images)
    generator = torch.Generator().manual_seed(config.seed)
    views = [config.views(prepared, generator).mul(255).byte() for _ in range(n_views)]
    rows = torch.stack([prepared, *views], dim=1).permute(0, 1, 3, 4, 2).numpy()  # (n, 1 + views, s, s, 3)
    figure, axes = plt.subplots(n_images, figsize=(0.8 * (n_views + 1), 0.8 * n_images))
    for axis, row, label in zip(axes, rows, images.labels, strict=False):
        show_images(axis, row, images.classes[label], n_views + 1)
    axes[0].set_title("image, then views of it", fontsize=9, loc="left")
    plt.close(figure)
    return figure


def select_images(images: ImageSet, n_images: int) -> np.ndarray:
    """Return the places of so many images, the same number of every class as near as can be, by class."""
    labels = images.labels
    turn = np.empty(len(labels), dtype=np.int64)  # of an image: the how-manieth of its class it is
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    chosen = np.lexsort((labels, turn))[:n_images]
    return chosen[np.lexsort((chosen, labels[chosen]))]


def augmentations_figure(config: "TrainingConfig", images: ImageSet, n_images: int = 11) -> Figure:
    """Draw some training images, prepared, and below them a row for each augmentation alone, certain and strong."""
    import torch

    from oodlib.encoders.views import Views

    prepared = _prepared(config, images, n_images)
    generator = torch.Generator().manual_seed(config.seed)
    off = {"crop": 1.0, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0}
    views = {name: Views(**off | strong)(prepared, generator) for name, strong in AUGMENTATIONS.items()}
    rows = {"images": prepared} | {name: view.mul(255).byte() for name, view in views.items()}
    figure, axes = plt.subplots(len(rows), figsize=(0.8 * n_images, 0.8 * len(rows)))
    for axis, (name, row) in zip(axes, rows.items(), strict=True):
        show_images(axis, row.permute(0, 2, 3, 1).numpy(), name, n_images)
    plt.close(figure)
    return figure


def _prepared(config: "TrainingConfig", images: ImageSet, n: int) -> "torch.Tensor":
    """Return the first n images as the encoder of a configuration sees them, (n, 3, s, s) uint8; none is built."""
    side = min(images.images.shape[1:3])
    return prepare(images.images[:n], side, 1 if images.images.ndim == 3 else 3, config.input_size or side)


def inputs_figure(encoder: "Encoder", sets: list[ImageSet], n_images: int = 12) -> Figure:
    """Draw some images of each set, of every class, as the network sees them, a row a set."""
    figure, axes = plt.subplots(len(sets), figsize=(0.8 * n_images, 0.8 * len(sets)), squeeze=False)
    for axis, images in zip(axes.flat, sets, strict=True):
        prepared = encoder.prepare(images.images[select_images(images, n_images)]).permute(0, 2, 3, 1).numpy()
        show_images(axis, prepared, images.name, n_images)
    plt.close(figure)
    return figure


def thumbnail_figures(
    extremes: pd.DataFrame, detector: str, seed: int, data_root: str = ""
) -> Iterator[tuple[str, Figure]]:
    """Yield (ID set and objective, figure) of the most and least normal images, by one detector and seed.

    Image sets that are not on this machine are left out, and said so.
    """
    extremes = extremes[extremes.detector == detector]
    extremes = pd.concat([of_seed(extremes, name, seed) for name in dict.fromkeys(extremes.id_dataset)])
    images = _images_of(extremes, data_root)
    for (id_dataset, objective), part in extremes.groupby(["id_dataset", "objective"], sort=False):
        if id_dataset in images:
            shown = {name: images[name] for name in dict.fromkeys(part.dataset) if name in images}
            yield (
                f"{id_dataset}_{objective}",
                _thumbnails(part, shown, f"{objective_name(objective)}, {detector}, seed {seed}"),
            )


def wrong_images_figure(wrong: pd.DataFrame, detector: str, data_root: str = "") -> Figure:
    """Draw the images that a detector is most wrong on, as `oodlib.study.image_scores.most_wrong` finds them.

    Image sets that are not on this machine are left out, and said so.
    """
    images = _images_of(wrong, data_root)
    return _thumbnails(wrong, images, detector) if images else nothing_figure("no images on this machine")


def _images_of(extremes: pd.DataFrame, data_root: str) -> dict[str, np.ndarray]:
    """Return the test images of each set of a table, in its order, of those sets that are here."""
    images = {}
    for name in dict.fromkeys(extremes.dataset):
        try:
            images[name] = load_images(name, "test", data_root or None).images
        except (OSError, ValueError):  # what it says names a folder of this machine, and reports are shared
            print(f"no thumbnails of {name}: load_images({name!r}) says why")
    return images


def _thumbnails(extremes: pd.DataFrame, images: dict[str, np.ndarray], title: str) -> Figure:
    there = set(zip(extremes.dataset, extremes.extreme, strict=True))
    rows = [(name, extreme) for name in images for extreme in ("most", "least") if (name, extreme) in there]
    n_columns = int(extremes["rank"].max()) + 1
    size = (0.75 * n_columns + 1.6, 0.78 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, extreme) in zip(axes.flat, rows, strict=True):
        chosen = extremes[(extremes.dataset == name) & (extremes.extreme == extreme)].sort_values("rank")
        show_images(axis, images[name][chosen["index"]], f"{display_name(name)}\n{extreme} normal", n_columns)
    figure.suptitle(title, fontsize=11)
    plt.close(figure)
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
