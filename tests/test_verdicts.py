"""Every verdict on hand-made results that support, contradict or leave open its claim."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from oodlib.report import verdicts
from oodlib.report.results import choose

DETECTOR = "labels/mahalanobis"
WORDS = ("supported", "contradicted", "undecided")


def noise(seed: int, scale: float = 0.001) -> float:
    """Return a small number that is another one for every seed, the same for every objective's own difference."""
    return scale * (-1) ** seed * (1 + seed / 7)


def verdict(claim: str, results, detector: str = DETECTOR) -> str:
    return verdicts.CLAIMS[claim](results, detector).verdict


def differing(**points):
    """Return an AUROC function: `points` of each objective above 80, with a little noise by seed."""

    def auroc(objective, seed, **_):
        return 0.8 + points[objective] / 100 + noise(seed) * (objective == "ce")

    return auroc


@pytest.mark.parametrize(
    ("separations", "expected"),
    [
        ({"supcon": 0.8, "simclr": 0.1}, "supported"),
        ({"supcon": 0.8, "simclr": 0.7}, "undecided"),  # greater, but SimCLR is well separated too
        ({"supcon": 0.4, "simclr": 0.1}, "undecided"),  # greater, but not well separated
        ({"supcon": 0.2, "simclr": 0.6}, "contradicted"),
        ({"supcon": 0.6, "simclr": 0.6}, "undecided"),
    ],
)
def test_c1_well_separated_clusters(make_results, separations, expected):
    results = make_results(
        separation=lambda objective, seed, **_: separations[objective] + noise(seed) * (objective == "supcon"),
        purity=lambda objective, **_: {"supcon": 0.95, "simclr": 0.4}[objective],
        objectives=("supcon", "simclr"),
    )
    result = verdicts.CLAIMS["C1"](results, DETECTOR)
    assert result.verdict == expected
    assert f"supcon {separations['supcon']:.2f} / 0.95" in result.reason
    assert f"simclr {separations['simclr']:.2f} / 0.40" in result.reason


def test_c1_says_of_every_id_set_what_it_is_and_is_supported_only_by_all(make_results):
    def made(hard: float):
        return make_results(
            separation=lambda id_dataset, objective, seed, **_: (
                noise(seed) + {"easy": 0.8, "hard": hard}[id_dataset] if objective == "supcon" else 0.1
            ),
            purity=lambda id_dataset, **_: {"easy": 0.9, "hard": 0.3}[id_dataset],
            id_datasets=("easy", "hard"),
            objectives=("supcon", "simclr"),
        )

    supported = verdicts.CLAIMS["C1"](made(hard=0.6), DETECTOR)
    assert supported.verdict == "supported"
    difference = r"\+0\.70 \[\+0\.70, \+0\.70; n = 3\], SupCon 0\.80; hard \+0\.50 \["
    assert re.search(rf"^global separation, SupCon minus SimCLR: easy {difference}", supported.finding)
    assert "easy: simclr 0.10 / 0.90, supcon 0.80 / 0.90; separation of SupCon minus SimCLR +0.70 (n = 3, 95 %" in (
        supported.reason
    )
    assert "hard: simclr 0.10 / 0.30, supcon 0.60 / 0.30; separation of SupCon minus SimCLR +0.50 (n = 3, 95 %" in (
        supported.reason
    )
    assert verdicts.CLAIMS["C1"](made(hard=0.4), DETECTOR).verdict == "undecided"
    assert verdicts.CLAIMS["C1"](made(hard=0.0), DETECTOR).verdict == "contradicted"  # on one set the opposite


def test_c1_counts_as_many_clusters_as_classes(make_results):
    results = make_results(
        separation=lambda objective, seed, **_: (0.8 if objective == "supcon" else 0.1) + noise(seed),
        purity=lambda **_: 0.75,
        objectives=("supcon", "simclr"),
    )
    clusters = results.clusters
    kmeans = clusters[clusters.clustering == "kmeans"]
    more = pd.concat([clusters, kmeans.assign(n_clusters=20, value=0.0)])
    result = verdicts.CLAIMS["C1"](replace(results, clusters=more), DETECTOR)
    assert result == verdicts.CLAIMS["C1"](results, DETECTOR)
    assert result.verdict == "supported"
    assert "supcon 0.80 / 0.75" in result.reason


def test_c1_with_a_wide_interval_is_undecided(make_results):
    results = make_results(
        separation=lambda objective, seed, **_: (0.7 if objective == "supcon" else 0.2) + noise(seed, 0.03),
        objectives=("supcon", "simclr"),
    )
    assert verdict("C1", results) == "supported"  # the noise is that of the pair, and leaves the difference alone
    results = make_results(
        separation=lambda objective, seed, **_: 0.7 + noise(seed, 0.3) if objective == "supcon" else 0.2,
        objectives=("supcon", "simclr"),
    )
    assert verdict("C1", results) == "undecided"


