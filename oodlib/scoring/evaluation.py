"""Evaluation: the product of the factors, one detector at a time, and the metrics of each for every OOD set.

Clusterings, whitenings and distances that several detectors need are computed once. Detectors are named
"clustering/distance", as "kmeans-20/cosine"; the references, which need no clusters, by their own name.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from oodlib.arrays import check_scores, sample_rows
from oodlib.clustering.gaussians import Gaussians
from oodlib.metrics import ERROR_METRICS, METRICS, count_groups
from oodlib.scoring.classifier_scores import EMBEDDING_SCORES, LOGIT_SCORES, NNGUIDE_NEIGHBORS, nnguide
from oodlib.scoring.distances import DISTANCES, fit_distances, fit_relative, nearest_clusters
from oodlib.scoring.knn import KNNDetector
from oodlib.scoring.outlier_exposure import OutlierExposureDetector
from oodlib.scoring.thresholds import THRESHOLDS, cluster_p_values, fisher
from oodlib.scoring.vim import ViMDetector

SPLITS = {False: "train", True: "calibration"}  # of the reference images, by whether they have been held out


@dataclass(frozen=True)
class Scored:
    """The scores (n,) of one detector by the name of the set, and the nearest cluster (n,) where it has clusters.

    `seen` is how many images of each class of the OOD set the detector has seen; where there are some, it is another
    detector for every OOD set, and its scores of ID images stand under "train NAME", "calibration NAME", "test NAME".
    """

    clustering: str
    n_clusters: int
    distance: str
    scores: dict[str, np.ndarray]
    nearest: dict[str, np.ndarray] | None = None
    seen: int = 0


def evaluate(
    scored: Scored, ood_sets: list[str], correct: np.ndarray, alpha: float, thresholds: Sequence[str] = ()
) -> Iterator[dict]:
    """Yield one row for every OOD set and threshold of a detector.

    correct (n,) bool: which ID test images the run's own classifier gets right. `id_rejected` and `ood_rejected` are
    the shares below the threshold at false-alarm rate `alpha`. No names of `thresholds` take all there are; those a
    cluster are for detectors with clusters.
    """
    about = {key: getattr(scored, key) for key in ("clustering", "n_clusters", "distance", "seen")}
    for ood in ood_sets:
        if ood in scored.scores:
            for threshold, values in _by_threshold(scored, ood, correct, alpha, thresholds).items():
                yield {"ood_dataset": ood} | about | {"threshold": threshold} | values


def _by_threshold(
    scored: Scored, ood: str, correct: np.ndarray, alpha: float, thresholds: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the metrics and the rejected shares by threshold; a threshold a cluster ranks by p-values within it."""
    prefix = f" {ood}" if scored.seen else ""
    inside, outside = _with_nearest(scored, "test" + prefix), _with_nearest(scored, ood)
    n_clusters = 1 + max(int(nearest.max()) for nearest in (scored.nearest or {"": inside[1]}).values())
    ranking, rows = rank_metrics(inside[0], outside[0], correct), {}
    for name in thresholds or THRESHOLDS:
        threshold = THRESHOLDS[name]
        if threshold.by_cluster and scored.nearest is None:
            continue
        reference = _with_nearest(scored, SPLITS[threshold.held_out] + prefix)
        limits = np.broadcast_to(threshold.set(*reference, n_clusters, alpha), n_clusters)
        rejected = [float((scores < limits[nearest]).mean()) for scores, nearest in (inside, outside)]
        if threshold.by_cluster:
            p_values = (cluster_p_values(*part, *reference) for part in (inside, outside))
            rows[name] = rank_metrics(*p_values, correct)
        else:
            rows[name] = ranking
        rows[name] = rows[name] | {"id_rejected": rejected[0], "ood_rejected": rejected[1]}
    return rows


