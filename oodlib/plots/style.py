"""What all figures share: names and colours of objectives, a style for light print, a figure of nothing and its reason.

Objectives always have the same colours, ID is always dark grey.
"""

import os
from itertools import cycle

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

OBJECTIVE_NAMES = {
    "ce": "cross-entropy",
    "simclr": "SimCLR",
    "supcon": "SupCon",
    "joint": "joint",
    "cider": "CIDER",
    "logitnorm": "LogitNorm",
}
COLORS = dict(zip(OBJECTIVE_NAMES, sns.color_palette("colorblind"), strict=False))
ID_COLOR = "0.25"


def use_style() -> None:
    """Set the style all figures share: white ground, readable type, ids that stay, so that an svg does too.

    Objectives that a plugin has added take the colours that are left.
    """
    if os.environ.get("OODLIB_PLUGINS"):
        from oodlib.encoders.objectives import OBJECTIVES

        free = sns.color_palette("colorblind")[len(OBJECTIVE_NAMES) :]
        COLORS.update(zip([name for name in OBJECTIVES if name not in OBJECTIVE_NAMES], cycle(free), strict=False))
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 90, "savefig.bbox": "tight", "svg.hashsalt": "oodlib", "svg.fonttype": "none"})
    plt.rcParams["font.sans-serif"] = ["DejaVu Sans", "sans-serif"]  # an svg names them all for each text


def objective_name(objective: str) -> str:
    """Return an objective's name for people."""
    return OBJECTIVE_NAMES.get(objective, objective)


def ood_colors(datasets: list[str]) -> dict[str, tuple]:
    """Return a colour for each OOD set, none of them an objective's."""
    return dict(zip(datasets, sns.color_palette("Set2", len(datasets)), strict=True))


def nothing_figure(reason: str) -> Figure:
    """Draw the reason why there is nothing to draw."""
    figure, axis = plt.subplots(figsize=(9, 0.6))
    axis.set_title(reason, fontsize=10)
    axis.axis("off")
    plt.close(figure)
    return figure
