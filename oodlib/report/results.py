"""The report: the text artefacts of a study's runs in; tables, and the record of what they were made from, out.

Nothing here needs images, weights or embeddings, so a report can be made again from a fresh clone.
"""

import fnmatch
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from oodlib.clustering.clusters import OWN_SIZE
from oodlib.files import write_text
from oodlib.study.run import ARTEFACTS, Run, study_folder

PARTS = ("metrics", "clusters", "history", "intervals", "false_alarms", "epochs", "choices", "ablations")
DRAWN = ("scores", "extremes", "projection", "risk_coverage")  # what is drawn of one seed alone: others may lack it
SETTING = ["id_dataset", "arch", "objective"]  # what seeds are averaged over
SHOWN = (  # detectors that tables show unless others are named; {classes} is the number of classes of the ID set
    "labels/euclidean",
    "labels/cosine",
    "labels/cosine/per-cluster",
    "labels/mahalanobis",
    "labels/mahalanobis/per-cluster",
    "labels/relative-mahalanobis",
    "labels/ssd",
    "one/mahalanobis",
    "one/ssd",
    "kmeans-{classes}/cosine",
    "kmeans-{classes}/ssd",
    "gmm-{classes}/cosine",
    "gmm-{classes}/ssd",
    "knn",
    "vim",
    "residual",
    "nnguide",
    "fdbd",
    "nci",
    "react",
    "ash",
    "scale",
    "msp",
    "energy",
)
RANKING = ("global", "per-cluster")  # the thresholds that rank images differently


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


