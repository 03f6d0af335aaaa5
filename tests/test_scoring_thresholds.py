"""Thresholds counted by hand, with ties; p-values that say the same; and the promise, kept over many random splits."""

import math

import numpy as np
import pytest
from scipy import stats

from oodlib.scoring import thresholds
from oodlib.scoring.thresholds import cluster_p_values, conformal_p_values, conformal_threshold, fisher, rate_band

NINETEEN = np.random.default_rng(0).permutation(19) + 1.0  # 1 … 19 in random order
TIES = np.array([5.0, 1, 2, 2, 2, 7, 7, 7, 7])  # sorted: 1 2 2 2 5 7 7 7 7


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # j = ⌊0.05 · 20⌋ = 1, the smallest; 19 images cannot promise less than 1 in 20
        (NINETEEN, {0.0499: -math.inf, 0.05: 1, 0.0999: 1, 0.1: 2, 0.15: 3, 0.5: 10, 0.95: 19, 0.9999: 19}),
        (NINETEEN[:18], {0.05: -math.inf}),
        (TIES, {0.1: 1, 0.2: 2, 0.4: 2, 0.5: 5, 0.7: 7}),  # what ties with the threshold is kept
        (np.array([3.0]), {0.5: 3, 0.49: -math.inf}),
        (np.array([]), {0.5: -math.inf}),
    ],
)
def test_threshold_is_the_jth_smallest(scores, expected):
    found = {alpha: conformal_threshold(scores, alpha) for alpha in expected}
    assert found == expected
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize("m", [19, 99, 9999])
def test_shares_that_binary_cannot_hold_are_counted_as_written(m):
    """0.07 · 100 is 7.000000000000001 and 0.29 · 100 is 28.999999999999996: both are whole."""
    for percent in range(1, 100):
        expected = percent * (m + 1) // 100
        assert conformal_threshold(np.arange(1.0, m + 1), percent / 100) == (expected or -math.inf), percent


def test_images_that_it_takes_to_reject_any():
    needed = {0.05: 19, 0.1: 9, 0.01: 99, 1 / 3: 2, 0.3: 3, 0.5: 1, 0.9: 1}
    assert {alpha: thresholds.images_needed(alpha) for alpha in needed} == needed
    for alpha in [*np.linspace(0.001, 0.5, 500), 1 / 7, 1e-5]:
        least = thresholds.images_needed(alpha)
        assert np.isfinite(conformal_threshold(np.arange(least), alpha))
        assert not np.isfinite(conformal_threshold(np.arange(least - 1), alpha))


@pytest.mark.parametrize("m", [1, 19, 40, 256])
def test_p_value_is_at_most_alpha_exactly_where_the_score_is_below_the_threshold(m):
    rng = np.random.default_rng(m)
    reference = rng.integers(0, 30, m).astype(np.float64)  # many ties
    scores = np.concatenate([reference, np.arange(-1, 31), rng.uniform(-1, 31, 200)])
    p = conformal_p_values(scores, reference)
    shares = np.concatenate([np.arange(1, 100) / 100, np.arange(1, m + 1) / (m + 1), rng.uniform(0, 1, 200)])
    for alpha in shares:
        assert np.array_equal(p <= alpha, scores < conformal_threshold(reference, alpha)), alpha


def test_thresholds_of_clusters_counted_by_hand():
    scores = np.array([*range(1, 10), *range(101, 110), 55.0])
    nearest, none = np.array([2] * 9 + [0] * 9 + [3]), -math.inf
    for alpha, borrow, expected in (
        # nine images each: j = 1, the smallest; cluster 3 has too few, 1 has none: all 19 images, j = ⌊0.1 · 20⌋ = 2
        (0.1, True, [101, 2, 1, 2]),
        (0.5, True, [105, 55, 5, 55]),  # where one image is enough
        (0.01, True, [none] * 4),  # and where not even all are
        (0.1, False, [101, none, 1, none]),  # what a cluster cannot promise is not promised
        (0.5, False, [105, none, 5, 55]),
    ):
        assert thresholds.per_cluster_thresholds(scores, nearest, 4, alpha, borrow).tolist() == expected


def p_values_by_loop(scores, nearest, reference, reference_nearest):
    found = []
    for score, k in zip(scores, nearest, strict=True):
        own = [r for r, other in zip(reference, reference_nearest, strict=True) if other == k]
        found.append((1 + sum(r <= score for r in own)) / (len(own) + 1))
    return found


def test_p_values_of_clusters_are_those_of_a_plain_loop_and_agree_with_their_thresholds():
    rng = np.random.default_rng(3)
    reference, reference_nearest = rng.integers(0, 20, 90).astype(float), rng.choice([0, 1, 4], 90, p=[0.7, 0.25, 0.05])
    scores, nearest = rng.integers(-1, 21, 200).astype(float), rng.integers(0, 6, 200)
    found = cluster_p_values(scores, nearest, reference, reference_nearest)
    assert found.tolist() == p_values_by_loop(scores, nearest, reference, reference_nearest)
    assert (found[~np.isin(nearest, [0, 1, 4])] == 1).all()  # no reference image
    assert cluster_p_values(scores[:0], nearest[:0], reference, reference_nearest).shape == (0,)
    alone = cluster_p_values(scores, np.zeros(200, int), reference, np.zeros(90, int))
    assert np.array_equal(alone, conformal_p_values(scores, reference))
    for alpha in [*np.arange(1, 100) / 100, *rng.uniform(0, 1, 50)]:
        limits = thresholds.per_cluster_thresholds(reference, reference_nearest, 6, alpha, borrow=False)
        assert np.array_equal(found <= alpha, scores < limits[nearest]), alpha


