"""Figures over the runs of a study, drawn from hand-made results: what is in them is read back from the artists."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from oodlib.plots import study_figures
from oodlib.plots.style import COLORS
from oodlib.report.regret import regrets

pytestmark = pytest.mark.usefixtures("figure_style")


def test_epochs_have_a_line_a_run_and_a_panel_a_group(make_results, texts_overlap):
    results = make_results(seeds=(0,))
    more = results.epochs[results.epochs.group == "ID"].assign(measure="nearest_class_mean_accuracy", value=0.75)
    figure = study_figures.epoch_figure(replace(results, epochs=pd.concat([results.epochs, more])), "digits")
    lines = [[line.get_ydata().tolist() for line in axis.lines if len(line.get_xdata())] for axis in figure.axes]
    assert lines == [[[0.2, 0.4]] * 2, [[75, 75]] * 2, [[25, 50]] * 2, [[25, 50]] * 2]
    names = ["global separation", "nearest class mean, accuracy, %", "near AUROC, %", "far AUROC, %"]
    assert [axis.get_title() for axis in figure.axes] == names
    unmeasured = study_figures.epoch_figure(results, "digits")
    assert [axis.get_title() for axis in unmeasured.axes] == [names[0], *names[2:]]
    assert figure._suptitle.get_text() == "digits 0–6, cosine to class means, n = 1 run an objective"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cross-entropy", "SupCon"]
    assert not texts_overlap(figure)


def test_without_snapshots_the_figure_says_so(make_results):
    results = make_results()
    figure = study_figures.epoch_figure(replace(results, epochs=results.epochs[:0]), "digits")
    assert "snapshot_epochs" in figure.axes[0].get_title()


def test_cluster_sizes_have_a_box_for_each_k_and_objective(make_results, texts_overlap):
    figure = study_figures.cluster_size_figure(make_results(purity=lambda **of: 0.25), "digits")
    assert [axis.get_title().split(" of ")[0] for axis in figure.axes] == ["global separation", "cluster purity"]
    medians = [line for line in figure.axes[1].lines if np.allclose(line.get_ydata(), 0.25)]
    assert len(medians) >= 2  # a box each
    assert not texts_overlap(figure)
    nothing = study_figures.cluster_size_figure(make_results(), "digits", "gmm")
    assert "gmm" in nothing.axes[0].get_title()


def points_of(axis) -> list[tuple[float, float]]:
    return [tuple(point) for line in axis.lines if line.get_marker() in ("o", "^") for point in line.get_xydata()]


def test_accuracy_has_a_point_a_run_and_a_way_a_run(make_results, texts_overlap):
    detectors = (("none", 0, "knn"), ("none", 0, "msp"))
    results = make_results(lambda seed, ood, **_: 0.6 + 0.1 * seed + (ood == "letters") / 10, detectors=detectors)
    figure = study_figures.accuracy_figure(results)
    names = ["msp, a point a run", "knn, a point a run", "labels/cosine, a point an epoch"]
    assert [axis.get_title() for axis in figure.axes] == names
    expected = [(90 + seed, 65 + 10 * seed) for seed in (0, 0, 1, 1, 2, 2)]  # near: two sets a run
    np.testing.assert_allclose(sorted(points_of(figure.axes[0])), expected)
    ways = sorted(set(points_of(figure.axes[2])))
    np.testing.assert_allclose(ways, [(100 / 3, 25), (200 / 3, 50)])  # k-NN accuracy of history.csv
    assert figure.axes[2].get_xlabel() == "held-out k-NN accuracy, %"
    assert not texts_overlap(figure)


def test_accuracy_of_an_epoch_is_that_of_the_nearest_class_mean_where_it_was_measured(make_results):
    results = make_results(seeds=(0,))
    own = results.epochs[results.epochs.group == "ID"].assign(measure="nearest_class_mean_accuracy", value=0.5)
    table = study_figures.epoch_ways(replace(results, epochs=pd.concat([results.epochs, own])))
    assert set(table.accuracy) == {50}
    assert set(table.measured) == {"nearest-class-mean accuracy"}
    assert sorted(set(table.auroc)) == [25, 50]
    of_some = pd.concat([results.epochs, own[own.objective == "ce"]])
    assert set(study_figures.epoch_ways(replace(results, epochs=of_some)).measured) == {"held-out k-NN accuracy"}


def test_without_near_sets_there_is_no_auroc_to_hold_against_accuracy(make_results):
    results = make_results(ood={"photos": "far"})
    figure = study_figures.accuracy_figure(replace(results, epochs=results.epochs[:0]))
    assert figure.axes[0].get_title() == "no near OOD set, so no AUROC to hold against accuracy"


def test_what_others_reach_is_marked_as_theirs(make_results, texts_overlap):
    figure = study_figures.accuracy_figure(make_results(id_datasets=("cifar10",), detectors=(("none", 0, "knn"),)))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["published CE, CIFAR-10"]
    (theirs,) = (line.get_ydata()[0] for line in figure.axes[0].lines if line.get_markerfacecolor() == "none")
    assert theirs == 90.6
    assert "at the edge: OpenOOD, ResNet-18" in [name.get_text() for name in figure.legends[0].get_texts()]
    assert not texts_overlap(figure)
    assert not study_figures.accuracy_figure(make_results(detectors=(("none", 0, "knn"),))).axes[0].texts


def test_regret_has_a_point_a_run_and_set_in_the_colour_of_the_objective(make_results, texts_overlap):
    table = regrets(make_results(lambda detector, **_: 0.9 if detector == "knn" else 0.8))
    figure = study_figures.regret_figure(table)
    near, far = figure.axes
    rules = [label.get_text() for label in near.get_yticklabels()]
    assert set(rules[:2]) == {"virtual outliers", "always knn"}  # no regret
    assert "oracle" not in rules
    n_points = [sum(len(c.get_offsets()) for c in axis.collections) for axis in (near, far)]
    assert n_points == [5 * 6 * 2, 5 * 6]  # rules, runs, sets
    colors = {to_rgb(color) for color in near.collections[0].get_facecolors()}
    assert colors == {COLORS["ce"], COLORS["supcon"]}
    again = study_figures.regret_figure(table).axes[0]
    np.testing.assert_array_equal(near.collections[0].get_offsets(), again.collections[0].get_offsets())
    assert not texts_overlap(figure)
