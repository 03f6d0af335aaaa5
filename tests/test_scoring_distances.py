"""Distances against float64 formulas, and what must not change them: units, shifts, empty and repeated dimensions."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, spearmanr
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from oodlib import arrays
from oodlib.clustering.moments import Moments, cluster_means
from oodlib.scoring import DISTANCES, nearest_cluster
from oodlib.scoring.distances import fit_distances

K = 4
DTYPES = (np.float32, np.float64)


def overlapping(n=400, d=24, n_test=300, seed=0):
    """Return training, ID and OOD embeddings (·, d) and the training clusters: correlated dimensions, a hard task."""
    rng = np.random.default_rng(seed)
    mixing = np.geomspace(2, 0.2, d)[:, None] * np.linalg.qr(rng.normal(size=(d, d)))[0]
    centers, others = rng.normal(size=(2, K, d))
    assignments = rng.permutation(np.arange(n) % K)

    def draw(means, members):
        return means[members] + rng.normal(size=(len(members), d)) @ mixing + 1

    chosen = rng.integers(0, K, n_test)
    mixed = 0.8 * centers + 0.3 * others
    return draw(centers, assignments), draw(centers, chosen), draw(mixed, chosen), assignments


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def means_of(z, assignments):
    return np.stack([z[assignments == k].mean(axis=0) for k in range(assignments.max() + 1)])


def reference(distance, z, assignments, queries):
    """Return the (m, K) distances by the formula, one cluster and one difference at a time, in float64."""
    z, queries = z.astype(np.float64), queries.astype(np.float64)
    if distance == "cosine":
        directions = unit(means_of(unit(z), assignments))
        return np.stack([1 - unit(queries) @ direction for direction in directions], axis=1)
    if distance == "ssd":
        spread = unit(z).std(axis=0)
        return reference("mahalanobis-cluster", unit(z) / spread, assignments, unit(queries) / spread)
    if distance.endswith("++"):
        return reference(distance.removesuffix("++"), unit(z), assignments, unit(queries))
    if distance == "relative-mahalanobis":
        background = reference("mahalanobis", z, np.zeros_like(assignments), queries)
        return reference("mahalanobis", z, assignments, queries) - background
    means = means_of(z, assignments)
    if distance in ("mahalanobis-cluster", "log-density"):
        members = [z[assignments == k] for k in range(len(means))]
        gaussians = [multivariate_normal(m.mean(axis=0), np.cov(m.T, bias=True)) for m in members]
        if distance == "log-density":
            weights = np.array([len(m) / len(z) for m in members])
            return -np.stack([g.logpdf(queries) for g in gaussians], axis=1) - np.log(weights)
        precisions = [np.linalg.inv(g.cov) for g in gaussians]
        pairs = zip(means, precisions, strict=True)
        return np.stack([np.einsum("md,de,me->m", queries - m, p, queries - m) for m, p in pairs], axis=1)
    precision = np.eye(z.shape[1])
    if distance == "mahalanobis":
        within = z - means[assignments]
        precision = np.linalg.pinv(within.T @ within / len(z), rcond=1e-10, hermitian=True)
    if distance == "mahalanobis-shrunk":
        precision = LedoitWolf(assume_centered=True).fit(z - means[assignments]).precision_
    return np.stack([np.einsum("md,de,me->m", queries - m, precision, queries - m) for m in means], axis=1)


def measured(distance, z, assignments, queries):
    return DISTANCES[distance].measure(queries, fitted(distance, z, assignments))


def fitted(distance, z, assignments):
    return fit_distances([distance], z, assignments, int(assignments.max()) + 1)[distance]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_are_the_formula(distance, dtype):
    z, id_, ood, assignments = overlapping()
    queries = np.concatenate([id_, ood])
    found = measured(distance, z.astype(dtype), assignments, queries.astype(dtype))
    assert (found.shape, found.dtype) == ((600, K), np.float64)
    tolerance = 1e-9 if dtype == np.float64 else 1e-4 if distance in ("euclidean", "cosine") else 1e-3
    expected = reference(distance, z, assignments, queries)
    if distance == "log-density":  # known up to a constant
        found, expected = found - found.mean(), expected - expected.mean()
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max() / 100)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_odd_twin(distance):
    """An image and its twin that differs where the training images do not vary at all."""
    z, id_, _, assignments = overlapping()
    z, id_ = (np.pad(part, ((0, 0), (0, 8))) for part in (z, id_))
    twin = id_ + 3 * np.eye(32)[-1]
    before, after = (measured(distance, z, assignments, part) for part in (id_, twin))
    if distance in ("mahalanobis", "mahalanobis-cluster", "relative-mahalanobis", "log-density"):
        np.testing.assert_allclose(after, before, atol=1e-9)  # the pseudo-inverse has no weight there
    elif distance in ("euclidean", "cosine", "mahalanobis-shrunk", "mahalanobis-shrunk++"):
        expected = [reference(distance, z, assignments, part) for part in (id_, twin)]
        np.testing.assert_allclose(after - before, expected[1] - expected[0], rtol=1e-6, atol=1e-9)
    else:  # at unit norm the twin is drawn towards the origin, which is all that the pseudo-inverse sees of it
        shrunk = unit(id_) * (np.linalg.norm(id_, axis=1) / np.linalg.norm(twin, axis=1))[:, None]
        expected = DISTANCES[distance].base(shrunk, fitted(distance, z, assignments))
        np.testing.assert_allclose(after, expected, rtol=1e-9)


def test_shrinking_sees_what_is_odd_in_no_direction_of_few_images():
    """96 images of 512 dimensions leave 420 in which none varies; what is odd there is normal to the pseudo-inverse."""
    rng = np.random.default_rng(0)
    assignments, means = np.arange(96) % K, rng.normal(size=(K, 512))
    scale = np.geomspace(1, 0.05, 512)
    z, id_ = (means[a] + scale * rng.normal(size=(len(a), 512)) for a in (assignments, rng.integers(0, K, 300)))
    odd = id_ + 0.5 * scale[::-1] * rng.normal(size=id_.shape)
    aurocs = {}
    for distance in ("mahalanobis", "mahalanobis-shrunk"):
        found = measured(distance, z, assignments, np.concatenate([id_, odd])).min(axis=1)
        aurocs[distance] = roc_auc_score(np.repeat([0, 1], 300), found)
    assert aurocs["mahalanobis-shrunk"] > 0.97 > aurocs["mahalanobis"] + 0.1


def tight_far_from_the_origin(spread):
    """Where classes collapse, squares of O(1) would cancel to spread² in float32."""
    z, id_, ood, assignments = overlapping(n=1000)
    center = unit(np.random.default_rng(1).normal(size=(1, 24)))
    far = center / spread * np.linalg.norm(z - z.mean(axis=0), axis=1).mean()
    return z + far, id_ + far, ood + far, assignments


def tight_far_from_each_other(spread):
    rng = np.random.default_rng(0)
    mixing = np.geomspace(2, 0.2, 24)[:, None] * np.linalg.qr(rng.normal(size=(24, 24)))[0]
    means, assignments = unit(rng.normal(size=(K, 24))), np.arange(1000) % K
    noise = rng.normal(size=(3, 1000, 24)) @ mixing * spread / np.linalg.norm(mixing)
    z, id_, ood = (means[assignments] + part * scale for part, scale in zip(noise, (1, 1, 1.4), strict=True))
    return z, id_, ood, assignments


@pytest.mark.parametrize("spread", [3e-3, 3e-4])  # of the classes, in units of the norm of their means
@pytest.mark.parametrize("draw", [tight_far_from_the_origin, tight_far_from_each_other])
@pytest.mark.parametrize("distance", DISTANCES)
def test_tight_classes(distance, draw, spread):
    z, id_, ood, assignments = draw(spread)
    z, queries = z.astype(np.float32), np.concatenate([id_, ood]).astype(np.float32)
    single, double = (measured(distance, z.astype(t), assignments, queries.astype(t)).min(axis=1) for t in DTYPES)
    is_ood = np.repeat([0, 1], len(queries) // 2)
    assert 0.6 < roc_auc_score(is_ood, double) < 0.999
    assert roc_auc_score(is_ood, single) == pytest.approx(roc_auc_score(is_ood, double), abs=2e-3)
    assert spearmanr(single, double).statistic >= 0.998


def test_a_cluster_without_members_enough_takes_the_tied_covariance():
    z, id_, _, assignments = overlapping()
    few = np.flatnonzero(assignments == 2)[24:]  # as many members as dimensions stay
    z, assignments = np.delete(z, few, axis=0), np.delete(assignments, few)
    own, tied = (measured(name, z, assignments, id_) for name in ("mahalanobis-cluster", "mahalanobis"))
    np.testing.assert_allclose(own[:, 2], tied[:, 2], rtol=1e-8)
    assert not np.allclose(own[:, 1], tied[:, 1], rtol=1e-2)


@pytest.mark.parametrize("distance", ["mahalanobis-cluster", "ssd", "log-density"])
@pytest.mark.parametrize("n_members", [5, 21, 39, 40])
def test_new_members_of_a_small_cluster_are_no_outliers(n_members, distance):
    """In 20 dimensions a covariance of 21 members is regular, and all new members are hundreds of sigma away."""
    rng = np.random.default_rng(0)
    means = 4 * rng.normal(size=(3, 20))
    assignments = np.repeat(np.arange(3), [400, 400, n_members])
    z = means[assignments] + rng.normal(size=(len(assignments), 20))
    queries = means[[2]] + rng.normal(size=(300, 20))
    distances = measured(distance, z, assignments, queries)
    assert (distances.argmin(axis=1) == 2).mean() > 0.8
    to_tied = measured("mahalanobis", z, assignments, queries)[:, 2]
    if distance == "mahalanobis-cluster":
        assert np.median(distances[:, 2]) < 3 * np.median(to_tied)


def test_a_joint_score_is_the_density_of_the_mixture():
    z, id_, _, assignments = overlapping()
    state = fitted("log-density", z, assignments)
    expected = logsumexp(-reference("log-density", z, assignments, id_), axis=1)
    found = nearest_cluster(id_, "log-density", state)[0]
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=1e-8)


def test_values_counted_by_hand():
    z, assignments = np.array([[-1.0, 0], [1, 0], [9, 2], [11, -2], [9, -2], [11, 2]]), np.array([0, 0, 1, 1, 1, 1])
    queries = np.array([[0.0, 3], [10, 0]])
    assert measured("euclidean", z, assignments, queries).tolist() == [[9, 109], [100, 0]]
    # within clusters the variances are 6 / 6 and 16 / 6, without covariance
    np.testing.assert_allclose(measured("mahalanobis", z, assignments, queries), [[27 / 8, 100 + 27 / 8], [100, 0]])
    z = np.array([[5.0, 0], [2, 0], [0, 1], [3, 3]])  # directions: along x; half-way between y and the diagonal
    half_way = np.cos(np.pi / 8)
    expected = [[1, 1 - half_way], [0, 1 - np.sin(np.pi / 8)], [2, 1 + np.sin(np.pi / 8)]]
    found = measured("cosine", z, np.array([0, 0, 1, 1]), np.array([[0.0, 7], [1e-3, 0], [-4, 0]]))
    np.testing.assert_allclose(found, expected, atol=1e-12)


CHANGES = {
    "times 1e-5": lambda z: z * 1e-5,
    "times 1e3": lambda z: z * 1e3,
    "plus 1000": lambda z: z + 1000,
    "32 zero dimensions": lambda z: np.pad(z, ((0, 0), (0, 32))),
    "every dimension twice": lambda z: np.repeat(z, 2, axis=1),
    "a constant dimension": lambda z: np.insert(z, 3, 7.3, axis=1),
    "rotated": lambda z: z @ np.linalg.qr(np.random.default_rng(1).normal(size=(z.shape[1],) * 2))[0],
    "stretched": lambda z: z * np.geomspace(1e-2, 1e2, z.shape[1]),
}
OF_DIRECTIONS = ["times 1e-5", "times 1e3", "32 zero dimensions", "every dimension twice", "rotated"]
INVARIANT = {
    **dict.fromkeys(("mahalanobis", "mahalanobis-cluster", "relative-mahalanobis", "log-density"), list(CHANGES)),
    **dict.fromkeys(("cosine", "mahalanobis++", "relative-mahalanobis++", "ssd"), OF_DIRECTIONS),
    "euclidean": [c for c in CHANGES if c != "stretched"],
    "mahalanobis-shrunk": ["times 1e-5", "times 1e3", "plus 1000", "rotated"],
    "mahalanobis-shrunk++": ["times 1e-5", "times 1e3", "rotated"],
}


@pytest.mark.parametrize(("distance", "change"), [(d, c) for d, changes in INVARIANT.items() for c in changes])
def test_scores_do_not_change_with(distance, change):
    z, id_, ood, assignments = overlapping()
    changed = [CHANGES[change](part).astype(np.float32) for part in (z, id_, ood)]
    queries = np.concatenate([id_, ood])
    expected = reference(distance, z, assignments, queries).min(axis=1)
    found = measured(distance, changed[0], assignments, np.concatenate(changed[1:])).min(axis=1)
    is_ood = np.repeat([0, 1], [len(id_), len(ood)])
    auroc = roc_auc_score(is_ood, expected)
    assert INVARIANT.keys() == DISTANCES.keys()
    assert 0.6 < auroc < 0.99  # a task in which an error shows
    assert spearmanr(found, expected).statistic >= 0.999
    assert roc_auc_score(is_ood, found) == pytest.approx(auroc, abs=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 1000])
def test_fewer_embeddings_than_dimensions(dtype, shift):
    rng = np.random.default_rng(0)
    low_rank = rng.normal(size=(20, 128))
    assignments = np.arange(100) % K
    centers = 2 * rng.normal(size=(K, 20))
    z = (centers[assignments] + rng.normal(size=(100, 20))) @ low_rank
    queries = (centers[rng.integers(0, K, 200)] + 1.3 * rng.normal(size=(200, 20))) @ low_rank
    expected = reference("mahalanobis", z, assignments, queries).min(axis=1)
    # in float32 the shift leaves rounding in 108 directions in which nothing varies: it must not count
    found = measured("mahalanobis", (z + shift).astype(dtype), assignments, (queries + shift).astype(dtype)).min(axis=1)
    assert spearmanr(found, expected).statistic >= 0.999
    np.testing.assert_allclose(found, expected, rtol=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_row_is_at_cosine_distance_one_of_everything(dtype):
    z, id_, _, assignments = overlapping()
    z, queries = z.astype(dtype), np.concatenate([np.zeros((1, 24)), id_]).astype(dtype)
    assert measured("cosine", z, assignments, queries)[0].tolist() == [1] * K
    with_zero = np.concatenate([z, np.zeros((1, 24), dtype)])  # it has no say in a direction
    found = measured("cosine", with_zero, np.append(assignments, 2), queries)
    np.testing.assert_allclose(found, measured("cosine", z, assignments, queries), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copies", [1, 3])
def test_mahalanobis_is_not_defined_where_clusters_do_not_vary(dtype, copies):
    z = np.repeat(overlapping(n=10)[0], copies, axis=0).astype(dtype)
    assignments = np.repeat(np.arange(10), copies)
    with pytest.raises(ValueError, match=r"embeddings do not vary within clusters \(n_features = 24\), so Mahal"):
        fitted("mahalanobis", z, assignments)
    for distance in ("euclidean", "cosine"):
        assert measured(distance, z, assignments, z).argmin(axis=1).tolist() == assignments.tolist()
    with pytest.raises(ValueError, match="cluster 10 of 11 is empty"):
        fit_distances(["cosine"], z, assignments, 11)


def test_means_are_summed_in_float64():
    z = np.full((200_000, 1), 0.1, dtype=np.float32)
    assert cluster_means(z, np.zeros(200_000, dtype=np.int64), 1)[0, 0] == pytest.approx(np.float32(0.1), rel=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_fitted_together_or_in_blocks_is_fitted_alone_at_once(distance, monkeypatch):
    z, id_, _, assignments = overlapping()
    alone, whole = fitted(distance, z, assignments), measured(distance, z, assignments, id_)
    together = fit_distances(list(DISTANCES), z, assignments, K)[distance]
    assert together.keys() == alone.keys()
    assert all(np.array_equal(together[part], alone[part]) for part in alone)
    monkeypatch.setattr(arrays, "ROWS", 37)
    np.testing.assert_allclose(measured(distance, z, assignments, id_), whole, rtol=1e-9, atol=1e-9)


def test_whitenings_of_fewer_images_than_dimensions_are_those_of_the_covariance():
    rng = np.random.default_rng(3)
    y = np.arange(12) % 3
    z = rng.normal(size=(12, 30)) * np.geomspace(1, 1e-2, 30) + y[:, None]
    moments, centred = Moments(z, y, 3), z - means_of(z, y)[y]
    for whiten, rank, x in ((moments.whiten, 9, centred), (moments.whiten_total, 11, z - z.mean(axis=0))):
        inverse = np.linalg.pinv(x.T @ x / 12, rcond=1e-10, hermitian=True)
        np.testing.assert_allclose(whiten @ whiten.T, inverse, atol=1e-7 * np.abs(inverse).max())
        assert whiten.shape == (30, rank)
    shrunk = LedoitWolf(assume_centered=True).fit(centred)
    np.testing.assert_allclose(moments.whiten_shrunk @ moments.whiten_shrunk.T, shrunk.precision_, rtol=1e-6, atol=1e-9)
