"""What the page says and shows: the numbers that notebook 06 finds, in sentences and in figures.

No figure is wider than a page on a phone makes readable.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from oodlib.app.folder import Part
from oodlib.arrays import to_unit_norm
from oodlib.files import write_text
from oodlib.plots.style import ID_COLOR, PAGE_WIDTH, nothing_figure, ood_colors
from oodlib.scoring.detector import Detector
from oodlib.scoring.drift import Drift
from oodlib.scoring.evaluation import Embedded
from oodlib.scoring.thresholds import images_needed

LEARNED = " The encoder, trained here, has learned these classes: of truly unknown ones expect it to find fewer."


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


def unknown_sentence(ranking: pd.DataFrame, chosen: str, alpha: float, trained_here: bool) -> str:
    """Say how well unknown classes would be told from the known ones, how that is known, and where it is too good."""
    own = ranking[ranking.detector == chosen].iloc[0]
    if np.isnan(own.auroc):
        needed = "three classes or more, of a dozen photos each"
        return f"Unknown classes: nobody can tell how well {chosen} finds them; that takes {needed}."
    auroc = 100 * own.auroc
    return (
        f"Unknown classes: {chosen} tells them from known ones with an AUROC of {auroc:.0f} % (50 is chance: of a "
        f"known and an unknown photo, {auroc:.0f} times in 100 the known one looks more normal). With "
        f"{100 * alpha:.4g} % false alarms it finds {own.caught:.0%} of their photos, and of single classes "
        f"{own.least_caught:.0%} to {own.most_caught:.0%}, as leaving out each class in turn shows."
        f"{LEARNED if trained_here else ''}"
    )


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


def plane_figure(data: dict[str, Embedded], parts: dict[str, Part]) -> Figure:
    """Draw test embeddings, coloured by class, and OOD ones, at unit norm, in the training embeddings' main plane.

    The plane is that of the first two principal directions; up to 20 classes are named. Few points are drawn larger.
    """
    from sklearn.decomposition import PCA

    main = PCA(n_components=2, random_state=0).fit(to_unit_norm(data["train"].z))
    shown = [name for name in ("test", "ood") if name in data]
    plane = {name: main.transform(to_unit_norm(data[name].z)) for name in shown}  # (n, 2)
    size = float(np.clip(6000 / sum(map(len, plane.values())), 8, 40))
    classes, y = parts["test"].images.classes, data["test"].y
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 4.4), layout="constrained")
    points = {"s": size, "linewidth": 0, "alpha": 0.8, "rasterized": True}
    colors = np.array(sns.color_palette("husl", len(classes)))
    axis.scatter(*plane["test"].T, c=colors[y], label="test, by class", **points)
    if "ood" in plane:
        axis.scatter(*plane["ood"].T, s=size, c="black", marker="x", linewidth=0.8, label="OOD", rasterized=True)
    for label in np.unique(y) if len(classes) <= 20 else []:
        text = axis.text(*np.median(plane["test"][y == label], axis=0), classes[label], ha="center", weight="bold")
        text.set(color=colors[label] * 0.6, zorder=4, path_effects=[withStroke(linewidth=3, foreground="white")])
    axis.set(xticks=[], yticks=[], xlabel="first principal direction", ylabel="second principal direction")
    axis.legend(loc="best")
    plt.close(figure)
    return figure


def ranking_figure(ranking: pd.DataFrame, chosen: str) -> Figure:
    """Draw the AUROC of each detector against classes that are left out in turn, best first, and which is chosen."""
    if ranking.auroc.isna().any():
        return nothing_figure(f"too few classes or images to leave one out: {ranking.detector[0]}, chosen beforehand")
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 0.3 * len(ranking) + 0.9), layout="constrained")
    axis.plot(100 * ranking.auroc, ranking.detector, "o", color=ID_COLOR)
    own = ranking[ranking.detector == chosen]
    axis.plot(100 * own.auroc, own.detector, "o", color="C2", markersize=10, label="chosen")
    axis.legend()
    axis.invert_yaxis()
    axis.set(xlabel="AUROC % against the classes left out")
    plt.close(figure)
    return figure


def score_figure(detector: Detector, data: dict[str, Embedded]) -> Figure:
    """Draw histograms of the scores of test and OOD images, with the threshold; right is more normal.

    A score is shown as its distance from the threshold in units of the ID images' spread, on a scale that is linear
    near the threshold and logarithmic far from it.
    """
    rejects = np.isfinite(detector.offset_)
    zero = detector.offset_ if rejects else detector.reference_.min()
    spread = np.subtract(*np.quantile(detector.reference_, [0.75, 0.25])) / 1.35 or 1.0
    shown = {name: detector.score_samples(data[name].z) for name in ("test", "ood") if name in data}
    shown = {name: np.arcsinh((scores - zero) / spread) for name, scores in shown.items()}
    colors = {"test": ID_COLOR} | ood_colors(["ood"])
    edges = np.histogram_bin_edges(np.concatenate(list(shown.values())), bins=40)
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 3.2), layout="constrained")
    for name, values in shown.items():
        weights = np.full(len(values), 100 / len(values))
        axis.hist(values, edges, weights=weights, color=colors[name], alpha=0.6, label=f"{name} ({len(values)})")
    label = "threshold: left is rejected" if rejects else "lowest calibration score: nothing is rejected"
    axis.axvline(0, color="black", linestyle="--", linewidth=1.2, label=label)
    ticks = np.array([-1000, -100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100])
    ticks = ticks[(np.arcsinh(ticks) >= edges[0]) & (np.arcsinh(ticks) <= edges[-1])]
    axis.set_xticks(np.arcsinh(ticks), ticks)
    axis.set(xlabel="score above the threshold, in spreads of the calibration scores", ylabel="% of the images")
    axis.legend()
    plt.close(figure)
    return figure


def drift_figure(drift: Drift, is_ood: np.ndarray, what: str = "OOD image") -> Figure:
    """Draw the capital of a drift test along a stream, its alarm's level, and which images (n,) bool are `what`."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 3.2), layout="constrained")
    axis.plot(drift.log_capital / np.log(10), color="C0", label="evidence of drift (capital)")
    line = {"color": "black", "linestyle": "--", "linewidth": 1.2}
    axis.axhline(-np.log10(drift.alpha), **line, label=f"alarm: {1 / drift.alpha:g}")
    places = np.flatnonzero(is_ood)
    axis.plot(places, np.zeros(len(places)), "|", color="C1", markersize=12, label=what)
    if drift.alarm is not None:
        axis.axvline(drift.alarm, color="C3", linewidth=1.2, label=f"alarm at image {drift.alarm}")
    axis.set(xlabel="image of the stream", ylabel="log₁₀ of the capital", xlim=(0, len(is_ood)))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncol=2, frameon=False)
    plt.close(figure)
    return figure
