"""Published figures beside the same detectors of a study, of the same class of network.

They stand in published.csv, each read in a stored copy of its source, none from memory. Settings differ, so equality is
claimed nowhere: a small network after few epochs lies below, and the table says how far, at which accuracy.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from oodlib.data.catalogue import display_name
from oodlib.report.means import cells, group_means, over_seeds
from oodlib.report.results import Results

FAR_SETS = ("svhn", "lsun", "isun", "places365")  # that papers on CIFAR report too, and are not always at hand
KEYS = ["id_dataset", "objective", "detector", "against"]


@cache
def figures() -> pd.DataFrame:
    """Return the published figures, in percent.

    Columns: id_dataset; against: one OOD set, "near mean", "far mean" or "ID accuracy"; objective and detector, called
    as here; method, as its authors call it; published; source and network.
    """
    return pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=False)


def with_accuracy() -> pd.DataFrame:
    """Return the published AUROC with the column accuracy, ID accuracy in percent, NaN where its source has none."""
    known = figures()
    accuracy = known[known.against == "ID accuracy"]
    keys = ["id_dataset", "objective", "source", "network"]
    return known[known.against != "ID accuracy"].join(accuracy.set_index(keys).published.rename("accuracy"), on=keys)


def comparison_table(results: Results) -> pd.DataFrame:
    """Return published AUROC beside this study's, near and far OOD: mean ± sd over seeds, in percent; eight columns.

    Pretrained networks stand beside published pretrained ones, others beside others. Published near sets are the other
    CIFAR and Tiny ImageNet, far sets MNIST, SVHN, Textures and Places365, or one set that the method names; ours are
    those of the study.
    """
    theirs = with_accuracy()
    pretrained = results.runs.groupby("id_dataset").pretrained.agg(lambda own: own.astype(bool).any())
    theirs = theirs[theirs.network.str.contains("pretrained") == theirs.id_dataset.map(pretrained)]
    ours = over_seeds(_own_values(results), [*KEYS, "arch"], "value")
    ours = ours.assign(here=cells(ours)).reset_index()[[*KEYS, "arch", "here"]]
    accuracy = over_seeds(results.runs.assign(value=100 * results.runs.id_accuracy), [*KEYS[:2], "arch"], "value")
    accuracy = accuracy.assign(own=[f"{cell}, n = {n}" for cell, n in zip(cells(accuracy), accuracy.n, strict=True)])
    both = theirs.merge(ours, on=KEYS).join(accuracy.own, on=[*KEYS[:2], "arch"])
    rows = {}
    for row in both.sort_values("id_dataset", kind="stable").itertuples():
        alone = "" if row.against.endswith(" mean") else f", {display_name(row.against)} alone"
        method = f"{row.objective}: {row.method}{alone}"
        source = f"{row.source}, {row.network}".removeprefix(", ")
        group = "far" if row.against.startswith("far") else "near"
        cell = rows.setdefault((display_name(row.id_dataset), method, source, row.arch), {})
        cell |= {f"{group}, published": f"{row.published:.1f}", f"{group}, here": row.here}
        known = "" if pd.isna(row.accuracy) else f"{row.accuracy:.1f}"
        cell |= {"ID accuracy, published / here": f"{known or '–'} / {row.own}"}
    columns = [f"{group}, {whose}" for group in ("near", "far") for whose in ("published", "here")]
    table = pd.DataFrame(rows.values(), columns=[*columns, "ID accuracy, published / here"], dtype=object).fillna("")
    for place, name in enumerate(("ID set", "method", "source")):
        table.insert(place, name, [key[place] for key in rows])
    return table


def _own_values(results: Results) -> pd.DataFrame:
    """Return AUROC by OOD set and by group, in percent: one row a run, detector and set or group."""
    means = group_means(results, ["auroc"])
    both = [means.assign(against=means.group + " mean"), results.metrics.assign(against=results.metrics.ood_dataset)]
    return pd.concat([table.assign(value=100 * table.auroc)[[*KEYS, "arch", "seed", "value"]] for table in both])


def absent_sets(results: Results, id_dataset: str) -> list[str]:
    """Return which far sets of papers on CIFAR a study of it lacks; for another ID set, none."""
    if id_dataset not in set(figures().id_dataset):
        return []
    tested = " ".join(results.metrics[results.metrics.id_dataset == id_dataset].ood_dataset.unique()).lower()
    return [name for name in FAR_SETS if name not in tested]