def test_realised_rates_of_one_split_counted_by_hand():
    """Of 1 … 10, five are the reference: the p-value of another is (1 + how many of the five are lower) / 6."""
    scores, alphas = np.arange(1.0, 11), np.array([1 / 6, 0.5, 0.99])
    rates = thresholds.realised_rates(scores, 5, alphas, n_splits=20, seed=3)
    rng, expected = np.random.default_rng(3), []
    for _ in range(20):
        order = rng.permutation(10)
        lower = np.array([sum(scores[order[:5]] <= s) for s in scores[order[5:]]])
        expected.append([(lower == 0).mean(), (lower <= 2).mean(), (lower <= 4).mean()])
    np.testing.assert_allclose(rates, expected)
    one = thresholds.realised_by_cluster(scores, np.full(10, 7), 5, alphas, n_splits=20, seed=3)[0]  # (A, splits)
    np.testing.assert_allclose(one.T, rates)
    assert not np.array_equal(rates, thresholds.realised_rates(scores, 5, alphas, n_splits=20, seed=4))
    for n_reference in (0, 10, 11):
        with pytest.raises(ValueError, match=f"n_reference must be between 1 and n - 1 = 9, got {n_reference}"):
            thresholds.realised_rates(scores, n_reference, alphas)
    assert rate_band(0.05, 18, 100) == (0.0, 0.0)  # too few reference images reject nothing
    assert (thresholds.realised_rates(np.arange(40.0), 18, np.array([0.05])) == 0).all()


def test_realised_rates_within_clusters_are_those_of_a_plain_loop():
    rng, alphas = np.random.default_rng(5), np.array([0.05, 0.2, 0.5])
    scores, nearest = rng.normal(size=80), rng.integers(0, 3, 80)
    order = np.random.default_rng(0).permutation(80)
    old, new = order[:50], order[50:]
    p = np.array(p_values_by_loop(scores[new], nearest[new], scores[old], nearest[old]))
    rates, _, by_cluster = thresholds.realised_by_cluster(scores, nearest, 50, alphas, n_splits=1)
    np.testing.assert_allclose(rates, [[(p <= alpha).mean()] for alpha in alphas])
    expected = [[(p[nearest[new] == k] <= alpha).mean() for k in range(3)] for alpha in alphas]
    np.testing.assert_allclose(by_cluster, expected)


def test_mondrian_promises_hold_in_every_cluster_and_rates_in_their_band():
    """Clusters of very different scores and sizes; the band is drawn for the numbers in each of them."""
    rng, alphas = np.random.default_rng(0), [0.05, 0.2]
    nearest = rng.choice(3, size=1500, p=[0.6, 0.3, 0.1])
    scores = rng.normal(size=1500) * np.array([1, 5, 0.1])[nearest] - 10 * nearest
    rates, expected, by_cluster = thresholds.realised_by_cluster(scores, nearest, 600, alphas, n_splits=1000)
    assert (by_cluster <= np.array(alphas)[:, None] + 0.01).all()
    for own, drawn in zip(rates, expected, strict=True):
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert 0.93 <= ((low <= own) & (own <= high)).mean() <= 0.99
        assert own.mean() == pytest.approx(drawn.mean(), abs=0.003)
    naive = thresholds.realised_rates(scores, 600, alphas, n_splits=50)
    np.testing.assert_allclose(naive.mean(axis=0), alphas, atol=0.01)  # one threshold for all keeps its rate …
    limit = np.quantile(scores, 0.05)
    assert max((scores[nearest == k] < limit).mean() for k in range(3)) > 0.4  # … and breaks the promise in one


@pytest.mark.parametrize(("alpha", "n_reference", "n_new"), [(0.05, 99, 400), (0.1, 60, 150), (0.2, 500, 100)])
def test_realised_rates_lie_in_the_band(alpha, n_reference, n_new):
    scores = np.random.default_rng(0).normal(size=n_reference + n_new)
    rates = thresholds.realised_rates(scores, n_reference, np.array([alpha]), n_splits=2000)[:, 0]
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


def test_fishers_combination_is_scipys_and_of_a_calibration_image_by_its_place_among_the_others():
    rng = np.random.default_rng(0)
    references, scores = rng.normal(size=(3, 50)), rng.normal(size=(3, 20))
    p_values = [conformal_p_values(*pair) for pair in zip(scores, references, strict=True)]
    expected = [stats.combine_pvalues(column, "fisher").statistic for column in np.transpose(p_values)]
    np.testing.assert_allclose(fisher(scores, references), np.divide(expected, -2), rtol=1e-12)
    expected = [fisher(references[:, [i]], np.delete(references, i, axis=1))[0] for i in range(50)]
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
