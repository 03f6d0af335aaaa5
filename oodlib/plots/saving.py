"""Figures on disk: a matplotlib figure in; a png and an svg, small and the same each time, out."""

import re
from base64 import b64decode, b64encode
from io import BytesIO, StringIO
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oodlib.files import slug, write_atomically

N_COLORS, PNG_DPI, MAX_WIDTH = 128, 120, 1400  # of saved pngs, the last in pixels
FONT = "font-family: 'DejaVu Sans', sans-serif; "  # as matplotlib writes it into each text of an svg
SVG_DPI = 72  # of what an svg holds as pixels


def save_figure(figure: Figure, folder: Path, name: str) -> Figure:
    """Write a figure as png, in a palette of N_COLORS, and svg; return it, so that a notebook shows it."""
    write_atomically(_path(folder, name, "png"), lambda path: _write_png(figure, path))
    write_atomically(_path(folder, name, "svg"), lambda path: path.write_text(_svg(figure)))
    plt.close(figure)
    return figure


def show_saved(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure and show the png that was written: drawn once, and as small in the notebook as on disk."""
    from IPython.display import Image, display

    save_figure(figure, folder, name)
    display(Image(_path(folder, name, "png").read_bytes(), alt=name))


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{'_'.join(slug(part) for part in name.split())}.{kind}"


def _write_png(figure: Figure, path: Path) -> None:
    """Write a png of few colours: a third of the bytes, and hardly a difference to the eye."""
    drawn = BytesIO()
    dpi = min(PNG_DPI, MAX_WIDTH / figure.get_size_inches()[0])
    figure.savefig(drawn, format="png", dpi=dpi)
    path.write_bytes(_few_colors(drawn.getvalue(), "RGB"))


def _few_colors(png: bytes, mode: str) -> bytes:
    """Return a png in N_COLORS; where nothing shines through they cover all there are, so that rare ones stay apart."""
    from PIL import Image

    covering = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 1} if mode == "RGB" else {}
    smaller = BytesIO()
    with Image.open(BytesIO(png)) as image:
        few = image.convert(mode).quantize(N_COLORS, dither=Image.Dither.NONE, **covering)
        few.save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def _svg(figure: Figure) -> str:
    """Return a figure as svg that stays the same, a third of matplotlib's: coordinates to a tenth of a point, one font.

    Ids that nothing refers to, and indentation, are left out.
    """
    drawn = StringIO()
    figure.savefig(drawn, format="svg", dpi=SVG_DPI, metadata={"Date": None})
    parts = re.split(r'(xlink:href="data:[^"]*"|<style.*?</style>|>[^<]*<)', drawn.getvalue(), flags=re.S)
    parts[::2] = [re.sub(r"(?<![\w#.])-?\d+\.\d{2,}", _shorter, part) for part in parts[::2]]  # the others are texts
    text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", "".join(parts))  # that turns by nothing
    text = re.sub(r'(?<="data:image/png;base64,)[^"]*', _smaller, text)
    text = re.sub(r' id="[a-zA-Z.]+(2d)?_\d+"', "", text)
    text = text.replace(FONT, "").replace("<svg ", f'<svg style="{FONT.strip()}" ', 1)
    return re.sub(r"\n\s+", "\n", text)


def _smaller(png: re.Match) -> str:
    return b64encode(_few_colors(b64decode(png[0]), "RGBA")).decode()


def _shorter(number: re.Match) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")
