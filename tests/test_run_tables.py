"""Tables of a run: counted by hand, or by plain loops, on embeddings and scores that no network made."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from scipy import stats

from oodlib.encoders import linear_probe, save_embeddings
from oodlib.metrics import auroc, auroc_interval, risk_coverage
from oodlib.scoring.evaluation import Scored
from oodlib.scoring.thresholds import rate_band
from oodlib.study import Run
from oodlib.study.artefacts import (
    ALPHAS,
    ID_SPLITS,
    describe_embeddings,
    false_alarm_table,
    id_embeddings,
    interval_table,
    is_correct,
    ood_groups,
    project_tests,
    quantile_table,
    risk_table,
    run_embeddings,
)

OOD = {"letters": "near", "photos": "far", "noise:8": "sanity"}
SIZES = {"train": 120, "calibration": 40, "test": 300}


def draw(n: int, n_classes: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = np.random.default_rng(0).normal(size=(n_classes, 6)) * 2 + shift
    return (means[y] + rng.normal(size=(n, 6))).astype(np.float32), y


def write_run(n_classes: int = 3, logits: bool = True, sizes: dict[str, int] = SIZES, n_ood: int = 50) -> Run:
    """Write a run as the steps train and embed leave it, without a network."""
    run = Run("study", "digits-none-ce-s0")
    run.path.mkdir(parents=True, exist_ok=True)
    with run.doing("train", {"id_dataset": "digits", "arch": "none", "objective": "ce", "seed": 0}):
        save_file({"other": np.zeros(1)}, run.path / "encoder.safetensors")
    groups = {f"{group}_ood": [name for name in OOD if OOD[name] == group] for group in ("near", "far", "sanity")}
    (run.path / "embeddings").mkdir(exist_ok=True)
    with run.doing("embed", groups):
        for seed, (split, n) in enumerate(sizes.items()):
            z, y = draw(n, n_classes, seed)
            own = z[:, :n_classes] + 3 * np.eye(n_classes, dtype=np.float32)[y]
            save_embeddings(run.embeddings_path("digits", split), z, y, own if logits else None)
        for seed, name in enumerate(OOD):
            z, y = draw(n_ood, 2, 10 + seed, shift=4)
            save_embeddings(run.embeddings_path(name, "test"), z, np.full(n_ood, -1), None, y)
    return run


def projected(run: Run) -> pd.DataFrame:
    return project_tests(run_embeddings(run), "digits")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Of the embeddings


def test_id_splits_and_ood_groups():
    run = write_run()
    data = id_embeddings(run)
    assert {split: len(arrays["z"]) for split, arrays in data.items()} == SIZES
    assert tuple(SIZES) == ID_SPLITS
    assert ood_groups(run) == OOD
    assert list(ood_groups(run)) == list(OOD)  # near, far, sanity


def test_description_of_the_embeddings():
    run = write_run()
    table = describe_embeddings(run)
    assert list(table) == ["dataset", "split", "group", "n", "d", "mean norm"]
    assert table[["dataset", "split", "group", "n"]].to_numpy().tolist() == [
        *(["digits", split, "ID", n] for split, n in SIZES.items()),
        *([name, "test", group, 50] for name, group in OOD.items()),
    ]
    assert set(table.d) == {6}
    expected = [np.sqrt((draw(n, 3, seed)[0] ** 2).sum(axis=1)).mean() for seed, n in enumerate(SIZES.values())]
    assert table["mean norm"][:3].tolist() == pytest.approx(expected, rel=1e-6)


def test_correct_is_what_the_classifier_says():
    run = write_run()
    test = id_embeddings(run)["test"]
    correct, accuracy = is_correct(run_embeddings(run))
    np.testing.assert_array_equal(correct, test["logits"].argmax(axis=1) == test["y"])
    assert accuracy["classifier"] == correct.mean()
    assert 0 < correct.mean() < 1


def test_nearest_class_mean_is_by_cosine():
    run = write_run()
    data = id_embeddings(run)
    units = {split: z / np.linalg.norm(z, axis=1, keepdims=True) for split, z in ((s, data[s]["z"]) for s in data)}
    means = np.stack([units["train"][data["train"]["y"] == c].mean(axis=0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = (units["test"] @ means.T).argmax(axis=1) == data["test"]["y"]
    assert 0.5 < expected.mean() < 1
    assert is_correct(run_embeddings(run))[1]["nearest_class_mean"] == expected.mean()
    assert is_correct(run_embeddings(write_run(logits=False)))[1]["nearest_class_mean"] == expected.mean()


def test_without_a_classifier_correct_is_what_a_linear_probe_says():
    run = write_run(logits=False)
    train, test = (id_embeddings(run)[split] for split in ("train", "test"))
    correct, accuracy = is_correct(run_embeddings(run))
    np.testing.assert_array_equal(correct, linear_probe(train["z"], train["y"], test["z"]) == test["y"])
    assert accuracy["classifier"] == correct.mean()
    assert 0.5 < correct.mean() < 1


def test_projection_holds_some_images_of_every_set():
    table = projected(write_run())
    assert list(table) == ["dataset", "label", "x", "y"]
    assert table.groupby("dataset").size().to_dict() == {"digits": 150} | dict.fromkeys(OOD, 50)
    assert set(table[table.dataset == "digits"].label) == {0, 1, 2}
    assert set(table[table.dataset != "digits"].label) == {-1}
    assert np.isfinite(table[["x", "y"]].to_numpy()).all()
    pd.testing.assert_frame_equal(projected(write_run()), table)


def test_projection_separates_the_classes():
    table = projected(write_run())
    classes = table[table.dataset == "digits"].groupby("label")[["x", "y"]]
    between = classes.mean().to_numpy()
    gaps = np.linalg.norm(between[:, None] - between, axis=2)[np.triu_indices(3, 1)]
    assert gaps.min() > 2 * classes.std().to_numpy().max()


def test_projection_of_id_images_does_not_depend_on_ood_images():
    run = write_run()
    before = projected(run)
    z, _ = draw(50, 2, 5)
    save_embeddings(run.embeddings_path("photos", "test"), 100 * z[::-1] + 7, np.full(50, -1))
    after = projected(run)
    pd.testing.assert_frame_equal(before[before.dataset == "digits"], after[after.dataset == "digits"])
    assert not before.equals(after)


def test_two_classes_are_projected_to_a_line():
    table = projected(write_run(n_classes=2))
    assert set(table.y) == {0.0}
    assert table.x.nunique() > 100


def test_sets_of_one_image_are_described_and_projected():
    run = write_run(sizes={"train": 60, "calibration": 1, "test": 1}, n_ood=1)
    assert list(describe_embeddings(run).n) == [60, 1, 1, 1, 1, 1]
    assert len(projected(run)) == 4
    assert is_correct(run_embeddings(run))[0].shape == (1,)


# Of the scores


def draw_scored(nearest: bool = True, sizes: dict[str, int] = SIZES, n_ood: int = 50, overfitted: float = 0) -> Scored:
    rng = np.random.default_rng(3)
    scores = {split: rng.normal(size=n) for split, n in sizes.items()}
    scores["train"] += overfitted
    scores |= {name: rng.normal(size=n_ood) - 1 - seed for seed, name in enumerate(OOD)}
    if not nearest:
        return Scored("none", 0, "knn", scores)
    found = {name: np.arange(len(s)) % 3 for name, s in scores.items()}
    return Scored("labels", 3, "mahalanobis", {n: s * (1 + 9 * found[n]) for n, s in scores.items()}, found)


def named(dataset: str = "digits") -> dict[str, str]:
    return {"test": dataset} | {name: name for name in OOD}


def test_quantiles_are_of_every_test_set():
    scored = draw_scored()
    table = quantile_table(scored, named())
    assert set(table) == {"detector", "dataset", "level", "score"}
    assert set(table.detector) == {"labels/mahalanobis"}
    assert table.groupby("dataset").size().to_dict() == dict.fromkeys(["digits", *OOD], 101)
    for key, dataset in named().items():
        kept = table[table.dataset == dataset]
        np.testing.assert_allclose(kept.level, np.arange(101) / 100, atol=1e-12)
        np.testing.assert_array_equal(kept.score, np.quantile(scored.scores[key], kept.level))
        assert kept.score.iloc[[0, -1]].tolist() == [scored.scores[key].min(), scored.scores[key].max()]


def test_intervals_are_delongs_and_one_image_has_none():
    scored = draw_scored()
    scored.scores["noise:8"] = scored.scores["noise:8"][:1]
    table = interval_table(scored, list(OOD)).set_index("ood_dataset")
    assert list(table.index) == ["letters", "photos"]
    for ood, row in table.iterrows():
        both = scored.scores["test"], scored.scores[ood]
        assert (row.auroc, row.low, row.high) == (auroc(*both), *auroc_interval(*both))


def test_risk_is_the_share_of_wrong_answers_among_the_most_normal():
    scored, correct = draw_scored(), np.arange(300) % 4 > 0
    table = risk_table(scored, list(OOD), correct)
    assert set(table) == {"detector", "ood_dataset", "coverage", "risk"}
    scores, answers = np.r_[scored.scores["test"], scored.scores["photos"]], np.r_[correct, np.zeros(50, dtype=bool)]
    kept = table[table.ood_dataset == "photos"]
    assert kept.coverage.iloc[-1] == 1
    assert kept.risk.iloc[-1] == pytest.approx(1 - answers.mean())
    half = np.sort(scores)[::-1][174]  # of 350; coverage 0.5 is one of the 50 levels
    assert kept[kept.coverage.round(9) == 0.5].risk.tolist() == pytest.approx([1 - answers[scores >= half].mean()])
    np.testing.assert_allclose(kept.risk, np.interp(kept.coverage, *risk_coverage(scores, answers)))


# False alarms


def test_columns_and_rows_of_false_alarms():
    columns = ["detector", "threshold", "alpha", "rate", "low", "high", "band_low", "band_high", "n_reference", "n_new"]
    for nearest, kinds in ((False, ["global", "conformal"]), (True, ["global", "conformal", "conformal-cluster"])):
        table = false_alarm_table(draw_scored(nearest))
        assert set(table) == {*columns, "worst"} if nearest else set(columns)
        assert list(zip(table.threshold, table.alpha, strict=True)) == [(k, a) for k in kinds for a in ALPHAS]
        assert set(table.n_reference) == {40}
        assert set(table.n_new) == {300}
        assert table[table.threshold == "global"][["low", "high", "band_low", "band_high"]].isna().all(axis=None)
        conformal = table[table.threshold == "conformal"]
        assert [tuple(band) for band in conformal[["band_low", "band_high"]].to_numpy()] == [
            rate_band(alpha, 40, 300) for alpha in ALPHAS
        ]
        assert (conformal.low <= conformal.rate).all()
        assert (conformal.rate <= conformal.high).all()
        if nearest:
            mondrian = table[table.threshold == "conformal-cluster"]
            assert (mondrian.rate.between(mondrian.band_low, mondrian.band_high)).all()
            assert (mondrian.worst <= mondrian.alpha + 0.02).all()


@pytest.mark.parametrize("nearest", [False, True])
def test_conformal_thresholds_keep_their_promise_and_training_scores_do_not(nearest):
    table = false_alarm_table(draw_scored(nearest, overfitted=1.0)).set_index("threshold")
    conformal = table.loc["conformal"]
    assert ((conformal.band_low <= conformal.rate) & (conformal.rate <= conformal.band_high)).all()
    promised = np.floor(np.array(ALPHAS) * 41 + 1e-9) / 41  # what 40 reference images can promise
    np.testing.assert_allclose(conformal.rate, promised, atol=0.01)
    assert (conformal.rate <= conformal.alpha + 0.01).all()
    global_ = table.loc["global"]
    assert (global_.rate > 1.4 * global_.alpha).all()
    assert global_.rate.to_numpy()[3] > conformal.band_high.to_numpy()[3]  # at 0.1
    if nearest:  # of 13 or so of its own each cluster promises what these can, so less
        assert (table.loc["conformal-cluster"].rate <= table.loc["conformal-cluster"].alpha + 0.01).all()
        assert table.loc["conformal-cluster"].rate.to_numpy()[0] == 0


def test_the_global_rate_is_counted_on_all_held_out_images():
    scored = draw_scored(overfitted=0.5)
    table = false_alarm_table(scored).set_index(["threshold", "alpha"])
    held_out = np.concatenate([scored.scores["calibration"], scored.scores["test"]])
    for alpha in ALPHAS:
        limit = stats.rankdata(scored.scores["train"], method="ordinal") == int(alpha * 121 + 1e-9)
        assert table.loc[("global", alpha), "rate"] == (held_out < scored.scores["train"][limit].sum()).mean()


@pytest.mark.parametrize("nearest", [False, True])
def test_one_calibration_image_promises_what_one_can(nearest):
    sizes = {"train": 20, "calibration": 1, "test": 2}
    table = false_alarm_table(draw_scored(nearest, sizes)).set_index(["threshold", "alpha"])
    assert table.loc[("conformal", 0.3), ["rate", "low", "high", "band_low", "band_high"]].tolist() == [0] * 5
    assert 0 < table.loc[("conformal", 0.5), "rate"] <= 1
