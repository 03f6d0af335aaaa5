"""Provenance: where the images of a study are from, and how each run was made."""

import pandas as pd

from oodlib.data.catalogue import display_name, look_up
from oodlib.report.results import Results
from oodlib.study.run import ARTEFACTS


def data_table(results: Results) -> pd.DataFrame:
    """Return where the image sets of a study are from: part in it, images used, source, terms and what must be known.

    Where encoders start from ImageNet's weights, the column "in ImageNet" says what these have seen. A set of the
    user's own has no source here.
    """
    metrics, whole = results.metrics, results.clusters[results.clusters.clustering == "none"]
    n_train = whole.groupby("id_dataset")["size"].max()
    rows = []
    for name in dict.fromkeys(results.runs.id_dataset):
        n_test = metrics[metrics.id_dataset == name].n_id.max()
        rows.append((name, "ID", f"{n_train.get(name, 0)} training, {n_test} test"))
    for (group, name), part in metrics[metrics.seen == 0].groupby(["group", "ood_dataset"], sort=False):
        id_sets = ", ".join(display_name(own) for own in dict.fromkeys(part.id_dataset))
        rows.append((name, f"{group} OOD of {id_sets}", f"{part.n_ood.max()} test"))
    entries = [look_up(name) for name, *_ in rows]
    columns = {
        "set": [entry.title for entry in entries],
        "part": [part for _, part, _ in rows],
        "images": [images for *_, images in rows],
        "source": [entry.source for entry in entries],
        "terms": [entry.terms for entry in entries],
        "note": [entry.note for entry in entries],
    }
    if results.runs.pretrained.astype(bool).any():
        columns["in ImageNet"] = [entry.in_imagenet for entry in entries]
    return pd.DataFrame(columns)


def run_table(results: Results) -> pd.DataFrame:
    """Return how each run was made: seed, epochs, accuracy, seconds of the four steps, threads, machine, versions.

    Seconds of training are those of all epochs, also of a run that was interrupted.
    """
    trained = results.history.groupby("run").seconds.sum()
    rows = []
    for run, record in zip(results.runs.itertuples(), results.records, strict=True):
        machine = record["train"]["environment"]
        seconds = {step: record[step]["seconds"] for step in ARTEFACTS} | {"train": trained[run.run]}
        versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "timm", "scikit-learn"))
        rows.append(
            {"run": run.run, "seed": run.seed, "epochs": run.epochs, "ID accuracy %": f"{100 * run.id_accuracy:.1f}"}
            | {f"{step} s": round(spent) for step, spent in seconds.items()}
            | {
                "threads": machine["threads"],
                "machine": f"{machine['device']}, {machine['processor']}",
                "versions": versions,
            }
        )
    return pd.DataFrame(rows)
