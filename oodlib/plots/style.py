"""What all figures share: names and colours of objectives, a style for light print, a grid of panels, legends.

Objectives always have the same colours, ID is always dark grey.
"""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OBJECTIVE_NAMES = {
    "ce": "cross-entropy",
    "simclr": "SimCLR",
    "supcon": "SupCon",
    "joint": "joint",
    "cider": "CIDER",
    "logitnorm": "LogitNorm",
}
ID_COLOR = "0.25"
_PALETTE = sns.color_palette("colorblind")
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
