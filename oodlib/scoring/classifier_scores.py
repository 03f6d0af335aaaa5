"""Scores of a classifier: normality (n,) float64 of embeddings z (n, d), by the linear classifier behind them.

Higher is more normal. Embeddings are arrays, read in blocks, or tensors. The classifier's weight (C, d) and bias (C,)
are arrays or tensors, such as the parameters of a layer; the logits of z are z weightᵀ + bias. What a score needs of
the training embeddings besides is found once, by the functions that EMBEDDING_SCORES names with it. Shapes that do not
fit each other, no rows, NaN and infinity raise ValueError.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

from oodlib.arrays import as_array, check_rows, read_blocks, sample_rows, to_unit_norm, working_dtype
from oodlib.clustering.moments import mean_of

GEN_GAMMA, GEN_LARGEST = 0.1, 100  # the power, and how many of the largest probabilities take part


def msp(logits: np.ndarray) -> np.ndarray:
    """Return the maximum softmax probability (n,) of logits (n, C), in (0, 1] (Hendrycks & Gimpel 2017)."""
    return softmax(_check_logits(logits), axis=1).max(axis=1)


def max_logit(logits: np.ndarray) -> np.ndarray:
    """Return the largest logit (n,) of logits (n, C) (Hendrycks et al. 2022)."""
    return _check_logits(logits).max(axis=1)


def energy(logits: np.ndarray) -> np.ndarray:
    """Return the negative free energy (n,), logsumexp of logits (n, C) (Liu et al. 2020); larger is more normal."""
    return logsumexp(_check_logits(logits), axis=1)


def gen(logits: np.ndarray) -> np.ndarray:
    """Return minus the generalised entropy (n,) of logits (n, C), Σ p^γ (1 - p)^γ over their softmax p.

    Larger is more normal. γ is GEN_GAMMA; of more classes than GEN_LARGEST the likeliest take part (Liu et al. 2023).
    """
    log_p = log_softmax(_check_logits(logits), axis=1)
    largest = log_p == log_p.max(axis=1, keepdims=True)
    largest &= largest.cumsum(axis=1) == 1  # of equal ones the first
    smaller = np.where(largest, -np.inf, log_p)
    # of the largest, 1 - p is what the others have together: 1 minus a p near 1 would have no digits left
    log_others = np.where(largest, logsumexp(smaller, axis=1, keepdims=True), np.log1p(-np.exp(smaller)))
    terms = np.exp(GEN_GAMMA * (log_p + log_others))
    if terms.shape[1] > GEN_LARGEST:
        terms = np.take_along_axis(terms, np.argpartition(log_p, -GEN_LARGEST, axis=1)[:, -GEN_LARGEST:], axis=1)
    return -terms.sum(axis=1)


def _check_logits(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(as_array(logits), dtype=np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(f"logits must be finite and (n, C), got shape {logits.shape}")
    return logits


LOGIT_SCORES = {"msp": msp, "maxlogit": max_logit, "energy": energy, "gen": gen}


NCI_ALPHA = 1e-4  # the weight of the norm
NNGUIDE_NEIGHBORS = 10
STEEPEST = 99  # the largest percentile of ASH and SCALE: beyond, a factor may leave the range of float64


def check_classifier(weight: np.ndarray, bias: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (C, d) and bias (C,), arrays or tensors, as float64 arrays of their own.

    Raises ValueError where they do not fit each other and d, and for NaN and infinity.
    """
    weight, bias = (np.array(as_array(part), dtype=np.float64) for part in (weight, bias))
    if weight.ndim != 2 or weight.shape[1] != d or bias.shape != weight.shape[:1]:
        raise ValueError(f"weight must be (C, {d}) and bias (C,), got {weight.shape} and {bias.shape}")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError("weight and bias must be finite")
    return weight, bias


