"""Figures: the text artefacts of a study in; matplotlib figures out, for light print, through seaborn.

Objectives always have the same colours, ID is always dark grey. Score figures are drawn from the 101 quantiles that a
run keeps. A figure of one seed shows the runs of the study's first architecture.
"""

import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO, StringIO
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from oodlib.data import load_images
from oodlib.files import write_atomically
from oodlib.provenance import class_names, display_name
from oodlib.ranks import Ranking
from oodlib.report import Results, choose, group_means, names_by_classes, of_classes
from oodlib.runs import slug

OBJECTIVE_NAMES = {"ce": "cross-entropy", "simclr": "SimCLR", "supcon": "SupCon", "joint": "joint", "cider": "CIDER"}
COLORS = dict(zip(OBJECTIVE_NAMES, sns.color_palette("colorblind"), strict=False))
ID_COLOR = "0.25"
MAIN = (  # the detectors of the main figure
    "labels/euclidean",
    "labels/cosine",
    "labels/mahalanobis",
    "labels/relative-mahalanobis",
    "labels/ssd",
    "kmeans-{classes}/cosine",
    "gmm-{classes}/cosine",
    "knn",
    "msp",
    "energy",
)
N_COLORS, PNG_DPI, MAX_WIDTH = 128, 120, 1400  # of saved pngs, the last in pixels
FONT = "font-family: 'DejaVu Sans', sans-serif; "  # as matplotlib writes it into each text of an svg
SVG_DPI = 72  # of what an svg holds as pixels


def use_style() -> None:
    """Set the style all figures share: white ground, readable type, ids that stay, so that an svg does too.

    Objectives that a plugin has added take the colours that are left.
    """
    if os.environ.get("OODLIB_PLUGINS"):
        from oodlib.objectives import OBJECTIVES

        free = sns.color_palette("colorblind")[len(OBJECTIVE_NAMES) :]
        COLORS.update(zip([name for name in OBJECTIVES if name not in OBJECTIVE_NAMES], cycle(free), strict=False))
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 90, "savefig.bbox": "tight", "svg.hashsalt": "oodlib", "svg.fonttype": "none"})
    plt.rcParams["font.sans-serif"] = ["DejaVu Sans", "sans-serif"]  # an svg names them all for each text


def save_figure(figure: Figure, folder: Path, name: str) -> Figure:
    """Write a figure as png, in a palette of N_COLORS, and svg; return it, so that a notebook shows it."""
    name = "_".join(slug(part) for part in name.split())
    write_atomically(folder / f"{name}.png", lambda path: _write_png(figure, path))
    write_atomically(folder / f"{name}.svg", lambda path: path.write_text(_svg(figure)))
    plt.close(figure)
    return figure


def _write_png(figure: Figure, path: Path) -> None:
    """Write a png of few colours: a third of the bytes, and hardly a difference to the eye."""
    drawn = BytesIO()
    dpi = min(PNG_DPI, MAX_WIDTH / figure.get_size_inches()[0])
    figure.savefig(drawn, format="png", dpi=dpi)
    path.write_bytes(_few_colors(drawn.getvalue(), "RGB"))


def _few_colors(png: bytes, mode: str) -> bytes:
    from PIL import Image

    smaller = BytesIO()
    with Image.open(BytesIO(png)) as image:
        image.convert(mode).quantize(N_COLORS, dither=Image.Dither.NONE).save(smaller, format="png", optimize=True)
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


