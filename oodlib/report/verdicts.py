"""Verdicts on the claims: a tidy table, a row a claim, ID set and group of OOD sets, and its form for reading."""

import pandas as pd

from oodlib.data.catalogue import display_name
from oodlib.report.claims import CLAIMS, COLUMNS, NEEDS
from oodlib.report.results import Results


def verdicts(results: Results, shown: Results, detector: str) -> pd.DataFrame:
    """Return the verdicts on C1 to C5: the columns of COLUMNS, numbers in the unit that `number` names.

    C3 and C4 are over all detectors of `shown`; C2 and C5 compare objectives with `detector`. Both are named
    beforehand. A claim that a study cannot test has one row that says so.
    """
    if detector not in set(results.metrics.detector):
        raise ValueError(f"unknown detector {detector!r}; known: {', '.join(dict.fromkeys(results.metrics.detector))}")
    rows = []
    for claim, (_, test, over_shown) in CLAIMS.items():
        found = test(shown if over_shown else results, detector) or [{"verdict": "not tested", "note": NEEDS[claim]}]
        rows += [{"claim": claim} | row for row in found]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(**{name: table[name].fillna("") for name in ("id_dataset", "group", "number", "where")})


def reading_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return verdicts for reading: claim, verdict, the number that decides, where to look; a row a claim."""
    rows = []
    for claim, part in found.groupby("claim", sort=False):
        verdicts_, numbers = [], []
        for row in part.itertuples():
            name = "" if row.id_dataset == "all" else display_name(row.id_dataset)
            place = f"{name} {row.group}".strip()
            verdicts_.append(f"{place}: {row.verdict}" if place else row.verdict)
            interval = f"[{row.low:.2f}, {row.high:.2f}; n = {row.n:.0f}]" if row.n > 1 else "[n = 1]"
            number = f"{row.number}: {row.value:.2f} {interval}, margin {row.margin:g} ({row.note})"
            numbers.append(f"{place}: {number}" if row.number else row.note)
        where = ", ".join(dict.fromkeys(name for names in part["where"] for name in names.split(", ") if name))
        rows.append((f"{claim}: {CLAIMS[claim][0]}", "<br>".join(verdicts_), "<br>".join(numbers), where))
    return pd.DataFrame(rows, columns=["claim", "verdict", "the number that decides", "where to look"])
