"""Gaussian mixtures against scikit-learn, and against the density formula."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from oodlib.mixture import COVARIANCES, fit_mixture

RNG = np.random.default_rng(0)
Z = np.concatenate([RNG.normal(size=(300, 5)) @ RNG.normal(size=(5, 5)) + 8 * RNG.normal(size=5) for _ in range(3)])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_likelihood_is_that_of_scikit_learn(covariance):
    ours = fit_mixture(Z, 3, covariance)
    theirs = GaussianMixture(3, covariance_type=covariance, n_init=3, random_state=0).fit(Z)
    assert ours.log_likelihood >= theirs.score(Z) - 1e-3
    assert ours.log_density(Z).mean() == pytest.approx(ours.log_likelihood, abs=1e-2)
    assert ours.bic == pytest.approx(theirs.bic(Z), rel=1e-3)


def test_log_density_is_the_formula():
    found = fit_mixture(Z, 3, "full")
    parts = [
        np.log(weight) + multivariate_normal(mean, covariance).logpdf(Z)
        for weight, mean, covariance in zip(found.weights, found.means, found.covariances, strict=True)
    ]
    np.testing.assert_allclose(found.log_density(Z), logsumexp(parts, axis=0), atol=1e-3)


def test_a_change_of_unit_changes_the_log_density_by_its_volume():
    small = fit_mixture((Z * 1e-5).astype(np.float32), 3)
    expected = fit_mixture(Z.astype(np.float32), 3).log_likelihood - 5 * np.log(1e-5)
    assert small.log_likelihood == pytest.approx(expected, abs=1e-2)


def test_a_singular_covariance_is_safe():
    twice = np.concatenate([Z, Z], axis=1)
    assert np.isfinite(fit_mixture(twice, 3).log_density(twice)).all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown covariance 'round'; known: full, tied, diag"):
        fit_mixture(Z, 3, "round")
    with pytest.raises(ValueError, match="width of the mixture, 5, got 4"):
        fit_mixture(Z, 3).log_density(Z[:, :4])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_scikit_learn_scores_the_same_parameters_alike(covariance):
    found = fit_mixture(Z, 3, covariance)
    theirs = GaussianMixture(3, covariance_type=covariance)
    theirs.weights_, theirs.means_, theirs.covariances_ = found.weights, found.means, found.covariances
    inverses = 1 / found.covariances if covariance == "diag" else np.linalg.inv(found.covariances)
    # P Pᵀ is the inverse covariance
    theirs.precisions_cholesky_ = np.sqrt(inverses) if covariance == "diag" else np.linalg.cholesky(inverses)
    np.testing.assert_allclose(found.log_density(Z), theirs.score_samples(Z), atol=1e-3)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_shift_leaves_densities_alone_and_a_seed_the_numbers(covariance):
    found, again, shifted = (fit_mixture(z, 3, covariance) for z in (Z, Z, Z + 1000))
    np.testing.assert_array_equal(found.log_density(Z), again.log_density(Z))
    np.testing.assert_allclose(found.log_density(Z), shifted.log_density(Z + 1000), atol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_component_of_one_point_and_more_features_than_points_are_safe(covariance):
    outlier = np.concatenate([Z, np.full((1, 5), 500.0)])
    assert fit_mixture(outlier, 4, covariance).weights.min() == pytest.approx(1 / len(outlier), rel=1e-3)
    wide = RNG.normal(size=(40, 100))
    found = fit_mixture(wide, 3, covariance)
    assert found.log_density(wide).mean() == pytest.approx(found.log_likelihood, rel=1e-4)
    assert found.log_density(wide + 5).max() < found.log_likelihood
