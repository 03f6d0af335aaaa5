"""Thresholds and p-values: below which score an image is rejected, and how often that is a false alarm.

All rest on one rule. With m scores of reference images, the p-value of a new score is (1 + number of reference scores
at most as high) / (m + 1), and an image is rejected where p <= alpha: one that is exchangeable with the reference is
rejected with probability at most alpha (Vovk et al. 2005). Against the reference images of its own cluster, the promise
holds for every cluster (Mondrian). It holds for held-out reference images ("conformal", "conformal-cluster"); on the
training images themselves ("global", "per-cluster") the scores are too good, and more is rejected than promised.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from oodlib.arrays import check_scores

N_SPLITS = 200  # of held-out images


@dataclass(frozen=True)
class Threshold:
    """A threshold: what it is set from, and how.

    `set(scores, nearest, n_clusters, alpha)` returns it, one number or one a cluster, (K,), from the scores (m,) of the
    reference images and the cluster (m,) that each is nearest to. `held_out`: the reference images have been held out,
    else they are the training images. `by_cluster`: it is one a cluster, and p-values are within the cluster.
    """

    set: Callable[[np.ndarray, np.ndarray, int, float], float | np.ndarray]
    held_out: bool = False
    by_cluster: bool = False


def conformal_threshold(scores: np.ndarray, alpha: float) -> float:
    """Return the largest score that rejects an exchangeable image with probability at most alpha.

    scores (m,) of reference images, higher is more normal; an image is rejected when its score is below the result.
    The result is -inf, which rejects nothing, when m < 1/alpha - 1.
    """
    j = _rank(alpha, len(scores))
    return float(np.partition(scores, j - 1)[j - 1]) if j else float("-inf")


def per_cluster_thresholds(
    scores: np.ndarray, nearest: np.ndarray, n_clusters: int, alpha: float, borrow: bool = True
) -> np.ndarray:
    """Return one threshold (K,) a cluster, from the scores (m,) of the images nearest to it (m,).

    A cluster that is nearest to too few images for a threshold of its own takes the one of all images, which promises
    nothing for the cluster; without `borrow` it takes -inf, which keeps the promise and rejects nothing.
    """
    overall = conformal_threshold(scores, alpha) if borrow else -np.inf
    own = np.array([conformal_threshold(scores[nearest == k], alpha) for k in range(n_clusters)])
    return np.where(np.isfinite(own), own, overall)


def conformal_p_values(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the p-value (n,) of each score (n,) in (0, 1]: small means unlike the reference scores (m,).

    p <= alpha exactly where the score is below `conformal_threshold(reference, alpha)`.
    """
    rank = np.searchsorted(np.sort(reference), scores, side="right")
    return (1 + rank) / (len(reference) + 1)


def fisher(scores: Sequence[np.ndarray], references: Sequence[np.ndarray], held_out: bool = False) -> np.ndarray:
    """Return the combined score (n,) of several detectors, Σ log p over their conformal p-values; higher: more normal.

    scores: k arrays (n,), one a detector, of the same images; references: k arrays (m,), each detector's scores of the
    calibration images. With `held_out` the scores are those of the calibration images themselves, each of which is held
    against the others. Fisher 1932; Haroush et al. 2022.
    """
    total = np.zeros(len(scores[0]))
    for own, reference in zip(scores, references, strict=True):
        m = len(reference)
        p_values = conformal_p_values(own, reference)
        total += np.log(p_values - (1 - p_values) / m if held_out else p_values)  # rank / m, from (1 + rank) / (m + 1)
    return total


def cluster_p_values(
    scores: np.ndarray, nearest: np.ndarray, reference: np.ndarray, reference_nearest: np.ndarray
) -> np.ndarray:
    """Return the p-value (n,) of each score (n,) against the reference images of its own cluster.

    nearest (n,) and reference_nearest (m,) int are the clusters of the scores and of the reference scores (m,). In a
    cluster that has no reference image every p-value is 1.
    """
    p_values = np.ones(len(scores))
    for k in np.unique(nearest):
        members = nearest == k
        p_values[members] = conformal_p_values(scores[members], reference[reference_nearest == k])
    return p_values


def images_needed(alpha: float) -> int:
    """Return the least number of reference images with which anything is rejected at a false-alarm rate of alpha."""
    return math.ceil((1 - 1e-9) / alpha - 1)  # rounded as in `_rank`


def warn_of_too_few(sizes: np.ndarray, thresholds: float | np.ndarray, alpha: float) -> None:
    """Warn that a threshold is -inf for want of calibration images, of which there are sizes (1,) or, by cluster, (K,).

    With -inf nothing is rejected; what is finite, by whatever rule, needs no warning.
    """
    least = images_needed(alpha)
    few = sizes[(sizes < least) & np.isneginf(thresholds)]
    if len(few) and len(sizes) == 1:
        said = f"nothing is rejected: there are {few[0]} calibration images, and alpha = {alpha:g} takes {least}"
        warnings.warn(said, stacklevel=3)
    elif len(few):
        which = f"{len(few)} of {len(sizes)} clusters"
        has = f"there are {sizes.sum()} calibration images, and alpha = {alpha:g} takes {least} in each cluster"
        warnings.warn(f"nothing is rejected in {which}: {has}", stacklevel=3)


