"""Figures of hand-made results: what is in them is read back from the artists."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import overlapping_texts
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from oodlib.data import ImageSet, load_images
from oodlib.encoders import OBJECTIVES, Encoder, TrainingConfig
from oodlib.encoders.training import encoder_spec
from oodlib.plots import clusters, comparison, scores, style, training
from oodlib.plots import images as pictures
from oodlib.plots.style import objective_color
from oodlib.report import measures
from oodlib.report.ranks import BY_HEAD, ranking, regrets
from oodlib.separation import PAIR_METRICS, global_separation
from oodlib.study import Run
from oodlib.study.artefacts import id_embeddings

pytestmark = pytest.mark.usefixtures("figure_style")
DETECTOR = "labels/mahalanobis"
OOD = ["digits789", "letters", "photos", "noise:8"]
NAMED = ["digits 7–9", "letters", "photographs", "noise 8"]
OF_CLASSES = (("labels", 7, "mahalanobis"), ("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("none", 0, "knn"))


def value(objective, seed, ood, detector, **_) -> float:
    """Return an AUROC that is another one for every objective, seed, OOD set and detector."""
    sets = {"digits789": 0.0, "letters": 0.021, "photos": 0.113, "noise:8": 0.2}
    return 0.55 + sets[ood] + len(detector) / 200 + (objective == "supcon") / 30 + seed / 70


@pytest.fixture
def results(make_results):
    return make_results(value, separation=lambda objective, **_: len(objective) / 10)


def legible(figure: Figure) -> Figure:
    """Return a figure, of which no texts may lie over each other."""
    assert not overlapping_texts(figure)
    return figure


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.axison]


def labels(ticks: list) -> list[str]:
    return [tick.get_text() for tick in ticks]


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return labels(found.get_texts())


def cells(axis: Axes, rows: list[str]) -> dict[tuple[str, str], str]:
    """Return what a heat map says, by the names of row and column."""
    columns = labels(axis.get_xticklabels())
    placed = {text.get_position(): text.get_text() for text in axis.texts}
    return {(rows[int(y)], columns[int(x)]): text for (x, y), text in placed.items()}


def test_auroc_figure_has_panels_of_id_sets_and_groups_and_means_over_their_points(make_results):
    results = make_results(value, id_datasets=("digits", "cifar10"), detectors=OF_CLASSES)
    figure = legible(comparison.auroc_figure(results))
    assert titles(figure) == [f"{name}: {part} OOD" for name in ("digits 0–6", "CIFAR-10") for part in ("near", "far")]
    assert legend(figure) == ["cross-entropy", "SupCon"]
    names = ["labels/cosine", "labels/mahalanobis", "kmeans-C/cosine", "knn"]
    assert labels(figure.axes[0].get_yticklabels()) == names
    drawn = [line for line in figure.axes[2].lines if line.get_marker() in ("o", "|")]
    expected = [(name.replace("-C", "-7"), objective) for name in names for objective in ("ce", "supcon")]
    for points, mean, (name, objective) in zip(drawn[::2], drawn[1::2], expected, strict=True):
        of = {"objective": objective, "detector": name}
        by_hand = [100 * np.mean([value(seed=s, ood=o, **of) for o in ("digits789", "letters")]) for s in range(3)]
        assert sorted(points.get_xdata()) == pytest.approx(by_hand)
        assert mean.get_xdata() == pytest.approx(np.mean(by_hand))
        assert to_rgb(mean.get_color()) == pytest.approx(objective_color(objective))
        assert set(points.get_ydata()) == set(mean.get_ydata())  # means stand in line with their points
    assert figure.get_size_inches()[0] * style.PNG_DPI <= style.MAX_WIDTH


DETECTORS = (
    ("labels", 7, "mahalanobis"),
    ("labels", 7, "relative-mahalanobis"),
    ("one", 1, "mahalanobis"),  # of one cluster there is no relative distance
    ("kmeans", 10, "mahalanobis"),
    ("kmeans", 7, "relative-mahalanobis"),
    ("none", 0, "knn"),
    ("none", 0, "msp"),
)


def test_product_figure_of_a_run_has_a_panel_a_set_and_a_cell_a_detector(make_results):
    decisions = make_results(value, detectors=DETECTORS).decisions
    decisions.loc[decisions.threshold != "global", "auroc"] = 0.0  # what no figure may show
    exposed = decisions[decisions.distance == "knn"].assign(distance="outlier-exposure", seen=10, auroc=0.0)
    run = pd.concat([decisions, exposed]).query("run == 'digits-resnet20-supcon-s1'")
    figure = legible(comparison.product_figure(run, by="ood_dataset"))
    top, bottom = np.reshape(figure.axes[:-1], (2, 4))  # the last is the colour bar
    assert [axis.get_title() for axis in top] == OOD
    rows = labels(top[0].get_yticklabels())
    assert rows == ["labels", "one", "kmeans-7", "kmeans-10"]
    for above, below, ood in zip(top, bottom, OOD, strict=True):
        part = run[(run.ood_dataset == ood) & (run.threshold == "global") & (run.seen == 0)]
        names = part.clustering.where(part.clustering != "kmeans", "kmeans-" + part.n_clusters.astype(str))
        keys = zip(names.replace("none", "no clusters"), part.distance, strict=True)
        expected = dict(zip(keys, map("{:.1f}".format, 100 * part.auroc), strict=True))
        assert cells(above, rows) | cells(below, ["no clusters"]) == expected  # no head that has seen outliers
    shown = [float(text.get_text()) for axis in figure.axes[:-1] for text in axis.texts]
    assert figure.axes[-1].get_ylim() == pytest.approx((min(shown), max(shown)), abs=0.05)  # colours cover the data
    nothing = comparison.product_figure(run[:0], by="objective")
    assert titles(nothing) == [] != nothing.axes[0].get_title()


def test_factors_figure_has_a_row_an_objective_and_clustering_of_as_many_as_classes(make_results):
    figure = legible(comparison.factors_figure(make_results(value, detectors=DETECTORS), "digits"))
    near, far = figure.axes
    rows = labels(near.get_yticklabels())
    assert rows == [f"{name}, {own}" for name in ("cross-entropy", "SupCon") for own in ("labels", "one", "kmeans")]
    for axis, sets in ((near, ("digits789", "letters")), (far, ("photos",))):
        found = cells(axis, rows)
        assert ("SupCon, kmeans", "mahalanobis") not in found  # which has ten clusters
        of = {"objective": "supcon", "detector": "labels/mahalanobis"}
        by_hand = np.mean([value(seed=s, ood=ood, **of) for s in range(3) for ood in sets])
        assert found["SupCon, labels", "mahalanobis"] == f"{100 * by_hand:.1f}"


def test_rank_figure_shows_the_best_among_all(results):
    found = ranking(results, "near")
    figure = comparison.rank_figure(found, n_shown=2)
    shown = [text.get_text().strip() for text in figure.axes[0].texts]
    assert sorted(shown) == sorted(f"{name} ({rank:.1f})" for name, rank in found.ranks.head(2).items())
    assert f"difference, {found.critical_difference:.1f}" in figure.axes[0].get_title()
    joins = [list(line.get_xdata()) for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1]
    assert joins
    assert all(join == sorted(join) for join in joins)
    assert comparison.rank_figure(None).axes[0].get_title().endswith("nothing to rank")


def test_histogram_fills_id_and_puts_more_normal_images_to_the_right(results):
    figure = legible(scores.histogram_figure(results.scores, DETECTOR, "digits", 1))
    assert titles(figure) == ["cross-entropy", "SupCon"]
    assert legend(figure) == ["digits 0–6", *NAMED]
    assert [(len(axis.collections), len(axis.lines)) for axis in figure.axes] == [(1, 4)] * 2
    peaks = [line.get_xdata()[line.get_ydata().argmax()] for line in figure.axes[0].lines]
    assert peaks == sorted(peaks, reverse=True)  # hand-made distances grow from set to set


def test_roc_figure_is_the_curve_of_the_kept_scores(results):
    figure = legible(scores.roc_figure(results.scores, DETECTOR, "digits", 0))
    assert titles(figure) == NAMED
    kept = results.scores[(results.scores.seed == 0) & (results.scores.detector == DETECTOR)]
    for axis, ood in zip(figure.axes, OOD, strict=True):
        for line, objective in zip(axis.lines[:2], ("ce", "supcon"), strict=True):
            part = kept[kept.objective == objective]
            inside, outside = (part[part.dataset == name].score.to_numpy() for name in ("digits", ood))
            x, y = line.get_xdata(), line.get_ydata()
            assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
            wins = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
            assert np.trapezoid(y, x) == pytest.approx(wins)
        assert axis.lines[2].get_ydata() == [0.95, 0.95]


@pytest.mark.parametrize("draw", [scores.histogram_figure, scores.roc_figure])
def test_one_architecture_and_seed_is_drawn_and_what_was_not_kept_is_said(make_results, draw):
    kept = make_results(archs=("resnet20", "resnet18")).scores
    assert set(scores.of_seed(kept, "digits", 1).arch) == {"resnet20"}
    with pytest.raises(ValueError, match="no run of 'digits' with seed 7 has what is drawn; these seeds have: 0, 1, 2"):
        draw(kept, DETECTOR, "digits", 7)
    assert "no scores of vim were kept" in draw(kept, "vim", "digits", 0).axes[0].get_title()


def test_false_alarm_figure_draws_the_rates_their_range_and_the_band(make_results):
    table = make_results(seeds=(0, 1)).false_alarms
    shift = (table.objective == "supcon") / 100 + table.seed / 500
    table = table.assign(**{name: table[name] + shift for name in ("rate", "low", "high", "band_low", "band_high")})
    figure = legible(scores.false_alarm_figure(table, DETECTOR, by="objective"))
    assert legend(figure) == ["as promised", "95 % expected", "conformal", "global"]
    alphas = np.array([0.05, 0.1, 0.5])
    for axis, shift in zip(figure.axes, (0.001, 0.011), strict=True):  # means over two seeds
        promise, conformal, from_training = (line.get_xydata() for line in axis.lines)
        assert promise.tolist() == [[0, 0], [0.5, 0.5]]
        np.testing.assert_allclose(conformal, np.column_stack([alphas, alphas + shift]))
        np.testing.assert_allclose(from_training, np.column_stack([alphas, 2 * alphas + shift]))
        band, ranges, none = axis.collections
        corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6)}
        low, high = alphas / 2 + shift, 2 * alphas + shift
        assert {(a, round(v, 6)) for v in (low, high) for a, v in zip(alphas, v, strict=True)} <= corners
        ends = [[[a, bottom], [a, top]] for a, bottom, top in zip(alphas, low, high, strict=True)]
        np.testing.assert_allclose(ranges.get_segments(), ends)
        assert not np.isfinite(none.get_segments()).any()  # of the training images there is one rate
    assert len(scores.false_alarm_figure(table[table.seed == 0], DETECTOR).axes) == 1
    with pytest.raises(ValueError, match="false alarms of 'vim' are not kept for figures; known: labels/mahalanobis"):
        scores.false_alarm_figure(table, "vim")


@pytest.mark.parametrize(("by", "lines"), [("detector", ["knn", "labels/cosine"]), ("objective", ["ce", "supcon"])])
def test_risk_figure_has_a_line_a_detector_or_objective_in_a_panel_a_set(by, lines):
    coverage, places = np.linspace(0.25, 1, 4), [(ood, line) for ood in OOD for line in lines]
    drawn = {place: coverage / (2 + i) for i, place in enumerate(places)}
    parts = [{"coverage": coverage, "risk": drawn[place], "ood_dataset": place[0], by: place[1]} for place in places]
    table = pd.concat(map(pd.DataFrame, parts))
    figure = legible(scores.risk_figure(table, by=by))
    assert titles(figure) == NAMED
    for axis, ood in zip(figure.axes, OOD, strict=True):
        for line, name in zip(axis.lines, lines, strict=True):
            np.testing.assert_allclose(line.get_xydata(), np.column_stack([coverage, drawn[ood, name]]))
            assert by == "detector" or line.get_color() == objective_color(name)
    assert "no risk-coverage" in scores.risk_figure(table[:0]).axes[0].get_title()


def test_projections_name_the_classes_and_the_sets(make_results, results):
    figure = legible(clusters.projections_figure(results.projection, "digits", 0))
    assert titles(figure) == ["cross-entropy", "SupCon"]
    assert legend(figure) == ["digits 0–6 (ID)", *NAMED]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "1", "2"]
    below, above = (figure.axes[0].collections[i].get_zorder() for i in (1, 0))
    assert below < above  # ID over OOD
    assert [len(collection.get_offsets()) for collection in figure.axes[0].collections] == [12] * 5
    named = clusters.projections_figure(make_results(id_datasets=("cifar10",)).projection, "cifar10", 0)
    assert [text.get_text() for text in named.axes[0].texts] == ["airplane", "automobile", "bird"]
    inside = results.projection[results.projection.dataset == "digits"]
    many = pd.concat([inside.assign(label=i) for i in range(13)])
    assert not clusters.projections_figure(many, "digits", 0).axes[0].texts


def test_separation_figure_counts_as_many_kmeans_clusters_as_classes(results):
    more = results.clusters[results.clusters.clustering == "kmeans"].assign(n_clusters=20)
    more = replace(results, clusters=pd.concat([results.clusters, more]))
    figure = legible(clusters.separation_figure(more, "digits"))
    for axis in figure.axes:
        assert labels(axis.get_xticklabels()) == ["cross-entropy", "SupCon"]
        assert sum(len(collection.get_offsets()) for collection in axis.collections) == 2 * 3 * 3
    heights = sorted(y for points in figure.axes[0].collections[1:] for _, y in points.get_offsets())
    assert heights == pytest.approx(sorted([0.5, 0.6, 0.7] * 3))


def test_cluster_sizes_have_a_box_for_each_k_and_objective(make_results):
    table = make_results(purity=lambda **of: 0.25).clusters
    figure = legible(clusters.cluster_size_figure(table, "digits"))
    medians = [line for line in figure.axes[1].lines if np.allclose(line.get_ydata(), 0.25)]
    assert len(medians) >= 2  # a box each
    assert "gmm" in clusters.cluster_size_figure(table, "digits", "gmm").axes[0].get_title()


def test_history_has_a_line_a_run_and_epochs_a_panel_a_measure(results):
    figure = legible(training.history_figure(results.history))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in lines] == [[5, 10], [5.5, 11], [6, 12], [15, 30], [15.5, 31], [16, 32]]
    assert legend(figure) == ["cross-entropy", "SupCon"]
    epochs = results.epochs[results.epochs.seed == 0]
    more = epochs[epochs.group == "ID"].assign(measure="nearest_class_mean_accuracy", value=0.75)
    figure = legible(training.epoch_figure(pd.concat([epochs, more]), "digits"))
    lines = [[line.get_ydata().tolist() for line in axis.lines if len(line.get_xdata())] for axis in figure.axes]
    assert lines == [[[0.2, 0.4]] * 2, [[75, 75]] * 2, [[25, 50]] * 2, [[25, 50]] * 2]
    assert len(training.epoch_figure(epochs, "digits").axes) == 3  # accuracy was not measured
    assert "snapshot_epochs" in training.epoch_figure(epochs[:0], "digits").axes[0].get_title()


def test_accuracy_has_a_point_a_run_of_each_study_and_the_published_ones(make_results):
    def made(**more):
        detectors = (("none", 0, "knn"), ("none", 0, "msp"), ("none", 0, "vim"))
        return make_results(
            lambda seed, ood, **_: 0.6 + seed / 10 + (ood in ("letters", "cifar100")) / 10, detectors=detectors, **more
        )

    near = {"cifar100": "near", "tinyimagenet": "near", "mnist": "far"}
    studies = {"one": made(id_datasets=("cifar10",), ood=near), "two": made(objectives=("ce",))}
    table = comparison.accuracy_points(studies)
    ours = table[(table.study == "one") & (table.detector == "knn") & (table.objective == "ce")]
    np.testing.assert_allclose(ours[["accuracy", "auroc"]], [(90 + seed, 65 + 10 * seed) for seed in range(3)])
    theirs = table[table.study == "published"].set_index(["id_dataset", "detector"])
    assert theirs.loc[("cifar10", "knn"), ["accuracy", "auroc"]].tolist() == [95.06, 90.6]
    figure = legible(comparison.accuracy_figure(studies))
    assert titles(figure) == [f"{name}, {own}" for name in ("CIFAR-10", "digits 0–6") for own in ("msp", "knn")]
    stars = [[line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "*"] for axis in figure.axes]
    assert stars == [[[[95.06, 88.0]]], [[[95.06, 90.6]]], [], []]
    assert {axis.lines[0].get_marker() for axis in figure.axes} == {"o", "s"}  # a mark a study
    assert legend(figure) == ["cross-entropy", "SupCon", "one", "two", "published"]
    far = comparison.accuracy_figure({"far": make_results(ood={"photos": "far"})})
    assert far.axes[0].get_title() == "no near OOD set, so no AUROC to hold against accuracy"


def test_predictor_figure_draws_the_papers_measures_and_the_strongest_a_point_a_run(make_results):
    study = make_results(
        lambda objective, seed, ood, **_: 0.7 + len(objective) / 50 + seed / 100 + (ood == "photos") * (2 - seed) / 20,
        separation=lambda objective, seed, **_: len(objective) / 10 + seed / 50,
        id_datasets=("digits", "letters32"),
    )
    table = measures.predictors(study, "knn")
    figure = legible(comparison.predictor_figure(study, "knn", table, n_shown=2))
    own_measures, reached = measures.id_measures(study), 100 * measures.ood_auroc(study, "knn")
    rows = [(id_dataset, group) for id_dataset in ("digits", "letters32") for group in ("near", "far")]
    for line, (id_dataset, group) in zip(np.reshape(figure.axes, (4, 2)), rows, strict=True):
        best = table[(table.id_dataset == id_dataset) & (table.group == group)]
        by_paper = best.measure == "global_separation"  # the runs here have no other measure of the paper
        for axis, found in zip(line, pd.concat([best[by_paper], best[~by_paper].head(1)]).itertuples(), strict=True):
            rho, n = re.fullmatch(r"Spearman ([+-]\d\.\d\d), n = (\d+)", axis.get_title()).groups()
            assert (float(rho), int(n)) == (pytest.approx(found.spearman, abs=0.005), 6)
            x, y = (own.xs(id_dataset)[name] for own, name in ((own_measures, found.measure), (reached, group)))
            expected = sorted(zip(x, y, strict=True))
            np.testing.assert_allclose(sorted(map(tuple, axis.collections[0].get_offsets())), expected)
    nothing = comparison.predictor_figure(study, "knn", table[:0])
    assert "nothing to correlate" in nothing.axes[0].get_title()


def test_regret_has_a_point_a_run_and_set_in_the_colour_of_the_objective(make_results):
    table = regrets(make_results(lambda detector, **_: 0.9 if detector == "knn" else 0.8))
    figure = legible(comparison.regret_figure(table))
    near, far = figure.axes
    assert set(labels(near.get_yticklabels())[:3]) == {"virtual outliers", "always knn", BY_HEAD}  # no regret
    n_points = [sum(len(c.get_offsets()) for c in axis.collections) for axis in (near, far)]
    assert n_points == [6 * 6 * 2, 6 * 6]  # rules, runs, sets
    colors = {to_rgb(color) for color in near.collections[0].get_facecolors()}
    assert colors == {objective_color("ce"), objective_color("supcon")}


def test_every_objective_has_a_colour_of_its_own_and_an_unknown_one_the_next(monkeypatch):
    monkeypatch.setattr(style, "_COLORS", dict(style._COLORS))
    known = style.objective_colors(OBJECTIVES)
    assert len(set(known.values())) == len(known)
    assert set(OBJECTIVES) <= style.OBJECTIVE_NAMES.keys()
    added = style.objective_color("mine")
    assert added not in known.values()
    assert style.objective_color("other") != added == style.objective_color("mine")
    colors = style.ood_colors(["a", "b", "c"])
    assert (list(colors), len(set(colors.values()))) == (["a", "b", "c"], 3)


@pytest.mark.parametrize(("n", "shape"), [(3, (1, 3)), (4, (2, 2)), (5, (2, 3))])
def test_panels_fit_the_width_of_a_page(n, shape):
    figure, axes = style.panel_grid(n)
    assert len(axes) == n == sum(axis.axison for axis in figure.axes)
    assert axes[0].get_gridspec().get_geometry() == shape
    assert figure.get_size_inches()[0] <= 10.5


def test_figures_are_saved_as_small_pngs_that_stay_the_same(results, tmp_path, monkeypatch):
    for name in ("first", "second one", "folder:../my images/a"):
        figure = clusters.separation_figure(results, "digits")
        assert style.save_figure(figure, tmp_path / "report", name) is figure
        assert not plt.fignum_exists(figure.number)
    files = sorted((tmp_path / "report").iterdir())
    assert [path.name for path in files] == ["first.png", "folder_.._my_images_a.png", "second_one.png"]
    assert len({path.read_bytes() for path in files}) == 1
    with Image.open(files[0]) as image:
        assert (image.mode, len(image.getcolors()) <= style.N_COLORS) == ("P", True)
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    style.show_saved(clusters.separation_figure(results, "digits"), tmp_path, "first")
    assert [image.data for image in shown] == [files[0].read_bytes()]


def test_a_png_keeps_the_colours_of_a_few_points_apart(tmp_path):
    figure, axis = plt.subplots()
    axis.imshow(np.random.default_rng(0).random((99, 99, 3)))  # thousands of others
    for i, color in enumerate(style.objective_colors(OBJECTIVES).values()):
        axis.plot([15 * i + 5], [50], "s", markersize=12, color=color)
    style.save_figure(figure, tmp_path, "points")
    pixels = np.asarray(Image.open(tmp_path / "points.png").convert("RGB")).reshape(-1, 3).astype(int)
    for color in style.objective_colors(OBJECTIVES).values():
        assert np.abs(pixels - 255 * np.array(color)).max(axis=1).min() <= 20


def test_figures_of_a_run_are_drawn_from_its_files(studied, monkeypatch):
    monkeypatch.chdir(studied.root)
    run = Run("small", "digits-airbench_16_32_64-supcon-s1")
    figure = clusters.separation_curves_figure(run, fractions=(0.2, 0.6, 1.0))
    data = id_embeddings(run)["train"]
    kept = pd.read_csv(run.path / "clusters.csv").query("clustering == 'labels' and cluster != 'all'")
    for axis, metric, name in zip(figure.axes, PAIR_METRICS, ("", "_cosine"), strict=True):
        lines = [line.get_xydata() for line in axis.lines]
        expected = [global_separation(data["z"], data["y"], fraction, metric) for fraction in (0.2, 0.6, 1.0)]
        assert [list(line[:, 0]) for line in lines] == [[0.2, 0.6, 1.0]] * 7
        np.testing.assert_allclose([line[:, 1] for line in lines], np.transpose(expected))
        of_run = kept[kept.measure == f"global_separation{name}"].value
        np.testing.assert_allclose([line[-1, 1] for line in lines], of_run, rtol=5e-5)  # the run's own, all distances
    plane = clusters.projection_figure(run).axes[0]
    assert [text.get_text() for text in plane.texts] == list("0123456")
    assert labels(plane.get_legend().get_texts()) == ["digits 0–6 (ID)", *NAMED]


def test_views_and_inputs_are_shown_as_the_network_sees_them():
    images = load_images("digits", "train")
    encoder = Encoder(encoder_spec(TrainingConfig(), images))
    figure = pictures.views_figure(TrainingConfig(), images, n_images=2, n_views=3)
    assert [axis.get_ylabel() for axis in figure.axes] == [images.classes[label] for label in images.labels[:2]]
    row = figure.axes[0].images[0].get_array()
    image, *views = (row[:, i * 18 : i * 18 + 16] for i in range(4))
    np.testing.assert_array_equal(image, encoder.prepare(images.images[:1])[0].permute(1, 2, 0))
    assert not np.array_equal(views[0], views[1])
    figure = pictures.inputs_figure(encoder, [load_images(name) for name in ("digits", "photos")], n_images=4)
    assert [axis.get_ylabel() for axis in figure.axes] == ["digits", "photos"]
    shown = figure.axes[1].images[0].get_array()
    assert shown.shape == (16, 4 * 18 - 2, 3)
    assert (shown[..., 0] == shown[..., 2]).all()  # a photograph is grey to an encoder of grey digits


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


@pytest.mark.parametrize(("n", "expected"), [(3, [0, 1, 8]), (5, [0, 2, 1, 5, 8]), (99, range(9))])
def test_some_images_are_of_every_class(n, expected):
    labels = np.array([0, 1, 0, 0, 0, 1, 0, 0, 2])
    images = ImageSet(np.zeros((9, 2, 2), np.uint8), labels, ("a", "b", "c"), "mine")
    found = pictures.select_images(images, n)
    assert sorted(found) == sorted(expected)
    assert (np.diff(labels[found]) >= 0).all()


def test_thumbnails_are_the_named_images_and_those_of_missing_sets_are_left_out_and_said(make_results, capsys):
    extremes = make_results().extremes
    shown = dict(pictures.thumbnail_figures(extremes, DETECTOR, 0))
    assert list(shown) == ["digits_ce", "digits_supcon"]
    figure = shown["digits_ce"]
    assert figure._suptitle.get_text() == "cross-entropy, labels/mahalanobis, seed 0"
    rows = [f"{name}\n{extreme} normal" for name in ["digits 0–6", *NAMED] for extreme in ("most", "least")]
    assert [axis.get_ylabel() for axis in figure.axes] == rows
    photos = pictures.strip(load_images("photos").images[:3], 3)
    np.testing.assert_array_equal(figure.axes[rows.index("photographs\nleast normal")].images[0].get_array(), photos)
    wrong = extremes[(extremes.run == extremes.run.iloc[0]) & (extremes.detector == DETECTOR)]
    wrong = wrong[(wrong.extreme == "least") == (wrong.dataset == "digits")]
    figure = pictures.wrong_images_figure(wrong, DETECTOR)
    rows = ["digits 0–6\nleast normal", *(f"{name}\nmost normal" for name in NAMED)]
    assert [axis.get_ylabel() for axis in figure.axes] == rows
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), photos)
    assert capsys.readouterr().out == ""
    pictures.wrong_images_figure(wrong.assign(dataset="gone"), DETECTOR)
    fewer = extremes.assign(dataset=extremes.dataset.replace("photos", "elsewhere"))
    assert len(dict(pictures.thumbnail_figures(fewer, DETECTOR, 0))["digits_ce"].axes) == 2 * 4
    nothing = extremes.assign(dataset=extremes.dataset.replace("digits", "lost"), id_dataset="lost")
    assert dict(pictures.thumbnail_figures(nothing, DETECTOR, 0)) == {}
    said = [f"no thumbnails of {name}: load_images({name!r}) says why" for name in ("gone", "elsewhere", "lost")]
    assert capsys.readouterr().out.splitlines()[:3] == said


def test_a_strip_has_white_between_images_and_where_they_are_missing():
    images = np.arange(2 * 3 * 16, dtype=np.uint8).reshape(2, 3, 16)
    shown = pictures.strip(images, 3)
    assert shown.shape == (3, 52)
    for i in range(2):
        np.testing.assert_array_equal(shown[:, 18 * i : 18 * i + 16], images[i])
        assert (shown[:, 18 * i + 16 : 18 * i + 18] == 255).all()
    assert (shown[:, 36:] == 255).all()
    assert pictures.strip(images[..., None].repeat(3, axis=3), 1).shape == (3, 16, 3)
