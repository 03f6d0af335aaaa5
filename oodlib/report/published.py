"""Published figures: what others reach, in; beside the same detectors of a study, with the settings of both, out.

Only figures read in a stored copy of their source are here, none from memory. Settings differ, so equality is claimed
nowhere: a small network after few epochs lies below, and the table says how far.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from oodlib.report.results import Results, group_means, mean_sd, over_seeds

FAR_SETS = ("svhn", "lsun", "isun", "places365")  # that papers on CIFAR report too, and are not always at hand


@cache
def figures() -> pd.DataFrame:
    """Return the published figures, in percent: id_dataset, against, objective, detector, method, published, setting.

    `against` is one OOD set, a mean over near or far sets, FPR95 where it says so and AUROC else, or ID accuracy;
    objective and detector are what they are called here.
    """
    return pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=False)


def comparison_table(results: Results) -> pd.DataFrame:
    """Return published figures beside this study's, in percent, mean ± sd over seeds, with n, and both settings.

    AUROC, or FPR95 where it says so, against one OOD set or a mean over near or far sets; then ID accuracy. Their near
    sets are the other CIFAR and Tiny ImageNet, their far sets MNIST, SVHN, Textures and Places365 (OpenOOD) or five
    of their own (KNN); ours are those of the study.
    """
    keys = ["id_dataset", "against", "objective", "detector"]
    ours = over_seeds(_own_values(results), [*keys, "arch"], "value").reset_index()
    table = figures().merge(ours, on=keys).merge(_own_settings(results), on=["id_dataset", "objective", "arch"])
    cells = [mean_sd(mean, sd) for mean, sd in zip(table["mean"], table.sd, strict=True)]
    table = table.assign(**{"this study": cells, "their setting": table.setting})
    return table[[*keys, "method", "published", "this study", "n", "our setting", "their setting"]]


def _own_values(results: Results) -> pd.DataFrame:
    """Return AUROC and FPR95 by OOD set and by group, and ID accuracy, in percent: one row a run and figure."""
    means = group_means(results, ["auroc", "fpr95"])
    both = [means.assign(against=means.group + " mean"), results.metrics.assign(against=results.metrics.ood_dataset)]
    auroc = [table.assign(value=100 * table.auroc) for table in both]
    fpr95 = [table.assign(value=100 * table.fpr95, against=table.against + ", FPR95") for table in both]
    accuracy = results.runs.assign(against="ID accuracy", detector="", value=100 * results.runs.id_accuracy)
    columns = ["id_dataset", "arch", "objective", "seed", "against", "detector", "value"]
    return pd.concat([table[columns] for table in (*auroc, *fpr95, accuracy)])


def _own_settings(results: Results) -> pd.DataFrame:
    """Return network, epochs and ID accuracy of each setting in words."""
    found = results.runs.groupby(["id_dataset", "objective", "arch"])[["epochs", "id_accuracy"]]
    found = found.agg({"epochs": "max", "id_accuracy": "mean"}).reset_index()
    words = [
        f"{arch}, {epochs} epochs, ID accuracy {100 * accuracy:.1f} %"
        for arch, epochs, accuracy in found[["arch", "epochs", "id_accuracy"]].itertuples(index=False)
    ]
    return found.assign(**{"our setting": words}).drop(columns=["epochs", "id_accuracy"])


def absent_sets(results: Results, id_dataset: str) -> list[str]:
    """Return which far sets of papers on CIFAR a study of it lacks; of another ID set, none."""
    if id_dataset not in set(figures().id_dataset):
        return []
    tested = " ".join(results.metrics[results.metrics.id_dataset == id_dataset].ood_dataset.unique()).lower()
    return [name for name in FAR_SETS if name not in tested]
