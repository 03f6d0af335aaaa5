"""The product: embeddings of a run in; the scores of every detector for every set out, one detector at a time.

A detector is a distance to the clusters of one clustering, or a reference that needs no clusters. What detectors share
is done once: a fit for all distances that use it, a measurement for all that rest on it. Embeddings are read in blocks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from oodlib.arrays import sample_rows
from oodlib.clustering.gaussians import Gaussians
from oodlib.scoring.classifier_scores import EMBEDDING_SCORES, NEIGHBORS, WITH_CLASSIFIER, nnguide
from oodlib.scoring.distances import DISTANCES, fit_distances, fit_relative, nearest_clusters
from oodlib.scoring.logit_scores import LOGIT_SCORES
from oodlib.scoring.references import KNNDetector, OutlierExposureDetector, ViMDetector

Key = tuple[str, int]  # clustering, number of clusters


@dataclass(frozen=True)
class Embedded:
    """Embeddings z (n, d), labels y (n,), an OOD set's own, and logits (n, C) where there is a classifier."""

    z: np.ndarray
    y: np.ndarray
    logits: np.ndarray | None = None


@dataclass(frozen=True)
class RunEmbeddings:
    """All embeddings of a run, and its linear classifier, weight (C, d) and bias (C,), where it has one."""

    train: Embedded
    calibration: Embedded
    test: Embedded
    ood: dict[str, Embedded]
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None

    def sets(self) -> dict[str, Embedded]:
        """Return every set by its name; "train", "calibration" and "test" are the ID set's."""
        return {"train": self.train, "calibration": self.calibration, "test": self.test, **self.ood}


@dataclass(frozen=True)
class Scored:
    """The scores (n,) of one detector by the name of the set, and the nearest cluster (n,) where it has clusters.

    `seen` is how many images of each class of the OOD set the detector has seen.
    """

    clustering: str
    n_clusters: int
    distance: str
    scores: dict[str, np.ndarray]
    nearest: dict[str, np.ndarray] | None = None
    seen: int = 0


def n_detectors(data: RunEmbeddings, assignments: dict[Key, np.ndarray], distances: list[str], known: list[int]) -> int:
    """Return how many detectors `all_scores` gives."""
    n_fitting = sum(len(_fitting(distances, assigned)) for assigned in assignments.values())
    return n_fitting + 2 + (0 if data.weight is None else len(WITH_CLASSIFIER)) + len(known)


def check_detectors(distances: list[str], n_neighbors: int, known: list[int]) -> None:
    """Raise ValueError for an unknown distance, and for a number of neighbours or of known outliers below 1."""
    if unknown := [name for name in distances if name not in DISTANCES]:
        raise ValueError(f"unknown distance {unknown[0]!r}; known: {', '.join(DISTANCES)}")
    for name, number in [("n_neighbors", n_neighbors), *(("known", n_known) for n_known in known)]:
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def all_scores(
    data: RunEmbeddings,
    assignments: dict[Key, np.ndarray],
    distances: list[str],
    n_neighbors: int,
    known: list[int],
    mixtures: Mapping[Key, Gaussians] = MappingProxyType({}),
) -> Iterator[Scored]:
    """Yield the scores of every detector: `cluster_scores`, then the references.

    n_neighbors: k of KNN. known: numbers of OOD images a class that the outlier-exposed heads see. mixtures: as of
    `cluster_scores`. Raises ValueError as `check_detectors`, before anything is computed.
    """
    check_detectors(distances, n_neighbors, known)
    yield from cluster_scores(data, assignments, distances, mixtures)
    yield from reference_scores(data, n_neighbors)
    for n_known in known:
        yield exposed_scores(data, n_known)


