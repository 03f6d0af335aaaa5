"""Choices on drawn embeddings: what plays the unknown, and that test and OOD images play no part."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from oodlib.metrics import auroc
from oodlib.scoring import ClusterDetector, KNNDetector, choices
from oodlib.scoring.choices import choice_table, choose_candidate, left_out_classes, rank_candidates, virtual_outliers
from oodlib.scoring.evaluation import Embedded, RunEmbeddings

KEYS = [("labels", 4), ("one", 1), ("kmeans", 4), ("kmeans", 3)]
DISTANCES = ["cosine", "mahalanobis", "relative-mahalanobis"]
RULES = ["left-out classes", "virtual outliers"]
DETECTOR = ["clustering", "n_clusters", "distance"]


def draw(n, seed, dim=6, n_classes=4):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = 8 * np.eye(dim)[:n_classes]
    z = (means[y] + rng.normal(size=(n, dim)) * np.linspace(0.5, 2, dim)).astype(np.float32)
    return Embedded(z, y, z[:, :n_classes])


@pytest.fixture(scope="module")
def data():
    """Four classes in six dimensions, a classifier that reads off the first four, and an OOD set."""
    weight, bias = np.eye(6, dtype=np.float32)[:4], np.zeros(4, dtype=np.float32)
    return RunEmbeddings(draw(400, 0), draw(120, 1), draw(80, 2), {"far": draw(50, 3)}, weight, bias)


def test_each_class_is_left_out_once_and_what_is_left_is_numbered_anew(data):
    parts = list(left_out_classes(data, seed=0))
    assert len(parts) == 4  # no more parts than classes
    for part in parts:
        assert np.bincount(part.train.y).tolist() == [100] * 3
        assert np.bincount(part.test.y).tolist() == [20] * 3
        assert part.weight.shape == (3, 6)
        unknown = part.ood["unknown"]
        assert len(unknown.z) == 20
        for embedded in (part.train, part.test, unknown):
            np.testing.assert_allclose(embedded.logits, embedded.z @ part.weight.T + part.bias)
    left_out = [int(part.ood["unknown"].z.mean(axis=0).argmax()) for part in parts]
    assert sorted(left_out) == [0, 1, 2, 3]
    many = [Embedded(e.z, np.arange(len(e.z)) % 12) for e in (data.train, data.calibration)]
    parts = left_out_classes(RunEmbeddings(many[0], many[1], many[1], {}), 0, choices.MAX_TURNS)  # up to twenty classes
    assert [len(np.unique(part.train.y)) for part in parts] == [11] * 12


def test_virtual_outliers_lie_on_the_rim_that_the_quantile_draws(data, monkeypatch):
    part = next(virtual_outliers(replace(data, test=data.calibration), seed=0))
    z = part.ood["unknown"].z.astype(np.float64)
    assert z.shape == (choices.N_VIRTUAL, 6)
    means = np.stack([data.train.z[data.train.y == c].mean(axis=0) for c in range(4)]).astype(np.float64)
    within = sum(np.cov(data.train.z[data.train.y == c].T, bias=True) for c in range(4)) / 4

    def to_nearest(x):
        apart = x[:, None] - means  # (n, C, d)
        return np.sqrt(np.einsum("ncd,de,nce->nc", apart, np.linalg.inv(within), apart).min(axis=1))

    radius = np.quantile(to_nearest(data.calibration.z) ** 2, choices.QUANTILE) ** 0.5
    np.testing.assert_allclose(to_nearest(z), radius, rtol=1e-3)
    np.testing.assert_allclose(part.ood["unknown"].logits, part.ood["unknown"].z[:, :4], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(choices, "MAX_TRAIN", 100)  # of large sets a part takes part
    part = next(virtual_outliers(choices._reduced(data, 0), seed=0))
    assert len(part.train.z) == len(part.train.logits) == 100
    assert np.bincount(part.train.y).min() > 10


def test_table_has_a_row_for_every_rule_and_detector(data):
    table = choice_table(data, RULES, KEYS, DISTANCES, n_neighbors=5)
    assert list(table) == choices.COLUMNS
    n_detectors = 4 * 3 - 1 + 2 + 6 + 4  # relative to one cluster nothing is left; knn, vim; of embeddings; of logits
    assert table.groupby("rule").size().tolist() == [n_detectors] * 2
    assert not table.duplicated(["rule", *DETECTOR]).any()
    assert table.auroc.between(0, 1).all()
    of = table[table.rule == "left-out classes"].set_index(DETECTOR).auroc
    assert of["labels", 4, "mahalanobis"] > 0.97  # classes 8 apart, sd 0.5 to 2
    assert of["none", 0, "msp"] < of["labels", 4, "mahalanobis"]  # its directions are the known ones


def test_test_and_ood_images_play_no_part_and_without_rules_there_are_no_rows(data):
    other = replace(data, test=draw(80, 9), ood={})
    tables = [choice_table(d, [*RULES, choices.OF_NOTEBOOK], KEYS[:1], DISTANCES, 5) for d in (data, other, data)]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])  # seeded
    empty = choice_table(data, [], KEYS, DISTANCES, 5)
    assert list(empty) == choices.COLUMNS
    assert empty.empty
    known = ", ".join((*RULES, choices.OF_NOTEBOOK))
    with pytest.raises(ValueError, match=f"unknown rule 'oracle'; known: {known}"):
        choices.check_rules(["left-out classes", "oracle"])


def by_hand(data, clustering, distance):
    """Return a detector's AUROC against each class, left out in turn, and the share below the 5 % quantile."""
    train, held_out, found = data.train, data.calibration, []
    for left_out in range(4):
        detector = KNNDetector(5) if distance == "knn" else ClusterDetector(clustering, 3, distance)
        detector.fit(train.z[train.y != left_out], train.y[train.y != left_out])
        scores = detector.score_samples(held_out.z)
        known, unknown = scores[held_out.y != left_out], scores[held_out.y == left_out]
        found.append((auroc(known, unknown), (unknown < np.quantile(known, 0.05)).mean()))
    return np.array(found).T


