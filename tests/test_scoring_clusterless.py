"""KNN, ViM and outlier exposure against their formulas in float64, and what must not matter."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn.base import clone

from oodlib import arrays
from oodlib.metrics import auroc
from oodlib.scoring import KNNDetector, OutlierExposureDetector, ViMDetector, load_detector

C, D = 5, 24
MEANS = np.random.default_rng(0).normal(size=(C, 128))


def draw(n, seed, d=D, spread=1.0):
    """Return n embeddings in d dimensions around the class means, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.resize(np.arange(C), n))
    return 2 + MEANS[y, :d] + spread * rng.normal(size=(n, d)) * np.linspace(0.3, 1.5, d), y


def strangers(n, seed, d=D, kinds=2):
    """Return n outliers of a few kinds, and these."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.resize(np.arange(kinds), n))
    means = np.random.default_rng(99).normal(size=(kinds, d))
    return 2 + means[y] + rng.normal(size=(n, d)) * np.linspace(1.2, 1.0, d), y


def linear_classifier(z, y):
    """Return the weight (C, d) and bias (C,) that least squares gives for one-hot targets, times four."""
    design = np.column_stack([z, np.ones(len(z))])
    solved = 4 * np.linalg.pinv(design, rcond=1e-6) @ np.eye(C)[y]
    return solved[:-1].T, solved[-1]


Z, Y = draw(300, 1)
ID, OOD = draw(150, 2)[0], strangers(120, 3)[0]
BOTH = np.concatenate([ID, OOD])
WEIGHT, BIAS = linear_classifier(Z, Y)
KNOWN, KINDS = strangers(12, 4)


def area(scores):
    return auroc(scores[: len(ID)], scores[len(ID) :])


# ViM


def vim_by_formula(z, queries, weight, bias, kept):
    origin = -np.linalg.pinv(weight, rcond=1e-6) @ bias  # the rows of this weight sum to zero
    _, _, directions = np.linalg.svd(z - origin)  # rows, the largest first
    principal = directions[:kept].T

    def residual(x):
        x = x - origin
        return np.sqrt(((x - x @ principal @ principal.T) ** 2).sum(axis=1))

    alpha = (z @ weight.T + bias).max(axis=1).mean() / residual(z).mean()
    return special.logsumexp(queries @ weight.T + bias, axis=1) - alpha * residual(queries), alpha


@pytest.mark.parametrize("kept", [0, 1, 12, 23])
def test_vim_is_its_formula(kept):
    detector = ViMDetector(WEIGHT, BIAS, n_components=kept).fit(Z)
    expected, alpha = vim_by_formula(Z, BOTH, WEIGHT, BIAS, kept)
    assert detector.scale_ == pytest.approx(alpha, rel=1e-9)
    np.testing.assert_allclose(detector.score_samples(BOTH), expected, rtol=1e-8)
    single = ViMDetector(WEIGHT.astype(np.float32), BIAS.astype(np.float32), kept).fit(Z.astype(np.float32))
    np.testing.assert_allclose(single.score_samples(BOTH.astype(np.float32)), expected, rtol=1e-3, atol=1e-3)


def test_without_a_classifier_the_score_is_minus_the_residual_around_the_mean():
    centred = BOTH - Z.mean(axis=0)
    directions = np.linalg.svd(Z - Z.mean(axis=0))[2]
    for kept in (0, 7, D):
        principal = directions[:kept].T
        expected = -np.linalg.norm(centred - centred @ principal @ principal.T, axis=1) if kept < D else np.zeros(270)
        found = ViMDetector(n_components=kept).fit(Z).score_samples(BOTH)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    energies = special.logsumexp(BOTH @ WEIGHT.T + BIAS, axis=1)  # what is left with a classifier
    np.testing.assert_allclose(ViMDetector(WEIGHT, BIAS, D).fit(Z).score_samples(BOTH), energies, rtol=1e-12)
    still = ViMDetector(np.eye(2), np.zeros(2)).fit(np.zeros((5, 2)))  # embeddings that do not vary
    assert still.score_samples(np.zeros((1, 2))) == pytest.approx([math.log(2)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_residual_that_only_rounding_makes_does_not_decide(dtype):
    """Half of 64 dimensions are kept where the embeddings have 24: what is left is rounding, unlike a true residual."""
    lift = np.linalg.qr(np.random.default_rng(5).normal(size=(64, D)))[0].T
    detector = ViMDetector(WEIGHT @ lift, BIAS).fit((Z @ lift).astype(dtype))
    scores = detector.score_samples((BOTH @ lift).astype(dtype))
    spread = special.logsumexp(BOTH @ WEIGHT.T + BIAS, axis=1)
    assert stats.spearmanr(scores, spread).statistic > 0.99
    assert area(scores) == pytest.approx(area(spread), abs=0.003)
    off = np.linalg.svd(lift)[2][-1]  # a direction that no training embedding has
    away = detector.score_samples((ID @ lift + 0.01 * off).astype(dtype))
    assert away.max() < scores.min()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_vim_takes_the_parameters_of_a_layer(dtype, tmp_path):
    layer = torch.nn.Linear(D, C, dtype=dtype)
    arrays = [part.detach().double().numpy().copy() for part in (layer.weight, layer.bias)]
    expected = ViMDetector(*arrays).fit(Z).score_samples(BOTH)
    detector = ViMDetector(layer.weight, layer.bias).fit(Z)
    assert detector.get_params()["weight"] is layer.weight
    assert np.array_equal(clone(detector).fit(Z).score_samples(BOTH), expected)
    detector.save(tmp_path / "vim")
    with torch.no_grad():
        layer.weight.zero_()  # a layer that is trained on changes no detector
    for kept in (detector, load_detector(tmp_path / "vim")):
        assert np.array_equal(kept.score_samples(BOTH), expected)


# Outlier exposure


def exposed_by_formula(z, y, known, kinds, queries):
    """Log-odds of Gaussians, ID classes with their shares and the kinds of outliers with equal ones, by SciPy."""
    shares = {c: (y == c).mean() for c in np.unique(y)}
    covariance = sum(np.cov(z[y == c], rowvar=False, bias=True) * share for c, share in shares.items())

    def log_density(members, widened=1.0):
        return stats.multivariate_normal(members.mean(axis=0), covariance * widened).logpdf(queries)

    id_terms = [np.log(share) + log_density(z[y == c]) for c, share in shares.items()]
    ood_terms = [log_density(known[kinds == k], 1 + 1 / (kinds == k).sum()) for k in np.unique(kinds)]
    return special.logsumexp(id_terms, axis=0) - special.logsumexp(ood_terms, axis=0) + np.log(len(ood_terms))


@pytest.mark.parametrize("n_known", [1, 12])
def test_outlier_exposure_is_the_log_odds_of_gaussians(n_known):
    known, kinds, y = KNOWN[:n_known], 10 * KINDS[:n_known], np.where(Y == 3, 0, Y)  # classes of different size
    detector = OutlierExposureDetector().fit(Z, y, z_outliers=known, y_outliers=kinds)
    expected = exposed_by_formula(Z, y, known, kinds, BOTH)
    np.testing.assert_allclose(detector.score_samples(BOTH), expected, rtol=1e-8, atol=1e-8)


# Nearest neighbours


def kth_distances(queries, reference, k):
    queries, reference = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (queries, reference))
    return np.sort(np.linalg.norm(queries[:, None] - reference, axis=2), axis=1)[:, k - 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 5, 299])
def test_knn_is_brute_force(k, dtype):
    detector = KNNDetector(k, alpha=0.1).fit(Z.astype(dtype))
    scores = detector.score_samples(BOTH.astype(dtype))
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, -kth_distances(BOTH, Z, k), rtol=0, atol=2e-6)
    # on the training embeddings, each without itself
    left_out = [-kth_distances(Z[i : i + 1], np.delete(Z, i, axis=0), k)[0] for i in range(300)]
    assert detector.offset_ == pytest.approx(np.sort(left_out)[29], abs=1e-4)  # j = ⌊0.1 · 301⌋ = 30


def test_knn_threshold_and_p_values_rest_on_the_calibration_images():
    calibration = draw(99, 6)[0]
    detector = KNNDetector(10, alpha=0.1).fit(Z, z_calibration=calibration)
    expected = np.sort(-kth_distances(calibration, Z, 10))
    np.testing.assert_allclose(detector.reference_, expected, atol=2e-6)
    assert detector.offset_ == pytest.approx(expected[9], abs=1e-4)  # j = ⌊0.1 · 100⌋ = 10
    assert detector.offset_ < detector.reference_[9]
    scores = detector.score_samples(BOTH)
    counted = [(1 + sum(r <= s for r in detector.reference_)) / 100 for s in scores]
    assert detector.p_values(BOTH).tolist() == counted


def test_knn_takes_its_threshold_from_a_sample_where_training_embeddings_are_many(monkeypatch):
    whole = KNNDetector(5, alpha=0.2).fit(Z)
    monkeypatch.setattr(arrays, "SAMPLED", 200)
    sampled, again = (KNNDetector(5, alpha=0.2).fit(Z) for _ in range(2))
    assert (whole.reference_.shape, sampled.reference_.shape) == ((300,), (200,))
    assert np.isin(sampled.reference_, whole.reference_).all()
    assert np.array_equal(sampled.score_samples(BOTH), whole.score_samples(BOTH))  # neighbours are still of all
    assert np.array_equal(again.reference_, sampled.reference_)


DETECTORS = {
    "knn": (lambda: KNNDetector(10), {}),
    "vim": (lambda: ViMDetector(WEIGHT, BIAS), {}),
    "residual": (ViMDetector, {}),
    "outlier exposure": (OutlierExposureDetector, {"y": Y, "z_outliers": KNOWN, "y_outliers": KINDS}),
}
each = pytest.mark.parametrize(("make", "more"), DETECTORS.values(), ids=DETECTORS)


@each
def test_too_few_calibration_images_warn_once(make, more):
    said = "^nothing is rejected: there are 8 calibration images, and alpha = 0.1 takes 9$"
    with pytest.warns(UserWarning, match=said) as warned:
        detector = make().set_params(alpha=0.1).fit(Z, z_calibration=ID[:8], **more)
    assert len(warned) == 1
    assert (detector.predict(BOTH) == 1).all()
    with warnings.catch_warnings(action="error"):
        make().set_params(alpha=0.1).fit(Z, z_calibration=ID[:9], **more)
        make().set_params(alpha=0.001).fit(Z, **more)  # its threshold promises nothing in any case


@each
@pytest.mark.parametrize("calibrated", [False, True])
def test_small_p_values_are_rejections(make, more, calibrated):
    reference = draw(199, 7)[0] if calibrated else Z
    for alpha in (0.05, 0.3):
        detector = make().set_params(alpha=alpha).fit(Z, z_calibration=reference if calibrated else None, **more)
        rejected = detector.decision_function(BOTH) < 0
        assert np.array_equal(detector.p_values(BOTH) <= alpha, rejected)
        assert np.array_equal(detector.predict(BOTH), np.where(rejected, -1, 1))
        assert len(detector.reference_) == len(reference)
        assert (np.diff(detector.reference_) >= 0).all()
        if calibrated or not isinstance(detector, KNNDetector):  # to which a training embedding is its own neighbour
            assert (detector.predict(reference) == -1).sum() == math.floor(alpha * (len(reference) + 1)) - 1


@each
def test_blocks_do_not_matter(make, more, monkeypatch):
    whole = make().fit(Z, **more).score_samples(BOTH)
    monkeypatch.setattr(arrays, "ROWS", 37)
    np.testing.assert_allclose(make().fit(Z, **more).score_samples(BOTH), whole, rtol=1e-6, atol=1e-6)


# What must not change the order


def assert_same_order(found, expected):
    """Assert that scores of 60 ID images and 50 others are in nearly the same order."""
    assert auroc(found[:60], found[60:]) == pytest.approx(auroc(expected[:60], expected[60:]), abs=1e-3)
    assert stats.spearmanr(found, expected).statistic >= 0.999


@pytest.fixture(params=[(300, 24), (100, 128)], ids=["300 x 24", "100 x 128"], scope="module")
def embedded(request):
    """A classifier, and a function: the scores of a detector where all embeddings are changed in one way."""
    n, d = request.param
    z, y = draw(n, 1, d)
    new = np.concatenate([draw(60, 2, d)[0], strangers(50, 3, d)[0]])
    known, kinds = strangers(12, 4, d)

    def scores(detector, change=np.asarray):
        exposed = isinstance(detector, OutlierExposureDetector)
        more = {"y": y, "z_outliers": change(known), "y_outliers": kinds} if exposed else {}
        return detector.fit(change(z), **more).score_samples(change(new))

    return *linear_classifier(z, y), scores


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_origin_and_empty_or_double_dimensions_do_not_matter(embedded, dtype):
    weight, bias, scores = embedded
    kept = weight.shape[1] // 2
    plain, shift = [KNNDetector(10), ViMDetector(n_components=kept), OutlierExposureDetector()], weight[0]
    shift = 1000 * shift / np.linalg.norm(shift)  # the classifier's origin follows where its weight vectors span

    def empty(a):
        return np.pad(a, ((0, 0), (0, 32))).astype(dtype)

    def double(a):
        return np.repeat(a, 2, axis=1).astype(dtype)

    for change, detectors in (
        *((lambda a, by=by: dtype(by) * a.astype(dtype), plain) for by in (1e-5, 1e3)),
        (lambda a: (a + 1000).astype(dtype), plain[1:]),
        (empty, plain),
        (double, plain),
    ):
        for detector in detectors:
            assert_same_order(scores(detector, change), scores(detector))
    for change, *head in (
        *((lambda a, by=by: dtype(by) * a.astype(dtype), weight / by, bias) for by in (1e-5, 1e3)),
        (lambda a: (a + shift).astype(dtype), weight, bias - weight @ shift),
        (empty, empty(weight), bias),
    ):
        assert_same_order(scores(ViMDetector(*head, kept), change), scores(ViMDetector(weight, bias, kept)))


def test_parts_that_do_not_fit_each_other():
    for weight, bias in ((WEIGHT[:, :5], BIAS), (WEIGHT, BIAS[:3]), (WEIGHT, None), (None, BIAS)):
        shapes = re.escape(f"{np.shape(weight)} and {np.shape(bias)}")
        with pytest.raises(ValueError, match=rf"weight must be \(C, 24\) and bias \(C,\), got {shapes}"):
            ViMDetector(weight, bias).fit(Z)
    with pytest.raises(ValueError, match="weight and bias must be finite"):
        ViMDetector(WEIGHT * math.nan, BIAS).fit(Z)
    with pytest.raises(ValueError, match="n_components must be between 0 and d = 24, got 25"):
        ViMDetector(WEIGHT, BIAS, n_components=25).fit(Z)
    for k in (0, 300):
        with pytest.raises(ValueError, match=f"n_neighbors must be between 1 and n - 1 = 299, got {k}"):
            KNNDetector(k).fit(Z)
    for outliers, kinds, said in (
        (KNOWN, KINDS[:-1], r"inconsistent numbers of samples: \[12, 11\]"),
        (KNOWN[:, :5], None, "X has 5 features"),
        (KNOWN * math.nan, None, "contains NaN"),
        (KNOWN[:0], None, "minimum of 1 is required"),
    ):
        with pytest.raises(ValueError, match=said):
            OutlierExposureDetector().fit(Z, Y, z_outliers=outliers, y_outliers=kinds)
    with pytest.raises(ValueError, match="embeddings do not vary within clusters"):
        OutlierExposureDetector().fit(np.eye(C)[Y], Y)