COSTS = {"ce": 10.0, "simclr": 20.0, "supcon": 20.0, "joint": 20.0, "cider": 20.0}
CIFAR = {"cifar100": "near", "tinyimagenet": "near", "mnist": "far", "noise:32": "sanity"}


def on_cifar10(make_results, reached, accuracy=0.8, **of):
    """Return results on CIFAR-10 in which each objective reaches so many points against CIFAR-100, and 50 elsewhere."""

    def auroc(objective, seed, ood, **_):
        return (reached[objective] / 100 if ood == "cifar100" else 0.5) + noise(seed, 0.01)

    results = make_results(auroc, id_datasets=("cifar10",), objectives=tuple(reached), ood=CIFAR, cost=COSTS, **of)
    return replace(results, runs=results.runs.assign(id_accuracy=accuracy))


@pytest.mark.parametrize(
    ("reached", "accuracy", "expected"),
    [
        ({"ce": 70, "supcon": 96, "simclr": 60}, 0.8, "supported"),  # one that reaches the published figure is enough
        ({"ce": 70, "supcon": 91, "simclr": 60}, 0.8, "undecided"),  # its interval does not
        ({"ce": 70, "supcon": 80, "simclr": 60}, 0.8, "undecided"),  # far below, but so is the accuracy
        ({"ce": 70, "supcon": 80, "simclr": 60}, 0.955, "contradicted"),
        ({"ce": 70, "supcon": 80, "simclr": 60, "joint": 99}, 0.8, "undecided"),  # joint contains CE
        ({"ce": 99, "supcon": 80}, 0.8, "undecided"),
        ({"supcon": 96}, 0.8, "supported"),  # the published figure is the measure, not CE
    ],
)
def test_c2_is_held_against_the_published_figure(make_results, reached, accuracy, expected):
    result = verdicts.CLAIMS["C2"](on_cifar10(make_results, reached, accuracy), DETECTOR)
    assert result.verdict == expected
    assert f"supcon {reached['supcon'] + 0.38 / 3:.1f}"[:9] in result.reason
    assert f"supcon {100 * accuracy:.1f} % (published, ResNet-50: 96.0) after 2 epochs of resnet20" in result.reason
    assert ("joint, which contains CE, apart: near joint" in result.reason) == ("joint" in reached)


def test_c2_finds_the_best_contrastive_objective_at_its_accuracy(make_results):
    finding = verdicts.CLAIMS["C2"](on_cifar10(make_results, {"ce": 99, "supcon": 91, "simclr": 60}), DETECTOR).finding
    assert re.search(
        r"best of them: supcon 91\.\d \[8\d\.\d, 9\d\.\d; n = 3\] at 80 % ID accuracy; outstanding is 90\.6$", finding
    )


def reason_of_c2(results) -> str:
    return verdicts.CLAIMS["C2"](results, DETECTOR).reason


def test_c2_corrects_for_the_number_of_objectives(make_results):
    results = on_cifar10(make_results, {"ce": 70, "supcon": 95, "simclr": 60})
    number = r"supcon (\S+) \(n = 3, 97.5 % interval (\S+) to (\S+)\)"
    of_supcon = re.search(number, reason_of_c2(results))
    values = [95 + 100 * noise(seed, 0.01) for seed in range(3)]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.975)
    assert of_supcon.groups() == tuple(f"{v:.1f}" for v in (np.mean(values), *interval))


def test_c2_tells_near_and_far_from_cross_entropy_with_corrected_p_values(make_results):
    def auroc(objective, seed, ood, **_):
        return 0.8 + noise(seed, 0.01) * (objective != "ce") + 0.05 * (objective == "supcon" and ood == "mnist")

    results = make_results(auroc, id_datasets=("cifar10",), objectives=("ce", "supcon"), ood=CIFAR)
    differences = [100 * noise(seed, 0.01) for seed in range(3)]
    near, far = (stats.ttest_1samp([d + more for d in differences], 0).pvalue for more in (0, 5))
    smaller, larger = sorted((near, far))
    corrected = {smaller: min(1, 2 * smaller), larger: max(min(1, 2 * smaller), larger)}
    reason = reason_of_c2(results)
    assert re.search(rf"minus CE: near supcon \S+ \(n = 3, [^)]*Holm p = {corrected[near]:.2g}\)", reason)
    assert re.search(rf"; far supcon \S+ \(n = 3, [^)]*Holm p = {corrected[far]:.2g}\)", reason)


