"""Ranks of hand-made results: which combinations and blocks count, and the tests of them by hand and by tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from oodlib.report.ranks import BLOCK, Ranking, critical_difference, friedman, judge, losses, rank_matrix, ranking
from oodlib.report.results import choose

DETECTORS = (("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("kmeans", 20, "cosine"), ("none", 0, "knn"))
NAMES = ["labels/cosine", "kmeans/cosine", "knn"]


def values(objective, detector, seed, ood, **_):
    """Return an AUROC in which SupCon is better, but with letters, and detectors differ by their name's length."""
    return 0.5 + len(detector) / 100 + seed / 1000 + (objective == "supcon") * (-0.1 if ood == "letters" else 0.1)


def test_one_number_of_clusters_stands_for_all(make_results):
    matrix = rank_matrix(make_results(values, detectors=DETECTORS), "near")
    assert sorted(matrix) == sorted(f"{objective} {name}" for objective in ("ce", "supcon") for name in NAMES)
    assert len(matrix) == 3 * 2  # seeds, near sets
    assert set(matrix.index.get_level_values("ood_dataset")) == {"digits789", "letters"}
    assert set(rank_matrix(make_results(values, detectors=DETECTORS), "far").index.get_level_values(3)) == {"photos"}
    assert matrix["ce kmeans/cosine"].tolist() == pytest.approx([65 + 0.1 * seed for seed in (0, 0, 1, 1, 2, 2)])


def test_as_many_clusters_as_classes_is_another_number_for_another_id_set(make_results):
    results = make_results(values, detectors=DETECTORS, id_datasets=("digits", "other"))
    other = (results.decisions.id_dataset == "other") & (results.decisions.clustering == "labels")
    decisions = results.decisions.assign(n_clusters=results.decisions.n_clusters.mask(other, 20))
    matrix = rank_matrix(replace(results, decisions=decisions), "near")
    assert "ce kmeans/cosine" in matrix
    assert not matrix.isna().any(axis=None)
    assert len(matrix) == 2 * 3 * 2


def test_what_some_block_lacks_and_what_has_seen_outliers_is_left_out(make_results):
    results = make_results(values, detectors=DETECTORS)
    metrics = results.metrics
    lacks = (metrics.objective == "ce") & (metrics.detector == "knn") & (metrics.seed == 1)
    seen = metrics.assign(seen=(metrics.detector == "labels/cosine").astype(int))
    assert "ce knn" not in rank_matrix(replace(results, metrics=metrics[~lacks]), "near")
    assert "supcon knn" in rank_matrix(replace(results, metrics=metrics[~lacks]), "near")
    assert not any("labels/cosine" in name for name in rank_matrix(replace(results, metrics=seen), "near"))


def test_a_run_that_is_missing_takes_its_blocks_out_not_its_objective(make_results):
    results = make_results(values, detectors=DETECTORS)
    metrics = results.metrics[(results.metrics.objective == "ce") | (results.metrics.seed != 2)]
    matrix = rank_matrix(replace(results, metrics=metrics), "near")
    assert set(matrix.index.get_level_values("seed")) == {0, 1}
    assert "supcon knn" in matrix


def test_ranks_are_among_the_detectors_shown_and_the_difference_among_all_of_them(make_results):
    results = make_results(values, detectors=DETECTORS)
    found = ranking(results, "near")
    assert found.best == "ce kmeans/cosine"  # ranks 2 and 1 (SupCon's: 1 and 4)
    assert found.ranks.to_dict() == pytest.approx(found.blocks.rank(axis=1, ascending=False).mean().to_dict())
    assert found.critical_difference == critical_difference(6, 6)
    assert len(ranking(choose(results, ["knn"]), "near").ranks) == 2
    assert ranking(make_results(objectives=("ce",), detectors=(("none", 0, "knn"),)), "near") is None


def test_critical_difference_is_that_of_the_tables():
    # Demšar 2006, table 5a: q at 5 % is 1.960 for two and 2.728 for five, and the example has four over fourteen
    assert critical_difference(2, 10) == pytest.approx(1.960 * np.sqrt(2 * 3 / 60), abs=1e-3)
    assert critical_difference(5, 30) == pytest.approx(2.728 * np.sqrt(5 * 6 / 180), abs=1e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)


