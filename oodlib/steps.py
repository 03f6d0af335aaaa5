"""The four steps of a run: each reads what the step before wrote, computes, and writes artefacts; notebooks show them.

A step that is done already is left alone. A step whose input is missing makes it first, as the run's record says it was
made: so a notebook opened alone in a fresh clone works, and trains where there are no weights. What needs a network is
imported where it is used: clustering and scoring need none, and importing timm takes longer than either.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from oodlib.clustering import OWN_SIZE, Clusters, cluster
from oodlib.data import load_images
from oodlib.device import default_device, describe_machine
from oodlib.distances import DISTANCES
from oodlib.embedding import embed, load_embeddings, save_embeddings
from oodlib.files import write_atomically
from oodlib.metrics import ood_metrics
from oodlib.runs import Run, run_name, slug
from oodlib.scoring import LOGIT_SCORES, KNNDetector, nearest_cluster
from oodlib.separation import cluster_quality, embedding_quality

if TYPE_CHECKING:
    from oodlib.encoders import Encoder
    from oodlib.training import TrainingConfig

GROUPS = ("near", "far", "sanity")
SHOWN = ("labels/mahalanobis", "labels/cosine", "knn")  # the detectors whose scores figures are drawn from
N_QUANTILES, N_EXTREMES, N_PROJECTED = 101, 12, 250
ID_SPLITS = ("train", "calibration", "test")


def train_step(study: str, config: "TrainingConfig", data_root: str = "") -> Run:
    """Train the run that a configuration names, or find it trained; write its weights and history; return it."""
    from oodlib.encoders import save_encoder
    from oodlib.training import train

    run = Run(study, run_name(config.id_dataset, config.arch, config.objective, config.seed))
    parameters = asdict(config)
    if run.is_done("train", parameters):
        print(f"{run.name} is trained already: {run.path}")
        return run
    images = load_images(config.id_dataset, "train", data_root or None)
    with run.doing("train", parameters) as about:
        about["environment"] = describe_machine(default_device())
        encoder, history = train(config, images)
        write_csv(pd.DataFrame(history), run.path / "history.csv")
        save_encoder(encoder, run.path / "encoder.safetensors")
    return run


def embed_step(
    run: Run, near_ood: list[str], far_ood: list[str], sanity_ood: list[str], max_images: int = 0, data_root: str = ""
) -> Run:
    """Embed the ID splits and the test split of every OOD set; OOD labels are -1, `max_images` 0 takes all."""
    from oodlib.encoders import load_encoder
    from oodlib.training import split_calibration

    parameters = {"near_ood": near_ood, "far_ood": far_ood, "sanity_ood": sanity_ood, "max_images": max_images}
    _before(run, "train", data_root)
    if run.is_done("embed", parameters):
        return run
    config = run.record["train"]["parameters"]
    id_dataset = config["id_dataset"]
    check_ood_sets(id_dataset, near_ood, far_ood, sanity_ood, max_images)
    # every set is loaded before anything is computed or written: a missing one is said at once
    training, test = (
        load_images(id_dataset, "train", data_root or None),
        load_images(id_dataset, "test", data_root or None),
    )
    ood_sets = [load_images(name, "test", data_root or None) for name in near_ood + far_ood + sanity_ood]
    with run.doing("embed", parameters):
        encoder = load_encoder(run.path / "encoder.safetensors").to(default_device())
        held_in, held_out = split_calibration(training, config["calibration_fraction"])
        parts = [("train", training.images[held_in], training.labels[held_in])]
        parts += [
            ("calibration", training.images[held_out], training.labels[held_out]),
            ("test", test.images, test.labels),
        ]
        for split, images, labels in parts:
            save_embeddings(run.embeddings_path(id_dataset, split), *_embedded(encoder, images, labels))
        for ood in ood_sets:
            images = ood.images[: max_images or None]
            unknown = np.full(len(images), -1)
            save_embeddings(run.embeddings_path(ood.name, "test"), *_embedded(encoder, images, unknown))
    return run


def check_ood_sets(
    id_dataset: str, near_ood: list[str], far_ood: list[str], sanity_ood: list[str], max_images: int
) -> None:
    """Raise ValueError for no near or far set, one that is there twice or is the ID set, or a negative max_images."""
    if not near_ood + far_ood:
        raise ValueError("near_ood and far_ood are both empty: name at least one OOD set in one of them")
    if max_images < 0:
        raise ValueError(f"max_images must not be negative, got {max_images}")
    ood_sets = near_ood + far_ood + sanity_ood
    files = [slug(name) for name in (id_dataset, *ood_sets)]  # two sets of one file would overwrite each other
    if twice := [name for name in ood_sets if files.count(slug(name)) > 1]:
        raise ValueError(f"OOD set {twice[0]!r} is there twice, or is the ID set {id_dataset!r}")


def _embedded(
    encoder: "Encoder", images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    z, logits = embed(encoder, encoder.prepare(images))
    return z, labels.astype(np.int64), logits


def cluster_step(run: Run, clusterings: list[str], n_clusters: list[int], data_root: str = "") -> pd.DataFrame:
    """Cluster the training embeddings every way asked for; write and return how good the clusters are (clusters.csv).

    `n_clusters` are the K of the clusterings that need one; 0 means the number of classes.
    """
    parameters = {"clusterings": clusterings, "n_clusters": n_clusters}
    _before(run, "embed", data_root)
    if not run.is_done("cluster", parameters):
        with run.doing("cluster", parameters):
            data = id_embeddings(run)["train"]
            n_classes = len(np.unique(data["y"]))
            sizes = dict.fromkeys(k or n_classes for k in n_clusters)  # each once, in order
            seed = run.record["train"]["parameters"]["seed"]
            found = {}
            for name in clusterings:
                for k in [None] if name in OWN_SIZE else sizes:
                    clusters = cluster(data["z"], data["y"], name, k, seed)
                    found[name, k or len(clusters.centers)] = clusters
            quality = {
                key: cluster_quality(data["z"], clusters.assignments, data["y"]) for key, clusters in found.items()
            }
            quality["none", 0] = embedding_quality(data["z"], data["y"])
            _save_assignments(run, found)
            write_csv(project(run), run.path / "projection.csv")
            rows = [
                {"run": run.name, "clustering": name, "n_clusters": k} | row
                for (name, k), table in quality.items()
                for row in table
            ]
            write_csv(pd.DataFrame(rows), run.path / "clusters.csv")
    return pd.read_csv(run.path / "clusters.csv")


def _save_assignments(run: Run, found: dict[tuple[str, int], Clusters]) -> None:
    arrays = {f"{name}/{k}": clusters.assignments.astype(np.int32) for (name, k), clusters in found.items()}
    write_atomically(run.path / "clusters.npz", lambda temporary: np.savez(temporary, **arrays))


def load_assignments(run: Run, n: int) -> dict[tuple[str, int], np.ndarray]:
    """Return the assignments (n,) of the training embeddings for every clustering and K that step `cluster` found.

    Raises FileNotFoundError, or ValueError when clusters.npz is cut short or foreign.
    """
    path = run.path / "clusters.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {(key.split("/")[0], int(key.split("/")[1])): file[key] for key in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # a file cut short fails in zipfile, zlib or NumPy, each with errors of its own
        raise ValueError(f"{path} holds no cluster assignments, or is cut short: {error}") from error
    for (_, k), assigned in found.items():
        if assigned.shape != (n,) or assigned.dtype.kind != "i" or not np.isin(assigned, np.arange(k)).all():
            raise ValueError(f"{path} is of another run: its assignments do not fit {n} embeddings; delete it")
    return found


def project(run: Run) -> pd.DataFrame:
    """Return a 2-D projection of ID and OOD test embeddings: dataset, label, x, y of some images of each set.

    The plane is that of the first two linear discriminants of the training classes at unit norm, fitted on ID training
    embeddings alone: the view in which the clusters are furthest apart, and OOD images fall where they fall.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.preprocessing import normalize

    training = id_embeddings(run)["train"]
    n_components = min(2, len(np.unique(training["y"])) - 1)
    plane = LinearDiscriminantAnalysis(n_components=n_components, solver="eigen", shrinkage=0.01)
    plane.fit(normalize(training["z"].astype(np.float64)), training["y"])
    tables = []
    id_dataset = run.record["train"]["parameters"]["id_dataset"]
    for dataset in [id_dataset, *ood_groups(run)]:
        data = load_embeddings(run.embeddings_path(dataset, "test"))
        some = np.random.default_rng(0).permutation(len(data["z"]))[:N_PROJECTED]
        xy = plane.transform(normalize(data["z"][some].astype(np.float64)))
        xy = np.pad(xy, ((0, 0), (0, 2 - n_components)))
        tables.append(pd.DataFrame({"dataset": dataset, "label": data["y"][some], "x": xy[:, 0], "y": xy[:, 1]}))
    return pd.concat(tables).round({"x": 4, "y": 4})


