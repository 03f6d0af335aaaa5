"""Gallery: pictures of your images that a person should look at, and the table behind them.

These are the most and the least normal images, labels that the neighbours contradict, the same image in two parts or
under two labels, OOD images that pass. `gallery_table` finds them, `gallery_figure` shows them. No figure is wider than
a page on a phone makes readable.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from oodlib.app.folder import HELD_OUT, Part
from oodlib.app.workflow import together
from oodlib.arrays import to_unit_norm
from oodlib.files import slug, write_atomically
from oodlib.plots.style import PAGE_WIDTH, PNG_DPI, nothing_figure
from oodlib.scoring.detector import Detector
from oodlib.scoring.evaluation import Embedded
from oodlib.scoring.knn import kneighbors

KINDS = {  # and what to say where there are none
    "most normal": "no held-out images",
    "least normal": "no held-out images",
    "mislabelled": "no image has a majority of neighbours of another class",
    "duplicate": "no image is in two parts, or under two labels",
    "wrongly accepted": "there is no OOD image that is accepted",
}
N_SHOWN, N_COLUMNS = 9, 3
N_VOTES, N_CANDIDATES = 10, 5  # neighbours that judge a label, that may be the same image
N_COMPARED = 2000  # nearest pairs whose pixels are compared
SAME_PIXELS, OF_CONTRAST = 3.0, 0.15  # mean difference of the same image saved twice, at most: of 255, of its contrast
TITLE = 16  # characters


def gallery_table(detector: Detector, data: dict[str, Embedded], parts: dict[str, Part]) -> pd.DataFrame:
    """Return the images to look at: kind (see KINDS), rank, part, index in it, class, file, p_value, note.

    The p-value is that of held-out and OOD images; of calibration images it is that among the others, and of training
    images, which the detector knows, it is nan. Each duplicate takes two rows, one after the other.
    """
    sets = {name: embedded.z for name, embedded in data.items()}
    p_values = {name: detector.p_values(z) for name, z in sets.items() if name not in ("train", "calibration")}
    p_values |= {"train": np.full(len(sets["train"]), np.nan), "calibration": _p_among_others(detector, sets)}
    held_out = [(name, i) for name in HELD_OUT if name in sets for i in range(len(sets[name]))]
    scores = detector.score_samples(together(data, HELD_OUT)[0])
    order = np.argsort(scores, kind="stable")
    found = {
        "most normal": [(*held_out[i], "") for i in order[::-1][:N_SHOWN]],
        "least normal": [(*held_out[i], "") for i in order[:N_SHOWN]],
        "mislabelled": _mislabelled(data, parts["train"].images.classes),
        "duplicate": _duplicates(data, parts),
        "wrongly accepted": _accepted(detector, sets),
    }
    rows = []
    for kind, images in found.items():
        for rank, (name, i, note) in enumerate(images):
            about = {"kind": kind, "rank": rank, "part": name, "index": int(i), "class": class_of(parts[name], i)}
            rows.append(about | {"file": parts[name].names[i], "p_value": p_values[name][i], "note": note})
    return pd.DataFrame(rows)


def _p_among_others(detector: Detector, sets: dict[str, np.ndarray]) -> np.ndarray:
    """Return the p-value (n,) of each calibration image among the other ones."""
    scores = detector.score_samples(sets["calibration"])
    return np.searchsorted(np.sort(scores), scores, side="right") / len(scores)  # (1 + those at most as high) / n


def class_of(part: Part, i: int) -> str:
    """Return the name of the class that image i of a part is labelled with, empty where it has no label."""
    label = part.images.labels[i]
    return part.images.classes[label] if label >= 0 else ""


def other_class_share(z: np.ndarray, y: np.ndarray, n_neighbors: int = N_VOTES) -> tuple[np.ndarray, np.ndarray]:
    """Return the share (n,) of each image's nearest neighbours that one other class has at most, and that class (n,).

    z (n, d), y (n,) int in 0 … C - 1; neighbours by cosine, the image itself left out. In [0, 1]; above one half the
    majority contradicts the label.
    """
    unit, k = to_unit_norm(z), min(n_neighbors, len(z) - 1)
    _, places = kneighbors(unit, unit, k + 1)
    itself = places == np.arange(len(z))[:, None]  # (n, k + 1)
    itself[~itself.any(axis=1), -1] = True  # crowded out by its duplicates
    votes = np.zeros((len(z), int(y.max()) + 1))
    np.add.at(votes, (np.arange(len(z))[:, None], y[places]), ~itself)
    votes[np.arange(len(z)), y] = -1
    return np.maximum(votes.max(axis=1), 0) / k, votes.argmax(axis=1)


def _mislabelled(data: dict[str, Embedded], classes: tuple[str, ...]) -> list[tuple[str, int, str]]:
    names = [name for name in ("train", *HELD_OUT) if name in data]
    places = [(name, i) for name in names for i in range(len(data[name].z))]
    shares, others = other_class_share(*together(data, names))
    order = np.argsort(-shares, kind="stable")[:N_SHOWN]
    return [(*places[i], f"→ {classes[others[i]]} {shares[i]:.0%}") for i in order if shares[i] > 0.5]


def _duplicates(data: dict[str, Embedded], parts: dict[str, Part]) -> list[tuple[str, int, str]]:
    """Return pairs that are neighbours in the embedding and the same in their pixels.

    They are of two parts, where test figures become too good, or of one part under two labels, one of which is wrong.
    The N_COMPARED nearest pairs are looked at.
    """
    pairs, names = [], list(data)
    for b, second in enumerate(names):
        for first in names[: b + 1]:
            if parts[first].images.images.shape[1:] == parts[second].images.images.shape[1:]:
                pairs += _near_pairs(data, first, second)
    pairs = sorted(pairs)[:N_COMPARED]
    compared = [(_difference(parts, *pair), *pair) for _, *pair in pairs]
    found = sorted((pair for pair in compared if pair[0] is not None), key=lambda pair: pair[0])
    return [(*image, f"differ by {apart:.1f}") for apart, *pair in found[:N_SHOWN] for image in pair]


def _near_pairs(data: dict[str, Embedded], first: str, second: str) -> list[tuple]:
    """Return (distance, (first, place), (second, place)) of images of two parts that may be the same image.

    Of one part they are those under two labels, each pair once.
    """
    k = min(N_CANDIDATES, len(data[first].z))
    distances, places = kneighbors(to_unit_norm(data[second].z), to_unit_norm(data[first].z), k)  # (m, k)
    mine = np.broadcast_to(np.arange(len(places))[:, None], places.shape)
    wanted = np.ones(places.shape, dtype=bool)
    if first == second:
        wanted = (places < mine) & (data[first].y[places] != data[first].y[mine])
    order = np.argsort(distances[wanted], kind="stable")[:N_COMPARED]
    found = zip(distances[wanted][order], places[wanted][order], mine[wanted][order], strict=True)
    return [(float(apart), (first, int(i)), (second, int(j))) for apart, i, j in found]


def _difference(parts: dict[str, Part], *pair: tuple[str, int]) -> float | None:
    """Return the mean difference of two images, None where they are not the same."""
    x, y = (parts[name].images.images[i].astype(np.int16) for name, i in pair)
    apart = float(np.abs(x - y).mean())
    return apart if apart <= min(SAME_PIXELS, OF_CONTRAST * _contrast(y)) else None


def _contrast(image: np.ndarray) -> float:
    """Return the standard deviation of the pixels around the mean colour: of clear sky hardly anything."""
    return float((image - image.mean(axis=(0, 1))).std())


def _accepted(detector: Detector, sets: dict[str, np.ndarray]) -> list[tuple[str, int, str]]:
    if "ood" not in sets:
        return []
    scores, accepted = detector.score_samples(sets["ood"]), detector.predict(sets["ood"]) == 1
    order = np.argsort(-scores, kind="stable")
    return [("ood", i, "") for i in order if accepted[i]][:N_SHOWN]


def gallery_figure(table: pd.DataFrame, parts: dict[str, Part], kind: str) -> Figure:
    """Draw the images of one kind with class, file and what is to be said of each."""
    chosen = table[table.kind == kind]
    if chosen.empty:
        return nothing_figure(KINDS[kind])
    n_columns = 4 if kind == "duplicate" else N_COLUMNS  # two pairs a row
    n_rows = -(-len(chosen) // n_columns)
    side = PAGE_WIDTH / n_columns
    size = (PAGE_WIDTH, (side + 0.6) * n_rows + 0.4)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, chosen.itertuples(), strict=False):
        axis.imshow(parts[row.part].pictures(np.array([row.index]))[0], cmap="gray", vmin=0, vmax=255)
        note = row.note or f"p = {row.p_value:.3f}"
        axis.set_title("\n".join(map(_short, (row[5], row.file.rpartition("/")[2], note))), fontsize=9)
    figure.suptitle(kind, fontsize=11)
    plt.close(figure)
    return figure


def save_gallery(figure: Figure, folder: Path, kind: str) -> Figure:
    """Write a gallery as png in all its colours; return it, so that a notebook shows it."""
    path = folder / f"{slug(kind)}.png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=PNG_DPI))
    return figure


def _short(text: str) -> str:
    return text if len(text) <= TITLE else f"{text[: TITLE // 2 - 1]}…{text[-TITLE // 2 :]}"
