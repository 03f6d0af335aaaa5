"""Thresholds counted by hand, with ties; p-values that say the same; and the promise, kept over many random splits."""

import math

import numpy as np
import pytest
from scipy import stats

from oodlib.scoring.thresholds import (
    cluster_p_values,
    conformal_p_values,
    conformal_threshold,
    fisher,
    images_needed,
    per_cluster_thresholds,
    rate_band,
    realised_by_cluster,
    realised_rates,
)

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


def test_images_that_it_takes_to_reject_any():
    assert [images_needed(alpha) for alpha in (0.05, 0.1, 0.01, 1 / 3, 0.3, 0.5, 0.9)] == [19, 9, 99, 2, 3, 1, 1]
    for alpha in [*np.linspace(0.001, 0.5, 500), 1 / 7, 1e-5]:
        least = images_needed(alpha)
        assert np.isfinite(conformal_threshold(np.arange(least), alpha))
        assert not np.isfinite(conformal_threshold(np.arange(least - 1), alpha))


@pytest.mark.parametrize("m", [19, 99, 9999])
def test_shares_that_binary_cannot_hold_are_counted_as_written(m):
    """0.07 · 100 is 7.000000000000001 and 0.29 · 100 is 28.999999999999996: both are whole."""
    for percent in range(1, 100):
        expected = percent * (m + 1) // 100
        assert conformal_threshold(np.arange(1.0, m + 1), percent / 100) == (expected or -math.inf), percent


@pytest.mark.parametrize("m", [1, 19, 40, 256])
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
    # without borrowing, what a cluster cannot promise is not promised
    assert per_cluster_thresholds(scores, nearest, 4, 0.1, borrow=False).tolist() == [101, -math.inf, 1, -math.inf]
    assert per_cluster_thresholds(scores, nearest, 4, 0.5, borrow=False).tolist() == [105, -math.inf, 5, 55]


def p_values_by_loop(scores, nearest, reference, reference_nearest):
    found = []
    for score, k in zip(scores, nearest, strict=True):
        own = [r for r, other in zip(reference, reference_nearest, strict=True) if other == k]
        found.append((1 + sum(r <= score for r in own)) / (len(own) + 1))
    return found


def test_p_values_of_clusters_are_those_of_a_plain_loop():
    rng = np.random.default_rng(3)
    reference, reference_nearest = rng.integers(0, 20, 90).astype(float), rng.choice([0, 1, 4], 90)
    scores, nearest = rng.integers(-1, 21, 200).astype(float), rng.integers(0, 6, 200)
    found = cluster_p_values(scores, nearest, reference, reference_nearest)
    assert found.tolist() == p_values_by_loop(scores, nearest, reference, reference_nearest)
    assert (found[~np.isin(nearest, [0, 1, 4])] == 1).all()  # no reference image
    assert cluster_p_values(scores[:0], nearest[:0], reference, reference_nearest).shape == (0,)
    alone = cluster_p_values(scores, np.zeros(200, int), reference, np.zeros(90, int))
    assert np.array_equal(alone, conformal_p_values(scores, reference))


@pytest.mark.parametrize("seed", range(2))
def test_p_value_in_a_cluster_is_at_most_alpha_exactly_where_the_score_is_below_its_threshold(seed):
    rng = np.random.default_rng(seed)
    reference, reference_nearest = rng.integers(0, 30, 120).astype(float), rng.choice([0, 0, 0, 0, 1, 3], 120)
    scores, nearest = rng.uniform(-1, 31, 400), rng.integers(0, 4, 400)
    p = cluster_p_values(scores, nearest, reference, reference_nearest)
    for alpha in [*np.arange(1, 100) / 100, *rng.uniform(0, 1, 50)]:
        limits = per_cluster_thresholds(reference, reference_nearest, 4, alpha, borrow=False)
        assert np.array_equal(p <= alpha, scores < limits[nearest]), alpha


# The rates that are reached


def test_realised_rates_of_one_split_counted_by_hand():
    """Of 1 … 10, five are the reference: the p-value of another is (1 + how many of the five are lower) / 6."""
    scores, alphas = np.arange(1.0, 11), np.array([1 / 6, 0.5, 0.99])
    rates = realised_rates(scores, 5, alphas, n_splits=20, seed=3)
    assert rates.shape == (20, 3)
    rng, expected = np.random.default_rng(3), []
    for _ in range(20):
        order = rng.permutation(10)
        lower = np.array([sum(scores[order[:5]] <= s) for s in scores[order[5:]]])
        expected.append([(lower == 0).mean(), (lower <= 2).mean(), (lower <= 4).mean()])
    np.testing.assert_allclose(rates, expected)
    one = realised_by_cluster(scores, np.full(10, 7), 5, alphas, n_splits=20, seed=3)[0]  # (A, splits)
    np.testing.assert_allclose(one.T, rates)
    assert not np.array_equal(rates, realised_rates(scores, 5, alphas, n_splits=20, seed=4))


def test_realised_rates_within_clusters_are_those_of_a_plain_loop():
    rng, alphas = np.random.default_rng(5), np.array([0.05, 0.2, 0.5])
    scores, nearest = rng.normal(size=80), rng.integers(0, 3, 80)
    order = np.random.default_rng(0).permutation(80)
    old, new = order[:50], order[50:]
    p = np.array(p_values_by_loop(scores[new], nearest[new], scores[old], nearest[old]))
    rates, _, by_cluster = realised_by_cluster(scores, nearest, 50, alphas, n_splits=1)
    np.testing.assert_allclose(rates, [[(p <= alpha).mean()] for alpha in alphas])
    expected = [[(p[nearest[new] == k] <= alpha).mean() for k in range(3)] for alpha in alphas]
    np.testing.assert_allclose(by_cluster, expected)