def test_friedman_is_that_of_scipy_and_needs_three():
    blocks = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 4)))
    assert friedman(blocks) == stats.friedmanchisquare(*blocks.to_numpy().T).pvalue
    assert np.isnan(friedman(blocks.iloc[:, :2]))
    assert np.isnan(friedman(blocks.iloc[:1]))


def test_losses_of_the_best_are_paired_and_corrected_for_the_number_of_pairs(make_results):
    found = ranking(make_results(values, detectors=DETECTORS), "near")
    by_pair, level = losses(found)
    of_best = {pair: own[found.best] for pair, own in by_pair.items()}
    assert {pair: (winner, loss.mean, loss.n) for pair, (winner, loss) in of_best.items()} == {
        "digits → digits789 (resnet20)": ("supcon kmeans/cosine", pytest.approx(10), 3),
        "digits → letters (resnet20)": ("ce kmeans/cosine", 0, 3),
    }
    assert level == 1 - 0.05 / 2
    assert found.pairs().shape == (2, 6)
    assert found.told_apart() == int((found.ranks > found.ranks.iloc[0] + found.critical_difference).sum())


def by_hand(a, b, c) -> Ranking:
    """Return a ranking of three combinations: their points on two pairs of three seeds each."""
    index = [("digits", "resnet20", seed, ood) for ood in ("x", "y") for seed in range(3)]
    blocks = pd.DataFrame({"a": a, "b": b, "c": c}, pd.MultiIndex.from_tuples(index, names=BLOCK), dtype=float)
    ranks = blocks.rank(axis=1, ascending=False).mean().sort_values()
    return Ranking("near", blocks, ranks, critical_difference(3, 6))


def test_the_best_by_rank_that_loses_is_no_proof_that_all_do():
    found = by_hand(a=[80] * 6, b=[79, 79, 95, 79, 79, 95], c=[10] * 6)
    assert found.best == "a"  # but b has the better mean on both pairs
    assert {own["a"][0] for own in losses(found)[0].values()} == {"b"}
    assert judge(found)[0] == "undecided"


def test_every_combination_that_loses_somewhere_is_proof():
    word, short, text = judge(by_hand(a=[90, 90, 90, 70, 70, 70], b=[70, 70, 70, 90, 90, 90], c=[10] * 6))
    assert word == "supported"
    said = "a, best by mean rank, loses to b on digits → y by 20.00 [20.00, 20.00; n = 3]; 3 of 3 combinations lose"
    assert short == f"{said} some pair for sure"
    assert "3 of 3 combinations lose some pair for sure" in text


def test_what_is_as_good_as_the_winner_loses_nothing():
    word, short, _ = judge(by_hand(a=[100] * 6, b=[100, 100, 100, 90, 90, 90], c=[10] * 6))
    said = "a, best by mean rank, wins every pair; 2 of 3 combinations lose some pair for sure"
    assert (word, short) == ("contradicted", said)


def test_what_is_lost_on_a_seed_is_against_the_winner_of_the_other_seeds():
    found = by_hand(a=[70, 60, 61, 70, 60, 61], b=[60, 70, 61, 60, 70, 61], c=[60, 60, 70, 60, 60, 70])
    for own in losses(found)[0].values():  # each wins one seed, by luck: there the others' winner has 60 or 61 points
        assert own["a"][1].mean == pytest.approx(np.mean([60 - 70, 60 - 60, 61 - 61]))
        assert own["c"][1].mean == pytest.approx(np.mean([60 - 60, 60 - 60, 61 - 70]))
    assert judge(found)[0] == "undecided"


def test_seeds_averaged_are_blocks_of_their_own():
    found = by_hand(a=[90] * 6, b=[80] * 6, c=[10] * 6)
    assert found.averaged().blocks.shape == (2, 3)
    assert found.averaged().critical_difference == critical_difference(3, 2)
