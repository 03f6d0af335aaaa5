"""Scores of a classifier, of embeddings and of logits, against loops over their formulas and numbers by hand."""

import math
import re
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy import special

from oodlib import arrays
from oodlib.scoring import LOGIT_SCORES, ash, energy, fdbd, gen, max_logit, msp, nci, nnguide, react, scale
from oodlib.scoring.classifier_scores import EMBEDDING_SCORES, activation_limit

C, D = 4, 20


def make(seed):
    """Return new embeddings (30, D), a classifier, and training embeddings (60, D); a third of values are below 0."""
    rng = np.random.default_rng(seed)
    z, train = (rng.normal(0.5, size=(n, D)) for n in (30, 60))
    return z, rng.normal(size=(C, D)), rng.normal(size=C) + 5, train


Z, WEIGHT, BIAS, TRAIN = make(0)
MEAN = TRAIN.mean(axis=0)
HEAD = WEIGHT, BIAS


# The formulas, an embedding x at a time


def energy_of(x, weight, bias):
    return math.log(sum(math.exp(w @ x + b) for w, b in zip(weight, bias, strict=True)))


def length(x):
    return math.sqrt(sum(value**2 for value in x))


def nnguide_of(x, weight, bias, train):
    guides = [energy_of(t, weight, bias) * (x @ t) / length(x) / length(t) for t in train]
    return energy_of(x, weight, bias) * sum(sorted(guides)[-10:]) / 10


def fdbd_of(x, weight, bias, train):
    logits = weight @ x + bias
    first = logits.argmax()
    others = [c for c in range(len(weight)) if c != first]
    distances = [(logits[first] - logits[c]) / length(weight[first] - weight[c]) for c in others]
    return sum(distances) / len(others) / length(x - train.mean(axis=0))


def nci_of(x, weight, bias, train):
    centred = x - train.mean(axis=0)
    return weight[(weight @ x + bias).argmax()] @ centred / length(centred) + 0.0001 * sum(abs(value) for value in x)


def react_of(x, weight, bias, train):
    values = sorted(train.ravel())
    place = 0.9 * (len(values) - 1)
    low = math.floor(place)
    limit = values[low] + (place - low) * (values[low + 1] - values[low])
    return energy_of(np.array([min(value, limit) for value in x]), weight, bias)


def factor_of(x, n_kept):
    positive = [max(value, 0) for value in x]
    return math.exp(sum(positive) / sum(sorted(positive)[-n_kept:]))


def ash_of(x, weight, bias, train):
    kept = sorted(x)[-2:]  # a tenth of 20
    return energy_of(np.array([value if value in kept else 0 for value in x]) * factor_of(x, 2), weight, bias)


def scale_of(x, weight, bias, train):
    return energy_of(x * factor_of(x, 3), weight, bias)  # 15 % of 20


def fitted(name):
    """Return a score as a function of z, weight, bias and the training embeddings."""
    if name == "nnguide":
        return nnguide
    score, statistics = EMBEDDING_SCORES[name]
    return lambda z, weight, bias, train: score(z, weight, bias, *(of(train) for of in statistics))


FORMULAS = {"nnguide": nnguide_of, "fdbd": fdbd_of, "nci": nci_of, "react": react_of, "ash": ash_of, "scale": scale_of}
each = pytest.mark.parametrize("name", FORMULAS)


@each
def test_each_is_its_formula(name, monkeypatch):
    z, weight, bias, train = make(1)
    expected = [FORMULAS[name](x, weight, bias, train) for x in z]
    score = fitted(name)
    np.testing.assert_allclose(score(z, weight, bias, train), expected, rtol=1e-9)
    single = score(z.astype(np.float32), weight, bias, train.astype(np.float32))
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, expected, rtol=1e-4)
    monkeypatch.setattr(arrays, "ROWS", 7)
    np.testing.assert_allclose(score(z, weight, bias, train), expected, rtol=1e-9)
    assert FORMULAS.keys() == {"nnguide", *EMBEDDING_SCORES}


