"""The steps called directly, without notebooks; one run is trained for one epoch and shared."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from oodlib import steps
from oodlib.data import load_images
from oodlib.distances import DISTANCES
from oodlib.embedding import embed, load_embeddings, save_embeddings
from oodlib.encoders import load_encoder
from oodlib.runs import Run
from oodlib.training import TrainingConfig, split_calibration

NAME = "digits-resnet20-ce-s0"
NEAR, FAR, SANITY = ["digits789"], ["letters", "photos"], ["noise:8"]
GROUPS = {"digits789": "near", "letters": "far", "photos": "far", "noise:8": "sanity"}
CLUSTERINGS, DISTANCE_NAMES = ["labels", "kmeans", "one"], ["euclidean", "cosine", "mahalanobis"]
N_NEIGHBORS = 20
RUN_COLUMNS = ["run", "id_dataset", "arch", "objective", "seed", "ood_dataset", "group"]
DETECTOR_COLUMNS = ["clustering", "n_clusters", "distance", "threshold"]
MEASURES = ["auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_ood_positive", "n_id", "n_ood"]
METRICS = RUN_COLUMNS + DETECTOR_COLUMNS + MEASURES


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def all_steps(study: str, **training) -> Run:
    run = steps.train_step(study, TrainingConfig(epochs=1, batch_size=128, **training))
    steps.embed_step(run, NEAR, FAR, SANITY, max_images=150)
    steps.cluster_step(run, CLUSTERINGS, [0, 7, 12])
    steps.evaluate_step(run, DISTANCE_NAMES, N_NEIGHBORS)
    return run


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


def test_config_holds_every_parameter_and_the_machine(trained):
    record = trained.record
    assert record.keys() == {"run", "train", "embed", "cluster", "evaluate"}
    assert TrainingConfig(**record["train"]["parameters"]) == TrainingConfig(epochs=1, batch_size=128)
    assert {"device", "processor", "threads", "python", "torch", "timm"} <= record["train"]["environment"].keys()
    assert record["embed"]["parameters"] == {
        "near_ood": NEAR,
        "far_ood": FAR,
        "sanity_ood": SANITY,
        "max_images": 150,
    }
    assert record["cluster"]["parameters"] == {"clusterings": CLUSTERINGS, "n_clusters": [0, 7, 12]}
    assert record["evaluate"]["parameters"] == {"distances": DISTANCE_NAMES, "n_neighbors": N_NEIGHBORS}


def test_history_has_a_row_an_epoch_of_the_columns_relied_on(trained):
    history = pd.read_csv(trained.path / "history.csv")
    assert list(history) == ["epoch", "loss", "knn_accuracy", "learning_rate", "seconds", "images_per_second"]
    assert list(history.epoch) == [1]


def test_embeddings_are_those_of_the_saved_encoder(trained):
    encoder = load_encoder(trained.path / "encoder.safetensors")
    images = load_images("letters").images[:150]
    z, logits = embed(encoder, encoder.prepare(images))
    saved = embedded(trained, "letters")
    np.testing.assert_array_equal(saved["z"], z)
    np.testing.assert_array_equal(saved["logits"], logits)
    assert saved["z"].dtype == np.float32
    assert saved["y"].dtype == np.int64


def test_id_splits_are_whole_and_apart_and_ood_labels_are_minus_one(trained):
    training, test = load_images("digits", "train"), load_images("digits")
    held_in, held_out = split_calibration(training, 0.1)
    np.testing.assert_array_equal(embedded(trained, "digits", "train")["y"], training.labels[held_in])
    np.testing.assert_array_equal(embedded(trained, "digits", "calibration")["y"], training.labels[held_out])
    np.testing.assert_array_equal(embedded(trained, "digits")["y"], test.labels)
    for name in GROUPS:
        assert set(embedded(trained, name)["y"]) == {-1}
        assert len(embedded(trained, name)["y"]) == 150


def test_description_of_the_embeddings(trained):
    table = steps.describe_embeddings(trained).set_index(["dataset", "split"])
    assert list(table.group) == ["ID"] * 3 + ["near", "far", "far", "sanity"]
    assert list(table.n) == [len(embedded(trained, *key)["z"]) for key in table.index]
    assert set(table.d) == {64}
    z = embedded(trained, "photos")["z"]
    assert table.loc[("photos", "test"), "mean norm"] == pytest.approx(np.sqrt((z**2).sum(axis=1)).mean(), rel=1e-6)


def test_clusters_csv(trained):
    table = pd.read_csv(trained.path / "clusters.csv")
    assert list(table) == ["run", "clustering", "n_clusters", "cluster", "size", "measure", "value"]
    ways = table[["clustering", "n_clusters"]].drop_duplicates()
    # 0 is the number of classes, 7, which is there once; "labels" and "one" have a K of their own
    assert sorted(map(tuple, ways.to_numpy())) == [
        ("kmeans", 7),
        ("kmeans", 12),
        ("labels", 7),
        ("none", 0),
        ("one", 1),
    ]
    purity = table[table.measure == "cluster_purity"]
    n = len(embedded(trained, "digits", "train")["z"])
    assert (purity.groupby(["clustering", "n_clusters"])["size"].sum() == n).all()
    assert set(purity[purity.clustering == "labels"].value) == {1.0}


def test_cluster_measures_are_recomputed(trained):
    table = pd.read_csv(trained.path / "clusters.csv")
    data = embedded(trained, "digits", "train")
    assigned = np.load(trained.path / "clusters.npz")["kmeans/12"]
    rows = table[(table.clustering == "kmeans") & (table.n_clusters == 12) & (table.measure == "cluster_purity")]
    expected = [np.bincount(data["y"][assigned == k]).max() / (assigned == k).sum() for k in range(12)]
    np.testing.assert_allclose(rows.value, expected, rtol=1e-6)
    np.testing.assert_array_equal(rows["size"], np.bincount(assigned))


def test_metrics_csv_has_exactly_the_columns_relied_on(trained):
    metrics = pd.read_csv(trained.path / "metrics.csv")
    assert list(metrics) == METRICS
    n_detectors = 4 * 3 + 1 + 3  # four clusterings × three distances, KNN, three scores from logits
    assert len(metrics) == n_detectors * len(GROUPS)
    assert dict(zip(metrics.ood_dataset, metrics.group, strict=True)) == GROUPS
    assert set(metrics.threshold) == {"global"}
    assert set(metrics[metrics.clustering == "none"].distance) == {"knn", "msp", "maxlogit", "energy"}
    assert set(metrics[metrics.clustering == "none"].n_clusters) == {0}
    about = metrics[["run", "id_dataset", "arch", "objective", "seed"]].drop_duplicates()
    assert about.to_numpy().tolist() == [[NAME, "digits", "resnet20", "ce", 0]]
    assert set(metrics.n_id) == {379}
    assert set(metrics.n_ood) == {150}


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
    scores["none", 0, "knn"] = -index.kneighbors(unit(x))[0][:, -1]
    logits = data["logits"].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores["none", 0, "msp"] = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    scores["none", 0, "maxlogit"] = logits.max(axis=1)
    scores["none", 0, "energy"] = np.log(powers.sum(axis=1)) + logits.max(axis=1)
    return scores


def test_auroc_of_every_detector_is_scikit_learns_of_scores_by_plain_formulas(trained):
    metrics = pd.read_csv(trained.path / "metrics.csv").set_index(
        ["ood_dataset", "clustering", "n_clusters", "distance"]
    )
    inside = reference_scores(trained, "digits")
    for ood in GROUPS:
        outside = reference_scores(trained, ood)
        for detector, scores in outside.items():
            positive = np.r_[np.ones(len(inside[detector])), np.zeros(len(scores))]
            expected = roc_auc_score(positive, np.r_[inside[detector], scores])
            assert metrics.loc[(ood, *detector), "auroc"] == pytest.approx(expected, abs=2e-4), (ood, detector)


def test_fpr95_is_the_share_of_ood_that_passes_with_95_percent_of_id(trained):
    metrics = pd.read_csv(trained.path / "metrics.csv").set_index(
        ["ood_dataset", "clustering", "n_clusters", "distance"]
    )
    inside = reference_scores(trained, "digits")["labels", 7, "mahalanobis"]
    outside = reference_scores(trained, "digits789")["labels", 7, "mahalanobis"]
    threshold = np.sort(inside)[::-1][int(np.ceil(0.95 * len(inside))) - 1]
    expected = (outside >= threshold).mean()
    assert metrics.loc[("digits789", "labels", 7, "mahalanobis"), "fpr95"] == pytest.approx(expected, abs=0.01)


def test_id_accuracy(trained):
    training, test = embedded(trained, "digits", "train"), embedded(trained, "digits")
    directions = unit(np.stack([unit(training["z"])[training["y"] == c].mean(axis=0) for c in range(7)]))
    expected = ((unit(test["z"]) @ directions.T).argmax(axis=1) == test["y"]).mean()
    accuracy = trained.record["evaluate"]["id_accuracy"]
    assert accuracy["nearest_class_mean"] == pytest.approx(expected, abs=0.003)
    assert accuracy["classifier"] == (test["logits"].argmax(axis=1) == test["y"]).mean()


def test_score_quantiles_and_extremes_are_of_the_shown_detectors(trained):
    scores, extremes = (pd.read_csv(trained.path / name) for name in ("scores.csv", "extremes.csv"))
    assert set(scores.detector) == set(extremes.detector) == {"labels/mahalanobis", "labels/cosine", "knn"}
    assert set(scores.dataset) == set(extremes.dataset) == {"digits", *GROUPS}
    expected = reference_scores(trained, "photos")["none", 0, "knn"]
    kept = scores[(scores.detector == "knn") & (scores.dataset == "photos")]
    np.testing.assert_allclose(kept.level, np.linspace(0, 1, 101))
    np.testing.assert_allclose(kept.score, np.quantile(expected, np.linspace(0, 1, 101)), atol=1e-4)
    chosen = extremes[(extremes.detector == "knn") & (extremes.dataset == "photos")].set_index("extreme")
    assert list(chosen.loc["most", "rank"]) == list(range(12))
    np.testing.assert_allclose(expected[chosen.loc["most", "index"]], np.sort(expected)[::-1][:12], atol=1e-4)
    np.testing.assert_allclose(expected[chosen.loc["least", "index"]], np.sort(expected)[:12], atol=1e-4)


def test_projection_holds_some_images_of_every_set(trained):
    table = pd.read_csv(trained.path / "projection.csv")
    assert list(table) == ["dataset", "label", "x", "y"]
    assert table.groupby("dataset").size().to_dict() == {"digits": 250} | dict.fromkeys(GROUPS, 150)
    assert set(table[table.dataset == "digits"].label) == set(range(7))
    assert set(table[table.dataset != "digits"].label) == {-1}


def test_projection_of_id_images_does_not_depend_on_ood_images(copied):
    before = steps.project(copied)
    z = embedded(copied, "photos")["z"]
    save_embeddings(copied.embeddings_path("photos", "test"), 100 * z[::-1] + 7, np.full(len(z), -1))
    after = steps.project(copied)
    pd.testing.assert_frame_equal(before[before.dataset == "digits"], after[after.dataset == "digits"])
    assert not before.equals(after)


def test_two_classes_are_projected_to_a_line(copied):
    for split in steps.ID_SPLITS:
        data = embedded(copied, "digits", split)
        save_embeddings(copied.embeddings_path("digits", split), data["z"], data["y"] % 2)
    assert set(steps.project(copied).y) == {0.0}


def test_an_encoder_without_classifier_has_no_logit_scores(copied):
    for dataset, split in [("digits", split) for split in steps.ID_SPLITS] + [(name, "test") for name in GROUPS]:
        data = embedded(copied, dataset, split)
        save_embeddings(copied.embeddings_path(dataset, split), data["z"], data["y"])
    forget(copied, "metrics.csv")
    metrics = steps.evaluate_step(copied, DISTANCE_NAMES, N_NEIGHBORS)
    assert set(metrics[metrics.clustering == "none"].distance) == {"knn"}
    assert copied.record["evaluate"]["id_accuracy"].keys() == {"nearest_class_mean"}


def test_a_second_call_changes_no_file(copied):
    before = {path: path.stat().st_mtime_ns for path in copied.path.rglob("*")}
    all_steps("study")
    assert {path: path.stat().st_mtime_ns for path in copied.path.rglob("*")} == before


def test_same_machine_same_numbers(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = all_steps("other_name")
    for name in ("metrics.csv", "clusters.csv", "scores.csv", "extremes.csv", "projection.csv", "encoder.safetensors"):
        assert (again.path / name).read_bytes() == (trained.path / name).read_bytes(), name


def test_fresh_clone_trains_again_and_leaves_the_later_text_as_it_is(copied, capsys):
    text = {name: (copied.path / name).stat().st_mtime_ns for name in ("metrics.csv", "scores.csv", "extremes.csv")}
    weights = copied.weights()
    forget(copied, "encoder.safetensors", "clusters.npz", "embeddings")  # what .gitignore leaves out
    metrics = steps.evaluate_step(copied, DISTANCE_NAMES, N_NEIGHBORS)
    assert copied.weights() == weights
    assert {name: (copied.path / name).stat().st_mtime_ns for name in text} == text
    assert list(metrics) == METRICS
    printed = capsys.readouterr().out
    for step in ("train", "embed", "cluster"):
        assert f"{NAME}: step '{step}' is done first, its artefacts are not there" in printed


def test_fresh_clone_on_a_machine_that_gives_other_weights_does_the_later_steps_again(copied):
    def as_if_made_elsewhere(record):
        for step in ("train", "embed", "cluster", "evaluate"):
            record[step]["weights"] = "0" * 64

    change_record(copied, as_if_made_elsewhere)
    forget(copied, "encoder.safetensors", "clusters.npz", "embeddings")
    before = (copied.path / "metrics.csv").stat().st_mtime_ns
    steps.evaluate_step(copied, DISTANCE_NAMES, N_NEIGHBORS)
    assert (copied.path / "metrics.csv").stat().st_mtime_ns > before
    assert {copied.record[step]["weights"] for step in ("train", "embed", "cluster", "evaluate")} == {copied.weights()}


def test_a_step_whose_input_was_never_made_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("study", NAME)
    for call, before in (
        (lambda: steps.embed_step(run, NEAR, FAR, SANITY), "train"),
        (lambda: steps.cluster_step(run, ["labels"], [0]), "embed"),
        (lambda: steps.evaluate_step(run, ["cosine"], 50), "cluster"),
    ):
        with pytest.raises(FileNotFoundError, match=f"step '{before}' of run '{NAME}' in study 'study' is not done"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_step_cut_short_is_done_by_the_next_call(copied, monkeypatch):
    forget(copied, "clusters.csv")
    expected = (copied.path / "clusters.npz").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(steps, "project", lambda run: 1 / 0)  # after clusters.npz, before clusters.csv
        with pytest.raises(ZeroDivisionError):
            steps.cluster_step(copied, CLUSTERINGS, [0, 7, 12])
    assert "cluster" not in copied.record
    assert not (copied.path / "clusters.csv").exists()
    steps.cluster_step(copied, CLUSTERINGS, [0, 7, 12])
    assert np.load(copied.path / "clusters.npz")["kmeans/12"].tolist()
    assert (copied.path / "clusters.npz").stat().st_size == len(expected)


def test_other_parameters_are_refused_by_every_step(trained):
    with pytest.raises(ValueError, match="step 'train' .* was made with learning_rate=0.1, not 0.2"):
        steps.train_step("study", TrainingConfig(epochs=1, batch_size=128, learning_rate=0.2))
    with pytest.raises(ValueError, match="step 'embed' .* was made with max_images=150, not 7"):
        steps.embed_step(trained, NEAR, FAR, SANITY, max_images=7)
    with pytest.raises(ValueError, match=r"step 'cluster' .* was made with clusterings=\['labels', 'kmeans', 'one'\]"):
        steps.cluster_step(trained, ["labels"], [0, 7, 12])
    with pytest.raises(ValueError, match="step 'evaluate' .* was made with n_neighbors=20, not 5"):
        steps.evaluate_step(trained, DISTANCE_NAMES, 5)


@pytest.mark.parametrize(
    ("near", "far", "sanity", "message"),
    [
        (["digits"], [], [], "OOD set 'digits' is there twice, or is the ID set 'digits'"),
        (["letters"], ["letters"], [], "OOD set 'letters' is there twice"),
        (["folder:a/b"], ["folder:a_b"], [], "OOD set 'folder:a/b' is there twice"),  # one file for both
        ([], [], ["noise:8"], "near_ood and far_ood are both empty"),
    ],
)
def test_ood_sets_that_cannot_be_told_apart_are_refused(near, far, sanity, message):
    with pytest.raises(ValueError, match=message):
        steps.check_ood_sets("digits", near, far, sanity, 0)


def test_a_negative_number_of_images_is_refused():
    with pytest.raises(ValueError, match="max_images must not be negative, got -5"):
        steps.check_ood_sets("digits", NEAR, FAR, SANITY, -5)


def test_a_missing_image_set_is_said_before_anything_is_written(copied):
    change_record(copied, lambda record: [record.pop(step) for step in ("embed", "cluster", "evaluate")])
    shutil.rmtree(copied.path / "embeddings")
    before = sorted(copied.path.rglob("*"))
    with pytest.raises(ValueError, match="unknown image set 'nosuch'"):
        steps.embed_step(copied, ["digits789"], ["nosuch"], [])
    assert sorted(copied.path.rglob("*")) == before
    assert "embed" not in copied.record


def test_unknown_distances_and_clusterings_name_the_known_ones(copied):
    change_record(copied, lambda record: [record.pop(step) for step in ("cluster", "evaluate")])
    with pytest.raises(ValueError, match="unknown clustering 'dbscan'; known: labels, .*kmeans"):
        steps.cluster_step(copied, ["dbscan"], [0])
    steps.cluster_step(copied, ["labels"], [0])
    with pytest.raises(ValueError, match=f"unknown distance 'manhattan'; known: {', '.join(DISTANCES)}"):
        steps.evaluate_step(copied, ["cosine", "manhattan"], 50)


def test_embeddings_cut_short_are_named(copied):
    forget(copied, "metrics.csv")
    path = copied.embeddings_path("digits", "train")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"embeddings/digits-train\.npz is no npz file, or is cut short"):
        steps.evaluate_step(copied, DISTANCE_NAMES, N_NEIGHBORS)


def test_clusters_cut_short_are_named(copied):
    forget(copied, "metrics.csv")
    path = copied.path / "clusters.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"clusters\.npz holds no cluster assignments, or is cut short"):
        steps.evaluate_step(copied, DISTANCE_NAMES, N_NEIGHBORS)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("labels/7", lambda n: np.zeros(n - 1, dtype=np.int32), "is of another run: its assignments do not fit"),
        ("labels/2", lambda n: np.full(n, 2), "is of another run"),
        ("labels/2", lambda n: np.full(n, -1), "is of another run"),
        ("labels/2", lambda n: np.zeros(n), "is of another run"),
        ("z", lambda n: np.zeros((n, 4)), "holds no cluster assignments"),
        ("labels/7", lambda n: np.array([print] * n, dtype=object), "holds no cluster assignments"),
    ],
)
def test_foreign_clusters_are_refused(copied, key, values, message):
    forget(copied, "metrics.csv")
    np.savez(copied.path / "clusters.npz", **{key: values(len(embedded(copied, "digits", "train")["z"]))})
    with pytest.raises(ValueError, match=rf"clusters\.npz {message}"):
        steps.evaluate_step(copied, DISTANCE_NAMES, N_NEIGHBORS)