def by_group(near: dict, far: dict):
    """Return an AUROC function: points above 80 of (objective, detector) on near and far sets, with noise of CE."""

    def auroc(objective, detector, seed, ood, **_):
        points = far if ood == "photos" else near
        return 0.8 + points.get(f"{objective} {detector}", -10) / 100 + noise(seed) * (objective == "ce")

    return auroc


OWN = "ce labels/cosine"


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [
        ({OWN: 3}, {OWN: 3}, "near: supported; far: supported"),
        ({OWN: 3}, {OWN: 3, "supcon knn": 7}, "near: supported; far: contradicted"),  # one rival is enough
        ({OWN: 3, "joint knn": 7}, {OWN: 3}, "near: undecided; far: supported"),  # joint contains cross-entropy
        ({OWN: 3, "supcon labels/mahalanobis": 3}, {OWN: 3, "ce knn": 9}, "near: undecided; far: supported"),
    ],
)
def test_c3_is_against_every_variant_with_every_distance(make_results, near, far, expected):
    objectives = ("ce", "supcon", "joint")
    results = make_results(by_group(near, far), id_datasets=("cifar100",), objectives=objectives, cost=COSTS)
    result = verdicts.CLAIMS["C3"](results, DETECTOR)
    assert result.verdict == expected
    assert f"above {8 - ('undecided' in expected.split(';')[0])} of 8 rivals" in result.reason.split("; far")[0]
    assert "ce 91.0 % (published, ResNet-50: 75.3) after 2 epochs of resnet20" in result.reason
    if "supcon knn" in far:
        far = (
            r"; far \(83\.0\) -3\.96 \[-4\.29, -3\.63; n = 3\] \(supcon knn; with it CE has 70\.0, and CE with cosine "
        )
        cosine = r"minus supcon labels/cosine is \+13\.04 \[\+12\.71, \+13\.37; n = 3\]\)$"
        assert re.search(far + cosine, result.finding)
        assert (
            "far: 83.0, above 7 of 8 rivals by the 95 % interval of each, strongest contrastive rival supcon knn"
            in (result.reason)
        )


def test_c3_leaves_out_thresholds_a_cluster_and_what_has_seen_outliers(make_results):
    results = make_results(by_group({OWN: 3}, {OWN: 3}), id_datasets=("cifar100",))
    better = results.metrics[results.metrics.detector == "knn"].assign(auroc=0.99)
    more = [
        better.assign(detector="labels/ssd/per-cluster", threshold="per-cluster"),
        better.assign(detector="oe", seen=1),
    ]
    changed = replace(results, metrics=pd.concat([results.metrics, *more]))
    assert verdicts.CLAIMS["C3"](changed, DETECTOR) == verdicts.CLAIMS["C3"](results, DETECTOR)


@pytest.mark.parametrize("claim", ["C2", "C3"])
def test_claims_about_cifar_need_cifar(make_results, claim):
    result = verdicts.CLAIMS[claim](make_results(), DETECTOR)
    assert result.verdict == "undecided"
    assert result.finding.startswith("this study has no CIFAR-10")


COMBINATIONS = [
    f"{objective} {detector}"
    for objective in ("ce", "supcon")
    for detector in ("labels/mahalanobis", "labels/cosine", "kmeans/cosine", "knn")
]
THREE_NEAR = {"digits789": "near", "letters": "near", "more": "near", "photos": "far", "noise:8": "sanity"}
OF_CLASSES = (("labels", 7, "mahalanobis"), ("labels", 7, "cosine"), ("kmeans", 7, "cosine"), ("none", 0, "knn"))


def ordered(order, gap=0.02):
    """Return an AUROC function in which combination `order(ood)[0]` is best, and so on, with a little noise by seed."""

    def auroc(objective, detector, seed, ood, **_):
        place = order(ood).index(f"{objective} {detector.replace('-7', '')}")
        return 0.9 - gap * place + 0.0001 * noise(seed + place)

    return auroc


def swapped(ood):
    """Return the combinations, of which the last is the best on letters."""
    return COMBINATIONS[::-1] if ood == "letters" else COMBINATIONS


def test_c4_is_contradicted_by_one_that_is_best_everywhere(make_results):
    result = verdicts.CLAIMS["C4"](make_results(ordered(lambda ood: COMBINATIONS), detectors=OF_CLASSES), DETECTOR)
    assert result.verdict == "near: contradicted; far: undecided"  # one far set is not everywhere
    assert f"near: {COMBINATIONS[0]} has the best mean rank, 1.0 of 8 combinations over 6 blocks" in result.reason
    assert "; it wins 2 of 2 pairs; 7 of 8 combinations lose some pair for sure; far:" in result.reason
    assert result.reason.endswith("with resnet20 alone, nothing is said of how it depends on the architecture")


