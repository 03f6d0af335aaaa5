"""Losses: embeddings of a batch, and its labels, in; one differentiable scalar out.

Pure functions, no state. A contrastive batch is two views of the same n images, stacked: z = [a; b], (2n, d), and
`y` repeats the n labels twice. Embeddings are brought to unit norm here; logits are formed in at least float32.
"""

import torch
import torch.nn.functional as F


def _contrastive_loss(z: torch.Tensor, positives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean over anchors of minus the mean log-probability of their positives (Khosla et al. 2020, L_out).

    `positives` (m, m) bool. Anchors without a positive are left out; a batch without any has loss 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)  # (m, d)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    with torch.autocast(z.device.type, enabled=False):  # mixed precision would round cosines to three digits
        logits = (z @ z.T / temperature).masked_fill(itself, float("-inf"))  # (m, m)
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
