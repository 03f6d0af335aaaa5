"""Figures over the runs of a study, drawn from hand-made results: what is in them is read back from the artists."""

from dataclasses import replace

import numpy as np
import pytest

from oodlib import study_figures
from oodlib.regret import regrets

pytestmark = pytest.mark.usefixtures("figure_style")


def test_epochs_have_a_line_a_run_and_a_panel_a_group(make_results, texts_overlap):
    figure = study_figures.epoch_figure(make_results(seeds=(0,)), "digits")
    separation, near, far = figure.axes
    lines = [[line.get_ydata().tolist() for line in axis.lines if len(line.get_xdata())] for axis in figure.axes]
    assert lines == [[[0.2, 0.4]] * 2, [[0.25, 0.5]] * 2, [[0.25, 0.5]] * 2]
    assert [axis.get_title() for axis in figure.axes] == [
        "global separation (digits)",
        "near AUROC, cosine (digits)",
        "far AUROC, cosine (digits)",
    ]
    assert [text.get_text() for text in separation.get_legend().get_texts()] == ["cross-entropy", "SupCon"]
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


def test_accuracy_has_a_point_a_run(make_results, texts_overlap):
    detectors = (("none", 0, "knn"), ("none", 0, "msp"))
    results = make_results(lambda seed, ood, **_: 0.6 + 0.1 * seed + (ood == "letters") / 10, detectors=detectors)
    figure = study_figures.accuracy_figure(results)
    assert [axis.get_title() for axis in figure.axes] == ["msp, a point a run", "knn, a point a run"]
    points = np.sort(figure.axes[0].collections[0].get_offsets().data, axis=0)
    expected = np.array([[90 + seed, 65 + 10 * seed] for seed in (0, 0, 1, 1, 2, 2)])  # near: two sets a run
    np.testing.assert_allclose(points, expected)
    assert not texts_overlap(figure)


def test_regret_has_a_point_a_run_and_set(make_results, texts_overlap):
    table = regrets(make_results(lambda detector, **_: 0.9 if detector == "knn" else 0.8))
    figure = study_figures.regret_figure(table)
    near, far = figure.axes
    rules = [label.get_text() for label in near.get_yticklabels()]
    assert set(rules[:2]) == {"virtual outliers", "always knn"}  # no regret
    n_points = [sum(len(c.get_offsets()) for c in axis.collections) for axis in (near, far)]
    assert n_points == [5 * 6 * 2, 5 * 6]  # rules, runs, sets
    assert not texts_overlap(figure)
