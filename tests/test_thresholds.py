"""Thresholds counted by hand, with ties; p-values that say the same; and the promise, kept over many random splits."""

import math

import numpy as np
import pytest
from scipy import stats

from oodlib.thresholds import THRESHOLDS, conformal_p_values, conformal_threshold, per_cluster_thresholds

NINETEEN = np.random.default_rng(0).permutation(19) + 1.0  # 1 … 19 in random order
TIES = np.array([5.0, 1, 2, 2, 2, 7, 7, 7, 7])  # sorted: 1 2 2 2 5 7 7 7 7


@pytest.mark.parametrize(
    ("scores", "alpha", "expected"),
    [
        (NINETEEN, 0.05, 1),  # j = ⌊0.05 · 20⌋ = 1, the smallest
        (NINETEEN, 0.0999, 1),
        (NINETEEN, 0.1, 2),
        (NINETEEN, 0.15, 3),
        (NINETEEN, 0.5, 10),
        (NINETEEN, 0.95, 19),
        (NINETEEN, 0.9999, 19),
        (NINETEEN, 0.0499, -math.inf),  # 19 images cannot promise less than 1 in 20
        (NINETEEN[:18], 0.05, -math.inf),
        (TIES, 0.1, 1),
        (TIES, 0.2, 2),
        (TIES, 0.4, 2),  # still the same value: what ties with the threshold is kept
        (TIES, 0.5, 5),
        (TIES, 0.7, 7),
        (np.array([3.0]), 0.5, 3),
        (np.array([3.0]), 0.49, -math.inf),
        (np.array([]), 0.5, -math.inf),
    ],
)
def test_threshold_is_the_jth_smallest(scores, alpha, expected):
    found = conformal_threshold(scores, alpha)
    assert type(found) is float
    assert found == expected


@pytest.mark.parametrize("m", [9, 19, 99, 199, 999, 9999])
def test_shares_that_binary_cannot_hold_are_counted_as_written(m):
    """0.07 · 100 is 7.000000000000001 and 0.29 · 100 is 28.999999999999996: both are whole."""
    for percent in range(1, 100):
        expected = percent * (m + 1) // 100
        assert conformal_threshold(np.arange(1.0, m + 1), percent / 100) == (expected or -math.inf), percent


def test_order_does_not_matter_and_the_scores_are_left_alone():
    scores = TIES.copy()
    conformal_threshold(scores, 0.5)
    assert np.array_equal(scores, TIES)
    assert conformal_threshold(np.sort(TIES), 0.5) == conformal_threshold(TIES, 0.5)


@pytest.mark.parametrize(
    ("score", "expected"), [(0, 1), (1, 2), (1.5, 2), (2, 5), (3, 5), (5, 6), (6.9, 6), (7, 10), (99, 10)]
)
def test_p_values_counted_by_hand(score, expected):
    assert conformal_p_values(np.array([score]), TIES).tolist() == [expected / 10]


def test_p_values_without_a_reference_say_nothing():
    assert conformal_p_values(np.array([-5.0, 5.0]), np.array([])).tolist() == [1, 1]


@pytest.mark.parametrize("m", [1, 7, 19, 40, 99, 256])
def test_p_value_is_at_most_alpha_exactly_where_the_score_is_below_the_threshold(m):
    rng = np.random.default_rng(m)
    reference = rng.integers(0, 30, m).astype(np.float64)  # many ties
    scores = np.concatenate([reference, np.arange(-1, 31), rng.uniform(-1, 31, 200)])
    p = conformal_p_values(scores, reference)
    shares = np.concatenate([np.arange(1, 100) / 100, np.arange(1, m + 1) / (m + 1), rng.uniform(0, 1, 200)])
    for alpha in shares:
        assert np.array_equal(p <= alpha, scores < conformal_threshold(reference, alpha)), alpha


@pytest.mark.parametrize(("m", "alpha"), [(19, 0.05), (30, 0.1), (99, 0.05), (50, 0.33)])
def test_false_alarms_over_many_splits_are_what_is_promised(m, alpha):
    """Of an exchangeable image, j / (m + 1) is the exact probability to be rejected, and at most alpha."""
    rng, n = np.random.default_rng(0), 20_000
    scores = rng.gamma(2.0, size=(n, m + 1))  # m reference images and a new one
    thresholds = np.array([conformal_threshold(row[:m], alpha) for row in scores])
    rejected = int((scores[:, m] < thresholds).sum())
    promised = math.floor(alpha * (m + 1)) / (m + 1)
    assert promised <= alpha
    low, high = stats.binom(n, promised).interval(0.999)
    assert low <= rejected <= high


def test_ties_only_make_it_reject_less():
    rng, m, alpha, n = np.random.default_rng(1), 39, 0.1, 5000
    scores = rng.integers(0, 8, (n, m + 1)).astype(np.float64)
    rejected = np.mean([row[m] < conformal_threshold(row[:m], alpha) for row in scores])
    assert rejected < stats.binom(n, alpha).ppf(0.001) / n


# One threshold a cluster


def test_thresholds_of_clusters_counted_by_hand():
    scores = np.array([*range(1, 10), *range(101, 110), 55.0])
    nearest = np.array([2] * 9 + [0] * 9 + [3])
    # nine images each: j = 1, the smallest; cluster 3 has too few, 1 has none: all 19 images, j = ⌊0.1 · 20⌋ = 2
    assert per_cluster_thresholds(scores, nearest, 4, 0.1).tolist() == [101, 2, 1, 2]
    # where one image is enough
    assert per_cluster_thresholds(scores, nearest, 4, 0.5).tolist() == [105, 55, 5, 55]
    # and where not even all are
    assert per_cluster_thresholds(scores, nearest, 4, 0.01).tolist() == [-math.inf] * 4


def test_every_cluster_keeps_the_promise_for_itself():
    rng, n, alpha = np.random.default_rng(2), 4000, 0.05
    cluster = rng.integers(0, 3, 2 * n)
    scores = rng.normal(size=2 * n) * np.array([1.0, 5, 0.1])[cluster] + np.array([0.0, -20, 3])[cluster]
    thresholds = per_cluster_thresholds(scores[:n], cluster[:n], 3, alpha)
    for k in range(3):
        members = scores[n:][cluster[n:] == k]
        low, high = stats.betabinom(len(members), *_beta(int((cluster[:n] == k).sum()), alpha)).interval(0.999)
        assert low <= (members < thresholds[k]).sum() <= high
    # one threshold for all would reject one cluster only
    overall = conformal_threshold(scores[:n], alpha)
    assert [bool((scores[n:][cluster[n:] == k] < overall).any()) for k in range(3)] == [False, True, False]


def _beta(m, alpha):
    """Return the parameters of the distribution of the rate that m reference images leave (Vovk 2012)."""
    j = math.floor(alpha * (m + 1))
    return j, m + 1 - j


def test_names():
    assert THRESHOLDS == ("global", "per-cluster", "conformal")
