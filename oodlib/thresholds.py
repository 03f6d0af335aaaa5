"""Thresholds: scores of in-distribution images in; the score below which a new image is rejected out.

All rest on one rule. With m scores of reference images and j = ⌊α (m + 1)⌋, the threshold is the j-th smallest: an
image that is exchangeable with the reference falls below it with probability at most α (Vovk et al. 2005). The promise
holds for held-out reference images ("conformal"); on the training images themselves ("global", "per-cluster") the
scores are too good, and more is rejected than promised.
"""

import numpy as np

THRESHOLDS = ("global", "per-cluster", "conformal")


def conformal_threshold(scores: np.ndarray, alpha: float) -> float:
    """Return the largest score that rejects an exchangeable image with probability at most alpha.

    scores (m,) of reference images, higher is more normal; an image is rejected when its score is below the result.
    The result is -inf, which rejects nothing, when m < 1/alpha - 1.
    """
    j = int(np.floor(alpha * (len(scores) + 1) + 1e-9))  # 0.29 * 100 is a hair below 29
    return float(np.partition(scores, j - 1)[j - 1]) if j else float("-inf")


def conformal_p_values(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the p-value (n,) of each score (n,) in (0, 1]: small means unlike the reference scores (m,).

    p = (1 + number of reference scores at most as high) / (m + 1); p <= alpha exactly where the score is below
    `conformal_threshold(reference, alpha)`.
    """
    rank = np.searchsorted(np.sort(reference), scores, side="right")
    return (1 + rank) / (len(reference) + 1)


def per_cluster_thresholds(scores: np.ndarray, nearest: np.ndarray, n_clusters: int, alpha: float) -> np.ndarray:
    """Return one threshold (K,) a cluster, from the scores (m,) of the images nearest to it.

    A cluster that is nearest to too few images for a threshold of its own takes the one of all images.
    """
    overall = conformal_threshold(scores, alpha)
    own = [
        conformal_threshold(scores[nearest == k], alpha) if (nearest == k).any() else -np.inf for k in range(n_clusters)
    ]
    return np.where(np.isfinite(own), own, overall)
