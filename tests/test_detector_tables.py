"""The main table for reading and the product of factors, of hand-made results, by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from oodlib.report import detector_tables
from oodlib.report import results as report
from oodlib.report.intervals import auroc_intervals

DETECTORS = (("labels", 7, "cosine"), ("kmeans", 20, "cosine"), ("kmeans", 7, "cosine"), ("none", 0, "knn"))
KINDS = ("global", "per-cluster")


def auroc(objective, seed, ood, detector, **_) -> float:
    return 0.6 + len(detector) / 100 + seed / 100 + (objective == "supcon") / 20 + (ood == "letters") / 25


@pytest.fixture
def results(make_results):
    """Results in which CE would choose 7 clusters by silhouette, and SupCon 20."""
    made = make_results(auroc, detectors=DETECTORS, id_datasets=("digits", "other"))
    runs = made.runs[["run", "id_dataset", "arch", "objective", "seed"]]
    about = {"clustering": "kmeans", "cluster": "all", "size": 9, "measure": "silhouette"}
    parts = [
        runs.assign(**about, n_clusters=k, value=np.where((runs.objective == "ce") == (k == 7), 0.4, 0.2))
        for k in (7, 20)
    ]
    return replace(made, clusters=pd.concat([made.clusters, *parts]))


def test_the_chosen_k_is_that_of_the_best_silhouette_of_a_setting(results):
    sizes = detector_tables.chosen_sizes(results)
    assert sizes.loc[("digits", "resnet20", "ce")] == 7
    assert sizes.loc[("digits", "resnet20", "supcon")] == 20
    shown = report.choose(results, ["knn"])
    more = detector_tables.with_chosen_size(shown, results).metrics
    assert list(dict.fromkeys(more.detector)) == ["knn", "kmeans-chosen/cosine"]
    own = more[more.detector == "kmeans-chosen/cosine"]
    assert set(zip(own.objective, own.n_clusters, strict=True)) == {("ce", 7), ("supcon", 20)}
    assert len(own) == len(shown.metrics)
    lacking = replace(results, clusters=results.clusters[results.clusters.measure != "silhouette"])
    assert detector_tables.with_chosen_size(shown, lacking) is shown


def test_reading_tables_are_one_an_id_set_with_accuracy_and_cost_beside(results):
    tables = detector_tables.reading_tables(results, report.main_table(results))
    assert list(tables) == ["digits 0–6", "other"]
    sets = ["digits 7–9", "letters", "photographs", "noise 8"]
    beside = ["n", "ID accuracy %", "training seconds"]
    assert list(tables["other"]) == ["objective", "detector", "near mean", "far mean", *sets, *beside]
    row = tables["other"].iloc[0]
    assert row["near mean"] == f"{60 + 13 + 1 + 2:.1f} ± 1.0"  # labels/cosine has 13 letters; letters are 4 points more
    assert row[beside].tolist() == ["3", "91.0 ± 1.0", "11.0 ± 1.0"]


def test_several_architectures_are_named(make_results):
    results = make_results(auroc, detectors=DETECTORS, archs=("resnet20", "resnet18"))
    (table,) = detector_tables.reading_tables(results, report.main_table(results)).values()
    assert set(table.arch) == {"resnet20", "resnet18"}


def test_one_run_has_an_interval_where_it_was_kept(make_results):
    results = make_results(auroc, detectors=DETECTORS, seeds=(0,))
    about = {"run": "digits-resnet20-ce-s0", "clustering": "labels", "n_clusters": 7, "distance": "cosine"}
    about |= {"ood_dataset": "photos", "group": "far", "value": 0.7, "low": 0.6, "high": 0.8}
    rows = [about | {"metric": metric, "threshold": kind} for metric in ("auroc", "fpr95") for kind in KINDS]
    rows[1]["low"] = 0.0  # of the threshold a cluster
    kept = replace(results, intervals=pd.DataFrame(rows))
    assert auroc_intervals(kept).to_numpy().tolist() == [["digits-resnet20-ce-s0", "labels/cosine", "photos", 0.6, 0.8]]
    table = detector_tables.with_intervals(report.main_table(kept), kept)
    (tables,) = detector_tables.reading_tables(kept, table).values()
    cells = tables.set_index(["objective", "detector"]).photographs.str.strip("*")
    assert cells["ce", "labels/cosine"] == "73.0 [60.0, 80.0]"
    assert cells["ce", "knn"] == "63.0"


def test_intervals_of_earlier_runs_are_columns_of_their_metrics(make_results):
    results = make_results(auroc, detectors=DETECTORS)
    earlier = replace(results, metrics=results.metrics.assign(auroc_low=0.1, auroc_high=0.9))
    earlier = replace(earlier, intervals=pd.DataFrame({"run": ["x"], "measure": ["aurc"], "low": [0], "high": [1]}))
    assert len(auroc_intervals(earlier)) == len(results.metrics)
    table = detector_tables.with_intervals(report.main_table(earlier), earlier)
    assert table.low.isna().all()  # three seeds have an sd
    assert auroc_intervals(results).empty


def test_product_has_a_row_a_combination_with_k_in_numerical_order(results):
    per_cluster = results.decisions[results.decisions.threshold == "global"].assign(threshold="per-cluster", auroc=0.5)
    decisions = pd.concat([results.decisions, per_cluster[per_cluster.clustering != "none"]])
    table = detector_tables.product_table(replace(results, decisions=decisions, metrics=report.ranked(decisions)))
    assert len(table) == 2 * 2 * (3 * 2 + 1)
    first = table[(table.id_dataset == "digits") & (table.objective == "ce")]
    clusterings = [("labels", 7), ("kmeans", 7), ("kmeans", 20)]
    expected = [[name, k, kind] for name, k in clusterings for kind in KINDS] + [["none", 0, "global"]]
    assert first[["clustering", "n_clusters", "threshold"]].to_numpy().tolist() == expected
    row = first.iloc[-1]
    assert (row.near, row.near_sd, row.near_n) == (pytest.approx(60 + 3 + 1 + 2), pytest.approx(1), 3)
    assert row.far == pytest.approx(64)
    assert set(first[first.threshold == "per-cluster"].near) == {50}


def test_floats_are_cut_to_four_digits():
    table = detector_tables.four_digits(pd.DataFrame({"a": [12.34567, 0.000123456], "b": ["x", "y"], "n": [12345, 1]}))
    assert table.to_csv(index=False) == "a,b,n\n12.35,x,12345\n0.0001235,y,1\n"