def test_mondrian_promises_hold_in_every_cluster_and_rates_in_their_band():
    """Clusters of very different scores and sizes; the band is drawn for the numbers in each of them."""
    rng, alphas = np.random.default_rng(0), [0.05, 0.2]
    nearest = rng.choice(3, size=1500, p=[0.6, 0.3, 0.1])
    scores = rng.normal(size=1500) * np.array([1, 5, 0.1])[nearest] - 10 * nearest
    rates, expected, by_cluster = realised_by_cluster(scores, nearest, 600, alphas, n_splits=1000)
    assert (by_cluster <= np.array(alphas)[:, None] + 0.01).all()
    for own, drawn in zip(rates, expected, strict=True):
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert 0.93 <= ((low <= own) & (own <= high)).mean() <= 0.99
        assert own.mean() == pytest.approx(drawn.mean(), abs=0.003)
    naive = realised_rates(scores, 600, alphas, n_splits=50).mean(axis=0)  # one threshold for all keeps its rate …
    np.testing.assert_allclose(naive, alphas, atol=0.01)
    limit = np.quantile(scores, 0.05)
    assert max((scores[nearest == k] < limit).mean() for k in range(3)) > 0.4  # … and breaks the promise in one


@pytest.mark.parametrize(("alpha", "n_reference", "n_new"), [(0.05, 99, 400), (0.1, 60, 150), (0.2, 500, 100)])
def test_realised_rates_lie_in_the_band(alpha, n_reference, n_new):
    scores = np.random.default_rng(0).normal(size=n_reference + n_new)
    rates = realised_rates(scores, n_reference, np.array([alpha]), n_splits=2000)[:, 0]
    low, high = rate_band(alpha, n_reference, n_new)
    assert ((rates[:100] >= low) & (rates[:100] <= high)).sum() >= 93
    assert ((rates >= low) & (rates <= high)).mean() > 0.94
    j = math.floor(alpha * (n_reference + 1))
    counts = stats.betabinom(n_new, j, n_reference + 1 - j)
    assert rates.mean() == pytest.approx(j / (n_reference + 1), abs=3.3 * counts.std() / n_new / math.sqrt(2000))
    assert rates.std() * n_new == pytest.approx(counts.std(), rel=0.1)


@pytest.mark.parametrize(
    ("alpha", "n_reference", "n_new", "level"), [(0.05, 99, 400, 0.95), (0.1, 60, 7, 0.8), (0.5, 3, 40, 0.99)]
)
def test_band_holds_its_level_and_no_narrower_one_does(alpha, n_reference, n_new, level):
    low, high = rate_band(alpha, n_reference, n_new, level)
    j = math.floor(alpha * (n_reference + 1))
    mass = stats.betabinom(n_new, j, n_reference + 1 - j).pmf(np.arange(n_new + 1))
    first, last = round(low * n_new), round(high * n_new)
    assert mass[first : last + 1].sum() >= level
    assert mass[:first].sum() < (1 - level) / 2 <= mass[: first + 1].sum()
    assert mass[: last + 1].sum() >= (1 + level) / 2 > mass[:last].sum()


def test_too_few_reference_images_have_a_band_of_nothing():
    assert rate_band(0.05, 18, 100) == (0.0, 0.0)
    assert (realised_rates(np.arange(40.0), 18, np.array([0.05])) == 0).all()


@pytest.mark.parametrize("n_reference", [0, 10, 11])
def test_realised_rates_need_images_on_both_sides(n_reference):
    with pytest.raises(ValueError, match=f"n_reference must be between 1 and n - 1 = 9, got {n_reference}"):
        realised_rates(np.arange(10.0), n_reference, np.array([0.1]))


def test_fishers_combination_is_scipys():
    rng = np.random.default_rng(0)
    references, scores = rng.normal(size=(3, 50)), rng.normal(size=(3, 20))
    p_values = [conformal_p_values(*pair) for pair in zip(scores, references, strict=True)]
    expected = [stats.combine_pvalues(column, "fisher").statistic for column in np.transpose(p_values)]
    np.testing.assert_allclose(fisher(scores, references), np.divide(expected, -2), rtol=1e-12)


def test_a_calibration_image_is_combined_by_its_place_among_the_others():
    rng = np.random.default_rng(1)
    references = rng.normal(size=(3, 40))
    others = [np.delete(references, i, axis=1) for i in range(40)]
    expected = [fisher(references[:, [i]], others[i])[0] for i in range(40)]
    np.testing.assert_allclose(fisher(references, references, held_out=True), expected, rtol=1e-12)


def test_the_combination_of_dependent_detectors_keeps_the_promise():
    rates = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        both = rng.normal(size=(2, 400)) + rng.normal(size=400)  # each detector sees the same image
        old, new = both[:, :200], both[:, 200:]
        limit = conformal_threshold(fisher(old, old, held_out=True), 0.1)
        rates.append((fisher(new, old) < limit).mean())
    assert np.mean(rates) == pytest.approx(20 / 201, abs=0.006)
