"""The files that a run's steps hand to each other: embeddings, clusters and tables, written and read."""

from pathlib import Path

import numpy as np
import pandas as pd

from oodlib.clustering.clusters import MIXTURES, Clusters
from oodlib.clustering.gaussians import Gaussians
from oodlib.encoders.embedding import load_embeddings
from oodlib.files import write_atomically
from oodlib.scoring.product import Embedded, Key, RunEmbeddings
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
