"""Losses of embeddings: SupCon, SimCLR's NT-Xent, LogitNorm and the two parts of CIDER, each a differentiable scalar.

Pure functions, no state. A contrastive batch is two views of the same n images, stacked: z = [a; b], (2n, d), and
`y` repeats the n labels twice. Embeddings are brought to unit norm here; a row of zeros has no direction: it is at a
right angle to everything and gets no gradient. Logits are formed in at least float32. Cross-entropy is torch's.
"""

import math

import torch
import torch.nn.functional as F


def _contrastive_loss(z: torch.Tensor, positives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean over anchors of minus the mean log-probability of their positives (Khosla et al. 2020, L_out).

    `positives` (m, m) bool. Anchors without a positive are left out; a batch without any has loss 0.
    """
    z = _unit(z)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = _cosines(z, z, temperature).masked_fill(itself, float("-inf"))  # (m, m)
    log_prob = logits - logits.logsumexp(dim=1, keepdim=True)
    positives = positives & ~itself
    n_positives = positives.sum(dim=1)  # (m,)
    # masked before the sum: the diagonal is -inf, and -inf times 0 would be NaN
    per_anchor = -log_prob.masked_fill(~positives, 0).sum(dim=1) / n_positives.clamp(min=1)
    return per_anchor.sum() / (n_positives > 0).sum().clamp(min=1)


def supcon_loss(z: torch.Tensor, y: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Return the supervised contrastive loss L_out, a scalar ≥ 0 (Khosla et al. 2020, eq. 2).

    z (m, d) floats, the views of all images stacked; y (m,) int labels, repeated for every view. The positives of an
    anchor are all other rows with its label. No hidden factor τ/0.07; anchors without a positive are left out of the
    mean. Raises ValueError when shapes do not fit or the temperature is not positive.
    """
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise ValueError(f"supcon_loss needs z (m, d) and y (m,), got {tuple(z.shape)} and {tuple(y.shape)}")
    return _contrastive_loss(z, y[:, None] == y[None, :], temperature)


def nt_xent_loss(z: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    """Return SimCLR's normalised temperature-scaled cross-entropy, a scalar ≥ 0 (Chen et al. 2020, eq. 1).

    z (2n, d) floats: n first views, then the n second views in the same order. The only positive of a row is the
    other view of its image. Raises ValueError when the number of rows is odd or the temperature is not positive.
    """
    if z.ndim != 2 or len(z) % 2:
        raise ValueError(f"nt_xent_loss needs z (2n, d), two views of n images, got {tuple(z.shape)}")
    image = torch.arange(len(z) // 2, device=z.device).repeat(2)  # (2n,)
    return _contrastive_loss(z, image[:, None] == image[None, :], temperature)


def logitnorm_loss(
    logits: torch.Tensor, y: torch.Tensor, temperature: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the cross-entropy of logits at unit norm over a temperature, a scalar ≥ 0 (Wei et al. 2022, eq. 6).

    logits (m, C) floats, y (m,) int labels. The network can then show how sure it is by the direction of its logits
    alone. Raises ValueError when the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return F.cross_entropy(_unit(logits) / temperature, y, label_smoothing=label_smoothing)


def update_prototypes(prototypes: torch.Tensor, z: torch.Tensor, y: torch.Tensor, decay: float) -> torch.Tensor:
    """Return the prototypes (C, d), each moved towards the embeddings of its class (Ming et al. 2023, eq. 6).

    prototypes (C, d) of unit norm, zero for a class that was never seen; z (m, d), y (m,) int labels below C; decay in
    [0, 1). One after another, each embedding at unit norm draws its prototype: μ ← decay · μ + (1 - decay) · z,
    at unit norm; where the sum is zero, μ stays. Gradients flow to z. Raises ValueError when shapes do not fit.
    """
    _check_shapes("update_prototypes", z, y, prototypes)
    z = _unit(z)
    order = torch.argsort(y, stable=True)
    counts = torch.bincount(y, minlength=len(prototypes))  # (C,)
    first = counts.cumsum(0) - counts
    for turn in range(int(counts.max())):  # classes do not touch each other: one step moves them all
        drawn = z[order[(first + turn).clamp(max=len(z) - 1)]]  # (C, d)
        moved = decay * prototypes + (1 - decay) * drawn
        moves = (counts > turn) & moved.any(dim=1)
        prototypes = torch.where(moves[:, None], _unit(moved), prototypes)
    return prototypes


def dispersion_loss(prototypes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the log of the mean of exp(μ_i·μ_j/τ) over j ≠ i, averaged over i: low when prototypes are far apart.

    prototypes (C, d) of unit norm; rows of zeros are classes never seen and are left out. With fewer than two classes
    it is 0 (Ming et al. 2023, eq. 5).
    """
    seen = prototypes[prototypes.any(dim=1)]
    if len(seen) < 2:
        return prototypes.sum() * 0
    itself = torch.eye(len(seen), dtype=torch.bool, device=seen.device)
    logits = _cosines(seen, seen, temperature).masked_fill(itself, float("-inf"))
    return (logits.logsumexp(dim=1) - math.log(len(seen) - 1)).mean()


def compactness_loss(z: torch.Tensor, y: torch.Tensor, prototypes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean of -log softmax of z·μ/τ at the own prototype: low when embeddings are close to it.

    z (m, d), y (m,) int labels, prototypes (C, d) as in `update_prototypes`, taken as constants; classes never seen
    take no part, nor do embeddings of such a class (Ming et al. 2023, eq. 4). Raises ValueError when shapes do not fit.
    """
    _check_shapes("compactness_loss", z, y, prototypes)
    unseen = ~prototypes.any(dim=1)  # (C,)
    logits = _cosines(_unit(z), prototypes.detach(), temperature).masked_fill(unseen, float("-inf"))  # (m, C)
    y = y.masked_fill(unseen[y], -1)
    return F.cross_entropy(logits, y, ignore_index=-1, reduction="sum") / (y >= 0).sum().clamp(min=1)


def _check_shapes(name: str, z: torch.Tensor, y: torch.Tensor, prototypes: torch.Tensor) -> None:
    if z.ndim != 2 or y.shape != z.shape[:1] or prototypes.ndim != 2 or prototypes.shape[1] != z.shape[1]:
        shapes = ", ".join(str(tuple(part.shape)) for part in (z, y, prototypes))
        raise ValueError(f"{name} needs z (m, d), y (m,) and prototypes (C, d), got {shapes}")


def _unit(z: torch.Tensor) -> torch.Tensor:
    """Return the rows of z (m, d) at unit norm, in float32 or better; a row of zeros stays, with gradient zero."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return z / norm.masked_fill(norm == 0, float("inf"))


def _cosines(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the products (m, k) of unit rows a (m, d) and b (k, d), divided by the temperature."""
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.autocast(a.device.type, enabled=False):  # mixed precision would round cosines to three digits
        return a @ b.T / temperature
