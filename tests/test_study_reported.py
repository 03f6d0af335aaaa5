"""The results of the small study: read from its runs, published, and read again by somebody who has no runs."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from oodlib.__main__ import main
from oodlib.plots.clusters import projections_figure
from oodlib.report import results as report
from oodlib.report.tables import main_table_text
from oodlib.study import Run, reported
from oodlib.study.image_scores import extreme_table, load_image_scores
from oodlib.study.reported import DRAWN, OTHERS, RANKING
from oodlib.study.studies import read_study

CHECKOUT = Path(__file__).parents[1]
RUN = "digits-airbench_16_32_64-supcon-s1"


@pytest.fixture
def collected(studied, monkeypatch) -> report.Results:
    monkeypatch.chdir(studied.root)
    return report.collect("small")


def artefact(study, name: str) -> pd.DataFrame:
    folders = sorted((study.root / "outputs" / "small" / "runs").iterdir())
    return pd.concat([pd.read_csv(folder / f"{name}.csv").assign(run=folder.name) for folder in folders])


def test_metrics_are_those_of_the_runs_in_their_order(studied, collected):
    metrics = artefact(studied, "metrics")
    keys = ["run", "clustering", "n_clusters", "distance", "threshold", "ood_dataset"]
    ranked = metrics[metrics.threshold.isin(RANKING)].set_index(keys)
    found = collected.metrics.set_index(keys)
    assert len(found) == len(ranked)
    about = ["id_dataset", "arch", "objective", "seed", "group", "seen", "n_id", "n_ood"]
    pd.testing.assert_frame_equal(found[about], ranked.loc[found.index, about])
    for measure, atol in {"auroc": 6e-6, "fpr95": 6e-5}.items():
        np.testing.assert_allclose(found[measure], ranked.loc[found.index, measure], atol=atol)
    of_classes = found[found.index.get_level_values("n_clusters").isin([0, 1, 7])]
    for measure in OTHERS:
        np.testing.assert_allclose(of_classes[measure], ranked.loc[of_classes.index, measure], atol=6e-5)
    assert found[found.index.get_level_values("n_clusters") == 20].oscr.isna().all()
    rejected, own = collected.decisions.set_index(keys), metrics[metrics.seen == 0].set_index(keys)
    assert set(collected.decisions.threshold) == {"global", "conformal", "per-cluster", "conformal-cluster"}
    for measure in ("id_rejected", "ood_rejected"):
        np.testing.assert_allclose(rejected[measure], own.loc[rejected.index, measure], atol=6e-5)
    for column in ("run", "clustering", "distance", "ood_dataset"):
        assert list(dict.fromkeys(collected.metrics[column])) == list(dict.fromkeys(metrics[column]))
    assert not collected.metrics.duplicated(["run", "detector", "ood_dataset"]).any()
    shown = {"labels/cosine", "labels/cosine/per-cluster", "kmeans-7/cosine", "knn", "outlier-exposure-1"}
    assert shown <= set(collected.metrics.detector)


def test_clusters_have_their_own_rows_or_their_mean(studied, collected):
    own, found = artefact(studied, "clusters"), collected.clusters
    keys = ["run", "clustering", "n_clusters", "measure"]
    means = own.groupby(keys).value.mean().dropna()
    np.testing.assert_allclose(found.groupby(keys).value.mean().dropna()[means.index], means, rtol=1e-4, atol=6e-5)
    purity = found[(found.clustering == "kmeans") & (found.measure == "cluster_purity")]
    assert purity.groupby(["run", "n_clusters"]).size().to_dict() == {(run, k): k for run in own.run for k in (7, 20)}
    assert found.groupby(["run", "clustering"])["size"].max().eq(796).sum() >= 4


def test_what_is_drawn_and_a_row_a_run_are_those_of_the_runs(studied, collected):
    for name, value, rtol, atol in (
        ("scores", "score", 6e-5, 0),
        ("projection", "x", 0, 6e-3),
        ("risk_coverage", "risk", 6e-4, 0),
        ("false_alarms", "rate", 0, 6e-5),
        ("history", "seconds", 0, 0),
    ):
        own, found = artefact(studied, name), getattr(collected, name)
        assert len(found) == len(own), name
        np.testing.assert_allclose(found[value], own[value], rtol=rtol, atol=atol, err_msg=name)
    for run, found in collected.extremes.groupby("run"):
        own = extreme_table(load_image_scores(Run("small", run)))
        columns = ["detector", "dataset", "extreme", "rank", "index"]
        pd.testing.assert_frame_equal(found[columns].reset_index(drop=True), own[columns], check_dtype=False)
    assert collected.extremes.run.nunique() == len(collected.runs) == 4
    assert collected.incomplete == ()
    choices, best = artefact(studied, "choices"), collected.choices
    assert best.auroc.tolist() == pytest.approx(choices.groupby(["run", "rule"]).auroc.max().tolist(), abs=6e-5)
    assert set(collected.intervals) >= {"detector", "ood_dataset", "auroc", "low", "high"}
    run, folder = collected.runs.set_index("run").loc[RUN], studied.run_folder("small", RUN)
    history = pd.read_csv(folder / "history.csv")
    accuracy = json.loads((folder / "config.json").read_text())["evaluate"]["id_accuracy"]
    assert [run.id_accuracy, run.nearest_class_mean] == [accuracy["classifier"], accuracy["nearest_class_mean"]]
    assert run.training_seconds == pytest.approx(len(history) * history.seconds.min())
    assert (run.epochs, run.network_inputs) == (1, 2 * 6 * 128)  # two views, six whole batches of 796 images


def test_who_has_no_runs_reads_what_is_published(studied_copy, capsys):
    own = report.collect("small")
    assert main(["publish", "small"]) == 0
    assert "incomplete, and left out: none" in capsys.readouterr().out
    folder = studied_copy.root / "outputs" / "reported" / "small"
    source = studied_copy.root / "outputs" / "small" / "report"
    assert (folder / "report" / "main_auroc.csv").read_bytes() == (source / "main_auroc.csv").read_bytes()
    # the notebook shows the other figures
    assert {path.name for path in (folder / "report").glob("*.png")} == {"idea.png", "accuracy.png"}
    shutil.rmtree(studied_copy.root / "outputs" / "small")
    found = report.collect("small")
    for name in ("runs", "metrics", "decisions", "clusters", "history", "choices", "epochs", *DRAWN):
        expected, table = getattr(own, name), getattr(found, name)
        if name in DRAWN:  # of the seed that the report shows
            expected = expected[expected.seed == 0].reset_index(drop=True)
        pd.testing.assert_frame_equal(table, expected)  # to the last bit
    assert (found.records, found.incomplete) == (own.records, ())
    projections_figure(found.projection, "digits", 0)
    with pytest.raises(ValueError, match="no run of 'digits' with seed 1 has what is drawn"):
        projections_figure(found.projection, "digits", 1)
    parameters = read_study("small")[1]
    report.write_environment("small", parameters, found)
    kept = (json.loads((place / "environment.json").read_text()) for place in (source, folder / "report"))
    assert next(kept)["made_from"] == next(kept)["made_from"]
    assert not reported.report_is_current("small", parameters)  # so that the study is run where it is asked for
    assert reported.reported_record(Run("small", RUN))["train"]["parameters"]["objective"] == "supcon"
    assert reported.reported_record(Run("small", "digits-other-ce-s0")) == {}


def test_only_a_report_of_the_runs_that_are_there_is_published(studied_copy, capsys):
    metrics = studied_copy.run_folder("small", RUN) / "metrics.csv"
    table = pd.read_csv(metrics)
    table.assign(auroc=table.auroc / 2).to_csv(metrics, index=False)
    for study, said in (
        ("small", "report is not the report of these runs: run python -m oodlib small first"),
        ("digits", "study 'digits' has no complete run"),
    ):
        assert main(["publish", study]) == 2
        assert said in capsys.readouterr().err
    assert not (studied_copy.root / "outputs" / "reported").exists()
    with pytest.raises(FileNotFoundError, match="study 'digits' has no complete run in .*, and none is reported in "):
        report.collect("digits")


def test_an_incomplete_run_is_left_out_and_named(studied_copy):
    (studied_copy.run_folder("small", RUN) / "choices.csv").unlink()
    (studied_copy.root / "outputs" / "small" / "runs" / ".ipynb_checkpoints").mkdir()
    results = report.collect("small")
    assert results.incomplete == (RUN,)
    assert set(results.metrics.run) == set(results.runs.run)
    assert len(results.runs) == 3
    assert f"incomplete, and left out: {RUN}" in main_table_text("small")
    config = studied_copy.run_folder("small", RUN) / "config.json"
    config.write_text(config.read_text()[:100])
    with pytest.raises(ValueError, match=rf"{RUN}/config\.json is no JSON"):
        report.collect("small")


def test_the_report_is_current_for_its_parameters_its_runs_and_while_it_is_there(studied_copy):
    parameters = read_study("small")[1]
    assert reported.report_is_current("small", parameters)
    assert not reported.report_is_current("small", parameters | {"shown_seed": 1})
    folder = studied_copy.root / "outputs" / "small" / "report"
    for name in ("05_report.ipynb", "environment.json"):
        (folder / name).rename(folder / "elsewhere")
        assert not reported.report_is_current("small", parameters)
        (folder / "elsewhere").rename(folder / name)
    run = studied_copy.run_folder("small", "digits-airbench_16_32_64-ce-s0")
    for name, column in {"metrics": "auroc", "clusters": "value", "scores": "score", "history": "seconds"}.items():
        before = (run / f"{name}.csv").read_bytes()
        table = pd.read_csv(run / f"{name}.csv")
        table.assign(**{column: table[column] / 2}).to_csv(run / f"{name}.csv", index=False)
        assert not reported.report_is_current("small", parameters), name
        (run / f"{name}.csv").write_bytes(before)
    assert reported.report_is_current("small", parameters)
    (studied_copy.run_folder("small", RUN) / "metrics.csv").unlink()  # now incomplete
    assert not reported.report_is_current("small", parameters)
    (folder / "environment.json").write_text("{")
    assert not reported.report_is_current("small", parameters)


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="a copy without its history")
def test_what_one_runs_is_ignored_and_what_is_reported_is_not():
    for path, ignored in (
        ("outputs/digits/runs/a/metrics.csv", True),
        ("outputs/digits/report/auroc.png", True),
        ("outputs/reported/digits/metrics.csv", False),
        ("outputs/reported/digits/report/05_report.ipynb", False),
        ("outputs/benchmarks/new.csv", False),
        ("oodlib/data/new.py", False),
    ):
        status = subprocess.run(["git", "check-ignore", "-q", path], cwd=CHECKOUT).returncode
        assert status == (0 if ignored else 1), path


@pytest.mark.parametrize("folder", sorted((CHECKOUT / "outputs" / "reported").glob("*/")), ids=lambda path: path.name)
def test_what_is_committed_can_be_read(folder, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    records, tables = reported.tables(
        {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".csv", ".json")}
    )
    assert len(records) == tables["metrics"].run.nunique() > 1
    assert tables["metrics"].auroc.between(0, 1).all()
    assert {"decisions", "clusters", "history", *DRAWN} <= tables.keys()
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    assert size < (1.2e6 if folder.name == "digits" else 4e6)


def test_report_folder_holds_tables_figures_and_what_they_were_made_from(studied):
    folder = studied.root / "outputs" / "small" / "report"
    names = ["main_auroc", "main_fpr95", "cost", "clusters", "predictors", "verdicts", "data", "runs"]
    names += ["thresholds", "errors", "outlier_exposure", "regret_pooled"]
    drawn = ["separation", "projection", "histograms", "roc", "epochs", "cluster_sizes", "risk", "product"]
    drawn = [f"{name}_digits" for name in drawn]
    drawn += [f"false_alarms_digits_labels_{distance}" for distance in ("mahalanobis", "cosine")]
    drawn += ["idea", "auroc", "history", "predictors", "ranks_near", "ranks_far", "accuracy", "regret"]
    drawn += ["thumbnails_digits_ce", "thumbnails_digits_supcon"]
    files = {f"{name}.{form}" for name in names for form in ("csv", "md")} | {f"{name}.png" for name in drawn}
    others = {"environment.json", "05_report.ipynb", "product.csv", "regret.csv"}
    assert {path.name for path in folder.iterdir()} == files | others
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["runs"], environment["seeds"]) == (4, [0, 1])
    assert environment["seconds"].keys() == {"train", "embed", "cluster", "evaluate"}
    assert [set(machine) >= {"processor", "torch", "python"} for machine in environment["environments"]] == [True]
