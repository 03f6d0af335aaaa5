"""The report of the small study: what is read of its runs, what is written, and when it is current."""

import json

import numpy as np
import pandas as pd
import pytest


def test_report_tables_are_those_of_the_runs(studied, monkeypatch):
    monkeypatch.chdir(studied.root)
    folder = studied.root / "outputs" / "small" / "report"
    table = pd.read_csv(folder / "main_auroc.csv")
    runs = (studied.root / "outputs" / "small" / "runs").iterdir()
    metrics = pd.concat([pd.read_csv(run / "metrics.csv") for run in runs])
    chosen = metrics.query("objective == 'ce' and clustering == 'labels' and distance == 'cosine'")
    chosen = chosen[chosen.threshold == "global"]
    far = 100 * chosen[chosen.group == "far"].groupby("seed").auroc.mean()
    (row,) = table.query("objective == 'ce' and detector == 'labels/cosine' and ood_dataset == 'far mean'").itertuples()
    assert (row.mean, row.sd, row.n) == (pytest.approx(far.mean(), rel=1e-5), pytest.approx(far.std(), rel=1e-4), 2)
    product = pd.read_csv(folder / "product.csv").query("objective == 'ce' and clustering == 'labels'")
    (row,) = product.query("distance == 'cosine' and threshold == 'global'").itertuples()
    assert row.far == pytest.approx(far.mean(), rel=1e-3)
    table = pd.read_csv(folder / "regret.csv").query("objective == 'ce' and rule == 'always labels/cosine'")
    plain = metrics.query("objective == 'ce' and threshold == 'global' and seen == 0")
    best = 100 * plain.groupby(["seed", "ood_dataset"]).auroc.max()
    own = 100 * chosen.set_index(["seed", "ood_dataset"]).auroc
    regret = table.set_index(["seed", "ood_dataset"]).regret
    np.testing.assert_allclose(regret, (best - own)[regret.index], atol=6e-3)


def test_report_folder_holds_tables_figures_and_what_they_were_made_from(studied):
    folder = studied.root / "outputs" / "small" / "report"
    names = ["main_auroc", "main_fpr95", "cost", "clusters", "predictors", "verdicts", "data", "runs"]
    names += ["thresholds", "errors", "outlier_exposure", "regret_pooled"]
    tables = {f"{name}.{form}" for name in names for form in ("csv", "md")}
    drawn = ["separation", "projection", "histograms", "roc", "epochs", "cluster_sizes", "risk", "product"]
    drawn = [f"{name}_digits" for name in drawn]
    drawn += [f"false_alarms_digits_labels_{distance}" for distance in ("mahalanobis", "cosine")]
    drawn += ["idea", "auroc", "history", "predictors", "ranks_near", "ranks_far", "accuracy", "regret"]
    drawn += ["thumbnails_digits_ce", "thumbnails_digits_supcon"]
    others = {"environment.json", "05_report.ipynb", "product.csv", "regret.csv"}
    assert {path.name for path in folder.iterdir()} == tables | {f"{name}.png" for name in drawn} | others
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["runs"] == 4
    assert environment["seeds"] == [0, 1]
    assert environment["seconds"].keys() == {"train", "embed", "cluster", "evaluate"}
    assert [set(machine) >= {"processor", "torch", "python"} for machine in environment["environments"]] == [True]
