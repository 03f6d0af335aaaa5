"""A look back at training, with encoders of random weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oodlib.data import ImageSet, load_images
from oodlib.encoders import Encoder, EncoderSpec, embed, load_encoder, save_encoder
from oodlib.study import snapshots as epochs
from oodlib.study.snapshots import COLUMNS, epoch_table


@pytest.fixture(scope="module")
def sets():
    training, test, near, sanity = (
        load_images(*name) for name in (("digits", "train"), ("digits",), ("digits789",), ("noise:8",))
    )
    return training, test, [("near", near), ("sanity", sanity)]


@pytest.fixture
def snapshots(tmp_path):
    """Encoders of epochs 1 and 2; the second gives the same embedding to every image, so it tells nothing apart."""
    spec = EncoderSpec("resnet20", tuple("0123456"), (), 8, 1, 8, (0.3,) * 3, (0.3,) * 3)
    torch.manual_seed(0)
    for epoch in (1, 2):
        encoder = Encoder(spec)
        if epoch == 2:
            for parameter in encoder.parameters():
                parameter.data.zero_()
        save_encoder(encoder, tmp_path / f"{epoch:04d}.safetensors")
    return sorted(tmp_path.glob("*.safetensors"))


def test_a_row_an_epoch_and_measure(snapshots, sets):
    table = epoch_table(snapshots, *sets)
    assert list(table) == COLUMNS
    assert table[["epoch", "dataset", "group", "measure"]].to_numpy().tolist() == [
        [epoch, *row]
        for epoch in (1, 2)
        for row in (
            ["digits", "ID", "global_separation"],
            ["digits", "ID", "nearest_class_mean_accuracy"],
            ["digits789", "near", "auroc"],
            ["noise:8", "sanity", "auroc"],
        )
    ]
    assert table.value[2] > 0.5  # even random features tell a little
    share_of_first = (epochs._part(sets[1], epochs.N_TEST).labels == 0).mean()  # all are as near: the first class wins
    assert table.value[4:].tolist() == [0, share_of_first, 0.5, 0.5]


def test_accuracy_of_the_nearest_class_mean_is_that_of_the_plain_definition(snapshots, sets):
    training, test = (epochs._part(images, n) for images, n in zip(sets, (epochs.N_TRAIN, epochs.N_TEST), strict=False))
    encoder = load_encoder(snapshots[0])
    z, z_test = (embed(encoder, encoder.prepare(images.images))[0].astype(float) for images in (training, test))
    z, z_test = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (z, z_test))
    means = np.stack([z[training.labels == k].mean(axis=0) for k in range(7)])
    cosine = z_test @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    table = epoch_table(snapshots[:1], *sets)
    (value,) = table.value[table.measure == "nearest_class_mean_accuracy"]
    assert value == pytest.approx((cosine.argmax(axis=1) == test.labels).mean(), abs=1e-3)
    assert value > 0.5


def test_without_snapshots_there_are_no_rows(sets):
    table = epoch_table([], *sets)
    assert table.empty
    assert list(table) == COLUMNS


def test_a_part_keeps_images_of_every_class_and_pairs_them_with_their_labels():
    labels = np.array([0] * 50 + [1] * 3 + [2])
    images = ImageSet(np.arange(54, dtype=np.uint8).reshape(54, 1, 1), labels, ("a", "b", "c"), "few")
    part = epochs._part(images, 6)
    assert np.bincount(part.labels).tolist() == [3, 2, 1]
    assert np.array_equal(part.labels, labels[part.images.ravel()])
    assert len(epochs._part(images, 100)) == 54
    unlabelled = ImageSet(images.images, np.full(54, -1), (), "none")
    assert len(epochs._part(unlabelled, 6)) == 6


def test_a_label_that_no_image_has_changes_nothing(snapshots, sets):
    training, test, ood = sets
    classes = ("none", *training.classes)
    shifted = (replace(images, labels=images.labels + 1, classes=classes) for images in (training, test))
    assert epoch_table(snapshots[:1], *shifted, ood).equals(epoch_table(snapshots[:1], *sets))
