"""Selective prediction against plain loops over orderings and thresholds, and counts by hand."""

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from oodlib.metrics import auroc, auroc_interval
from oodlib.selective import (
    augrc,
    augrc_interval,
    aurc,
    aurc_interval,
    error_auroc,
    error_auroc_interval,
    oscr,
    oscr_interval,
    risk_coverage,
)


def draw(seed, n=60):
    rng = np.random.default_rng(seed)
    correct = rng.random(n) < 0.7
    return (rng.normal(0, 1, n) + correct).round(1), correct


def test_error_auroc_is_right_against_wrong():
    scores, correct = draw(0)
    assert error_auroc(scores, correct) == pytest.approx(roc_auc_score(correct, scores))
    assert error_auroc([3, 2, 1, 0], [1, 0, 1, 0]) == 3 / 4
    for constant in ([True, True], [False, False]):
        with pytest.raises(ValueError, match="correct must hold right and wrong answers, got [02] right of 2"):
            error_auroc([0.0, 1.0], constant)


def test_risk_coverage_equals_the_loop_over_thresholds():
    scores, correct = draw(1)
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
    scores, correct = draw(3)
    assert aurc(np.zeros(60), correct) == pytest.approx((~correct).mean())
    assert aurc(scores, np.ones(60, bool)) == 0.0
    assert aurc(scores, np.zeros(60, bool)) == 1.0


def test_augrc_at_its_ends_and_by_hand():
    scores, correct = draw(3)
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
        id_scores, id_correct = draw(seed)
        ood_scores = np.random.default_rng(seed + 100).normal(0, 1, 45).round(1)
        assert oscr(id_scores, id_correct, ood_scores) == pytest.approx(oscr_by_loop(id_scores, id_correct, ood_scores))


# Intervals


@pytest.mark.parametrize(("measure", "interval"), [(aurc, aurc_interval), (augrc, augrc_interval)])
def test_an_interval_is_the_bootstrap_of_a_plain_loop(measure, interval):
    scores, correct = draw(6)
    rng, values = np.random.default_rng(0), []
    for _ in range(2000):
        drawn = rng.integers(60, size=60)
        values.append(measure(scores[drawn], correct[drawn]))
    found = interval(scores, correct, n_resamples=2000, level=0.8)
    assert found == pytest.approx(np.quantile(values, [0.1, 0.9]), abs=0.01)
    assert found == interval(scores, correct, n_resamples=2000, level=0.8)
    assert found != interval(scores, correct, n_resamples=2000, level=0.8, seed=1)
    low, high = interval(scores, correct, n_resamples=2000)
    assert low < found[0] < measure(scores, correct) < found[1] < high
    assert interval(scores, np.ones(60, bool), n_resamples=5) == (0.0, 0.0)


def test_oscr_interval_has_delongs_variance():
    id_scores, correct = draw(5)
    ood = np.random.default_rng(6).normal(0, 1, 25).round(1)
    wins = (id_scores[:, None] > ood) + (id_scores[:, None] == ood) / 2
    wins[~correct] = 0  # a wrong answer wins against none
    variance = np.var(wins.mean(axis=1), ddof=1) / 60 + np.var(wins.mean(axis=0), ddof=1) / 25
    for level, z in ((0.5, 0.67448975), (0.95, 1.95996398)):
        expected = wins.mean() - z * variance**0.5, wins.mean() + z * variance**0.5
        assert oscr_interval(id_scores, correct, ood, level) == pytest.approx(expected)


def test_bad_levels_and_resamples():
    scores, correct = draw(7)
    for level in (0, 1, 95, np.nan):
        for interval in (error_auroc_interval, aurc_interval, lambda s, c, level: oscr_interval(s, c, s, level)):
            with pytest.raises(ValueError, match=f"level must lie between 0 and 1, got {level}"):
                interval(scores, correct, level=level)
    with pytest.raises(ValueError, match="n_resamples must be at least 1, got 0"):
        augrc_interval(scores, correct, n_resamples=0)


def test_oscr_interval_without_variance_claims_no_certainty():
    low, high = oscr_interval(np.arange(10, 20), np.ones(10, bool), np.arange(5))
    assert (low, high) == pytest.approx((0.025 ** (1 / 5), 1))
    assert (low, high) == pytest.approx(auroc_interval(np.arange(10, 20), np.arange(5)))
    low, high = oscr_interval(np.arange(10, 20), np.zeros(10, bool), np.arange(5))
    assert (low, high) == pytest.approx((0, 1 - 0.025 ** (1 / 5)))


def test_intervals_need_two_of_each():
    for correct, counted in (([1, 0, 0], "1 and 2"), ([1, 1, 0], "2 and 1"), ([1, 1, 1], "3 and 0")):
        with pytest.raises(ValueError, match=f"an interval needs 2 right and 2 wrong answers, got {counted}"):
            error_auroc_interval([0.0, 1.0, 2.0], correct)
    with pytest.raises(ValueError, match="an interval needs 2 ID and 2 OOD scores, got 1 and 2"):
        oscr_interval([1.0], [True], [0.0, 1.0])
    with pytest.raises(ValueError, match="an interval needs 2 ID and 2 OOD scores, got 2 and 1"):
        oscr_interval([1.0, 2.0], [True, False], [0.0])


@pytest.mark.parametrize(
    "function", [error_auroc, risk_coverage, aurc, aurc_interval, lambda s, c: oscr_interval(s, c, [0.0, 1.0])]
)
def test_bad_input_raises_and_is_named(function):
    with pytest.raises(ValueError, match=r"correct must have the shape of (id_)?scores \(2,\), got \(3,\)"):
        function([0.0, 1.0], [True, False, True])
    with pytest.raises(ValueError, match=r"correct must be True or False \(or 1 and 0\), got \[0, 3\]"):
        function([0.0, 1.0], [0, 3])
    with pytest.raises(ValueError, match="scores must not hold NaN"):
        function([0.0, np.nan], [True, False])
    with pytest.raises(ValueError, match=r"scores must have shape \(n,\) with n >= 1"):
        function([], [])


def test_tensors_are_scores_and_answers():
    scores, correct = draw(9)
    tensors = torch.from_numpy(scores).requires_grad_(), torch.from_numpy(correct)
    assert aurc(*tensors) == aurc(scores, correct)
    assert augrc_interval(*tensors) == augrc_interval(scores, correct)
    assert oscr(*tensors, tensors[0]) == oscr(scores, correct, scores)
    assert auroc(tensors[0], torch.zeros(3, dtype=torch.bfloat16)) == auroc(scores, np.zeros(3))
