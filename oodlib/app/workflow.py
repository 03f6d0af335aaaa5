"""Your images: the parts of a folder and an encoder become a detector, chosen and calibrated without OOD data.

For whoever has some hundred images in class folders and no study: what the notebooks 01 to 04 do for a run, here for
the parts of one folder (`oodlib.app.folder`) and in a minute.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from oodlib.app.encoder import embed_all
from oodlib.app.folder import HELD_OUT, Part
from oodlib.arrays import sample_rows
from oodlib.clustering.clusters import cluster
from oodlib.encoders.encoder import Encoder
from oodlib.encoders.foreign_weights import set_classifier
from oodlib.progress import Progress, say
from oodlib.scoring.choices import FALLBACK, MAX_TRAIN, RANKED, choose_candidate, rank_candidates
from oodlib.scoring.cluster_detector import ClusterDetector
from oodlib.scoring.detector import Detector
from oodlib.scoring.evaluation import Embedded, RunEmbeddings
from oodlib.scoring.knn import KNNDetector
from oodlib.scoring.thresholds import rate_band
from oodlib.separation import cluster_purity, global_separation

N_NEIGHBORS, OTHER_NEIGHBORS = 5, (1, 20, 50)  # k of KNN, and those that are tried beside it
TURNS = 8  # that classes are left out at least, over the folds of the training images, where they are few
N_INVERTED = 500  # images, at most, that stand in for those to drift to
N_SEPARATED = 5_000  # images that the clusters are measured on


def embed_parts(encoder: Encoder, parts: dict[str, Part]) -> dict[str, Embedded]:
    """Return the embeddings of every part by its name; labels of OOD images are -1.

    An encoder that has no classifier of the classes of the part train is given one that is fitted to it.
    """
    progress, found = Progress("images embedded", sum(map(len, parts.values()))), {}
    for name, part in parts.items():
        z = embed_all(encoder, part.images.images, progress)
        found[name] = Embedded(z, np.full(len(z), -1) if name == "ood" else part.images.labels)
    classes = parts["train"].images.classes
    if encoder.classifier is None or encoder.spec.classes != classes:
        set_classifier(encoder, classes, *_probe(found["train"].z, found["train"].y))
    return found


def _probe(z: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight (C, d) and bias (C,) of the usual linear probe of z (n, d), y (n,)."""
    scaler, n_classes = StandardScaler().fit(z.astype(np.float64)), int(y.max()) + 1
    if n_classes == 1:
        return torch.zeros(1, z.shape[1]), torch.zeros(1)
    fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(z), y)
    weight, bias = fitted.coef_ / scaler.scale_, fitted.intercept_
    bias = bias - weight @ scaler.mean_
    if n_classes == 2:  # scikit-learn has one row for two classes
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    return torch.from_numpy(weight), torch.from_numpy(bias)


