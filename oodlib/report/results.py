"""Results of a study: what its complete runs wrote, as tables, and the record of what a report was made from.

Nothing here needs images, weights or embeddings, so a report can be made again from a fresh clone.
"""

import fnmatch
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from oodlib.clustering.clusters import OWN_SIZE
from oodlib.files import write_text
from oodlib.report.detectors import SHOWN, detector_names, names_by_classes, ranked
from oodlib.study.run import ARTEFACTS, Run, study_folder

PARTS = ("metrics", "clusters", "history", "intervals", "false_alarms", "epochs", "choices", "ablations")
DRAWN = ("scores", "extremes", "projection", "risk_coverage")  # what is drawn of one seed alone: others may lack it
SETTING = ["id_dataset", "arch", "objective"]  # what seeds are averaged over


@dataclass(frozen=True)
class Results:
    """What the complete runs of a study wrote: one table a kind of file, with the rows of all runs, and one row a run.

    `decisions` are the rows of metrics.csv of every threshold, `metrics` those that rank images differently: one row a
    run, detector and OOD set, a detector being a name like "labels/cosine" or, by cluster, "labels/cosine/per-cluster".
    The tables of DRAWN lack the runs that have no such file.
    """

    runs: pd.DataFrame
    decisions: pd.DataFrame
    metrics: pd.DataFrame
    clusters: pd.DataFrame
    history: pd.DataFrame
    scores: pd.DataFrame
    extremes: pd.DataFrame
    projection: pd.DataFrame
    intervals: pd.DataFrame
    false_alarms: pd.DataFrame
    risk_coverage: pd.DataFrame
    epochs: pd.DataFrame
    choices: pd.DataFrame
    ablations: pd.DataFrame
    incomplete: tuple[str, ...]


def run_folders(study: str) -> tuple[list[Path], list[str]]:
    """Return the folders of a study's complete runs, and the names of the others."""
    complete, incomplete = [], []
    for folder in sorted((study_folder(study) / "runs").glob("[!.]*/")):
        record = Run(study, folder.name).record
        if ARTEFACTS.keys() <= record.keys() and all((folder / f"{part}.csv").is_file() for part in PARTS):
            complete.append(folder)
        else:
            incomplete.append(folder.name)
    return complete, incomplete


def collect(study: str) -> Results:
    """Read the results of a study's complete runs. Raises FileNotFoundError when there is none."""
    folders, incomplete = run_folders(study)
    if not folders:
        raise FileNotFoundError(f"study {study!r} has no complete run in {study_folder(study) / 'runs'}")
    runs = pd.DataFrame([_run_row(folder) for folder in folders])
    about = runs[["run", *SETTING, "seed"]]
    tables = {}
    for part in PARTS + DRAWN:
        files = [folder / f"{part}.csv" for folder in folders if (folder / f"{part}.csv").is_file()]
        if not files:
            raise FileNotFoundError(f"no run of study {study!r} has {part}.csv")
        table = pd.concat([pd.read_csv(file).assign(run=file.parent.name) for file in files], ignore_index=True)
        tables[part] = table if "objective" in table else table.merge(about, on="run")
    decisions = tables["metrics"].assign(base=detector_names(tables["metrics"]))
    tables["metrics"] = ranked(decisions)
    return Results(runs=runs, decisions=decisions, incomplete=tuple(incomplete), **tables)


def choose(results: Results, detectors: list[str], otherwise: Sequence[str] = SHOWN) -> Results:
    """Return results with some detectors only: names, or patterns such as "kmeans-*/cosine", in the order given.

    In a pattern, {classes} is the number of classes of each ID set. An empty list takes what there is of `otherwise`.
    Raises ValueError for a name that matches none.
    """
    named = list(zip(results.metrics.detector, names_by_classes(results.metrics, n_classes(results)), strict=True))
    position = {}
    for pattern in detectors or otherwise:
        found = [names for names in dict.fromkeys(named) if any(fnmatch.fnmatchcase(name, pattern) for name in names)]
        if not found and pattern in detectors:
            known = ", ".join(dict.fromkeys(results.metrics.detector))
            raise ValueError(f"unknown detector {pattern!r}; known: {known}")
        for names in found:
            position.setdefault(names, len(position))
    order = {run: place for place, run in enumerate(results.runs.run)}
    metrics = results.metrics.assign(position=[position.get(names, -1) for names in named])
    metrics = metrics[metrics.position >= 0].assign(key=metrics.run.map(order))
    rows = metrics.sort_values(["key", "position"], kind="stable")
    return replace(results, metrics=rows.drop(columns=["position", "key"]).reset_index(drop=True))


