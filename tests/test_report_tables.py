"""Tables of hand-made results by hand; a sample of the committed ones from the raw columns."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from oodlib.data.catalogue import display_name, look_up
from oodlib.report import claims, detectors, means, measures, tables
from oodlib.report import results as report
from oodlib.report.published import absent_sets, comparison_table, figures, with_accuracy
from oodlib.report.results import SETTING
from oodlib.report.tables import write_table

CHECKOUT = Path(__file__).parents[1]


def values(objective, seed, ood, detector, **_) -> float:
    """Return an AUROC that is another one for every objective, seed, OOD set and detector."""
    sets = {"digits789": 0.0, "letters": 0.04, "photos": 0.10, "noise:8": 0.20}
    detectors = {"labels/mahalanobis": 0.05, "labels/cosine": 0.0, "kmeans-10/cosine": 0.02, "knn": 0.01}
    return 0.6 + sets[ood] + detectors[detector] + (objective == "supcon") / 100 + seed**2 / 50


def opposed(ood, seed, **_) -> float:
    """Return an AUROC of which one near set rises with the seed as the other falls, and the far set rises slowly."""
    return {"digits789": 0.5 + 0.1 * seed, "letters": 0.5 - 0.1 * seed, "photos": 0.7 + 0.02 * seed}.get(ood, 0.9)


def wide(results: report.Results) -> pd.DataFrame:
    return tables.wide(tables.main_table(results))


def cell(table: pd.DataFrame, column: str, **key):
    chosen = table.loc[np.logical_and.reduce([table[name] == value for name, value in key.items()])]
    (value,) = chosen[column]
    return value


def test_detectors_are_called_clustering_k_distance():
    rows = [("labels", 7, "cosine"), ("kmeans", 10, "mahalanobis"), ("none", 0, "knn"), ("one", 1, "ssd")]
    table = pd.DataFrame(rows, columns=["clustering", "n_clusters", "distance"])
    assert list(detectors.detector_names(table)) == ["labels/cosine", "kmeans-10/mahalanobis", "knn", "one/ssd"]
    assert list(detectors.clustering_names(table)) == ["labels", "kmeans-10", "none-0", "one"]


def changed(results: report.Results, decisions: pd.DataFrame) -> report.Results:
    return replace(results, decisions=decisions, metrics=detectors.ranked(decisions))


def decided(results: report.Results) -> report.Results:
    """Return results with a row for each threshold, of which each has an AUROC of its own."""
    rows = results.decisions[results.decisions.threshold == "global"]
    names = ("global", "conformal", "per-cluster", "conformal-cluster")
    rows = [rows.assign(threshold=name, auroc=rows.auroc + i / 100) for i, name in enumerate(names)]
    return changed(results, pd.concat(rows, ignore_index=True))


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
        (["knn", "*/cosine", "labels/*"], ["knn", "labels/cosine", "kmeans-10/cosine", "labels/mahalanobis"]),
        (["*"], KNOWN),
        ([], ["labels/cosine", "labels/mahalanobis", "knn"]),  # the order of SHOWN; 10 is not the number of classes
    ],
)
def test_detectors_are_chosen_by_name_or_pattern_in_the_order_given(make_results, asked, chosen):
    results = make_results(values)
    shown = report.choose(results, asked)
    for _, rows in shown.metrics.groupby("run"):
        assert list(dict.fromkeys(rows.detector)) == chosen
    assert [run for run, _ in itertools.groupby(shown.metrics.run)] == list(results.runs.run)  # a run's rows together
    expected = results.metrics[results.metrics.detector.isin(chosen)]
    keys = ["run", "detector", "ood_dataset"]
    pd.testing.assert_frame_equal(*(t.sort_values(keys, ignore_index=True) for t in (shown.metrics, expected)))
    assert shown.decisions is results.decisions  # only what ranks is chosen from
    for name in ("kmeans-11/cosine", "gmm-*"):
        with pytest.raises(ValueError, match=re.escape(f"unknown detector {name!r}; known: {', '.join(KNOWN)}")):
            report.choose(results, [*asked, name])


def test_choosing_nothing_takes_those_of_the_shown_that_there_are(make_results):
    def names(results, *asked):
        return list(dict.fromkeys(report.choose(results, [], *asked).metrics.detector))

    by_cluster = ["labels/cosine/per-cluster", "labels/mahalanobis/per-cluster"]
    assert names(decided(make_results())) == ["labels/cosine", "labels/mahalanobis", "knn", *by_cluster]
    of_classes = make_results(detectors=(("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("gmm", 7, "ssd")))
    assert names(of_classes) == ["labels/cosine", "kmeans-7/cosine", "gmm-7/ssd"]
    assert names(of_classes, ["kmeans-{classes}/cosine", "msp"]) == ["kmeans-7/cosine"]
    assert names(make_results(detectors=(("none", 0, "residual"), ("one", 1, "cosine")))) == ["residual"]


def test_a_pattern_can_name_the_number_of_classes_of_each_id_set(make_results):
    detectors = (("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("kmeans", 20, "cosine"))
    results = make_results(id_datasets=("digits", "other"), detectors=detectors)
    other = (results.decisions.id_dataset == "other") & (results.decisions.clustering == "labels")
    decisions = results.decisions.assign(n_clusters=results.decisions.n_clusters.mask(other, 20))
    shown = report.choose(replace(results, decisions=decisions), ["kmeans-{classes}/cosine"]).metrics
    found = set(zip(shown.id_dataset, shown.detector, strict=True))
    assert found == {("digits", "kmeans-7/cosine"), ("other", "kmeans-20/cosine")}


def test_of_classes_takes_as_many_clusters_as_classes():
    table = pd.DataFrame({"clustering": ["labels", "kmeans", "kmeans"] * 2, "n_clusters": [7, 7, 20, 20, 7, 20]})
    table = table.assign(id_dataset=np.repeat(["digits", "letters32"], 3), value=[0.1, 0.2, 0.3, 0.5, 0.6, 0.7])
    clusters = pd.concat([table.assign(measure="purity"), table.assign(measure="other", value=9.0)])
    for clustering, expected in (("kmeans", [0.2, 0.7]), ("labels", [0.1, 0.5]), ("gmm", [])):
        assert list(report.of_classes(clusters, clustering, "purity").value) == expected


def test_tables_are_mean_sd_with_n_minus_1_and_n_over_seeds(make_results):
    table = pd.DataFrame({"setting": ["b", "b", "a", "b"], "value": [1.0, 2.0, 5.0, 6.0]})
    result = means.over_seeds(table, ["setting"], "value")
    assert list(result.index) == ["b", "a"]  # in the order they come in
    assert result.loc["b"].tolist() == [3.0, pytest.approx(np.sqrt(7)), 3]
    assert result.loc["a", "n"] == 1
    assert np.isnan(result.loc["a", "sd"])
    table = tables.main_table(make_results(values))
    assert list(table) == [*SETTING, "detector", "group", "ood_dataset", "mean", "sd", "n"]
    key = {"objective": "supcon", "detector": "knn", "ood_dataset": "photos"}
    by_hand = 100 * np.array([0.72, 0.74, 0.80])
    assert cell(table, "mean", **key) == pytest.approx(by_hand.mean())
    assert cell(table, "sd", **key) == pytest.approx(by_hand.std(ddof=1))
    assert set(table.n) == {3}
    assert len(table) == 2 * 4 * (4 + 2)  # objectives × detectors × (sets, near mean, far mean)
    found = tables.wide(table)
    sets = ["near mean", "far mean", "digits789", "letters", "photos", "noise:8"]
    assert list(found) == [*SETTING, "detector", "n", *sets]
    assert set(found.n) == {"3"}
    assert list(found.objective) == ["ce"] * 4 + ["supcon"] * 4


def test_near_and_far_means_are_averaged_within_a_seed_first(make_results):
    table = tables.main_table(make_results(opposed))
    key = {"objective": "ce", "detector": "knn"}
    assert cell(table, "sd", ood_dataset="digits789", **key) == pytest.approx(10)
    for name, *expected in (("near mean", 50, 0, 3), ("far mean", 72, 2, 3)):  # seeds, not seeds times sets
        found = [cell(table, column, ood_dataset=name, **key) for column in ("mean", "sd", "n")]
        assert found == pytest.approx(expected, abs=1e-9)
    assert "sanity mean" not in set(table.ood_dataset)


def test_a_detector_that_lacks_a_set_has_no_mean_over_the_group(make_results):
    results = make_results(values, seeds=(0, 1))
    lacks = (results.metrics.detector == "knn") & (results.metrics.ood_dataset == "letters")
    results = replace(results, metrics=results.metrics[~lacks | (results.metrics.objective == "ce")])
    for chosen in (results, report.choose(results, ["knn"])):
        table = tables.main_table(chosen)
        of_knn = table[(table.detector == "knn") & (table.objective == "supcon")]
        assert list(of_knn.ood_dataset) == ["digits789", "photos", "noise:8", "far mean"]
        key = {"objective": "ce", "detector": "knn", "ood_dataset": "near mean"}
        assert cell(table, "mean", **key) == pytest.approx(100 * (0.61 + 0.63 + 0.65 + 0.67) / 4)
    found = means.group_means(results, ["auroc", "aurc"])
    assert list(found) == [*SETTING, "seed", "detector", "group", "auroc", "aurc"]
    assert len(found) == 2 * 2 * 4 * 2 - 2  # objectives × seeds × detectors × groups, but two
    key = {"objective": "ce", "seed": 1, "detector": "labels/cosine", "group": "near"}
    assert cell(found, "auroc", **key) == pytest.approx(0.64)
    assert cell(found, "aurc", **key) == pytest.approx(0.36)


def test_cells_say_mean_and_sd_but_no_sd_of_one_seed_and_what_is_best_at_one_decimal_is_bold(make_results):
    assert means.mean_sd(97.25, 1.349) == "97.2 ± 1.3"
    assert means.mean_sd(97.25, float("nan")) == "97.2"
    assert means.mean_sd(97.25, float("nan"), 96.04, 98.0) == "97.2 [96.0, 98.0]"
    assert means.mean_sd(97.25, 1.349, 96.04, 98.0) == "97.2 ± 1.3"
    assert wide(make_results(values))[["photos", "far mean"]].map(lambda text: "±" in text).all(axis=None)
    results = make_results(
        lambda objective, detector, **_: 0.9011 + len(objective) / 20000 - (detector != "knn") / 10, seeds=(0,)
    )
    table, low = wide(results), tables.wide(tables.main_table(results, "fpr95"), best="min")
    assert not table.map(lambda text: "±" in text).any(axis=None)
    assert list(table[table.detector == "knn"].digits789) == ["**90.1**"] * 2  # of 90.12 and 90.14
    assert not table[table.detector != "knn"].digits789.str.contains("*", regex=False).any()
    assert list(low[low.detector == "knn"].digits789) == ["**9.9**"] * 2


def test_where_a_seed_lacks_a_set_n_is_a_range_and_a_set_of_two_groups_is_one_column(make_results):
    results = make_results(values)
    metrics = results.metrics.query("objective != 'ce' or ood_dataset != 'photos' or seed != 1")
    table = wide(replace(results, metrics=metrics))
    assert table.groupby("objective").n.unique().map(list).to_dict() == {"ce": ["2–3"], "supcon": ["3"]}
    results = make_results(values, id_datasets=("digits", "letters32"), ood={"photos": "near", "digits789": "far"})
    metrics = results.metrics
    metrics["group"] = np.where((metrics.id_dataset == "digits") == (metrics.ood_dataset == "photos"), "near", "far")
    table = wide(replace(results, metrics=metrics))
    assert sorted(table.columns[5:]) == ["digits789", "far mean", "near mean", "photos"]
    assert not (table == "").any(axis=None)


def test_cost_table(make_results):
    found = measures.cost_table(make_results(seeds=(0, 1, 2))).set_index("objective").loc["supcon"]
    columns = ["n", "epochs", "training seconds", "network inputs", "ID accuracy %", "nearest class mean %"]
    assert found[columns].tolist() == [3, "2", "31.0 ± 1.0", "3,000", "91.0 ± 1.0", "81.0 ± 1.0"]  # 30, 31, 32 seconds


def test_cluster_table_has_a_row_a_clustering_and_k_averages_clusters_first_and_may_have_empty_cells(make_results):
    results = make_results(separation=lambda seed, **_: 0.2 * seed, purity=lambda objective, **_: len(objective) / 10)
    one = results.clusters[(results.clusters.clustering == "labels") & (results.clusters.cluster == "0")]
    one = one.assign(clustering="one", n_clusters=1)
    one["value"] = one.value.where(one.measure != "global_separation")  # one cluster has no other to be apart from
    fewer = results.clusters[results.clusters.clustering == "kmeans"].assign(n_clusters=2, value=0.25)
    table = measures.cluster_table(replace(results, clusters=pd.concat([results.clusters, one, fewer])))
    found = table.set_index(["objective", "clustering", "n_clusters"])
    assert list(found) == ["id_dataset", "arch", "n", "global_separation", "cluster_purity"]
    assert list(found.loc["ce"].index) == [("labels", 3), ("kmeans", 2), ("kmeans", 3), ("one", 1)]
    separation, purity = found.global_separation, found.cluster_purity
    assert separation["ce", "labels", 3] == "0.200 ± 0.200"  # 0, 0.2, 0.4; clusters differ by ± 0.1
    assert found.loc[("ce", "one", 1)].tolist()[2:] == [3, "", "1.000 ± 0.000"]
    assert [purity["ce", "kmeans", k] for k in (2, 3)] == ["0.250 ± 0.000", "0.200 ± 0.000"]
    assert purity["supcon", "kmeans", 3] == "0.600 ± 0.000"
    assert "0.500" in set(measures.cluster_table(make_results(seeds=(0,))).global_separation)  # one seed


def test_threshold_table_averages_the_sets_of_a_run_before_the_seeds(make_results):
    results = make_results(opposed)
    decisions = results.decisions.assign(id_rejected=results.decisions.id_rejected + results.decisions.seed / 100)
    table = measures.threshold_table(changed(results, decisions), ["knn", "labels/cosine"])
    rates = ["false alarms %", "near OOD detected %", "far OOD detected %"]
    assert list(table) == [*SETTING, "detector", "threshold", "n", *rates]
    names, thresholds = ["labels/cosine", "knn"], ["global", "conformal"]  # names in the order of the results
    rows = table[["objective", "detector", "threshold"]].itertuples(index=False, name=None)
    assert list(rows) == list(itertools.product(("ce", "supcon"), names, thresholds))
    assert set(table.n) == {3}  # seeds, not seeds times sets
    assert set(table[table.threshold == "global"]["false alarms %"]) == {"6.0 ± 1.0"}  # 5, 6, 7
    assert set(table[table.threshold == "conformal"]["false alarms %"]) == {"5.0 ± 1.0"}
    assert set(table["near OOD detected %"]) == {"25.0 ± 0.0"}  # half the AUROC: 25 in every run
    assert set(table["far OOD detected %"]) == {"36.0 ± 1.0"}  # 35, 36, 37
    # heads that have seen outliers may reject other ID images for every set: the sanity sets count here alone
    one = make_results(opposed, seeds=(0,))
    rejected = one.decisions.ood_dataset.map({"noise:8": 0.3}).fillna(0.1)
    table = measures.threshold_table(changed(one, one.decisions.assign(id_rejected=rejected)), ["knn"])
    assert set(table["false alarms %"]) == {"15.0"}  # (3 × 10 + 30) / 4; one seed has no sd
    assert set(table["near OOD detected %"]) == {"25.0"}
    with pytest.raises(ValueError, match=f"unknown detector 'vim'; known: {', '.join(KNOWN)}"):
        measures.threshold_table(results, ["knn", "vim"])


def test_error_table_averages_the_sets_of_a_run_before_the_seeds(make_results):
    table = measures.error_table(make_results(opposed))
    assert list(table) == [*SETTING, "detector", "group", "n", "auroc", "error_auroc", "aurc", "augrc", "oscr"]
    assert len(table) == 2 * 4 * 2  # objectives × detectors × groups
    assert set(table.n) == {3}
    near, far = (table[table.group == group].iloc[:, -5:].drop_duplicates() for group in ("near", "far"))
    assert near.to_numpy().tolist() == [["50.0 ± 0.0", "49.0 ± 0.0", "50.0 ± 0.0", "25.0 ± 0.0", "48.0 ± 0.0"]]
    assert far.to_numpy().tolist() == [["72.0 ± 2.0", "71.0 ± 2.0", "28.0 ± 2.0", "14.0 ± 1.0", "70.0 ± 2.0"]]


def test_product_has_a_row_a_combination_with_k_in_numerical_order(make_results):
    parts = (("labels", 7, "cosine"), ("kmeans", 20, "cosine"), ("kmeans", 7, "cosine"), ("none", 0, "knn"))
    results = make_results(
        lambda objective, seed, ood, **_: 0.6 + seed / 100 + (ood == "letters") / 25 + (objective == "supcon") / 20,
        detectors=parts,
        id_datasets=("digits", "other"),
    )
    per_cluster = results.decisions[results.decisions.threshold == "global"].assign(threshold="per-cluster", auroc=0.5)
    decisions = pd.concat([results.decisions, per_cluster[per_cluster.clustering != "none"]])
    table = tables.product_table(changed(results, decisions))
    assert len(table) == 2 * 2 * (3 * 2 + 1)
    first = table[(table.id_dataset == "digits") & (table.objective == "ce")]
    clusterings = [("labels", 7), ("kmeans", 7), ("kmeans", 20)]
    expected = [[name, k, kind] for name, k in clusterings for kind in detectors.RANKING] + [["none", 0, "global"]]
    assert first[["clustering", "n_clusters", "threshold"]].to_numpy().tolist() == expected
    row = first.iloc[-1]
    assert [row.near, row.near_sd, row.near_n, row.far] == pytest.approx([60 + 1 + 2, 1, 3, 61])
    assert set(first[first.threshold == "per-cluster"].near) == {50}


def test_reading_tables_are_one_an_id_set_name_several_architectures_and_say_the_interval_of_one_run(make_results):
    found = tables.reading_tables(tables.main_table(make_results(values, id_datasets=("digits", "other"))))
    assert list(found) == ["digits 0–6", "other"]
    sets = ["digits 7–9", "letters", "photographs", "noise 8"]
    assert list(found["other"]) == ["objective", "detector", "n", "near mean", "far mean", *sets]
    several = make_results(values, archs=("resnet20", "resnet18"))
    (table,) = tables.reading_tables(tables.main_table(several)).values()
    assert set(table.arch) == {"resnet20", "resnet18"}
    one, three = make_results(values, seeds=(0,)), make_results(values)
    about = one.runs[["run", "id_dataset", "arch", "objective"]].iloc[:1]
    kept = about.assign(detector="labels/cosine", ood_dataset="photos", auroc=0.7, low=0.6, high=0.8)
    tables_of = [tables.with_intervals(tables.main_table(of), replace(of, intervals=kept)) for of in (one, three)]
    (shown,) = tables.reading_tables(tables_of[0]).values()
    found = shown.set_index(["objective", "detector"]).photographs.str.strip("*")
    assert [found["ce", name] for name in ("labels/cosine", "knn")] == ["70.0 [60.0, 80.0]", "71.0"]
    assert tables_of[1].low.isna().all()  # three seeds have an sd


def test_tables_are_written_as_csv_and_markdown(tmp_path):
    parts = {"one": pd.DataFrame({"a": ["x|y"]}), "two": pd.DataFrame({"b": [2]})}
    text = write_table(tmp_path / "report", "t", pd.DataFrame({"c": [1.0, 1 / 3]}), parts)
    assert text == "**one**\n\n| a |\n| --- |\n| x\\|y |\n\n**two**\n\n| b |\n| --- |\n| 2 |"
    assert (tmp_path / "report" / "t.md").read_text() == text + "\n"
    assert (tmp_path / "report" / "t.csv").read_text() == "c\n1\n0.333333\n"
    assert len(list((tmp_path / "report").iterdir())) == 2
    assert write_table(tmp_path, "u", pd.DataFrame({"c": ["x"]})) == "| c |\n| --- |\n| x |"


def test_tables_of_the_committed_runs_are_those_of_their_raw_columns(tmp_path, monkeypatch):
    committed = CHECKOUT / "outputs" / "reported"
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "reported").symlink_to(committed)
    monkeypatch.chdir(tmp_path)
    assert report.collect_those_there(["digits", "absent"]).keys() == {"digits"}
    results = report.collect("digits")
    records = json.loads((committed / "digits" / "runs.json").read_text())
    runs = pd.DataFrame([record["train"]["parameters"] for record in records])[["objective", "seed"]]
    raw = pd.read_csv(committed / "digits" / "metrics.csv").query("threshold == 'global'").join(runs, on="run")
    table = tables.main_table(report.choose(results, ["labels/cosine", "knn", "kmeans-7/ssd"]), "fpr95")
    for row in table[table.group == "far"].sample(10, random_state=0).itertuples():
        clustering, distance = row.detector.split("/") if "/" in row.detector else ("none", row.detector)
        own = raw[(raw.objective == row.objective) & (raw.clustering == clustering.split("-")[0])]
        own = own[(own.distance == distance) & ((own.clustering != "kmeans") | (own.n_clusters == 7))]
        sets = ["letters", "photos"] if row.ood_dataset == "far mean" else [row.ood_dataset]
        seeds = 100 * own.groupby("seed")[[f"fpr95 {name}" for name in sets]].mean().mean(axis=1)
        assert [row.mean, row.sd, row.n] == pytest.approx([seeds.mean(), seeds.std(), 3])
    found = claims.verdicts(results, report.choose(results, []), "labels/mahalanobis").set_index(["claim", "group"])
    clusters = pd.read_csv(committed / "digits" / "clusters.csv").join(runs, on="run")
    own = clusters[(clusters.clustering == "labels") & (clusters.objective == "supcon")]
    separation = own.groupby("run").global_separation.mean()
    assert found.loc[("C1", ""), ["value", "n"]].tolist() == [pytest.approx(separation.mean()), 3]
    near = raw[(raw.clustering == "labels") & (raw.distance == "mahalanobis")]
    near = 100 * near.pivot(index="seed", columns="objective", values="auroc digits789")
    assert found.loc[("C5", "near"), "value"] == pytest.approx((near.supcon - near.ce).mean())  # SimCLR is far behind


CIFAR = {"cifar100": "near", "tinyimagenet": "near", "mnist": "far", "noise:32": "sanity"}


def test_own_figures_stand_beside_published_ones_near_and_far_of_the_same_pretraining(make_results):
    def auroc(ood, seed, **_):
        return {"cifar100": 0.7, "tinyimagenet": 0.8, "mnist": 0.9}.get(ood, 1.0) + 0.01 * seed

    def pretrained(results):
        return comparison_table(replace(results, runs=results.runs.assign(pretrained="imagenet")))

    detectors = (("labels", 10, "mahalanobis"), ("one", 1, "ssd"), ("none", 0, "knn"))
    objectives = ("ce", "supcon", "simclr")
    results = make_results(auroc, id_datasets=("cifar10",), ood=CIFAR, detectors=detectors, objectives=objectives)
    table = comparison_table(results)
    assert table.shape[1] == 8
    own, without = "91.0 ± 1.0", "– / 91.0 ± 1.0, n = 3"
    assert table.drop(columns=["ID set", "source"]).to_numpy().tolist() == [
        ["ce: MDS", "84.2", "76.0 ± 1.0", "89.7", own, "95.1 / 91.0 ± 1.0, n = 3"],
        ["ce: KNN", "90.6", "76.0 ± 1.0", "93.0", own, "95.1 / 91.0 ± 1.0, n = 3"],
        ["simclr: SSD, CIFAR-100 alone", "90.6", "71.0 ± 1.0", "", "", without],
        ["supcon: CSI, labelled, CIFAR-100 alone", "90.6", "71.0 ± 1.0", "", "", without],
        ["supcon: KNN+, mean of 5 sets", "", "", "98.0", own, without],
    ]
    assert table.source[0] == "OpenOOD 1.5, ResNet-18, 100 epochs"
    assert pretrained(results).empty  # another class of networks
    assert comparison_table(make_results()).empty
    ood = {"cifar10": "near", "mnist": "far"}
    results = make_results(id_datasets=("cifar100",), ood=ood, detectors=(("labels", 100, "mahalanobis"),))
    assert pretrained(results).source.tolist() == ["ViT-L/16, pretrained on ImageNet-21k"]


def test_figures_are_percentages_once_each_with_the_accuracy_of_their_source():
    table = figures()
    assert table.published.between(0, 100).all()
    keys = ["id_dataset", "against", "objective", "detector", "source", "network", "method"]
    assert not table.duplicated(keys).any()
    known = with_accuracy().dropna(subset="accuracy")
    assert set(zip(known.source, known.objective, known.id_dataset, known.accuracy, strict=True)) == {
        ("OpenOOD 1.5", "ce", "cifar10", 95.06),
        ("OpenOOD 1.5", "ce", "cifar100", 77.25),
    }
    assert len(known) == 50


def test_far_sets_of_the_literature_that_a_study_lacks_are_named_as_is_what_no_catalogue_has(make_results):
    results = make_results(id_datasets=("cifar10", "digits"), ood=CIFAR | {"folder:sets/LSUN": "far", "svhn": "far"})
    assert absent_sets(results, "cifar10") == ["isun", "places365"]
    assert absent_sets(results, "digits") == []
    assert len(look_up("cifar10").classes) == 10
    assert (display_name("folder:mine"), look_up("folder:mine").classes) == ("folder:mine", ())
    assert display_name("noise:8") == "noise 8"


def test_sets_of_a_study_have_a_source_terms_and_what_must_be_known(make_results):
    ood = {"tinyimagenet": "near", "dtd10": "far", "noise:32": "sanity", "folder:mine": "far"}
    results = make_results(id_datasets=("cifar10", "cifar100"), ood=ood)
    whole = results.runs.assign(clustering="none", measure="rankme", size=45000, value=1.0)
    metrics = results.metrics.assign(n_id=10000, n_ood=1200)
    results = replace(results, metrics=metrics, clusters=whole)
    table = tables.data_table(results).set_index("set")
    assert "in ImageNet" not in table
    assert table.loc["CIFAR-10", ["part", "images"]].tolist() == ["ID", "45000 training, 10000 test"]
    assert table.loc["DTD (10 classes)", ["part", "images"]].tolist() == ["far OOD of CIFAR-10, CIFAR-100", "1200 test"]
    assert table.loc["noise 32", "source"] == "computed"
    assert table.loc["folder:mine", "source"] == ""
    pretrained = tables.data_table(replace(results, runs=results.runs.assign(pretrained="imagenet")))
    assert pretrained.set_index("set")["in ImageNet"]["Tiny ImageNet"] == look_up("tinyimagenet").in_imagenet != ""