@pytest.mark.parametrize("by", [1e-3, 1e4])
@each
def test_the_unit_does_not_matter(name, by):
    if name == "nci":  # its two terms have units of their own: that of the weight, and that of z
        found, expected = (nci(Z * s, WEIGHT / s, BIAS, MEAN * s, alpha=0) * s for s in (by, 1))
    else:
        found, expected = (fitted(name)(Z * s, WEIGHT / s, BIAS, TRAIN * s) for s in (by, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_parameters_of_a_layer_and_tensors_are_taken_as_they_are(name, dtype):
    layer, tensor = torch.nn.Linear(D, C, dtype=dtype), torch.tensor(Z, dtype=dtype, requires_grad=True)
    head = [part.detach().double().numpy() for part in (layer.weight, layer.bias)]
    given = tensor.detach().to(torch.promote_types(dtype, torch.float32)).numpy()
    for z, same in ((Z, Z), (tensor, given)):
        found = fitted(name)(z, layer.weight, layer.bias, TRAIN)
        assert np.array_equal(found, fitted(name)(same, *head, TRAIN))


@each
def test_a_zero_row_has_a_finite_score(name):
    z = np.concatenate([Z[:3], np.zeros((1, D))])
    found = fitted(name)(z, *HEAD, TRAIN)
    assert np.isfinite(found).all()
    expected = {"nnguide": 0, "nci": nci_of(z[3], *HEAD, TRAIN), "fdbd": fdbd_of(z[3], *HEAD, TRAIN)}
    assert found[3] == pytest.approx(expected.get(name, energy_of(z[3], *HEAD)), rel=1e-12)


def test_a_row_without_positive_values_has_the_factor_e():
    z = -np.abs(Z)
    np.testing.assert_allclose(scale(z, *HEAD), [energy_of(math.e * x, *HEAD) for x in z], rtol=1e-12)
    kept = np.where(z >= np.sort(z, axis=1)[:, -2:-1], z, 0)
    np.testing.assert_allclose(ash(z, *HEAD), [energy_of(math.e * x, *HEAD) for x in kept], rtol=1e-12)


# By hand: of one class, the energy is the logit


@pytest.mark.parametrize(
    ("row", "percentile", "ratio", "kept"),
    [
        ([1, 2, 3, 4], 50, 10 / 7, [0, 0, 3, 4]),
        ([1, 2, 3, 4], 0, 1, [1, 2, 3, 4]),
        ([1, 2, 3, 4], 99, 10 / 4, [0, 0, 0, 4]),  # one value is kept at least
        ([-1, 2, 4, -3], 50, 1, [0, 2, 4, 0]),  # sums are of the positive values
        ([-1, 2, 4, -3], 75, 6 / 4, [0, 0, 4, 0]),
        ([-1, 2, 4, -3], 25, 1, [-1, 2, 4, 0]),
        ([2, 2, 1, 2], 50, 7 / 4, [2, 2, 0, 2]),  # of equal values all are kept
        ([0, 5, 0, 0], 50, 1, [0, 5, 0, 0]),
    ],
)
def test_shaped_rows_by_hand(row, percentile, ratio, kept):
    weight, bias = np.array([[1.0, 10, 100, 1000]]), np.array([0.5])
    z = np.array([row], dtype=float)
    assert ash(z, weight, bias, percentile) == pytest.approx(math.exp(ratio) * weight[0] @ kept + 0.5, rel=1e-12)
    assert scale(z, weight, bias, percentile) == pytest.approx(math.exp(ratio) * weight[0] @ row + 0.5, rel=1e-12)


def test_react_that_clips_nothing_is_the_energy_and_its_limit_is_of_a_sample_where_rows_are_many(monkeypatch):
    for dtype in (np.float32, np.float64):
        train = TRAIN.astype(dtype)
        limit = activation_limit(train, 100)
        assert limit == train.max()
        np.testing.assert_allclose(react(train, *HEAD, limit), [energy_of(x, *HEAD) for x in train], rtol=1e-6)
    assert react(np.array([[-7.0, 1, 3]]), np.eye(3)[:1], [0.0], 2.0) == [-7]  # low values stay
    monkeypatch.setattr(arrays, "SAMPLED", 40)
    rows = arrays.sample_rows(60)
    assert len(rows) == 40
    assert activation_limit(TRAIN) == activation_limit(TRAIN[rows]) == np.percentile(TRAIN[rows], 90)


@pytest.mark.parametrize("below", [0, 60])
def test_nnguide_leaves_a_row_out_of_its_own_neighbours(below, monkeypatch):
    monkeypatch.setattr(arrays, "ROWS", 13)
    bias = BIAS - below
    rows = np.arange(0, 60, 7)
    expected = [nnguide_of(TRAIN[i], WEIGHT, bias, np.delete(TRAIN, i, axis=0)) for i in rows]
    np.testing.assert_allclose(nnguide(TRAIN[rows], WEIGHT, bias, TRAIN, own=True), expected, rtol=1e-9)
    # with energies below 0, the row itself is no neighbour in any case
    assert np.allclose(nnguide(TRAIN[rows], WEIGHT, bias, TRAIN), expected) == bool(below)


def test_fdbd_at_the_mean_on_the_boundary_and_where_there_is_none():
    weight, mean = np.array([[1.0, 0], [-1, 0]]), np.array([0.0, 2])
    assert fdbd(np.array([[0.0, 2], [0, 1]]), weight, np.zeros(2), mean).tolist() == [math.inf, 0]
    # the first two classes differ by their bias alone
    weight, z = np.array([[1.0, 0], [1, 0], [0, 1]]), np.array([[3.0, 1], [-1, 2]])
    found = fdbd(z, weight, np.array([0.0, -5, 0]), np.zeros(2))
    assert found == pytest.approx([2 / np.sqrt(2) / np.sqrt(10) / 2, (3 + 8) / np.sqrt(2) / np.sqrt(5) / 2])


@each
def test_classifiers_and_embeddings_that_do_not_fit(name):
    for weight, bias in ((WEIGHT[:, :5], BIAS), (WEIGHT, BIAS[:3]), (None, None)):
        shapes = re.escape(f"{np.shape(weight)} and {np.shape(bias)}")
        with pytest.raises(ValueError, match=rf"weight must be \(C, 20\) and bias \(C,\), got {shapes}"):
            fitted(name)(Z, weight, bias, TRAIN)
    for weight, bias in ((WEIGHT * math.nan, BIAS), (WEIGHT, BIAS + math.inf)):
        with pytest.raises(ValueError, match="weight and bias must be finite"):
            fitted(name)(Z, weight, bias, TRAIN)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="z must be finite, got 30 of 30 rows"):
            fitted(name)(np.where(np.arange(D) == 2, value, Z), *HEAD, TRAIN)
    for wrong in (Z[0], Z[:0]):
        with pytest.raises(ValueError, match=r"z must have shape \(n, d\) with n, d >= 1"):
            fitted(name)(wrong, *HEAD, TRAIN)


SPOILT = np.where(np.arange(D) == 2, math.nan, TRAIN)
WRONG = [  # what is asked, and what is said of it
    *(
        (lambda score=score, mean=mean: score(Z, *HEAD, mean), r"mean must be finite and \(20,\), got shape \(")
        for score in (fdbd, nci)
        for mean in (MEAN[:5], 0.0, MEAN * math.nan)
    ),
    (lambda: fdbd(Z, WEIGHT[:1], BIAS[:1], MEAN), "fdbd needs a classifier of at least two classes"),
    (lambda: nnguide(Z, *HEAD, TRAIN[:, :5]), r"train must be \(m, 20\) as z is, got shape \(60, 5\)"),
    (lambda: nnguide(Z, *HEAD, SPOILT), "train must be finite, got 60 of 60 rows"),
    (lambda: activation_limit(SPOILT), "train must be finite, got 60 of 60 rows"),
    (lambda: react(Z, *HEAD, math.nan), "limit must be finite, got nan"),
    (lambda: nnguide(Z, *HEAD, TRAIN, 0), "n_neighbors must be between 1 and 60, got 0"),
    (lambda: nnguide(Z, *HEAD, TRAIN, 61), "n_neighbors must be between 1 and 60, got 61"),
    (lambda: nnguide(Z, *HEAD, TRAIN, 60, True), "n_neighbors must be between 1 and 59, got 60"),
    (lambda: activation_limit(TRAIN, 101), "percentile must be between 0 and 100, got 101"),
    (lambda: ash(Z, *HEAD, -1), "percentile must be between 0 and 99, got -1"),
    (lambda: scale(Z, *HEAD, 100), "percentile must be between 0 and 99, got 100"),
    (lambda: scale(Z, *HEAD, math.nan), "percentile must be between 0 and 99, got nan"),
]


@pytest.mark.parametrize(("ask", "said"), WRONG)
def test_what_else_does_not_fit(ask, said):
    with pytest.raises(ValueError, match=said):
        ask()


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0, 0, 0, 0], (1 / 4, 0, math.log(4), -4 * (1 / 4 * 3 / 4) ** 0.1)),
        ([math.log(3), 0], (3 / 4, math.log(3), math.log(4), -2 * (3 / 16) ** 0.1)),
        ([2, 2 + math.log(9)], (0.9, 2 + math.log(9), 2 + math.log(10), -2 * 0.09**0.1)),
        ([1e4, 0, -1e4], (1, 1e4, 1e4, 0)),
        ([-1e4, -1e4], (1 / 2, -1e4, -1e4 + math.log(2), -2 * 0.25**0.1)),
        ([5, 5, -1e4], (1 / 2, 5, 5 + math.log(2), -2 * 0.25**0.1)),
        ([5], (1, 5, 5, 0)),
    ],
)
def test_logit_scores_of_known_numbers(logits, expected):
    found = [score(np.array([logits], dtype=np.float32))[0] for score in (msp, max_logit, energy, gen)]
    assert found == pytest.approx(expected, rel=1e-6)


