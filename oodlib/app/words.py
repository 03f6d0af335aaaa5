"""In words: the numbers that notebook 06 finds, as sentences for whoever has the images."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from oodlib.app.drift import Drift
from oodlib.app.folder import Part
from oodlib.files import resolve, write_text
from oodlib.scoring.choices import OF_NOTEBOOK
from oodlib.scoring.thresholds import images_needed

ALWAYS = "always knn"  # the rule of a report that choosing is held against


def read_sentence(parts: dict[str, Part], skipped: pd.DataFrame) -> str:
    """Say how many images of how many classes were read, and how many files were skipped."""
    n = sum(len(part) for name, part in parts.items() if name != "ood")
    classes = parts["train"].images.classes
    of = f"{len(classes)} classes" if len(classes) > 1 else "one class"
    left_out = (
        f"{len(skipped)} files or folders were skipped (skipped.csv says why)" if len(skipped) else "none skipped"
    )
    return f"{n:,} photos of {of} were read; {left_out}."


def cluster_sentence(table: pd.DataFrame) -> str:
    """Say how well the classes stand apart, and which one stands apart least."""
    found = table[table.clustering == "kmeans"]
    if len(found) < 2:
        return "One class: there is nothing that it could stand apart from."
    purity = np.average(found.purity, weights=found.images)
    own = table[table.clustering == "labels"]
    least = own.loc[own.separation.idxmin()]
    return (
        f"Groups that k-means finds without the labels agree with the classes for {purity:.0%} of the photos; the "
        f"class that stands apart least is {least['class']} (separation {least.separation:.2f})."
    )


def unknown_sentence(ranking: pd.DataFrame, chosen: str) -> str:
    """Say how well unknown classes would be told from the known ones, and how that is known."""
    own = ranking[ranking.detector == chosen].iloc[0]
    if np.isnan(own.auroc):
        return f"Unknown classes: nobody can tell how well {chosen} finds them; that takes three classes or more."
    auroc = 100 * own.auroc
    return (
        f"Unknown classes: {chosen} tells them from known ones with an AUROC of {auroc:.0f} % (50 is chance), as "
        f"leaving out each class in turn shows: of a known and an unknown photo, {auroc:.0f} times in 100 the known "
        "one looks more normal."
    )


def regret_sentence() -> str:
    """Say what choosing as here has cost in the studies of this project, as their reports measured it."""
    said = []
    patterns = ("reported/*/report/regret.csv", "*/report/regret.csv")  # a study's own report, where there is one
    reports = {path.parents[1].name: path for pattern in patterns for path in resolve("outputs").glob(pattern)}
    for _, path in sorted(reports.items()):
        table = pd.read_csv(path)
        table = table[table.rule.isin([OF_NOTEBOOK, ALWAYS]) & table.group.isin(["near", "far"])]
        if OF_NOTEBOOK in set(table.rule):
            mean = table.groupby(["rule", "group"]).regret.mean()
            here, always = (
                " and ".join(f"{mean[rule, g]:.1f} ({g})" for g in ("near", "far") if (rule, g) in mean.index)
                for rule in (OF_NOTEBOOK, ALWAYS)
            )
            said.append(
                f"{path.parents[1].name}, {table.run.nunique()} runs: {here} AUROC points below the best of all "
                f"detectors, which nobody could have known; {ALWAYS}: {always}."
            )
    return "\n".join(said) or "No report of a study here has measured what choosing like this costs."


def promise(n_calibration: int, alpha: float) -> str:
    """Say whether so many calibration images can promise a false-alarm rate of at most alpha."""
    least = images_needed(alpha)
    if n_calibration >= least:
        return f"{n_calibration} calibration images: at most {100 * alpha:.4g} % of images like these are rejected."
    enough = math.ceil(1000 / (n_calibration + 1)) / 1000  # rounded down it would still be too little
    return (
        f"{n_calibration} calibration images are too few to promise {100 * alpha:.4g} %, which takes {least}: nothing "
        f"is rejected. Add images, or take alpha = {enough:.3f} or more."
    )


def rejection_sentence(table: pd.DataFrame) -> str:
    """Say what the threshold did on test images, and on OOD images where there are some."""
    said = {
        "test": "Of {images} test photos, which nothing has seen, {rejected} ({share:.1%}) are rejected; "
        "{low:.1%} to {high:.1%} is what chance allows.",
        "ood": "Of {images} unknown photos {rejected} ({share:.0%}) are rejected.",
    }
    return " ".join(said[row["part"]].format(**row) for row in table.to_dict("records"))


def promise_and_found(promised: str, table: pd.DataFrame) -> str:
    """Return the promise, and after it what the threshold did on OOD images, where there are some."""
    found = table[table.part == "ood"]
    return f"{promised} {rejection_sentence(found)}".strip()


def drift_sentence(drift: Drift, is_other: np.ndarray) -> str:
    """Say after how many other images (n,) bool of its stream a drift test raised its alarm."""
    if drift.alarm is None:
        return f"No alarm was raised among {len(is_other)} photos."
    return f"The alarm came at photo {drift.alarm}, after {is_other[: drift.alarm].sum()} photos of another kind."


def write_answer(folder: Path, *lines: str) -> str:
    """Write the lines that a hurried person needs to answer.txt; return them."""
    text = "\n".join(lines)
    write_text(folder / "answer.txt", f"{text}\n")
    return text