def _run_row(folder: Path) -> dict:
    record = json.loads((folder / "config.json").read_text())
    config, history = record["train"]["parameters"], pd.read_csv(folder / "history.csv")
    accuracy = record["evaluate"]["id_accuracy"]
    return {
        "run": folder.name,
        **{key: config[key] for key in [*SETTING, "seed", "epochs"]},
        "pretrained": config["pretrained"],
        "id_accuracy": accuracy["classifier"],
        "nearest_class_mean": accuracy["nearest_class_mean"],
        # by the fastest epoch: what else a machine does is no cost of an objective
        "training_seconds": len(history) * history.seconds.min(),
        "network_inputs": round((history.seconds * history.images_per_second).sum()),
        "hardware": record["train"]["environment"]["device"] + ", " + record["train"]["environment"]["processor"],
    }


def n_classes(results: Results) -> dict[str, int]:
    """Return the number of classes of each ID set: that of the clusters that labels make."""
    labels = results.decisions[results.decisions.clustering == "labels"]
    return labels.groupby("id_dataset").n_clusters.max().to_dict()


def of_classes(clusters: pd.DataFrame, clustering: str, measure: str) -> pd.DataFrame:
    """Return a measure of the clusters of one clustering, with as many clusters as there are classes."""
    n_classes = clusters[clusters.clustering == "labels"].groupby("id_dataset").n_clusters.max()
    chosen = (clusters.clustering == clustering) & (clusters.measure == measure)
    return clusters[chosen & (clusters.n_clusters == clusters.id_dataset.map(n_classes))]


def as_many_as_classes(results: Results) -> Results:
    """Return results with the clusterings that have as many clusters as there are classes, and those without a K."""
    clusters = results.clusters
    sized = clusters.n_clusters.eq(clusters.id_dataset.map(n_classes(results))) | clusters.clustering.isin(OWN_SIZE)
    return replace(results, clusters=clusters[sized])


def fingerprint(study: str, parameters: dict) -> str:
    """Return a SHA-256 of everything the report is made from: the runs' texts, and its own parameters."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for folder in run_folders(study)[0]:
        record = (folder / "config.json").read_bytes()
        is_shown = json.loads(record)["train"]["parameters"]["seed"] == parameters["shown_seed"]
        files = [folder / f"{part}.csv" for part in (PARTS + DRAWN if is_shown else PARTS)]
        for content in (record, *(file.read_bytes() for file in files if file.is_file())):
            digest.update(content)
    return digest.hexdigest()


def report_is_current(study: str, parameters: dict) -> bool:
    """Return whether the report on disk was made from the runs that are there, with these parameters."""
    folder = study_folder(study) / "report"
    try:
        made_from = json.loads((folder / "environment.json").read_text())["made_from"]
    except (OSError, ValueError, KeyError):
        return False
    return (folder / "05_report.ipynb").is_file() and made_from == fingerprint(study, parameters)


def write_environment(study: str, parameters: dict, results: Results) -> Path:
    """Write environment.json: what the report was made from, on which machines, with which versions, in which time."""
    folder = study_folder(study)
    records = [json.loads((folder / "runs" / run / "config.json").read_text()) for run in results.runs.run]
    content = {
        "made_from": fingerprint(study, parameters),
        "runs": len(records),
        "seeds": sorted({record["train"]["parameters"]["seed"] for record in records}),
        "environments": [json.loads(text) for text in sorted({json.dumps(r["train"]["environment"]) for r in records})],
        "seconds": {step: round(sum(record[step]["seconds"] for record in records), 1) for step in ARTEFACTS}
        | {"train": round(float(results.history.seconds.sum()), 1)},  # of interrupted runs too
    }
    return write_text(folder / "report" / "environment.json", json.dumps(content, indent=1) + "\n")
