"""Tables of hand-made results by hand, and the report of the small study."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from oodlib.plots import figures
from oodlib.report import results as report
from oodlib.study.studies import read_study


def values(objective, seed, ood, detector, **_) -> float:
    """Return an AUROC that is another one for every objective, seed, OOD set and detector."""
    sets = {"digits789": 0.0, "letters": 0.04, "photos": 0.10, "noise:8": 0.20}
    detectors = {"labels/mahalanobis": 0.05, "labels/cosine": 0.0, "kmeans-10/cosine": 0.02, "knn": 0.01}
    return 0.6 + sets[ood] + detectors[detector] + (objective == "supcon") / 100 + seed**2 / 50


def cell(table: pd.DataFrame, column: str, **key):
    chosen = table.loc[np.logical_and.reduce([table[name] == value for name, value in key.items()])]
    (value,) = chosen[column]
    return value


def test_detectors_are_called_clustering_k_distance():
    table = pd.DataFrame(
        [
            ("labels", 7, "cosine"),
            ("kmeans", 10, "mahalanobis"),
            ("none", 0, "knn"),
            ("one", 1, "ssd"),
            ("gmm", 5, "cosine"),
        ],
        columns=["clustering", "n_clusters", "distance"],
    )
    names = ["labels/cosine", "kmeans-10/mahalanobis", "knn", "one/ssd", "gmm-5/cosine"]
    assert list(report.detector_names(table)) == names
    clusterings = ["labels", "kmeans-10", "none-0", "one", "gmm-5"]
    assert list(report.clustering_names(table)) == clusterings


def decided(results: report.Results, thresholds=("global", "conformal", "per-cluster", "conformal-cluster")):
    """Return results with a row for each of these thresholds, of which each has an AUROC of its own."""
    rows = results.decisions[results.decisions.threshold == "global"]
    tables = [rows.assign(threshold=name, auroc=rows.auroc + i / 100) for i, name in enumerate(thresholds)]
    decisions = pd.concat(tables, ignore_index=True)
    return replace(results, decisions=decisions, metrics=report.ranked(decisions))


def test_ranked_are_the_rows_of_a_global_threshold_and_of_one_a_cluster(make_results):
    results = decided(make_results(values, seeds=(0,)))
    key = {"objective": "ce", "ood_dataset": "photos"}
    assert len(results.metrics) == len(results.decisions) / 2
    assert set(results.metrics.threshold) == {"global", "per-cluster"}
    assert cell(results.metrics, "auroc", detector="labels/cosine", **key) == pytest.approx(0.70)
    assert cell(results.metrics, "auroc", detector="labels/cosine/per-cluster", **key) == pytest.approx(0.72)
    assert list(results.metrics.index) == list(range(len(results.metrics)))
    assert "detector" not in results.decisions


KNOWN = ["labels/mahalanobis", "labels/cosine", "kmeans-10/cosine", "knn"]  # of hand-made results, in their order


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (["knn", "labels/cosine"], ["knn", "labels/cosine"]),
        (["kmeans-*/cosine"], ["kmeans-10/cosine"]),
        (["knn", "*/cosine", "labels/*"], ["knn", "labels/cosine", "kmeans-10/cosine", "labels/mahalanobis"]),
        (["*"], KNOWN),
        ([], ["labels/cosine", "labels/mahalanobis", "knn"]),  # the order of SHOWN; 10 is not the number of classes
    ],
)
def test_detectors_are_chosen_by_name_or_pattern_in_the_order_given(make_results, asked, chosen):
    results = make_results(values)
    shown = report.choose(results, asked)
    assert set(shown.metrics.detector) == set(chosen)
    for _, rows in shown.metrics.groupby("run"):
        assert list(dict.fromkeys(rows.detector)) == chosen
    assert [run for run, _ in itertools.groupby(shown.metrics.run)] == list(results.runs.run)  # a run's rows together
    assert list(shown.metrics) == list(results.metrics)
    expected = results.metrics[results.metrics.detector.isin(chosen)]
    keys = ["run", "detector", "ood_dataset"]
    pd.testing.assert_frame_equal(
        shown.metrics.sort_values(keys, ignore_index=True), expected.sort_values(keys, ignore_index=True)
    )
    assert shown.decisions is results.decisions  # only what ranks is chosen from


def test_detectors_by_cluster_are_chosen_by_their_own_names(make_results):
    results = decided(make_results(values))
    for asked in ("labels/cosine", "labels/cosine/per-cluster"):
        assert set(report.choose(results, [asked]).metrics.detector) == {asked}
    assert set(report.choose(results, ["knn*"]).metrics.threshold) == {"global", "per-cluster"}


def test_choosing_nothing_takes_those_of_the_shown_that_there_are(make_results):
    shown = report.choose(decided(make_results()), [])
    found = ["labels/cosine", "labels/cosine/per-cluster", "labels/mahalanobis", "labels/mahalanobis/per-cluster"]
    assert list(dict.fromkeys(shown.metrics.detector)) == [*found, "knn"]
    of_classes = make_results(detectors=(("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("gmm", 7, "ssd")))
    names = list(dict.fromkeys(report.choose(of_classes, []).metrics.detector))
    assert names == ["labels/cosine", "kmeans-7/cosine", "gmm-7/ssd"]
    assert set(report.choose(of_classes, [], ["kmeans-{classes}/cosine", "msp"]).metrics.detector) == {
        "kmeans-7/cosine"
    }
    lacking = report.choose(make_results(detectors=(("none", 0, "residual"), ("one", 1, "cosine"))), [])
    assert set(lacking.metrics.detector) == {"residual"}


@pytest.mark.parametrize("name", ["kmeans-11/cosine", "gmm-*"])
def test_choosing_what_there_is_not_names_what_there_is(make_results, name):
    with pytest.raises(ValueError, match=re.escape(f"unknown detector {name!r}; known: {', '.join(KNOWN)}")):
        report.choose(make_results(), ["knn", name])


def test_of_classes_takes_as_many_clusters_as_classes():
    rows = [
        ("digits", "labels", 7, 0.1),
        ("digits", "kmeans", 7, 0.2),
        ("digits", "kmeans", 20, 0.3),
        ("letters32", "labels", 20, 0.5),
        ("letters32", "kmeans", 7, 0.6),
        ("letters32", "kmeans", 20, 0.7),
    ]
    table = pd.DataFrame(rows, columns=["id_dataset", "clustering", "n_clusters", "value"])
    clusters = pd.concat([table.assign(measure="purity"), table.assign(measure="other", value=9.0)])
    assert list(report.of_classes(clusters, "kmeans", "purity").value) == [0.2, 0.7]
    assert list(report.of_classes(clusters, "labels", "purity").value) == [0.1, 0.5]
    assert report.of_classes(clusters, "gmm", "purity").empty


def test_over_seeds_is_mean_sd_with_n_minus_1_and_n():
    table = pd.DataFrame({"setting": ["b", "b", "a", "b"], "value": [1.0, 2.0, 5.0, 6.0]})
    result = report.over_seeds(table, ["setting"], "value")
    assert list(result.index) == ["b", "a"]  # in the order they come in
    assert result.loc["b"].tolist() == [3.0, pytest.approx(np.sqrt(7)), 3]
    assert result.loc["a", "n"] == 1
    assert np.isnan(result.loc["a", "sd"])


def test_main_table_is_mean_sd_and_n_over_seeds_in_percent(make_results):
    table = report.main_table(make_results(values, seeds=(0, 1, 2)))
    assert list(table) == [*report.SETTING, "detector", "group", "ood_dataset", "mean", "sd", "n"]
    key = {"objective": "supcon", "detector": "knn", "ood_dataset": "photos"}
    by_hand = 100 * np.array([0.72, 0.74, 0.80])
    assert cell(table, "mean", **key) == pytest.approx(by_hand.mean())
    assert cell(table, "sd", **key) == pytest.approx(by_hand.std(ddof=1))
    assert set(table.n) == {3}
    assert len(table) == 2 * 4 * (4 + 2)  # objectives × detectors × (sets, near mean, far mean)


def test_near_and_far_means_are_averaged_within_a_seed_first(make_results):
    def opposed(ood, seed, **_):  # one near set rises with the seed as the other falls
        return 0.5 + {"digits789": 0.1 * seed, "letters": -0.1 * seed, "photos": 0.2, "noise:8": 0.5}[ood]

    table = report.main_table(make_results(opposed))
    key = {"objective": "ce", "detector": "knn"}
    assert cell(table, "sd", ood_dataset="digits789", **key) == pytest.approx(10)
    assert cell(table, "mean", ood_dataset="near mean", **key) == pytest.approx(50)
    assert cell(table, "sd", ood_dataset="near mean", **key) == pytest.approx(0, abs=1e-9)
    assert cell(table, "n", ood_dataset="near mean", **key) == 3  # seeds, not seeds times sets
    assert cell(table, "mean", ood_dataset="far mean", **key) == pytest.approx(70)
    assert "sanity mean" not in set(table.ood_dataset)


def test_a_detector_that_lacks_a_set_has_no_mean_over_the_group(make_results):
    results = make_results(values, seeds=(0, 1))
    lacks = (results.metrics.detector == "knn") & (results.metrics.ood_dataset == "letters")
    results = replace(results, metrics=results.metrics[~lacks | (results.metrics.objective == "ce")])
    for chosen in (results, report.choose(results, ["knn"])):
        table = report.main_table(chosen)
        of_knn = table[(table.detector == "knn") & (table.objective == "supcon")]
        assert list(of_knn.ood_dataset) == ["digits789", "photos", "noise:8", "far mean"]
        key = {"objective": "ce", "detector": "knn", "ood_dataset": "near mean"}
        assert cell(table, "mean", **key) == pytest.approx(100 * (0.61 + 0.63 + 0.65 + 0.67) / 4)
    means = report.group_means(results, ["auroc", "aurc"])
    assert list(means) == [*report.SETTING, "seed", "detector", "group", "auroc", "aurc"]
    assert len(means) == 2 * 2 * 4 * 2 - 2  # objectives × seeds × detectors × groups, but two
    key = {"objective": "ce", "seed": 1, "detector": "labels/cosine", "group": "near"}
    assert cell(means, "auroc", **key) == pytest.approx(0.64)
    assert cell(means, "aurc", **key) == pytest.approx(0.36)


def test_main_table_of_another_measure(make_results):
    table = report.main_table(make_results(values), "fpr95")
    expected = 100 - 100 * np.mean([0.65, 0.67, 0.73])
    key = {"objective": "ce", "detector": "labels/mahalanobis", "ood_dataset": "digits789"}
    assert cell(table, "mean", **key) == pytest.approx(expected)


def test_wide_table_has_the_means_first_and_then_the_sets_by_group(make_results):
    table = report.wide(report.main_table(make_results(values)))
    sets = ["near mean", "far mean", "digits789", "letters", "photos", "noise:8"]
    assert list(table) == [*report.SETTING, "detector", "n", *sets]
    assert set(table.n) == {"3"}
    assert list(table.objective) == ["ce"] * 4 + ["supcon"] * 4


def test_a_set_that_is_near_for_one_id_set_and_far_for_another_is_one_column(make_results):
    results = make_results(values, id_datasets=("digits", "letters32"), ood={"photos": "near", "digits789": "far"})
    metrics = results.metrics
    metrics["group"] = np.where((metrics.id_dataset == "digits") == (metrics.ood_dataset == "photos"), "near", "far")
    table = report.wide(report.main_table(replace(results, metrics=metrics)))
    assert sorted(table.columns[5:]) == ["digits789", "far mean", "near mean", "photos"]
    assert not (table == "").any(axis=None)


def test_the_best_of_a_column_is_bold_and_so_is_what_equals_it_at_one_decimal(make_results):
    def close(objective, detector, **_):
        return {"ce": 0.9012, "supcon": 0.9014}[objective] - (detector != "knn") / 10

    table = report.wide(report.main_table(make_results(close, seeds=(0,))))
    assert list(table[table.detector == "knn"].digits789) == ["**90.1**"] * 2
    assert not table[table.detector != "knn"].digits789.str.contains("*", regex=False).any()
    low = report.wide(report.main_table(make_results(close, seeds=(0,)), "fpr95"), best="min")
    assert list(low[low.detector == "knn"].digits789) == ["**9.9**"] * 2


def test_the_best_is_found_for_each_id_set(make_results):
    table = report.wide(report.main_table(make_results(values, id_datasets=("digits", "other"), seeds=(0,))))
    bold = table[table["near mean"].str.startswith("**")]
    assert bold[["id_dataset", "objective", "detector"]].to_numpy().tolist() == [
        ["digits", "supcon", "labels/mahalanobis"],
        ["other", "supcon", "labels/mahalanobis"],
    ]


def test_cells_say_mean_and_sd_but_no_sd_of_one_seed(make_results):
    assert report.mean_sd(97.25, 1.349) == "97.2 ± 1.3"
    assert report.mean_sd(97.25, float("nan")) == "97.2"
    assert report.mean_sd(97.25, float("nan"), 96.04, 98.0) == "97.2 [96.0, 98.0]"
    assert report.mean_sd(97.25, 1.349, 96.04, 98.0) == "97.2 ± 1.3"
    one = report.wide(report.main_table(make_results(values, seeds=(0,))))
    assert not one.map(lambda text: "±" in text).any(axis=None)
    several = report.wide(report.main_table(make_results(values)))
    assert several[["photos", "far mean"]].map(lambda text: "±" in text).all(axis=None)


def test_where_a_seed_lacks_a_set_n_is_a_range(make_results):
    results = make_results(values)
    metrics = results.metrics
    metrics = metrics[(metrics.objective != "ce") | (metrics.ood_dataset != "photos") | (metrics.seed != 1)]
    table = report.wide(report.main_table(replace(results, metrics=metrics)))
    assert set(table[table.objective == "ce"].n) == {"2–3"}
    assert set(table[table.objective == "supcon"].n) == {"3"}


def test_a_combination_that_was_not_run_is_an_empty_cell(make_results):
    results = make_results(values)
    metrics = results.metrics
    metrics = metrics[(metrics.objective != "ce") | (metrics.ood_dataset != "photos")]
    table = report.wide(report.main_table(replace(results, metrics=metrics)))
    assert set(table[table.objective == "ce"].photos) == {""}
    assert "" not in set(table[table.objective == "supcon"].photos)


def test_cost_table(make_results):
    table = report.cost_table(make_results(seeds=(0, 1, 2))).set_index("objective")
    assert table.loc["supcon", "n"] == 3
    assert table.loc["supcon", "epochs"] == "2"
    assert table.loc["supcon", "training seconds"] == "31.0 ± 1.0"  # 30, 31, 32
    assert table.loc["supcon", "network inputs"] == "3,000"
    assert table.loc["ce", "ID accuracy %"] == "91.0 ± 1.0"
    assert table.loc["ce", "nearest class mean %"] == "81.0 ± 1.0"


def test_cluster_table_averages_clusters_within_a_run_first(make_results):
    results = make_results(separation=lambda seed, **_: 0.2 * seed, purity=lambda objective, **_: len(objective) / 10)
    table = report.cluster_table(results).set_index(["objective", "clustering"])
    assert list(table) == ["id_dataset", "arch", "n_clusters", "n", "global_separation", "cluster_purity"]
    assert table.loc[("ce", "labels"), "global_separation"] == "0.200 ± 0.200"  # 0, 0.2, 0.4; clusters differ by ± 0.1
    assert table.loc[("supcon", "kmeans"), "cluster_purity"] == "0.600 ± 0.000"
    assert table.loc[("supcon", "labels"), "n"] == 3
    one = report.cluster_table(make_results(seeds=(0,))).set_index(["objective", "clustering"])
    assert one.loc[("ce", "labels"), "global_separation"] == "0.500"


def test_cluster_table_has_one_row_a_clustering_and_k_and_an_empty_cell_for_what_has_no_value(make_results):
    results = make_results(seeds=(0, 1))
    one = results.clusters[(results.clusters.clustering == "labels") & (results.clusters.cluster == "0")]
    one = one.assign(clustering="one", n_clusters=1)
    one["value"] = one.value.where(one.measure != "global_separation")  # one cluster has no other to be apart from
    fewer = results.clusters[results.clusters.clustering == "kmeans"].assign(n_clusters=2, value=0.25)
    table = report.cluster_table(replace(results, clusters=pd.concat([results.clusters, one, fewer])))
    found = table[table.objective == "ce"].set_index(["clustering", "n_clusters"])
    assert list(found.index) == [("labels", 3), ("kmeans", 2), ("kmeans", 3), ("one", 1)]
    assert found.loc[("one", 1), ["n", "global_separation", "cluster_purity"]].tolist() == [2, "", "1.000 ± 0.000"]
    assert found.loc[("kmeans", 2), "cluster_purity"] == "0.250 ± 0.000"
    assert found.loc[("kmeans", 3), "cluster_purity"] == "0.500 ± 0.000"


def test_a_pattern_can_name_the_number_of_classes_of_each_id_set(make_results):
    detectors = (("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("kmeans", 20, "cosine"))
    results = make_results(id_datasets=("digits", "other"), detectors=detectors)
    other = (results.decisions.id_dataset == "other") & (results.decisions.clustering == "labels")
    decisions = results.decisions.assign(n_clusters=results.decisions.n_clusters.mask(other, 20))
    shown = report.choose(replace(results, decisions=decisions), ["kmeans-{classes}/cosine"]).metrics
    assert set(zip(shown.id_dataset, shown.detector, strict=True)) == {
        ("digits", "kmeans-7/cosine"),
        ("other", "kmeans-20/cosine"),
    }


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
    pd.testing.assert_frame_equal(results.metrics, report.ranked(results.decisions))
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
    key = {"objective": "ce", "detector": "labels/cosine", "ood_dataset": "far mean"}
    assert cell(table, "mean", **key) == pytest.approx(far.mean(), rel=1e-5)
    assert cell(table, "sd", **key) == pytest.approx(far.std(), rel=1e-4)
    assert cell(table, "n", **key) == 2


def test_report_folder_holds_tables_figures_and_what_they_were_made_from(studied):
    folder = studied.root / "outputs" / "small" / "report"
    tables = {
        f"{name}.{form}"
        for name in (
            *("main_auroc", "main_fpr95", "cost", "clusters", "predictors", "verdicts", "data", "runs"),
            *("thresholds", "errors", "outlier_exposure", "regret", "mistakes"),
        )
        for form in ("csv", "md", "tex")
    }
    of_id_set = ("separation", "projection", "histograms", "roc", "epochs", "cluster_sizes", "risk")
    names = [f"{name}_digits" for name in of_id_set]
    names += [f"product_digits_{group}" for group in ("near", "far")]
    names += [f"false_alarms_digits_labels_{distance}" for distance in ("mahalanobis", "cosine")]
    names += ["auroc", "history", "predictors", "ranks_near", "ranks_far", "accuracy", "regret"]
    names += ["thumbnails_digits_ce", "thumbnails_digits_supcon"]
    figures = {f"{name}.{form}" for name in names for form in ("png", "svg")}
    others = {"environment.json", "05_report.ipynb", "product.csv"}
    assert {path.name for path in folder.iterdir()} == tables | figures | others
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
    assert "incomplete, and left out: digits-airbench_16_32_64-ce-s1" in report.main_table_text("small")


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
        figures.projection_figure(results, "digits", 1)
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
