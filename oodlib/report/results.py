"""The results of a study, its own or those reported: one table a kind of artefact, and what a report was made from.

Nothing here needs images, weights or embeddings, so a report can be made again from a fresh clone.
"""

import fnmatch
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from oodlib.clustering.clusters import OWN_SIZE
from oodlib.files import write_text
from oodlib.report.detectors import SHOWN, detector_names, names_by_classes, ranked
from oodlib.study.reported import fingerprint, run_folders, tables, texts
from oodlib.study.run import ARTEFACTS, study_folder

SETTING = ["id_dataset", "arch", "objective"]  # what seeds are averaged over


@dataclass(frozen=True)
class Results:
    """What the complete runs of a study wrote: one table a kind of file, with the rows of all runs, and one row a run.

    `metrics` has one row a run, detector and OOD set, a detector being a name like "labels/cosine" or, by cluster,
    "labels/cosine/per-cluster"; `decisions` has what each threshold rejects. `records` holds the runs' config.json, and
    `incomplete` names the runs that are not complete.
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
    records: tuple[dict, ...]
    incomplete: tuple[str, ...]


def collect(study: str) -> Results:
    """Return the results of a study's own complete runs or, where there are none, those reported.

    Raises FileNotFoundError where there is neither.
    """
    records, found = tables(texts(study))
    history = found["history"].groupby("run")
    runs = pd.DataFrame([_run_row(record, history.get_group(record["run"])) for record in records])
    found = {name: table.merge(runs[["run", *SETTING, "seed"]], on="run") for name, table in found.items()}
    for name in ("metrics", "decisions"):
        found[name] = found[name].assign(base=detector_names(found[name]))
    found["metrics"] = ranked(found["metrics"])
    return Results(runs=runs, records=tuple(records), incomplete=tuple(run_folders(study)[1]), **found)


def collect_those_there(studies: Sequence[str]) -> dict[str, Results]:
    """Return, by study, the results of those studies that have any, their own or reported."""
    found = {}
    for study in studies:
        with suppress(FileNotFoundError):
            found[study] = collect(study)
    return found


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


def _run_row(record: dict, history: pd.DataFrame) -> dict:
    config, environment = record["train"]["parameters"], record["train"]["environment"]
    accuracy = record["evaluate"]["id_accuracy"]
    return {
        "run": record["run"],
        **{key: config[key] for key in [*SETTING, "seed", "epochs"]},
        "pretrained": config["pretrained"],
        "id_accuracy": accuracy["classifier"],
        "nearest_class_mean": accuracy["nearest_class_mean"],
        # by the fastest epoch: what else a machine does is no cost of an objective
        "training_seconds": len(history) * history.seconds.min(),
        "network_inputs": round((history.seconds * history.images_per_second).sum()),
        "hardware": environment["device"] + ", " + environment["processor"],
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


def sized_as_classes(table: pd.DataFrame, results: Results) -> pd.Series:
    """Return which rows of a table have as many clusters as there are classes, or a clustering without a K."""
    return table.n_clusters.eq(table.id_dataset.map(n_classes(results))) | table.clustering.isin(OWN_SIZE)


def as_many_as_classes(results: Results) -> Results:
    """Return results with the clusterings that have as many clusters as there are classes, and those without a K."""
    return replace(results, clusters=results.clusters[sized_as_classes(results.clusters, results)])


def write_environment(study: str, parameters: dict, results: Results) -> Path:
    """Write environment.json: what the report was made from, on which machines, with which versions, in which time."""
    trained = [record["train"] for record in results.records]
    content = {
        "made_from": fingerprint(study, parameters),
        "runs": len(results.records),
        "seeds": sorted({train["parameters"]["seed"] for train in trained}),
        "environments": [json.loads(text) for text in sorted({json.dumps(train["environment"]) for train in trained})],
        "seconds": {step: round(sum(record[step]["seconds"] for record in results.records), 1) for step in ARTEFACTS}
        | {"train": round(float(results.history.seconds.sum()), 1)},  # of interrupted runs too
    }
    return write_text(study_folder(study) / "report" / "environment.json", json.dumps(content, indent=1) + "\n")
