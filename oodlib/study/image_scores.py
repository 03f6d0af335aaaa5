"""The scores of every test image of a run, kept beside its tables: so one can ask which images a detector is wrong on.

They stay with who ran the study; what is published of them is the table of extremes.
"""

import numpy as np
import pandas as pd

from oodlib.files import write_atomically
from oodlib.study.run import IMAGE_SCORES, Run

N_EXTREMES = 12


def save_image_scores(run: Run, scores: dict[str, dict[str, np.ndarray]]) -> None:
    """Write scores (n,) of images by detector and set, in the order of each set's test split, in float32.

    All detectors have the same sets. The file holds arrays alone, no pickles.
    """
    sets = next(iter(scores.values()))
    arrays = {
        "detectors": np.array(list(scores)),  # (k,)
        "sets": np.array(list(sets)),  # (s,)
        "sizes": np.array([len(values) for values in sets.values()]),  # (s,)
        "scores": np.stack([np.concatenate(list(by_set.values())) for by_set in scores.values()]).astype(np.float32),
    }
    write_atomically(run.path / IMAGE_SCORES, lambda temporary: np.savez(temporary, **arrays))


def load_image_scores(run: Run) -> pd.DataFrame:
    """Return a row for each test image of a run: dataset, index in its test split, and the score by each detector.

    Higher is more normal. Raises FileNotFoundError where step evaluate is not done here, ValueError for a file that is
    cut short or foreign.
    """
    path = run.path / IMAGE_SCORES
    try:
        with np.load(path, allow_pickle=False) as file:
            detectors, sets, sizes, scores = (file[name] for name in ("detectors", "sets", "sizes", "scores"))
        about = {"dataset": np.repeat(sets.astype(object), sizes), "index": np.concatenate([*map(np.arange, sizes)])}
        return pd.DataFrame(about | dict(zip(map(str, detectors), scores, strict=True)))
    except FileNotFoundError:
        raise
    except Exception as error:  # a file cut short fails in zipfile, zlib or NumPy, each with errors of its own
        raise ValueError(f"{path} holds no scores of images, or is cut short: {error}") from error


def extreme_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return, of `load_image_scores`, each set's least and most normal images, from the extreme inwards.

    Columns: detector, dataset, extreme (least or most), rank from 0, index, score.
    """
    tables = []
    for detector in scores.columns[2:]:
        for dataset, part in scores.groupby("dataset", sort=False):
            ascending = part.sort_values(detector, kind="stable")[["index", detector]]
            for extreme, chosen in (("least", ascending[:N_EXTREMES]), ("most", ascending[::-1][:N_EXTREMES])):
                about = {"detector": detector, "dataset": dataset, "extreme": extreme, "rank": np.arange(len(chosen))}
                tables.append(pd.DataFrame(about | {"index": chosen["index"], "score": chosen[detector]}))
    return pd.concat(tables, ignore_index=True)


def most_wrong(scores: pd.DataFrame, detector: str, id_dataset: str) -> pd.DataFrame:
    """Return the rows of `extreme_table` on which a detector is most wrong.

    These are the ID images that look least normal to it, and of every OOD set those that look most normal.
    """
    extremes = extreme_table(scores[["dataset", "index", detector]])
    return extremes[(extremes.extreme == "least") == (extremes.dataset == id_dataset)].reset_index(drop=True)
