"""The whole product against detectors that are fitted one by one, on small Gaussian embeddings."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from oodlib.clustering import cluster
from oodlib.scoring import DISTANCES, THRESHOLDS, ClusterDetector, KNNDetector, OutlierExposureDetector, ViMDetector
from oodlib.scoring import evaluation as product
from oodlib.scoring.classifier_scores import activation_limit, ash, energy, fdbd, gen, msp, nci, nnguide, react, scale
from oodlib.scoring.evaluation import Embedded, RunEmbeddings, all_scores, evaluate, exposed_scores
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
    parts += [draw(80, N_CLASSES["near"], 3), draw(61, N_CLASSES["far"], 4, shift=3)]
    rng = np.random.default_rng(5)
    head = (rng.normal(size=(3, 10)), rng.normal(size=3)) if classifier else (None, None)
    if classifier:
        parts = [replace(part, logits=part.z @ head[0].T + head[1]) for part in parts]
    return RunEmbeddings(*parts[:3], {"near": parts[3], "far": parts[4]}, *head)


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


def check(row: dict, inside: np.ndarray, outside: np.ndarray, rejects, normality) -> None:
    """Compare a row with a detector: AUROC of its normality, shares that it rejects."""
    is_id = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    assert row["auroc"] == pytest.approx(roc_auc_score(is_id, np.r_[normality(inside), normality(outside)]), abs=1e-6)
    assert (row["id_rejected"], row["ood_rejected"]) == (rejects(inside).mean(), rejects(outside).mean())
    assert (row["n_id"], row["n_ood"]) == (len(inside), len(outside))


def check_detector(row: dict, detector, inside: np.ndarray, outside: np.ndarray, by_p_values: bool = False) -> None:
    normality = detector.p_values if by_p_values else detector.score_samples
    check(row, inside, outside, lambda z: detector.predict(z) == -1, normality)


@pytest.mark.parametrize(("clustering", "k"), WAYS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.filterwarnings("ignore:nothing is rejected")
def test_every_row_is_that_of_a_cluster_detector(data, rows, clustering, k, threshold):
    for distance in DISTANCES:
        if clustering == "one" and distance.startswith("relative-"):
            continue
        detector = ClusterDetector(clustering, k, distance, threshold, ALPHA, SEED)
        detector.fit(data.train.z, data.train.y, data.calibration.z)
        for ood, part in data.ood.items():
            row = rows[clustering, k, distance, threshold, ood]
            check_detector(row, detector, data.test.z, part.z, threshold.endswith("cluster"))


def test_float32_gives_the_same_but_for_rounding(data, rows):
    """A detector lowers its threshold by the rounding: it may keep what lies that close, and rejects nothing more."""
    few = {name: replace(part, z=part.z.astype(np.float32)) for name, part in data.sets().items()}
    z = {name: part.z for name, part in few.items()}
    ood = {name: few.pop(name) for name in data.ood}
    assigned = cluster(z["train"], data.train.y, "labels").assignments
    for scored in product.cluster_scores(replace(data, **few, ood=ood), {("labels", 3): assigned}, list(DISTANCES)):
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
def test_rows_without_clusters_are_those_of_their_detectors_and_functions(data, rows, threshold):
    train, head = data.train.z, (data.weight, data.bias)
    calibration = data.calibration.z if threshold == "conformal" else None
    for name, detector in (("knn", KNNDetector(N_NEIGHBORS, ALPHA)), ("vim", ViMDetector(*head, alpha=ALPHA))):
        detector.fit(train, None, calibration)
        for ood, part in data.ood.items():
            check_detector(rows["none", 0, name, threshold, ood], detector, data.test.z, part.z)
    mean, clip = train.mean(axis=0), activation_limit(train)
    functions = {
        "nnguide": lambda z: nnguide(z, *head, train, own=z is train),
        "fdbd": lambda z: fdbd(z, *head, mean),
        "nci": lambda z: nci(z, *head, mean),
        "react": lambda z: react(z, *head, clip),
        "ash": lambda z: ash(z, *head),
        "scale": lambda z: scale(z, *head),
        "msp": lambda z: msp(z @ head[0].T + head[1]),
        "maxlogit": lambda z: (z @ head[0].T + head[1]).max(axis=1),
        "energy": lambda z: energy(z @ head[0].T + head[1]),
        "gen": lambda z: gen(z @ head[0].T + head[1]),
    }
    for name, score in functions.items():
        limit = conformal_threshold(score(train if calibration is None else calibration), ALPHA)
        for ood, part in data.ood.items():
            row = rows["none", 0, name, threshold, ood]
            check(row, data.test.z, part.z, lambda z, s=score, limit=limit: s(z) < limit, score)


def split_known(y: np.ndarray, n_known: int) -> tuple[list[int], list[int]]:
    """Return the rows a head sees, the first of each class in a seeded order, and the others."""
    order = np.random.default_rng(0).permutation(len(y)).tolist()
    known = sorted(i for c in set(y) for i in [i for i in order if y[i] == c][:n_known])
    return known, [i for i in range(len(y)) if i not in known]


@pytest.mark.parametrize("threshold", ["global", "conformal"])
@pytest.mark.parametrize("n_known", [1, 5])
@pytest.mark.parametrize("ood", ["near", "far"])
def test_rows_of_outlier_exposure_leave_out_the_images_it_has_seen(data, rows, threshold, n_known, ood):
    part, calibration = data.ood[ood], data.calibration.z if threshold == "conformal" else None
    known, rest = split_known(part.y, n_known)
    assert len(known) == N_CLASSES[ood] * n_known
    detector = OutlierExposureDetector(ALPHA)
    detector.fit(data.train.z, data.train.y, calibration, part.z[known], part.y[known])
    row = rows["none", 0, f"outlier-exposure-{n_known}", threshold, ood]
    assert row["seen"] == n_known
    check_detector(row, detector, data.test.z, part.z[rest])


def test_outlier_exposure_of_one_set_does_not_depend_on_another_and_repeats(data):
    both, again = exposed_scores(data, 2), exposed_scores(make_data(), 2)
    alone = exposed_scores(replace(data, ood={"far": data.ood["far"]}), 2)
    assert alone.scores.keys() == {"train far", "calibration far", "test far", "far"}
    for other in (alone, again):
        for name, scores in other.scores.items():
            np.testing.assert_array_equal(scores, both.scores[name])


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
        assert product.n_detectors(given, assignments, list(DISTANCES), [1, 5]) == len(found)
        assert len({(s.clustering, s.n_clusters, s.distance) for s in found}) == len(found)
    relative = [s.clustering for s in product.cluster_scores(data, assignments, ["relative-mahalanobis"])]
    assert relative == [name for name, _ in WAYS if name != "one"]
    # a mixture asked for four clusters may find but one
    assert product.n_detectors(data, {("gmm", 4): np.zeros(240, dtype=int)}, ["relative-mahalanobis"], []) == 12


def test_one_of_each_kind_is_combined_behind_the_others(data):
    for given, n_members in ((data, 3), (make_data(classifier=False), 2)):
        found = list(all_scores(given, assign(given), list(DISTANCES), N_NEIGHBORS, []))
        *others, fishers = product.with_combination(found)
        assert others == found
        assert (fishers.clustering, fishers.n_clusters, fishers.distance) == ("none", 0, "fisher")
        assert fishers.nearest is None
        members = [s for s in found if (s.clustering, s.distance) in product.COMBINED]
        assert len(members) == n_members
        near = [conformal_p_values(s.scores["near"], s.scores["calibration"]) for s in members]
        np.testing.assert_allclose(fishers.scores["near"], np.log(near).sum(axis=0))
        assert {name: len(part) for name, part in fishers.scores.items()} == {
            name: len(part.z) for name, part in given.sets().items()
        }
    assert list(product.with_combination(found[:1])) == found[:1]


def test_without_a_classifier_there_are_knn_and_the_residual():
    data = make_data(classifier=False)
    found = dict(product.clusterless_scores(data, N_NEIGHBORS))
    assert list(found) == ["knn", "residual"]
    residual = ViMDetector().fit(data.train.z)
    for name, part in data.sets().items():
        np.testing.assert_array_equal(found["residual"][name], residual.score_samples(part.z))
    fewer = dict(product.clusterless_scores(data, 1000))["knn"]["near"]  # as many as there are
    np.testing.assert_array_equal(fewer, KNNDetector(239).fit(data.train.z).score_samples(data.ood["near"].z))
    for n_neighbors, known, said in (
        (0, [], "n_neighbors must be at least 1"),
        (5, [3, 0], "known must be at least 1"),
    ):
        with pytest.raises(ValueError, match=f"{said}, got 0"):  # before anything is computed
            next(all_scores(data, {}, ["cosine"], n_neighbors, known))


def test_nothing_is_fitted_on_test_or_ood_embeddings(data):
    """Other test and OOD embeddings leave the scores of the sets that stay the same as they were."""
    test, near = (
        replace(part, z=draw(len(part.z), 3, 9, shift=s).z) for part, s in ((data.test, 50), (data.ood["near"], -40))
    )
    other = replace(data, test=test, ood={**data.ood, "near": near})
    assignments = assign(data)
    before, after = (list(all_scores(given, assignments, list(DISTANCES), N_NEIGHBORS, [2])) for given in (data, other))
    for one, two in zip(before, after, strict=True):
        kept = {"train far", "calibration far"} if one.seen else {"train", "calibration", "far"}
        for name in kept:
            np.testing.assert_array_equal(one.scores[name], two.scores[name])
        if one.nearest is not None:
            assert not np.array_equal(one.scores["near"], two.scores["near"])
