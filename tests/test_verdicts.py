"""Every verdict on hand-made results that support, contradict or leave open its claim."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from oodlib import verdicts
from oodlib.report import choose
from oodlib.verdicts import Difference, paired_difference, rank_matrix

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


def test_paired_difference_is_the_t_interval_of_scipy():
    rng = np.random.default_rng(1)
    rows = [
        {"id_dataset": "a", "arch": "b", "seed": seed, "objective": name, "value": rng.normal()}
        for seed in range(6)
        for name in ("x", "y", "z")
    ]
    table = pd.DataFrame(rows)
    wide = table.pivot(index="seed", columns="objective", values="value")
    test = stats.ttest_1samp(wide.x - wide.y, 0)
    result = paired_difference(table, "value", "x", "y")
    assert (result.mean, result.n) == (pytest.approx((wide.x - wide.y).mean()), 6)
    assert (result.low, result.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    opposite = paired_difference(table, "value", "y", "x")
    assert (opposite.mean, opposite.low, opposite.high) == pytest.approx((-result.mean, -result.high, -result.low))


def test_paired_difference_pairs_by_id_set_architecture_and_seed():
    rows = [("a", 0, "x", 1.0), ("a", 0, "y", 0.5), ("a", 1, "x", 9.0), ("b", 0, "x", 2.0), ("b", 0, "y", 1.7)]
    table = pd.DataFrame(rows, columns=["id_dataset", "seed", "objective", "value"]).assign(arch="r")
    result = paired_difference(table, "value", "x", "y")
    assert (result.mean, result.n) == (pytest.approx(0.4), 2)  # seed 1 of a has no partner
    assert paired_difference(table, "value", "x", "w") is None
    assert paired_difference(table[table.seed == 1], "value", "x", "y") is None


def test_one_pair_has_no_interval():
    table = pd.DataFrame([("x", 3.0), ("y", 1.0)], columns=["objective", "value"]).assign(
        id_dataset="a", arch="r", seed=0
    )
    result = paired_difference(table, "value", "x", "y")
    assert (result.mean, result.low, result.high, result.n) == (2.0, -np.inf, np.inf, 1)
    assert str(result) == "+2.00 (n = 1)"
    assert str(Difference(-1.234, -2, 0.5, 3)) == "-1.23 (n = 3, 95 % interval -2.00 to +0.50)"


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


def test_c1_lists_id_sets_apart_and_is_supported_only_by_all(make_results):
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
    assert (
        "easy: simclr 0.10 / 0.90, supcon 0.80 / 0.90; hard: simclr 0.10 / 0.30, supcon 0.60 / 0.30; "
        in supported.reason
    )
    assert verdicts.CLAIMS["C1"](made(hard=0.4), DETECTOR).verdict == "undecided"


def test_c1_counts_as_many_clusters_as_classes_and_no_pca(make_results):
    results = make_results(
        separation=lambda objective, seed, **_: (0.8 if objective == "supcon" else 0.1) + noise(seed),
        purity=lambda **_: 0.75,
        objectives=("supcon", "simclr"),
    )
    clusters = results.clusters
    kmeans, labels = (clusters[clusters.clustering == name] for name in ("kmeans", "labels"))
    opposite = labels.assign(pca=10, value=labels.value.where(labels.objective == "simclr", -9.0))
    more = pd.concat([clusters, kmeans.assign(n_clusters=20, value=0.0), kmeans.assign(pca=10, value=0.0), opposite])
    result = verdicts.CLAIMS["C1"](replace(results, clusters=more), DETECTOR)
    assert result == verdicts.CLAIMS["C1"](results, DETECTOR)
    assert result.verdict == "supported"
    assert "supcon 0.80 / 0.75" in result.reason


def test_c1_with_a_wide_interval_is_undecided(make_results):
    results = make_results(
        separation=lambda objective, seed, **_: (0.7 if objective == "supcon" else 0.2) + noise(seed, 0.3),
        objectives=("supcon", "simclr"),
    )
    assert verdict("C1", results) == "supported"  # the noise is that of the pair, and leaves the difference alone
    results = make_results(
        separation=lambda objective, seed, **_: 0.7 + noise(seed, 0.3) if objective == "supcon" else 0.2,
        objectives=("supcon", "simclr"),
    )
    assert verdict("C1", results) == "undecided"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({"ce": 0, "supcon": 3, "simclr": -5}, "supported"),  # the best contrastive objective counts
        ({"ce": 0, "supcon": -1, "simclr": -5}, "contradicted"),
        ({"ce": 0, "supcon": 0, "simclr": -5}, "undecided"),
    ],
)
def test_c2_contrastive_training_on_cifar10(make_results, points, expected):
    of_cifar = {"id_datasets": ("cifar10",), "objectives": tuple(points)}
    result = verdicts.CLAIMS["C2"](make_results(differing(**points), **of_cifar), DETECTOR)
    assert result.verdict == expected
    assert "near supcon minus CE" in result.reason
    assert "; far supcon minus CE" in result.reason  # near and far are never averaged together


def test_c2_is_about_near_ood(make_results):
    def far_only(objective, seed, ood, **_):
        return 0.8 + noise(seed) * (objective == "ce") + 0.1 * (objective == "supcon" and ood == "photos")

    assert verdict("C2", make_results(far_only, id_datasets=("cifar10",))) == "undecided"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({"ce": 3, "supcon": 0, "simclr": -5}, "supported"),
        ({"ce": 3, "supcon": 4, "simclr": -5}, "contradicted"),  # one variant that wins is enough
        ({"ce": 3, "supcon": 3, "simclr": -5}, "undecided"),
    ],
)
def test_c3_cross_entropy_with_cosine_on_cifar100(make_results, points, expected):
    def by_cosine(detector, **of):  # another detector would say the opposite
        return differing(**points)(**of) if detector == "labels/cosine" else 1 - differing(**points)(**of)

    results = make_results(by_cosine, id_datasets=("cifar100",), objectives=tuple(points))
    assert verdict("C3", results) == expected


@pytest.mark.parametrize("claim", ["C2", "C3"])
def test_claims_about_cifar_need_cifar(make_results, claim):
    result = verdicts.CLAIMS[claim](make_results(), DETECTOR)
    assert result.verdict == "undecided"
    assert "this study has no CIFAR-10" in result.reason


def test_rank_matrix_leaves_out_sanity_sets_and_what_some_block_lacks(make_results):
    results = make_results()
    metrics = results.metrics
    lacks = (metrics.objective == "ce") & (metrics.detector == "knn") & (metrics.seed == 1)
    matrix = rank_matrix(replace(results, metrics=metrics[~lacks]))
    assert len(matrix) == 3 * 3  # seeds × sets without noise
    assert "noise:8" not in matrix.index.get_level_values("ood_dataset")
    assert "ce knn" not in matrix
    assert "supcon knn" in matrix
    assert matrix.shape[1] == 2 * 4 - 1


def ranked(order):
    """Return an AUROC function in which combination `order(block)[0]` is best, and so on."""

    def auroc(objective, detector, seed, ood, **_):
        return 0.9 - 0.01 * order(seed, ood).index(f"{objective} {detector}")

    return auroc


COMBINATIONS = [
    f"{objective} {detector}"
    for objective in ("ce", "supcon")
    for detector in ("labels/mahalanobis", "labels/cosine", "kmeans-10/cosine", "knn")
]


def test_c4_is_contradicted_by_one_that_is_best_everywhere(make_results):
    result = verdicts.CLAIMS["C4"](make_results(ranked(lambda seed, ood: COMBINATIONS)), DETECTOR)
    assert result.verdict == "contradicted"
    assert f"{COMBINATIONS[0]} has the best mean rank, 1.0 of 8, and is best in 9 of 9 blocks" in result.reason


def test_c4_is_supported_where_ranks_differ_and_no_one_wins_everywhere(make_results):
    def order(seed, ood):
        return COMBINATIONS[1::-1] + COMBINATIONS[2:] if ood == "photos" else COMBINATIONS

    results = make_results(ranked(order))
    result = verdicts.CLAIMS["C4"](results, DETECTOR)
    assert result.verdict == "supported"
    assert "best in 6 of 9 blocks" in result.reason
    p = stats.friedmanchisquare(*rank_matrix(results).to_numpy().T).pvalue
    assert f"Friedman p = {p:.1g}" in result.reason


def test_c4_is_undecided_where_ranks_are_random(make_results):
    def order(seed, ood):
        turn = (seed + 3 * ["digits789", "letters", "photos", "noise:8"].index(ood)) % 8
        return COMBINATIONS[turn:] + COMBINATIONS[:turn]

    results = make_results(ranked(order), seeds=(0, 1, 2))
    p = stats.friedmanchisquare(*rank_matrix(results).to_numpy().T).pvalue
    assert p > 0.05
    assert verdict("C4", results) == "undecided"


def test_c4_needs_blocks_and_combinations(make_results):
    one_block = make_results(seeds=(0,), ood={"photos": "far"})
    two = make_results(objectives=("ce",), detectors=(("none", 0, "knn"), ("labels", 7, "mahalanobis")))
    for results in (one_block, two):
        result = verdicts.CLAIMS["C4"](results, DETECTOR)
        assert result.verdict == "undecided"
        assert "this study has no three blocks and three combinations to rank" in result.reason


def test_c4_ranks_the_detectors_shown(make_results):
    results = make_results(ranked(lambda seed, ood: COMBINATIONS))
    shown = choose(results, ["labels/cosine", "knn"])
    assert sorted(rank_matrix(shown)) == sorted(
        name for name in COMBINATIONS if "kmeans" not in name and "mahalanobis" not in name
    )
    result = verdicts.CLAIMS["C4"](shown, DETECTOR)
    assert "ce labels/cosine has the best mean rank, 1.0 of 4" in result.reason


@pytest.mark.parametrize(
    ("points", "cost", "expected"),
    [
        ({"ce": 0, "supcon": 1}, {"ce": 10, "supcon": 30}, "supported"),
        ({"ce": 5, "supcon": 0}, {"ce": 10, "supcon": 30}, "supported"),  # better and cheaper
        ({"ce": 0, "supcon": 4}, {"ce": 10, "supcon": 30}, "contradicted"),
        ({"ce": 0, "supcon": 2}, {"ce": 10, "supcon": 30}, "undecided"),  # at the margin
        ({"ce": 0, "supcon": 1}, {"ce": 10, "supcon": 12}, "undecided"),  # competitive, not much cheaper
    ],
)
def test_c5_cheap_cross_entropy(make_results, points, cost, expected):
    result = verdicts.CLAIMS["C5"](make_results(differing(**points), cost=cost), DETECTOR)
    assert result.verdict == expected
    assert f"{cost['supcon'] / 10:.1f} times the network inputs of CE" in result.reason


def test_c5_needs_both_objectives(make_results):
    assert verdict("C5", make_results(objectives=("ce",))) == "undecided"


def test_one_seed_decides_nothing_about_differences(make_results):
    points = {"ce": 0, "supcon": 9, "simclr": -9}
    for claim, id_dataset in (("C1", "digits"), ("C2", "cifar10"), ("C3", "cifar100"), ("C5", "digits")):
        results = make_results(differing(**points), id_datasets=(id_dataset,), objectives=tuple(points), seeds=(0,))
        assert verdict(claim, results) == "undecided", claim


def test_table_of_verdicts_has_a_row_a_claim(make_results):
    table = verdicts.verdicts(make_results(differing(ce=0, supcon=1)), DETECTOR)
    assert list(table) == ["claim", "verdict", "reason"]
    assert [claim[:2] for claim in table.claim] == ["C1", "C2", "C3", "C4", "C5"]
    assert set(table.verdict) <= set(WORDS)


def test_an_unknown_detector_names_the_known_ones(make_results):
    known = "labels/mahalanobis, labels/cosine, kmeans-10/cosine, knn"
    with pytest.raises(ValueError, match=f"unknown detector 'kmeans/cosine'; known: {known}"):
        verdicts.verdicts(make_results(), "kmeans/cosine")
