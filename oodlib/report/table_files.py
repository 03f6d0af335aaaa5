"""Tables on disk: csv for programs, markdown for reading."""

from pathlib import Path

import pandas as pd

from oodlib.files import write_text


def write_table(
    folder: Path,
    name: str,
    tidy: pd.DataFrame,
    readable: pd.DataFrame | dict[str, pd.DataFrame] | None = None,
    digits: int = 6,
) -> str:
    """Write a table as csv, floats to so many digits, and its form for reading as markdown; return the markdown.

    The form for reading may be several tables by their titles.
    """
    tables = readable if isinstance(readable, dict) else {"": tidy if readable is None else readable}
    write_text(folder / f"{name}.csv", tidy.to_csv(index=False, float_format=f"%.{digits}g"))
    text = "\n\n".join(f"**{title}**\n\n" * bool(title) + markdown(table) for title, table in tables.items())
    write_text(folder / f"{name}.md", text + "\n")
    return text


def markdown(table: pd.DataFrame) -> str:
    """Return a table for reading as markdown."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
