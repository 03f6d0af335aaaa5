"""Provenance: the records of a study's runs in; where its images are from, and how each run was made, out."""

import json

import pandas as pd

from oodlib.report.results import Results
from oodlib.study.run import ARTEFACTS, study_folder

RESEARCH = "research use"
SETS = {  # name: (what people call it, source, terms, what else must be known)
    "cifar10": (
        "CIFAR-10",
        "Krizhevsky 2009",
        RESEARCH,
        "of the copy here, 98 training images (93 ship, 5 horse) are from JPEG",
    ),
    "cifar100": ("CIFAR-100", "Krizhevsky 2009", RESEARCH, "fine labels"),
    "tinyimagenet": (
        "Tiny ImageNet",
        "Stanford CS231n; Deng et al. 2009",
        RESEARCH,
        "64×64 test images resized to 32×32 (bilinear, antialiased): not the ODIN archive",
    ),
    "dtd10": ("DTD (10 classes)", "Cimpoi et al. 2014", RESEARCH, "10 of the 47 texture classes"),
    "mnist": ("MNIST", "LeCun et al. 1998", "CC BY-SA 3.0", ""),
    "omniglot": ("Omniglot", "Lake et al. 2015", "MIT", "downsampled to 28×28"),
    "dtd": ("DTD", "Cimpoi et al. 2014", RESEARCH, ""),
    "svhn": ("SVHN", "Netzer et al. 2011", "", ""),
    "places365": ("Places365", "Zhou et al. 2017", "", ""),
    "digits": (
        "digits 0–6",
        "Alpaydin & Kaynak 1998, scikit-learn's copy",
        "that of scikit-learn",
        "split 70/30 by class",
    ),
    "digits789": ("digits 7–9", "Alpaydin & Kaynak 1998, scikit-learn's copy", "that of scikit-learn", ""),
    "letters": ("letters", "drawn with fonts of matplotlib", "those of matplotlib", "none that reads as a digit"),
    "photos": ("photographs", "crops of scikit-learn's sample images", "CC BY 2.0", ""),
}
IN_IMAGENET = {  # what of an image set ImageNet-1k has, which packaged and most of timm's weights were trained on
    "tinyimagenet": "all of its 200 classes",
    "cifar10": "most of its classes",
    "cifar100": "many of its classes",
    "photos": "both motifs, a temple and a flower",
}
CLASSES = {"cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")}


def display_name(dataset: str) -> str:
    """Return what people call an image set; a name that is none of SETS as it is."""
    return SETS[dataset][0] if dataset in SETS else dataset.replace("noise:", "noise ")


def class_names(dataset: str) -> tuple[str, ...]:
    """Return the names of the classes of an ID set whose figures name them, by label; empty of others."""
    return CLASSES.get(dataset, ())


def data_table(results: Results) -> pd.DataFrame:
    """Return where the image sets of a study are from: part in it, images used, source, terms and what must be known.

    A set of the user's own has no source here.
    """
    metrics, whole = results.metrics, results.clusters[results.clusters.clustering == "none"]
    n_train = whole.groupby("id_dataset")["size"].max()
    rows = []
    for name in dict.fromkeys(results.runs.id_dataset):
        n_test = metrics[metrics.id_dataset == name].n_id.max()
        rows.append((name, "ID", f"{n_train.get(name, 0)} training, {n_test} test"))
    for (group, name), part in metrics[metrics.seen == 0].groupby(["group", "ood_dataset"], sort=False):
        of = ", ".join(display_name(own) for own in dict.fromkeys(part.id_dataset))
        rows.append((name, f"{group} OOD of {of}", f"{part.n_ood.max()} test"))
    about = [SETS.get(name, ("", "computed" if name.startswith("noise:") else "", "", ""))[1:] for name, *_ in rows]
    named = [(display_name(name), *rest, *of) for (name, *rest), of in zip(rows, about, strict=True)]
    return pd.DataFrame(named, columns=["set", "part", "images", "source", "terms", "note"])


def pretraining_note(results: Results) -> str:
    """Return what the pretraining of a study's encoders has seen of its image sets, a sentence; empty without any."""
    if not results.runs.pretrained.any():
        return ""
    known = [
        name for name in dict.fromkeys((*results.runs.id_dataset, *results.metrics.ood_dataset)) if name in IN_IMAGENET
    ]
    seen = "; ".join(f"{display_name(name)}: {IN_IMAGENET[name]}" for name in known)
    return f"**Not new to these encoders**, which start from ImageNet's weights. ImageNet has of {seen}."


def run_table(study: str, results: Results) -> pd.DataFrame:
    """Return how each run was made: seed, epochs, accuracy, seconds of the four steps, threads, machine, versions.

    Seconds of training are those of all epochs, also of a run that was interrupted.
    """
    trained = results.history.groupby("run").seconds.sum()
    rows = []
    for run in results.runs.itertuples():
        record = json.loads((study_folder(study) / "runs" / run.run / "config.json").read_text())
        machine = record["train"]["environment"]
        seconds = {step: record[step]["seconds"] for step in ARTEFACTS} | {"train": trained[run.run]}
        versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "timm", "scikit-learn"))
        rows.append(
            {"run": run.run, "seed": run.seed, "epochs": run.epochs, "ID accuracy %": f"{100 * run.id_accuracy:.1f}"}
            | {f"{step} s": round(spent) for step, spent in seconds.items()}
            | {
                "threads": machine["threads"],
                "machine": f"{machine['device']}, {machine['processor']}",
                "versions": versions,
            }
        )
    return pd.DataFrame(rows)
