"""Scores of logits: normality (n,) float64 of the logits (n, C) of a classifier; higher is more normal."""

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

from oodlib.arrays import as_array

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
