"""Detectors: every combination on a set made by hand, decisions counted, brute force, SciPy, scikit-learn's checks."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky
from sklearn.utils.estimator_checks import parametrize_with_checks

from oodlib import arrays
from oodlib.clustering import CLUSTERINGS, cluster
from oodlib.clustering.clusters import MIXTURES
from oodlib.scoring import DISTANCES, THRESHOLDS, ClusterDetector, KNNDetector, OutlierExposureDetector, ViMDetector
from oodlib.scoring.distances import Distance, fit_distances, nearest_cluster, nearest_clusters
from oodlib.scoring.thresholds import conformal_threshold

CHECKED = [ClusterDetector("kmeans", 2), KNNDetector(n_neighbors=3), ViMDetector(), OutlierExposureDetector()]
CHECKED += [ClusterDetector("kmeans", 2, distance="log-density", threshold="conformal")]
CHECKED += [ClusterDetector("gmm-diag", 2, distance="cosine")]


@parametrize_with_checks(CHECKED)
@pytest.mark.filterwarnings("ignore:nothing is rejected")
def test_scikit_learn_finds_its_contract_kept(estimator, check):
    """Detectors that need labels or two clusters, and thresholds a cluster, are not here: they fail some checks."""
    check(estimator)


def axes(n, members, seed, d=6, dtype=np.float32):
    """Return n embeddings around points on the axes named by `members`, and the axis of each."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.resize(members, n))
    return (10 * np.eye(d)[y] + 0.5 * rng.normal(size=(n, d))).astype(dtype), y


Z, Y = axes(300, [0, 1, 2], seed=0)
CALIBRATION = axes(199, [0, 1, 2], seed=1)[0]
ID, ID_Y = axes(150, [0, 1, 2], seed=2)
OOD = axes(60, [3], seed=3)[0]


def build(**changes):
    return ClusterDetector(**({"n_clusters": 3, "alpha": 0.05} | changes))


