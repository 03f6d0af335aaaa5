"""Published figures: what others reach, in; beside the same detectors of a study, with the settings of both, out.

Only figures read in a stored copy of their source are here, none from memory. Settings differ, so equality is claimed
nowhere: a small network after few epochs lies below, and the table says how far.
"""

import pandas as pd

from oodlib.report import Results, group_means, mean_sd, over_seeds

OPENOOD = "OpenOOD 1.5, ResNet-18, CE, 100 epochs"
FIGURES = [  # ID set, group, our objective, our detector, their method, AUROC in percent, source and setting
    *(
        (id_dataset, group, "ce", detector, method, value, OPENOOD)
        for detector, method, values in [
            ("msp", "MSP", (88.0, 90.7, 80.3, 77.8)),
            ("labels/mahalanobis", "MDS", (84.2, 89.7, 58.7, 69.4)),
            ("labels/relative-mahalanobis", "RMDS", (89.8, 92.2, 80.2, 82.9)),
            ("knn", "KNN", (90.6, 93.0, 80.2, 82.4)),
            ("vim", "ViM", (88.7, 93.5, 75.0, 81.7)),
        ]
        for (id_dataset, group), value in zip(
            [("cifar10", "near"), ("cifar10", "far"), ("cifar100", "near"), ("cifar100", "far")], values, strict=True
        )
    ),
    ("cifar10", "near", "cider", "knn", "CIDER + KNN", 90.7, "OpenOOD 1.5, ResNet-18"),
    ("cifar10", "far", "cider", "knn", "CIDER + KNN", 94.7, "OpenOOD 1.5, ResNet-18"),
    ("cifar100", "near", "cider", "knn", "CIDER + KNN", 73.1, "OpenOOD 1.5, ResNet-18"),
    ("cifar100", "far", "cider", "knn", "CIDER + KNN", 80.5, "OpenOOD 1.5, ResNet-18"),
]
FAR_SETS = ("svhn", "lsun", "isun", "places365")  # that papers on CIFAR report too, and are not always at hand
COLUMNS = ["id_dataset", "group", "objective", "detector", "method", "published", "setting"]


def comparison_table(results: Results) -> pd.DataFrame:
    """Return the published AUROC beside this study's, in percent, mean ± sd over seeds, with n, and both settings.

    Their far sets are MNIST, SVHN, Textures and Places365, their near sets the other CIFAR and Tiny ImageNet.
    """
    published = pd.DataFrame(FIGURES, columns=COLUMNS)
    means = group_means(results, ["auroc"])
    means["auroc"] *= 100
    keys = ["id_dataset", "group", "objective", "detector", "arch"]
    ours = over_seeds(means, keys, "auroc").reset_index()
    epochs = results.runs.groupby(["id_dataset", "objective", "arch"]).epochs.max().reset_index()
    table = published.merge(ours, on=keys[:-1]).merge(epochs, on=["id_dataset", "objective", "arch"])
    cells = [mean_sd(mean, sd) for mean, sd in zip(table["mean"], table.sd, strict=True)]
    here = table.arch + ", " + table.epochs.astype(str) + " epochs"
    table = table.assign(**{"this study": cells, "our setting": here})
    return table[[*COLUMNS[:5], "published", "this study", "n", "our setting", "setting"]].rename(
        columns={"setting": "their setting"}
    )


def absent_sets(results: Results, id_dataset: str) -> list[str]:
    """Return which far sets of papers on CIFAR a study of it lacks; of another ID set, none."""
    if not any(figure[0] == id_dataset for figure in FIGURES):
        return []
    tested = " ".join(results.metrics[results.metrics.id_dataset == id_dataset].ood_dataset.unique()).lower()
    return [name for name in FAR_SETS if name not in tested]
