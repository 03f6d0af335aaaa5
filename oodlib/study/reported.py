"""What all runs of a study wrote, as one file a kind: outputs/reported/STUDY, which is committed, and its reader.

runs.json holds what the runs' config.json say, the other files the tables of `condensed`. A report of a study's own
runs is made from the same texts, which are then in memory alone: so a fresh clone makes it again to the same numbers.
No images, weights or embeddings are needed.
"""

import hashlib
import io
import json
import shutil
from pathlib import Path

import pandas as pd

from oodlib.files import resolve, write_text
from oodlib.study.image_scores import extreme_table, load_image_scores
from oodlib.study.run import ARTEFACTS, IMAGE_SCORES, Run, study_folder

DRAWN = ("scores", "extremes", "projection", "risk_coverage")  # of one seed alone
RANKING = ("global", "per-cluster")  # the thresholds that rank images differently
DETECTOR = ["run", "clustering", "n_clusters", "distance", "seen", "threshold"]
BY_CLUSTER = ["global_separation", "cluster_purity"]  # kept of every cluster of BOXED clusterings, else their mean
BOXED = ["labels", "kmeans"]
OTHERS = ["aupr_in", "aupr_out", "fpr95_ood_positive", "error_auroc", "aurc", "augrc", "oscr"]
SPREAD = {  # tables with a column a level: what the level is called, and the value
    "scores": ("level", "score"),
    "risk_coverage": ("coverage", "risk"),
    "extremes": ("rank", "index"),
}


