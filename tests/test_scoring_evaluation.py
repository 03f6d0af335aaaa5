"""Rows of metrics against scikit-learn, `oodlib.metrics`, on scores made by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from oodlib.metrics import augrc, aurc, error_auroc, ood_metrics, oscr
from oodlib.scoring.evaluation import Scored, evaluate, rank_metrics

ALPHA, K = 0.1, 3
ABOUT = ["ood_dataset", "clustering", "n_clusters", "distance", "seen", "threshold"]
MEASURES = ["auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_ood_positive", "n_id", "n_ood"]
ERRORS = ["error_auroc", "aurc", "augrc", "oscr"]


def draw_scores(seed: int = 0, digits: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw scores of ID and OOD images, with ties, and which ID images are classified right."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(1, 1, 90).round(digits), rng.normal(0, 1, 70).round(digits)
    return inside, outside, rng.random(90) < 0.5 + inside / 8


def draw_scored(per_cluster: int = 101) -> Scored:
    """Draw a detector with three clusters, each with scores on another scale."""
    rng = np.random.default_rng(1)
    sizes = {"train": K * per_cluster, "calibration": 120, "test": 90, "near": 70, "far": 60}
    nearest = {name: np.arange(n) % K for name, n in sizes.items()}
    shift = {"train": 0.7, "near": -0.8, "far": -3.0}
    scores = {
        name: (rng.normal(size=n) + shift.get(name, 0)) * np.array([1, 3, 9])[nearest[name]] - 10 * nearest[name]
        for name, n in sizes.items()
    }
    return Scored("kmeans", K, "euclidean", scores, nearest)


CORRECT = np.random.default_rng(2).random(90) < 0.8


def rows_of(scored: Scored, correct: np.ndarray = CORRECT) -> dict[tuple[str, str], dict]:
    return {(r["ood_dataset"], r["threshold"]): r for r in evaluate(scored, ["near", "far"], correct, ALPHA)}


@pytest.mark.parametrize("digits", [0, 1, 12])
def test_order_metrics_are_those_of_scores(digits):
    inside, outside, correct = draw_scores(digits=digits)
    found = rank_metrics(inside, outside, correct)
    is_id = np.r_[np.ones(90), np.zeros(70)]
    scores = np.concatenate([inside, outside])
    assert found["auroc"] == pytest.approx(roc_auc_score(is_id, scores), abs=1e-12)
    assert found["aupr_in"] == pytest.approx(average_precision_score(is_id, scores), abs=1e-12)
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - is_id, -scores), abs=1e-12)
    assert {name: found[name] for name in MEASURES} == ood_metrics(inside, outside)


@pytest.mark.parametrize("digits", [0, 1, 12])
def test_error_metrics_are_those_of_all_scores_together_with_every_ood_answer_wrong(digits):
    inside, outside, correct = draw_scores(digits=digits)
    found = rank_metrics(inside, outside, correct)
    scores, answers = np.concatenate([inside, outside]), np.concatenate([correct, np.zeros(70, dtype=bool)])
    assert found["error_auroc"] == error_auroc(scores, answers)
    assert found["error_auroc"] == pytest.approx(roc_auc_score(answers, scores), abs=1e-12)
    assert found["aurc"] == aurc(scores, answers)
    assert found["augrc"] == augrc(scores, answers)
    assert found["oscr"] == oscr(inside, correct, outside)


@pytest.mark.parametrize("right", [0, 1, 3])
def test_answers_that_are_all_right_or_all_wrong_have_the_same_columns(right):
    found = rank_metrics(np.array([2.0, 1, 0]), np.array([0.5]), np.arange(3) < right)
    assert np.isnan(found["error_auroc"]) == (right == 0)
    assert found["oscr"] <= right / 3
    assert list(found) == list(rank_metrics(*draw_scores()))


def test_rows_and_columns():
    scored = draw_scored()
    rows = list(evaluate(scored, ["far", "near"], CORRECT, ALPHA))
    thresholds = ["global", "conformal", "per-cluster", "conformal-cluster"]
    assert [(r["ood_dataset"], r["threshold"]) for r in rows] == [(o, t) for o in ("far", "near") for t in thresholds]
    for row in rows:
        assert [*row][: len(ABOUT + MEASURES)] == ABOUT + MEASURES
        assert set(row) == {*ABOUT, *MEASURES, *ERRORS, "id_rejected", "ood_rejected"}
        assert (row["clustering"], row["n_clusters"], row["distance"]) == ("kmeans", K, "euclidean")
        assert row["n_ood"] == {"near": 70, "far": 60}[row["ood_dataset"]]
        assert row["oscr"] <= row["auroc"]


def jth_smallest(scores: np.ndarray) -> float:
    """Return the score that a share of at most ALPHA of exchangeable scores lies below."""
    j = int(ALPHA * (len(scores) + 1))
    return np.sort(scores)[j - 1] if j else -np.inf


def test_one_threshold_for_all_comes_from_training_or_calibration():
    scored = draw_scored()
    rows = rows_of(scored)
    for threshold, split in (("global", "train"), ("conformal", "calibration")):
        limit = jth_smallest(scored.scores[split])
        for ood in ("near", "far"):
            row = rows[ood, threshold]
            assert row["id_rejected"] == (scored.scores["test"] < limit).mean()
            assert row["ood_rejected"] == (scored.scores[ood] < limit).mean()
            assert row["auroc"] == ood_metrics(scored.scores["test"], scored.scores[ood])["auroc"]
    assert rows["near", "global"]["id_rejected"] > rows["near", "conformal"]["id_rejected"]


def shares_below(scored: Scored, split: str, name: str) -> np.ndarray:
    """Return p-values within clusters by a plain loop."""
    p_values = []
    for score, k in zip(scored.scores[name], scored.nearest[name], strict=True):
        reference = scored.scores[split][scored.nearest[split] == k]
        p_values.append((1 + (reference <= score).sum()) / (1 + len(reference)))
    return np.array(p_values)


def test_thresholds_a_cluster_come_from_its_own_images_and_rank_by_p_values():
    scored = draw_scored()
    rows = rows_of(scored)
    for threshold, split in (("per-cluster", "train"), ("conformal-cluster", "calibration")):
        own = [scored.scores[split][scored.nearest[split] == k] for k in range(K)]
        limits = np.array([jth_smallest(scores) for scores in own])
        inside = shares_below(scored, split, "test")
        for ood in ("near", "far"):
            row, outside = rows[ood, threshold], shares_below(scored, split, ood)
            assert row["id_rejected"] == (scored.scores["test"] < limits[scored.nearest["test"]]).mean()
            assert row["ood_rejected"] == (scored.scores[ood] < limits[scored.nearest[ood]]).mean()
            assert row["ood_rejected"] == (outside <= ALPHA).mean()
            scores, answers = np.concatenate([inside, outside]), np.concatenate([CORRECT, np.zeros(len(outside))])
            is_id = np.arange(len(scores)) < len(inside)
            assert row["auroc"] == pytest.approx(roc_auc_score(is_id, scores), abs=1e-12)
            assert row["error_auroc"] == pytest.approx(roc_auc_score(answers, scores), abs=1e-12)
            assert row["aurc"] == aurc(scores, answers)
            assert row["augrc"] == augrc(scores, answers)
    # clusters on other scales: one threshold for all is worse at telling them apart
    assert rows["near", "per-cluster"]["auroc"] > rows["near", "global"]["auroc"] + 0.1


def test_a_cluster_without_reference_images_borrows_or_promises_nothing():
    scored = draw_scored()
    lonely = {name: np.full(len(nearest), 2) for name, nearest in scored.nearest.items()}
    lonely["test"], lonely["near"] = np.zeros(90, dtype=int), np.full(70, 4)  # nearest to no reference image
    rows = rows_of(Scored("kmeans", 5, "euclidean", scored.scores, lonely))
    assert rows["near", "per-cluster"]["ood_rejected"] == rows["near", "global"]["ood_rejected"] > 0
    assert rows["near", "conformal-cluster"]["ood_rejected"] == 0
    for threshold in ("per-cluster", "conformal-cluster"):
        assert rows["near", threshold]["auroc"] == 0.5  # all p-values are 1
    assert rows["far", "conformal-cluster"]["ood_rejected"] == rows["far", "conformal"]["ood_rejected"] > 0


@pytest.mark.parametrize("ood", ["near", "far"])
def test_a_detector_that_has_seen_outliers_has_id_scores_of_its_own_for_each_set(ood):
    scored = draw_scored()
    names = {f"{split} {ood}": scored.scores[split] for split in ("train", "calibration", "test")}
    exposed = Scored("none", 0, "outlier-exposure-5", names | {ood: scored.scores[ood]}, seen=5)
    plain = Scored("none", 0, "outlier-exposure-5", scored.scores)
    rows, expected = rows_of(exposed), rows_of(plain)
    assert rows.keys() == {(ood, "global"), (ood, "conformal")}  # the other set has no scores, so no rows
    for key, row in rows.items():
        assert row == {**expected[key], "seen": 5}
