"""Gaussian mixtures against scikit-learn, and against the density formula."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from oodlib.clustering import gaussians, mixture
from oodlib.clustering.kmeans import kmeans
from oodlib.clustering.mixture import COVARIANCES, fit_mixture

RNG = np.random.default_rng(0)
Z = np.concatenate([RNG.normal(size=(300, 5)) @ RNG.normal(size=(5, 5)) + 8 * RNG.normal(size=5) for _ in range(3)])


def blobs(spread: float, d: int = 150, n: int = 700) -> np.ndarray:
    """Three clusters of different shape, the first nearly singular; with spread 1 they are far from each other."""
    rng = np.random.default_rng(1)
    shapes = rng.normal(size=(d, d)) / np.sqrt(d), np.diag(rng.uniform(0.5, 1.5, size=d)), np.eye(d)
    parts = [rng.normal(size=(n, d)) @ shape + 3 * spread * rng.normal(size=d) for shape in shapes]
    return np.concatenate(parts).astype(np.float32)


def plain_em(z: np.ndarray, n_components: int) -> tuple[float, int, np.ndarray]:
    """Run EM in float64 and in the coordinates of z; return the mean log density, the iterations and covariances."""
    labels = kmeans(z, n_components, n_init=mixture.N_INIT)[0]
    z, responsibilities, mean_density = z.astype(np.float64), np.eye(n_components)[labels], -np.inf
    n_iterations, change = 0, np.inf
    while change >= 1e-3:
        parts, covariances = [], []
        for r in responsibilities.T:
            mean = r @ z / r.sum()
            covariance = (z - mean).T @ ((z - mean) * r[:, None]) / r.sum()
            covariances.append(covariance + 1e-6 * z.var(axis=0).mean() * np.eye(z.shape[1]))
            parts.append(np.log(r.mean()) + multivariate_normal(mean, covariances[-1]).logpdf(z))
        log_densities = logsumexp(parts, axis=0)
        responsibilities = np.exp(np.transpose(parts) - log_densities[:, None])
        n_iterations, change = n_iterations + 1, abs(log_densities.mean() - mean_density)
        mean_density = log_densities.mean()
    return mean_density, n_iterations, np.stack(covariances)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_likelihood_is_that_of_scikit_learn_whatever_the_shift_and_the_same_for_a_seed(covariance):
    ours, again, shifted = (fit_mixture(z, 3, covariance) for z in (Z, Z, Z + 1000))
    theirs = GaussianMixture(3, covariance_type=covariance, n_init=3, random_state=0).fit(Z)
    assert ours.log_likelihood >= theirs.score(Z) - 1e-3
    assert ours.log_density(Z).mean() == pytest.approx(ours.log_likelihood, abs=1e-2)
    assert ours.bic == pytest.approx(theirs.bic(Z), rel=1e-3)
    np.testing.assert_array_equal(ours.log_density(Z), again.log_density(Z))
    np.testing.assert_allclose(ours.log_density(Z), shifted.log_density(Z + 1000), atol=1e-6)


@pytest.mark.parametrize("z", [Z, blobs(0.1), blobs(1)])
def test_log_joint_is_the_formula_for_every_component(z):
    found = fit_mixture(z, 3, "full")
    parts = [
        np.log(weight) + multivariate_normal(mean, covariance).logpdf(z)
        for weight, mean, covariance in zip(found.weights, found.means, found.covariances, strict=True)
    ]
    np.testing.assert_allclose(found.log_joint(z), np.transpose(parts), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.log_density(z), logsumexp(parts, axis=0), atol=1e-3)


@pytest.mark.parametrize(
    ("z", "left_out"),
    [(blobs(1), 2 / 3), (blobs(1, d=10), 2 / 3), (blobs(0.1), None), (RNG.normal(size=(2000, 10)), 0)],
    ids=["far", "far-narrow", "near", "one"],
)
def test_em_that_leaves_negligible_components_out_is_plain_em(monkeypatch, z, left_out):
    shares, log_joint = [], gaussians.log_joint

    def spy(*args, **options):
        values = log_joint(*args, **options)
        shares.append(np.isneginf(values).mean())
        return values

    monkeypatch.setattr(gaussians, "log_joint", spy)
    found = fit_mixture(z, 3)
    if left_out is not None:
        assert shares == pytest.approx([left_out] * len(shares))
    expected, n_iterations, covariances = plain_em(z, 3)
    assert found.log_likelihood == pytest.approx(expected, rel=1e-8)
    assert len(shares) == n_iterations
    np.testing.assert_allclose(found.covariances, covariances, atol=1e-5)
    monkeypatch.setattr(mixture, "NEGLIGIBLE", np.inf)
    assert fit_mixture(z, 3).log_likelihood == pytest.approx(found.log_likelihood, rel=1e-12)
    assert shares[-1] == 0


def test_only_values_below_the_margin_are_left_out():
    x = blobs(0.1)
    x -= x.mean(axis=0)
    means, covariances = RNG.normal(size=(4, 150)) / 4, np.stack([np.eye(150) * scale for scale in (0.5, 1, 1, 2)])
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    exact = gaussians.log_joint(x, weights, means, covariances, "full")
    below = exact < exact.max(axis=1, keepdims=True) - 20
    assert 0.05 < below.mean() < 0.7
    found = gaussians.log_joint(x, weights, means, covariances, "full", margin=20)
    np.testing.assert_allclose(found, np.where(below, -np.inf, exact), rtol=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_kmeans_of_a_sample_leads_to_the_same_mixture(monkeypatch, covariance):
    z = blobs(1, d=6)
    expected = fit_mixture(z, 3, covariance)
    monkeypatch.setattr(mixture, "SAMPLE", 400)
    assert fit_mixture(z, 3, covariance).log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-3)
    rare = np.concatenate([np.zeros((2000, 5)), np.eye(5)[:3]])  # a sample has fewer than 4 distinct points
    np.testing.assert_allclose(np.sort(fit_mixture(rare, 4, covariance).weights)[:3], 1 / len(rare), rtol=1e-3)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown covariance 'round'; known: full, tied, diag"):
        fit_mixture(Z, 3, "round")
    with pytest.raises(ValueError, match="max_iterations must be at least 1, got 0"):
        fit_mixture(Z, 3, max_iterations=0)
    with pytest.raises(ValueError, match="n_clusters must be a positive whole number, got 2.5"):
        fit_mixture(Z, 2.5)
    with pytest.raises(ValueError, match="width of the mixture, 5, got 4"):
        fit_mixture(Z, 3).log_density(Z[:, :4])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_component_of_one_point_and_more_features_than_points_are_safe(covariance):
    outlier = np.concatenate([Z, np.full((1, 5), 500.0)])
    assert fit_mixture(outlier, 4, covariance).weights.min() == pytest.approx(1 / len(outlier), rel=1e-3)
    wide = RNG.normal(size=(40, 100))
    found = fit_mixture(wide, 3, covariance)
    assert found.log_density(wide).mean() == pytest.approx(found.log_likelihood, rel=1e-4)
    assert found.log_density(wide + 5).max() < found.log_likelihood
