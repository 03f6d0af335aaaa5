"""Choice of a detector by ID data alone: how well each tells unknowns that were made without any OOD image.

Two stand-ins for OOD images are made: classes that are left out of the
fit in turn and play the unknown, and virtual outliers drawn around the clusters at a controlled distance. Known images
are the calibration images, which no training has seen; test images are not touched.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from oodlib.arrays import sample_rows
from oodlib.clustering.clusters import OWN_SIZE, cluster
from oodlib.metrics import auroc
from oodlib.scoring.distances import fit_distances, nearest_cluster
from oodlib.scoring.evaluation import Embedded, Key, RunEmbeddings, Scored, all_scores, cluster_scores
from oodlib.scoring.knn import KNNDetector

MAX_TRAIN = 10_000  # training embeddings that detectors are fitted on for a choice
MAX_FOLDS = 5  # parts that the classes are left out in
MAX_TURNS = 20  # the same where there are few candidates: up to so many classes each has its turn
CANDIDATE_DISTANCES = {  # by clustering; others need many images a cluster
    "labels": ("mahalanobis", "relative-mahalanobis", "cosine", "mahalanobis-shrunk++"),
    "kmeans": ("cosine",),
}
CANDIDATES = [*((c, d) for c, names in CANDIDATE_DISTANCES.items() for d in names), ("none", "knn")]  # of notebook 06
# Where no other is ahead by more than noise. The fewer the images, the more its shrinkage makes it the Euclidean
# distance at unit norm, which is cosine; with many it is Mahalanobis. So it is seldom far behind the better of the two.
FALLBACK = ("labels", "mahalanobis-shrunk++")
OF_NOTEBOOK = "left-out classes of notebook 06"  # the rule that chooses among CANDIDATES
N_VIRTUAL, N_TRIES = 1000, 20_000  # virtual outliers, of so many drawn
QUANTILE = 0.99  # of the calibration images' distances: where virtual outliers lie
RANKED = ["clustering", "distance", "auroc", "ahead", "noise", "caught", "least_caught", "most_caught"]
COLUMNS = ["rule", "clustering", "n_clusters", "distance", "auroc"]


def check_rules(rules: list[str]) -> None:
    """Raise ValueError for an unknown rule."""
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise ValueError(f"unknown rule {unknown[0]!r}; known: {', '.join(RULES)}")


def choice_table(
    data: RunEmbeddings, rules: list[str], clusterings: list[Key], distances: list[str], n_neighbors: int, seed: int = 0
) -> pd.DataFrame:
    """Return the AUROC of every detector against the unknowns of each rule of RULES, a mean over the left-out parts.

    `clusterings` are (method, K), found again where classes are left out. Higher is better. OF_NOTEBOOK has one row,
    its choice, whatever the clusterings and distances are.
    """
    rows = []
    for rule in rules:
        if rule == OF_NOTEBOOK:
            rows.append((rule, *_chosen_row(_reduced(data, seed), n_neighbors, seed)))
            continue
        for part in RULES[rule](_reduced(data, seed), seed):
            for scored in _scores(part, clusterings, distances, n_neighbors, seed):
                detector = (scored.clustering, scored.n_clusters, scored.distance)
                rows.append((rule, *detector, auroc(scored.scores["test"], scored.scores["unknown"])))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.groupby(COLUMNS[:-1], sort=False).auroc.mean().reset_index()


def rank_candidates(
    *folds: RunEmbeddings, n_neighbors: int, others: tuple[int, ...] = (), alpha: float = 0.05, seed: int = 0
) -> pd.DataFrame:
    """Return CANDIDATES, best first, by their AUROC against left-out classes, the mean over folds of the same classes.

    Columns are those of RANKED. K of k-means is the number of the known classes. `others` are further numbers of
    neighbours, candidates knn-K, of which those are left out that the data are too few for. `ahead` is the mean lead
    over FALLBACK, `noise` its standard error over the classes that were left out. `caught` is the share of unknown
    images below the alpha quantile of the known ones, `least_caught` and `most_caught` that of single classes. The
    table is empty where no class can be left out.
    """
    turns = [
        [_turn(part, n_neighbors, others, alpha, seed) for part in left_out_classes(data, seed, MAX_TURNS)]
        for data in folds
    ]
    if not turns[0] or len(set(map(len, turns))) > 1:
        return pd.DataFrame(columns=RANKED)
    candidates = [candidate for candidate in turns[0][0] if all(candidate in turn for fold in turns for turn in fold)]
    by_fold = np.array([[[turn[candidate] for candidate in candidates] for turn in fold] for fold in turns])
    turns, caught = np.moveaxis(by_fold.mean(axis=0), -1, 0)  # (classes, candidates) each
    leads = turns - turns[:, [candidates.index(FALLBACK)]]
    noise = leads.std(axis=0, ddof=1) / np.sqrt(len(turns)) if len(turns) > 1 else np.full(len(candidates), np.inf)
    values = (
        turns.mean(axis=0),
        leads.mean(axis=0),
        noise,
        caught.mean(axis=0),
        caught.min(axis=0),
        caught.max(axis=0),
    )
    table = pd.DataFrame(candidates, columns=RANKED[:2]).assign(**dict(zip(RANKED[2:], values, strict=True)))
    return table.sort_values("auroc", ascending=False, kind="stable", ignore_index=True)


def _turn(
    data: RunEmbeddings, n_neighbors: int, others: tuple[int, ...], alpha: float, seed: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return, by clustering and distance, the AUROC of a candidate where one class is unknown, and the share caught."""
    train, found = data.train, {}

    def judge(known: np.ndarray, unknown: np.ndarray) -> tuple[float, float]:
        return auroc(known, unknown), float((unknown < np.quantile(known, alpha)).mean())

    for method, names in CANDIDATE_DISTANCES.items():
        size = None if method in OWN_SIZE else min(len(np.unique(train.y)), len(train.z))
        assigned = cluster(train.z, train.y, method, size, seed).assignments
        for scored in cluster_scores(data, {(method, int(assigned.max()) + 1): assigned}, list(names)):
            found[method, scored.distance] = judge(scored.scores["test"], scored.scores["unknown"])
    least = min(n_neighbors, len(train.z) - 1)
    ks = {"knn": least} | {f"knn-{k}": k for k in others if k < len(train.z) and k != least}
    for name, k in ks.items():
        detector = KNNDetector(k).fit(train.z)
        found["none", name] = judge(*(detector.score_samples(z) for z in (data.test.z, data.ood["unknown"].z)))
    return found