def generalised_entropy(logits, gamma=0.1, largest=100):
    """Return the sum in a hundred decimal digits, a class at a time."""
    with localcontext(prec=100):
        powers = [Decimal(float(value)).exp() for value in logits]
        shares = sorted((power / sum(powers) for power in powers), reverse=True)[:largest]
        return float(sum((p * (1 - p)) ** Decimal(gamma) for p in shares if 0 < p < 1))


@pytest.mark.parametrize("scale", [0.1, 1, 10, 50])
@pytest.mark.parametrize("n_classes", [2, 7, 150])
def test_logit_scores_are_scipys_and_generalised_entropy_is_the_sum_in_many_digits(n_classes, scale):
    logits = np.random.default_rng(0).normal(size=(20, n_classes)) * scale
    assert gen(logits) == pytest.approx([-generalised_entropy(row) for row in logits], rel=1e-9)
    np.testing.assert_allclose(msp(logits), special.softmax(logits, axis=1).max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(energy(logits), special.logsumexp(logits, axis=1), rtol=1e-12)


@pytest.mark.parametrize("score", LOGIT_SCORES.values())
def test_logit_scores_are_float64_and_refuse_what_is_no_logits(score):
    assert score(WEIGHT.astype(np.float32)).dtype == np.float64
    assert score(WEIGHT[:0]).shape == (0,)
    for logits in (np.zeros(5), np.zeros((2, 3, 4)), np.array([[0.0, math.nan]]), np.array([[math.inf, 0]])):
        with pytest.raises(ValueError, match=r"logits must be finite and \(n, C\), got shape \("):
            score(logits)