def _with_nearest(scored: Scored, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (n,) of a set and each one's nearest cluster (n,): 0 where there are no clusters."""
    scores = scored.scores[name]
    return scores, np.zeros(len(scores), dtype=np.int64) if scored.nearest is None else scored.nearest[name]


def rank_metrics(inside: np.ndarray, outside: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Return what the order of ID scores (n,) and OOD scores (m,) decides; correct (n,) bool. NaN raises ValueError."""
    inside, outside = check_scores("ID scores", inside), check_scores("OOD scores", outside)
    right, wrong, ood = count_groups(inside[correct], inside[~correct], outside)
    values = {name: metric(right + wrong, ood) for name, metric in METRICS.items()}
    values |= {"n_id": len(inside), "n_ood": len(outside)}
    return values | {name: metric(right, wrong, ood) for name, metric in ERROR_METRICS.items()}


Key = tuple[str, int]  # clustering, number of clusters
FISHER = "fisher"  # the name of the detector that combines others
COMBINED = (("labels", "cosine"), ("labels", "mahalanobis-shrunk++"), ("none", "energy"))  # one of each kind


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


def clusterless_names(has_classifier: bool) -> tuple[str, ...]:
    """Return the names of the detectors without clusters of a run that has a classifier, or has none."""
    return ("knn", "vim", "nnguide", *EMBEDDING_SCORES, *LOGIT_SCORES) if has_classifier else ("knn", "residual")


def n_detectors(data: RunEmbeddings, assignments: dict[Key, np.ndarray], distances: list[str], known: list[int]) -> int:
    """Return how many detectors `all_scores` gives."""
    n_fitting = sum(len(_fitting(distances, assigned)) for assigned in assignments.values())
    return n_fitting + len(clusterless_names(data.weight is not None)) + len(known)


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
    """Yield the scores of every detector: `cluster_scores`, `clusterless_scores`, then `exposed_scores`.

    n_neighbors: k of KNN. known: numbers of OOD images a class that the outlier-exposed heads see. mixtures: as of
    `cluster_scores`. Raises ValueError as `check_detectors`, before anything is computed.
    """
    check_detectors(distances, n_neighbors, known)
    yield from cluster_scores(data, assignments, distances, mixtures)
    for name, scores in clusterless_scores(data, n_neighbors):
        yield Scored("none", 0, name, scores)
    for n_known in known:
        yield exposed_scores(data, n_known)


def with_combination(detectors: Iterable[Scored]) -> Iterator[Scored]:
    """Yield detectors and, behind them, FISHER of those of COMBINED among them, where there are two at least.

    A direction, a spread and the classifier err on different images, so the combination needs no choice among them.
    """
    members = []
    for scored in detectors:
        if (scored.clustering, scored.distance) in COMBINED:
            members.append(scored.scores)
        yield scored
    if len(members) > 1:
        held_out = [scores["calibration"] for scores in members]
        names = members[0].keys()
        combined = {s: fisher([scores[s] for scores in members], held_out, s == "calibration") for s in names}
        yield Scored("none", 0, FISHER, combined)


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


def clusterless_scores(data: RunEmbeddings, n_neighbors: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield the name and the scores, by set, of every detector that needs no clusters and has seen no outliers.

    KNN's and NNGuide's of the training embeddings, each without itself, are those of a sample where they are many.
    """
    train, sets = data.train.z, data.sets()
    others = {name: embedded.z for name, embedded in sets.items() if name != "train"}
    knn = KNNDetector(min(n_neighbors, len(train) - 1)).fit(train)
    yield "knn", {name: knn.score_samples(z) for name, z in others.items()} | {"train": knn.reference_}
    vim = ViMDetector(data.weight, data.bias).fit(train)
    name = "residual" if data.weight is None else "vim"
    yield name, {name: vim.score_samples(embedded.z) for name, embedded in sets.items()}
    if data.weight is None:
        return
    classifier, k = (data.weight, data.bias), min(NNGUIDE_NEIGHBORS, len(train) - 1)
    guided = nnguide(train[sample_rows(len(train))], *classifier, train, k, own=True)
    yield "nnguide", {name: nnguide(z, *classifier, train, k) for name, z in others.items()} | {"train": guided}
    for name, (score, statistics) in EMBEDDING_SCORES.items():
        fitted = [statistic(train) for statistic in statistics]
        yield name, {split: score(embedded.z, *classifier, *fitted) for split, embedded in sets.items()}
    for name, score in LOGIT_SCORES.items():
        yield name, {split: score(embedded.logits) for split, embedded in sets.items()}


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
    return Scored("none", 0, f"outlier-exposure-{n_known}", scores, seen=n_known)
