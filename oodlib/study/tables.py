"""The tables that a run's steps write, computed from its embeddings and from the scores of its detectors."""

import numpy as np
import pandas as pd

from oodlib.clustering.collapse import alignment
from oodlib.encoders.embedding import linear_probe
from oodlib.scoring.distances import fit_distances, nearest_cluster
from oodlib.scoring.evaluation import Scored, interval_rows
from oodlib.scoring.product import RunEmbeddings
from oodlib.scoring.thresholds import conformal_threshold, rate_band, realised_by_cluster, realised_rates
from oodlib.selective import risk_coverage
from oodlib.study.artefacts import ID_SPLITS, load_view_embeddings, ood_groups, run_embeddings
from oodlib.study.run import Run

SHOWN = ("labels/mahalanobis", "labels/cosine", "knn")  # the detectors whose scores figures are drawn from
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # promised false-alarm rates
N_QUANTILES, N_PROJECTED, N_RESAMPLES, N_COVERAGES = 101, 250, 200, 50


def aligned(run: Run) -> dict:
    """Return the alignment of two views of held-out ID images, as a row of `oodlib.separation.cluster_quality`."""
    views = load_view_embeddings(run)
    return {"cluster": "all", "size": len(views[0]), "measure": "alignment", "value": alignment(*views)}


