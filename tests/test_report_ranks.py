"""Ranks, regret and predictors of hand-made results: by hand, by tables and by SciPy."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from oodlib.report import measures
from oodlib.report.ranks import (
    ALWAYS,
    BY_CLUSTERS,
    BY_HEAD,
    chosen_detectors,
    critical_difference,
    friedman,
    pooled,
    ranking,
    regrets,
)
from oodlib.report.results import SETTING, choose

DETECTORS = (("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("kmeans", 20, "cosine"), ("none", 0, "knn"))


def by_length(objective, detector, seed, ood, **_):
    """Return an AUROC in which SupCon is better, but with letters, and detectors differ by their name's length."""
    return 0.5 + len(detector) / 100 + seed / 1000 + (objective == "supcon") * (-0.1 if ood == "letters" else 0.1)


def test_blocks_average_seeds_and_as_many_clusters_as_classes_stand_for_all(make_results):
    results = make_results(by_length, detectors=DETECTORS)
    found = ranking(results, "near")
    assert found.ranks.to_dict() == {"kmeans/cosine": 1, "labels/cosine": 2, "knn": 3}
    assert found.blocks.shape == (2 * 2, 3)  # objectives, near sets
    assert found.critical_difference == critical_difference(3, 4)
    of_ce = found.blocks.xs("ce", level="objective")["knn"]
    assert of_ce.tolist() == pytest.approx([53.1, 53.1])  # seeds 0, 1, 2
    assert set(ranking(results, "far").blocks.index.get_level_values("ood_dataset")) == {"photos"}
    assert len(ranking(choose(results, ["knn", "labels/*"]), "near").ranks) == 2
    assert ranking(choose(results, ["knn"]), "near") is None
    metrics = results.metrics
    lacks = (metrics.objective == "ce") & (metrics.detector == "knn")  # what some block lacks is not ranked
    assert "knn" not in ranking(replace(results, metrics=metrics[~lacks]), "near").ranks
    seen = metrics.assign(seen=(metrics.detector == "labels/cosine").astype(int))  # nor what has seen outliers
    assert "labels/cosine" not in ranking(replace(results, metrics=seen), "near").ranks
    results = make_results(by_length, detectors=DETECTORS, id_datasets=("digits", "other"))
    other = (results.decisions.id_dataset == "other") & (results.decisions.clustering == "labels")
    decisions = results.decisions.assign(n_clusters=results.decisions.n_clusters.mask(other, 20))
    blocks = ranking(replace(results, decisions=decisions), "near").blocks
    assert "kmeans/cosine" in blocks
    assert len(blocks) == 2 * 2 * 2


def test_critical_difference_is_that_of_the_tables_and_friedman_that_of_scipy():
    # Demšar 2006, table 5a: q at 5 % is 1.960 for two and 2.728 for five, and the example has four over fourteen
    assert critical_difference(2, 10) == pytest.approx(1.960 * np.sqrt(2 * 3 / 60), abs=1e-3)
    assert critical_difference(5, 30) == pytest.approx(2.728 * np.sqrt(5 * 6 / 180), abs=1e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)
    blocks = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 4)))
    assert friedman(blocks) == stats.friedmanchisquare(*blocks.to_numpy().T).pvalue
    assert np.isnan(friedman(blocks.iloc[:, :2]))
    assert np.isnan(friedman(blocks.iloc[:1]))


BEST = {"digits789": "knn", "letters": "labels/cosine", "photos": "labels/mahalanobis"}


def winners(ood, detector, seed, **_) -> float:
    """Return an AUROC of 0.9 for the best detector of a set, and less by a point a seed for the others."""
    return 0.9 if BEST.get(ood) == detector else 0.8 - 0.01 * seed


@pytest.fixture
def chosen_results(make_results):
    """Hand-made results in which k-means has the better silhouette."""
    made = make_results(winners)
    about = made.runs[["run", "id_dataset", "arch", "objective", "seed"]].assign(cluster="all", measure="silhouette")
    rows = [
        about.assign(clustering=name, n_clusters=k, value=value)
        for name, k, value in (("labels", 7, 0.2), ("one", 1, float("nan")), ("kmeans", 10, 0.3))
    ]
    return replace(made, clusters=pd.concat([made.clusters, *rows], ignore_index=True))


