"""Regret of hand-made results: what each rule chooses, and how far that is from the best, counted by hand."""

from dataclasses import replace

import pandas as pd
import pytest

from oodlib.report.regret import ALWAYS, BY_CLUSTERS, ORACLE, chosen_detectors, regret_table, regrets, told

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
        | {"clustering": name, "n_clusters": k, "cluster": "all", "size": 9, "measure": "silhouette"}
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
    for row in table[table.rule != ORACLE].itertuples():
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


def test_the_oracle_takes_the_best_of_each_set_and_has_no_regret(results):
    oracle = regrets(results).query("rule == @ORACLE")
    assert set(zip(oracle.ood_dataset, oracle.chosen, strict=True)) == set(BEST.items())
    assert set(oracle.regret) == {0}
    assert len(oracle) == 6 * 3


def test_regret_table_averages_sets_and_objectives_within_a_seed(results):
    table = regret_table(regrets(results))
    assert list(table) == ["id_dataset", "rule", "n", "near mean", "far mean", "digits789", "letters", "photos"]
    cells = table.set_index("rule")
    # near: digits789 and letters; knn is best on one, cosine on the other; seeds 0, 1, 2, objectives alike
    assert cells.loc["always knn", "near mean"] == "5.5 ± 0.5"  # 5.0, 5.5, 6.0
    assert cells.loc["always knn", "digits789"] == "0.0 ± 0.0"
    assert cells.loc["always knn", "letters"] == "11.0 ± 1.0"
    assert cells.loc["always labels/cosine", "near mean"] == "5.5 ± 0.5"
    assert cells.loc["always labels/mahalanobis", "near mean"] == "11.0 ± 1.0"
    assert cells.loc["always labels/mahalanobis", "far mean"] == "0.0 ± 0.0"
    assert cells.loc["left-out classes", "far mean"] == "0.0 ± 0.0"
    assert cells.loc["virtual outliers", "far mean"] == "11.0 ± 1.0"
    assert set(cells.n) == {3}  # seeds: runs of one seed are not independent
    assert table.rule[0] == ORACLE  # named first, with what it takes
    assert cells.loc[ORACLE, ["digits789", "photos"]].tolist() == ["knn (6/6)", "labels/mahalanobis (6/6)"]
    assert cells.loc[ORACLE, "near mean"] in {"knn (6/12)", "labels/cosine (6/12)"}
    assert set(table.rule[-3:]) == {BY_CLUSTERS, "always labels/mahalanobis", "left-out classes"}  # never right nearby


def test_id_sets_of_other_ood_sets_leave_cells_empty(make_results):
    first, second = (make_results(ood={name: "near", "photos": "far"}) for name in ("letters", "more"))
    second_metrics = second.metrics.assign(id_dataset="other", run="other-" + second.metrics.run)
    runs = pd.concat([first.runs, second.runs.assign(id_dataset="other", run="other-" + second.runs.run)])
    both = replace(first, metrics=pd.concat([first.metrics, second_metrics]), runs=runs, choices=first.choices[:0])
    table = regret_table(regrets(both)).set_index(["id_dataset", "rule"])
    assert table.loc[("other", "always knn"), "letters"] == ""
    assert table.loc[("digits", "always knn"), "letters"] == "0.0 ± 0.0"


def test_a_study_without_rules_still_has_the_simple_ones(results):
    table = regret_table(regrets(replace(results, choices=results.choices[:0])))
    assert set(table.rule) == {ORACLE, BY_CLUSTERS, *(f"always {name}" for name in ALWAYS)}


def test_seeds_that_lack_an_objective_are_left_out_where_another_has_all(results):
    lacking = (results.runs.objective == "ce") & (results.runs.seed == 2)
    part = replace(results, metrics=results.metrics[~results.metrics.run.isin(results.runs.run[lacking])])
    part = replace(part, runs=results.runs[~lacking], choices=part.choices[:0], clusters=part.clusters[:0])
    cells = regret_table(regrets(part)).set_index("rule")
    assert set(cells.n) == {2}
    assert cells.loc["always knn", "near mean"] == "5.2 ± 0.4"  # 5.0, 5.5


def test_a_rule_whose_choice_was_not_evaluated_is_left_out(results):
    metrics = results.metrics
    gone = (metrics.detector == "labels/mahalanobis") & (metrics.seed == 1)  # what left-out classes choose
    rules = set(regrets(replace(results, metrics=metrics[~gone])).rule)
    assert rules == {ORACLE, BY_CLUSTERS, "virtual outliers", "always knn", "always labels/cosine"}


def test_a_rule_that_could_not_measure_takes_the_detector_it_names(results):
    unmeasured = results.choices.rule == "left-out classes"
    choices = results.choices.assign(auroc=results.choices.auroc.mask(unmeasured))
    chosen = chosen_detectors(replace(results, choices=choices))
    assert chosen[chosen.rule == "left-out classes"].chosen.nunique() == 1


def test_told_is_the_least_regret_everywhere_and_the_least_where_it_is_worst():
    rows = [
        ("a", "near", {"left": 1.0, "always knn": 3.0, "oracle": 0.0}),
        ("a", "far", {"left": 9.0, "always knn": 4.0, "oracle": 0.0}),
        ("b", "near", {"left": 2.0, "always knn": 5.5, "of some": 0.5}),
        ("b", "sanity", {"left": 90.0, "always knn": 0.0}),
    ]
    about = {"arch": "resnet20", "objective": "ce", "ood_dataset": "x"}
    found = [
        about | {"id_dataset": id_dataset, "group": group, "rule": rule, "seed": seed, "regret": regret + seed - 0.5}
        for id_dataset, group, regrets_of in rows
        for rule, regret in regrets_of.items()
        for seed in (0, 1)
    ]
    near_and_far = (
        "a near OOD: left (1.0; the worst, always knn, 3.0); a far OOD: always knn (4.0; the worst, left, 9.0); "
        "b near OOD: of some (0.5; the worst, always knn, 5.5)"
    )
    worst = "Least where it is worst: always knn, 5.5."
    assert told(pd.DataFrame(found)) == f"Least regret, AUROC points. {near_and_far}. {worst}"
