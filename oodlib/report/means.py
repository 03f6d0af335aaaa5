"""Means over seeds and over groups of OOD sets, and the cells that show them."""

import numpy as np
import pandas as pd

from oodlib.report.results import SETTING, Results


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
