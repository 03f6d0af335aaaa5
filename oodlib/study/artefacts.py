"""The files that a run's steps hand to each other: embeddings, clusters and tables, written and read."""

from pathlib import Path

import numpy as np
import pandas as pd

from oodlib.clustering.clusters import MIXTURES, Clusters
from oodlib.clustering.collapse import alignment
from oodlib.clustering.gaussians import Gaussians
from oodlib.encoders.embedding import linear_probe, load_embeddings
from oodlib.files import write_atomically
from oodlib.metrics import auroc, auroc_interval, risk_coverage
from oodlib.scoring.distances import fit_distances, nearest_cluster
from oodlib.scoring.evaluation import Embedded, Key, RunEmbeddings, Scored
from oodlib.scoring.thresholds import conformal_threshold, rate_band, realised_by_cluster, realised_rates
from oodlib.study.run import Run

GROUPS = ("near", "far", "sanity")
ID_SPLITS = ("train", "calibration", "test")
VIEWED = "views"  # the split of embeddings of two views each of held-out images
MIXTURE_PARTS = ("weights", "means", "covariances")


def save_clusters(run: Run, found: dict[Key, Clusters]) -> None:
    """Write clusters.npz: for every clustering and K the assignments (n,) of the training rows, and mixtures."""
    arrays = {}
    for key, clusters in found.items():
        name = "/".join(map(str, key))
        arrays[name] = clusters.assignments.astype(np.int32)
        if clusters.mixture is not None:
            arrays |= {f"{name}/{part}": getattr(clusters.mixture, part) for part in MIXTURE_PARTS}
    write_atomically(run.path / "clusters.npz", lambda temporary: np.savez(temporary, **arrays))


def load_clusters(run: Run, n: int) -> tuple[dict[Key, np.ndarray], dict[Key, Gaussians]]:
    """Return what step `cluster` found for every clustering and K: assignments (n,), and mixtures where there are.

    Raises FileNotFoundError, or ValueError when clusters.npz is cut short or foreign.
    """
    path = run.path / "clusters.npz"
    assignments, parts = {}, {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                method, k, *part = name.split("/")
                key = method, int(k)
                if part:
                    parts.setdefault(key, {})[part[0]] = file[name]
                else:
                    assignments[key] = file[name]
        mixtures = {key: Gaussians(MIXTURES[key[0]], **arrays) for key, arrays in parts.items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # a file cut short fails in zipfile, zlib or NumPy, each with errors of its own
        raise ValueError(f"{path} holds no cluster assignments, or is cut short: {error}") from error
    for (_, k), assigned in assignments.items():
        if assigned.shape != (n,) or assigned.dtype.kind != "i" or not np.isin(assigned, np.arange(k)).all():
            raise ValueError(f"{path} is of another run: its assignments do not fit {n} embeddings; delete it")
    return assignments, mixtures


def ood_groups(run: Run) -> dict[str, str]:
    """Return the run's OOD sets, each with its group: near, far or sanity."""
    parameters = run.record["embed"]["parameters"]
    return {name: group for group in GROUPS for name in parameters[f"{group}_ood"]}


def id_embeddings(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Return the embeddings of the ID set's splits: train, calibration, test."""
    id_dataset = run.record["train"]["parameters"]["id_dataset"]
    return {split: load_embeddings(run.embeddings_path(id_dataset, split)) for split in ID_SPLITS}


def run_embeddings(run: Run) -> RunEmbeddings:
    """Return all embeddings of a run, and its classifier where it has one."""
    from safetensors.numpy import load_file

    def embedded(arrays: dict[str, np.ndarray]) -> Embedded:
        return Embedded(arrays["z"], arrays.get("own", arrays["y"]), arrays.get("logits"))

    weights = load_file(run.path / "encoder.safetensors")
    return RunEmbeddings(
        *map(embedded, id_embeddings(run).values()),
        {name: embedded(load_embeddings(run.embeddings_path(name, "test"))) for name in ood_groups(run)},
        weights.get("classifier.weight"),
        weights.get("classifier.bias"),
    )


def load_view_embeddings(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings (n, d) of two views each of held-out ID images."""
    z = load_embeddings(run.embeddings_path(run.record["train"]["parameters"]["id_dataset"], VIEWED))["z"]
    return tuple(np.split(z, 2))


def write_csv(table: pd.DataFrame, path: Path, digits: int = 7) -> None:
    """Write a table to a csv file, whole or not at all, to seven digits, which is what float32 holds, or to fewer."""
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False, float_format=f"%.{digits}g"))


SHOWN = ("labels/mahalanobis", "labels/cosine", "knn")  # the detectors whose scores figures are drawn from
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # promised false-alarm rates
N_QUANTILES, N_PROJECTED, N_COVERAGES = 101, 150, 50


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


def interval_table(scored: Scored, ood_sets: list[str]) -> pd.DataFrame:
    """Return the AUROC of a detector with DeLong's 95 % interval: detector, ood_dataset, auroc, low, high.

    A set of one image has no row: one score has no variance.
    """
    rows = []
    for ood in ood_sets:
        both = scored.scores["test"], scored.scores[ood]
        if min(map(len, both)) > 1:
            rows.append((shown_name(scored), ood, auroc(*both), *auroc_interval(*both)))
    return pd.DataFrame(rows, columns=["detector", "ood_dataset", "auroc", "low", "high"])


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