def together(data: dict[str, Embedded], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings (n, d) and labels (n,) of several parts, those that there are."""
    z, y = zip(*((data[name].z, data[name].y) for name in names if name in data), strict=True)
    return np.concatenate(z), np.concatenate(y)


def cluster_table(data: dict[str, Embedded], classes: tuple[str, ...]) -> pd.DataFrame:
    """Return how good the clusters of the held-out images are, by label and by k-means: a row a cluster.

    separation is in [-1, 1], purity, the share of the largest class, in (0, 1]; higher is better.
    """
    z, y = (a[sample_rows(len(a), N_SEPARATED)] for a in together(data, HELD_OUT))
    tables = []
    for method in ("labels", "kmeans"):
        _, assigned = np.unique(y, return_inverse=True)
        if method == "kmeans":
            assigned = cluster(z, y, method).assignments
        largest = [np.bincount(y[assigned == k]).argmax() for k in np.unique(assigned)]
        about = {"clustering": method, "class": [classes[label] for label in largest], "images": np.bincount(assigned)}
        measured = {"separation": global_separation(z, assigned), "purity": cluster_purity(assigned, y)}
        tables.append(pd.DataFrame(about | measured))
    return pd.concat(tables, ignore_index=True)


def rank_detectors(data: dict[str, Embedded], alpha: float = 0.05) -> pd.DataFrame:
    """Return the detectors, best first, by their AUROC against classes left out in turn.

    The images are those of the part choice; where there is none, because the encoder has seen no image at all, folds of
    the part train take its place in turn. The columns are detector and, from auroc on, those of
    `choices.rank_candidates`. Where no class can be left out, of two classes or of too few images, the table is
    FALLBACK alone, all else nan, or cosine where the images of no class differ.
    """
    folds = _folds(data)
    n_classes = int(data["train"].y.max()) + 1
    fewest = min(np.bincount(fitted.y, minlength=n_classes).min() for fitted, _ in folds)
    found = pd.DataFrame()
    if fewest > 1:  # else nothing says how a class varies
        parts = [RunEmbeddings(fitted, held_out, held_out, {}) for fitted, held_out in folds]
        found = rank_candidates(*parts, n_neighbors=N_NEIGHBORS, others=OTHER_NEIGHBORS, alpha=alpha)
    if found.empty:
        chosen = _name(*FALLBACK) if _varies(data["train"]) else "labels/cosine"
        return pd.DataFrame({"detector": [chosen], **dict.fromkeys(RANKED[2:], np.nan)})
    names = [_name(*candidate) for candidate in zip(found.clustering, found.distance, strict=True)]
    return found.assign(detector=names)[["detector", *RANKED[2:]]]


def _varies(train: Embedded) -> bool:
    return any((own != own[0]).any() for own in (train.z[train.y == label] for label in np.unique(train.y)))


def _folds(data: dict[str, Embedded]) -> list[tuple[Embedded, Embedded]]:
    train = data["train"]
    if "choice" in data:
        return [(train, data["choice"])]
    rows = sample_rows(len(train.z), MAX_TRAIN)
    train = Embedded(train.z[rows], train.y[rows])
    n_folds = max(1, TURNS // len(np.unique(train.y)))
    fold = np.empty(len(train.y), dtype=int)
    for label in np.unique(train.y):
        own = np.flatnonzero(train.y == label)
        fold[np.random.default_rng(0).permutation(own)] = np.arange(len(own)) % max(2, n_folds)
    say("leaving classes out, each in its turn, to choose a detector")
    return [
        (Embedded(train.z[fold != k], train.y[fold != k]), Embedded(train.z[fold == k], train.y[fold == k]))
        for k in range(n_folds)
    ]


def choose_detector(ranking: pd.DataFrame) -> str:
    """Return the first of `rank_detectors` that is ahead of FALLBACK by more than noise, else that."""
    if len(ranking) == 1:
        return ranking.detector[0]
    parts = ranking.detector.str.rpartition("/")
    return _name(*choose_candidate(ranking.assign(clustering=parts[0].replace("", "none"), distance=parts[2])))


def _name(clustering: str, distance: str) -> str:
    return distance if clustering == "none" else f"{clustering}/{distance}"


def fit_detector(data: dict[str, Embedded], name: str, alpha: float, classes: tuple[str, ...] = ()) -> Detector:
    """Fit the detector of this name, CLUSTERING/DISTANCE, knn or knn-K, with a conformal threshold at alpha.

    classes: the names of the labels, which the detector's file keeps.
    """
    train = data["train"]
    if name.startswith("knn"):
        k = int(name.partition("-")[2] or N_NEIGHBORS)
        unfitted = KNNDetector(min(k, len(train.z) - 1), alpha)
    else:
        clustering, distance = name.split("/")
        unfitted = ClusterDetector(clustering, distance=distance, threshold="conformal", alpha=alpha)
    detector = unfitted.fit(train.z, train.y, data["calibration"].z)
    detector.class_names_ = classes
    return detector


def rejection_table(detector: Detector, data: dict[str, Embedded], alpha: float) -> pd.DataFrame:
    """Return how many test and OOD images are rejected: part, images, rejected, share, low, high, about.

    Of test images, low and high are where the share lies in 95 of 100 splits if the promise holds; of OOD images they
    are Wilson's 95 % interval.
    """
    from scipy.stats import binomtest

    rows = []
    for name in [name for name in ("test", "ood") if name in data]:
        z = data[name].z
        n, rejected = len(z), int((detector.predict(z) == -1).sum())
        if name == "test":
            low, high, about = *rate_band(alpha, len(data["calibration"].z), n), "false alarms; 95 % expected"
        else:
            low, high, about = *binomtest(rejected, n).proportion_ci(method="wilson"), "found; 95 % interval"
        rows.append({"part": name, "images": n, "rejected": rejected, "share": rejected / n, "low": low, "high": high})
        rows[-1]["about"] = about
    return pd.DataFrame(rows)


def with_shift(encoder: Encoder, parts: dict[str, Part], data: dict[str, Embedded]) -> tuple[dict[str, Embedded], str]:
    """Return the embeddings with something for a stream to drift to, and what it is called.

    That is the part ood; where there is none, the test images with inverted colours stand in.
    """
    if "ood" in data:
        return data, "OOD image"
    z = embed_all(encoder, 255 - parts["test"].images.images[:N_INVERTED])
    return data | {"ood": Embedded(z, np.full(len(z), -1))}, "test image, inverted: there are no OOD images"


def drift_stream(detector: Detector, data: dict[str, Embedded]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (n,) of a stream that drifts, and which of its images (n,) are OOD.

    Test images come in random order; from half of the stream on, as many OOD images at most come among them, ever
    denser. Without OOD images nothing drifts.
    """
    rng = np.random.default_rng(0)
    n = len(data["test"].z)
    scores, when = [detector.score_samples(data["test"].z)], [rng.random(n)]
    if "ood" in data:
        some = rng.permutation(len(data["ood"].z))[:n]
        scores.append(detector.score_samples(data["ood"].z[some]))
        when.append(0.5 + 0.5 * np.sqrt(rng.random(len(some))))
    is_ood = np.repeat(np.arange(len(scores)) > 0, [len(part) for part in scores])
    order = np.argsort(np.concatenate(when))
    return np.concatenate(scores)[order], is_ood[order]