def test_c4_is_supported_where_the_best_loses_a_pair_for_sure(make_results):
    results = make_results(ordered(swapped), detectors=OF_CLASSES, ood=THREE_NEAR)
    result = verdicts.CLAIMS["C4"](results, DETECTOR)
    assert result.verdict == "near: supported; far: undecided"
    near = rf"near: {COMBINATIONS[0]}, best by mean rank, loses to supcon knn on digits → letters by 14\.00 "
    near += r"\[1[34]\.\d\d, 14\.\d\d; n = 3\]; 8 of 8 combinations lose some pair for sure; "
    far = f"far: {COMBINATIONS[0]}, best by mean rank, wins every pair; 7 of 8 combinations lose some pair for sure"
    assert re.fullmatch(near + far, result.finding)
    assert (
        "8 combinations lose some pair for sure; on digits → letters (resnet20) it loses to supcon knn by +14.00"
        in result.reason
    )
    once = verdicts.CLAIMS["C4"](
        make_results(ordered(swapped), detectors=OF_CLASSES, ood=THREE_NEAR, seeds=(0,)), DETECTOR
    )
    assert "near: undecided" in once.verdict  # one seed has no interval
    assert "+14.00 (n = 1), and one seed has no interval" in once.reason


def test_c4_does_not_follow_from_ranks_that_differ_alone(make_results):
    def noisy(objective, detector, seed, ood, **_):  # every block has another order; means over seeds hardly differ
        names = [name.replace("kmeans", "kmeans-7") for name in COMBINATIONS]
        return 0.8 + 0.05 * np.sin(7 * names.index(f"{objective} {detector}") + 3 * seed + len(ood))

    result = verdicts.CLAIMS["C4"](make_results(noisy, detectors=OF_CLASSES), DETECTOR)
    assert set(result.verdict.replace(";", "").split()[1::2]) == {"undecided"}


def test_c4_of_several_architectures_says_nothing_of_one(make_results):
    results = make_results(ordered(swapped), detectors=OF_CLASSES, archs=("resnet20", "resnet18"))
    assert "architecture:" not in verdicts.CLAIMS["C4"](results, DETECTOR).reason
    assert "alone" not in verdicts.CLAIMS["C4"](results, DETECTOR).reason


def test_c4_needs_blocks_and_combinations(make_results):
    one_block = make_results(seeds=(0,), ood={"photos": "far"})
    two = make_results(objectives=("ce",), detectors=(("none", 0, "knn"), ("labels", 7, "mahalanobis")))
    for results in (one_block, two):
        result = verdicts.CLAIMS["C4"](results, DETECTOR)
        assert result.verdict == "undecided"
        assert result.finding == "this study has no three blocks and three combinations to rank"


@pytest.mark.parametrize(
    ("points", "cost", "expected"),
    [
        ({"ce": 0, "supcon": 1, "simclr": -9}, {"ce": 10, "supcon": 30, "simclr": 20}, "supported"),
        (
            {"ce": 5, "supcon": 0, "simclr": 0},
            {"ce": 10, "supcon": 30, "simclr": 20},
            "supported",
        ),  # better and cheaper
        ({"ce": 0, "supcon": 4, "simclr": 0}, {"ce": 10, "supcon": 30, "simclr": 20}, "contradicted"),
        ({"ce": 0, "supcon": 2, "simclr": 0}, {"ce": 10, "supcon": 30, "simclr": 20}, "undecided"),  # at the margin
        ({"ce": 0, "supcon": 1, "simclr": 0}, {"ce": 10, "supcon": 30, "simclr": 12}, "undecided"),  # one is not dearer
    ],
)
def test_c5_is_against_every_objective(make_results, points, cost, expected):
    results = make_results(differing(**points), objectives=tuple(points), cost=cost)
    result = verdicts.CLAIMS["C5"](results, DETECTOR)
    assert result.verdict == expected
    assert re.search(r"digits: near supcon \S+ \(n = 3, .*; far supcon \S+ \(n = 3, ", result.reason)
    number = r"([+-]?\d+\.\d+)"
    found = re.search(rf"CE: digits (\w+) {number} \[.* passes {number}(?:–{number})? times as many", result.finding)
    assert points[found[1]] == max(points[name] for name in points if name != "ce")
    assert float(found[2]) == pytest.approx(points[found[1]] - points["ce"], abs=0.05)
    times = verdicts.cost_ratios(results, "network_inputs").mean()
    assert [float(found[3]), float(found[4] or found[3])] == pytest.approx([times.min(), times.max()], abs=0.05)