def test_every_rule_chooses_one_detector_a_run(chosen_results):
    chosen = chosen_detectors(chosen_results)
    assert set(chosen.groupby("rule").size()) == {6}
    assert chosen.groupby("rule").chosen.unique().map(list).to_dict() == {
        "left-out classes": ["labels/mahalanobis"],
        "virtual outliers": ["knn"],
        BY_CLUSTERS: ["kmeans-10/cosine"],
        BY_HEAD: ["knn"],
        **{f"always {name}": [name] for name in ALWAYS},
    }
    some = chosen_results.metrics.detector.eq("labels/cosine") & chosen_results.metrics.objective.eq("ce")
    metrics = chosen_results.metrics.assign(detector=chosen_results.metrics.detector.mask(some, "energy"))
    chosen = chosen_detectors(replace(chosen_results, metrics=metrics))
    by_head = chosen[chosen.rule == BY_HEAD].set_index("run").chosen
    assert by_head.str.cat(by_head.index, " of ").str.contains("energy of .*-ce-|knn of .*-supcon-").all()


def test_regret_is_the_best_less_the_chosen(chosen_results):
    table, metrics = regrets(chosen_results), chosen_results.metrics
    assert set(table.ood_dataset) == set(BEST)  # no sanity set
    expected = [0 if BEST[row.ood_dataset] == row.chosen else 10 + row.seed for row in table.itertuples()]
    np.testing.assert_allclose(table.regret, expected, atol=1e-9)
    np.testing.assert_allclose(table.best, 90)
    seen = metrics.assign(seen=(metrics.detector == "knn").astype(int))
    without = regrets(replace(chosen_results, metrics=seen))  # what has seen outliers is no rival
    assert "knn" not in set(without.chosen)
    assert without[without.ood_dataset == "digits789"].regret.abs().max() < 1e-9
    of_clusters = metrics[metrics.detector == "labels/cosine"]
    more = of_clusters.assign(
        clustering="kmeans", n_clusters=20, base="kmeans-20/cosine", detector="kmeans-20/cosine", auroc=1.0
    )
    swept = regrets(replace(chosen_results, metrics=pd.concat([metrics, more])))  # a K that not all seeds have is none
    np.testing.assert_allclose(swept[["best", "best_any_k"]], [[90, 100]] * len(swept))
    gone = (metrics.detector == "labels/mahalanobis") & (metrics.seed == 1)  # what left-out classes choose
    rules = set(regrets(replace(chosen_results, metrics=metrics[~gone])).rule)
    assert rules == {BY_CLUSTERS, BY_HEAD, "virtual outliers", "always knn", "always labels/cosine"}


def test_pooled_regret_has_a_row_a_rule_and_recommends_the_least_worst(chosen_results, make_results):
    ahead = {"knn": 0.10, "labels/cosine": 0.06, "labels/mahalanobis": 0.05}
    other = make_results(lambda detector, **_: 0.8 + ahead.get(detector, 0), seeds=(0,), objectives=("ce",))
    table = pooled({"one": chosen_results, "two": replace(other, choices=other.choices[:0])})
    rows = table.set_index("rule")
    # study one: always knn is right on one of two near sets, else it loses 10, 11, 12; study two: it is always right
    assert rows.loc["always knn", "near"] == pytest.approx((3 * 2 * 5.5 * 2 + 0) / (12 + 2))
    found = rows.loc["always knn", ["worst", "worst_at", "n"]].tolist()
    assert found == [pytest.approx(11), "one, digits, far", 18 + 3]
    assert rows.loc["always labels/mahalanobis", "worst"] == pytest.approx(11)
    assert rows.loc["virtual outliers", "n"] == 18
    assert table.n.is_monotonic_decreasing  # a rule that did not choose everywhere is not recommended
    assert table[table.n == table.n.max()].worst.is_monotonic_increasing


N_SEEDS = 5
MEASURED = {
    "rising": [0.1, 0.2, 0.3, 0.4, 0.5],
    "falling": [5, 4, 3, 2, 1],
    "unrelated": [2, 5, 3, 1, 4],
    "weak": [1, 3, 2, 5, 4],
    "often_infinite": [1, 3, 2, np.inf, np.nan],
    "twice": [np.nan, np.nan, np.nan, 1, 2],
    "constant": [1, 1, 1, 1, 1],
}
FAR = [0.5, 0.7, 0.6, 0.9, 0.8]


