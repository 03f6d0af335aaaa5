"""Figures of the factors, of hand-made tables: every cell, line, band and point against the table it is drawn from."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from oodlib.plots import factor_figures
from oodlib.plots.style import COLORS
from oodlib.report import findings
from oodlib.report.provenance import display_name

pytestmark = pytest.mark.usefixtures("figure_style")
DETECTORS = (
    ("labels", 7, "mahalanobis"),
    ("labels", 7, "relative-mahalanobis"),
    ("one", 1, "mahalanobis"),  # of one cluster there is no relative distance
    ("kmeans", 10, "mahalanobis"),
    ("kmeans", 10, "relative-mahalanobis"),
    ("none", 0, "knn"),
    ("none", 0, "msp"),
)


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


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


def value(objective, seed, ood, detector, **_) -> float:
    """Return an AUROC that is another one for every objective, seed, OOD set and detector."""
    sets = {"digits789": 0.0, "letters": 0.021, "photos": 0.113, "noise:8": 0.2}
    return 0.55 + sets[ood] + len(detector) / 200 + (objective == "supcon") / 30 + seed / 70


@pytest.fixture
def metrics(make_results) -> pd.DataFrame:
    """The rows of all thresholds; what is not to be drawn has an AUROC that no figure may show."""
    decisions = make_results(value, detectors=DETECTORS).decisions
    decisions.loc[decisions.threshold != "global", "auroc"] = 0.0
    exposed = decisions[decisions.distance == "knn"].assign(distance="outlier-exposure", seen=10, auroc=0.0)
    return pd.concat([decisions, exposed], ignore_index=True)


def test_product_figure_of_a_run_has_a_panel_a_set_and_a_cell_a_detector(metrics, texts_overlap):
    run = metrics[metrics.run == "digits-resnet20-supcon-s1"]
    figure = factor_figures.product_figure(run, by="ood_dataset")
    sets = ["digits789", "letters", "photos", "noise:8"]
    top, bottom = np.reshape(figure.axes[:-1], (2, 4))  # the last is the colour bar
    assert [axis.get_title() for axis in top] == sets
    rows = labels(top[0].get_yticklabels())
    assert rows == ["labels", "one", "kmeans-10"]
    assert labels(bottom[0].get_yticklabels()) == ["no clusters"]
    for above, below, ood in zip(top, bottom, sets, strict=True):
        assert labels(above.get_xticklabels()) == ["mahalanobis", "relative-mahalanobis"]
        assert labels(below.get_xticklabels()) == ["knn", "msp"]  # no head that has seen outliers
        part = run[(run.ood_dataset == ood) & (run.threshold == "global") & (run.seen == 0)]
        expected = part.set_index(["clustering", "distance"]).auroc.map(lambda auroc: f"{100 * auroc:.1f}")
        expected = expected.rename(index={"kmeans": "kmeans-10", "none": "no clusters"}).to_dict()
        assert cells(above, rows) | cells(below, ["no clusters"]) == expected
        assert ("one", "relative-mahalanobis") not in cells(above, rows)
    assert figure._suptitle.get_text() == "AUROC %"
    shown = [float(text.get_text()) for axis in figure.axes[:-1] for text in axis.texts]
    assert figure.axes[-1].get_ylim() == pytest.approx((min(shown), max(shown)), abs=0.05)  # colours cover the data
    assert not texts_overlap(figure)


def test_product_figure_has_a_title_and_ks_in_numerical_order(make_results):
    detectors = [("labels", 7, "cosine"), *(("kmeans", k, "cosine") for k in (7, 100, 20)), ("none", 0, "knn")]
    metrics = make_results(detectors=detectors).metrics
    figure = factor_figures.product_figure(metrics, by="objective", title="near OOD of digits, n = 3")
    assert figure._suptitle.get_text() == "AUROC %, near OOD of digits, n = 3"
    assert labels(figure.axes[0].get_yticklabels()) == ["labels", "kmeans-7", "kmeans-20", "kmeans-100"]


def test_study_risk_figure_has_a_line_an_objective_with_its_aurc(make_results, texts_overlap):
    results = make_results(lambda objective, **_: {"ce": 0.9, "supcon": 0.75}[objective])
    coverage = np.linspace(0.25, 1, 4)
    curves = [
        results.runs[["run", "id_dataset", "arch", "objective", "seed"]]
        .iloc[[i] * 4]
        .assign(coverage=coverage, risk=coverage / (2 + i), ood_dataset=ood, detector="knn")
        for i in range(len(results.runs))
        for ood in ("letters", "photos")
    ]
    results = replace(results, risk_coverage=pd.concat(curves))
    figure = factor_figures.study_risk_figure(results, "knn", "digits", 1)
    assert titles(figure) == ["letters", "photographs"]
    for axis in figure.axes:
        assert labels(axis.get_legend().get_texts()) == ["cross-entropy: 0.10", "SupCon: 0.25"]  # 1 - AUROC here
        for line, i in zip(axis.lines, (1, 4), strict=True):
            np.testing.assert_allclose(line.get_xydata(), np.column_stack([coverage, coverage / (2 + i)]))
    assert not texts_overlap(figure)
    assert "no risk-coverage curves of msp" in titles(factor_figures.study_risk_figure(results, "msp", "digits", 1))[0]


def test_product_figure_of_a_study_averages_seeds_and_sets_a_panel_an_objective(metrics):
    near = metrics[metrics.group == "near"]
    figure = factor_figures.product_figure(near, by="objective")
    assert titles(figure)[:2] == ["cross-entropy", "SupCon"]
    rows = labels(figure.axes[0].get_yticklabels())
    for axis, objective in zip(figure.axes, ("ce", "supcon"), strict=False):
        of = {"objective": objective, "detector": "kmeans-10/mahalanobis"}
        by_hand = np.mean([value(seed=s, ood=ood, **of) for s in range(3) for ood in ("digits789", "letters")])
        assert cells(axis, rows)["kmeans-10", "mahalanobis"] == f"{100 * by_hand:.1f}"
    assert not any(labels(figure.axes[1].get_yticklabels()))  # the rows are those of the first panel


def test_product_figure_of_another_measure(metrics):
    run = metrics[metrics.run == "digits-resnet20-ce-s0"]
    figure = factor_figures.product_figure(run, by="group", measure="fpr95")
    assert figure._suptitle.get_text() == "FPR95 %"
    far = figure.axes[1]
    assert far.get_title() == "far"
    assert cells(far, ["labels", "one", "kmeans-10"])["one", "mahalanobis"] == f"{100 - 100 * (0.663 + 15 / 200):.1f}"


def test_rows_and_columns_stand_in_line_where_panels_have_others(metrics):
    k = metrics.n_clusters.where((metrics.clustering != "kmeans") | (metrics.objective == "ce"), 13)
    lacks = (metrics.distance == "msp") & (metrics.objective == "ce")
    figure = factor_figures.product_figure(metrics.assign(n_clusters=k)[~lacks], by="objective")
    rows = labels(figure.axes[0].get_yticklabels())
    assert rows == ["labels", "one", "kmeans-10", "kmeans-13"]
    ce, supcon, ce_below, supcon_below, _ = figure.axes
    assert {row for row, _ in cells(ce, rows)} == {"labels", "one", "kmeans-10"}
    assert {row for row, _ in cells(supcon, rows)} == {"labels", "one", "kmeans-13"}
    assert labels(ce_below.get_xticklabels()) == labels(supcon_below.get_xticklabels()) == ["knn", "msp"]
    assert [len(axis.texts) for axis in (ce_below, supcon_below)] == [1, 2]


def test_every_row_and_column_of_a_large_product_has_its_name(metrics):
    run = metrics[(metrics.run == "digits-resnet20-ce-s0") & (metrics.ood_dataset == "photos")]
    kmeans = run[run.clustering == "kmeans"]
    many = [kmeans.assign(n_clusters=k, distance=kmeans.distance + f"-{d}") for k in range(2, 22) for d in range(5)]
    axis = factor_figures.product_figure(pd.concat([*many, run[run.clustering == "none"]]), by="group").axes[0]
    assert labels(axis.get_yticklabels()) == [f"kmeans-{k}" for k in range(2, 22)]
    assert len(labels(axis.get_xticklabels())) == 10


def test_a_product_of_no_sets_says_so(metrics):
    assert titles(factor_figures.product_figure(metrics[metrics.group == "none such"], by="objective")) == [
        "no OOD set of this kind: nothing to compare"
    ]


@pytest.fixture
def false_alarms(make_results) -> pd.DataFrame:
    table = make_results(seeds=(0, 1)).false_alarms
    shift = (table.objective == "supcon") / 100 + table.seed / 500
    rising = ["rate", "low", "high", "band_low", "band_high"]
    return table.assign(**{name: table[name] + shift for name in rising})


def test_false_alarm_figure_draws_the_rates_their_range_and_the_band(false_alarms, texts_overlap):
    figure = factor_figures.false_alarm_figure(false_alarms, "labels/mahalanobis", by="objective")
    assert titles(figure) == ["cross-entropy", "SupCon"]
    assert legend(figure) == ["as promised", "95 % expected", "conformal", "global"]
    assert figure._suptitle.get_text() == "labels/mahalanobis"
    alphas = np.array([0.05, 0.1, 0.5])
    for axis, shift in zip(figure.axes, (0.001, 0.011), strict=True):  # means over two seeds
        promise, conformal, from_training = (line.get_xydata() for line in axis.lines)
        assert promise.tolist() == [[0, 0], [0.5, 0.5]]
        np.testing.assert_allclose(conformal, np.column_stack([alphas, alphas + shift]))
        np.testing.assert_allclose(from_training, np.column_stack([alphas, 2 * alphas + shift]))
        band, ranges, none = axis.collections
        corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6)}
        low, high = alphas / 2 + shift, 2 * alphas + shift
        assert {(a, round(v, 6)) for a, v in zip(alphas, low, strict=True)} <= corners
        assert {(a, round(v, 6)) for a, v in zip(alphas, high, strict=True)} <= corners
        ends = [[[a, bottom], [a, top]] for a, bottom, top in zip(alphas, low, high, strict=True)]
        np.testing.assert_allclose(ranges.get_segments(), ends)
        assert not np.isfinite(none.get_segments()).any()  # of the training images there is one rate
    assert figure.axes[0].get_ylim()[0] == 0
    assert figure.axes[0].get_ylim()[1] > 1.011  # whatever the rate, it is in sight
    assert not texts_overlap(figure)


def test_false_alarm_figure_of_one_run_has_one_panel(false_alarms, texts_overlap):
    other = false_alarms.assign(detector="knn", rate=0.9)
    run = pd.concat([false_alarms, other]).query("run == 'digits-resnet20-supcon-s1'")
    cluster = run[run.threshold == "conformal"].assign(threshold="conformal-cluster", rate=0.03)
    cluster[["band_low", "band_high"]] = np.nan
    figure = factor_figures.false_alarm_figure(pd.concat([run, cluster]), "labels/mahalanobis")
    (axis,) = figure.axes
    assert legend(figure) == ["as promised", "95 % expected", "conformal", "conformal-cluster", "global"]
    np.testing.assert_allclose(axis.lines[1].get_ydata(), np.array([0.05, 0.1, 0.5]) + 0.012)
    assert len({to_rgb(line.get_color()) for line in axis.lines}) == 4
    assert not texts_overlap(figure)


def test_false_alarms_of_a_detector_that_are_not_kept_name_those_that_are(false_alarms):
    with pytest.raises(ValueError, match="false alarms of 'vim' are not kept for figures; known: labels/mahalanobis"):
        factor_figures.false_alarm_figure(false_alarms, "vim")


def test_risk_figure_has_a_line_a_detector_in_a_panel_a_set(texts_overlap):
    coverage = np.linspace(0.25, 1, 4)
    drawn = {
        (ood, detector): coverage / (2 + i)
        for i, (ood, detector) in enumerate((o, d) for o in ("letters", "photos") for d in ("knn", "labels/cosine"))
    }
    table = pd.concat(
        pd.DataFrame({"coverage": coverage, "risk": risk, "ood_dataset": ood, "detector": detector})
        for (ood, detector), risk in drawn.items()
    )
    figure = factor_figures.risk_figure(table)
    assert titles(figure) == ["letters", "photos"]
    assert legend(figure) == ["knn", "labels/cosine"]
    for axis in figure.axes:
        for line in axis.lines:
            expected = np.column_stack([coverage, drawn[axis.get_title(), line.get_label()]])
            np.testing.assert_allclose(line.get_xydata(), expected)
        assert (axis.get_xlim(), axis.get_ylim()) == ((0, 1), (0, 1))
    for first, second in zip(*(axis.lines for axis in figure.axes), strict=True):
        assert first.get_color() == second.get_color()
    assert not texts_overlap(figure)


def test_fraction_figure_has_a_line_a_cluster_in_a_panel_a_metric(texts_overlap):
    fractions = [0.1, 0.5, 1.0]
    drawn = {(m, c): np.array(fractions) * (c + 1) / 10 - i for i, m in enumerate("ab") for c in range(3)}
    table = pd.concat(
        pd.DataFrame({"metric": metric, "fraction": fractions, "cluster": cluster, "value": values})
        for (metric, cluster), values in drawn.items()
    )
    figure = factor_figures.fraction_figure(table)
    assert titles(figure) == ["metric = a", "metric = b"]
    for axis, metric in zip(figure.axes, "ab", strict=True):
        lines = [line.get_xydata() for line in axis.lines if len(line.get_xdata())]
        expected = [np.column_stack([fractions, drawn[metric, cluster]]) for cluster in range(3)]
        np.testing.assert_allclose(lines, expected)
        assert axis.get_ylim()[0] < -0.9  # what is below 0 is in sight too
        assert axis.get_ylim()[1] == 1
    assert not texts_overlap(figure)


@pytest.fixture
def study(make_results):
    return make_results(
        lambda objective, seed, ood, **_: 0.7 + len(objective) / 50 + seed / 100 + (ood == "photos") * (2 - seed) / 20,
        separation=lambda objective, seed, **_: len(objective) / 10 + seed / 50,
        id_datasets=("digits", "letters32"),
    )


def test_predictor_figure_draws_the_papers_measures_and_the_strongest_a_point_a_run(study, texts_overlap):
    table = findings.predictors(study, "knn")
    figure = factor_figures.predictor_figure(study, "knn", table, n_shown=2)
    grid = np.reshape(figure.axes, (4, 2))
    measures, reached = findings.id_measures(study), 100 * findings.ood_auroc(study, "knn")
    rows = [(id_dataset, group) for id_dataset in ("digits", "letters32") for group in ("near", "far")]
    for line, (id_dataset, group) in zip(grid, rows, strict=True):
        best = table[(table.id_dataset == id_dataset) & (table.group == group)]
        of_paper = best.measure == "global_separation"  # the runs here have no other measure of the paper
        strongest = pd.concat([best[of_paper], best[~of_paper].head(1)])
        assert line[0].get_ylabel() == f"{display_name(id_dataset)}: {group} OOD AUROC %"
        for axis, found in zip(line, strongest.itertuples(), strict=True):
            rho, n = re.fullmatch(r"Spearman ([+-]\d\.\d\d), n = (\d+)", axis.get_title()).groups()
            assert (float(rho), int(n)) == (pytest.approx(found.spearman, abs=0.005), 6)
            assert axis.get_xlabel() == found.measure
            points = np.concatenate([collection.get_offsets() for collection in axis.collections])
            expected = np.column_stack([measures[found.measure][id_dataset], reached[group][id_dataset]])
            np.testing.assert_allclose(sorted(points.tolist()), sorted(expected.tolist()))
            colors = {to_rgb(color) for collection in axis.collections for color in collection.get_facecolors()}
            assert colors == {COLORS["ce"], COLORS["supcon"]}
    assert legend(figure) == ["cross-entropy", "SupCon"]
    assert not texts_overlap(figure)


def test_predictor_figure_leaves_panels_empty_where_fewer_measures_were_found(study):
    table = findings.predictors(study, "knn")
    assert len(table) == 4 * 3
    figure = factor_figures.predictor_figure(study, "knn", table)
    shown = [axis.axison for axis in figure.axes]
    assert shown == [True, True, True, False] * 4


def test_predictor_figure_of_nothing_found_says_so(make_results):
    results = make_results(objectives=("ce",), seeds=(0,))
    figure = factor_figures.predictor_figure(results, "knn", findings.predictors(results, "knn"))
    assert titles(figure) == ["fewer than three runs, or all alike: nothing to correlate"]