@pytest.mark.parametrize("clustering", CLUSTERINGS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_every_combination_tells_another_axis_from_the_known_ones(clustering, distance):
    if clustering == "one" and distance.startswith("relative-"):  # the difference of a thing and itself
        with pytest.raises(ValueError, match="needs at least two clusters"):
            build(clustering=clustering, distance=distance).fit(Z, Y)
        return
    detector = build(clustering=clustering, distance=distance)
    assert detector.fit(Z, Y) is detector
    id_scores, ood_scores = detector.score_samples(ID), detector.score_samples(OOD)
    assert id_scores.dtype == ood_scores.dtype == np.float64
    assert id_scores.shape == (150,)
    assert roc_auc_score(np.repeat([1, 0], [150, 60]), np.concatenate([id_scores, ood_scores])) > 0.999
    assert (detector.predict(OOD) == -1).mean() > 0.98
    assert (detector.predict(ID) == 1).mean() > 0.85
    if distance == "euclidean" and clustering != "one":
        means = np.stack([Z[k == Y].mean(axis=0, dtype=np.float64) for k in range(3)])
        expected = -((ID[:, None].astype(np.float64) - means) ** 2).sum(axis=2).min(axis=1)
        np.testing.assert_allclose(id_scores, expected, rtol=1e-5)
        assert detector.n_clusters_ == 3


def test_several_distances_at_once_are_each_alone_from_one_measurement(monkeypatch):
    measured = []

    def measure_base(self, z, state, original=Distance.measure_base):
        measured.append((self.base.__name__, self.unit, len(z)))
        return original(self, z, state)

    states = fit_distances(list(DISTANCES), Z.astype(np.float64), Y, 3)
    alone = {name: nearest_cluster(ID, name, state) for name, state in states.items()}
    monkeypatch.setattr(Distance, "measure_base", measure_base)
    monkeypatch.setattr(arrays, "ROWS", 100)
    together = nearest_clusters(ID, states)
    assert list(together) == list(DISTANCES)
    for name, (scores, nearest) in together.items():
        np.testing.assert_allclose(scores, alone[name][0], rtol=1e-9, atol=1e-12)
        assert np.array_equal(nearest, alone[name][1])
    # "mahalanobis-cluster" and "log-density" rest on the same one, in each of two blocks
    assert states["mahalanobis-cluster"] is states["log-density"]
    assert [n for _, _, n in measured] == [100] * (len(DISTANCES) - 1) + [50] * (len(DISTANCES) - 1)
    # the same distance to other clusters is another measurement
    others = fit_distances(["mahalanobis-cluster", "log-density"], Z.astype(np.float64), Y % 2, 2)
    mixed = {"mahalanobis-cluster": states["mahalanobis-cluster"], "log-density": others["log-density"]}
    for name, (scores, _) in nearest_clusters(ID, mixed).items():
        np.testing.assert_allclose(scores, nearest_cluster(ID, name, mixed[name])[0], rtol=1e-9)


# Decisions


@pytest.mark.parametrize(("distance", "alpha"), [(name, 0.05) for name in DISTANCES] + [("euclidean", 0.5)])
def test_global_threshold_rejects_the_share_of_the_training_embeddings_asked_for(distance, alpha):
    detector = build(distance=distance, alpha=alpha).fit(Z, Y)
    assert np.ndim(detector.offset_) == 0
    below = math.floor(alpha * 301) - 1  # of 300, below the j-th smallest; one more may be as near as rounding
    assert (detector.predict(Z) == -1).sum() in (below, below - 1)
    np.testing.assert_allclose(detector.offset_, conformal_threshold(detector.score_samples(Z), alpha), rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_per_cluster_threshold_rejects_the_same_share_of_every_cluster(alpha):
    stretched = Z * np.where(Y == 1, 4.0, 1.0)[:, None].astype(np.float32)  # one cluster is wider than the others
    detector = build(distance="euclidean", threshold="per-cluster", alpha=alpha).fit(stretched, Y)
    assert detector.offset_.shape == (3,)
    rejected = detector.predict(stretched) == -1
    assert [int(rejected[k == Y].sum()) for k in range(3)] == [math.floor(alpha * 101) - 1] * 3
    one_for_all = build(distance="euclidean", alpha=alpha).fit(stretched, Y)
    assert set(Y[one_for_all.predict(stretched) == -1]) == {1}


@pytest.mark.parametrize("distance", DISTANCES)
def test_decision_on_an_image_does_not_depend_on_the_others(distance):
    """The threshold is the score of some image; alone, its score may differ in the last digit."""
    detector = build(distance=distance, threshold="conformal", alpha=0.2).fit(Z, Y, Z)
    assert np.array_equal(detector.predict(Z), [detector.predict(row[None])[0] for row in Z])


def test_conformal_threshold_keeps_its_promise_where_the_training_scores_do_not():
    """With 40 dimensions and 60 training embeddings a covariance is tailored to them."""
    rng, alpha, rates = np.random.default_rng(0), 0.1, {"conformal": [], "global": []}
    for _ in range(60):
        z, calibration, new = rng.normal(size=(60, 40)), rng.normal(size=(99, 40)), rng.normal(size=(500, 40))
        for threshold in rates:
            detector = ClusterDetector(threshold=threshold, alpha=alpha).fit(z, np.arange(60) % 2, calibration)
            rates[threshold].append((detector.predict(new) == -1).mean())
    spread = stats.betabinom(500, 10, 90).std() / 500 / math.sqrt(60)  # j = 10 of 100
    assert np.mean(rates["conformal"]) == pytest.approx(alpha, abs=3.3 * spread)
    assert np.mean(rates["global"]) > 0.9


def test_conformal_threshold_without_calibration_holds_a_fifth_out():
    rng, alpha, rates = np.random.default_rng(0), 0.1, []
    for seed in range(40):
        z, new = rng.normal(size=(245, 8)), rng.normal(size=(500, 8))
        detector = ClusterDetector("one", threshold="conformal", alpha=alpha, seed=seed).fit(z)
        rates.append((detector.predict(new) == -1).mean())
    spread = stats.betabinom(500, 5, 45).std() / 500 / math.sqrt(40)  # 49 held out: j = 5 of 50
    assert np.mean(rates) == pytest.approx(alpha, abs=3.3 * spread)
    parts = [ClusterDetector("one", threshold="conformal", seed=seed).fit(z).state_["origin"] for seed in (1, 1, 2)]
    assert np.array_equal(*parts[:2])
    assert not np.array_equal(*parts[1:])  # another fifth
    assert not np.allclose(parts[0], z.mean(axis=0), rtol=0, atol=1e-6)  # which the clusters have not seen
    with pytest.raises(ValueError, match="needs z_calibration, or 5 embeddings"):
        ClusterDetector("one", threshold="conformal").fit(z[:4])
    for seed in range(10):  # of every class some embeddings stay
        rare = np.where(np.arange(300) < 2, 3, Y)
        assert ClusterDetector(distance="euclidean", threshold="conformal", seed=seed).fit(Z, rare).n_clusters_ == 4


def test_too_few_calibration_images_reject_nothing():
    detector = build(threshold="conformal")
    said = "^nothing is rejected: there are 18 calibration images, and alpha = 0.05 takes 19$"
    with pytest.warns(UserWarning, match=said) as warned:
        detector.fit(Z, Y, CALIBRATION[:18])
    assert [warning.filename for warning in warned] == [__file__]  # once, where it was fitted
    assert detector.offset_ == -np.inf
    with warnings.catch_warnings(action="error"):
        assert (detector.fit(Z, Y, CALIBRATION[:19]).predict(OOD) == -1).all()
        assert np.isfinite(build(threshold="per-cluster").fit(Z, Y).offset_).all()


# Thresholds within clusters, and p-values

WIDTHS = np.array([0.2, 0.5, 2.0])


def uneven(rng, n):
    """Return n embeddings around three points, in clusters of different width and size, and their clusters."""
    y = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    return 20 * np.eye(6)[y] + WIDTHS[y, None] * rng.normal(size=(n, 6)), y


def test_conformal_cluster_keeps_its_promise_in_every_cluster_where_one_threshold_does_not():
    rng, alpha, n_splits = np.random.default_rng(0), 0.1, 120
    z, y = uneven(rng, 300)
    excess, variances, one_for_all = np.zeros(3), np.zeros(3), np.zeros(3)
    for _ in range(n_splits):
        (calibration, own), (new, cluster) = uneven(rng, 200), uneven(rng, 400)
        rejected, rejected_by_one = (
            build(threshold=t, distance="euclidean", alpha=alpha).fit(z, y, calibration).predict(new) == -1
            for t in ("conformal-cluster", "conformal")
        )
        for k in range(3):
            m, n = (own == k).sum(), (cluster == k).sum()
            j = math.floor(alpha * (m + 1) + 1e-9)
            assert j / (m + 1) <= alpha
            excess[k] += rejected[cluster == k].mean() - j / (m + 1)
            variances[k] += stats.betabinom(n, j, m + 1 - j).var() / n**2
            one_for_all[k] += rejected_by_one[cluster == k].mean() / n_splits
    assert (np.abs(excess) < 3.3 * np.sqrt(variances)).all()
    assert one_for_all[2] > 3 * alpha  # all false alarms stand in the widest cluster
    assert one_for_all[:2].max() < alpha / 10


def test_conformal_cluster_promises_nothing_for_a_cluster_without_enough_images():
    calibration = np.concatenate([axes(40, [0], seed=4)[0], axes(5, [1], seed=5)[0]])
    detector = build(threshold="conformal-cluster")
    said = "^nothing is rejected in 2 of 3 clusters: there are 45 calibration images, and alpha = 0.05 takes 19 in each"
    with pytest.warns(UserWarning, match=said) as warned:
        detector.fit(Z, Y, calibration)
    assert len(warned) == 1
    assert np.isfinite(detector.offset_).tolist() == [True, False, False]
    assert (detector.predict(ID)[ID_Y > 0] == 1).all()
    assert (detector.p_values(ID)[ID_Y == 2] == 1).all()
    assert detector.p_values(ID)[ID_Y == 1].min() >= 1 / 6


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_decisions_and_p_values_rest_on_the_images_of_the_threshold_and_agree(threshold):
    detector = build(threshold=threshold, distance="euclidean").fit(Z, Y, CALIBRATION)
    limits = detector.offset_[ID_Y] if threshold.endswith("cluster") else detector.offset_
    assert np.array_equal(detector.decision_function(ID), detector.score_samples(ID) - limits)
    assert (detector.predict(OOD) == -1).mean() > 0.98
    assert np.array_equal(detector.fit_predict(Z, Y, z_calibration=CALIBRATION), detector.predict(Z))
    reference = CALIBRATION if threshold.startswith("conformal") else Z
    known, known_nearest = nearest_cluster(reference, "euclidean", detector.state_)
    expected = []
    for score, k in zip(*nearest_cluster(ID, "euclidean", detector.state_), strict=True):
        among = known[known_nearest == k] if threshold.endswith("cluster") else known
        expected.append((1 + sum(among <= score)) / (1 + len(among)))
    assert detector.p_values(ID).tolist() == expected
    for distance in ("cosine", "mahalanobis", "log-density"):
        for alpha in (0.05, 0.2):
            detector = build(threshold=threshold, distance=distance, alpha=alpha).fit(Z, Y, CALIBRATION)
            for z in (ID, OOD):
                rejected = detector.decision_function(z) < 0
                assert np.array_equal(detector.p_values(z) <= alpha, rejected)
                assert np.array_equal(detector.predict(z), np.where(rejected, -1, 1))


@pytest.mark.parametrize("threshold", ["global", "conformal-cluster"])
def test_half_precision_in_a_file_is_single_precision_of_the_same_values(threshold, tmp_path):
    mapped = []
    for name, z in (("z", Z), ("calibration", CALIBRATION), ("new", ID)):
        np.save(tmp_path / f"{name}.npy", z.astype(np.float16))
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    single = [z.astype(np.float32) for z in mapped]
    for distance in ("mahalanobis", "cosine", "log-density"):
        fitted = [build(threshold=threshold, distance=distance).fit(z, Y, c) for z, c, _ in (mapped, single)]
        for method in ("score_samples", "p_values"):
            first, second = (getattr(d, method)(new) for d, new in zip(fitted, (mapped[2], single[2]), strict=True))
            np.testing.assert_allclose(first, second, rtol=1e-5)
        np.testing.assert_allclose(fitted[0].offset_, fitted[1].offset_, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "given", "said"),
    [
        ({"clustering": "dbscan"}, (), "unknown clustering 'dbscan'; known: labels, "),
        ({"distance": "manhattan"}, (), "unknown distance 'manhattan'; known: euclidean, cosine, mahalanobis"),
        ({"threshold": "otsu"}, (), "unknown threshold 'otsu'; known: global, conformal, per-cluster"),
        ({"clustering": "kmeans", "n_clusters": 301}, (), "n_clusters = 301 is larger than the number of points, 300"),
        ({"threshold": "conformal"}, (Z, Y[1:]), r"inconsistent numbers of samples: \[300, 299\]"),
        ({}, (Z,), "clustering 'labels' needs labels y"),
        ({"threshold": "conformal"}, (Z,), "clustering 'labels' needs labels y"),
        ({"threshold": "conformal"}, (Z, Y, CALIBRATION[:, :5]), "X has 5 features"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_no_fit(changes, given, said):
    detector = build().fit(Z, Y).set_params(**changes)
    with pytest.raises(ValueError, match=said):
        detector.fit(*(given or (Z, Y)))
    if given:  # a fit that failed half-way is none
        with pytest.raises(NotFittedError):
            detector.predict(ID)


EVERY = {
    "conformal": build(threshold="conformal"),
    "conformal-cluster": build(clustering="kmeans", threshold="conformal-cluster", distance="cosine"),
    "knn": KNNDetector(5),
    "vim": ViMDetector(np.eye(6), np.zeros(6)),
    "outlier exposure": OutlierExposureDetector(),
}
METHODS = ("score_samples", "decision_function", "predict", "p_values")
every = pytest.mark.parametrize("detector", EVERY.values(), ids=EVERY)


@every
@pytest.mark.filterwarnings("ignore:nothing is rejected")
def test_embeddings_that_do_not_fit(detector):
    fitted = clone(detector).fit(Z, Y)
    asked = [getattr(fitted, method) for method in METHODS]
    fits = (lambda z: clone(detector).fit(z, ID_Y), lambda z: clone(detector).fit(Z, Y, z_calibration=z))
    for value, said in ((math.nan, "contains NaN"), (math.inf, "contains infinity")):
        spoilt = np.where(np.arange(6) == 2, np.float32(value), ID)
        for ask in (*asked, *fits):
            with pytest.raises(ValueError, match=said):
                ask(spoilt)
    for ask in asked:
        with pytest.raises(ValueError, match="X has 5 features, but .* is expecting 6 features"):
            ask(ID[:, :5])
        with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
            ask(ID[0])
    for alpha in (0, 1, math.nan):
        with pytest.raises(ValueError, match=f"alpha must be between 0 and 1, got {alpha}"):
            fitted.set_params(alpha=alpha).fit(Z, Y)
    for method in METHODS:
        with pytest.raises(NotFittedError):
            getattr(clone(detector), method)(ID)


@pytest.mark.parametrize(("clustering", "covariance"), MIXTURES.items())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_density_of_a_mixture_is_scikit_learns(clustering, covariance, dtype):
    """Overlapping classes of very different spread: the clusters' own covariances are not the mixture's."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 1200)
    z = (2 * rng.normal(size=(4, 8))[y] + rng.normal(size=(1200, 8)) * np.geomspace(0.2, 3, 8)).astype(dtype)
    detector = ClusterDetector(clustering, 5, "log-density").fit(z)
    mixture = cluster(z, None, clustering, 5).mixture
    peer = GaussianMixture(len(mixture.weights), covariance_type=covariance)
    peer.weights_, peer.means_ = mixture.weights, mixture.means
    peer.precisions_cholesky_ = _compute_precision_cholesky(mixture.covariances, covariance)
    queries = np.concatenate([z[:300], 3 * rng.normal(size=(300, 8))]).astype(dtype)
    expected = peer.score_samples(queries.astype(np.float64))
    found = detector.score_samples(queries)
    np.testing.assert_allclose(found, expected, rtol=1e-3 if dtype == np.float32 else 1e-6)
    assert stats.spearmanr(found, expected).statistic > 0.9999


TENSORS = {
    "with a gradient": lambda z: torch.from_numpy(z).requires_grad_(),
    "float16": lambda z: torch.from_numpy(z).half(),
    "bfloat16": lambda z: torch.from_numpy(z).bfloat16().requires_grad_(),
}


@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
@every
def test_tensors_are_taken_as_the_arrays_that_they_hold(detector, make):
    tensors = [make(part) for part in (Z, CALIBRATION, ID, OOD)]
    arrays = [part.float() if part.dtype == torch.bfloat16 else part for part in tensors]
    z, calibration, new, outliers = [part.detach().cpu().numpy() for part in arrays]
    y, more, known = torch.from_numpy(Y).to(tensors[0].device), {}, {}
    if isinstance(detector, OutlierExposureDetector):
        more = {"z_outliers": tensors[3], "y_outliers": torch.arange(60)}
        known = {"z_outliers": outliers, "y_outliers": np.arange(60)}
    expected = clone(detector).fit(z, Y, calibration, **known)
    found = clone(detector).fit(tensors[0], y, tensors[1], **more)
    for method in METHODS:
        ours = getattr(found, method)(tensors[2])
        assert isinstance(ours, np.ndarray)
        np.testing.assert_array_equal(ours, getattr(expected, method)(new))
