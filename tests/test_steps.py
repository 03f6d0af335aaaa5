"""The steps called directly, without notebooks; one run is trained for one epoch and shared."""

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import PLAIN
from filelock import FileLock
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from oodlib.clustering import choose_n_clusters
from oodlib.data import load_images
from oodlib.encoders import TrainingConfig, embed, load_embeddings, load_encoder, save_embeddings
from oodlib.encoders.training import split_calibration
from oodlib.scoring import DISTANCES, THRESHOLDS, ClusterDetector, OutlierExposureDetector
from oodlib.scoring.choices import choice_table
from oodlib.study import Run, steps
from oodlib.study.artefacts import ID_SPLITS, run_embeddings
from oodlib.study.checks import check_ood_sets, check_same_classes
from oodlib.study.image_scores import load_image_scores

NAME = "digits-resnet20-ce-s0"
NEAR, FAR, SANITY = ["digits789"], ["letters", "photos"], ["noise:8"]
GROUPS = {"digits789": "near", "letters": "far", "photos": "far", "noise:8": "sanity"}
CLUSTERINGS, N_CLUSTERS = ["labels", "kmeans", "one"], [0, 7, 12]
WAYS = [("labels", 7), ("kmeans", 7), ("kmeans", 12), ("one", 1)]  # 0 is the number of classes, 7, which is there once
DISTANCE_NAMES = ["euclidean", "cosine", "mahalanobis", "relative-mahalanobis"]
N_NEIGHBORS, ALPHA, CHOICE_RULES = 20, 0.1, ["virtual outliers"]
PARAMETERS = {"distances": DISTANCE_NAMES, "thresholds": [], "n_neighbors": N_NEIGHBORS, "known_outliers": [2]}
PARAMETERS |= {"alpha": ALPHA, "choice_rules": CHOICE_RULES}
ONE_EPOCH = PLAIN | {"epochs": 1, "batch_size": 128}
DETECTOR_COLUMNS = ["clustering", "n_clusters", "distance", "threshold"]
METRICS = ["run", "id_dataset", "arch", "objective", "seed", "ood_dataset", "group", *DETECTOR_COLUMNS, "auroc"]
METRICS += ["aupr_in", "aupr_out", "fpr95", "fpr95_ood_positive", "n_id", "n_ood"]  # relied on, in this order
ERRORS = ["error_auroc", "aurc", "augrc", "oscr", "id_rejected", "ood_rejected", "seen"]
EVALUATED = ["metrics", "scores", "intervals", "risk_coverage", "false_alarms", "choices"]


def train(study: str, **changes) -> Run:
    return steps.train_step(study, TrainingConfig(**ONE_EPOCH | changes))


def all_steps(study: str) -> Run:
    run = train(study)
    steps.embed_step(run, NEAR, FAR, SANITY, max_images=150)
    steps.cluster_step(run, CLUSTERINGS, N_CLUSTERS)
    evaluate(run)
    return run


def evaluate(run: Run, **changes) -> pd.DataFrame:
    return steps.evaluate_step(run, **PARAMETERS | changes)


def read(run: Run, name: str) -> pd.DataFrame:
    return pd.read_csv(run.path / f"{name}.csv")


