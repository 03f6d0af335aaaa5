"""Tables on disk: the csv holds the numbers, markdown and LaTeX are what is read."""

import re

import pandas as pd

from oodlib.report import results as report
from oodlib.report.table_files import write_table


def test_tables_are_written_as_csv_markdown_and_latex(make_results, tmp_path):
    tidy = report.main_table(make_results())
    text = write_table(tmp_path / "report", "main", tidy, report.wide(tidy))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "report" / "main.csv"), tidy, check_dtype=False, atol=1e-3)
    markdown = (tmp_path / "report" / "main.md").read_text().splitlines()
    assert markdown == text.splitlines()
    readable = report.wide(tidy)
    assert [part.strip() for part in markdown[2].strip("|").split("|")] == readable.iloc[0].tolist()
    assert len(markdown) == 2 + len(readable)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"main.csv", "main.md", "main.tex"}


def test_tables_of_several_parts_have_titles(tmp_path):
    parts = {"one": pd.DataFrame({"a": ["x|y"]}), "two": pd.DataFrame({"b": [2]})}
    text = write_table(tmp_path, "t", pd.DataFrame({"c": [1.0]}), parts)
    assert text == "**one**\n\n| a |\n| --- |\n| x\\|y |\n\n**two**\n\n| b |\n| --- |\n| 2 |"
    assert (tmp_path / "t.md").read_text() == text + "\n"
    assert (tmp_path / "t.tex").read_text().count("tabular") == 4
    assert (tmp_path / "t.csv").read_text() == "c\n1\n"


def test_latex_escapes_what_latex_reads_as_its_own(tmp_path):
    table = pd.DataFrame(
        {"ID accuracy %": ["**97.2 ± 1.3**"], "id_dataset": ["a_b & c #1"], "reason": ["95 % interval"]}
    )
    write_table(tmp_path, "t", table)
    text = (tmp_path / "t.tex").read_text()
    assert r"ID accuracy \% & id\_dataset & reason" in text
    assert r"\textbf{97.2 $\pm$ 1.3} & a\_b \& c \#1 & 95 \% interval" in text
    assert not re.search(r"(?<!\\)[%_#]", text)
