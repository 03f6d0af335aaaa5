"""Regret of hand-made results: what each rule chooses, and how far that is from the best, counted by hand."""

from dataclasses import replace

import pandas as pd
import pytest

from oodlib.regret import ALWAYS, BY_CLUSTERS, chosen_detectors, regret_table, regrets

BEST = {"digits789": "knn", "letters": "labels/cosine", "photos": "labels/mahalanobis"}


def winners(ood, detector, seed, **_) -> float:
    """Return an AUROC of 0.9 for the best detector of a set, and less by a point a seed for the others."""
    return 0.9 if BEST.get(ood) == detector else 0.8 - 0.01 * seed


@pytest.fixture
def results(make_results):
    """Hand-made results in which k-means has the better silhouette."""
    made = make_results(winners)
    rows = [
        made.runs.iloc[i][["run", "id_dataset", "arch", "objective", "seed"]].to_dict()
        | {"clustering": name, "n_clusters": k, "pca": 0, "cluster": "all", "size": 9, "measure": "silhouette"}
        | {"value": value}
        for i in range(len(made.runs))
        for name, k, value in (("labels", 7, 0.2), ("one", 1, float("nan")), ("kmeans", 10, 0.3))
    ]
    return replace(made, clusters=pd.concat([made.clusters, pd.DataFrame(rows)], ignore_index=True))


def test_every_rule_chooses_one_detector_a_run(results):
    chosen = chosen_detectors(results)
    assert set(chosen.groupby("rule").size()) == {6}
    by_rule = chosen.groupby("rule").chosen.unique()
    assert {rule: names.tolist() for rule, names in by_rule.items()} == {
        "left-out classes": ["labels/mahalanobis"],
        "virtual outliers": ["knn"],
        BY_CLUSTERS: ["kmeans-10/cosine"],
        **{f"always {name}": [name] for name in ALWAYS},
    }


def test_regret_is_the_best_less_the_chosen(results):
    table = regrets(results)
    assert set(table.ood_dataset) == set(BEST)  # no sanity set
    for row in table.itertuples():
        expected = 0 if BEST[row.ood_dataset] == row.chosen else 10 + row.seed
        assert row.regret == pytest.approx(expected)
        assert row.best == pytest.approx(90)
        assert row.auroc == pytest.approx(90 - expected)


def test_what_has_seen_outliers_is_no_rival(results):
    seen = results.metrics.assign(seen=(results.metrics.detector == "knn").astype(int))
    table = regrets(replace(results, metrics=seen))
    assert "knn" not in set(table.chosen)
    near = table[table.ood_dataset == "digits789"]
    assert near.best.tolist() == pytest.approx((80 - near.seed).tolist())
    assert near.regret.abs().max() < 1e-9


def test_regret_table_averages_the_sets_of_a_run_before_the_runs(results):
    table = regret_table(results)
    assert list(table) == ["id_dataset", "rule", "n", "near regret", "far regret"]
    cells = table.set_index("rule")
    # near: digits789 and letters; knn is best on one, cosine on the other; seeds 0, 1, 2, two objectives
    assert cells.loc["always knn", "near regret"] == "5.5 ± 0.4"  # 5.0, 5.5, 6.0 twice
    assert cells.loc["always labels/cosine", "near regret"] == "5.5 ± 0.4"
    assert cells.loc["always labels/mahalanobis", "near regret"] == "11.0 ± 0.9"
    assert cells.loc["always labels/mahalanobis", "far regret"] == "0.0 ± 0.0"
    assert cells.loc["left-out classes", "far regret"] == "0.0 ± 0.0"
    assert cells.loc["virtual outliers", "far regret"] == "11.0 ± 0.9"
    assert set(cells.n) == {6}
    assert table.rule.tolist()[-1] == BY_CLUSTERS  # right nowhere


def test_a_study_without_rules_still_has_the_simple_ones(results):
    table = regret_table(replace(results, choices=results.choices[:0]))
    assert set(table.rule) == {BY_CLUSTERS, *(f"always {name}" for name in ALWAYS)}
