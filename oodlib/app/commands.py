"""Commands for your images: images makes a detector and one HTML page of a folder, score judges photos by it."""

import argparse
import csv
import html
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from oodlib.files import project_root, resolve, write_text
from oodlib.progress import BATCH, Progress, say

if TYPE_CHECKING:
    from oodlib.app.model import OODModel

NOTEBOOK, PAGE, ANSWER = "06_your_images", "your_images.html", "answer.txt"
COLUMNS = ("path", "class", "normality", "p_value", "accepted", "skipped")
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


def run_command(arguments: list[str]) -> int:
    """Do what the arguments ask for, images … or score …; return the exit status.

    It is 1 where no photo could be judged, and 2 where the request is wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "images":
            make_page(options)
            judged = True
        else:
            judged = score(options.detector, options.photos, options.csv) > 0
        sys.stdout.flush()
        return 0 if judged else 1
    except BrokenPipeError:  # whoever reads standard output has enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 0
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        say(f"oodlib: {error}")
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m oodlib")
    commands = parser.add_subparsers(dest="command")
    images = commands.add_parser("images", help="make a detector of a folder of photos, and a page about them")
    images.add_argument("folder", help="a folder with one sub-folder of photos a class, or the name of an image set")
    images.add_argument("--unknown", default="", metavar="FOLDER", help="photos that are to be rejected")
    images.add_argument("--weights", default="auto", help="a file of weights, pretrained, or '' to train here")
    images.add_argument("--backbone", default="", metavar="NAME", help="an architecture; default: what suits")
    images.add_argument("--alpha", type=float, default=0.05, help="the share of photos like these that may be rejected")
    images.add_argument("--out", default="outputs/your_images", metavar="DIR", help="where everything is written")
    scores = commands.add_parser("score", help="judge photos by a detector that images has made: a table as CSV")
    scores.add_argument("detector", metavar="DIR", help="the --out of python -m oodlib images")
    scores.add_argument("photos", nargs="+", metavar="PHOTO_OR_FOLDER")
    scores.add_argument("--csv", metavar="FILE", help="where the table is written; default: standard output")
    return parser


def make_page(options: argparse.Namespace) -> None:
    """Run notebook 06 on a folder, write the page, print where it is and the lines of the answer."""
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    out, start = Path(options.out).expanduser(), time.monotonic()
    out = resolve(out) if options.out == "outputs/your_images" else out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if (out / "detector.safetensors").exists():
        say(f"the detector in {out} is replaced; --out DIR writes elsewhere")
    executed = out / f"{NOTEBOOK}.partial.ipynb"
    parameters = {"backbone": options.backbone, "alpha": options.alpha, "output": str(out)}
    parameters |= {"id_folder": _where(options.folder), "ood_folder": _where(options.unknown)}
    parameters["weights"] = _where(options.weights)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # of the notebook's kernel
    say("a minute or two: reading the photos, embedding them, choosing a detector, drawing what it found")
    try:
        execute_notebook(
            str(project_root() / "notebooks" / f"{NOTEBOOK}.ipynb"),
            str(executed),
            parameters,
            kernel_name="python3",
            progress_bar=False,
            stderr_file=sys.stderr,
            extra_arguments=["--IPKernelApp.log_level=50"],
        )
    except PapermillExecutionError as error:
        executed.unlink()
        raise ValueError(error.evalue) from error
    executed = executed.replace(out / f"{NOTEBOOK}.ipynb")
    answer = (out / ANSWER).read_text().splitlines()
    write_page(executed, out / PAGE, Path(parameters["id_folder"]).name, answer)
    say(f"done in {time.monotonic() - start:.0f} s")
    print(out / PAGE, *answer, sep="\n")


def write_page(executed: Path, path: Path, title: str, answer: list[str]) -> None:
    """Write what an executed notebook says and shows, without code and warnings, below a title and the answer."""
    import nbformat
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


def _where(name: str) -> str:
    """Return the absolute path of a file or folder that is there, as the shell means it; any other name as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name and path.exists() else name


def score(detector: str, photos: list[str], table: str | None = None) -> int:
    """Write class, normality, p-value and decision of each photo as CSV, and sums on standard error.

    Return how many photos were judged.
    """
    from oodlib.app.model import OODModel
    from oodlib.device import default_device

    folder = Path(detector).expanduser()
    model = OODModel.load(folder / "encoder.safetensors", folder / "detector.safetensors").to(default_device())
    paths, start, counts = list(_photos(photos)), time.monotonic(), Counter()
    with open(table, "w", newline="") if table else nullcontext(sys.stdout) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in _rows(model, paths):
            writer.writerow(row)
            counts[row[5] or ("accepted" if row[4] else "rejected")] += 1
    seconds = time.monotonic() - start
    judged = counts["accepted"] + counts["rejected"]
    say(
        f"{len(paths):,} {'photo' if len(paths) == 1 else 'photos'}: "
        + f"{counts['accepted']:,} accepted, {counts['rejected']:,} rejected"
        + (f" ({counts['rejected'] / judged:.1%})" if judged else "")
        + f", {len(paths) - judged:,} skipped; {len(paths) / max(seconds, 1e-9):.0f} photos a second"
    )
    for reason in counts.keys() - {"accepted", "rejected"}:
        say(f"  skipped {counts[reason]:,}: {reason}")
    return judged


def _photos(names: list[str]) -> Iterator[str]:
    """Yield each file that is named, and those in a folder that is named, hidden ones left out."""
    from oodlib.data.folders import list_files

    for name in names:
        if Path(name).is_dir():
            yield from (path for path, reason in list_files(name) if reason != "hidden")
        else:
            yield name


def _rows(model: "OODModel", paths: list[str]) -> Iterator[tuple]:
    from oodlib.data.folders import printable

    progress = Progress("photos", len(paths))
    for first, (found, failed) in zip(range(0, len(paths), BATCH), model.predict_files(paths), strict=True):
        judged = zip(found.class_name, found.normality, found.p_value, found.accepted, strict=True)
        batch = paths[first : first + BATCH]
        for i, path in enumerate(map(printable, batch)):
            if i in failed:
                yield (path, "", "", "", "", failed[i])
            else:
                name, normality, p_value, accepted = next(judged)
                yield (path, name, f"{normality:.6g}", f"{p_value:.4f}", bool(accepted), "")
        progress.step(len(batch))
