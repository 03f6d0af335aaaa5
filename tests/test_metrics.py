"""Metrics against scikit-learn, plain loops and counts by hand; intervals against loops and small simulations."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from oodlib import metrics
from oodlib.metrics import (
    METRICS,
    aupr_in,
    aupr_out,
    auroc,
    auroc_interval,
    bootstrap_interval,
    count_groups,
    fpr95,
    fpr95_ood_positive,
    ood_metrics,
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


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_many_resamples_are_those_of_each(name):
    id_counts, ood_counts = count_groups(*draw(np.random.default_rng(1), 40, 30))
    rng = np.random.default_rng(0)
    many = metrics._resample(id_counts, 20, rng), metrics._resample(ood_counts, 20, rng)
    assert (many[0].sum(axis=1) == 40).all()
    together = METRICS[name](*many)
    assert together.shape == (20,)
    np.testing.assert_allclose(together, [METRICS[name](*one) for one in zip(*many, strict=True)], rtol=1e-12)


def test_a_resample_draws_as_many_from_what_is_there():
    found = metrics._resample(np.array([3, 0, 5, 2]), 4000, np.random.default_rng(0))
    assert (found.sum(axis=1) == 10).all()
    np.testing.assert_allclose(found.mean(axis=0), [3, 0, 5, 2], atol=0.1)
    np.testing.assert_allclose(found.var(axis=0), [3 * 0.7, 0, 5 * 0.5, 2 * 0.8], atol=0.15)  # binomial


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


@pytest.mark.parametrize("name", PUBLIC)
def test_bootstrap_equals_the_naive_loop(name, monkeypatch):
    id_scores, ood_scores = draw(np.random.default_rng(7), 40, 30)
    id_ranked, ood_ranked = np.sort(id_scores)[::-1], np.sort(ood_scores)[::-1]
    rng = np.random.default_rng(11)
    values = [
        PUBLIC[name](id_ranked[rng.integers(40, size=40)], ood_ranked[rng.integers(30, size=30)]) for _ in range(99)
    ]
    monkeypatch.setattr(metrics, "REDRAWN", 1)  # one resample a block draws in the order of the loop
    interval = bootstrap_interval(name, id_scores, ood_scores, n_resamples=99, level=0.9, seed=11)
    assert interval == pytest.approx(np.quantile(values, [0.05, 0.95]), abs=1e-12)


@pytest.mark.parametrize("name", PUBLIC)
def test_bootstrap_in_uneven_blocks_agrees_with_delong_and_itself(name, monkeypatch):
    id_scores, ood_scores = draw(np.random.default_rng(8), 300, 200, 9)
    whole = bootstrap_interval(name, id_scores, ood_scores, 1000)
    assert whole == bootstrap_interval(name, id_scores, ood_scores, 1000)  # seeded
    assert whole[0] < PUBLIC[name](id_scores, ood_scores) < whole[1]
    if name == "auroc":
        assert whole == pytest.approx(auroc_interval(id_scores, ood_scores), abs=0.01)
    monkeypatch.setattr(metrics, "REDRAWN", 3500)  # 7 resamples a block, 6 in the last
    assert whole == pytest.approx(bootstrap_interval(name, id_scores, ood_scores, 1000), abs=0.03)


def test_bad_arguments_of_intervals():
    good = [0.0, 1.0]
    with pytest.raises(ValueError, match="metric must be one of auroc, aupr_in, .*, got 'fpr'"):
        bootstrap_interval("fpr", good, good)
    with pytest.raises(ValueError, match="n_resamples must be at least 1, got 0"):
        bootstrap_interval("fpr95", good, good, n_resamples=0)
    for level in (0, 1, 95, np.nan):
        for ask in (
            lambda level: auroc_interval(good, good, level),
            lambda level: bootstrap_interval("auroc", good, good, level=level),
        ):
            with pytest.raises(ValueError, match="level must lie between 0 and 1"):
                ask(level)
    with pytest.raises(ValueError, match="DeLong needs 2 ID and 2 OOD scores at least, got 2 and 1"):
        auroc_interval(good, [1.0])
