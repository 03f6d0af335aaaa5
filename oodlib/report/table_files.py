"""Tables on disk: a table in; csv for programs, markdown and LaTeX for reading, out."""

import re
from pathlib import Path

import pandas as pd

from oodlib.files import write_text


def write_table(
    folder: Path, name: str, tidy: pd.DataFrame, readable: pd.DataFrame | dict[str, pd.DataFrame] | None = None
) -> str:
    """Write a table as csv, and the form for reading as markdown and LaTeX; return the markdown.

    The form for reading may be several tables by their titles.
    """
    tables = {"": tidy if readable is None else readable} if not isinstance(readable, dict) else readable
    write_text(folder / f"{name}.csv", tidy.to_csv(index=False, float_format="%.6g"))
    parts = [f"**{title}**\n\n" * bool(title) + markdown(table) for title, table in tables.items()]
    write_text(folder / f"{name}.md", "\n\n".join(parts) + "\n")
    latex = [f"% {title}\n" * bool(title) + latex_table(table) for title, table in tables.items()]
    write_text(folder / f"{name}.tex", "\n".join(latex))
    return "\n\n".join(parts)


def markdown(table: pd.DataFrame) -> str:
    """Return a table for reading as markdown."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def latex_table(table: pd.DataFrame) -> str:
    """Return a table for reading as LaTeX."""
    return table.map(_latex).rename(columns=_latex).to_latex(index=False)


def _latex(cell: object) -> str:
    text = re.sub(r"([%&#_$])", r"\\\1", str(cell)).replace("±", r"$\pm$")
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
