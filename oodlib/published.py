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
OF_SETS = [  # ID set, OOD set, our objective, our detector, their method, AUROC in percent, source and setting
    ("cifar10", "cifar100", "simclr", "one/ssd", "SSD", 90.6, "SSD, ResNet-50, SimCLR"),
    ("cifar10", "cifar100, FPR95", "simclr", "one/ssd", "SSD", 50.8, "SSD, ResNet-50, SimCLR"),
    ("cifar10", "cifar100", "supcon", "knn", "CSI, labelled", 90.6, "CSI, ResNet-18"),
    ("cifar10", "cifar100", "supcon", "labels/cosine", "SupCLR", 88.3, "CSI, ResNet-18, SupCon"),
    ("cifar10", "far mean", "supcon", "knn", "KNN+, mean of 5 sets", 97.96, "KNN, ResNet-18, SupCon, 500 epochs"),
    (
        "cifar10",
        "far mean, FPR95",
        "supcon",
        "knn",
        "KNN+, mean of 5 sets",
        11.05,
        "KNN, ResNet-18, SupCon, 500 epochs",
    ),
    ("cifar100", "far mean", "supcon", "knn", "KNN+, mean of 5 sets", 86.14, "KNN, ResNet-34, SupCon"),
    ("cifar100", "far mean", "supcon", "one/ssd", "SSD+, mean of 5 sets", 85.91, "KNN, ResNet-34, SupCon"),
    *(
        ("cifar100", "cifar10", "ce", detector, method, value, "ViT-L/16, pretrained on ImageNet-21k")
        for detector, method, value in [
            ("msp", "MSP", 93.0),
            ("labels/mahalanobis", "MDS", 96.2),
            ("labels/relative-mahalanobis", "RMDS", 96.5),
        ]
    ),
]
ACCURACIES = [  # ID set, our objective, ID accuracy in percent, source and setting
    (id_dataset, objective, value, "ResNet-50" + ", linear probe" * (objective == "simclr"))
    for id_dataset, values in [("cifar10", (95.0, 96.0, 93.6)), ("cifar100", (75.3, 76.5, 70.7))]
    for objective, value in zip(("ce", "supcon", "simclr"), values, strict=True)
]
FAR_SETS = ("svhn", "lsun", "isun", "places365")  # that papers on CIFAR report too, and are not always at hand
COLUMNS = ["id_dataset", "against", "objective", "detector", "method", "published", "setting"]


def comparison_table(results: Results) -> pd.DataFrame:
    """Return published figures beside this study's, in percent, mean ± sd over seeds, with n, and both settings.

    AUROC, or FPR95 where it says so, against one OOD set or a mean over near or far sets; then ID accuracy. Their near
    sets are the other CIFAR and Tiny ImageNet, their far sets MNIST, SVHN, Textures and Places365 (OpenOOD) or five
    of their own (KNN); ours are those of the study.
    """
    figures = [(*of[:1], f"{of[1]} mean", *of[2:]) for of in FIGURES]
    published = pd.DataFrame([*figures, *OF_SETS, *_accuracy_rows()], columns=COLUMNS)
    keys = ["id_dataset", "against", "objective", "detector"]
    ours = over_seeds(_own_values(results), [*keys, "arch"], "value").reset_index()
    table = published.merge(ours, on=keys).merge(_own_settings(results), on=["id_dataset", "objective", "arch"])
    cells = [mean_sd(mean, sd) for mean, sd in zip(table["mean"], table.sd, strict=True)]
    table = table.assign(**{"this study": cells, "their setting": table.setting})
    return table[[*keys, "method", "published", "this study", "n", "our setting", "their setting"]]


def _accuracy_rows() -> list[tuple]:
    return [(id_dataset, "ID accuracy", name, "", "", value, of) for id_dataset, name, value, of in ACCURACIES]


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
    if not any(figure[0] == id_dataset for figure in FIGURES):
        return []
    tested = " ".join(results.metrics[results.metrics.id_dataset == id_dataset].ood_dataset.unique()).lower()
    return [name for name in FAR_SETS if name not in tested]
