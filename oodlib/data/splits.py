"""Splits: which images of a training set are held out for calibration."""

import numpy as np

from oodlib.data.sets import ImageSet


def split_calibration(images: ImageSet, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (training, calibration) of a training set, `fraction` of every class held out.

    A class of two or more has at least one image on either side; the only one of a class is for training. Nothing is
    trained on the calibration images: the accuracy of a history row and conformal thresholds come from them.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(images.labels):
        members = rng.permutation(np.flatnonzero(images.labels == label))
        held_out.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    held_out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(images)), held_out), held_out