def cluster_scores(
    data: RunEmbeddings,
    assignments: dict[Key, np.ndarray],
    distances: list[str],
    mixtures: Mapping[Key, Gaussians] = MappingProxyType({}),
) -> Iterator[Scored]:
    """Yield the scores of every distance to the clusters of every clustering of the training embeddings (n,).

    mixtures: of the clusterings that rest on one, whose log density "log-density" is.
    """
    for (clustering, k), assigned in assignments.items():
        names = _fitting(distances, assigned)
        mixture = mixtures.get((clustering, k))
        states = fit_distances(names, data.train.z, assigned, int(assigned.max()) + 1, mixture)
        found = {name: nearest_clusters(embedded.z, states) for name, embedded in data.sets().items()}
        for distance in names:
            scores, nearest = ({s: by_name[distance][i] for s, by_name in found.items()} for i in (0, 1))
            yield Scored(clustering, k, distance, scores, nearest)


def _fitting(distances: list[str], assigned: np.ndarray) -> list[str]:
    """Return the distances that are defined for a clustering: relative to one cluster, nothing is left."""
    return [name for name in distances if DISTANCES[name].fit is not fit_relative or assigned.max() > 0]


def reference_scores(data: RunEmbeddings, n_neighbors: int) -> Iterator[Scored]:
    """Yield the scores of the detectors that need no clusters and have seen no outliers."""
    train, sets = data.train.z, data.sets()
    knn = KNNDetector(min(n_neighbors, len(train) - 1)).fit(train)
    scores = {name: knn.score_samples(embedded.z) for name, embedded in sets.items() if name != "train"}
    yield _reference("knn", scores | {"train": knn.reference_})
    vim = ViMDetector(data.weight, data.bias).fit(train)
    scores = {name: vim.score_samples(embedded.z) for name, embedded in sets.items()}
    yield _reference("residual" if data.weight is None else "vim", scores)
    if data.weight is not None:
        yield from _classifier_scores(data)


def _classifier_scores(data: RunEmbeddings) -> Iterator[Scored]:
    """Yield the scores of WITH_CLASSIFIER; NNGuide's of the training embeddings, as KNN's, are those of a sample."""
    train, sets, classifier = data.train.z, data.sets(), (data.weight, data.bias)
    k = min(NEIGHBORS, len(train) - 1)
    guided = {name: nnguide(s.z, *classifier, train, k) for name, s in sets.items() if name != "train"}
    guided["train"] = nnguide(train[sample_rows(len(train))], *classifier, train, k, own=True)
    yield _reference("nnguide", guided)
    for name, (score, statistics) in EMBEDDING_SCORES.items():
        fitted = [statistic(train) for statistic in statistics]
        scores = {split: score(embedded.z, *classifier, *fitted) for split, embedded in sets.items()}
        yield _reference(name, scores)
    for name, score in LOGIT_SCORES.items():
        yield _reference(name, {split: score(embedded.logits) for split, embedded in sets.items()})


def exposed_scores(data: RunEmbeddings, n_known: int) -> Scored:
    """Return the scores of heads that saw, of each OOD set, `n_known` images a class; these are left out of its scores.

    The heads of different sets score ID images differently: their scores stand under "test" and the set's name, as in
    "test digits789". A set that would be left with less than two images is left out.
    """
    scores = {}
    for name, embedded in data.ood.items():
        order = np.random.default_rng(0).permutation(len(embedded.z))
        known = np.sort(np.concatenate([order[embedded.y[order] == c][:n_known] for c in np.unique(embedded.y)]))
        rest = np.setdiff1d(order, known)
        if len(rest) > 1:
            head = OutlierExposureDetector()
            head.fit(data.train.z, data.train.y, z_outliers=embedded.z[known], y_outliers=embedded.y[known])
            own = {"train": data.train.z, "calibration": data.calibration.z, "test": data.test.z}
            scores |= {f"{split} {name}": head.score_samples(z) for split, z in own.items()}
            scores[name] = head.score_samples(embedded.z[rest])
    return _reference(f"outlier-exposure-{n_known}", scores, seen=n_known)


def _reference(name: str, scores: dict[str, np.ndarray], seen: int = 0) -> Scored:
    return Scored("none", 0, name, scores, seen=seen)
