"""Means over seeds and over groups of OOD sets: with sd, with a t interval, and the cells that show them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.report.results import SETTING, Results

ROUNDING = 5e-4  # least standard error: values are kept with five digits, AUROC in points to 0.001


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its two-sided 95 % t interval, which for one seed is the whole line."""

    mean: float
    low: float
    high: float
    n: int


def estimate(values: np.ndarray | pd.Series) -> Estimate | None:
    """Return the mean of values (n,), one a seed, and its interval; missing ones do not count. None without any."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return None
    if n == 1:
        return Estimate(float(values[0]), -np.inf, np.inf, 1)
    half = stats.t.ppf(0.975, n - 1) * max(values.std(ddof=1) / np.sqrt(n), ROUNDING)
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n)


def best_of_others(points: pd.DataFrame) -> pd.DataFrame:
    """Return, for each row of points, the column that the other rows find best, and its value in this row.

    points: one row a seed, one column a candidate, higher is better, NaN for what was not run. What is best on a seed
    itself is best there by luck as well; this is not. One row alone chooses for itself. Columns: chosen, value.
    """
    rows = []
    for place, (_, own) in enumerate(points.iterrows()):
        others = points[np.arange(len(points)) != place] if len(points) > 1 else points
        means = others[own.dropna().index].mean().dropna()
        rows.append((means.idxmax(), own[means.idxmax()]) if len(means) else (None, np.nan))
    return pd.DataFrame(rows, index=points.index, columns=["chosen", "value"])


def over_seeds(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Return mean, sd (n - 1) and n of a column for each group, groups in the order they come in."""
    found = table.groupby(by, sort=False)[value].agg(["mean", "std", "count"])
    return found.rename(columns={"std": "sd", "count": "n"})


def group_means(results: Results, measures: list[str]) -> pd.DataFrame:
    """Return the means of measures over the near and over the far sets: one row a run, detector and group.

    A detector that lacks a set of the group has no row: a mean over other sets does not compare.
    """
    n_sets = results.decisions.groupby(["id_dataset", "group"]).ood_dataset.nunique().rename("n_sets")
    keys = [*SETTING, "seed", "detector", "group"]
    groups = results.metrics[results.metrics.group != "sanity"].groupby(keys, sort=False)
    means = groups[measures].mean().assign(n_own=groups.ood_dataset.nunique()).reset_index()
    means = means.join(n_sets, on=["id_dataset", "group"])
    return means[means.n_own == means.n_sets].drop(columns=["n_own", "n_sets"]).reset_index(drop=True)


def mean_sd(mean: float, sd: float, low: float = np.nan, high: float = np.nan) -> str:
    """Return "mean ± sd" with one decimal; for one run, which has no sd, "mean [low, high]" where they are known.

    Rounded from six digits, so that a table that is kept with six reads the same.
    """
    mean = float(f"{mean:.6g}")
    mean = 0.0 if abs(mean) < 0.05 else mean  # no "-0.0"
    if pd.notna(sd):
        return f"{mean:.1f} ± {sd:.1f}"
    return f"{mean:.1f}" if pd.isna(low) else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def cells(table: pd.DataFrame) -> list[str]:
    """Return "mean ± sd" for each row of a table that `over_seeds` made."""
    return [mean_sd(mean, sd) for mean, sd in zip(table["mean"], table.sd, strict=True)]


def beside(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return tables of mean, sd and n with the same index as one: its keys, n, and a column of cells for each table."""
    first = next(iter(parts.values()))
    columns = {name: cells(part.reindex(first.index)) for name, part in parts.items()}
    return first.index.to_frame(index=False).assign(n=first.n.to_numpy(), **columns)
