"""Every figure of hand-made results: its axes, lines and labels, and that it can be saved."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from oodlib.data import ImageSet, load_images
from oodlib.encoders import Encoder, TrainingConfig
from oodlib.encoders.training import encoder_spec
from oodlib.plots import figures, run_figures
from oodlib.plots.saving import MAX_WIDTH, PNG_DPI
from oodlib.plots.style import COLORS
from oodlib.report.ranks import ranking
from oodlib.report.results import ranked
from oodlib.separation import PAIR_METRICS, global_separation
from oodlib.study import Run
from oodlib.study.tables import id_embeddings

pytestmark = pytest.mark.usefixtures("figure_style")
DETECTOR = "labels/mahalanobis"
OOD = ["digits789", "letters", "photos", "noise:8"]
NAMED = ["digits 7–9", "letters", "photographs", "noise 8"]


@pytest.fixture
def results(make_results):
    def auroc(objective, seed, detector, **_):
        return 0.7 + len(objective) / 50 + seed / 100 + len(detector) / 1000

    return make_results(auroc, separation=lambda objective, **_: len(objective) / 10)


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() or axis.get_title(loc="left") for axis in figure.axes]


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


SHOWN = ["labels/cosine", "labels/mahalanobis", "kmeans-C/cosine", "knn"]  # in the order of MAIN
OF_CLASSES = (("labels", 7, "mahalanobis"), ("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("none", 0, "knn"))


def test_auroc_figure_has_panels_of_id_sets_and_groups_and_means_over_their_points(make_results, texts_overlap):
    def auroc(objective, seed, detector, ood, **_):
        return 0.6 + len(objective) / 50 + seed / 100 + len(detector) / 1000 + (ood == "letters") / 10

    results = make_results(auroc, id_datasets=("digits", "cifar10"), detectors=OF_CLASSES)
    figure = figures.auroc_figure(results)
    assert titles(figure) == [
        f"{name}: {group} OOD" for name in ("digits 0–6", "CIFAR-10") for group in ("near", "far")
    ]
    assert legend(figure) == ["cross-entropy", "SupCon"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == SHOWN
    names = [name.replace("-C", "-7") for name in SHOWN]
    drawn = [line for line in figure.axes[2].lines if line.get_marker() in ("o", "|")]
    expected = [(name, objective) for name in names for objective in ("ce", "supcon")]
    for points, mean, (name, objective) in zip(drawn[::2], drawn[1::2], expected, strict=True):
        of = {"objective": objective, "detector": name}
        by_hand = [100 * np.mean([auroc(seed=s, ood=o, **of) for o in ("digits789", "letters")]) for s in range(3)]
        assert sorted(points.get_xdata()) == pytest.approx(by_hand)
        assert mean.get_xdata() == pytest.approx(np.mean(by_hand))
        assert to_rgb(mean.get_color()) == pytest.approx(COLORS[objective])
        assert set(points.get_ydata()) == set(mean.get_ydata())  # means stand in line with their points
    limits = {axis.get_xlim() for axis in figure.axes}
    assert len(limits) == 1
    assert not texts_overlap(figure)
    assert figure.get_size_inches()[0] * PNG_DPI <= MAX_WIDTH


def test_auroc_figure_leaves_thresholds_a_cluster_out_and_of_other_detectors_shows_all(make_results):
    results = make_results(detectors=OF_CLASSES)
    by_cluster = results.decisions[results.decisions.threshold == "global"].assign(threshold="per-cluster", auroc=0.1)
    metrics = ranked(pd.concat([results.decisions, by_cluster]))
    drawn = [
        line
        for line in figures.auroc_figure(replace(results, metrics=metrics)).axes[0].lines
        if line.get_marker() == "|"
    ]
    assert min(float(line.get_xdata()[0]) for line in drawn) == 50
    lone = figures.auroc_figure(make_results(detectors=(("one", 1, "cosine"),)))
    assert [label.get_text() for label in lone.axes[0].get_yticklabels()] == ["one/cosine"]


def test_projection_figure_names_the_classes_and_the_sets(results, texts_overlap):
    figure = figures.projection_figure(results, "digits", 0)
    assert titles(figure) == ["cross-entropy", "SupCon"]
    assert legend(figure) == ["digits 0–6 (ID)", *NAMED]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "1", "2"]
    below, above = (figure.axes[0].collections[i].get_zorder() for i in (1, 0))
    assert below < above  # ID over OOD
    assert [len(collection.get_offsets()) for collection in figure.axes[0].collections] == [12] * 5
    assert not texts_overlap(figure)


def test_classes_that_have_names_are_called_by_them(make_results):
    figure = figures.projection_figure(make_results(id_datasets=("cifar10",)), "cifar10", 0)
    assert [text.get_text() for text in figure.axes[0].texts] == ["airplane", "automobile", "bird"]


def test_many_classes_are_not_named(results):
    projection = results.projection
    projection["label"] = np.where(projection.dataset == "digits", np.arange(len(projection)), -1)
    figure = figures.projection_figure(replace(results, projection=projection), "digits", 0)
    assert [text.get_text() for text in figure.axes[0].texts] == [str(i) for i in range(12)]
    many = pd.concat([projection, projection.assign(label=projection.label + 1000)])
    assert not figures.projection_figure(replace(results, projection=many), "digits", 0).axes[0].texts


def test_histogram_figure_fills_id_and_draws_a_line_a_set(results, texts_overlap):
    figure = figures.histogram_figure(results, DETECTOR, "digits", 1)
    assert titles(figure) == ["cross-entropy", "SupCon"]
    assert legend(figure) == ["digits 0–6", *NAMED]
    assert [(len(axis.collections), len(axis.lines)) for axis in figure.axes] == [(1, 4)] * 2
    assert DETECTOR in figure.axes[0].get_xlabel()
    assert not texts_overlap(figure)


def test_histogram_puts_more_normal_images_to_the_right(results):
    axis = figures.histogram_figure(results, DETECTOR, "digits", 0).axes[0]
    peaks = [line.get_xdata()[line.get_ydata().argmax()] for line in axis.lines]
    assert peaks == sorted(peaks, reverse=True)  # hand-made distances grow from set to set


def test_roc_figure_is_the_curve_of_the_kept_scores(results, texts_overlap):
    figure = figures.roc_figure(results, DETECTOR, "digits", 0)
    assert titles(figure) == NAMED
    assert legend(figure) == ["cross-entropy", "SupCon"]
    scores = results.scores[(results.scores.seed == 0) & (results.scores.detector == DETECTOR)]
    for axis, ood in zip(figure.axes, OOD, strict=True):
        for line, objective in zip(axis.lines[:2], ("ce", "supcon"), strict=True):
            part = scores[scores.objective == objective]
            inside, outside = (part[part.dataset == name].score.to_numpy() for name in ("digits", ood))
            x, y = line.get_xdata(), line.get_ydata()
            assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
            wins = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
            assert np.trapezoid(y, x) == pytest.approx(wins)
        assert axis.lines[2].get_ydata() == [0.95, 0.95]
    assert not texts_overlap(figure)


def test_separation_figure_shows_classes_and_kmeans_clusters(results, texts_overlap):
    figure = figures.separation_figure(results, "digits")
    assert titles(figure) == [
        "global separation of classes (digits 0–6)",
        "purity of k-means clusters, as many as classes (digits 0–6)",
    ]
    for axis in figure.axes:
        assert [label.get_text() for label in axis.get_xticklabels()] == ["cross-entropy", "SupCon"]
        assert sum(len(collection.get_offsets()) for collection in axis.collections) == 2 * 3 * 3
    assert not texts_overlap(figure)


def test_separation_figure_counts_as_many_clusters_as_classes(results):
    more = results.clusters[results.clusters.clustering == "kmeans"]
    clusters = pd.concat([results.clusters, more.assign(n_clusters=20)])
    _, purity = figures.separation_figure(replace(results, clusters=clusters), "digits").axes
    assert sum(len(collection.get_offsets()) for collection in purity.collections) == 2 * 3 * 3


def test_separation_figure_without_kmeans(results):
    clusters = results.clusters[results.clusters.clustering == "labels"]
    assert len(figures.separation_figure(replace(results, clusters=clusters), "digits").axes) == 2


def test_history_figure_has_a_line_a_run_that_one_epoch_shows_too(results):
    figure = figures.history_figure(results)
    assert titles(figure) == ["digits 0–6, a line a run"]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in lines] == [[5, 10], [5.5, 11], [6, 12], [15, 30], [15.5, 31], [16, 32]]
    assert {line.get_marker() for line in lines} == {"o"}
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["cross-entropy", "SupCon"]


def test_rank_figure_shows_the_ranks_among_all(results):
    found = ranking(results, "near")
    figure = figures.rank_figure(found, n_shown=3)
    shown = [text.get_text().strip() for text in figure.axes[0].texts]
    assert sorted(shown) == sorted(f"{name} ({rank:.1f})" for name, rank in found.ranks.head(3).items())
    assert {to_rgb(text.get_color()) for text in figure.axes[0].texts} == {COLORS["supcon"]}
    title = figure.axes[0].get_title()
    assert title.startswith(f"near OOD: mean ranks of the best 3 of {len(found.ranks)} combinations, 6 blocks")
    assert f"difference, {found.critical_difference:.1f}" in title
    joins = [list(line.get_xdata()) for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1]
    assert joins
    assert all(join == sorted(join) for join in joins)


def test_rank_figure_of_nothing_to_rank_says_so(make_results):
    results = make_results(objectives=("ce",), detectors=(("none", 0, "knn"),))
    assert titles(figures.rank_figure(ranking(results, "near"))) == [
        "no two combinations are in every block: nothing to rank"
    ]


def test_figures_of_one_seed_show_one_architecture(make_results):
    results = make_results(archs=("resnet20", "resnet18"))
    assert [len(c.get_offsets()) for c in figures.projection_figure(results, "digits", 0).axes[0].collections] == [
        12
    ] * 5
    (line, *_) = figures.roc_figure(results, DETECTOR, "digits", 0).axes[0].lines
    assert len(line.get_xdata()) == 2 * 101 + 2


@pytest.mark.parametrize("draw", [figures.histogram_figure, figures.roc_figure])
def test_unknown_seeds_name_the_known_ones_and_scores_that_were_not_kept_are_said(results, draw):
    with pytest.raises(ValueError, match="no run of 'digits' with seed 7 has what is drawn; these seeds have: 0, 1, 2"):
        draw(results, DETECTOR, "digits", 7)
    nothing = draw(results, "kmeans-10/cosine", "digits", 0)
    assert nothing.axes[0].get_title() == "digits 0–6: no scores of kmeans-10/cosine were kept"


def test_views_figure_shows_images_and_their_views():
    figure = run_figures.views_figure(TrainingConfig(), load_images("digits", "train"), n_images=2, n_views=3)
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
    figure = run_figures.augmentations_figure(TrainingConfig(input_size=0), images, n_images=3)
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
    figure = run_figures.inputs_figure(encoder, [load_images(name) for name in ("digits", "photos")], n_images=4)
    assert [axis.get_ylabel() for axis in figure.axes] == ["digits", "photos"]
    shown = figure.axes[1].images[0].get_array()
    assert shown.shape == (16, 4 * 18 - 2, 3)
    assert (shown[..., 0] == shown[..., 2]).all()  # a photograph is grey to an encoder of grey digits


@pytest.mark.parametrize(("n", "expected"), [(3, [0, 1, 8]), (5, [0, 2, 1, 5, 8]), (99, range(9))])
def test_some_images_are_of_every_class(n, expected):
    labels = np.array([0, 1, 0, 0, 0, 1, 0, 0, 2])
    images = ImageSet(np.zeros((9, 2, 2), np.uint8), labels, ("a", "b", "c"), "mine")
    found = run_figures.select_images(images, n)
    assert sorted(found) == sorted(expected)
    assert (np.diff(labels[found]) >= 0).all()


def test_separation_curves_of_a_run_are_those_of_its_training_embeddings(studied, monkeypatch):
    monkeypatch.chdir(studied.root)
    run = Run("small", "digits-airbench_16_32_64-supcon-s1")
    figure = run_figures.separation_curves_figure(run, fractions=(0.2, 0.6, 1.0))
    assert titles(figure) == ["metric = euclidean", "metric = cosine"]
    data = id_embeddings(run)["train"]
    kept = pd.read_csv(run.path / "clusters.csv").query("clustering == 'labels' and cluster != 'all'")
    for axis, metric, name in zip(figure.axes, PAIR_METRICS, ("", "_cosine"), strict=True):
        lines = [line.get_xydata() for line in axis.lines if len(line.get_xdata())]
        expected = [global_separation(data["z"], data["y"], fraction, metric) for fraction in (0.2, 0.6, 1.0)]
        assert [list(line[:, 0]) for line in lines] == [[0.2, 0.6, 1.0]] * 7
        np.testing.assert_allclose([line[:, 1] for line in lines], np.transpose(expected))
        of_run = kept[kept.measure == f"global_separation{name}"].value
        np.testing.assert_allclose([line[-1, 1] for line in lines], of_run, rtol=5e-5)  # the run's own, all distances


def test_projection_of_a_run_is_drawn_from_its_files(studied, monkeypatch):
    monkeypatch.chdir(studied.root)
    figure = run_figures.projection_figure(Run("small", "digits-airbench_16_32_64-supcon-s1"))
    assert titles(figure) == ["digits-airbench_16_32_64-supcon-s1"]
    assert [text.get_text() for text in figure.axes[0].texts] == list("0123456")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["digits 0–6 (ID)", *NAMED]
