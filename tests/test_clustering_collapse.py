"""Class geometry against plain float64 loops, hand-counted sets and pseudo-inverses."""

import math

import numpy as np
import pytest

from oodlib.clustering import collapse
from oodlib.clustering.collapse import alignment, cdnv, compactness, dispersion, neural_collapse, rankme, uniformity

SQUARE = np.array([[0.0, 0], [2, 0], [0, 4], [2, 4]])  # class means (1, 0) and (1, 4), both variances 1
PAIRS = np.array([0, 0, 1, 1])


def blobs(n=80, d=6, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    return rng.normal(size=(n_classes, d))[y] + 0.5 * rng.normal(size=(n, d)), y


def simplex(n_classes, radius=1.0):
    """Return the vertices (C, C) of a simplex around the origin: where neural collapse ends."""
    offsets = np.eye(n_classes) - 1 / n_classes
    return radius * offsets / np.linalg.norm(offsets[0])


def angle(a, b):
    cosine = sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def class_directions(z, y):
    unit = [row / math.sqrt((row**2).sum()) for row in z]
    return {int(c): np.mean([row for row, label in zip(unit, y, strict=True) if label == c], axis=0) for c in set(y)}


def test_cdnv_is_the_plain_loop():
    z, y = blobs()
    means = [z[y == c].mean(axis=0) for c in range(4)]
    variances = [np.mean([((row - means[c]) ** 2).sum() for row in z[y == c]]) for c in range(4)]
    ratios = [
        (variances[i] + variances[j]) / (2 * ((means[i] - means[j]) ** 2).sum()) for i in range(4) for j in range(i)
    ]
    assert cdnv(z, y) == pytest.approx(np.mean(ratios), rel=1e-12)


def test_neural_collapse_is_the_pseudo_inverse():
    z, y = blobs()
    means = np.stack([z[y == c].mean(axis=0) for c in range(4)])
    within = (z - means[y]).T @ (z - means[y]) / len(z)
    offsets = means - means.mean(axis=0)
    between = offsets.T @ offsets / 4
    norms = np.linalg.norm(offsets, axis=1)
    deviations = [
        abs(offsets[i] @ offsets[j] / (norms[i] * norms[j]) + 1 / 3) for i in range(4) for j in range(4) if i != j
    ]
    found = neural_collapse(z, y)
    assert found["nc1"] == pytest.approx(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 4, rel=1e-9)
    assert found["nc2_norms"] == pytest.approx(norms.std() / norms.mean(), rel=1e-12)
    assert found["nc2_angles"] == pytest.approx(np.mean(deviations), rel=1e-12)


def test_neural_collapse_leaves_out_directions_in_which_the_means_do_not_spread():
    # three means on one line through the plane, to rounding; unit variance along it and across it
    along, across = np.array([0.6, 0.8]), np.array([-0.8, 0.6])
    sides = np.stack([along, -along, across, -across])
    z = np.concatenate([step * along + sides for step in (0.1, 0.7, 3.1)])
    spread = np.var([0.1, 0.7, 3.1])
    assert neural_collapse(z, np.repeat([0, 1, 2], 4))["nc1"] == pytest.approx(0.5 / spread / 3)


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_a_simplex_is_full_collapse(n_classes):
    y = np.repeat(np.arange(n_classes), 5)
    z = simplex(n_classes, radius=3.0)[y] + 1000
    assert neural_collapse(z, y) == pytest.approx({"nc1": 0, "nc2_norms": 0, "nc2_angles": 0}, abs=1e-10)
    assert cdnv(z, y) == pytest.approx(0, abs=1e-20)


def test_measures_at_their_edges():
    values = neural_collapse([[0.0], [2], [0], [2]], PAIRS)  # both means are 1
    assert values["nc1"] == math.inf
    assert math.isnan(values["nc2_angles"])
    assert math.isnan(neural_collapse([[0.1], [0.7], [1.3]], [0, 1, 2])["nc2_angles"])  # 1e-16 from it
    values = neural_collapse([[-1.0], [0], [1]], [0, 1, 2])  # the middle class has no direction
    assert values["nc1"] == 0
    assert values["nc2_norms"] == pytest.approx(math.sqrt(2 / 9) / (2 / 3))
    assert math.isnan(values["nc2_angles"])
    assert cdnv([[1.0, 0], [1, 0], [3, 0]], [0, 1, 2]) == math.inf  # two means in one place
    one = [3, 3, 3, 3]  # a class that has nothing to be compared with
    assert all(
        math.isnan(v) for v in (cdnv(SQUARE, one), dispersion(SQUARE, one), *neural_collapse(SQUARE, one).values())
    )
    assert 0 < compactness(SQUARE, one) < 90


@pytest.mark.parametrize(("scale", "shift"), [(1e-5, 0), (1e3, 0), (1, 1000)])
def test_variance_measures_ignore_scale_and_shift(scale, shift):
    z, y = blobs()
    assert cdnv(z * scale + shift, y) == pytest.approx(cdnv(z, y), rel=1e-9)
    assert neural_collapse(z * scale + shift, y) == pytest.approx(neural_collapse(z, y), rel=1e-9)


def test_angles_are_the_plain_loops():
    z, y = blobs()
    directions = class_directions(z, y)
    between = [angle(directions[i], directions[j]) for i in range(4) for j in range(i)]
    assert dispersion(z, y) == pytest.approx(np.mean(between), rel=1e-12)
    own = [angle(row, directions[label]) for row, label in zip(z, y, strict=True)]
    assert compactness(z, y) == pytest.approx(np.mean(own), rel=1e-12)
    lengths = np.random.default_rng(6).uniform(1e-5, 1e3, size=(80, 1))  # only directions count
    assert dispersion(z * lengths, y) == pytest.approx(dispersion(z, y), rel=1e-12)
    assert compactness(z * lengths, y) == pytest.approx(compactness(z, y), rel=1e-12)


def test_uniformity_is_the_plain_loop(monkeypatch):
    z, _ = blobs()
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    kernel = [math.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(80) for j in range(i)]
    for pairs in (collapse.PAIRS, 200):  # at once, and two rows at a time
        monkeypatch.setattr(collapse, "PAIRS", pairs)
        assert uniformity(z) == pytest.approx(math.log(np.mean(kernel)), rel=1e-12)


def test_rankme_is_its_formula_and_counts_the_directions_in_use():
    z, _ = blobs()
    sigma = np.sqrt(np.linalg.eigvalsh(z.T @ z))
    p = sigma / sigma.sum() + 1e-7
    assert rankme(z) == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)), rel=1e-10)
    assert rankme(z * 1e-9) == pytest.approx(rankme(z), rel=1e-12)
    # p = 1/3 + 1e-7, three times: 3 to within the paper's 1e-7
    assert rankme(7 * np.eye(5)[:3]) == pytest.approx(3, abs=1e-5)
    assert rankme(np.outer(np.arange(1.0, 9), [1, 2, 3])) == pytest.approx(1, abs=1e-4)
    assert rankme(np.zeros((3, 2))) == 0


@pytest.mark.parametrize("measure", [cdnv, neural_collapse, dispersion, compactness])
def test_bad_embeddings_and_labels_are_named(measure):
    with pytest.raises(ValueError, match="z must be finite, got 1 of 4 rows"):
        measure(SQUARE * [[1], [1], [1], [np.inf]], PAIRS)
    for y, said in ((PAIRS - 1, ">= 0"), (PAIRS[:3], r"have shape \(n,\).* n = 4"), (PAIRS * 0.5, "be integers")):
        with pytest.raises(ValueError, match=f"y must (be )?{said}"):
            measure(SQUARE, y)
    for ask, said in (
        (lambda: alignment(SQUARE, SQUARE[:2]), "z_a and z_b must have one shape"),
        (lambda: uniformity(SQUARE[:1]), "uniformity needs at least 2 rows, got 1"),
        (lambda: rankme(np.zeros((0, 3))), "z must have shape"),
    ):
        with pytest.raises(ValueError, match=said):
            ask()
