"""Objectives: what an encoder is trained for. Each is a loss, the heads it trains and how many views it sees.

The losses themselves are in `oodlib.losses`. What an objective remembers from batch to batch (CIDER's prototypes) is a
small module beside the encoder, saved with a checkpoint and not with the encoder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from oodlib.losses import (
    compactness_loss,
    dispersion_loss,
    logitnorm_loss,
    nt_xent_loss,
    supcon_loss,
    update_prototypes,
)

if TYPE_CHECKING:
    from oodlib.encoders.encoder import Encoder

Heads = dict[str, torch.Tensor]  # what each head gives for all views stacked: (views·n, C) or (views·n, p)


class LossSettings(Protocol):
    """The settings that losses read, of a `TrainingConfig`."""

    label_smoothing: float
    ce_weight: float
    compactness_weight: float
    prototype_decay: float


class Prototypes(nn.Module):
    """CIDER's memory: one unit vector a class, (C, p), the moving average of the projections of its images."""

    def __init__(self, n_classes: int, dim: int):
        super().__init__()
        self.register_buffer("values", torch.zeros(n_classes, dim))

    @classmethod
    def of(cls, encoder: "Encoder") -> "Prototypes":
        return cls(len(encoder.spec.classes), encoder.spec.projection_dim or encoder.dim)


@dataclass(frozen=True)
class Objective:
    """An objective: the heads it trains, how many views of an image it usually sees, its usual temperature, its loss.

    `loss(heads, y, temperature, config, memory)` takes the heads' outputs for all views stacked, float32, the labels
    (n,), and what `memory` built for the encoder; None where the objective remembers nothing. `pairs` is
    whether it takes two views of an image and no other number.
    """

    heads: tuple[str, ...]
    n_views: int
    temperature: float
    loss: Callable[[Heads, torch.Tensor, float, LossSettings, nn.Module | None], torch.Tensor]
    memory: "Callable[[Encoder], nn.Module] | None" = None
    pairs: bool = False


def _cross_entropy(heads, y, temperature, config, memory):
    logits = heads["classifier"]
    y = y.repeat(len(logits) // len(y))
    return F.cross_entropy(logits / temperature, y, label_smoothing=config.label_smoothing)


def _logitnorm(heads, y, temperature, config, memory):
    logits = heads["classifier"]
    return logitnorm_loss(logits, y.repeat(len(logits) // len(y)), temperature, config.label_smoothing)


def _simclr(heads, y, temperature, config, memory):
    return nt_xent_loss(heads["projection"], temperature)


def _supcon(heads, y, temperature, config, memory):
    z = heads["projection"]
    return supcon_loss(z, y.repeat(len(z) // len(y)), temperature)


def _joint(heads, y, temperature, config, memory):
    """SupCon + λ · CE; the temperature is that of the contrastive part."""
    contrastive = _supcon(heads, y, temperature, config, memory)
    return contrastive + config.ce_weight * _cross_entropy(heads, y, 1.0, config, memory)


def _cider(heads, y, temperature, config, memory):
    z = heads["projection"]
    y = y.repeat(len(z) // len(y))
    prototypes = update_prototypes(memory.values, z, y, config.prototype_decay)
    memory.values.copy_(prototypes.detach())
    compactness = compactness_loss(z, y, prototypes, temperature)
    return dispersion_loss(prototypes, temperature) + config.compactness_weight * compactness


OBJECTIVES = {
    "ce": Objective(("classifier",), 1, 1.0, _cross_entropy),
    "logitnorm": Objective(("classifier",), 1, 0.04, _logitnorm),
    "simclr": Objective(("projection",), 2, 0.5, _simclr, pairs=True),
    "supcon": Objective(("projection",), 2, 0.1, _supcon),
    "joint": Objective(("classifier", "projection"), 2, 0.1, _joint),
    "cider": Objective(("projection",), 2, 0.1, _cider, Prototypes.of),
}
