"""The report of the small study: what is read of its runs, what is written, and when it is current."""

import json

import numpy as np
import pandas as pd
import pytest

from oodlib.plots.clusters import projections_figure
from oodlib.report import results as report
from oodlib.report.auroc_tables import main_table_text
from oodlib.report.detectors import ranked
from oodlib.study.studies import read_study


def test_collect_reads_every_complete_run(studied, monkeypatch):
    monkeypatch.chdir(studied.root)
    results = report.collect("small")
    assert results.incomplete == ()
    assert len(results.runs) == 4
    for part in report.PARTS + report.DRAWN:
        table = results.decisions if part == "metrics" else getattr(results, part)
        files = [pd.read_csv(studied.run_folder("small", run) / f"{part}.csv") for run in results.runs.run]
        assert len(table) == sum(map(len, files))
        assert {"run", "id_dataset", "arch", "objective", "seed"} <= set(table)
    pd.testing.assert_frame_equal(results.metrics, ranked(results.decisions))
    assert set(results.decisions.threshold) == {"global", "conformal", "per-cluster", "conformal-cluster"}
    keys = ["run", "detector", "ood_dataset"]
    assert not results.metrics.duplicated(keys).any()
    shown = {"labels/cosine", "labels/cosine/per-cluster", "kmeans-7/cosine", "knn", "outlier-exposure-1"}
    assert shown <= set(results.metrics.detector)
    run = results.runs.set_index("run").loc["digits-airbench_16_32_64-supcon-s1"]
    record = json.loads((studied.run_folder("small", run.name) / "config.json").read_text())
    history = pd.read_csv(studied.run_folder("small", run.name) / "history.csv")
    accuracy = record["evaluate"]["id_accuracy"]
    assert [run.id_accuracy, run.nearest_class_mean] == [accuracy["classifier"], accuracy["nearest_class_mean"]]
    assert run.training_seconds == pytest.approx(len(history) * history.seconds.min())
    assert run.network_inputs == 2 * 6 * 128  # two views, six whole batches of 796 images
    assert run.epochs == 1


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
    drawn += ["auroc", "history", "predictors", "ranks_near", "ranks_far", "accuracy", "regret"]
    drawn += ["thumbnails_digits_ce", "thumbnails_digits_supcon"]
    others = {"environment.json", "05_report.ipynb", "product.csv", "regret.csv"}
    assert {path.name for path in folder.iterdir()} == tables | {f"{name}.png" for name in drawn} | others
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["runs"] == 4
    assert environment["seeds"] == [0, 1]
    assert environment["seconds"].keys() == {"train", "embed", "cluster", "evaluate"}
    assert [set(machine) >= {"processor", "torch", "python"} for machine in environment["environments"]] == [True]


def test_an_incomplete_run_is_left_out_and_named(studied_copy):
    (studied_copy.run_folder("small", "digits-airbench_16_32_64-ce-s1") / "choices.csv").unlink()
    (studied_copy.root / "outputs" / "small" / "runs" / ".ipynb_checkpoints").mkdir()
    results = report.collect("small")
    assert results.incomplete == ("digits-airbench_16_32_64-ce-s1",)
    assert set(results.metrics.run) == set(results.runs.run)
    assert len(results.runs) == 3
    assert "incomplete, and left out: digits-airbench_16_32_64-ce-s1" in main_table_text("small")


def test_what_is_drawn_may_be_there_of_the_shown_seed_alone(studied_copy):
    parameters = read_study("small")[1]
    for part in report.DRAWN:
        for objective in ("ce", "supcon"):
            (studied_copy.run_folder("small", f"digits-airbench_16_32_64-{objective}-s1") / f"{part}.csv").unlink()
    assert report.report_is_current("small", parameters)
    results = report.collect("small")
    assert results.incomplete == ()
    assert set(results.metrics.seed) == {0, 1}
    assert [set(getattr(results, part).seed) for part in report.DRAWN] == 4 * [{0}]
    with pytest.raises(ValueError, match="no run of 'digits' with seed 1 has what is drawn"):
        projections_figure(results.projection, "digits", 1)
    for run in results.runs.run:
        (studied_copy.run_folder("small", run) / "scores.csv").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"no run of study 'small' has scores\.csv"):
        report.collect("small")


def test_a_study_without_a_complete_run_says_so(project):
    with pytest.raises(FileNotFoundError, match="study 'digits' has no complete run in .*outputs/digits/runs"):
        report.collect("digits")


def test_a_config_that_is_cut_short_is_named(studied_copy):
    path = studied_copy.run_folder("small", "digits-airbench_16_32_64-ce-s1") / "config.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"digits-airbench_16_32_64-ce-s1/config\.json is no JSON"):
        report.collect("small")


@pytest.mark.parametrize("name", ["config.json", *(f"{part}.csv" for part in report.PARTS + report.DRAWN)])
def test_the_report_is_current_until_a_text_of_a_run_changes(studied_copy, name):
    parameters = read_study("small")[1]
    assert report.report_is_current("small", parameters)
    path = studied_copy.run_folder("small", "digits-airbench_16_32_64-ce-s0") / name
    path.write_text(path.read_text() + "\n")
    assert not report.report_is_current("small", parameters)


def test_the_report_is_current_for_its_parameters_its_runs_and_while_it_is_there(studied_copy):
    parameters = read_study("small")[1]
    assert not report.report_is_current("small", parameters | {"shown_seed": 1})
    folder = studied_copy.root / "outputs" / "small" / "report"
    for name in ("05_report.ipynb", "environment.json"):
        (folder / name).rename(folder / "elsewhere")
        assert not report.report_is_current("small", parameters)
        (folder / "elsewhere").rename(folder / name)
    assert report.report_is_current("small", parameters)
    (studied_copy.run_folder("small", "digits-airbench_16_32_64-ce-s0") / "metrics.csv").unlink()  # now incomplete
    assert not report.report_is_current("small", parameters)
    (folder / "environment.json").write_text("{")
    assert not report.report_is_current("small", parameters)
