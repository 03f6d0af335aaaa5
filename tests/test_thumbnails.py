"""Thumbnails are the images that the results name."""

from dataclasses import replace

import numpy as np
import pytest

from oodlib.data import load_images
from oodlib.plots import thumbnails

pytestmark = pytest.mark.usefixtures("figure_style")
DETECTOR = "labels/mahalanobis"
OOD = ["digits789", "letters", "photos", "noise:8"]


@pytest.fixture
def results(make_results):
    return make_results()


def test_thumbnails_are_the_named_images(results):
    shown = dict(thumbnails.thumbnail_figures(results, DETECTOR, 0))
    assert list(shown) == ["digits_ce", "digits_supcon"]
    figure = shown["digits_ce"]
    assert figure._suptitle.get_text() == "cross-entropy, labels/mahalanobis, seed 0"
    rows = [f"{name}\n{extreme} normal" for name in ("digits", *OOD) for extreme in ("most", "least")]
    assert [axis.get_ylabel() for axis in figure.axes] == rows
    shown = figure.axes[rows.index("photos\nleast normal")].images[0].get_array()
    np.testing.assert_array_equal(shown, thumbnails.strip(load_images("photos").images[:3], 3))


def test_a_strip_has_white_between_images_and_where_they_are_missing():
    images = np.arange(2 * 3 * 16, dtype=np.uint8).reshape(2, 3, 16)
    shown = thumbnails.strip(images, 3)
    assert shown.shape == (3, 52)
    for i in range(2):
        np.testing.assert_array_equal(shown[:, 18 * i : 18 * i + 16], images[i])
        assert (shown[:, 18 * i + 16 : 18 * i + 18] == 255).all()
    assert (shown[:, 36:] == 255).all()
    assert thumbnails.strip(images[..., None].repeat(3, axis=3), 1).shape == (3, 16, 3)


def test_thumbnails_of_missing_sets_are_left_out_and_said_so(results, capsys):
    extremes = results.extremes.assign(dataset=results.extremes.dataset.replace("photos", "elsewhere"))
    shown = dict(thumbnails.thumbnail_figures(replace(results, extremes=extremes), DETECTOR, 0))
    assert len(shown["digits_ce"].axes) == 2 * 4
    assert capsys.readouterr().out == "no thumbnails of elsewhere: load_images('elsewhere') says why\n"
    missing = extremes.assign(dataset=extremes.dataset.replace("digits", "gone"), id_dataset="gone")
    assert dict(thumbnails.thumbnail_figures(replace(results, extremes=missing), DETECTOR, 0)) == {}
    assert "no thumbnails of gone" in capsys.readouterr().out
