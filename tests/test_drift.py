"""Drift tests on drawn streams: p-values by hand, the promise under no change, and how soon a change is seen."""

import numpy as np
import pytest

from oodlib.scoring import ClusterDetector, KNNDetector, ViMDetector
from oodlib.scoring.drift import POWERS, SWITCH, drift_test


def test_p_values_are_ranks_among_all_that_came_before():
    test = drift_test(np.array([1.0, 2, 3, 4]), np.array([2.5, 0, 9]), seed=0)
    u = 1 - np.random.default_rng(0).random(3)
    np.testing.assert_allclose(test.p_values, [(2 + u[0]) / 5, u[1] / 6, (6 + u[2]) / 7])


def test_ties_are_broken_at_random():
    test = drift_test(np.zeros(99), np.zeros(400))
    assert 0.4 < test.p_values.mean() < 0.6
    assert np.quantile(test.p_values, 0.1) == pytest.approx(0.1, abs=0.05)


def test_capital_is_the_mean_over_all_ways_to_switch_bets():
    test = drift_test(np.arange(10.0), np.array([-1.0, 4.5, -2]))
    shares = {(k,): 1 / len(POWERS) for k in range(len(POWERS))}  # of every sequence of bets
    step = np.full((len(POWERS),) * 2, SWITCH / len(POWERS)) + (1 - SWITCH) * np.eye(len(POWERS))
    for _ in range(2):
        shares = {(*path, k): s * step[path[-1], k] for path, s in shares.items() for k in range(len(POWERS))}
    won = {
        path: np.prod([POWERS[k] * p ** (POWERS[k] - 1) for k, p in zip(path, test.p_values, strict=True)])
        for path in shares
    }
    assert np.exp(test.log_capital[-1]) == pytest.approx(sum(shares[path] * won[path] for path in shares))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_without_change_false_alarms_keep_the_promise(alpha):
    rng = np.random.default_rng(0)
    alarms = [drift_test(rng.normal(size=100), rng.normal(size=300), alpha, seed).alarm for seed in range(200)]
    rate = np.mean([alarm is not None for alarm in alarms])
    assert rate <= alpha + 2 * np.sqrt(alpha * (1 - alpha) / 200)


@pytest.mark.parametrize(("share", "latest"), [(1.0, 15), (0.3, 60)])
def test_a_change_is_seen_soon_even_after_a_long_calm(share, latest):
    delays = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        outlier = rng.random(300) < share
        changed = np.where(outlier, rng.normal(-5, 1, 300), rng.normal(size=300))
        test = drift_test(rng.normal(size=500), np.concatenate([rng.normal(size=500), changed]), 0.01, seed)
        delays.append(test.alarm - 500)
    assert np.median(delays) < latest
    assert min(delays) >= 0


def test_better_scores_raise_no_alarm():
    rng = np.random.default_rng(0)
    assert drift_test(rng.normal(size=200), rng.normal(3, 1, 500)).alarm is None


def test_alarm_is_where_the_capital_first_reaches_its_level():
    test = drift_test(np.arange(50.0), np.full(30, -1.0) - np.arange(30), alpha=0.01)
    assert test.log_capital[test.alarm] >= np.log(100) > test.log_capital[: test.alarm].max()


@pytest.mark.parametrize(
    ("calibration", "stream", "alpha", "said"),
    [
        ([], [1.0], 0.1, "needs calibration scores and alpha in .0, 1., got 0 and 0.1"),
        ([1.0], [1.0], 1.0, "got 1 and 1.0"),
        ([1.0], [np.nan], 0.1, "stream_scores must be .n,. without NaN"),
        ([[1.0]], [1.0], 0.1, r"calibration_scores must be .n,. without NaN, got shape \(1, 1\)"),
    ],
)
def test_bad_input(calibration, stream, alpha, said):
    with pytest.raises(ValueError, match=said):
        drift_test(np.array(calibration), np.array(stream), alpha)


def detectors(**fitted):
    kinds = [ClusterDetector(threshold=name) for name in ("global", "per-cluster", "conformal", "conformal-cluster")]
    return [kind.fit(**fitted) for kind in (*kinds, KNNDetector(5), ViMDetector(n_components=8))]


@pytest.mark.filterwarnings("ignore:nothing is rejected")
def test_a_detector_calibrated_on_its_training_images_is_refused():
    rng = np.random.default_rng(0)
    z, y, stream = rng.normal(size=(200, 32)), np.arange(200) % 4, rng.normal(size=(200, 32))
    for detector in detectors(z=z, y=y):
        scores = detector.score_samples(stream)
        if getattr(detector, "threshold", "").startswith("conformal"):
            drift_test(detector, scores)
        else:
            with pytest.raises(ValueError, match="reference scores are those of its training images"):
                drift_test(detector, scores)


def test_a_detector_with_held_out_scores_keeps_the_promise_where_training_scores_break_it():
    alarms = {"held out": 0, "training": 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z, calibration, stream = (rng.normal(size=(200, 64)) for _ in range(3))
        detector = KNNDetector(5).fit(z, z_calibration=calibration)
        alarms["held out"] += drift_test(detector, detector.score_samples(stream), 0.05).alarm is not None
        trained = ClusterDetector().fit(z, np.arange(200) % 4)
        found = drift_test(trained.reference_, trained.score_samples(stream), 0.05)
        alarms["training"] += found.alarm is not None
    assert alarms["held out"] <= 3
    assert alarms["training"] == 20
