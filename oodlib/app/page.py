"""The page: an executed notebook 06 becomes one HTML file that needs nothing else, for a laptop and for a phone."""

import html
from pathlib import Path

import nbformat

from oodlib.files import write_text

LEFT_OUT = "program"  # tag of cells that are for programmers
STYLE = """
:root { color-scheme: light }
body { font: 17px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 46rem; margin: 0 auto;
  padding: 1rem 1rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.2 } h2 { font-size: 1.3rem; margin-top: 2.5rem } .anchor-link { display: none }
img, svg { max-width: 100%; height: auto; display: block; margin: .8rem 0 }
pre { white-space: pre-wrap; font: inherit; margin: .6rem 0; padding: .6rem .9rem; background: #f4f6f8;
  border-left: 4px solid #7a9cc6 }
code { font-size: .9em; background: #f4f6f8 }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .85rem; margin: .8rem 0;
  overflow-wrap: normal; border: 0 }
th, td { text-align: right; padding: .25rem .6rem; border: 0; border-bottom: 1px solid #ddd }
.answer { background: #eef5ee; border-left: 5px solid #4f9d69; padding: .3rem 1rem .3rem 1.8rem }
.answer li { margin: .5rem 0 }
"""


def write_page(executed: Path, path: Path, title: str, answer: list[str]) -> None:
    """Write what an executed notebook says and shows, without code and warnings, below a title and the answer."""
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, as_version=4)
    kept = [cell for cell in notebook.cells[1:] if LEFT_OUT not in cell.metadata.get("tags", [])]
    for cell in kept:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.cells = kept
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(notebook)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}'
    items = "".join(f"<li>{html.escape(line)}</li>" for line in answer)
    top = f'<h1>{html.escape(title)}: what does not belong?</h1><ul class="answer">{items}</ul>'
    named = f"<title>{html.escape(title)}</title>"
    write_text(
        path, f'<!DOCTYPE html><html lang="en"><head>{head}</style>{named}</head><body>{top}{body}</body></html>'
    )