def evaluate_step(run: Run, distances: list[str], n_neighbors: int, data_root: str = "") -> pd.DataFrame:
    """Score every OOD set with every detector; write and return metrics.csv.

    A detector is a distance to the clusters of one clustering of step `cluster`, or a reference without clusters: KNN,
    and the logit scores where the encoder has a classifier. Also writes the quantiles of some detectors' scores
    (scores.csv) and each set's most and least normal images (extremes.csv), which figures are drawn from.
    """
    parameters = {"distances": distances, "n_neighbors": n_neighbors}
    _before(run, "cluster", data_root)
    if not run.is_done("evaluate", parameters):
        with run.doing("evaluate", parameters) as about:
            about["id_accuracy"] = id_accuracy(run)
            scores = dict(_all_scores(run, distances, n_neighbors))
            write_csv(_metrics(run, scores), run.path / "metrics.csv")
            shown = {name: score for d, score in scores.items() if (name := _shown_name(*d)) in SHOWN}
            write_csv(_quantiles(shown), run.path / "scores.csv")
            write_csv(_extremes(shown), run.path / "extremes.csv")
    return pd.read_csv(run.path / "metrics.csv")


def _shown_name(clustering: str, n_clusters: int, distance: str) -> str:
    return distance if clustering == "none" else f"{clustering}/{distance}"