def condensed(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the tables that are written, by name, from those of the runs' artefacts under each other."""
    metrics, clusters, choices = tables["metrics"], tables["clusters"], tables["choices"]
    ranking = metrics[metrics.threshold.isin(RANKING)]
    sized, at_alpha = ranking[_of_classes(ranking)], metrics[_of_classes(metrics) & (metrics.seen == 0)]
    rejected = _wide(at_alpha, ["ood_rejected"], [*DETECTOR, "id_rejected"])
    best = choices.auroc.fillna(-1).groupby([choices.run, choices.rule], sort=False).idxmax()
    return {
        "sets": metrics[["run", "ood_dataset", "group", "seen", "n_id", "n_ood"]].drop_duplicates(),
        "metrics": _wide(ranking, ["auroc", "fpr95"], DETECTOR),
        "measures": _wide(sized, [name for name in OTHERS if name in sized], DETECTOR),
        "thresholds": rejected.assign(id_rejected=rejected.id_rejected.round(4)),
        "clusterings": _clusterings(clusters),
        "clusters": _each_cluster(clusters),
        "choices": _first(choices.loc[best].round({"auroc": 4})),
        "history": _first(tables["history"]),
        "epochs": _first(tables["epochs"].round({"value": 4})),
        "intervals": _first(tables["intervals"].round(5)),
        "false_alarms": _first(tables["false_alarms"].round(4)),
        "projection": _first(tables["projection"].round(2)),
        "scores": _spread(tables["scores"], ["dataset"], *SPREAD["scores"], 5),
        "extremes": _spread(tables["extremes"], ["dataset", "extreme"], *SPREAD["extremes"]),
        "risk_coverage": _spread(tables["risk_coverage"], ["ood_dataset"], *SPREAD["risk_coverage"], 4),
    }


def _of_classes(metrics: pd.DataFrame) -> pd.Series:
    """Return which rows have as many clusters as there are classes, one or none; all of a run without labels."""
    classes = metrics.run.map(metrics[metrics.clustering == "labels"].groupby("run").n_clusters.max())
    return metrics.n_clusters.isin([0, 1]) | metrics.n_clusters.eq(classes) | classes.isna()


def _wide(table: pd.DataFrame, measures: list[str], keys: list[str]) -> pd.DataFrame:
    """Return a table with a row for each of `keys` and a column for each OOD set and measure, in their order."""
    wide = table.pivot(index=keys, columns="ood_dataset", values=measures)
    wide = wide.reindex(pd.MultiIndex.from_frame(table[keys].drop_duplicates()))
    wide = wide[[(measure, name) for name in dict.fromkeys(table.ood_dataset) for measure in measures]]
    wide = wide.round({column: 5 if column[0] == "auroc" else 4 for column in wide})
    return wide.set_axis([" ".join(column) for column in wide], axis=1).reset_index()


def _clusterings(clusters: pd.DataFrame) -> pd.DataFrame:
    """Return a row a clustering and a column a measure; measures of single clusters as their mean."""
    keys = ["run", "clustering", "n_clusters"]
    means = clusters.groupby([*keys, "measure"], sort=False).value.mean().unstack("measure", sort=False)
    size = clusters[clusters.cluster.astype(str) == "all"].groupby(keys)["size"].max()
    means = _digits(means, 5)
    means.insert(0, "size", size)
    return means.reindex(pd.MultiIndex.from_frame(clusters[keys].drop_duplicates())).reset_index()


def _each_cluster(clusters: pd.DataFrame) -> pd.DataFrame:
    keys = ["run", "clustering", "n_clusters", "cluster", "size"]
    chosen = clusters[clusters.clustering.isin(BOXED) & clusters.measure.isin(BY_CLUSTER)]
    wide = chosen.pivot(index=keys, columns="measure", values="value")
    return _digits(wide.reindex(pd.MultiIndex.from_frame(chosen[keys].drop_duplicates())), 4).reset_index()


def _spread(table: pd.DataFrame, about: list[str], level: str, value: str, digits: int = 0) -> pd.DataFrame:
    """Return a table with a row a run, detector and what else it is about, and a column a level."""
    if table.empty:
        return table
    keys = ["run", "detector", *about]
    wide = table.assign(**{level: table[level].round(4)}).pivot(index=keys, columns=level, values=value)
    wide = wide.reindex(pd.MultiIndex.from_frame(table[keys].drop_duplicates()))
    return (_digits(wide, digits) if digits else wide.astype("Int64")).reset_index()


def _first(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose first column is the run."""
    return table[["run", *(name for name in table if name != "run")]] if len(table.columns) else table


def _digits(table: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Return a table with its floats to so many significant digits."""
    floats = table.select_dtypes("float")
    rounded = floats.map(lambda value: float(f"{value:.{digits}g}"))
    return pd.concat([rounded, table.drop(columns=floats.columns)], axis=1)[list(table.columns)]


def expanded(texts: dict[str, str]) -> dict[str, pd.DataFrame]:
    """Return the tables for a report, one row a value, from the csv texts of the condensed ones by name."""
    read = {name: pd.read_csv(io.StringIO(text)) for name, text in texts.items()}
    sets = read.pop("sets")
    metrics, measures = _long(read["metrics"], sets), _long(read.pop("measures"), sets)
    others = measures.drop(columns=["group", "n_id", "n_ood"])
    read["metrics"] = metrics.merge(others, "left", [*DETECTOR, "ood_dataset"])
    read["decisions"] = _long(read.pop("thresholds"), sets)
    read["clusters"] = _all_clusters(read.pop("clusterings"), read["clusters"])
    return read | {name: _gathered(read[name], *SPREAD[name]) for name in SPREAD if name in read}


def _gathered(wide: pd.DataFrame, level: str, value: str) -> pd.DataFrame:
    keys = [column for column in wide if not column[0].isdigit()]
    long = wide.melt(keys, var_name=level, value_name=value, ignore_index=False).dropna()
    long = long.sort_index(kind="stable").reset_index(drop=True)
    return long.astype({level: "int64", value: "int64"} if value == "index" else {level: "float64"})


def _long(wide: pd.DataFrame, sets: pd.DataFrame) -> pd.DataFrame:
    """Return a table with a row for each of its rows and OOD set of the run, in the order of both."""
    names = {column: tuple(column.split(" ", 1)) for column in wide if " " in column}
    keys = [column for column in wide if column not in names]
    parts = {}
    for column, (measure, dataset) in names.items():
        parts.setdefault(dataset, wide[keys].assign(ood_dataset=dataset, row=range(len(wide))))[measure] = wide[column]
    places = sets.assign(place=range(len(sets)))
    long = pd.concat(parts.values()).merge(places, on=["run", "ood_dataset", "seen"])
    return long.sort_values(["row", "place"], ignore_index=True).drop(columns=["row", "place"])


def _all_clusters(clusterings: pd.DataFrame, clusters: pd.DataFrame) -> pd.DataFrame:
    """Return one row a measure of a clustering, of each cluster where it is known and else of all together."""
    keys = ["run", "clustering", "n_clusters", "cluster", "size"]
    whole = clusterings.assign(cluster="all").melt(keys, var_name="measure").dropna(subset="value")
    whole = whole[~(whole.clustering.isin(BOXED) & whole.measure.isin(BY_CLUSTER))]
    both = pd.concat([whole, clusters.melt(keys, var_name="measure")]).astype({"size": "int64"})
    places = clusterings[keys[:3]].assign(place=range(len(clusterings)))
    return both.merge(places, on=keys[:3]).sort_values("place", kind="stable", ignore_index=True).drop(columns="place")


TABLES = {  # each with the file of a run that it is read from
    file.removesuffix(".csv"): file for files in ARTEFACTS.values() for file in files if file.endswith(".csv")
} | {"extremes": IMAGE_SCORES}
KEPT = ("*.csv", "*.ipynb", "*.json", "idea.png", "accuracy.png")  # of a report; the notebook shows all figures


def run_folders(study: str) -> tuple[list[Path], list[str]]:
    """Return the folders of a study's own complete runs, and the names of the others."""
    complete, incomplete = [], []
    for folder in sorted((study_folder(study) / "runs").glob("[!.]*/")):
        record = Run(study, folder.name).record
        if ARTEFACTS.keys() <= record.keys() and all((folder / name).is_file() for name in TABLES.values()):
            complete.append(folder)
        else:
            incomplete.append(folder.name)
    return complete, incomplete


def reported_folder(study: str) -> Path:
    """Return where the committed results of a study are."""
    return resolve("outputs/reported") / study_folder(study).name


def texts(study: str, shown_seed: int | None = None) -> dict[str, str]:
    """Return the files by name: of the study's own complete runs or, where there are none, those reported.

    Of own runs, what is drawn is that of `shown_seed`, or of all seeds. Raises FileNotFoundError where there is
    neither.
    """
    folders, reported = run_folders(study)[0], reported_folder(study)
    if folders:
        return _texts_of([Run(study, folder.name) for folder in folders], shown_seed)
    if not (reported / "runs.json").is_file():
        own = study_folder(study) / "runs"
        raise FileNotFoundError(f"study {study!r} has no complete run in {own}, and none is reported in {reported}")
    return {path.name: path.read_text() for path in sorted(reported.iterdir()) if path.suffix in (".csv", ".json")}


def reported_record(run: Run) -> dict:
    """Return the record of a run as it is reported, empty where it is not."""
    path = reported_folder(run.study) / "runs.json"
    records = json.loads(path.read_text()) if path.is_file() else []
    return next((record for record in records if record["run"] == run.name), {})


def publish(study: str) -> Path:
    """Write the files of a study's own runs, and its report, to outputs/reported/STUDY; return that folder.

    Raises FileNotFoundError without a complete run, and ValueError where the report was made from other numbers.
    """
    if not run_folders(study)[0]:
        raise FileNotFoundError(f"study {study!r} has no complete run in {study_folder(study) / 'runs'}")
    source, folder = study_folder(study) / "report", reported_folder(study)
    made = _made_from(source)
    found = texts(study, made.get("parameters", {}).get("shown_seed"))
    if made.get("texts") != _digest(found):
        raise ValueError(f"{source} is not the report of these runs: run python -m oodlib {study} first")
    shutil.rmtree(folder / "report", ignore_errors=True)
    for old in folder.glob("*.csv"):
        old.unlink()
    for name, text in found.items():
        write_text(folder / name, text)
    (folder / "report").mkdir()
    for path in sorted(path for pattern in KEPT for path in source.glob(pattern)):
        shutil.copyfile(path, folder / "report" / path.name)
    return folder


def _texts_of(runs: list[Run], shown_seed: int | None) -> dict[str, str]:
    records = [_without_files(run.record) for run in runs]
    seeds = [record["train"]["parameters"]["seed"] for record in records]
    tables = {}
    for name, file in TABLES.items():
        chosen = [n for n in range(len(runs)) if name not in DRAWN or shown_seed in (None, seeds[n])]
        parts = [_read(runs[n], file).assign(run=n) for n in chosen]
        parts = [part for part in parts if len(part)] or parts[:1]  # an empty one has no types
        tables[name] = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    lines = ",\n".join(json.dumps(record) for record in records)
    return {"runs.json": f"[\n{lines}\n]\n"} | {
        f"{name}.csv": table.to_csv(index=False) for name, table in condensed(tables).items() if len(table.columns)
    }


def _read(run: Run, file: str) -> pd.DataFrame:
    return extreme_table(load_image_scores(run)) if file == IMAGE_SCORES else pd.read_csv(run.path / file)


def _without_files(record: dict) -> dict:
    steps = {step: {key: value for key, value in record[step].items() if key != "files"} for step in ARTEFACTS}
    return {"run": record["run"]} | steps


def tables(found: dict[str, str]) -> tuple[list[dict], dict[str, pd.DataFrame]]:
    """Return the runs' records and, from `texts`, the tables for a report, in which `run` is the run's name."""
    records = json.loads(found["runs.json"])
    read = expanded({name.removesuffix(".csv"): text for name, text in found.items() if name.endswith(".csv")})
    names = [record["run"] for record in records]
    return records, {name: table.assign(run=[names[n] for n in table.run]) for name, table in read.items()}


def fingerprint(study: str, parameters: dict) -> dict[str, object]:
    """Return what a report is made from: a SHA-256 of the texts, and the report's own parameters."""
    return {"texts": _digest(texts(study, parameters["shown_seed"])), "parameters": parameters}


def _digest(found: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _made_from(report: Path) -> dict:
    try:
        made = json.loads((report / "environment.json").read_text())["made_from"]
    except (OSError, ValueError, KeyError):
        return {}
    return made if isinstance(made, dict) else {}


def report_is_current(study: str, parameters: dict) -> bool:
    """Return whether the report on disk was made from the runs that are there, with these parameters."""
    folder = study_folder(study) / "report"
    made = (folder / "05_report.ipynb").is_file() and bool(run_folders(study)[0])
    return made and _made_from(folder) == fingerprint(study, parameters)
