"""Paired comparisons: values of runs in; means and differences with t intervals, and corrected p-values, out.

Runs are paired by ID set, architecture and seed. Few pairs give wide intervals, and one pair gives none.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

PAIR = ["id_dataset", "arch", "seed"]
ROUNDING = 5e-4  # least standard error: values are kept with five digits, AUROC in points to 0.001


@dataclass(frozen=True)
class Estimate:
    """A mean over n runs or pairs, with its standard error, which one alone does not have (NaN)."""

    mean: float
    error: float
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided t interval; of one value it is the whole line."""
        if self.n < 2:
            return -np.inf, np.inf
        half = stats.t.ppf((1 + level) / 2, self.n - 1) * self.error
        return self.mean - half, self.mean + half

    def p(self, null: float = 0.0) -> float:
        """Return the two-sided p-value of the t test that the mean is `null`; NaN for one value."""
        if self.n < 2:
            return np.nan
        return float(2 * stats.t.sf(abs(self.mean - null) / self.error, self.n - 1))

    def text(self, p: float = np.nan, level: float = 0.95, form: str = "+.2f") -> str:
        """Return mean, n and interval for a sentence, with a corrected p-value where there is one."""
        low, high = self.interval(level)
        interval = f", {100 * level:.4g} % interval {low:{form}} to {high:{form}}" if self.n > 1 else ""
        return f"{self.mean:{form}} (n = {self.n}{interval}{'' if np.isnan(p) else f', Holm p = {p:.2g}'})"

    def brief(self, level: float = 0.95, form: str = "+.2f") -> str:
        """Return mean and interval as short as can be: "+1.20 [+0.90, +1.50; n = 3]"; of one value "+1.20 [n = 1]"."""
        low, high = self.interval(level)
        return f"{self.mean:{form}} [{f'{low:{form}}, {high:{form}}; ' if self.n > 1 else ''}n = {self.n}]"


def estimate(values: np.ndarray | pd.Series) -> Estimate | None:
    """Return the mean of values (n,), one a run; missing ones do not count. None where there is none."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None
    error = max(values.std(ddof=1) / np.sqrt(len(values)), ROUNDING) if len(values) > 1 else np.nan
    return Estimate(float(values.mean()), float(error), len(values))


def paired_difference(table: pd.DataFrame, value: str, first: str, second: str) -> Estimate | None:
    """Return `first` minus `second` of a per-run value, paired by ID set, architecture, seed; None without a pair."""
    by_objective = table.pivot_table(index=PAIR, columns="objective", values=value)
    if not {first, second} <= set(by_objective):
        return None
    return estimate(by_objective[first] - by_objective[second])


def holm(p_values: list[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method; a missing one stays missing."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]  # missing ones are sorted to the end
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()
