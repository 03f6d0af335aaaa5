"""Shape of the classes in embeddings: variance against distance, neural collapse, angles, dimensions in use.

z is (n, d), y (n,) int: labels >= 0, -1 means unknown. Every measure is a closed form of class means and of the
embeddings around them, in float64. Angles are between directions from the origin, in degrees; a row of zeros stays zero
and so stands at 90° from everything. A measure that compares classes is nan for a single class. Embeddings and labels
of another shape, and NaN, raise ValueError.
"""

import numpy as np

from oodlib.arrays import check_labels, check_rows, to_unit_norm
from oodlib.clustering.moments import cluster_means

PAIRS = 2**20  # in one block of a product over all pairs


def cdnv(z, y) -> float:
    """Return the class-distance normalised variance, the mean over class pairs of (Var_i + Var_j) / (2 |μ_i - μ_j|²).

    At least 0, smaller is better, inf where two class means coincide. Galanti et al. 2022.
    """
    z, codes, means = _with_class_means(z, y)
    variances = np.bincount(codes, ((z - means[codes]) ** 2).sum(axis=1)) / np.bincount(codes)  # (C,)
    if len(means) == 1:
        return np.nan
    ratios = []
    for i in range(len(means) - 1):
        squared = ((means[i + 1 :] - means[i]) ** 2).sum(axis=1)  # (C - 1 - i,) differences, so that equal is exactly 0
        sums = variances[i] + variances[i + 1 :]
        ratios.append(np.divide(sums, 2 * squared, out=np.full(len(squared), np.inf), where=squared > 0))
    return float(np.concatenate(ratios).mean())


def neural_collapse(z, y) -> dict[str, float]:
    """Return nc1, nc2_norms and nc2_angles, each at least 0 and 0 at full collapse (Papyan et al. 2020).

    nc1 = tr(Σ_W Σ_B⁺) / C with Σ_W the mean over samples, Σ_B the mean over classes and μ_G the
    mean of the class means; directions in which the means spread by less than 1e-6 of their largest spread are left
    out, inf if the means coincide. nc2_norms = sd / mean of |μ_c - μ_G|; nc2_angles = mean over class pairs of
    |cos(μ_c - μ_G, μ_c' - μ_G) + 1 / (C - 1)|, nan where a class mean lies on μ_G.
    """
    z, codes, means = _with_class_means(z, y)
    n_classes = len(means)
    if n_classes == 1:
        return dict.fromkeys(("nc1", "nc2_norms", "nc2_angles"), np.nan)
    offsets = means - means.mean(axis=0)  # (C, d)
    norms = np.linalg.norm(offsets, axis=1)
    if norms.max() == 0:
        return {"nc1": np.inf, "nc2_norms": np.nan, "nc2_angles": np.nan}
    # Σ_B = V S² Vᵀ / C has rank C - 1 at most, so tr(Σ_W Σ_B⁺) / C is a mean of squares and no d × d matrix is inverted
    _, s, vt = np.linalg.svd(offsets, full_matrices=False)
    kept = s[: n_classes - 1] > 1e-6 * s[0]
    whitened = (z - means[codes]) @ (vt[: n_classes - 1][kept].T / s[: n_classes - 1][kept])  # (n, r)
    directions = offsets / np.where(norms > 1e-7 * norms.max(), norms, np.nan)[:, None]
    cosines = (directions @ directions.T)[np.triu_indices(n_classes, k=1)]
    return {
        "nc1": float((whitened**2).sum() / len(z)),
        "nc2_norms": float(norms.std() / norms.mean()),
        "nc2_angles": float(np.abs(cosines + 1 / (n_classes - 1)).mean()),
    }


def dispersion(z, y) -> float:
    """Return the mean angle between two class means of the unit-norm embeddings, in degrees.

    In [0, 180], larger is better. Ming et al. 2023; the angles, not the cosines, are averaged.
    """
    directions, _, _ = _class_directions(z, y)
    pairs = np.triu_indices(len(directions), k=1)
    return float(_degrees((directions @ directions.T)[pairs]).mean()) if len(directions) > 1 else np.nan


def compactness(z, y) -> float:
    """Return the mean angle between a sample and its class mean of the unit-norm embeddings, in degrees.

    In [0, 180], smaller is better. Ming et al. 2023; the angles, not the cosines, are averaged.
    """
    directions, z, codes = _class_directions(z, y)
    return float(_degrees((z * directions[codes]).sum(axis=1)).mean())


def alignment(z_a, z_b) -> float:
    """Return the mean squared distance between the two views of an image, at unit norm.

    z_a and z_b (n, d), row i the same image. In [0, 4], smaller is better. Wang and Isola 2020.
    """
    z_a, z_b = _as_float64("z_a", z_a), _as_float64("z_b", z_b)
    if z_a.shape != z_b.shape:
        raise ValueError(f"z_a and z_b must have one shape, row i the same image, got {z_a.shape} and {z_b.shape}")
    return float(((to_unit_norm(z_a) - to_unit_norm(z_b)) ** 2).sum(axis=1).mean())


def uniformity(z) -> float:
    """Return log of the mean of exp(-2 |x - x'|²) over pairs of distinct rows, at unit norm.

    n >= 2. In [-8, 0], smaller is better: 0 when all embeddings are one direction. Wang and Isola 2020.
    """
    z = to_unit_norm(_as_float64("z", z))
    n = len(z)
    if n < 2:
        raise ValueError(f"uniformity needs at least 2 rows, got {n}")
    total = 0.0
    rows = max(1, PAIRS // n)
    for start in range(0, n, rows):
        kernel = np.exp(4 * (z[start : start + rows] @ z[start:].T - 1))  # (rows, n - start), |x - x'|² = 2 - 2 x·x'
        total += np.triu(kernel, k=1).sum()
    return float(np.log(total / (n * (n - 1) / 2)))


def rankme(z) -> float:
    """Return the effective rank exp(-Σ p log p) with p = σ / Σσ + 1e-7, σ the singular values of z, not centred.

    From 1 to min(n, d), larger is better; 0 if all of z is zero. Garrido et al. 2023.
    """
    sigma = np.linalg.svd(_as_float64("z", z), compute_uv=False)
    if sigma[0] == 0:
        return 0.0
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def _with_class_means(z, y):
    """Return z (n, d) as float64, the class index (n,) of each row and the class means (C, d)."""
    z = _as_float64("z", z)
    labels, codes = check_labels("y", y, len(z))
    return z, codes, cluster_means(z, codes, len(labels))


def _class_directions(z, y):
    """Return the class means at unit length (C, d), z at unit length (n, d) and the class index (n,) of each row."""
    z = to_unit_norm(_as_float64("z", z))
    labels, codes = check_labels("y", y, len(z))
    return to_unit_norm(cluster_means(z, codes, len(labels))), z, codes


def _degrees(cosines):
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def _as_float64(name: str, z) -> np.ndarray:
    return check_rows(name, z).astype(np.float64, copy=False)
