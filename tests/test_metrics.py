"""Metrics against scikit-learn, plain loops over pairs, orderings and thresholds, and counts by hand."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from oodlib.metrics import (
    augrc,
    aupr_in,
    aupr_out,
    aurc,
    auroc,
    auroc_interval,
    count_groups,
    error_auroc,
    fpr95,
    fpr95_ood_positive,
    ood_metrics,
    oscr,
    risk_coverage,
)

PUBLIC = {f.__name__: f for f in (auroc, aupr_in, aupr_out, fpr95, fpr95_ood_positive)}


def draw(rng, n, m, decimals=1):
    return rng.normal(1, 1, n).round(decimals), rng.normal(0, 1, m).round(decimals)


def by_scikit_learn(id_scores, ood_scores):
    is_id = np.r_[np.ones(id_scores.size), np.zeros(ood_scores.size)]
    scores = np.r_[id_scores, ood_scores]
    fpr_in, tpr_in, _ = roc_curve(is_id, scores, drop_intermediate=False)
    fpr_out, tpr_out, _ = roc_curve(1 - is_id, -scores, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(is_id, scores),
        "aupr_in": average_precision_score(is_id, scores),
        "aupr_out": average_precision_score(1 - is_id, -scores),
        "fpr95": fpr_in[np.argmax(tpr_in >= 0.95)],
        "fpr95_ood_positive": fpr_out[np.argmax(tpr_out >= 0.95)],
    }


@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize(("n", "m"), [(20, 20), (1, 7), (137, 60), (40, 1000)])
def test_every_metric_equals_scikit_learn_with_and_without_ties(n, m, decimals):
    rng = np.random.default_rng(n + decimals)
    for _ in range(5):
        id_scores, ood_scores = draw(rng, n, m, decimals)
        expected = by_scikit_learn(id_scores, ood_scores)
        together = ood_metrics(id_scores, ood_scores)
        assert list(together) == [*PUBLIC, "n_id", "n_ood"]
        assert (together["n_id"], together["n_ood"]) == (n, m)
        for name, metric in PUBLIC.items():
            value = metric(id_scores, ood_scores)
            assert type(value) is float
            assert type(together[name]) is float
            assert value == together[name]
            assert value == pytest.approx(expected[name], abs=1e-12)


def test_groups_are_counted_at_each_distinct_score_highest_first():
    rng = np.random.default_rng(0)
    groups = [rng.integers(0, 12, n).astype(float) for n in (50, 1, 80)] + [np.array([-np.inf, np.inf, 0.0, -0.0])]
    distinct = sorted({float(score) for group in groups for score in group}, reverse=True)
    for group, found in zip(groups, count_groups(*groups), strict=True):
        assert found.tolist() == [sum(score == value for score in group) for value in distinct]
        assert found.dtype == np.int64


def test_a_constant_score_is_chance():
    values = ood_metrics(np.zeros(30), np.zeros(10))
    assert [values[name] for name in PUBLIC] == [0.5, 0.75, 0.25, 1.0, 1.0]


def test_only_the_order_of_scores_counts():
    id_scores, ood_scores = draw(np.random.default_rng(0), 50, 70)
    expected = ood_metrics(id_scores, ood_scores)
    assert ood_metrics(np.exp(id_scores), np.exp(ood_scores)) == expected
    assert ood_metrics((10 * id_scores).astype(int), (10 * ood_scores).astype(np.int16)) == pytest.approx(expected)
    assert ood_metrics(id_scores[::-1], ood_scores[::-1]) == expected


def test_dtypes_zeros_and_infinities():
    assert auroc([True, True], np.array([False, True])) == 0.75
    assert auroc(np.array([0.1], np.float32), np.array([0.1], np.float64)) == 1.0  # 0.1f is above 0.1
    assert auroc([0.0], [-0.0]) == 0.5
    assert auroc([np.inf, np.inf, -np.inf], [np.inf, -np.inf]) == (1.5 + 1.5 + 0.5) / 6
    assert fpr95([np.inf, 1.0], [-np.inf, np.inf]) == 0.5


@pytest.mark.parametrize("metric", [*PUBLIC.values(), ood_metrics, auroc_interval])
def test_bad_scores_raise_and_are_named(metric):
    good = [0.0, 1.0]
    with pytest.raises(ValueError, match=r"ood_scores must have shape \(n,\) with n >= 1, got \(0,\)"):
        metric(good, [])
    with pytest.raises(ValueError, match=r"id_scores must have shape \(n,\) with n >= 1, got \(1, 2\)"):
        metric([good], good)
    with pytest.raises(ValueError, match="ood_scores must not hold NaN, got 1 of 2"):
        metric(good, [0.0, np.nan])
    with pytest.raises(ValueError, match="id_scores must be real numbers .* got dtype <U1"):
        metric(["1", "2"], good)


def placements_by_loop(id_scores, ood_scores):
    wins = np.array([[float(i > o) + 0.5 * float(i == o) for o in ood_scores] for i in id_scores])  # (n, m)
    return wins.mean(axis=1), wins.mean(axis=0)


@pytest.mark.parametrize(("n", "m", "decimals"), [(30, 20, 9), (25, 40, 0), (2, 9, 1)])
def test_delong_interval_equals_the_placement_loop(n, m, decimals):
    id_scores, ood_scores = draw(np.random.default_rng(3), n, m, decimals)
    v10, v01 = placements_by_loop(id_scores, ood_scores)
    a = v10.mean()
    error = math.sqrt(v10.var(ddof=1) / n + v01.var(ddof=1) / m) / (a * (1 - a))
    for level, z in [(0.95, 1.959963984540054), (0.5, 0.674489750196082)]:
        expected = [1 / (1 + math.exp(-(math.log(a / (1 - a)) + sign * z * error))) for sign in (-1, 1)]
        assert auroc_interval(id_scores, ood_scores, level) == pytest.approx(expected, abs=1e-12)


def test_delong_where_the_variance_is_zero():
    q = 0.025 ** (1 / 20)  # 20 independent pairs, all won, have this chance of 2.5 % at AUROC q
    up, down, flat = np.arange(20.0) + 100, np.arange(30.0), np.zeros(20)
    assert auroc_interval(up, down) == pytest.approx((q, 1.0))
    assert auroc_interval(-up, -down) == pytest.approx((0.0, 1 - q))
    assert auroc_interval(flat, np.zeros(30)) == pytest.approx((0.5 * q, 1 - 0.5 * q))


@pytest.mark.parametrize("shift", [0.5, 1.2, 2.5])  # true AUROC 0.638, 0.802, 0.961
def test_delong_interval_covers_the_truth(shift):
    rng = np.random.default_rng(5)
    truth = 0.5 * math.erfc(-shift / 2)
    covered = 0
    for _ in range(600):
        low, high = auroc_interval(rng.normal(shift, 1, 60), rng.normal(0, 1, 40))
        covered += low <= truth <= high
    assert 0.92 <= covered / 600 <= 0.98


def test_bad_arguments_of_intervals():
    good = [0.0, 1.0]
    for level in (0, 1, 95, np.nan):
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            auroc_interval(good, good, level)
    with pytest.raises(ValueError, match="DeLong needs 2 ID and 2 OOD scores at least, got 2 and 1"):
        auroc_interval(good, [1.0])


# Errors


def draw_answers(seed, n=60):
    rng = np.random.default_rng(seed)
    correct = rng.random(n) < 0.7
    return (rng.normal(0, 1, n) + correct).round(1), correct


def test_error_auroc_is_right_against_wrong():
    scores, correct = draw_answers(0)
    assert error_auroc(scores, correct) == pytest.approx(roc_auc_score(correct, scores))
    assert error_auroc([3, 2, 1, 0], [1, 0, 1, 0]) == 3 / 4
    for constant in ([True, True], [False, False]):
        with pytest.raises(ValueError, match="correct must hold right and wrong answers, got [02] right of 2"):
            error_auroc([0.0, 1.0], constant)


def test_risk_coverage_equals_the_loop_over_thresholds():
    scores, correct = draw_answers(1)
    coverage, risk = risk_coverage(scores, correct)
    thresholds = np.unique(scores)[::-1]
    assert coverage == pytest.approx([(scores >= t).mean() for t in thresholds])
    assert risk == pytest.approx([(~correct[scores >= t]).mean() for t in thresholds])
    assert coverage[-1] == 1.0


def test_aurc_and_augrc_of_ties_are_the_mean_over_their_orders():
    scores, correct = np.array([2, 1, 1, 1, 0, 0]), np.array([1, 0, 1, 0, 1, 0], dtype=bool)
    risks, generalised = [], []
    for tie_break in permutations(range(6)):
        errors = np.r_[0, np.cumsum(~correct[np.lexsort((tie_break, -scores))])]
        risks.append((errors[1:] / np.arange(1, 7)).mean())
        generalised.append(np.trapezoid(errors / 6, np.arange(7) / 6))
    assert aurc(scores, correct) == pytest.approx(np.mean(risks))
    assert augrc(scores, correct) == pytest.approx(np.mean(generalised), rel=1e-12)


def test_aurc_at_its_ends():
    scores, correct = draw_answers(3)
    assert aurc(np.zeros(60), correct) == pytest.approx((~correct).mean())
    assert aurc(scores, np.ones(60, bool)) == 0.0
    assert aurc(scores, np.zeros(60, bool)) == 1.0


def test_augrc_at_its_ends_and_by_hand():
    scores, correct = draw_answers(3)
    e = (~correct).mean()
    assert augrc(np.zeros(60), correct) == pytest.approx(e / 2)
    assert augrc(correct, correct) == augrc(2.0 * correct, correct) == pytest.approx(e**2 / 2)
    assert augrc(~correct, correct) == pytest.approx(e - e**2 / 2)
    assert (augrc(scores, np.ones(60, bool)), augrc(scores, np.zeros(60, bool))) == (0.0, 0.5)
    assert augrc([3, 2, 1], [True, False, True]) == pytest.approx((0 + 1 / 2 + 1) / 9)  # errors 0, 0, 1, 1


def oscr_by_loop(id_scores, id_correct, ood_scores):
    points = [(0.0, 0.0)]
    for t in np.unique(np.r_[id_scores, ood_scores])[::-1]:
        points.append(((ood_scores >= t).mean(), (id_correct & (id_scores >= t)).mean()))
    fpr, ccr = np.array(points).T
    return np.sum(np.diff(fpr) * (ccr[1:] + ccr[:-1]) / 2)  # straight between points, as ties one half


def test_oscr_equals_the_trapezoid_over_thresholds():
    for seed in range(5):
        id_scores, id_correct = draw_answers(seed)
        ood_scores = np.random.default_rng(seed + 100).normal(0, 1, 45).round(1)
        assert oscr(id_scores, id_correct, ood_scores) == pytest.approx(oscr_by_loop(id_scores, id_correct, ood_scores))


@pytest.mark.parametrize("function", [error_auroc, risk_coverage, aurc, augrc, lambda s, c: oscr(s, c, [0.0, 1.0])])
def test_bad_answers_raise_and_are_named(function):
    with pytest.raises(ValueError, match=r"correct must have the shape of (id_)?scores \(2,\), got \(3,\)"):
        function([0.0, 1.0], [True, False, True])
    with pytest.raises(ValueError, match=r"correct must be True or False \(or 1 and 0\), got \[0, 3\]"):
        function([0.0, 1.0], [0, 3])
    with pytest.raises(ValueError, match="scores must not hold NaN"):
        function([0.0, np.nan], [True, False])
    with pytest.raises(ValueError, match=r"scores must have shape \(n,\) with n >= 1"):
        function([], [])


def test_tensors_are_scores_and_answers():
    scores, correct = draw_answers(9)
    tensors = torch.from_numpy(scores).requires_grad_(), torch.from_numpy(correct)
    assert aurc(*tensors) == aurc(scores, correct)
    assert augrc(*tensors) == augrc(scores, correct)
    assert oscr(*tensors, tensors[0]) == oscr(scores, correct, scores)
    assert auroc(tensors[0], torch.zeros(3, dtype=torch.bfloat16)) == auroc(scores, np.zeros(3))
