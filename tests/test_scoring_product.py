"""The whole product against detectors that are fitted one by one, on small Gaussian embeddings."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from oodlib.clustering import cluster
from oodlib.scoring import (
    DISTANCES,
    THRESHOLDS,
    ClusterDetector,
    KNNDetector,
    OutlierExposureDetector,
    ViMDetector,
    activation_limit,
    ash,
    energy,
    fdbd,
    gen,
    msp,
    nci,
    nnguide,
    react,
    scale,
)
from oodlib.scoring.evaluation import (
    COMBINED,
    Embedded,
    RunEmbeddings,
    all_scores,
    cluster_scores,
    clusterless_scores,
    evaluate,
    exposed_scores,
    n_detectors,
    with_combination,
)
from oodlib.scoring.thresholds import conformal_p_values, conformal_threshold

ALPHA, SEED, N_NEIGHBORS = 0.1, 3, 7
N_TEST = 101
WAYS = (("labels", 3), ("one", 1), ("kmeans", 5), ("spherical-kmeans", 3), ("gmm-diag", 4))
N_CLASSES = {"near": 4, "far": 2}  # of the OOD sets' own


def draw(n: int, n_classes: int, seed: int, shift: float = 0.0, noise: float = 1.0) -> Embedded:
    """Draw embeddings (n, 10) float64 of classes around fixed means, each dimension on another scale."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = np.random.default_rng(n_classes).normal(size=(n_classes, 10)) * 2 + shift
    z = (means[y] + noise * rng.normal(size=(n, 10))) * np.linspace(0.5, 2, 10) + 3
    return Embedded(z, y)


def make_data(classifier: bool = True) -> RunEmbeddings:
    """Make embeddings of ID splits and two OOD sets; training embeddings are closer to their means than new ones.

    They are float64: in float32 detectors lower their thresholds by 1e-4 or so, the rounding of what is scored alone.
    """
    parts = [draw(240, 3, 0, noise=0.85), draw(90, 3, 1), draw(N_TEST, 3, 2)]
    ood = {"near": draw(80, N_CLASSES["near"], 3), "far": draw(61, N_CLASSES["far"], 4, shift=3)}
    if not classifier:
        return RunEmbeddings(*parts, ood)
    rng = np.random.default_rng(5)
    weight, bias = rng.normal(size=(3, 10)), rng.normal(size=3)

    def with_logits(part: Embedded) -> Embedded:
        return replace(part, logits=part.z @ weight.T + bias)

    return RunEmbeddings(*map(with_logits, parts), {k: with_logits(v) for k, v in ood.items()}, weight, bias)


def found_clusters(data: RunEmbeddings) -> dict:
    return {(name, k): cluster(data.train.z, data.train.y, name, k, SEED) for name, k in WAYS}


def assign(data: RunEmbeddings) -> dict:
    return {key: clusters.assignments for key, clusters in found_clusters(data).items()}


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def rows(data):
    """Every row that the product gives, by clustering, K, distance, threshold and OOD set."""
    correct = np.arange(N_TEST) % 5 > 0
    found = {}
    mixtures = {key: clusters.mixture for key, clusters in found_clusters(data).items() if clusters.mixture}
    for scored in all_scores(data, assign(data), list(DISTANCES), N_NEIGHBORS, [1, 5], mixtures):
        for row in evaluate(scored, ["near", "far"], correct, ALPHA):
            key = tuple(row[part] for part in ("clustering", "n_clusters", "distance", "threshold"))
            assert (*key, row["ood_dataset"]) not in found
            found[*key, row["ood_dataset"]] = row
    return found


def check(row: dict, detector, inside: np.ndarray, outside: np.ndarray, normality) -> None:
    """Compare a row with a fitted detector: AUROC of its normality, shares that it rejects."""
    is_id = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    assert row["auroc"] == pytest.approx(roc_auc_score(is_id, normality(np.concatenate([inside, outside]))), abs=1e-6)
    assert row["id_rejected"] == (detector.predict(inside) == -1).mean()
    assert row["ood_rejected"] == (detector.predict(outside) == -1).mean()
    assert (row["n_id"], row["n_ood"]) == (len(inside), len(outside))