def _all_scores(run: Run, distances: list[str], n_neighbors: int):
    """Yield ((clustering, n_clusters, distance), {dataset: scores (n,)}) for every detector; the ID set is first."""
    unknown = set(distances) - DISTANCES.keys()
    if unknown:
        raise ValueError(f"unknown distance {unknown.pop()!r}; known: {', '.join(DISTANCES)}")
    id_dataset = run.record["train"]["parameters"]["id_dataset"]
    training = id_embeddings(run)["train"]["z"]
    test = {name: load_embeddings(run.embeddings_path(name, "test")) for name in [id_dataset, *ood_groups(run)]}
    assignments = load_assignments(run, len(training))
    for (clustering, k), assigned in assignments.items():
        for distance in distances:
            state = DISTANCES[distance].fit(
                training, assigned, int(assigned.max()) + 1
            )  # a mixture may find fewer than k
            yield (
                (clustering, k, distance),
                {n: nearest_cluster(d["z"], distance, state)[0] for n, d in test.items()},
            )
    knn = KNNDetector(min(n_neighbors, len(training) - 1)).fit(training)
    yield ("none", 0, "knn"), {name: knn.score_samples(data["z"]) for name, data in test.items()}
    if "logits" in test[id_dataset]:
        for name, score in LOGIT_SCORES.items():
            yield ("none", 0, name), {dataset: score(data["logits"]) for dataset, data in test.items()}


def id_accuracy(run: Run) -> dict[str, float]:
    """Return the accuracy in [0, 1] on the ID test set: of the nearest class mean by cosine, and of a classifier."""
    data = id_embeddings(run)
    training, test = data["train"], data["test"]
    classes, assigned = np.unique(training["y"], return_inverse=True)
    state = DISTANCES["cosine"].fit(training["z"], assigned, len(classes))
    accuracy = {
        "nearest_class_mean": float((classes[nearest_cluster(test["z"], "cosine", state)[1]] == test["y"]).mean())
    }
    if "logits" in test:
        accuracy["classifier"] = float((test["logits"].argmax(axis=1) == test["y"]).mean())
    return accuracy