def choose_candidate(ranking: pd.DataFrame) -> tuple[str, str]:
    """Return the best of `rank_candidates`, clustering and distance, that leads by more than noise, or FALLBACK."""
    sure = ranking[ranking.ahead > ranking.noise]
    return FALLBACK if sure.empty else (sure.clustering.iloc[0], sure.distance.iloc[0])


def _chosen_row(data: RunEmbeddings, n_neighbors: int, seed: int) -> tuple[str, int, str, float]:
    """Return clustering, K, distance and AUROC of the candidate that is chosen; K as in a study, all classes."""
    ranking = rank_candidates(data, n_neighbors=n_neighbors, seed=seed)
    clustering, distance = choose_candidate(ranking)
    own = ranking[(ranking.clustering == clustering) & (ranking.distance == distance)]
    n_clusters = 0 if clustering == "none" else len(np.unique(data.train.y))
    return clustering, n_clusters, distance, own.auroc.iloc[0] if len(own) else np.nan


def _reduced(data: RunEmbeddings, seed: int) -> RunEmbeddings:
    """Return the ID data that choices are made with: some of the training embeddings, and the calibration ones."""
    some = sample_rows(len(data.train.z), MAX_TRAIN, seed)
    train = _rows(data.train, some)
    return RunEmbeddings(train, data.calibration, data.calibration, {}, data.weight, data.bias)