@pytest.mark.parametrize(("clustering", "k"), WAYS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.filterwarnings("ignore:nothing is rejected")
def test_every_row_is_that_of_a_cluster_detector(data, rows, clustering, k, threshold):
    z = {name: embedded.z for name, embedded in data.sets().items()}
    for distance in DISTANCES:
        if clustering == "one" and distance.startswith("relative-"):
            continue
        detector = ClusterDetector(clustering, k, distance, threshold, ALPHA, SEED)
        detector.fit(z["train"], data.train.y, z["calibration"])
        normality = detector.p_values if threshold.endswith("cluster") else detector.score_samples
        for ood in ("near", "far"):
            row = rows[clustering, k, distance, threshold, ood]
            check(row, detector, z["test"], z[ood], normality)


def test_float32_gives_the_same_but_for_rounding(data, rows):
    """A detector lowers its threshold by the rounding: it may keep what lies that close, and rejects nothing more."""
    z = {name: part.z.astype(np.float32) for name, part in data.sets().items()}
    few = replace(
        data,
        train=replace(data.train, z=z["train"]),
        calibration=replace(data.calibration, z=z["calibration"]),
        test=replace(data.test, z=z["test"]),
        ood={name: replace(part, z=z[name]) for name, part in data.ood.items()},
    )
    assigned = cluster(z["train"], data.train.y, "labels").assignments
    for scored in cluster_scores(few, {("labels", 3): assigned}, list(DISTANCES)):
        for row in evaluate(scored, ["near"], np.arange(N_TEST) % 5 > 0, ALPHA):
            detector = ClusterDetector("labels", None, scored.distance, row["threshold"], ALPHA)
            detector.fit(z["train"], data.train.y, z["calibration"])
            np.testing.assert_array_equal(detector.score_samples(z["near"]), scored.scores["near"])
            exact = rows["labels", 3, scored.distance, row["threshold"], "near"]
            assert row["auroc"] == pytest.approx(exact["auroc"], abs=1e-3)
            kept = row["id_rejected"] - (detector.predict(z["test"]) == -1).mean()
            assert 0 <= kept <= 1 / N_TEST


def test_the_rows_tell_the_thresholds_and_the_detectors_apart(rows):
    """So that the equalities above are not those of constants."""
    of = {t: rows["kmeans", 5, "mahalanobis", t, "near"] for t in THRESHOLDS}
    assert len({(row["id_rejected"], row["ood_rejected"]) for row in of.values()}) == 4
    assert len({row["auroc"] for row in of.values()}) == 3  # one order for the two thresholds that are one number
    ways = (("labels", 3), ("kmeans", 5))
    assert len({rows[*way, d, "global", "near"]["auroc"] for way in ways for d in DISTANCES}) > 8


@pytest.mark.parametrize("threshold", ["global", "conformal"])
def test_rows_of_references_are_those_of_their_detectors(data, rows, threshold):
    calibration = data.calibration.z if threshold == "conformal" else None
    detectors = {"knn": KNNDetector(N_NEIGHBORS, ALPHA), "vim": ViMDetector(data.weight, data.bias, alpha=ALPHA)}
    for name, detector in detectors.items():
        detector.fit(data.train.z, None, calibration)
        for ood in ("near", "far"):
            row = rows["none", 0, name, threshold, ood]
            check(row, detector, data.test.z, data.ood[ood].z, detector.score_samples)


@pytest.mark.parametrize("threshold", ["global", "conformal"])
def test_rows_of_the_functions_are_those_of_their_scores(data, rows, threshold):
    train, head = data.train.z, (data.weight, data.bias)
    mean, clip = train.astype(np.float64).mean(axis=0), activation_limit(train)
    functions = {
        "nnguide": lambda part: nnguide(part.z, *head, train, own=part is data.train),
        "fdbd": lambda part: fdbd(part.z, *head, mean),
        "nci": lambda part: nci(part.z, *head, mean),
        "react": lambda part: react(part.z, *head, clip),
        "ash": lambda part: ash(part.z, *head),
        "scale": lambda part: scale(part.z, *head),
        "msp": lambda part: msp(part.logits),
        "maxlogit": lambda part: part.logits.max(axis=1),
        "energy": lambda part: energy(part.logits),
        "gen": lambda part: gen(part.logits),
    }
    reference = data.calibration if threshold == "conformal" else data.train
    for name, score in functions.items():
        limit = conformal_threshold(score(reference), ALPHA)
        inside = score(data.test)
        for ood, part in data.ood.items():
            row, outside = rows["none", 0, name, threshold, ood], score(part)
            is_id = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
            assert row["auroc"] == pytest.approx(roc_auc_score(is_id, np.r_[inside, outside]), abs=1e-6)
            assert (row["id_rejected"], row["ood_rejected"]) == ((inside < limit).mean(), (outside < limit).mean())


def split_known(y: np.ndarray, n_known: int) -> tuple[list[int], list[int]]:
    """Return the rows a head sees, the first of each class in a seeded order, and the others."""
    order = np.random.default_rng(0).permutation(len(y)).tolist()
    known = sorted(i for c in set(y) for i in [i for i in order if y[i] == c][:n_known])
    return known, [i for i in range(len(y)) if i not in known]


@pytest.mark.parametrize("threshold", ["global", "conformal"])
@pytest.mark.parametrize("n_known", [1, 5])
@pytest.mark.parametrize("ood", ["near", "far"])
def test_rows_of_outlier_exposure_leave_out_the_images_it_has_seen(data, rows, threshold, n_known, ood):
    part = data.ood[ood]
    known, rest = split_known(part.y, n_known)
    assert len(known) == N_CLASSES[ood] * n_known
    detector = OutlierExposureDetector(ALPHA).fit(
        data.train.z,
        data.train.y,
        data.calibration.z if threshold == "conformal" else None,
        part.z[known],
        part.y[known],
    )
    row = rows["none", 0, f"outlier-exposure-{n_known}", threshold, ood]
    assert row["seen"] == n_known
    assert row["n_ood"] == len(part.z) - N_CLASSES[ood] * n_known
    check(row, detector, data.test.z, part.z[rest], detector.score_samples)


def test_outlier_exposure_of_one_set_does_not_depend_on_another_and_repeats(data):
    both = exposed_scores(data, 2)
    alone = exposed_scores(replace(data, ood={"far": data.ood["far"]}), 2)
    assert alone.scores.keys() == {"train far", "calibration far", "test far", "far"}
    for name, scores in alone.scores.items():
        np.testing.assert_array_equal(scores, both.scores[name])
    again = exposed_scores(make_data(), 2)
    for name, scores in both.scores.items():
        np.testing.assert_array_equal(scores, again.scores[name])


def test_a_set_with_less_than_two_images_left_has_no_outlier_exposure(data):
    # 30 and 31 of a class: 30 leave one image of one class, 29 leave one and two
    scored = exposed_scores(replace(data, ood={"far": data.ood["far"]}), 30)
    assert scored.scores == {}
    assert list(evaluate(scored, ["far"], np.ones(N_TEST, dtype=bool), ALPHA)) == []
    assert len(exposed_scores(data, 29).scores["far"]) == 3
    # a class with fewer images than asked for is seen whole
    few = replace(data.ood["far"], y=(np.arange(61) > 1).astype(int))
    assert len(exposed_scores(replace(data, ood={"few": few}), 5).scores["few"]) == 61 - 2 - 5


def test_the_number_of_detectors_is_foreseen(data):
    assignments = assign(data)
    for given, references in ((data, 12), (make_data(classifier=False), 2)):
        found = list(all_scores(given, assignments, list(DISTANCES), N_NEIGHBORS, [1, 5]))
        # one of five clusterings has one cluster, where the two relative distances are not defined
        assert len(found) == 5 * len(DISTANCES) - 2 + references + 2
        assert n_detectors(given, assignments, list(DISTANCES), [1, 5]) == len(found)
        assert len({(s.clustering, s.n_clusters, s.distance) for s in found}) == len(found)
    relative = [s.clustering for s in cluster_scores(data, assignments, ["relative-mahalanobis"])]
    assert relative == [name for name, _ in WAYS if name != "one"]
    # a mixture asked for four clusters may find but one
    assert n_detectors(data, {("gmm", 4): np.zeros(240, dtype=int)}, ["relative-mahalanobis"], []) == 12


def test_one_of_each_kind_is_combined_behind_the_others(data):
    for given, n_members in ((data, 3), (make_data(classifier=False), 2)):
        found = list(all_scores(given, assign(given), list(DISTANCES), N_NEIGHBORS, []))
        *others, fishers = with_combination(found)
        assert others == found
        assert (fishers.clustering, fishers.n_clusters, fishers.distance) == ("none", 0, "fisher")
        assert fishers.nearest is None
        members = [s for s in found if (s.clustering, s.distance) in COMBINED]
        assert len(members) == n_members
        near = [conformal_p_values(s.scores["near"], s.scores["calibration"]) for s in members]
        np.testing.assert_allclose(fishers.scores["near"], np.log(near).sum(axis=0))
        assert {name: len(part) for name, part in fishers.scores.items()} == {
            name: len(part.z) for name, part in given.sets().items()
        }
    assert list(with_combination(found[:1])) == found[:1]


def test_without_a_classifier_there_are_knn_and_the_residual():
    data = make_data(classifier=False)
    found = dict(clusterless_scores(data, N_NEIGHBORS))
    assert list(found) == ["knn", "residual"]
    residual = ViMDetector().fit(data.train.z)
    for name, part in data.sets().items():
        np.testing.assert_array_equal(found["residual"][name], residual.score_samples(part.z))
    fewer = dict(clusterless_scores(data, 1000))["knn"]["near"]  # as many as there are
    np.testing.assert_array_equal(fewer, KNNDetector(239).fit(data.train.z).score_samples(data.ood["near"].z))


@pytest.mark.parametrize(
    ("n_neighbors", "known", "message"),
    [(0, [], "n_neighbors must be at least 1, got 0"), (5, [3, 0], "known must be at least 1, got 0")],
)
def test_numbers_below_one_are_refused_before_anything_is_computed(data, n_neighbors, known, message):
    with pytest.raises(ValueError, match=message):
        next(all_scores(data, {}, ["cosine"], n_neighbors, known))


def test_nothing_is_fitted_on_test_or_ood_embeddings(data):
    """Other test and OOD embeddings leave the scores of the sets that stay the same as they were."""
    other = replace(data, test=draw(N_TEST, 3, 9, shift=50), ood={**data.ood, "near": draw(80, 4, 9, shift=-40)})
    other = replace(other, test=replace(other.test, logits=data.test.logits))
    other = replace(other, ood={**other.ood, "near": replace(other.ood["near"], logits=data.ood["near"].logits)})
    assignments = assign(data)
    before, after = (list(all_scores(given, assignments, list(DISTANCES), N_NEIGHBORS, [2])) for given in (data, other))
    for one, two in zip(before, after, strict=True):
        kept = {"train far", "calibration far"} if one.seen else {"train", "calibration", "far"}
        for name in kept:
            np.testing.assert_array_equal(one.scores[name], two.scores[name])
        if one.nearest is not None:
            assert not np.array_equal(one.scores["near"], two.scores["near"])