def project_tests(data: RunEmbeddings, id_dataset: str) -> pd.DataFrame:
    """Return a 2-D projection of ID and OOD test embeddings: dataset, label, x, y of some images of each set.

    The plane is that of the first two linear discriminants of the training classes at unit norm, fitted on ID training
    embeddings alone: the view in which the clusters are furthest apart, and OOD images fall where they fall.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.preprocessing import normalize

    n_components = min(2, len(np.unique(data.train.y)) - 1)
    plane = LinearDiscriminantAnalysis(n_components=n_components, solver="eigen", shrinkage=0.01)
    plane.fit(normalize(data.train.z.astype(np.float64)), data.train.y)
    tables = []
    for dataset, embedded in ({id_dataset: data.test} | data.ood).items():
        some = np.random.default_rng(0).permutation(len(embedded.z))[:N_PROJECTED]
        labels = embedded.y[some] if dataset == id_dataset else -1
        xy = plane.transform(normalize(embedded.z[some].astype(np.float64)))
        xy = np.pad(xy, ((0, 0), (0, 2 - n_components)))
        tables.append(pd.DataFrame({"dataset": dataset, "label": labels, "x": xy[:, 0], "y": xy[:, 1]}))
    return pd.concat(tables).round({"x": 4, "y": 4})


def is_correct(data: RunEmbeddings) -> tuple[np.ndarray, dict[str, float]]:
    """Return which ID test images (n,) the run's own classifier gets right, and the accuracies in [0, 1].

    The classifier is that of the encoder or, where its objective trains none, a linear probe of the embeddings.
    """
    training, test = data.train, data.test
    classes, assigned = np.unique(training.y, return_inverse=True)
    state = fit_distances(["cosine"], training.z, assigned, len(classes))["cosine"]
    by_mean = classes[nearest_cluster(test.z, "cosine", state)[1]] == test.y
    own = linear_probe(training.z, training.y, test.z) if test.logits is None else test.logits.argmax(axis=1)
    correct = own == test.y
    return correct, {"classifier": float(correct.mean()), "nearest_class_mean": float(by_mean.mean())}


def shown_name(scored: Scored) -> str:
    """Return what a detector is called in SHOWN."""
    return scored.distance if scored.clustering == "none" else f"{scored.clustering}/{scored.distance}"


def interval_table(scored: Scored, ood_sets: list[str], correct: np.ndarray, alpha: float) -> pd.DataFrame:
    """Return the metrics of a detector with 95 % intervals: detector, ood_dataset, measure, value, low, high.

    Beside those of the order of scores: the shares of ID and OOD images that the conformal threshold at `alpha` rejects
    (Clopper and Pearson 1934; given the threshold).
    """
    from scipy.stats import binomtest

    limit = conformal_threshold(scored.scores["calibration"], alpha)
    rows = []
    for ood in ood_sets:
        inside, outside = scored.scores["test"], scored.scores[ood]
        about = {"detector": shown_name(scored), "ood_dataset": ood}
        rows += [about | row for row in interval_rows(inside, outside, correct, N_RESAMPLES)]
        for measure, scores in (("id_rejected", inside), ("ood_rejected", outside)):
            low, high = binomtest(int((scores < limit).sum()), len(scores)).proportion_ci()
            value = float((scores < limit).mean())
            rows.append(about | {"measure": measure, "value": value, "low": low, "high": high})
    return pd.DataFrame(rows)


def false_alarm_table(scored: Scored) -> pd.DataFrame:
    """Return promised and realised false-alarm rates of a detector's thresholds, over random splits of held-out ID.

    Calibration and test images, which no training has seen, are mixed and split again into as many. Columns: detector,
    threshold, alpha, rate (mean over the splits), low and high (95 % of the splits), band_low and band_high (where 95 %
    are expected), worst (the largest mean rate of a cluster, where the promise is for each), n_reference, n_new. The
    global threshold comes from the training images and has no splits.
    """
    held_out = np.concatenate([scored.scores["calibration"], scored.scores["test"]])
    n_reference, n_new = len(scored.scores["calibration"]), len(scored.scores["test"])
    about = {"detector": shown_name(scored), "n_reference": n_reference, "n_new": n_new}
    rows = []
    for alpha in ALPHAS:
        rate = float((held_out < conformal_threshold(scored.scores["train"], alpha)).mean())
        rows.append(about | {"threshold": "global", "alpha": alpha, "rate": rate})
    for alpha, column in zip(ALPHAS, realised_rates(held_out, n_reference, ALPHAS).T, strict=True):
        band = dict(zip(("band_low", "band_high"), rate_band(alpha, n_reference, n_new), strict=True))
        rows.append(about | {"threshold": "conformal", "alpha": alpha} | _spread(column) | band)
    if scored.nearest is not None:
        nearest = np.concatenate([scored.nearest["calibration"], scored.nearest["test"]])
        realised = realised_by_cluster(held_out, nearest, n_reference, ALPHAS)
        for alpha, rates, expected, by_cluster in zip(ALPHAS, *realised, strict=True):
            low, high = np.quantile(expected, [0.025, 0.975])
            band = {"band_low": low, "band_high": high, "worst": by_cluster.max()}
            rows.append(about | {"threshold": "conformal-cluster", "alpha": alpha} | _spread(rates) | band)
    return pd.DataFrame(rows)


def _spread(rates: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(rates, [0.025, 0.975])
    return {"rate": rates.mean(), "low": low, "high": high}


def risk_table(scored: Scored, ood_sets: list[str], correct: np.ndarray) -> pd.DataFrame:
    """Return the risk-coverage curves of a detector, ID and each OOD set together: ood_dataset, coverage, risk."""
    tables = []
    for ood in ood_sets:
        scores = np.concatenate([scored.scores["test"], scored.scores[ood]])
        answers = np.concatenate([correct, np.zeros(len(scored.scores[ood]), dtype=bool)])
        coverage, risk = risk_coverage(scores, answers)
        levels = np.linspace(0.02, 1, N_COVERAGES)
        tables.append(pd.DataFrame({"coverage": levels, "risk": np.interp(levels, coverage, risk), "ood_dataset": ood}))
    return pd.concat(tables).assign(detector=shown_name(scored))


def quantile_table(scored: Scored, sets: dict[str, str]) -> pd.DataFrame:
    """Return the quantiles of a detector's scores: detector, dataset, level, score; `sets` names datasets by key."""
    levels = np.linspace(0, 1, N_QUANTILES)
    tables = [
        pd.DataFrame({"dataset": dataset, "level": levels, "score": np.quantile(scored.scores[key], levels)})
        for key, dataset in sets.items()
    ]
    return pd.concat(tables).assign(detector=shown_name(scored))


def describe_embeddings(run: Run) -> pd.DataFrame:
    """Return, for each embedded set and split, its group, the number of images, the width and the mean norm."""
    data, groups = run_embeddings(run), ood_groups(run)
    parts = [(run.record["train"]["parameters"]["id_dataset"], split, "ID") for split in ID_SPLITS]
    parts += [(name, "test", group) for name, group in groups.items()]
    rows = []
    for (dataset, split, group), embedded in zip(parts, data.sets().values(), strict=True):
        about = {"dataset": dataset, "split": split, "group": group, "n": len(embedded.z), "d": embedded.z.shape[1]}
        rows.append(about | {"mean norm": float(np.linalg.norm(embedded.z, axis=1).mean())})
    return pd.DataFrame(rows)