def show_saved(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure and show the png that was written: drawn once, and as small in the notebook as on disk."""
    from IPython.display import Image, display

    save_figure(figure, folder, name)
    path = folder / f"{'_'.join(slug(part) for part in name.split())}.png"
    display(Image(path.read_bytes(), alt=name))


def objective_name(objective: str) -> str:
    """Return an objective's name for people."""
    return OBJECTIVE_NAMES.get(objective, objective)


def ood_colors(datasets: list[str]) -> dict[str, tuple]:
    """Return a colour for each OOD set, none of them an objective's."""
    return dict(zip(datasets, sns.color_palette("Set2", len(datasets)), strict=True))


def auroc_figure(results: Results) -> Figure:
    """Draw mean AUROC over near and over far sets, a row of panels an ID set: a point a run, a bar their mean.

    Of the detectors of MAIN that there are. A K that is the number of classes is called C.
    """
    shown = choose(results, [name for name in MAIN if _is_there(results, name)] or ["*"])
    shown = replace(shown, metrics=shown.metrics.assign(detector=names_by_classes(shown)))
    means = group_means(shown, ["auroc"])
    means["detector"] = means.detector.str.replace("{classes}", "C", regex=False)
    datasets, detectors, objectives = (
        list(dict.fromkeys(means[name])) for name in ("id_dataset", "detector", "objective")
    )
    size = (7.5, (0.1 * len(objectives) + 0.1) * len(detectors) * len(datasets) + 1.4)
    figure, axes = plt.subplots(
        len(datasets), 2, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for line, dataset in zip(axes, datasets, strict=True):
        for axis, group in zip(line, ("near", "far"), strict=True):
            part = means[(means.id_dataset == dataset) & (means.group == group)]
            _draw_rows(axis, part, detectors, objectives)
            axis.set_title(f"{display_name(dataset)}: {group} OOD")
    axes[0, 0].set(yticks=range(len(detectors)), yticklabels=detectors, ylim=(len(detectors) - 0.5, -0.5))
    for axis in axes[-1]:
        axis.set_xlabel("AUROC, %")
    handles = [plt.Line2D([], [], color=COLORS.get(name, "0.4"), marker="o", linestyle="none") for name in objectives]
    names = [objective_name(name) for name in objectives]
    figure.legend(handles, names, loc="outside lower center", ncol=len(names), frameon=False)
    return figure


def _is_there(results: Results, name: str) -> bool:
    return name in set(results.metrics.detector) | set(names_by_classes(results))


def _draw_rows(axis: Axes, table: pd.DataFrame, detectors: list[str], objectives: list[str]) -> None:
    """Draw AUROC of the detectors, a row each, in lanes of the objectives, with 50 % and lines between the rows."""
    for row, detector in enumerate(detectors):
        for lane, objective in enumerate(objectives):
            y = row + 0.8 * ((lane + 0.5) / len(objectives) - 0.5)
            values = 100 * table[(table.detector == detector) & (table.objective == objective)].auroc
            if len(values):
                color = COLORS.get(objective, "0.4")
                axis.plot(values, [y] * len(values), "o", color=color, markersize=4, alpha=0.5, markeredgewidth=0)
                axis.plot(values.mean(), y, "|", color=color, markersize=9, markeredgewidth=2)
        axis.axhline(row + 0.5, color="0.85", linewidth=0.8, zorder=0)
    axis.axvline(50, color="0.2", linewidth=1.1, linestyle="--", zorder=1)
    axis.grid(visible=False, axis="y")


def draw_projection(axis: Axes, table: pd.DataFrame, id_dataset: str) -> None:
    """Draw the projected test embeddings of one run, ID in grey over OOD in colour; up to 12 classes are named."""
    inside = table[table.dataset == id_dataset]
    if inside.label.nunique() <= 12:
        names = class_names(id_dataset)
        for label, members in inside.groupby("label"):
            name = names[label] if names else label
            text = axis.text(members.x.median(), members.y.median(), name, ha="center", va="center", weight="bold")
            text.set(zorder=5, path_effects=[withStroke(linewidth=3, foreground="white")])
    axis.set_rasterization_zorder(4.5)  # thousands of points: as circles they would make a large svg
    points = {"linewidth": 0}
    axis.scatter(
        inside.x,
        inside.y,
        s=9,
        color=ID_COLOR,
        alpha=0.6,
        label=f"{display_name(id_dataset)} (ID)",
        zorder=4,
        **points,
    )
    for name, color in ood_colors([name for name in dict.fromkeys(table.dataset) if name != id_dataset]).items():
        outside = table[table.dataset == name]
        axis.scatter(outside.x, outside.y, s=11, color=[color], alpha=0.7, label=display_name(name), zorder=3, **points)


def projection_figure(results: Results, id_dataset: str, seed: int) -> Figure:
    """Draw ID and OOD test embeddings, a panel an objective, in the plane that parts the training classes."""
    table = _of_seed(results.projection, id_dataset, seed)
    objectives = list(dict.fromkeys(table.objective))
    size = (4.6 * len(objectives), 4.8)
    figure, axes = plt.subplots(1, len(objectives), figsize=size, squeeze=False, layout="constrained")
    for axis, objective in zip(axes[0], objectives, strict=True):
        part = table[table.objective == objective]
        draw_projection(axis, part, id_dataset)
        axis.set(
            title=objective_name(objective),
            xticks=[],
            yticks=[],
            xlabel="first discriminant",
            ylabel="second discriminant",
        )
    handles, names = axes[0][0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncol=min(len(names), 5), frameon=False)
    for handle in legend.legend_handles:
        handle.set(sizes=[40], alpha=1)
    return figure


def _of_seed(table: pd.DataFrame, id_dataset: str, seed: int) -> pd.DataFrame:
    """Return the rows of one ID set, seed and (the first) architecture. Raises ValueError for an unknown seed."""
    table = table[table.id_dataset == id_dataset]
    if seed not in set(table.seed):
        raise ValueError(f"no run of {id_dataset!r} with seed {seed}; known: {', '.join(map(str, set(table.seed)))}")
    table = table[table.seed == seed]
    return table[table.arch == table.arch.iloc[0]]


def _panels(results: Results, detector: str, id_dataset: str, seed: int) -> tuple[pd.DataFrame, list[str], list[str]]:
    table = _of_seed(results.scores, id_dataset, seed)
    known = list(dict.fromkeys(table.detector))
    if detector not in known:
        raise ValueError(f"scores of {detector!r} are not kept for figures; known: {', '.join(known)}")
    table = table[table.detector == detector]
    return table, list(dict.fromkeys(table.objective)), [d for d in dict.fromkeys(table.dataset) if d != id_dataset]


def histogram_figure(results: Results, detector: str, id_dataset: str, seed: int) -> Figure:
    """Draw the densities of the ID and OOD scores of one detector, a panel an objective; right is more normal.

    Scores are shown as minus the logarithm of the distance, in which near and far both have room.
    """
    table, objectives, oods = _panels(results, detector, id_dataset, seed)
    colors = {id_dataset: ID_COLOR} | ood_colors(oods)
    size = (4.6 * len(objectives), 3.6)
    figure, axes = plt.subplots(1, len(objectives), figsize=size, squeeze=False, layout="constrained")
    for axis, objective in zip(axes[0], objectives, strict=True):
        part = table[table.objective == objective]
        part = part.assign(normality=-np.log10(np.maximum(-part.score, 1e-9)))
        for name, color in colors.items():
            values = part[part.dataset == name].normality
            sns.kdeplot(
                values,
                ax=axis,
                color=color,
                gridsize=100,
                fill=name == id_dataset,
                alpha=0.4 if name == id_dataset else 1,
                label=display_name(name),
            )
        axis.set(title=objective_name(objective), xlabel=f"−log₁₀ distance ({detector})", ylabel="density", yticks=[])
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=min(len(names), 5), frameon=False)
    return figure


def roc_figure(results: Results, detector: str, id_dataset: str, seed: int) -> Figure:
    """Draw ROC curves, ID positive: share of ID kept against OOD kept, a panel an OOD set, a line an objective."""
    table, objectives, oods = _panels(results, detector, id_dataset, seed)
    size = (3.2 * len(oods), 4.2)
    figure, axes = plt.subplots(1, len(oods), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, ood in zip(axes[0], oods, strict=True):
        for objective in objectives:
            part = table[table.objective == objective]
            inside, outside = (np.sort(part[part.dataset == name].score) for name in (id_dataset, ood))
            thresholds = np.sort(np.concatenate([inside, outside, [-np.inf, np.inf]]))[::-1]
            kept = [1 - np.searchsorted(scores, thresholds, side="left") / len(scores) for scores in (inside, outside)]
            axis.plot(kept[1], kept[0], color=COLORS.get(objective), label=objective_name(objective))
        axis.axhline(0.95, color="0.6", linewidth=0.8, linestyle=":")
        axis.set(title=display_name(ood), xlabel="OOD kept (false positives)", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axis.set(xticks=[0, 0.25, 0.5, 0.75, 1], xticklabels=["0", "", "0.5", "", "1"])
    axes[0][0].set_ylabel("ID kept (true positives)")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=len(names), frameon=False)
    figure.suptitle(f"{detector}, seed {seed}; dotted: 95 % of ID kept")
    return figure


def separation_figure(results: Results, id_dataset: str) -> Figure:
    """Draw box plots by objective: global separation of each class, and purity of each k-means cluster, all seeds."""
    clusters = results.clusters[results.clusters.id_dataset == id_dataset]
    parts = {
        "global separation of classes": of_classes(clusters, "labels", "global_separation"),
        "purity of as many k-means clusters": of_classes(clusters, "kmeans", "cluster_purity"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (name, part) in zip(axes, parts.items(), strict=True):
        part = part.assign(objective=part.objective.map(objective_name))
        palette = {objective_name(key): color for key, color in COLORS.items()}
        common = {"data": part, "x": "objective", "y": "value", "hue": "objective", "palette": palette, "ax": axis}
        sns.boxplot(**common, legend=False, showfliers=False, boxprops={"alpha": 0.5})
        _draw_beside(axis, part, palette)
        axis.set(title=f"{name} ({display_name(id_dataset)})", xlabel="", ylabel="")
    return figure


def _draw_beside(axis: Axes, table: pd.DataFrame, palette: dict[str, tuple]) -> None:
    """Draw a point a value over the box of its objective, spread to the sides the same way every time."""
    spread = np.random.default_rng(0)
    for place, (objective, part) in enumerate(table.groupby("objective", sort=False)):
        x = place + spread.uniform(-0.25, 0.25, len(part))
        color = palette.get(objective, "0.4")
        axis.scatter(x, part.value, s=7, color=[color], alpha=0.7, linewidth=0, zorder=3, rasterized=True)


def history_figure(results: Results) -> Figure:
    """Draw the held-out nearest-neighbour accuracy against training seconds, by the median epoch, a line a run."""
    history = results.history
    history = history.assign(elapsed=history.epoch * history.groupby("run").seconds.transform("median"))
    datasets = list(dict.fromkeys(history.id_dataset))
    size = (5.5 * len(datasets), 3.6)
    figure, axes = plt.subplots(1, len(datasets), figsize=size, squeeze=False, layout="constrained")
    for axis, dataset in zip(axes[0], datasets, strict=True):
        common = {"x": "elapsed", "y": "knn_accuracy", "hue": "objective", "units": "run", "estimator": None}
        style = {"palette": COLORS, "linewidth": 1.2, "marker": "o", "markersize": 4, "markeredgewidth": 0}
        sns.lineplot(history[history.id_dataset == dataset], **common, **style, ax=axis)
        axis.set(title=f"{dataset}, a line a run", xlabel="training seconds", ylabel="held-out k-NN accuracy")
        handles, names = axis.get_legend_handles_labels()
        axis.legend(handles, [objective_name(name) for name in names], loc="lower right")
    return figure


def rank_figure(found: Ranking | None, n_shown: int = 12) -> Figure:
    """Draw the critical-difference diagram of the best combinations: joined are those that Nemenyi does not part.

    Their mean ranks, and the critical difference, are those among all. Colours are those of the objectives.
    """
    import scikit_posthocs

    if found is None:
        return nothing_figure("no two combinations are in every block: nothing to rank")
    shown = found.ranks.head(n_shown)
    apart = np.abs(np.subtract.outer(shown.to_numpy(), shown.to_numpy())) > found.critical_difference
    figure, axis = plt.subplots(figsize=(9, 0.28 * len(shown) + 1.2))
    scikit_posthocs.critical_difference_diagram(
        shown,
        pd.DataFrame(np.where(apart, 0.0, 1.0), shown.index, shown.index),  # as p-values
        ax=axis,
        label_fmt_left="{label} ({rank:.1f})  ",
        label_fmt_right="  {label} ({rank:.1f})",
        color_palette={name: COLORS.get(name.split()[0], "0.4") for name in shown.index},
    )
    axis.grid(visible=False)
    axis.set_title(
        f"{found.group} OOD: mean ranks of the best {len(shown)} of {len(found.ranks)} combinations, "
        f"{len(found.blocks)} blocks; joined: nearer than the critical difference, {found.critical_difference:.1f}",
        fontsize=10,
    )
    return figure


def nothing_figure(reason: str) -> Figure:
    """Draw the reason why there is nothing to draw."""
    figure, axis = plt.subplots(figsize=(9, 0.6))
    axis.set_title(reason, fontsize=10)
    axis.axis("off")
    plt.close(figure)
    return figure


def thumbnail_figures(results: Results, detector: str, seed: int, data_root: str = "") -> Iterator[tuple[str, Figure]]:
    """Yield (ID set and objective, figure) of the most and least normal images, by one detector and seed.

    Image sets that are not on this machine are left out, and said so.
    """
    extremes = results.extremes[results.extremes.detector == detector]
    extremes = pd.concat([_of_seed(extremes, name, seed) for name in dict.fromkeys(extremes.id_dataset)])
    images = {}
    for name in dict.fromkeys(extremes.dataset):
        try:
            images[name] = load_images(name, "test", data_root or None).images
        except (OSError, ValueError) as error:
            print(f"no thumbnails of {name}: {error}")
    for (id_dataset, objective), part in extremes.groupby(["id_dataset", "objective"], sort=False):
        if id_dataset in images:
            yield (
                f"{id_dataset}_{objective}",
                _thumbnails(part, images, f"{objective_name(objective)}, {detector}, seed {seed}"),
            )


def _thumbnails(extremes: pd.DataFrame, images: dict[str, np.ndarray], title: str) -> Figure:
    sets = [name for name in dict.fromkeys(extremes.dataset) if name in images]
    rows = [(name, extreme) for name in sets for extreme in ("most", "least")]
    n_columns = int(extremes["rank"].max()) + 1
    size = (0.75 * n_columns + 1.6, 0.78 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, extreme) in zip(axes.flat, rows, strict=True):
        chosen = extremes[(extremes.dataset == name) & (extremes.extreme == extreme)].sort_values("rank")
        show_images(axis, images[name][chosen["index"]], f"{name}\n{extreme} normal", n_columns)
    figure.suptitle(title, fontsize=11)
    return figure


def show_images(axis: Axes, images: np.ndarray, label: str, n: int) -> None:
    """Show up to n images (m, h, w[, c]) uint8 side by side in an axis with room for n, with a label at the left."""
    axis.imshow(strip(images, n), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    sns.despine(ax=axis, left=True, bottom=True)
    axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)


def strip(images: np.ndarray, n: int) -> np.ndarray:
    """Return one image of up to n images (m, h, w[, c]) uint8 from left to right, with white between them and after.

    An axis for each would look the same, but a hundred axes take seconds to draw.
    """
    height, width = images.shape[1:3]
    step = width + max(1, width // 8)
    shown = np.full((height, n * step - (step - width), *images.shape[3:]), 255, dtype=np.uint8)
    for i, image in enumerate(images[:n]):
        shown[:, i * step : i * step + width] = image
    return shown
