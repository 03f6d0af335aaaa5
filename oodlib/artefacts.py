"""Artefacts: what a run's steps hand to each other, as arrays and tables in and as files on disk out, and back."""

import numpy as np
import pandas as pd

from oodlib.embedding import load_embeddings
from oodlib.files import write_atomically
from oodlib.product import Embedded, Key, RunEmbeddings
from oodlib.run_tables import ID_SPLITS, ood_groups
from oodlib.runs import Run


def save_assignments(run: Run, assignments: dict[Key, np.ndarray]) -> None:
    """Write the assignments (n,) of the training embeddings for every PCA, clustering and K (clusters.npz)."""
    arrays = {"/".join(map(str, key)): assigned.astype(np.int32) for key, assigned in assignments.items()}
    write_atomically(run.path / "clusters.npz", lambda temporary: np.savez(temporary, **arrays))


def load_assignments(run: Run, n: int) -> dict[Key, np.ndarray]:
    """Return the assignments (n,) of the training embeddings for every PCA, clustering and K that step `cluster` found.

    Raises FileNotFoundError, or ValueError when clusters.npz is cut short or foreign.
    """
    path = run.path / "clusters.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = {name: name.split("/") for name in file.files}
            found = {(int(pca), method, int(k)): file[name] for name, (pca, method, k) in keys.items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # a file cut short fails in zipfile, zlib or NumPy, each with errors of its own
        raise ValueError(f"{path} holds no cluster assignments, or is cut short: {error}") from error
    for (_, _, k), assigned in found.items():
        if assigned.shape != (n,) or assigned.dtype.kind != "i" or not np.isin(assigned, np.arange(k)).all():
            raise ValueError(f"{path} is of another run: its assignments do not fit {n} embeddings; delete it")
    return found


def run_embeddings(run: Run) -> RunEmbeddings:
    """Return all embeddings of a run, and its classifier where it has one."""
    from safetensors.numpy import load_file

    def embedded(dataset: str, split: str = "test") -> Embedded:
        arrays = load_embeddings(run.embeddings_path(dataset, split))
        return Embedded(arrays["z"], arrays.get("own", arrays["y"]), arrays.get("logits"))

    id_dataset = run.record["train"]["parameters"]["id_dataset"]
    weights = load_file(run.path / "encoder.safetensors")
    return RunEmbeddings(
        *(embedded(id_dataset, split) for split in ID_SPLITS),
        {name: embedded(name) for name in ood_groups(run)},
        weights.get("classifier.weight"),
        weights.get("classifier.bias"),
    )


def write_csv(table: pd.DataFrame, path, digits: int = 7) -> None:
    """Write a table to a csv file, whole or not at all, to seven digits, which is what float32 holds, or to fewer."""
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False, float_format=f"%.{digits}g"))