@pytest.fixture
def measured(make_results):
    """Results of five seeds of CE, of which near AUROC of knn rises with the seed, with the measures of MEASURED."""

    def auroc(seed, ood, detector, **_):
        values = {"digits789": 0.6 + seed / 50, "letters": 0.7 + seed / 50, "photos": FAR[seed]}
        return values.get(ood, 0.9) if detector == "knn" else 0.5

    made = make_results(auroc, objectives=("ce",), seeds=range(N_SEEDS))
    about = made.runs[["run", "id_dataset", "arch", "objective", "seed"]].assign(clustering="none", n_clusters=0)
    rows = [about.assign(measure=name, value=values, cluster="all") for name, values in MEASURED.items()]
    return replace(made, clusters=pd.concat([made.clusters, *rows], ignore_index=True))


def test_measures_of_a_run_are_means_over_its_clusters_of_as_many_as_classes(measured, make_results):
    table = measures.id_measures(measured)
    assert list(table.index.names) == [*SETTING, "seed"]
    # what is the same in all runs, as purity of the classes themselves, is left out
    assert set(table) == {"id_accuracy", "nearest_class_mean"} | (MEASURED.keys() - {"constant"})
    np.testing.assert_allclose(table.id_accuracy, 0.9 + np.arange(N_SEEDS) / 100)
    np.testing.assert_allclose(table.weak, MEASURED["weak"])
    other = make_results(separation=lambda seed, **_: 0.3 * seed, purity=lambda seed, **_: seed)
    more = other.clusters[other.clusters.clustering == "kmeans"].assign(n_clusters=20, value=9.0)
    table = measures.id_measures(replace(other, clusters=pd.concat([other.clusters, more])))
    assert sorted(table["k-means cluster_purity"]) == [0, 0, 1, 1, 2, 2]
    assert sorted(table.global_separation) == pytest.approx([0, 0, 0.3, 0.3, 0.6, 0.6])


def test_predictors_are_rank_correlations_strongest_first(measured):
    table = measures.predictors(measured, "knn")
    near, far = (table[table.group == group].set_index("measure") for group in ("near", "far"))
    assert list(table.group) == ["near"] * len(near) + ["far"] * len(far)
    by_hand = {"rising": 1, "falling": -1, "unrelated": 0, "weak": 0.8, "often_infinite": 0.5, "id_accuracy": 1}
    for measure, expected in by_hand.items():
        assert near.spearman[measure] == pytest.approx(expected, abs=1e-12), measure
    assert set(near.index) == set(by_hand) | {"nearest_class_mean"}  # not "constant", and not "twice"
    assert near.n.to_dict() == dict.fromkeys(near.index, 5) | {"often_infinite": 3}
    for measure in ("rising", "falling", "unrelated", "weak"):
        assert far.spearman[measure] == pytest.approx(stats.spearmanr(MEASURED[measure], FAR).statistic, abs=1e-12)
    for part in (near, far):
        assert (np.diff(part.spearman.abs()) < 1e-9).all()
    assert measures.predictors(measured, "labels/cosine").empty  # its AUROC is the same in all runs


def test_predictors_are_found_within_each_id_set(make_results):
    # within each set more is better; the set with more of the measure is the harder one
    results = make_results(
        lambda id_dataset, seed, **_: 0.8 + seed / 100 - 0.2 * (id_dataset == "letters32"),
        objectives=("ce",),
        separation=lambda id_dataset, seed, **_: 0.3 + seed / 100 + 0.2 * (id_dataset == "letters32"),
        id_datasets=("digits", "letters32"),
    )
    table = measures.predictors(results, "knn").query("measure == 'global_separation'")
    assert table[["id_dataset", "group"]].to_numpy().tolist() == [
        [id_dataset, group] for id_dataset in ("digits", "letters32") for group in ("near", "far")
    ]
    np.testing.assert_allclose(table.spearman, 1)
    assert set(table.n) == {3}
    assert measures.predictors(make_results(objectives=("ce",), seeds=(0, 1)), "knn").empty


@pytest.mark.parametrize("y", [[1, 2, 3, 4], [4, 3, 2, 1, 5, 6], [3, 1, 2, 3, 5]])
def test_p_is_the_share_of_all_orders_that_are_as_strong(y):
    x = np.arange(len(y))
    spearman, p = measures.rank_correlation(x, y)
    assert spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    others = [stats.spearmanr(order, y).statistic for order in itertools.permutations(x)]
    exact = np.mean(np.abs(others) >= abs(spearman) - 1e-9)
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / measures.N_PERMUTATIONS) + 1e-4)
    assert p == measures.rank_correlation(x, y)[1]  # the same each time
