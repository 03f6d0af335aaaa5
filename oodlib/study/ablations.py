"""Ablations: the embeddings of a run in; what two mistakes of earlier code would have done to its AUROC out.

They are shown so that nobody repeats them. Two more, the truncated ROC and the other FPR95, are columns of metrics.csv.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from oodlib.metrics import auroc
from oodlib.scoring.distances import DISTANCES, fit_distances
from oodlib.scoring.product import RunEmbeddings

MAX_IMAGES = 2000  # of each set: one distance a class and image, with a covariance each, is dear
FEW = 32  # training images of a class: fewer than most embeddings have dimensions
COLUMNS = ["mistake", "distance", "ood_dataset", "right", "wrong"]


def ablation_table(data: RunEmbeddings) -> pd.DataFrame:
    """Return one row a mistake, distance and OOD set: AUROC as it should be, and with the mistake, in [0, 1].

    "true label": an ID test image is scored by its distance to its own class, which nobody knows of a new image, and
    an OOD image by that to the nearest. "plain inverse": the covariance of each class is inverted in float32 as it is;
    "plain inverse, 32 images a class": the same where classes are that small, and so their covariances singular. A
    mistake that gives no finite scores has a missing value.
    """
    classes, assigned = np.unique(data.train.y, return_inverse=True)
    z_test, y_test = data.test.z[:MAX_IMAGES], np.searchsorted(classes, data.test.y[:MAX_IMAGES])
    ood = {name: embedded.z[:MAX_IMAGES] for name, embedded in data.ood.items()}
    rows = []
    for name in ("cosine", "mahalanobis", "mahalanobis-cluster"):
        state = fit_distances([name], data.train.z, assigned, len(classes))[name]
        to_classes = DISTANCES[name].measure(z_test, state)  # (n, C)
        own, nearest = -to_classes[np.arange(len(z_test)), y_test], -to_classes.min(axis=1)
        for dataset, z in ood.items():
            scores = -DISTANCES[name].measure(z, state).min(axis=1)
            rows.append(("true label", name, dataset, auroc(nearest, scores), auroc(own, scores)))
    few = np.concatenate([np.flatnonzero(assigned == c)[:FEW] for c in range(len(classes))])
    for mistake, kept in (("plain inverse", slice(None)), (f"plain inverse, {FEW} images a class", few)):
        z_train, y_train = data.train.z[kept], assigned[kept]
        state = fit_distances(["mahalanobis-cluster"], z_train, y_train, len(classes))["mahalanobis-cluster"]
        right, plain = (
            {n: score(z) for n, z in {"": z_test, **ood}.items()}
            for score in (
                lambda z, state=state: -DISTANCES["mahalanobis-cluster"].measure(z, state).min(axis=1),
                _plain_mahalanobis(z_train, y_train),
            )
        )
        for dataset in ood:
            values = auroc(right[""], right[dataset]), _finite_auroc(plain[""], plain[dataset])
            rows.append((mistake, "mahalanobis-cluster", dataset, *values))
    return pd.DataFrame(rows, columns=COLUMNS)


def _plain_mahalanobis(z_train: np.ndarray, assigned: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return z (n, d) -> scores (n,): minus the Mahalanobis distance to the nearest class, by a plain inverse."""
    classes = []
    for c in range(int(assigned.max()) + 1):
        members = z_train[assigned == c]
        try:
            inverse = np.linalg.inv(np.atleast_2d(np.cov(members.T, dtype=np.float32)))
        except np.linalg.LinAlgError:
            inverse = np.full((z_train.shape[1],) * 2, np.nan, dtype=np.float32)
        classes.append((members.mean(axis=0), inverse))

    def score(z: np.ndarray) -> np.ndarray:
        squares = (np.einsum("nd,nd->n", (z - mean) @ inverse, z - mean) for mean, inverse in classes)
        return -np.minimum.reduce(list(squares))

    return score


def _finite_auroc(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    finite = np.isfinite(id_scores).all() and np.isfinite(ood_scores).all()
    return auroc(id_scores, ood_scores) if finite else float("nan")