def logits_of(z: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the logits (n, C) float64 of embeddings z (n, d)."""
    return z @ weight.T + bias


def fdbd(z: np.ndarray, weight: np.ndarray, bias: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the fast decision boundary score (n,): how far z is from other classes (Liu and Qin 2024).

    The mean distance to the boundaries between the predicted class and each other class, over the distance of z to
    the training mean (d,). An embedding at the mean scores infinity. Raises ValueError for less than two classes.
    """
    z, weight, bias = _check(z, weight, bias)
    mean = _check_mean(mean, z.shape[1])
    if len(weight) < 2:
        raise ValueError("fdbd needs a classifier of at least two classes")
    squares = (weight**2).sum(axis=1)
    normals = np.sqrt(np.maximum(squares[:, None] + squares - 2 * weight @ weight.T, 0))  # (C, C) |w_i - w_j|
    scores = np.empty(len(z))
    for part, block in read_blocks(z):
        logits = logits_of(block, weight, bias)
        gaps = logits.max(axis=1, keepdims=True) - logits  # (b, C), 0 for the predicted class
        normal = normals[logits.argmax(axis=1)]  # 0 to itself, and where classes differ by their biases alone
        boundary = np.divide(gaps, normal, out=np.zeros_like(gaps), where=normal > 0).sum(axis=1)
        radius = np.linalg.norm(block - mean, axis=1) * (len(weight) - 1)
        scores[part] = np.divide(boundary, radius, out=np.full(len(block), np.inf), where=radius > 0)
    return scores


def nci(z: np.ndarray, weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, alpha: float = NCI_ALPHA) -> np.ndarray:
    """Return the neural collapse score (n,): how far z points along the weight of its class (Liu and Qin 2025, NCI).

    w · (z - μ) / |z - μ| + α |z|₁, w the weight of the predicted class, μ the training mean (d,), |·|₁ the sum of
    absolute values. OpenOOD, whose code for it is the authors', tunes α with OOD images; NCI_ALPHA needs none. An
    embedding at the mean has no direction: its first term is 0.
    """
    z, weight, bias = _check(z, weight, bias)
    mean = _check_mean(mean, z.shape[1])
    scores = np.empty(len(z))
    for part, block in read_blocks(z):
        own = weight[logits_of(block, weight, bias).argmax(axis=1)]  # (b, d)
        centred = block - mean  # float64
        along, radius = np.einsum("nd,nd->n", own, centred), np.linalg.norm(centred, axis=1)
        cosine = np.divide(along, radius, out=np.zeros(len(block)), where=radius > 0)  # times |w|
        scores[part] = cosine + alpha * np.abs(block).sum(axis=1, dtype=np.float64)
    return scores


def nnguide(
    z: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    train: np.ndarray,
    n_neighbors: int = NNGUIDE_NEIGHBORS,
    own: bool = False,
) -> np.ndarray:
    """Return the guided energy (n,): energy, times that of similar training embeddings (Park et al. 2023, NNGuide).

    The energy E(z), logsumexp of the logits, times the guidance: the mean of the n_neighbors (10 in the authors' code)
    largest E(t) cos(z, t) over the training embeddings t. The paper takes a sample of these; here all of train (m, d)
    take part. It is made for energies above 0: below, the guidance comes from what is unlike z. A zero row has the
    cosine 0 with all. own: z are rows of train, and none counts among its own neighbours. Raises ValueError unless
    1 <= n_neighbors <= m (m - 1 of its own).
    """
    import torch

    z, weight, bias = _check(z, weight, bias)
    train = check_rows("train", train)
    if train.shape[1] != z.shape[1]:
        raise ValueError(f"train must be (m, {z.shape[1]}) as z is, got shape {train.shape}")
    if not 1 <= n_neighbors <= len(train) - own:
        raise ValueError(f"n_neighbors must be between 1 and {len(train) - own}, got {n_neighbors}")
    k, scores = n_neighbors + own, np.empty(len(z))
    for part, block in read_blocks(z):
        unit, best = to_unit_norm(block), torch.empty(len(block), 0)
        for _, others in read_blocks(train):
            scaled = to_unit_norm(others) * _energy_of(others, weight, bias)[:, None].astype(others.dtype)
            products = torch.from_numpy(unit @ scaled.T)
            best = torch.cat([best, products.topk(min(k, len(others))).values], dim=1)
            best = best.topk(min(k, best.shape[1])).values  # (b, k), the largest first
        energies, best = _energy_of(block, weight, bias), best.double().numpy()
        total = best.sum(axis=1)
        if own:  # of k + 1 the row itself is left out, or the last where it is not among them
            total -= np.maximum(best[:, -1], energies * (unit**2).sum(axis=1))
        scores[part] = energies * total / n_neighbors
    return scores


def activation_limit(train: np.ndarray, percentile: float = 90) -> float:
    """Return the value that a percentage of all numbers in the training embeddings (m, d) do not exceed, for `react`.

    The 90th percentile is the paper's. Of many rows a seeded sample stands for all, as `oodlib.arrays.sample_rows`
    draws it. Raises ValueError for a percentile outside 0 to 100.
    """
    train = check_rows("train", train)
    _check_percentile(percentile, 100)
    rows = sample_rows(len(train))
    values = np.empty((len(rows), train.shape[1]), dtype=working_dtype(train))
    for part, block in read_blocks(train, rows):
        values[part] = block
    return float(np.percentile(values, percentile))


def react(z: np.ndarray, weight: np.ndarray, bias: np.ndarray, limit: float) -> np.ndarray:
    """Return the energy (n,) of rectified embeddings (Sun et al. 2021, ReAct).

    logsumexp of the logits of min(z, limit); the paper's limit is that of `activation_limit`. Values below 0 stay what
    they are.
    """
    limit = float(limit)
    if not np.isfinite(limit):
        raise ValueError(f"limit must be finite, got {limit}")
    return _shaped_energy(z, weight, bias, lambda block: np.minimum(block, limit))


def ash(z: np.ndarray, weight: np.ndarray, bias: np.ndarray, percentile: float = 90) -> np.ndarray:
    """Return the energy (n,) of pruned and sharpened embeddings (Djurisic et al. 2023, ASH-S).

    In each row the percentage of smallest values becomes 0, and the others are multiplied by exp(S / T): S is the sum
    of all of the row, T that of the largest that are kept. Then logsumexp of the logits. 90 is what the authors'
    settings for CIFAR and ImageNet say, and OpenOOD's default. One value at least is kept, and all that equal the
    smallest kept one. The method is made for values above 0, as they are behind a ReLU: of others S and T take the
    positive parts, and the smallest are pruned first. A row without positive values has the factor e, that of S = T.
    Raises ValueError for a percentile outside 0 to STEEPEST.
    """
    _check_percentile(percentile, STEEPEST)

    def shape(block: np.ndarray) -> np.ndarray:
        top = _largest(block, percentile)
        return np.where(block >= top[:, :1], block, 0) * _factor(block, top)

    return _shaped_energy(z, weight, bias, shape)


def scale(z: np.ndarray, weight: np.ndarray, bias: np.ndarray, percentile: float = 85) -> np.ndarray:
    """Return the energy (n,) of scaled embeddings (Xu et al. 2024, SCALE).

    As `ash`, with the same factor and errors, but nothing is pruned: the whole row is multiplied by exp(S / T). 85 is
    the percentile in the authors' settings and in OpenOOD's.
    """
    _check_percentile(percentile, STEEPEST)
    return _shaped_energy(z, weight, bias, lambda block: block * _factor(block, _largest(block, percentile)))


def _largest(block: np.ndarray, percentile: float) -> np.ndarray:
    """Return the values (b, k) of each row of a block (b, d) that are left above a percentile, the smallest first."""
    d = block.shape[1]
    pruned = min(round(d * percentile / 100), d - 1)
    return np.partition(block, pruned, axis=1)[:, pruned:]


def _factor(block: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Return exp(S / T) (b, 1): S and T are the sums of the positive values of a block (b, d) and of its top (b, k)."""
    all_, kept = (np.maximum(a, 0).sum(axis=1, keepdims=True, dtype=np.float64) for a in (block, top))
    return np.exp(np.divide(all_, kept, out=np.ones_like(all_), where=kept > 0))


def _shaped_energy(
    z: np.ndarray, weight: np.ndarray, bias: np.ndarray, shape: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the energy (n,) of embeddings z (n, d), each block of them in another shape."""
    z, weight, bias = _check(z, weight, bias)
    scores = np.empty(len(z))
    for part, block in read_blocks(z):
        scores[part] = _energy_of(shape(block), weight, bias)
    return scores


def _energy_of(block: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return logsumexp(logits_of(block, weight, bias), axis=1)


def _check(z, weight, bias) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z = check_rows("z", z)
    return z, *check_classifier(weight, bias, z.shape[1])


def _check_mean(mean: np.ndarray, d: int) -> np.ndarray:
    mean = np.asarray(as_array(mean), dtype=np.float64)
    if mean.shape != (d,) or not np.isfinite(mean).all():
        raise ValueError(f"mean must be finite and ({d},), got shape {mean.shape}")
    return mean


def _check_percentile(percentile: float, largest: float) -> None:
    if not 0 <= percentile <= largest:
        raise ValueError(f"percentile must be between 0 and {largest}, got {percentile}")


EMBEDDING_SCORES = {  # function of z, weight, bias and of what other functions give of the training embeddings
    "fdbd": (fdbd, [mean_of]),
    "nci": (nci, [mean_of]),
    "react": (react, [activation_limit]),
    "ash": (ash, []),
    "scale": (scale, []),
}
