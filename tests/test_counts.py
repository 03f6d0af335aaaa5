"""Counts by hand and against plain loops over scores; leading dimensions are the same numbers one by one."""

import itertools
import math

import numpy as np
import pytest

from oodlib import counts
from oodlib.counts import METRICS, count_groups, normal_quantile, resample, zero_variance_interval


def draw(seed, *sizes):
    """Return groups of scores with many ties."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 12, size).astype(float) + place for place, size in enumerate(sizes)]


def test_groups_counted_by_hand():
    first, second, third = count_groups(np.array([2.0, 5, 2]), np.array([5.0, -1]), np.array([]))
    assert first.tolist() == [1, 2, 0]  # at 5, 2, -1
    assert second.tolist() == [1, 0, 1]
    assert third.tolist() == [0, 0, 0]


def test_groups_counted_by_a_loop():
    groups = [*draw(0, 50, 1, 80), np.array([-math.inf, math.inf, 0.0, -0.0])]
    distinct = sorted({float(score) for group in groups for score in group}, reverse=True)
    for group, found in zip(groups, count_groups(*groups), strict=True):
        assert found.tolist() == [sum(score == value for score in group) for value in distinct]
        assert found.dtype == np.int64


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_many_resamples_are_those_of_each(name):
    id_counts, ood_counts = count_groups(*draw(1, 40, 30))
    rng = np.random.default_rng(0)
    many = resample(id_counts, 20, rng), resample(ood_counts, 20, rng)
    together = METRICS[name](*many)
    assert together.shape == (20,)
    each = [METRICS[name](*one) for one in zip(*many, strict=True)]
    assert {type(value) for value in each} == {float}
    np.testing.assert_allclose(together, each, rtol=1e-12)


def test_oscr_of_many_resamples_is_that_of_each_though_one_has_no_right_answer():
    right, wrong, ood = count_groups(*draw(2, 20, 10, 15))
    many_right = np.stack([right, np.zeros_like(right), 2 * right])
    many_wrong = np.stack([wrong, right, wrong])
    found = counts.oscr(many_right, many_wrong, np.stack([ood] * 3))
    assert found.tolist() == [counts.oscr(*one, ood) for one in zip(many_right, many_wrong, strict=True)]
    assert found[1] == 0
    assert 0 < found[0] < found[2]


def test_oscr_is_the_chance_to_be_right_and_above_an_ood_score():
    right, wrong, ood = draw(3, 25, 11, 30)
    wins = sum((r > o) + (r == o) / 2 for r in right for o in ood)
    assert counts.oscr(*count_groups(right, wrong, ood)) == pytest.approx(wins / (36 * 30))


def test_aurc_of_many_is_that_of_each():
    right, wrong = (np.stack(rows) for rows in zip(*(count_groups(*draw(s, 40, 20)) for s in (4, 4)), strict=True))
    right[1], wrong[1] = right[1][::-1], wrong[1][::-1]
    found = counts.aurc(right, wrong)
    assert found.tolist() == pytest.approx([counts.aurc(*one) for one in zip(right, wrong, strict=True)])
    assert found[0] != found[1]


def augrc_by_loop(right, wrong):
    """The area under straight lines between the points of the curve, one a distinct score, in float64."""
    n, points = len(right) + len(wrong), [(0.0, 0.0)]
    for t in sorted({*right, *wrong}, reverse=True):
        accepted = sum(score >= t for score in (*right, *wrong))
        points.append((accepted / n, sum(score >= t for score in wrong) / n))
    return sum((c1 - c0) * (r0 + r1) / 2 for (c0, r0), (c1, r1) in itertools.pairwise(points))


@pytest.mark.parametrize("seed", range(4))
def test_augrc_is_the_area_under_the_curve_of_a_loop_over_thresholds(seed):
    right, wrong = draw(seed, 40, 25 * seed)
    assert counts.augrc(*count_groups(right, wrong)) == pytest.approx(augrc_by_loop(right, wrong), rel=1e-12)


def test_augrc_of_many_is_that_of_each():
    right, wrong = count_groups(*draw(4, 40, 20))
    many = np.stack([right, right[::-1], 3 * right]), np.stack([wrong, wrong[::-1], 3 * wrong])
    found = counts.augrc(*many)
    assert found.tolist() == [counts.augrc(*one) for one in zip(*many, strict=True)]
    assert found[2] == found[0] != found[1]
    assert type(counts.augrc(right, wrong)) is float


def test_a_resample_draws_as_many_from_what_is_there():
    found = resample(np.array([3, 0, 5, 2]), 4000, np.random.default_rng(0))
    assert found.shape == (4000, 4)
    assert (found.sum(axis=1) == 10).all()
    assert (found[:, 1] == 0).all()
    np.testing.assert_allclose(found.mean(axis=0), [3, 0, 5, 2], atol=0.1)
    np.testing.assert_allclose(found.var(axis=0), [3 * 0.7, 0, 5 * 0.5, 2 * 0.8], atol=0.15)  # binomial
    again = resample(np.array([3, 0, 5, 2]), 4000, np.random.default_rng(0))
    assert np.array_equal(found, again)


def variance_by_loop(wins):
    """DeLong's variance of the mean of wins (n, m), from the means over rows and over columns."""
    n, m = wins.shape
    return np.var(wins.mean(axis=1), ddof=1) / n + np.var(wins.mean(axis=0), ddof=1) / m


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_intervals_have_delongs_variance(level):
    right, wrong, ood = draw(5, 30, 12, 25)
    wins = (right[:, None] > ood) + (right[:, None] == ood) / 2
    value, half = wins.mean(), normal_quantile(level) * math.sqrt(variance_by_loop(wins))
    logit, half = math.log(value / (1 - value)), half / (value * (1 - value))
    expected = [1 / (1 + math.exp(-(logit + sign * half))) for sign in (-1, 1)]
    assert counts.auroc_interval(*count_groups(right, ood), level) == pytest.approx(expected)

    wins = np.concatenate([wins, np.zeros((12, 25))])  # a wrong answer wins against none
    half = normal_quantile(level) * math.sqrt(variance_by_loop(wins))
    expected = [max(0, wins.mean() - half), min(1, wins.mean() + half)]
    assert counts.oscr_interval(*count_groups(right, wrong, ood), level) == pytest.approx(expected)


def test_without_variance_an_interval_is_what_independent_pairs_give():
    right, ood = np.arange(5.0, 12), np.arange(4.0)
    none = np.array([])
    least = 0.025 ** (1 / 4)  # of four pairs that all came out right
    assert counts.auroc_interval(*count_groups(right, ood)) == pytest.approx([least, 1])
    assert counts.oscr_interval(*count_groups(right, none, ood)) == pytest.approx([least, 1])
    assert counts.oscr_interval(*count_groups(none, right, ood)) == pytest.approx([0, 1 - least])
    assert zero_variance_interval(0.0, -1.0, 1.0, 4, 0.95) == pytest.approx([-1 + least, 1 - least])


@pytest.mark.parametrize(("level", "expected"), [(0.95, 1.959964), (0.99, 2.575829), (0.682689492, 1.0)])
def test_normal_quantile(level, expected):
    assert normal_quantile(level) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan])
def test_levels_out_of_range(level):
    right, wrong, ood = count_groups(*draw(6, 5, 5, 5))
    for ask in (
        lambda: normal_quantile(level),
        lambda: counts.auroc_interval(right, ood, level),
        lambda: counts.oscr_interval(right, wrong, ood, level),
    ):
        with pytest.raises(ValueError, match=f"level must lie between 0 and 1, got {level}"):
            ask()
