"""Figures of one run, for the notebooks 01 to 04: what the network sees, where embeddings lie, which detector works."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oodlib.data.sets import ImageSet, prepare
from oodlib.plots.factor_figures import fraction_figure
from oodlib.plots.figures import draw_projection
from oodlib.plots.thumbnails import show_images
from oodlib.separation import PAIR_METRICS, separation_curve
from oodlib.study.run import Run
from oodlib.study.tables import id_embeddings

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
N_JUDGED = 3000  # embeddings that separation curves are drawn from, at most


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


def projection_figure(run: Run) -> Figure:
    """Draw the run's projected ID and OOD test embeddings."""
    figure, axis = plt.subplots(figsize=(7, 5.5))
    draw_projection(axis, pd.read_csv(run.path / "projection.csv"), run.record["train"]["parameters"]["id_dataset"])
    axis.set(title=run.name, xticks=[], yticks=[], xlabel="first discriminant", ylabel="second discriminant")
    axis.legend(bbox_to_anchor=(1, 1), loc="upper left", markerscale=2)
    plt.close(figure)
    return figure


def separation_curves_figure(run: Run, fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)) -> Figure:
    """Draw the global separation of the run's classes against the fraction of distances it counts, by both metrics."""
    data = id_embeddings(run)["train"]
    curves = {
        metric: separation_curve(data["z"], data["y"], fractions, metric, max_samples=N_JUDGED)
        for metric in PAIR_METRICS
    }
    rows = [
        {"metric": metric, "fraction": fraction, "cluster": cluster, "value": value}
        for metric, curve in curves.items()
        for fraction, values in zip(fractions, curve, strict=True)
        for cluster, value in enumerate(values)
    ]
    return fraction_figure(pd.DataFrame(rows))