def ranked(decisions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of thresholds that rank images differently, with the column detector."""
    rows = decisions[decisions.threshold.isin(RANKING)]
    names = rows.base.where(rows.threshold == "global", rows.base + "/" + rows.threshold)
    return rows.assign(detector=names).reset_index(drop=True)


def choose(results: Results, detectors: list[str], otherwise: Sequence[str] = SHOWN) -> Results:
    """Return results with some detectors only: names, or patterns such as "kmeans-*/cosine", in the order given.

    In a pattern, {classes} is the number of classes of each ID set. An empty list takes what there is of `otherwise`.
    Raises ValueError for a name that matches none.
    """
    named = list(zip(results.metrics.detector, names_by_classes(results), strict=True))
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


def names_by_classes(results: Results) -> pd.Series:
    """Return the detectors of the metrics, with {classes} for a K that is the number of classes of the ID set."""
    metrics = results.metrics
    of_classes = metrics.n_clusters.eq(metrics.id_dataset.map(n_classes(results))) & ~metrics.clustering.isin(OWN_SIZE)
    own = metrics.clustering + "-" + metrics.n_clusters.astype(str) + "/"
    names = [
        name.replace(sized, f"{clustering}-{{classes}}/") if same else name
        for name, sized, clustering, same in zip(metrics.detector, own, metrics.clustering, of_classes, strict=True)
    ]
    return pd.Series(names, metrics.index, dtype=object)


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


def detector_names(table: pd.DataFrame) -> pd.Series:
    """Return how a detector is called in tables: clustering-K/distance, or the reference's name alone."""
    return (clustering_names(table) + "/" + table.distance).where(table.clustering != "none", table.distance)


def clustering_names(table: pd.DataFrame) -> pd.Series:
    """Return how a clustering is called in tables: "labels" or, with its K, "kmeans-10"."""
    own_size = table.clustering.isin(OWN_SIZE)
    return table.clustering.where(own_size, table.clustering + "-" + table.n_clusters.astype(str))


def n_classes(results: Results) -> dict[str, int]:
    """Return the number of classes of each ID set: that of the clusters that labels make."""
    labels = results.decisions[results.decisions.clustering == "labels"]
    return labels.groupby("id_dataset").n_clusters.max().to_dict()


def of_classes(clusters: pd.DataFrame, clustering: str, measure: str) -> pd.DataFrame:
    """Return a measure of the clusters of one clustering, with as many clusters as there are classes."""
    n_classes = clusters[clusters.clustering == "labels"].groupby("id_dataset").n_clusters.max()
    chosen = (clusters.clustering == clustering) & (clusters.measure == measure)
    return clusters[chosen & (clusters.n_clusters == clusters.id_dataset.map(n_classes))]


def n_runs(results: Results, id_dataset: str) -> str:
    """Return how many runs each objective has on an ID set, as in "3" or "1–3"."""
    sizes = results.runs[results.runs.id_dataset == id_dataset].groupby("objective").size()
    return "–".join(str(n) for n in sorted(set(sizes)))


def over_seeds(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Return mean, sd (n - 1) and n of a column for each group, groups in the order they come in."""
    return (
        table.groupby(by, sort=False)[value].agg(["mean", "std", "count"]).rename(columns={"std": "sd", "count": "n"})
    )


def group_means(results: Results, measures: list[str]) -> pd.DataFrame:
    """Return the means of measures over the near and over the far sets: one row a run, detector and group.

    A detector that lacks a set of the group has no row: a mean over other sets does not compare.
    """
    n_sets = results.decisions.groupby(["id_dataset", "group"]).ood_dataset.nunique().rename("n_sets")
    groups = results.metrics[results.metrics.group != "sanity"].groupby(
        [*SETTING, "seed", "detector", "group"], sort=False
    )
    means = groups[measures].mean().assign(n_own=groups.ood_dataset.nunique()).reset_index()
    means = means.join(n_sets, on=["id_dataset", "group"])
    return means[means.n_own == means.n_sets].drop(columns=["n_own", "n_sets"]).reset_index(drop=True)


def main_table(results: Results, measure: str = "auroc") -> pd.DataFrame:
    """Return the tidy main table: one row a setting, detector and OOD set, with mean, sd and n over seeds, in percent.

    Beside the sets stand the means over the near and over the far sets, each averaged within a seed first.
    """
    metrics = results.metrics[[*SETTING, "seed", "detector", "group", "ood_dataset", measure]]
    means = group_means(results, [measure])
    means["ood_dataset"] = means.group + " mean"
    both = pd.concat([metrics, means])
    both[measure] *= 100
    return over_seeds(both, [*SETTING, "detector", "group", "ood_dataset"], measure).reset_index()


def wide(table: pd.DataFrame, best: str = "max") -> pd.DataFrame:
    """Return a tidy table for reading: a row a setting and detector, n seeds, a column an OOD set, cells "mean ± sd".

    Means over near and far sets come first. The best of a column, its "max" or "min" mean as `best` says, is bold; so
    is what equals it at one decimal. Where there is one seed, and the columns low and high, its interval is shown.
    """
    groups = dict.fromkeys(table.group)
    columns = list(dict.fromkeys(name for group in groups for name in table[table.group == group].ood_dataset))
    columns.sort(key=lambda name: name not in ("near mean", "far mean"))
    top = table.groupby(["id_dataset", "ood_dataset"])["mean"].transform(best)
    bold = (table["mean"].round(1) == top.round(1)).map({True: "**", False: ""})
    shown = table.reindex(columns=["mean", "sd", "low", "high"]).itertuples(index=False)
    cells = bold + [mean_sd(mean, sd, low, high) for mean, sd, low, high in shown] + bold
    keys = [*SETTING, "detector"]
    seeds = table.groupby(keys, sort=False).n.unique().map(lambda n: "–".join(str(k) for k in sorted(n)))
    spread = table.assign(cell=cells).pivot_table(
        index=keys, columns="ood_dataset", values="cell", aggfunc="first", sort=False
    )
    return seeds.reset_index().merge(spread[columns].reset_index(), on=keys).fillna("")


def mean_sd(mean: float, sd: float, low: float = np.nan, high: float = np.nan) -> str:
    """Return "mean ± sd" with one decimal; of one run, which has no sd, "mean [low, high]" where they are known.

    Rounded from six digits, so that a table that is kept with six reads the same.
    """
    mean = float(f"{mean:.6g}")
    mean = 0.0 if abs(mean) < 0.05 else mean  # no "-0.0"
    if pd.notna(sd):
        return f"{mean:.1f} ± {sd:.1f}"
    return f"{mean:.1f}" if pd.isna(low) else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def cost_table(results: Results) -> pd.DataFrame:
    """Return, for each setting, accuracy and training cost as mean ± sd over seeds, with n."""
    rows = []
    for setting, group in results.runs.groupby(SETTING, sort=False):
        rows.append(
            dict(zip(SETTING, setting, strict=True))
            | {
                "n": len(group),
                "epochs": "–".join(str(e) for e in sorted(set(group.epochs))),
                "ID accuracy %": mean_sd(100 * group.id_accuracy.mean(), 100 * group.id_accuracy.std()),
                "nearest class mean %": mean_sd(
                    100 * group.nearest_class_mean.mean(), 100 * group.nearest_class_mean.std()
                ),
                "training seconds": mean_sd(group.training_seconds.mean(), group.training_seconds.std()),
                "network inputs": f"{group.network_inputs.mean():,.0f}",
            }
        )
    return pd.DataFrame(rows)


def cluster_table(
    results: Results, measures: tuple[str, ...] = ("global_separation", "cluster_purity")
) -> pd.DataFrame:
    """Return, for each setting, clustering and K, the measures' means over clusters: mean ± sd over seeds, with n."""
    keys = [*SETTING, "clustering", "n_clusters"]
    chosen = results.clusters[results.clusters.measure.isin(measures)]
    per_run = chosen.groupby([*keys, "measure", "seed"], sort=False).value.mean().dropna().reset_index()
    table = over_seeds(per_run, [*keys, "measure"], "value").reset_index()
    table["cell"] = [
        f"{m:.3f}" if pd.isna(s) else f"{m:.3f} ± {s:.3f}" for m, s in zip(table["mean"], table.sd, strict=True)
    ]
    spread = table.pivot_table(index=[*keys, "n"], columns="measure", values="cell", aggfunc="first", sort=False)
    spread = spread.fillna("").reset_index().rename_axis(columns=None)
    spread["place"] = spread.groupby([*SETTING, "clustering"], sort=False).ngroup()
    return spread.sort_values(["place", "n_clusters"], kind="stable", ignore_index=True).drop(columns="place")


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


def main_table_text(study: str) -> str:
    """Return the main table for a terminal: mean AUROC in percent over the seeds of the complete runs, ± sd.

    It has the detectors on class means and those that need no clusters.
    """
    results = collect(study)
    plain = results.metrics.clustering.isin(["labels", "none"]) & (results.metrics.threshold == "global")
    table = wide(main_table(replace(results, metrics=results.metrics[plain & (results.metrics.seen == 0)])))
    n = sorted(results.runs.groupby(SETTING).size().unique())
    heading = f"AUROC %, mean ± sd over {'–'.join(str(k) for k in n)} seed(s); ID is the positive class, ** the best"
    if results.incomplete:
        heading += f"\nincomplete, and left out: {', '.join(results.incomplete)}"
    return f"{heading}\n{table.to_markdown(index=False, disable_numparse=True)}"
