"""Paired differences and corrected p-values, held against SciPy and against counts by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from oodlib.report.paired import Estimate, estimate, holm, paired_difference


def test_estimate_is_the_t_test_of_scipy():
    values = np.random.default_rng(1).normal(1, size=6)
    found = estimate([*values, np.nan])
    for null in (0.0, 0.7):
        test = stats.ttest_1samp(values, null)
        assert found.p(null) == pytest.approx(test.pvalue)
        assert found.interval(0.9) == pytest.approx(tuple(test.confidence_interval(0.9)))
    assert (found.mean, found.n) == (pytest.approx(values.mean()), 6)
    assert estimate([np.nan]) is None


def test_paired_difference_pairs_by_id_set_architecture_and_seed():
    rows = [("a", 0, "x", 1.0), ("a", 0, "y", 0.5), ("a", 1, "x", 9.0), ("b", 0, "x", 2.0), ("b", 0, "y", 1.7)]
    table = pd.DataFrame(rows, columns=["id_dataset", "seed", "objective", "value"]).assign(arch="r")
    result = paired_difference(table, "value", "x", "y")
    assert (result.mean, result.n) == (pytest.approx(0.4), 2)  # seed 1 of a has no partner
    opposite = paired_difference(table, "value", "y", "x")
    assert opposite.interval() == pytest.approx(tuple(-v for v in result.interval()[::-1]))
    assert paired_difference(table, "value", "x", "w") is None
    assert paired_difference(table[table.seed == 1], "value", "x", "y") is None


def test_one_value_has_no_interval_and_no_p():
    found = estimate([2.0])
    assert found.interval() == (-np.inf, np.inf)
    assert np.isnan(found.p())
    assert found.text() == "+2.00 (n = 1)"
    assert found.brief() == "+2.00 [n = 1]"
    assert Estimate(-1.234, 0.1, 3).brief(0.99, ".1f") == "-1.2 [-2.2, -0.2; n = 3]"
    assert Estimate(-1.234, 0.1, 3).text(0.034, 0.99) == "-1.23 (n = 3, 99 % interval -2.23 to -0.24, Holm p = 0.034)"


def test_equal_values_are_no_division_by_zero():
    assert 0 < estimate([2.0, 2.0]).p() < 0.001
    assert estimate([0.0, 0.0]).p() == 1
    low, high = estimate([0.001, 0.001, 0.001]).interval(0.999)  # no more than rounding makes
    assert low < 0 < high


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, np.nan, 0.01]) == pytest.approx([0.04, np.nan, 0.02], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
