"""Verdicts on hand-made results that support, contradict or leave open each claim, and the estimates behind them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from oodlib.report import claims
from oodlib.report.means import best_of_others, estimate
from oodlib.report.results import choose

DETECTOR = "labels/mahalanobis"
COST = {"ce": 10.0, "simclr": 20.0, "supcon": 20.0, "joint": 20.0, "cider": 20.0, "logitnorm": 10.0}
CIFAR = {"cifar100": "near", "tinyimagenet": "near", "mnist": "far", "noise:32": "sanity"}


def noise(seed: int, points: float = 0.1) -> float:
    """Return a small number of AUROC, given in points, that differs by seed; its mean over three seeds is not 0."""
    return points / 100 * (-1) ** seed * (1 + seed / 7)


def judged(claim: str, results, detector: str = DETECTOR) -> pd.DataFrame:
    table = claims.verdicts(results, results, detector)
    return table[table.claim == claim].set_index(["id_dataset", "group"])


def test_estimate_is_the_t_interval_of_scipy():
    values = np.random.default_rng(1).normal(1, size=6)
    found = estimate([*values, np.nan])
    assert (found.low, found.high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    assert (found.mean, found.n) == (pytest.approx(values.mean()), 6)
    assert estimate([np.nan]) is None
    one = estimate([2.0])
    assert (one.low, one.high, one.n) == (-np.inf, np.inf, 1)
    alike = estimate([0.001, 0.001, 0.001])  # no more than rounding makes
    assert alike.low < 0 < alike.high


def test_what_is_best_is_chosen_on_the_other_seeds():
    points = pd.DataFrame({"a": [9.0, 5, 1], "b": [4.0, 6, 6], "c": [np.nan, 7, 7]}, index=[0, 1, 2])
    found = best_of_others(points)
    # seed 0: a 3, b 6, and c was not run; seed 1: a 5, b 5, c 7; seed 2: a 7, b 5, c 7: the first of the best
    assert found.chosen.tolist() == ["b", "c", "a"]
    assert found.value.tolist() == [4, 7, 1]
    assert best_of_others(points[1:2]).to_numpy().tolist() == [["c", 7]]  # one row chooses for itself


@pytest.mark.parametrize(
    ("supcon", "simclr", "spread", "expected", "decides"),
    [
        (0.8, 0.1, 0.01, "supported", "supcon"),
        (0.8, 0.7, 0.01, "contradicted", "simclr"),  # well separated too
        (0.4, 0.1, 0.01, "contradicted", "supcon"),  # not well separated
        (0.7, 0.1, 0.30, "undecided", "supcon"),  # the interval spans the margin
        (0.8, 0.5, 0.05, "undecided", "simclr"),
    ],
)
def test_c1_is_decided_by_the_separation_of_each(make_results, supcon, simclr, spread, expected, decides):
    means = {"supcon": supcon, "simclr": simclr}
    results = make_results(
        separation=lambda objective, seed, **_: means[objective] + spread * (seed - 1), objectives=("supcon", "simclr")
    )
    row = judged("C1", results).loc[("digits", "")]
    assert (row.verdict, row.number) == (expected, f"global separation, {decides}")
    half = stats.t.ppf(0.975, 2) * spread / np.sqrt(3)
    numbers = [row.value, row.low, row.high, row.n, row.margin]
    assert numbers == pytest.approx([means[decides], means[decides] - half, means[decides] + half, 3, 0.5])


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ({"ce": 70, "supcon": 96, "simclr": 60}, "supported"),  # one that reaches the published figure is enough
        ({"ce": 70, "supcon": 91, "simclr": 60}, "undecided"),  # its interval does not
        ({"ce": 99, "supcon": 80, "joint": 99}, "contradicted"),  # CE is not contrastive, and joint contains it
    ],
)
def test_c2_is_held_against_the_published_figure(make_results, reached, expected):
    def auroc(objective, seed, ood, **_):  # so many points against CIFAR-100, and 50 elsewhere
        return (reached[objective] / 100 if ood == "cifar100" else 0.5) + noise(seed, 1)

    results = make_results(auroc, id_datasets=("cifar10",), objectives=tuple(reached), ood=CIFAR, cost=COST)
    results = replace(results, runs=results.runs.assign(id_accuracy=0.8))
    row = judged("C2", results).loc[("cifar10", "near")]
    values = [reached["supcon"] + 100 * noise(seed, 1) for seed in range(3)]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert row.verdict == expected
    numbers = [row.value, row.low, row.high, row.n, row.margin]
    assert numbers == pytest.approx([np.mean(values), low, high, 3, 90.6])
    assert "ID accuracy supcon 80.0 % (published 96.0)" in row.note


OWN = "ce labels/cosine"


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [
        ({OWN: 3}, {OWN: 3}, ["supported", "supported"]),
        ({OWN: 3}, {OWN: 3, "supcon knn": 7}, ["supported", "contradicted"]),  # one detector of a rival is enough
        ({OWN: 3, "joint knn": 7}, {OWN: 3, "ce knn": 9}, ["supported", "supported"]),  # neither is contrastive alone
        ({OWN: 3, "supcon labels/mahalanobis": 3}, {OWN: 3}, ["undecided", "supported"]),
    ],
)
def test_c3_is_against_the_best_contrastive_variant_with_any_detector(make_results, near, far, expected):
    def auroc(objective, detector, seed, ood, **_):  # points above 80 of (objective, detector), with noise of CE
        points = far if ood == "photos" else near
        return 0.8 + points.get(f"{objective} {detector}", -10) / 100 + noise(seed) * (objective == "ce")

    results = make_results(auroc, id_datasets=("cifar100",), objectives=("ce", "supcon", "joint"), cost=COST)
    found = judged("C3", results).loc[[("cifar100", "near"), ("cifar100", "far")]]
    assert found.verdict.tolist() == expected
    if "supcon knn" in far:
        row = found.loc[("cifar100", "far")]
        assert row.number.endswith("supcon with knn")
        assert row.value == pytest.approx(np.mean([100 * noise(seed) - 4 for seed in range(3)]))
    better = results.metrics[results.metrics.detector == "knn"].assign(auroc=0.99)  # of which none is a rival
    others = {"detector": "labels/ssd/per-cluster", "threshold": "per-cluster"}, {"detector": "oe", "seen": 1}
    more = [better.assign(**other) for other in others]
    changed = replace(results, metrics=pd.concat([results.metrics, *more]))
    pd.testing.assert_frame_equal(judged("C3", changed), judged("C3", results))


COMBINATIONS = [
    f"{objective} with {detector}"
    for objective in ("ce", "supcon")
    for detector in ("labels/mahalanobis", "labels/cosine", "kmeans/cosine", "knn")
]
THREE_NEAR = {"digits789": "near", "letters": "near", "more": "near", "photos": "far", "noise:8": "sanity"}
OF_CLASSES = (("labels", 7, "mahalanobis"), ("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("none", 0, "knn"))


def ordered(order, gap=0.02):
    """Return an AUROC function in which combination `order(ood)[0]` is best, and so on, with a little noise by seed."""

    def auroc(objective, detector, seed, ood, **_):
        place = order(ood).index(f"{objective} with {detector.replace('-7', '')}")
        return 0.9 - gap * place + noise(seed + place, 0.01)

    return auroc


def test_c4_is_contradicted_by_one_that_is_best_everywhere_but_not_by_luck_on_a_seed(make_results):
    found = judged("C4", make_results(ordered(lambda ood: COMBINATIONS), detectors=OF_CLASSES))
    assert found.verdict.to_dict() == {("all", "near"): "contradicted"}  # one far set is not everywhere
    assert found.value.iloc[0] == 0

    def lucky(objective, detector, seed, **_):  # each seed has another winner, by two points
        names = [name.replace("kmeans", "kmeans-7") for name in COMBINATIONS]
        return 0.8 + 0.02 * (names.index(f"{objective} with {detector}") == seed)

    assert judged("C4", make_results(lucky, detectors=OF_CLASSES)).loc[("all", "near")].verdict != "supported"


def test_c4_is_supported_where_the_best_loses_a_pair_for_sure(make_results):
    auroc = ordered(lambda ood: COMBINATIONS[::-1] if ood == "letters" else COMBINATIONS)
    row = judged("C4", make_results(auroc, detectors=OF_CLASSES, ood=THREE_NEAR)).loc[("all", "near")]
    assert (row.verdict, row.value, row.n) == ("supported", pytest.approx(14, abs=0.05), 3)
    assert row.note == f"as {COMBINATIONS[0]} to {COMBINATIONS[-1]} on digits 0–6 → letters"
    once = make_results(auroc, detectors=OF_CLASSES, ood=THREE_NEAR, seeds=(0,))
    row = judged("C4", once).loc[("all", "near")]
    assert (row.verdict, row.n) == ("undecided", 1)
    assert row.note.endswith("one seed")


@pytest.mark.parametrize(
    ("points", "cost", "expected"),
    [
        ({"ce": 0, "supcon": 1, "simclr": -9}, COST, "supported"),
        ({"ce": 0, "supcon": 1, "simclr": 5}, COST, "contradicted"),
        ({"ce": 0, "supcon": 2}, COST, "undecided"),
        ({"ce": 0, "supcon": 1}, COST | {"supcon": 12.0}, "contradicted"),  # hardly dearer
        ({"ce": 0, "supcon": -3, "logitnorm": 9}, COST, "supported"),  # no dearer objective is ahead
    ],
)
def test_c5_is_about_the_best_dearer_objective(make_results, points, cost, expected):
    results = make_results(
        lambda objective, seed, **_: 0.8 + points[objective] / 100 + noise(seed) * (objective == "ce"),
        objectives=tuple(points),
        cost=cost,
    )
    row = judged("C5", results).loc[("digits", "near")]
    best = max((name for name in points if name in claims.DEARER), key=points.get)
    assert (row.verdict, row.margin) == (expected, 2)
    assert row.number == f"AUROC points, {best} minus CE, {DETECTOR}"
    assert row.value == pytest.approx(points[best] - np.mean([100 * noise(seed) for seed in range(3)]))
    assert row.note.startswith(f"{cost[best] / 10:.1f} times the images of CE")


def test_one_seed_decides_nothing_and_what_cannot_be_tested_is_said(make_results):
    results = make_results(objectives=("supcon", "simclr"), separation=lambda objective, **_: 0.9, seeds=(0,))
    table = claims.verdicts(results, choose(results, ["knn"]), DETECTOR)
    expected = dict.fromkeys(("C1", "C4"), "undecided") | dict.fromkeys(("C2", "C3", "C5"), "not tested")
    assert table.set_index("claim").verdict.to_dict() == expected
    assert list(table) == claims.COLUMNS
    assert claims.reading_table(table).shape == (5, 4)
    with pytest.raises(ValueError, match="unknown detector 'vim'; known: labels/mahalanobis, labels/cosine"):
        claims.verdicts(results, results, "vim")
