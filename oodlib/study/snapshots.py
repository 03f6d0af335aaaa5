"""How clusters form in training: separation, accuracy and AUROC of the encoders that it kept on its way (epochs.csv).

Measured on a part of each set, so that it costs a fraction of a training epoch.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from oodlib.data.sets import ImageSet
from oodlib.encoders.embedding import embed
from oodlib.metrics import auroc
from oodlib.scoring.distances import fit_distances, nearest_cluster
from oodlib.separation import global_separation

N_TRAIN, N_TEST, N_OOD = 2000, 1000, 500  # images of the training, the ID test and each OOD set
DISTANCE = "cosine"  # to class means: the detector of the paper's claim C3
COLUMNS = ["epoch", "dataset", "group", "measure", "value"]


def epoch_table(
    snapshots: list[Path], training: ImageSet, test: ImageSet, ood: list[tuple[str, ImageSet]]
) -> pd.DataFrame:
    """Return one row an epoch and measure: the mean global separation of the training classes, the accuracy of the
    nearest class mean on the ID test set, and AUROC by OOD set.

    `snapshots` are encoder files named by their epoch, `ood` the OOD sets, each with its group. Accuracy and AUROC, in
    [0, 1], are those of the cosine distance to the nearest class mean. Without snapshots the table has no rows.
    """
    from oodlib.device import default_device
    from oodlib.encoders.encoder import load_encoder

    rows = []
    training, test = _part(training, N_TRAIN), _part(test, N_TEST)
    sets = [(group, _part(images, N_OOD)) for group, images in ood]
    known, labels = np.unique(training.labels, return_inverse=True)
    for path in snapshots:
        encoder = load_encoder(path).to(default_device())
        epoch = int(path.stem)
        z, z_test = (embed(encoder, encoder.prepare(images.images))[0] for images in (training, test))
        separation = float(global_separation(z, labels).mean())
        rows.append((epoch, training.name, "ID", "global_separation", separation))
        state = fit_distances([DISTANCE], z, labels, len(known))[DISTANCE]
        scores, nearest = nearest_cluster(z_test, DISTANCE, state)
        accuracy = float((known[nearest] == test.labels).mean())
        rows.append((epoch, test.name, "ID", "nearest_class_mean_accuracy", accuracy))
        for group, images in sets:
            z_ood = embed(encoder, encoder.prepare(images.images))[0]
            rows.append((epoch, images.name, group, "auroc", auroc(scores, nearest_cluster(z_ood, DISTANCE, state)[0])))
    return pd.DataFrame(rows, columns=COLUMNS)


def _part(images: ImageSet, n: int) -> ImageSet:
    """Return n images of a set, the same every time; every class of a labelled set keeps some."""
    order = np.random.default_rng(0).permutation(len(images))[:n]
    if len(images) > n and images.labels.min() >= 0:  # in turns of classes, so that none is missing
        order = np.random.default_rng(0).permutation(len(images))
        turn = pd.Series(images.labels[order]).groupby(images.labels[order]).cumcount()
        order = order[np.argsort(turn, kind="stable")][:n]
    return ImageSet(images.images[np.sort(order)], images.labels[np.sort(order)], images.classes, images.name)
