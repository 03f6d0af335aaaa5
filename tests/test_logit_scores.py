"""Scores of logits against SciPy, known numbers and sums in many digits."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy import special

from oodlib.scoring import LOGIT_SCORES, energy, gen, max_logit, msp

LOGITS = np.random.default_rng(0).normal(size=(50, 7)) * 8


def test_logit_scores_are_scipys():
    np.testing.assert_allclose(msp(LOGITS), special.softmax(LOGITS, axis=1).max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(msp(LOGITS), np.exp(special.log_softmax(LOGITS, axis=1)).max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(energy(LOGITS), special.logsumexp(LOGITS, axis=1), rtol=1e-12)
    np.testing.assert_allclose(energy(LOGITS), np.log(np.exp(LOGITS).sum(axis=1)), rtol=1e-12)
    assert max_logit(LOGITS).tolist() == [max(row) for row in LOGITS.tolist()]
    assert {"msp": msp, "maxlogit": max_logit, "energy": energy, "gen": gen} == LOGIT_SCORES


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0, 0, 0, 0], (1 / 4, 0, math.log(4))),
        ([math.log(3), 0], (3 / 4, math.log(3), math.log(4))),
        ([2, 2 + math.log(9)], (0.9, 2 + math.log(9), 2 + math.log(10))),
        ([1e4, 0, -1e4], (1, 1e4, 1e4)),
        ([-1e4, -1e4], (1 / 2, -1e4, -1e4 + math.log(2))),
        ([5], (1, 5, 5)),
    ],
)
def test_logit_scores_of_known_numbers(logits, expected):
    found = [score(np.array([logits], dtype=np.float32))[0] for score in (msp, max_logit, energy)]
    assert found == pytest.approx(expected, rel=1e-6)


def generalised_entropy(logits, gamma=0.1, largest=100):
    """Return the sum in a hundred decimal digits, a class at a time."""
    with localcontext(prec=100):
        powers = [Decimal(float(value)).exp() for value in logits]
        shares = sorted((power / sum(powers) for power in powers), reverse=True)[:largest]
        return float(sum((p * (1 - p)) ** Decimal(gamma) for p in shares if 0 < p < 1))


@pytest.mark.parametrize("scale", [0.1, 1, 10, 50])
@pytest.mark.parametrize("n_classes", [2, 7, 150])
def test_generalised_entropy_is_the_sum_in_many_digits(n_classes, scale):
    logits = np.random.default_rng(0).normal(size=(20, n_classes)) * scale
    assert gen(logits) == pytest.approx([-generalised_entropy(row) for row in logits], rel=1e-9)


def test_generalised_entropy_is_least_normal_where_all_classes_are_alike():
    assert gen(np.zeros((1, 4)))[0] == pytest.approx(-4 * (1 / 4 * 3 / 4) ** 0.1)
    assert gen(np.array([[1e4, 0.0, -1e4], [5.0, 5.0, -1e4]])) == pytest.approx([0, -2 * 0.25**0.1])
    assert gen(np.array([[3.0]])) == [0]


@pytest.mark.parametrize("score", LOGIT_SCORES.values())
def test_logit_scores_are_float64_and_refuse_what_is_no_logits(score):
    assert score(LOGITS.astype(np.float32)).dtype == np.float64
    assert score(LOGITS[:0]).shape == (0,)
    for logits in (np.zeros(5), np.zeros((2, 3, 4)), np.array([[0.0, math.nan]]), np.array([[math.inf, 0]])):
        with pytest.raises(ValueError, match=r"logits must be finite and \(n, C\), got shape \("):
            score(logits)