def realised_rates(
    scores: np.ndarray, n_reference: int, alphas: Sequence[float], n_splits: int = N_SPLITS, seed: int = 0
) -> np.ndarray:
    """Return the false-alarm rates (n_splits, len(alphas)) that conformal p-values reach on held-out ID images.

    Each split draws n_reference of the scores (n,) of ID images as reference; the rate is the share of the others with
    p <= alpha. Raises ValueError unless 1 <= n_reference < n.
    """
    rates = []
    for old, new in _splits(scores, n_reference, n_splits, seed):
        p_values = conformal_p_values(scores[new], scores[old])
        rates.append((p_values[:, None] <= np.asarray(alphas) + 1e-12).mean(axis=0))
    return np.array(rates)


def realised_by_cluster(
    scores: np.ndarray,
    nearest: np.ndarray,
    n_reference: int,
    alphas: Sequence[float],
    n_splits: int = N_SPLITS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what conformal p-values within clusters reach on held-out ID images, scores (n,) nearest to (n,) int.

    Three arrays, of splits as in `realised_rates`: the rates over all clusters (len(alphas), n_splits); as many that
    the theory draws for splits with the same numbers of reference and new images in each cluster, where alarms are
    beta-binomial as `rate_band` says; the rate of each cluster over all splits (len(alphas), K), which the promise is
    about.
    """
    rng = np.random.default_rng([seed, 1])
    alphas = np.asarray(alphas)[:, None]  # (A, 1)
    n_clusters = int(nearest.max()) + 1
    alarms, expected, total = [], [], np.zeros(n_clusters)
    for old, new in _splits(scores, n_reference, n_splits, seed):
        p_values = cluster_p_values(scores[new], nearest[new], scores[old], nearest[old])
        hits = p_values <= alphas + 1e-12  # (A, n')
        alarms.append(np.stack([np.bincount(nearest[new], weights=row, minlength=n_clusters) for row in hits]))
        m, n = (np.bincount(nearest[part], minlength=n_clusters) for part in (old, new))  # (K,)
        ranks = np.floor(alphas * (m + 1) + 1e-9)  # (A, K)
        chances = np.where(ranks > 0, rng.beta(np.maximum(ranks, 1), np.maximum(m + 1 - ranks, 1)), 0)
        expected.append(rng.binomial(n, chances).sum(axis=1) / n.sum())
        total += n
    alarms = np.array(alarms)  # (splits, A, K)
    by_cluster = alarms.sum(axis=0) / np.maximum(total, 1)
    return alarms.sum(axis=2).T / (len(scores) - n_reference), np.array(expected).T, by_cluster


def rate_band(alpha: float, n_reference: int, n_new: int, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high), where the false-alarm rate on n_new images lies with probability of at least `level`.

    Given the reference images the number of alarms is binomial; the reference images being random too, it is
    beta-binomial, j = ⌊α (m + 1)⌋ of m + 1 (scores without ties).
    """
    from scipy.stats import betabinom

    j = _rank(alpha, n_reference)
    if j == 0:
        return 0.0, 0.0
    alarms = betabinom(n_new, j, n_reference + 1 - j)
    return float(alarms.ppf((1 - level) / 2)) / n_new, float(alarms.ppf((1 + level) / 2)) / n_new


def check_thresholds(names: Sequence[str]) -> None:
    """Raise ValueError for an unknown threshold, and for some without "global", by which detectors are compared."""
    if unknown := [name for name in names if name not in THRESHOLDS]:
        raise ValueError(f"unknown threshold {unknown[0]!r}; known: {', '.join(THRESHOLDS)}")
    if names and "global" not in names:
        raise ValueError(f"thresholds must have 'global' among them, got {', '.join(names)}")


def _splits(scores: np.ndarray, n_reference: int, n_splits: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield row numbers of reference and of new scores, drawn anew for each split."""
    n = len(check_scores("scores", scores))
    if not 1 <= n_reference < n:
        raise ValueError(f"n_reference must be between 1 and n - 1 = {n - 1}, got {n_reference}")
    rng = np.random.default_rng(seed)
    for _ in range(n_splits):
        order = rng.permutation(n)
        yield order[:n_reference], order[n_reference:]


def _rank(alpha: float, m: int) -> int:
    """Return j = ⌊α (m + 1)⌋, which of the m smallest reference scores is the threshold; 0 where none is."""
    return int(np.floor(alpha * (m + 1) + 1e-9))  # 0.29 * 100 is a hair below 29


def _of_all(scores: np.ndarray, nearest: np.ndarray, n_clusters: int, alpha: float) -> float:
    return conformal_threshold(scores, alpha)


THRESHOLDS = {
    "global": Threshold(_of_all),
    "conformal": Threshold(_of_all, held_out=True),
    "per-cluster": Threshold(per_cluster_thresholds, by_cluster=True),
    "conformal-cluster": Threshold(partial(per_cluster_thresholds, borrow=False), held_out=True, by_cluster=True),
}
