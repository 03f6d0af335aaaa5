"""What all figures share: names and colours of objectives, a style for light print, a grid of panels, legends.

Objectives always have the same colours, ID is always dark grey.
"""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oodlib.files import slug, write_atomically

N_COLORS, PNG_DPI, MAX_WIDTH = 128, 100, 1200  # of saved pngs, the last in pixels


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


OBJECTIVE_NAMES = {
    "ce": "cross-entropy",
    "simclr": "SimCLR",
    "supcon": "SupCon",
    "joint": "joint",
    "cider": "CIDER",
    "logitnorm": "LogitNorm",
}
ID_COLOR = "0.25"
PAGE_WIDTH = 5  # inches, of a figure on the page of somebody's images, readable on a phone
_PALETTE = [sns.color_palette("colorblind")[k] for k in (0, 1, 2, 9, 4, 7, 3, 5, 6, 8)]  # its three oranges apart
_COLORS = dict(zip(OBJECTIVE_NAMES, _PALETTE, strict=False))


def use_style() -> None:
    """Set the style all figures share: white ground, readable type."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 90, "savefig.bbox": "tight"})


def objective_name(objective: str) -> str:
    """Return an objective's name for people."""
    return OBJECTIVE_NAMES.get(objective, objective)


def objective_color(objective: str) -> tuple[float, float, float]:
    """Return an objective's colour; one that a plugin has added gets the next that is free, and keeps it."""
    return _COLORS.setdefault(objective, _PALETTE[len(_COLORS) % len(_PALETTE)])


def objective_colors(objectives) -> dict[str, tuple[float, float, float]]:
    """Return the colours of several objectives, in the order in which they first come."""
    return {name: objective_color(name) for name in dict.fromkeys(objectives)}


def ood_colors(datasets: list[str]) -> dict[str, tuple]:
    """Return a colour for each OOD set, none of them an objective's."""
    return dict(zip(datasets, sns.color_palette("Set2", len(datasets)), strict=True))


def panel_grid(
    n: int, width: float = 3.4, height: float = 3.2, n_columns: int = 3, **share
) -> tuple[Figure, list[Axes]]:
    """Return a figure and n axes in rows of up to n_columns, so that it stays readable at the width of a page."""
    n_columns = 2 if n == 4 and n_columns == 3 else min(n, n_columns)  # no panel stands alone in its row
    n_rows = -(-n // n_columns)
    size = (width * n_columns, height * n_rows + 0.5)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained", **share)
    for axis in axes.flat[n:]:
        axis.axis("off")
    return figure, list(axes.flat[:n])


def label_rows(axes: list[Axes], label: str) -> None:
    """Label the y axis of the first panel of each row."""
    for axis in axes:
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(label)


def name_rows(axis: Axes, names: list[str]) -> None:
    """Give each row of an axis its name, from the top down; panels that share the axis are labelled at the edge."""
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axis.label_outer()


def legend_below(figure: Figure, handles: dict[str, plt.Line2D], n_columns: int = 5) -> None:
    """Put a legend below all panels, of handles by their names."""
    n_columns = min(len(handles), n_columns)
    figure.legend(handles.values(), handles, loc="outside lower center", ncol=n_columns, frameon=False)


def objective_handles(objectives) -> dict[str, plt.Line2D]:
    """Return a dot for the legend by the name of each objective."""
    return {
        objective_name(name): plt.Line2D([], [], color=color, marker="o", linestyle="none")
        for name, color in objective_colors(objectives).items()
    }


def nothing_figure(reason: str) -> Figure:
    """Draw the reason why there is nothing to draw."""
    figure, axis = plt.subplots(figsize=(9, 0.6))
    axis.set_title(reason, fontsize=10)
    axis.axis("off")
    plt.close(figure)
    return figure
