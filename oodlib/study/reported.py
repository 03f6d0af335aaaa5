"""What all runs of a study wrote, as one file a kind: outputs/reported/STUDY, which is committed, and its reader.

runs.json holds what the runs' config.json say, the other files the tables of `condensed`. A report of a study's own
runs is made from the same texts, which are then in memory alone: so a fresh clone makes it again to the same numbers.
No images, weights or embeddings are needed.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd

from oodlib.files import resolve, write_text
from oodlib.study.condensed import DRAWN, condensed, expanded
from oodlib.study.image_scores import extreme_table, load_image_scores
from oodlib.study.run import ARTEFACTS, IMAGE_SCORES, Run, study_folder

TABLES = {  # each with the file of a run that it is read from
    file.removesuffix(".csv"): file for files in ARTEFACTS.values() for file in files if file.endswith(".csv")
} | {"extremes": IMAGE_SCORES}
KEPT = ("*.csv", "*.md", "*.png", "*.ipynb", "*.json")  # of a report


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
