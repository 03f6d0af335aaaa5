"""Figures of images are the images that they name, as the network sees them."""

import numpy as np
import pytest

from oodlib.data import ImageSet, load_images
from oodlib.encoders import Encoder, TrainingConfig
from oodlib.encoders.training import encoder_spec
from oodlib.plots import images as pictures

pytestmark = pytest.mark.usefixtures("figure_style")
DETECTOR = "labels/mahalanobis"
NAMED = ["digits 0–6", "digits 7–9", "letters", "photographs", "noise 8"]


def test_views_figure_shows_images_and_their_views():
    figure = pictures.views_figure(TrainingConfig(), load_images("digits", "train"), n_images=2, n_views=3)
    images = load_images("digits", "train")
    assert [axis.get_ylabel() for axis in figure.axes] == [images.classes[label] for label in images.labels[:2]]
    prepared = Encoder(encoder_spec(TrainingConfig(), images)).prepare(images.images[:1])[0].permute(1, 2, 0)
    row = figure.axes[0].images[0].get_array()
    image, *views = (row[:, i * 18 : i * 18 + 16] for i in range(4))
    np.testing.assert_array_equal(image, prepared)
    assert not np.array_equal(views[0], views[1])


def test_augmentations_figure_shows_each_alone_below_the_images():
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (3, 12, 12, 3), dtype=np.uint8), np.arange(3), ("a", "b", "c"), "noise")
    figure = pictures.augmentations_figure(TrainingConfig(input_size=0), images, n_images=3)
    rows = {axis.get_ylabel(): axis.images[0].get_array()[:, :12].astype(int) for axis in figure.axes}
    assert list(rows) == ["images", "crop, flip", "colour", "grayscale", "blur", "rotation", "erasing"]
    np.testing.assert_array_equal(rows["images"], images.images[0])
    assert all((row != rows["images"]).any() for name, row in rows.items() if name != "images")
    assert (rows["grayscale"].max(axis=2) - rows["grayscale"].min(axis=2)).max() <= 1
    unchanged = np.isclose(rows["erasing"], rows["images"], atol=1)  # apart from the rectangle
    assert unchanged.mean() > 0.6
    assert (rows["erasing"][~unchanged] == 0).all()


def test_inputs_figure_shows_sets_as_the_network_sees_them():
    encoder = Encoder(encoder_spec(TrainingConfig(), load_images("digits", "train")))
    figure = pictures.inputs_figure(encoder, [load_images(name) for name in ("digits", "photos")], n_images=4)
    assert [axis.get_ylabel() for axis in figure.axes] == ["digits", "photos"]
    shown = figure.axes[1].images[0].get_array()
    assert shown.shape == (16, 4 * 18 - 2, 3)
    assert (shown[..., 0] == shown[..., 2]).all()  # a photograph is grey to an encoder of grey digits


@pytest.mark.parametrize(("n", "expected"), [(3, [0, 1, 8]), (5, [0, 2, 1, 5, 8]), (99, range(9))])
def test_some_images_are_of_every_class(n, expected):
    labels = np.array([0, 1, 0, 0, 0, 1, 0, 0, 2])
    images = ImageSet(np.zeros((9, 2, 2), np.uint8), labels, ("a", "b", "c"), "mine")
    found = pictures.select_images(images, n)
    assert sorted(found) == sorted(expected)
    assert (np.diff(labels[found]) >= 0).all()


def test_thumbnails_are_the_named_images(make_results):
    results = make_results()
    shown = dict(pictures.thumbnail_figures(results.extremes, DETECTOR, 0))
    assert list(shown) == ["digits_ce", "digits_supcon"]
    figure = shown["digits_ce"]
    assert figure._suptitle.get_text() == "cross-entropy, labels/mahalanobis, seed 0"
    rows = [f"{name}\n{extreme} normal" for name in NAMED for extreme in ("most", "least")]
    assert [axis.get_ylabel() for axis in figure.axes] == rows
    shown = figure.axes[rows.index("photographs\nleast normal")].images[0].get_array()
    np.testing.assert_array_equal(shown, pictures.strip(load_images("photos").images[:3], 3))


def test_a_strip_has_white_between_images_and_where_they_are_missing():
    images = np.arange(2 * 3 * 16, dtype=np.uint8).reshape(2, 3, 16)
    shown = pictures.strip(images, 3)
    assert shown.shape == (3, 52)
    for i in range(2):
        np.testing.assert_array_equal(shown[:, 18 * i : 18 * i + 16], images[i])
        assert (shown[:, 18 * i + 16 : 18 * i + 18] == 255).all()
    assert (shown[:, 36:] == 255).all()
    assert pictures.strip(images[..., None].repeat(3, axis=3), 1).shape == (3, 16, 3)


def test_thumbnails_of_missing_sets_are_left_out_and_said_so(make_results, capsys):
    results = make_results()
    extremes = results.extremes.assign(dataset=results.extremes.dataset.replace("photos", "elsewhere"))
    shown = dict(pictures.thumbnail_figures(extremes, DETECTOR, 0))
    assert len(shown["digits_ce"].axes) == 2 * 4
    assert capsys.readouterr().out == "no thumbnails of elsewhere: load_images('elsewhere') says why\n"
    missing = extremes.assign(dataset=extremes.dataset.replace("digits", "gone"), id_dataset="gone")
    assert dict(pictures.thumbnail_figures(missing, DETECTOR, 0)) == {}
    assert "no thumbnails of gone" in capsys.readouterr().out


def test_the_most_wrong_images_have_a_row_a_set(make_results, capsys):
    extremes = make_results().extremes
    extremes = extremes[(extremes.run == extremes.run.iloc[0]) & (extremes.detector == DETECTOR)]
    wrong = extremes[(extremes.extreme == "least") == (extremes.dataset == "digits")]
    figure = pictures.wrong_images_figure(wrong, DETECTOR)
    rows = [axis.get_ylabel() for axis in figure.axes]
    assert rows == [f"{NAMED[0]}\nleast normal", *(f"{name}\nmost normal" for name in NAMED[1:])]
    shown = figure.axes[3].images[0].get_array()
    np.testing.assert_array_equal(shown, pictures.strip(load_images("photos").images[:3], 3))
    pictures.wrong_images_figure(wrong.assign(dataset="gone"), DETECTOR)
    assert capsys.readouterr().out == "no thumbnails of gone: load_images('gone') says why\n"
