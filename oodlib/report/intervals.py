"""Intervals: what the runs of a study kept of the uncertainty of one run's AUROC in; DeLong intervals by detector out.

They tell how far the test images alone leave an AUROC open. Where there are several seeds, their sd tells more.
"""

import pandas as pd

from oodlib.report.results import Results, detector_names

COLUMNS = ["run", "detector", "ood_dataset", "low", "high"]


def auroc_intervals(results: Results) -> pd.DataFrame:
    """Return the 95 % intervals of AUROC that there are, of global thresholds: run, detector, ood_dataset, low, high.

    From intervals.csv or, of runs that have none of AUROC there, from metrics.csv.
    """
    found = _kept(results.intervals)
    if "auroc_low" in results.metrics:
        own = results.metrics[results.metrics.threshold.eq("global") & results.metrics.auroc_low.notna()]
        own = own.rename(columns={"auroc_low": "low", "auroc_high": "high"})[COLUMNS]
        found = pd.concat([found, own[~own.run.isin(found.run)]], ignore_index=True)
    return found


def _kept(intervals: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of intervals.csv on AUROC: a row names its detector, or its parts, and its metric or measure."""
    table = intervals.rename(columns={"metric": "measure"})
    table = table[table.measure == "auroc"] if "measure" in table else table.iloc[:0]
    if table.empty:
        return pd.DataFrame(columns=COLUMNS)
    if "threshold" in table:
        table = table[table.threshold == "global"]
    if "distance" in table:
        table = table.assign(detector=detector_names(table))
    return table[COLUMNS].reset_index(drop=True)
