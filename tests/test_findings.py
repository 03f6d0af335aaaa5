"""Findings of hand-made results: thresholds, errors and what predicts OOD AUROC, by hand and by SciPy."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from oodlib.report import findings
from oodlib.report.results import SETTING, ranked


def opposed(ood, seed, **_) -> float:
    """Return an AUROC of which one near set rises with the seed as the other falls, and the far set rises slowly."""
    return {"digits789": 0.5 + 0.1 * seed, "letters": 0.5 - 0.1 * seed, "photos": 0.7 + 0.02 * seed}.get(ood, 0.9)


def decisions_changed(results, change):
    """Return results of which `change` made the decisions anew."""
    decisions = change(results.decisions)
    return replace(results, decisions=decisions, metrics=ranked(decisions))


def test_threshold_table_averages_the_sets_of_a_run_before_the_seeds(make_results):
    results = decisions_changed(make_results(opposed), lambda d: d.assign(id_rejected=d.id_rejected + d.seed / 100))
    table = findings.threshold_table(results, ["knn", "labels/cosine"])
    rates = ["false alarms %", "near OOD detected %", "far OOD detected %"]
    assert list(table) == [*SETTING, "detector", "threshold", "n", *rates]
    names = ["labels/cosine", "knn"]  # in the order of the results
    assert table[["objective", "detector", "threshold"]].to_numpy().tolist() == [
        [objective, name, threshold]
        for objective in ("ce", "supcon")
        for name in names
        for threshold in ("global", "conformal")
    ]
    assert set(table.n) == {3}  # seeds, not seeds times sets
    assert set(table[table.threshold == "global"]["false alarms %"]) == {"6.0 ± 1.0"}  # 5, 6, 7
    assert set(table[table.threshold == "conformal"]["false alarms %"]) == {"5.0 ± 1.0"}
    assert set(table["near OOD detected %"]) == {"25.0 ± 0.0"}  # half the AUROC: 25 in every run
    assert set(table["far OOD detected %"]) == {"36.0 ± 1.0"}  # 35, 36, 37


def test_threshold_table_counts_the_sanity_sets_for_false_alarms_alone(make_results):
    def change(decisions):  # heads that have seen outliers may reject other ID images for every set
        return decisions.assign(id_rejected=decisions.ood_dataset.map({"noise:8": 0.3}).fillna(0.1))

    table = findings.threshold_table(decisions_changed(make_results(opposed, seeds=(0,)), change), ["knn"])
    assert set(table["false alarms %"]) == {"15.0"}  # (3 × 10 + 30) / 4; one seed has no sd
    assert set(table["near OOD detected %"]) == {"25.0"}


def test_threshold_table_of_a_study_without_far_sets(make_results):
    table = findings.threshold_table(make_results(ood={"letters": "near"}), ["knn"])
    assert list(table.columns[-2:]) == ["false alarms %", "near OOD detected %"]


def test_thresholds_of_an_unknown_detector_name_the_known_ones(make_results):
    known = "labels/mahalanobis, labels/cosine, kmeans-10/cosine, knn"
    with pytest.raises(ValueError, match=f"unknown detector 'vim'; known: {known}"):
        findings.threshold_table(make_results(), ["knn", "vim"])


def test_error_table_averages_the_sets_of_a_run_before_the_seeds(make_results):
    table = findings.error_table(make_results(opposed))
    assert list(table) == [*SETTING, "detector", "group", "n", "auroc", "error_auroc", "aurc", "augrc", "oscr"]
    assert len(table) == 2 * 4 * 2  # objectives × detectors × groups
    assert set(table.n) == {3}
    near, far = (table[table.group == group].iloc[:, -5:].drop_duplicates() for group in ("near", "far"))
    assert near.to_numpy().tolist() == [["50.0 ± 0.0", "49.0 ± 0.0", "50.0 ± 0.0", "25.0 ± 0.0", "48.0 ± 0.0"]]
    assert far.to_numpy().tolist() == [["72.0 ± 2.0", "71.0 ± 2.0", "28.0 ± 2.0", "14.0 ± 1.0", "70.0 ± 2.0"]]


def test_error_table_has_no_row_for_a_detector_that_lacks_a_set(make_results):
    results = make_results(opposed)
    lacks = (results.metrics.detector == "knn") & (results.metrics.ood_dataset == "letters")
    table = findings.error_table(replace(results, metrics=results.metrics[~lacks]))
    assert set(table[table.detector == "knn"].group) == {"far"}
    assert set(table[table.detector == "labels/cosine"].group) == {"near", "far"}


def test_error_table_leaves_out_what_some_run_has_not_measured(make_results):
    results = make_results(opposed)
    whole = findings.error_table(results)
    earlier = results.metrics.drop(columns="augrc")
    some = results.metrics.assign(augrc=results.metrics.augrc.where(results.metrics.seed > 0))  # run before and after
    for metrics in (earlier, some):
        table = findings.error_table(replace(results, metrics=metrics))
        pd.testing.assert_frame_equal(table, whole.drop(columns="augrc"))


N_SEEDS = 5
MEASURED = {  # a value a seed; AUROC on near OOD rises with the seed
    "rising": [0.1, 0.2, 0.4, 0.8, 1.6],
    "falling": [9.0, 7.0, 5.0, 3.0, 1.0],
    "unrelated": [2.0, 5.0, 3.0, 1.0, 4.0],  # squared rank differences 1 + 9 + 0 + 9 + 1: 1 - 6 · 20 / 120 = 0
    "weak": [2.0, 1.0, 3.0, 5.0, 4.0],  # 1 + 1 + 0 + 1 + 1: 0.8
    "often_infinite": [np.inf, 1.0, 3.0, 2.0, np.nan],  # of seeds 1, 2, 3: ranks 1, 3, 2: 0.5
    "constant": [1.0] * N_SEEDS,
    "twice": [1.0, np.nan, np.inf, np.nan, 2.0],  # two runs are no correlation
}
FAR = [0.95, 0.94, 0.96, 0.98, 0.97]  # far AUROC, ranked as `weak` is


@pytest.fixture
def measured(make_results):
    """Results of five seeds of one objective, with the measures of MEASURED and some that must not count."""

    def auroc(ood, seed, detector, **_):
        if detector != "knn":
            return 0.5
        return {"photos": FAR[seed], "digits789": 0.6 + seed / 50, "letters": 0.7 + seed / 50}.get(ood, 1 - seed / 10)

    results = make_results(auroc, objectives=("ce",), seeds=range(N_SEEDS), separation=lambda **_: 0.5)
    about = {"arch": "resnet20", "objective": "ce", "id_dataset": "digits", "n_clusters": 7, "size": 5}
    rows = []
    for seed in range(N_SEEDS):
        run = about | {"run": f"digits-resnet20-ce-s{seed}", "seed": seed}
        for measure, values in MEASURED.items():
            common = run | {"measure": measure, "clustering": "none", "cluster": "all"}
            rows.append(common | {"value": values[seed]})
            rows.append(common | {"value": 100.0 * seed, "clustering": "kmeans"})
        of_class = run | {"measure": "spread", "clustering": "labels"}
        rows += [of_class | {"cluster": str(k), "value": k + seed / 10} for k in range(3)]
    return replace(results, clusters=pd.concat([results.clusters, pd.DataFrame(rows)], ignore_index=True))


def test_mistakes_are_changes_in_points_near_and_far_apart_within_a_run_first(make_results):
    results = make_results(lambda seed, ood, **_: 0.5 + 0.1 * seed + (ood == "letters") / 10, id_datasets=("b", "a"))
    table = findings.mistake_table(results)
    names = ["true label", "plain inverse", "OOD as positive, FPR95"]
    assert list(dict.fromkeys(table.mistake)) == names
    assert table[table.mistake == "true label"].id_dataset.tolist() == ["a", "b"]
    assert list(table.columns[3:]) == ["n", "near right %", "near change", "far right %", "far change"]
    table = table[table.id_dataset == "a"].set_index(["mistake", "detector"])
    cells = table.loc[("true label", "labels/cosine")]
    # seeds 0, 1, 2 of two objectives; near: the mean of 50 and 60, and so on; noise is no set of a mistake
    assert cells.tolist()[1:] == [6, "65.0 ± 8.9", "10.0 ± 0.0", "60.0 ± 8.9", "10.0 ± 0.0"]
    assert table.loc[("plain inverse", "labels/cosine"), "near change"] == "-10.0 ± 0.0"
    # fpr95 is 1 - value, the other 0.75 - value / 2: at 0.5, 0.6, 0.7 that is 0, 5, 10 points more
    assert table.loc[("OOD as positive, FPR95", "labels/cosine"), "far change"] == "5.0 ± 4.5"


def test_mistakes_of_any_name_are_told(make_results):
    results = make_results()
    ablations = results.ablations.assign(mistake="plain inverse, 32 images a class")
    table = findings.mistake_table(replace(results, ablations=ablations))
    assert "plain inverse, 32 images a class" in set(table.mistake)


def test_id_measures_are_means_over_the_classes_of_embeddings_as_they_are(measured):
    table = findings.id_measures(measured)
    assert list(table.index.names) == [*SETTING, "seed"]
    assert list(table.index.get_level_values("seed")) == list(range(N_SEEDS))
    varying = MEASURED.keys() - {"constant"}
    # global separation is the same in all runs here, and purity of the classes is 1 anywhere: both are left out
    assert set(table) == {"id_accuracy", "nearest_class_mean", "spread"} | varying
    np.testing.assert_allclose(table.spread, 1 + np.arange(N_SEEDS) / 10)
    np.testing.assert_allclose(table.id_accuracy, 0.9 + np.arange(N_SEEDS) / 100)
    np.testing.assert_allclose(table.nearest_class_mean, 0.8 + np.arange(N_SEEDS) / 100)
    for measure in ("rising", "falling", "unrelated", "weak"):
        np.testing.assert_allclose(table[measure], MEASURED[measure])


def test_global_separation_is_that_of_the_classes(make_results):
    table = findings.id_measures(make_results(separation=lambda seed, **_: 0.3 * seed, purity=lambda seed, **_: seed))
    assert set(table) == {"id_accuracy", "nearest_class_mean", "global_separation", "k-means cluster_purity"}
    assert sorted(table["k-means cluster_purity"]) == [0, 0, 1, 1, 2, 2]  # of as many clusters as classes
    assert sorted(table.global_separation) == pytest.approx([0, 0, 0.3, 0.3, 0.6, 0.6])


def test_ood_auroc_is_the_mean_over_the_sets_of_a_run(measured):
    table = findings.ood_auroc(measured, "knn")
    assert set(table) == {"near", "far"}
    np.testing.assert_allclose(table.near, 0.65 + np.arange(N_SEEDS) / 50)
    np.testing.assert_allclose(table.far, FAR)


def test_predictors_are_the_rank_correlations_of_scipy_strongest_first(measured):
    table = findings.predictors(measured, "knn")
    assert list(table) == ["id_dataset", "measure", "group", "spearman", "p", "n"]
    near, far = (table[table.group == group].set_index("measure") for group in ("near", "far"))
    assert list(table.group) == ["near"] * len(near) + ["far"] * len(far)
    by_hand = {"rising": 1, "falling": -1, "unrelated": 0, "weak": 0.8, "often_infinite": 0.5, "id_accuracy": 1}
    for measure, expected in by_hand.items():
        assert near.spearman[measure] == pytest.approx(expected, abs=1e-12), measure
    assert set(near.index) == set(by_hand) | {"nearest_class_mean", "spread"}  # not "constant", and not "twice"
    assert near.n.to_dict() == dict.fromkeys(near.index, 5) | {"often_infinite": 3}
    for measure in ("rising", "falling", "unrelated", "weak"):
        scipy = stats.spearmanr(MEASURED[measure], FAR).statistic
        assert far.spearman[measure] == pytest.approx(scipy, abs=1e-12), measure
    assert far.spearman["weak"] == pytest.approx(1)
    for part in (near, far):
        strength = part.spearman.abs().to_numpy()
        assert (np.diff(strength) < 1e-9).all()


def test_predictors_of_another_detector_are_others(measured):
    assert findings.predictors(measured, "labels/cosine").empty  # its AUROC is the same in all runs
    assert list(findings.predictors(measured, "no detector")) == [
        *("id_dataset", "measure", "group", "spearman", "p", "n")
    ]


def test_predictors_are_found_within_each_id_set(make_results):
    # within each set more is better; the set with more of the measure is the harder one
    results = make_results(
        lambda id_dataset, seed, **_: 0.8 + seed / 100 - 0.2 * (id_dataset == "letters32"),
        objectives=("ce",),
        separation=lambda id_dataset, seed, **_: 0.3 + seed / 100 + 0.2 * (id_dataset == "letters32"),
        id_datasets=("digits", "letters32"),
    )
    table = findings.predictors(results, "knn")
    table = table[table.measure == "global_separation"]
    assert table.id_dataset.tolist() == ["digits", "digits", "letters32", "letters32"]
    assert table.group.tolist() == ["near", "far"] * 2
    np.testing.assert_allclose(table.spearman, 1)
    assert set(table.n) == {3}


def test_two_runs_predict_nothing(make_results):
    results = make_results(lambda seed, **_: 0.5 + seed / 10, objectives=("ce",), seeds=(0, 1))
    assert findings.predictors(results, "knn").empty
    assert len(findings.predictors(make_results(lambda seed, **_: 0.5 + seed / 10, objectives=("ce",)), "knn")) == 4


def test_rank_correlation_is_that_of_scipy_with_ties_too():
    rng = np.random.default_rng(0)
    for n in (4, 9, 60):
        x, y = rng.integers(0, 5, n), rng.normal(size=n)
        assert findings.rank_correlation(x, y)[0] == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize("y", [[1, 2, 3, 4], [4, 3, 2, 1, 5, 6], [3, 1, 2, 3, 5], [2, 5, 3, 1, 4]])
def test_p_is_the_share_of_all_orders_that_are_as_strong(y):
    x = np.arange(len(y))
    spearman, p = findings.rank_correlation(x, y)
    others = [stats.spearmanr(order, y).statistic for order in itertools.permutations(x)]
    exact = np.mean(np.abs(others) >= abs(spearman) - 1e-9)
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / findings.N_PERMUTATIONS) + 1e-4)
    assert p == findings.rank_correlation(x, y)[1]  # the same each time


def test_p_of_many_points_is_that_of_the_t_distribution():
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    for slope in (0.05, 0.15):
        y = slope * x + rng.normal(size=200)
        assert findings.rank_correlation(x, y)[1] == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.02)
