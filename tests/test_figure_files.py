"""Figures on disk stay the same, are small, and still say what they said."""

import re
from base64 import b64decode
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from oodlib.plots import figures
from oodlib.plots import saving as figure_files
from oodlib.plots.style import COLORS

pytestmark = pytest.mark.usefixtures("figure_style")


@pytest.fixture
def results(make_results):
    return make_results()


def test_figures_are_saved_as_png_and_svg_that_stay_the_same(results, tmp_path):
    for name in ("first", "second"):
        np.random.default_rng(len(name)).normal()
        figure = figures.separation_figure(results, "digits")
        assert figure_files.save_figure(figure, tmp_path, name) is figure
        assert not plt.fignum_exists(figure.number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.png", "first.svg", "second.png", "second.svg"]
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    with Image.open(tmp_path / "first.png") as image:
        assert image.mode == "P"
        assert len(image.getcolors()) <= figure_files.N_COLORS


def test_a_png_keeps_the_colours_of_a_few_points_apart(tmp_path):
    figure, axis = plt.subplots()
    axis.imshow(np.random.default_rng(0).random((99, 99, 3)))  # thousands of others
    for i, color in enumerate(COLORS.values()):
        axis.plot([20 * i + 5], [50], "s", markersize=12, color=color)
    figure_files.save_figure(figure, tmp_path, "points")
    pixels = np.asarray(Image.open(tmp_path / "points.png").convert("RGB")).reshape(-1, 3).astype(int)
    for color in COLORS.values():
        assert np.abs(pixels - 255 * np.array(color)).max(axis=1).min() <= 20


def test_an_svg_is_small_and_still_says_what_it_said(tmp_path):
    figure, axis = plt.subplots()
    axis.scatter(*np.random.default_rng(0).normal(size=(2, 300)), c=np.arange(300), rasterized=True)
    axis.set(title="1.23456 < x", xlabel="a  b")
    figure_files.save_figure(figure, tmp_path, "one")
    text = (tmp_path / "one.svg").read_text()
    texts = [element.text for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"1.23456 < x", "a  b"} <= set(texts)
    assert not re.search(r'="[^"]*\d\.\d{2,}[^"]*"', re.sub("<style.*?</style>", "", text, flags=re.S))
    ids, named = set(re.findall(r'id="([^"]*)"', text)), set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text))
    assert {name for pair in named for name in pair if name} <= ids
    (png,) = re.findall(r'data:image/png;base64,([^"]*)', text)
    assert Image.open(BytesIO(b64decode(png))).mode == "P"


def test_a_saved_figure_is_shown_as_it_is_on_disk(results, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    figure_files.show_saved(figures.separation_figure(results, "digits"), tmp_path, "first one")
    assert [image.data for image in shown] == [(tmp_path / "first_one.png").read_bytes()]


def test_a_figure_of_a_set_that_is_a_folder_is_one_file(results, tmp_path):
    figure_files.save_figure(plt.figure(), tmp_path / "report", "auroc_folder:../my images/a")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "auroc_folder_.._my_images_a.png",
        "auroc_folder_.._my_images_a.svg",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