def test_c5_holds_only_in_all_id_sets(make_results):
    def auroc(id_dataset, objective, seed, **_):
        return 0.8 + noise(seed) * (objective == "ce") + 0.05 * (objective == "supcon" and id_dataset == "hard")

    assert verdict("C5", make_results(auroc, id_datasets=("easy",))) == "supported"
    assert verdict("C5", make_results(auroc, id_datasets=("easy", "hard"))) == "contradicted"


def test_c5_corrects_for_all_comparisons_in_all_id_sets(make_results):
    def auroc(id_dataset, objective, seed, **_):  # in "hard" 2.7, 3.0 and 3.3 points: p = 0.029 that it is the margin
        better = {"hard": 0.03, "close": 0.02}[id_dataset] + 0.003 * (seed - 1)
        return 0.8 + better * (objective == "supcon")

    assert verdict("C5", make_results(auroc, id_datasets=("hard",))) == "contradicted"
    assert verdict("C5", make_results(auroc, id_datasets=("close", "hard"))) == "undecided"


def test_c5_compares_the_cost_of_runs_that_are_paired(make_results):
    results = make_results(differing(ce=0, supcon=1))
    runs = results.runs
    runs = runs[(runs.objective == "ce") | (runs.seed != 2)]  # SupCon lacks a seed, whose CE run took an hour
    runs = runs.assign(training_seconds=runs.training_seconds.where(runs.seed != 2, 3600.0))
    ratios = verdicts.cost_ratios(replace(results, runs=runs), "training_seconds")
    assert ratios.supcon.tolist() == pytest.approx([30 / 10, 31 / 11])
    assert list(ratios) == ["supcon"]


def test_c5_needs_both_objectives(make_results):
    assert verdict("C5", make_results(objectives=("ce",))) == "undecided"


def test_one_seed_decides_nothing_about_differences(make_results):
    points = {"ce": 0, "supcon": 9, "simclr": -9}
    for claim, id_dataset in (("C1", "digits"), ("C2", "cifar10"), ("C3", "cifar100"), ("C5", "digits")):
        results = make_results(differing(**points), id_datasets=(id_dataset,), objectives=tuple(points), seeds=(0,))
        assert set(re.findall("|".join(WORDS), verdict(claim, results))) == {"undecided"}, claim


def test_table_of_verdicts_has_a_row_a_claim(make_results):
    table = verdicts.verdicts(*2 * (make_results(differing(ce=0, supcon=1)),), DETECTOR)
    assert list(table) == ["claim", "verdict", "finding", "reason"]
    assert [claim[:2] for claim in table.claim] == ["C1", "C2", "C3", "C4", "C5"]
    assert set(re.sub("(near|far): ", "", "; ".join(table.verdict)).split("; ")) <= set(WORDS)


def test_told_are_the_findings_in_a_table_and_the_reasons_below(make_results):
    table = verdicts.verdicts(*2 * (make_results(differing(ce=0, supcon=1)),), DETECTOR)
    header, _, *lines = verdicts.told(table).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["claim", "verdict", "finding"]
    assert [line[:4] for line in lines[:5]] == [f"| C{i}" for i in range(1, 6)]
    assert [line for line in lines[5:] if line] == [
        f"**{r.claim[:2]}.** {r.reason}." for r in table.itertuples() if r.reason
    ]


def test_an_unknown_detector_names_the_known_ones(make_results):
    known = "labels/mahalanobis, labels/cosine, kmeans-10/cosine, knn"
    with pytest.raises(ValueError, match=f"unknown detector 'kmeans/cosine'; known: {known}"):
        verdicts.verdicts(*2 * (make_results(),), "kmeans/cosine")


def test_c3_against_joint_alone_is_no_test_of_contrastive_objectives(make_results):
    results = make_results(
        by_group({OWN: 3}, {OWN: 3}), id_datasets=("cifar100",), objectives=("ce", "joint"), cost=COSTS
    )
    result = verdicts.CLAIMS["C3"](results, DETECTOR)
    assert result.verdict == "undecided"
    assert result.finding.startswith("this study has no CIFAR-100 runs of both CE and a contrastive objective")


def test_detectors_that_are_not_shown_still_compare_objectives(make_results):
    results = make_results(differing(ce=0, supcon=1))
    table = verdicts.verdicts(results, choose(results, ["knn"]), DETECTOR)
    assert table.equals(verdicts.verdicts(results, results, DETECTOR).where(~table.claim.str.startswith("C4"), table))
