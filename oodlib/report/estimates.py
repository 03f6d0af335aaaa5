"""Estimates: a mean over seeds with its t interval, and choices that are judged on the seeds that did not make them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

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