@pytest.fixture(scope="module")
def trained_in(tmp_path_factory):
    root = tmp_path_factory.mktemp("steps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        all_steps("study")
    return root


@pytest.fixture
def trained(trained_in, monkeypatch):
    """The run, to look at."""
    monkeypatch.chdir(trained_in)
    return Run("study", NAME)


@pytest.fixture
def copied(trained_in, tmp_path, monkeypatch):
    """A copy of the run, to change."""
    shutil.copytree(trained_in / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return Run("study", NAME)


def embedded(run: Run, dataset: str, split: str = "test") -> dict[str, np.ndarray]:
    return load_embeddings(run.embeddings_path(dataset, split))


def forget(run: Run, *names: str) -> None:
    for name in names:
        path = run.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def change_record(run: Run, change) -> None:
    record = run.record
    change(record)
    (run.path / "config.json").write_text(json.dumps(record))


def test_config_holds_every_parameter_and_the_machine_and_history_a_row_an_epoch(trained):
    record = trained.record
    assert record.keys() == {"run", "train", "embed", "cluster", "evaluate"}
    assert TrainingConfig(**record["train"]["parameters"]) == TrainingConfig(**ONE_EPOCH)
    assert {"device", "processor", "threads", "python", "torch", "timm"} <= record["train"]["environment"].keys()
    sets = {"near_ood": NEAR, "far_ood": FAR, "sanity_ood": SANITY}
    assert record["embed"]["parameters"] == sets | {"max_images": 150}
    assert record["cluster"]["parameters"] == {"clusterings": CLUSTERINGS, "n_clusters": N_CLUSTERS}
    assert record["evaluate"]["parameters"] == PARAMETERS
    history = read(trained, "history")
    assert list(history) == ["epoch", "loss", "knn_accuracy", "learning_rate", "seconds", "images_per_second"]
    assert list(history.epoch) == [1]


def test_embeddings_are_those_of_the_saved_encoder_of_whole_splits_and_ood_images_have_labels_of_their_own(trained):
    encoder = load_encoder(trained.path / "encoder.safetensors")
    z, logits = embed(encoder, encoder.prepare(load_images("letters").images[:150]))
    saved = embedded(trained, "letters")
    np.testing.assert_array_equal(saved["z"], z)
    np.testing.assert_array_equal(saved["logits"], logits)
    assert (saved["z"].dtype, saved["y"].dtype) == (np.float32, np.int64)
    training, test = load_images("digits", "train"), load_images("digits")
    held_in, held_out = split_calibration(training, 0.1)
    np.testing.assert_array_equal(embedded(trained, "digits", "train")["y"], training.labels[held_in])
    np.testing.assert_array_equal(embedded(trained, "digits", "calibration")["y"], training.labels[held_out])
    np.testing.assert_array_equal(embedded(trained, "digits")["y"], test.labels)
    assert all("own" not in embedded(trained, "digits", split) for split in ID_SPLITS)
    for name in GROUPS:
        assert embedded(trained, name)["y"].tolist() == [-1] * 150
        np.testing.assert_array_equal(embedded(trained, name)["own"], load_images(name).labels[:150])


def test_splits_that_differ_in_classes_and_ood_sets_of_one_name_or_of_one_file_are_refused():
    training = load_images("digits", "train")
    test = replace(load_images("digits"), classes=(*training.classes[:-1], "seven"))
    with pytest.raises(ValueError, match="training and the test split of digits differ in classes: 6, seven"):
        check_same_classes(training, test)
    check_same_classes(training, load_images("digits"))
    for near, far in (("letters", "letters"), ("folder:a/b", "folder:a_b")):
        with pytest.raises(ValueError, match=f"OOD set '{near}' is there twice"):
            check_ood_sets("digits", [near], [far], [], 0)


def test_choices_are_those_of_the_rules_on_id_embeddings(trained):
    data = run_embeddings(trained)
    keys = list(steps.load_clusters(trained, len(data.train.z))[0])
    expected = choice_table(data, CHOICE_RULES, keys, DISTANCE_NAMES, N_NEIGHBORS, seed=0)
    found = read(trained, "choices")
    assert list(found) == [*expected, "run"]
    pd.testing.assert_frame_equal(found[list(expected)], expected, rtol=1e-6)


def test_alignment_is_of_two_views_of_held_out_images(trained):
    row = read(trained, "clusters").query("measure == 'alignment'").squeeze()
    views = embedded(trained, "digits", "views")
    first, second = np.split(views["z"], 2)
    assert row["size"] == len(first) == min(1000, len(embedded(trained, "digits", "calibration")["z"]))
    np.testing.assert_array_equal(*np.split(views["y"], 2))
    first, second = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (first, second))
    assert row.value == pytest.approx(2 - 2 * (first * second).sum(axis=1).mean(), rel=1e-4)
    assert 0 < row.value < 2 - 2 * (first * np.roll(second, 1, axis=0)).sum(axis=1).mean()


def test_clusters_and_their_measures_are_of_the_training_embeddings(trained):
    table = read(trained, "clusters")
    assert list(table) == ["run", "clustering", "n_clusters", "cluster", "size", "measure", "value"]
    data = embedded(trained, "digits", "train")
    ways = table[["clustering", "n_clusters"]].drop_duplicates()
    # "none" is what the embeddings are without clusters, "labels" and "one" have a K of their own
    assert sorted(map(tuple, ways.to_numpy())) == sorted([("none", 0), *WAYS])
    found = steps.load_clusters(trained, len(data["z"]))[0]
    assert sorted(found) == sorted(WAYS)
    assert sorted(np.load(trained.path / "clusters.npz").files) == sorted("/".join(map(str, key)) for key in found)
    purity = table[table.measure == "cluster_purity"].set_index(["clustering", "n_clusters"]).sort_index()
    for (method, k), assigned in found.items():
        np.testing.assert_array_equal(assigned, steps.cluster(data["z"], data["y"], method, k, seed=0).assignments)
        expected = [np.bincount(data["y"][assigned == c]).max() / (assigned == c).sum() for c in range(k)]
        np.testing.assert_allclose(purity.loc[(method, k)].value, expected, rtol=2e-5)  # the file has five digits
        np.testing.assert_array_equal(purity.loc[(method, k)]["size"], np.bincount(assigned))


def test_a_mixture_is_kept_with_its_assignments(trained):
    z = embedded(trained, "digits", "train")["z"]
    run = steps.Run("elsewhere", NAME)
    run.path.mkdir(parents=True)
    found = {(name, 5): steps.cluster(z, None, name, 5) for name in ("kmeans", "gmm", "gmm-tied", "gmm-diag")}
    steps.save_clusters(run, found)
    assignments, mixtures = steps.load_clusters(run, len(z))
    assert assignments.keys() == found.keys()
    assert set(mixtures) == set(found) - {("kmeans", 5)}
    for key, mixture in mixtures.items():
        np.testing.assert_array_equal(mixture.log_density(z), found[key].mixture.log_density(z))


def test_minus_one_is_the_number_of_clusters_that_training_embeddings_suggest(copied):
    change_record(copied, lambda record: [record.pop(step) for step in ("cluster", "evaluate")])
    table = steps.cluster_step(copied, ["kmeans", "one"], [-1])
    z = embedded(copied, "digits", "train")["z"]
    k = choose_n_clusters(z, "kmeans", seed=0)
    assert sorted(steps.load_clusters(copied, len(z))[0]) == [("kmeans", k), ("one", 1)]
    assert set(table[table.clustering == "kmeans"].n_clusters) == {k}


def test_clusters_do_not_depend_on_test_or_ood_embeddings(copied):
    def assignments():
        return {name: array.tolist() for name, array in np.load(copied.path / "clusters.npz").items()}

    for name in ("digits", *GROUPS):
        data = embedded(copied, name)
        save_embeddings(copied.embeddings_path(name, "test"), 9 - data["z"][::-1], data["y"])
    before = assignments()
    forget(copied, "clusters.npz")
    steps.cluster_step(copied, CLUSTERINGS, N_CLUSTERS)
    assert assignments() == before


def test_metrics_csv_has_its_columns_in_order_and_a_row_for_every_detector_threshold_and_ood_set(trained):
    metrics = read(trained, "metrics")
    assert [column for column in metrics if column in METRICS] == METRICS
    assert set(metrics) == {*METRICS, *ERRORS}
    about = metrics[["run", "id_dataset", "arch", "objective", "seed"]].drop_duplicates()
    assert about.to_numpy().tolist() == [[NAME, "digits", "resnet20", "ce", 0]]
    assert dict(zip(metrics.ood_dataset, metrics.group, strict=True)) == GROUPS
    assert not metrics.isna().any(axis=None)
    assert set(metrics.n_id) == {379}
    assert not metrics.duplicated([*DETECTOR_COLUMNS, "ood_dataset"]).any()
    references = metrics[metrics.clustering == "none"]
    of_classifier = {"nnguide", "fdbd", "nci", "react", "ash", "scale", "msp", "maxlogit", "energy", "gen"}
    assert set(references.distance) == {"knn", "vim", *of_classifier, "outlier-exposure-2", "fisher"}
    assert set(references.threshold) == {"global", "conformal"}
    assert set(references.n_clusters) == {0}
    assert len(references) == 14 * 2 * len(GROUPS)
    clustered = metrics[metrics.clustering != "none"]
    assert set(clustered.threshold) == set(THRESHOLDS)
    n_detectors = 4 * 4 - 1  # four clusterings × four distances but the relative one to one cluster
    assert len(clustered) == n_detectors * 4 * len(GROUPS)
    assert "one" not in set(metrics[metrics.distance == "relative-mahalanobis"].clustering)


def test_images_that_outlier_exposure_has_seen_are_not_scored(trained):
    metrics = read(trained, "metrics")
    assert set(metrics[metrics.seen > 0].distance) == {"outlier-exposure-2"}
    assert set(metrics[metrics.seen == 0].n_ood) == {150}
    for name in GROUPS:
        data, rows = embedded(trained, name), metrics[(metrics.seen == 2) & (metrics.ood_dataset == name)]
        order = np.random.default_rng(0).permutation(150)
        known = np.concatenate([order[data["own"][order] == c][:2] for c in np.unique(data["own"])])
        assert set(rows.n_ood) == {150 - len(known)}
        known.sort()
        detector, training = OutlierExposureDetector(), embedded(trained, "digits", "train")
        detector.fit(training["z"], training["y"], None, data["z"][known], data["own"][known])
        inside, outside = embedded(trained, "digits")["z"], np.delete(data["z"], known, axis=0)
        is_id = np.arange(len(inside) + len(outside)) < len(inside)
        expected = roc_auc_score(is_id, detector.score_samples(np.concatenate([inside, outside])))
        assert rows.auroc.tolist() == pytest.approx([expected] * 2, abs=1e-5)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(("clustering", "k"), WAYS)
@pytest.mark.filterwarnings("ignore:nothing is rejected")
def test_rows_are_those_of_a_detector(trained, clustering, k, threshold):
    training = embedded(trained, "digits", "train")
    held_out, inside, outside = (
        embedded(trained, *name)["z"] for name in (("digits", "calibration"), ("digits",), ("digits789",))
    )
    detector = ClusterDetector(clustering, k, "mahalanobis", threshold, ALPHA, seed=0)
    detector.fit(training["z"], training["y"], held_out)
    metrics = read(trained, "metrics").set_index(["clustering", "n_clusters", "distance", "threshold"])
    row = metrics[metrics.ood_dataset == "digits789"].loc[(clustering, k, "mahalanobis", threshold)]
    normality = detector.p_values if threshold.endswith("cluster") else detector.score_samples
    is_id = np.arange(len(inside) + len(outside)) < len(inside)
    expected = roc_auc_score(is_id, normality(np.concatenate([inside, outside])))
    assert row.auroc == pytest.approx(expected, abs=1e-5)  # blocks of other sizes round float32 otherwise
    assert row.id_rejected == pytest.approx((detector.predict(inside) == -1).mean(), abs=1.01 / len(inside))
    assert row.ood_rejected == pytest.approx((detector.predict(outside) == -1).mean(), abs=1.01 / len(outside))


def unit(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def reference_scores(run: Run, dataset: str) -> dict[tuple[str, int, str], np.ndarray]:
    """Return scores by plain formulas in float64."""
    training, data = embedded(run, "digits", "train"), embedded(run, dataset)
    z, x = training["z"].astype(np.float64), data["z"].astype(np.float64)
    scores = {}
    for way, k in (("labels", 7), ("kmeans", 12), ("one", 1)):
        assigned = np.load(run.path / "clusters.npz")[f"{way}/{k}"]
        means = np.stack([z[assigned == c].mean(axis=0) for c in range(k)])
        directions = unit(np.stack([unit(z)[assigned == c].mean(axis=0) for c in range(k)]))
        inverse = np.linalg.pinv(np.cov((z - means[assigned]).T, bias=True), rcond=1e-10, hermitian=True)
        away = x[:, None] - means  # (n, K, d)
        scores[way, k, "euclidean"] = -(away**2).sum(axis=2).min(axis=1)
        scores[way, k, "cosine"] = (unit(x) @ directions.T).max(axis=1)
        scores[way, k, "mahalanobis"] = -np.einsum("nkd,de,nke->nk", away, inverse, away).min(axis=1)
    index = NearestNeighbors(n_neighbors=N_NEIGHBORS, algorithm="brute").fit(unit(z))
    logits = data["logits"].astype(np.float64)
    powers = np.exp(logits)
    p = powers / powers.sum(axis=1, keepdims=True)
    others = {"knn": -index.kneighbors(unit(x))[0][:, -1], "msp": p.max(axis=1), "maxlogit": logits.max(axis=1)}
    others |= {"energy": np.log(powers.sum(axis=1)), "gen": -((p * (1 - p)) ** 0.1).sum(axis=1)}
    return scores | {("none", 0, name): found for name, found in others.items()}


def test_auroc_is_scikit_learns_and_fpr95_the_share_that_passes_of_scores_by_plain_formulas(trained):
    metrics = read(trained, "metrics").query("threshold == 'global'")
    metrics = metrics.set_index(["ood_dataset", "clustering", "n_clusters", "distance"])
    inside = reference_scores(trained, "digits")
    for ood in GROUPS:
        outside = reference_scores(trained, ood)
        for detector, scores in outside.items():
            positive = np.r_[np.ones(len(inside[detector])), np.zeros(len(scores))]
            expected = roc_auc_score(positive, np.r_[inside[detector], scores])
            assert metrics.loc[(ood, *detector), "auroc"] == pytest.approx(expected, abs=2e-4), (ood, detector)
        detector = ("labels", 7, "mahalanobis")
        threshold = np.sort(inside[detector])[::-1][int(np.ceil(0.95 * 379)) - 1]
        expected = (outside[detector] >= threshold).mean()
        assert metrics.loc[(ood, *detector), "fpr95"] == pytest.approx(expected, abs=0.01)


def test_what_figures_need_is_kept_of_the_shown_detectors(trained):
    each, metrics = load_image_scores(trained), read(trained, "metrics")
    scores, intervals, risks, alarms = (read(trained, name) for name in EVALUATED[1:5])
    for table in (scores, intervals, risks, alarms):
        assert set(table.detector) == {*each.columns[2:]} == {"labels/mahalanobis", "labels/cosine", "knn"}
    assert set(scores.dataset) == set(read(trained, "projection").dataset) == {"digits", *GROUPS}
    assert set(intervals.ood_dataset) == set(risks.ood_dataset) == set(GROUPS)
    assert each.groupby("dataset", sort=False).size().to_dict() == {"digits": 379} | dict.fromkeys(GROUPS, 150)
    expected = reference_scores(trained, "photos")["none", 0, "knn"]
    np.testing.assert_allclose(each[each.dataset == "photos"].knn, expected, atol=1e-4)
    own = metrics.query("distance == 'knn' and threshold == 'conformal'").set_index("ood_dataset")
    rows = intervals[intervals.detector == "knn"].set_index("ood_dataset")
    np.testing.assert_allclose(rows.auroc, own.loc[rows.index, "auroc"], rtol=1e-4)
    assert ((intervals.low <= intervals.auroc) & (intervals.auroc <= intervals.high)).all()
    accuracy, test = trained.record["evaluate"]["id_accuracy"], embedded(trained, "digits")
    assert accuracy["classifier"] == (test["logits"].argmax(axis=1) == test["y"]).mean()
    n_wrong = 379 * (1 - accuracy["classifier"]) + 150
    assert risks[risks.coverage == 1].risk.tolist() == pytest.approx([n_wrong / (379 + 150)] * 3 * 4)


def test_an_encoder_without_classifier_has_no_logit_scores(copied):
    for dataset, split in [("digits", split) for split in ID_SPLITS] + [(name, "test") for name in GROUPS]:
        data = embedded(copied, dataset, split)
        save_embeddings(copied.embeddings_path(dataset, split), data["z"], data["y"], None, data.get("own"))
    weights = load_file(copied.path / "encoder.safetensors")
    kept = {name: array for name, array in weights.items() if not name.startswith("classifier")}
    assert len(kept) == len(weights) - 2
    save_file(kept, copied.path / "encoder.safetensors")
    steps_done = ("train", "embed", "cluster", "evaluate")
    change_record(copied, lambda record: [record[step].update(weights=copied.weights()) for step in steps_done])
    forget(copied, "metrics.csv")
    metrics = evaluate(copied)
    assert set(metrics[metrics.clustering == "none"].distance) == {"knn", "residual", "outlier-exposure-2"}
    accuracy = copied.record["evaluate"]["id_accuracy"]
    assert accuracy.keys() == {"classifier", "nearest_class_mean"}  # the former a linear probe
    assert (metrics.oscr <= accuracy["classifier"] + 5e-6).all()  # then what is right; the csv has five digits


def test_no_distances_are_all_distances_and_thresholds_are_those_named(copied):
    change_record(copied, lambda record: record.pop("evaluate"))
    names = ["conformal", "global"]
    metrics = evaluate(copied, distances=[], thresholds=names, known_outliers=[], choice_rules=[])
    clustered = metrics[metrics.clustering != "none"]
    assert set(metrics.seen) == {0}
    assert (set(clustered.distance), set(clustered.threshold)) == (set(DISTANCES), set(names))


def test_sets_of_one_and_of_two_images_are_evaluated(copied):
    for name, n in (("letters", 1), ("photos", 2)):
        data = embedded(copied, name)
        first = {part: array[:n] for part, array in data.items()}
        save_embeddings(copied.embeddings_path(name, "test"), first["z"], first["y"], first["logits"], first["own"])
    forget(copied, "metrics.csv", "projection.csv")
    steps.cluster_step(copied, CLUSTERINGS, N_CLUSTERS)
    metrics = evaluate(copied).set_index("ood_dataset")
    assert set(metrics.loc["letters"].n_ood) == {1}
    assert set(metrics.loc["photos"].n_ood) == {2}
    assert metrics.auroc.between(0, 1).all()
    assert set(read(copied, "intervals").ood_dataset) == set(GROUPS) - {"letters"}  # one image has no variance
    assert load_image_scores(copied).groupby("dataset").size()[["letters", "photos"]].tolist() == [1, 2]


def test_a_second_call_changes_no_file_and_keeps_snapshots_and_checkpoints_as_they_were(copied, capsys):
    before = {path: path.stat().st_mtime_ns for path in copied.path.rglob("*")}
    all_steps("study")
    capsys.readouterr()
    again = train("study", snapshot_epochs=1, checkpoint_epochs=3)
    assert "is trained already" in capsys.readouterr().out
    kept = again.record["train"]["parameters"]
    assert (kept["snapshot_epochs"], kept["checkpoint_epochs"]) == (0, 1)
    assert {path: path.stat().st_mtime_ns for path in copied.path.rglob("*")} == before


def test_fresh_clone_trains_again_and_leaves_the_later_text_as_it_is(copied, capsys):
    def times():
        return {name: (copied.path / f"{name}.csv").stat().st_mtime_ns for name in EVALUATED}

    before, weights = times(), copied.weights()
    forget(copied, "encoder.safetensors", "clusters.npz", "embeddings")  # what .gitignore leaves out
    metrics = evaluate(copied)
    assert (copied.weights(), times()) == (weights, before)
    assert {*METRICS, *ERRORS} == set(metrics)
    printed = capsys.readouterr().out
    for step in ("train", "embed", "cluster"):
        assert f"{NAME}: step '{step}' is done first, its artefacts are not there" in printed


def test_who_has_no_runs_makes_the_earlier_steps_as_they_are_reported_with_the_same_numbers(copied):
    reported = copied.path.parents[2] / "reported" / "study"
    reported.mkdir(parents=True)
    (reported / "runs.json").write_text(json.dumps([copied.record]))
    names = [*(f"{table}.csv" for table in (*EVALUATED, "clusters", "projection")), "image_scores.npz"]
    before = {name: (copied.path / name).read_bytes() for name in (*names, "encoder.safetensors")}
    shutil.rmtree(copied.path)
    evaluate(copied)
    assert {name: (copied.path / name).read_bytes() for name in before} == before


def test_a_step_whose_input_was_never_made_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("study", NAME)
    for call, before in (
        (lambda: steps.embed_step(run, NEAR, FAR, SANITY), "train"),
        (lambda: steps.cluster_step(run, ["labels"], [0]), "embed"),
        (lambda: evaluate(run), "cluster"),
    ):
        with pytest.raises(FileNotFoundError, match=f"step '{before}' of run '{NAME}' in study 'study' is not done"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "difference", "call"),
    [
        ("train", "learning_rate=0.1, not 0.2", lambda run: train("study", learning_rate=0.2)),
        ("embed", "max_images=150, not 7", lambda run: steps.embed_step(run, NEAR, FAR, SANITY, max_images=7)),
        ("cluster", "n_clusters=[0, 7, 12], not [0]", lambda run: steps.cluster_step(run, CLUSTERINGS, [0])),
        ("evaluate", "alpha=0.1, not 0.05", lambda run: evaluate(run, alpha=0.05)),
    ],
)
def test_other_parameters_are_refused_by_every_step(trained, step, difference, call):
    with pytest.raises(ValueError, match=f"step '{step}' .* was made with {re.escape(difference)}"):
        call(trained)


def test_a_missing_image_set_is_said_before_anything_is_written(copied):
    change_record(copied, lambda record: [record.pop(step) for step in ("embed", "cluster", "evaluate")])
    shutil.rmtree(copied.path / "embeddings")
    before = sorted(copied.path.rglob("*"))
    with pytest.raises(ValueError, match="unknown image set 'nosuch'"):
        steps.embed_step(copied, ["digits789"], ["nosuch"], [])
    assert sorted(copied.path.rglob("*")) == before
    assert "embed" not in copied.record


@pytest.mark.parametrize(
    ("change", "message"),
    [  # a study refuses the same, and more
        ({"distances": ["cosine", "manhattan"]}, f"unknown distance 'manhattan'; known: {', '.join(DISTANCES)}"),
        ({"thresholds": ["global", "best"]}, "unknown threshold 'best'; known: global, conformal, per-cluster"),
        ({"thresholds": ["conformal"]}, "thresholds must have 'global' among them, got conformal"),
        ({"choice_rules": ["best"]}, "unknown rule 'best'; known: left-out classes, virtual outliers"),
        ({"clusterings": ["dbscan"]}, "unknown clustering 'dbscan'; known: labels, "),
    ],
)
def test_wrong_parameters_are_refused_and_nothing_is_written(copied, change, message):
    change_record(copied, lambda record: [record.pop(step) for step in ("cluster", "evaluate")])
    forget(copied, *(f"{name}.csv" for name in EVALUATED))
    before = {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=re.escape(message)):
        steps.cluster_step(copied, n_clusters=[0], **change) if "clusterings" in change else evaluate(copied, **change)
    assert {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("embeddings/digits-train.npz", 5000, "is no npz file, or is cut short"),
        ("clusters.npz", 500, "holds no cluster assignments, or is cut short"),
    ],
)
def test_files_cut_short_are_named(copied, name, size, message):
    forget(copied, "metrics.csv")
    path = copied.path / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{re.escape(name)} {message}"):
        evaluate(copied)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("labels/7", lambda n: np.zeros(n - 1, dtype=np.int32), "is of another run: its assignments do not fit"),
        ("labels/2", lambda n: np.full(n, 2), "is of another run"),
        ("labels/2", lambda n: np.full(n, -1), "is of another run"),
        ("labels/2", lambda n: np.zeros(n), "is of another run"),
        ("z", lambda n: np.zeros((n, 4)), "holds no cluster assignments"),
        ("0/labels/7", lambda n: np.zeros(n, dtype=np.int32), "holds no cluster assignments"),  # of an earlier version
        ("labels/7", lambda n: np.array([print] * n, dtype=object), "holds no cluster assignments"),
    ],
)
def test_foreign_clusters_are_refused(copied, key, values, message):
    forget(copied, "metrics.csv")
    np.savez(copied.path / "clusters.npz", **{key: values(len(embedded(copied, "digits", "train")["z"]))})
    with pytest.raises(ValueError, match=rf"clusters\.npz {message}"):
        evaluate(copied)


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained, printed = [], ""
    monkeypatch.setattr(steps, "_train", lambda run, *_: trained.append(run.name))
    (tmp_path / "outputs" / "shared").mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / "outputs" / "shared" / f"{NAME}.lock"):
            step = pool.submit(steps.train_step, "shared", TrainingConfig(**PLAIN | {"epochs": 1}))
            while "is being trained by another process, which is waited for" not in printed:
                assert not step.done()
                time.sleep(0.01)
                printed += capsys.readouterr().out
            assert trained == []
        step.result()
    assert trained == [NAME]
