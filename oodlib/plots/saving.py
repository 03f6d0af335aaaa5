"""Figures on disk: pngs, small and the same each time."""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oodlib.files import slug, write_atomically

N_COLORS, PNG_DPI, MAX_WIDTH = 128, 120, 1400  # of saved pngs, the last in pixels


def save_figure(figure: Figure, folder: Path, name: str) -> Figure:
    """Write a figure as png, in a palette of N_COLORS; return it, so that a notebook shows it."""
    write_atomically(_path(folder, name), lambda path: _write_png(figure, path))
    plt.close(figure)
    return figure


def show_saved(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure and show the png that was written: drawn once, and as small in the notebook as on disk."""
    from IPython.display import Image, display

    save_figure(figure, folder, name)
    display(Image(_path(folder, name).read_bytes(), alt=name))


def _path(folder: Path, name: str) -> Path:
    return folder / f"{'_'.join(slug(part) for part in name.split())}.png"


def _write_png(figure: Figure, path: Path) -> None:
    """Write a png of few colours: a third of the bytes, and hardly a difference to the eye.

    The palette covers all colours there are, so that rare ones stay apart.
    """
    from PIL import Image

    drawn = BytesIO()
    dpi = min(PNG_DPI, MAX_WIDTH / figure.get_size_inches()[0])
    figure.savefig(drawn, format="png", dpi=dpi)
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(
            N_COLORS, dither=Image.Dither.NONE, method=Image.Quantize.MAXCOVERAGE, kmeans=1
        )
        few.save(path, format="png", optimize=True)