def test_candidates_are_ranked_by_each_class_in_turn(data):
    ranking = rank_candidates(replace(data, test=data.calibration), n_neighbors=5)
    assert sorted(zip(ranking.clustering, ranking.distance, strict=True)) == sorted(choices.CANDIDATES)
    assert ranking.auroc.is_monotonic_decreasing
    least, _ = by_hand(data, *choices.FALLBACK)
    for row in ranking.itertuples():
        expected, caught = by_hand(data, row.clustering, row.distance)
        assert row.auroc == pytest.approx(expected.mean(), abs=1e-3 if row.clustering == "kmeans" else 1e-6)
        if row.clustering != "kmeans":
            assert row.ahead == pytest.approx((expected - least).mean(), abs=1e-6)
            assert row.noise == pytest.approx((expected - least).std(ddof=1) / 2, abs=1e-6)  # of four classes
            shares = (row.caught, row.least_caught, row.most_caught)
            assert shares == pytest.approx((caught.mean(), caught.min(), caught.max()), abs=1e-6)


def test_folds_are_averaged_class_by_class_and_other_numbers_of_neighbours_join(data):
    folds = [replace(data, test=data.calibration), replace(data, test=data.test)]
    both, *each = (rank_candidates(*f, n_neighbors=5, others=(1, 5000)) for f in (folds, folds[:1], folds[1:]))
    tables = [table.set_index(["clustering", "distance"]).auroc for table in (both, *each)]
    assert set(tables[0].index) == {*choices.CANDIDATES, ("none", "knn-1")}  # there are not 5000
    pd.testing.assert_series_equal(tables[0].sort_index(), ((tables[1] + tables[2]) / 2).sort_index())


def test_a_lead_within_the_noise_is_none():
    for ahead, noise, chosen in (
        (0.02, 0.01, "cosine"),
        (0.02, 0.02, choices.FALLBACK[1]),
        (0.0, 0.0, choices.FALLBACK[1]),
    ):
        rows = [("kmeans", "cosine", 0.9, ahead, noise), (*choices.FALLBACK, 0.9 - ahead, 0.0, 0.0)]
        table = pd.DataFrame(rows, columns=["clustering", "distance", "auroc", "ahead", "noise"])
        assert choose_candidate(table)[1] == chosen
        assert choose_candidate(table[:0]) == choices.FALLBACK


def test_of_the_rule_of_the_notebook_there_is_one_row_its_choice(data):
    table = choice_table(data, [choices.OF_NOTEBOOK], KEYS[:1], DISTANCES[:1], n_neighbors=5)
    assert list(table) == choices.COLUMNS
    (row,) = table.to_dict("records")
    ranking = rank_candidates(choices._reduced(data, 0), n_neighbors=5)
    assert (row["clustering"], row["distance"]) == choose_candidate(ranking)
    assert row["n_clusters"] == (0 if row["clustering"] == "none" else 4)  # as the study calls it, of all classes
    best = ranking[(ranking.clustering == row["clustering"]) & (ranking.distance == row["distance"])]
    assert row["auroc"] == best.auroc.item()
    two = [Embedded(e.z, e.y % 2) for e in (data.train, data.calibration)]
    none = choice_table(RunEmbeddings(*two, two[1], {}), [choices.OF_NOTEBOOK], [], [], 5)
    assert none[["clustering", "n_clusters", "distance"]].to_numpy().tolist() == [["labels", 2, choices.FALLBACK[1]]]
    assert none.auroc.isna().all()