def _metrics(run: Run, scores: dict) -> pd.DataFrame:
    config = run.record["train"]["parameters"]
    about = {"run": run.name} | {key: config[key] for key in ("id_dataset", "arch", "objective", "seed")}
    rows = []
    for (clustering, k, distance), by_dataset in scores.items():
        for ood, group in ood_groups(run).items():
            detector = {"clustering": clustering, "n_clusters": k, "distance": distance, "threshold": "global"}
            values = ood_metrics(by_dataset[config["id_dataset"]], by_dataset[ood])
            rows.append(about | {"ood_dataset": ood, "group": group} | detector | values)
    return pd.DataFrame(rows)


def _quantiles(scores: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    levels = np.linspace(0, 1, N_QUANTILES)
    tables = [
        pd.DataFrame({"detector": detector, "dataset": dataset, "level": levels, "score": np.quantile(s, levels)})
        for detector, by_dataset in scores.items()
        for dataset, s in by_dataset.items()
    ]
    return pd.concat(tables)


def _extremes(scores: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Return the indices of each set's least and most normal test images, from the extreme inwards."""
    tables = []
    for detector, by_dataset in scores.items():
        for dataset, s in by_dataset.items():
            order = np.argsort(s, kind="stable")
            for extreme, index in (("least", order[:N_EXTREMES]), ("most", order[::-1][:N_EXTREMES])):
                about = {"detector": detector, "dataset": dataset, "extreme": extreme, "rank": np.arange(len(index))}
                tables.append(pd.DataFrame(about | {"index": index, "score": s[index]}))
    return pd.concat(tables)


def describe_embeddings(run: Run) -> pd.DataFrame:
    """Return, for each embedded set and split, its group, the number of images, the width and the mean norm."""
    id_dataset = run.record["train"]["parameters"]["id_dataset"]
    parts = [(id_dataset, split, "ID") for split in ID_SPLITS] + [
        (n, "test", group) for n, group in ood_groups(run).items()
    ]
    rows = []
    for dataset, split, group in parts:
        z = load_embeddings(run.embeddings_path(dataset, split))["z"]
        norm = float(np.linalg.norm(z, axis=1).mean())
        rows.append(
            {"dataset": dataset, "split": split, "group": group, "n": len(z), "d": z.shape[1], "mean norm": norm}
        )
    return pd.DataFrame(rows)


def id_embeddings(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Return the embeddings of the ID set's splits: train, calibration, test."""
    id_dataset = run.record["train"]["parameters"]["id_dataset"]
    return {split: load_embeddings(run.embeddings_path(id_dataset, split)) for split in ID_SPLITS}


def ood_groups(run: Run) -> dict[str, str]:
    """Return the run's OOD sets, each with its group: near, far or sanity."""
    parameters = run.record["embed"]["parameters"]
    return {name: group for group in GROUPS for name in parameters[f"{group}_ood"]}


def write_csv(table: pd.DataFrame, path) -> None:
    """Write a table to a csv file, whole or not at all, with the digits that float32 scores hold."""
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False, float_format="%.9g"))


def _before(run: Run, step: str, data_root: str) -> None:
    """Make sure that a step is done, doing it again as recorded where its artefacts are not there (a fresh clone)."""
    record = run.record
    if step not in record:
        raise FileNotFoundError(
            f"step {step!r} of run {run.name!r} in study {run.study!r} is not done: nothing in {run.path}"
        )
    parameters = record[step]["parameters"]
    if step != "train":
        _before(run, {"embed": "train", "cluster": "embed"}[step], data_root)
    if run.is_done(step, parameters):
        return
    print(f"{run.name}: step {step!r} is done first, its artefacts are not there")
    if step == "train":
        from oodlib.training import TrainingConfig

        train_step(run.study, TrainingConfig(**parameters), data_root)
    elif step == "embed":
        embed_step(run, **parameters, data_root=data_root)
    else:
        cluster_step(run, **parameters, data_root=data_root)