def _rows(embedded: Embedded, index: np.ndarray) -> Embedded:
    logits = None if embedded.logits is None else embedded.logits[index]
    return Embedded(embedded.z[index], embedded.y[index], logits)


def _scores(
    data: RunEmbeddings, clusterings: list[Key], distances: list[str], n_neighbors: int, seed: int
) -> Iterator[Scored]:
    """Return the scores of every detector, its clusters found on the training embeddings of this data."""
    found = {}
    for method, k in clusterings:
        size = None if method in OWN_SIZE else min(k, len(data.train.z))
        found[method, k] = cluster(data.train.z, data.train.y, method, size, seed)
    assignments = {key: clusters.assignments for key, clusters in found.items()}
    mixtures = {key: clusters.mixture for key, clusters in found.items()}
    return all_scores(data, assignments, distances, n_neighbors, [], mixtures)


def left_out_classes(data: RunEmbeddings, seed: int, n_parts: int = MAX_FOLDS) -> Iterator[RunEmbeddings]:
    """Yield the data once for each of n_parts of the classes: known are the others, unknown the images of the part.

    The network has seen all classes, so its embeddings of the unknown are better than those of a truly new class.
    """
    classes = np.unique(data.train.y)
    for part in np.array_split(np.random.default_rng(seed).permutation(classes), min(n_parts, len(classes))):
        known = np.setdiff1d(classes, part)
        train, test = (_of_classes(embedded, known, known) for embedded in (data.train, data.test))
        unknown = _of_classes(data.test, part, known)
        if len(known) > 1 and len(test.z) > 1 and len(unknown.z) > 1:
            head = (None, None) if data.weight is None else (data.weight[known], data.bias[known])
            yield RunEmbeddings(train, test, test, {"unknown": unknown}, *head)


def _of_classes(embedded: Embedded, wanted: np.ndarray, known: np.ndarray) -> Embedded:
    """Return the rows of some classes, numbered anew; logits are those of the known classes alone."""
    rows = np.flatnonzero(np.isin(embedded.y, wanted))
    logits = None if embedded.logits is None else embedded.logits[rows][:, known]
    return Embedded(embedded.z[rows], np.searchsorted(wanted, embedded.y[rows]), logits)


def virtual_outliers(data: RunEmbeddings, seed: int) -> Iterator[RunEmbeddings]:
    """Yield the data with outliers drawn on the rim of the classes.

    Each lies at the same Mahalanobis distance from its class mean, in a random direction of the whitened space, and no
    nearer to any other; the distance is that which QUANTILE of the calibration images do not exceed.
    """
    rng, train = np.random.default_rng(seed), data.train
    _, assigned = np.unique(train.y, return_inverse=True)
    state = fit_distances(["mahalanobis"], train.z, assigned, int(assigned.max()) + 1)["mahalanobis"]
    radius = np.sqrt(np.quantile(-nearest_cluster(data.test.z, "mahalanobis", state)[0], QUANTILE))
    centers = state["centers"][rng.integers(len(state["centers"]), size=N_TRIES)]  # (n, r), in the whitened space
    u = rng.normal(size=centers.shape)
    white = centers + radius * u / np.linalg.norm(u, axis=1, keepdims=True)
    z = (state["origin"] + white @ np.linalg.pinv(state["whiten"])).astype(train.z.dtype)
    outside = -nearest_cluster(z, "mahalanobis", state)[0] >= 0.999 * radius**2
    z = z[outside][:N_VIRTUAL]
    logits = None if data.weight is None else z @ data.weight.T + data.bias
    if len(z) > 1:
        unknown = Embedded(z, np.full(len(z), -1), logits)
        yield RunEmbeddings(train, data.calibration, data.test, {"unknown": unknown}, data.weight, data.bias)


RULES: dict[str, Callable[[RunEmbeddings, int], Iterator[RunEmbeddings]]] = {
    "left-out classes": left_out_classes,
    "virtual outliers": virtual_outliers,
    OF_NOTEBOOK: partial(left_out_classes, n_parts=MAX_TURNS),
}
