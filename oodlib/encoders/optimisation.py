"""Optimisation: which weights are trained, at which rates, and the lookahead that averages them.

Frozen stages also keep their batch statistics, so that they cost one pass forward and nothing else.
"""

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from oodlib.encoders.settings import ALL, HEADS, TrainingConfig

if TYPE_CHECKING:
    from oodlib.encoders.encoder import Encoder

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)  # timm's derive from these
LOOKAHEAD_STEPS = 5  # between two moves of the slow weights
LOOKAHEAD_DECAY = 0.95**LOOKAHEAD_STEPS  # at the end of the training; it grows with the cube of its progress
START, END = 0.2, 0.07  # of the peak: the learning rates of a triangle


def stages(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the stages of a backbone with weights, in order: its parts, and the parts of those that are a sequence."""
    found = {}
    for name, part in backbone.named_children():
        inner = part.named_children() if isinstance(part, nn.Sequential | nn.ModuleList) else ()
        found |= {f"{name}.{key}": module for key, module in inner} or {name: part}
    return {name: module for name, module in found.items() if any(True for _ in module.parameters())}


def frozen_modules(backbone: nn.Module, trained: str) -> list[nn.Module]:
    """Return the modules that are not trained where `trained` is "all", "heads", or the first stage that is.

    Raises ValueError for an unknown stage, naming the known ones.
    """
    if trained == ALL:
        return []
    if trained == HEADS:
        return [backbone]
    known = stages(backbone)
    first = [i for i, name in enumerate(known) if f"{name}.".startswith(f"{trained}.")]
    if not first:
        raise ValueError(f"unknown stage {trained!r} to train from; known: {ALL}, {HEADS}, {', '.join(known)}")
    return list(known.values())[: first[0]]


def freeze(encoder: "Encoder", trained: str) -> None:
    """Let gradients reach the heads, and the stages of the backbone from `trained` on.

    What a backbone holds beside its stages, as the class token of a vision transformer, goes with the first of them.
    """
    encoder.backbone.requires_grad_(trained == ALL)
    frozen = {id(module) for module in frozen_modules(encoder.backbone, trained)}
    if trained not in (ALL, HEADS):
        for module in stages(encoder.backbone).values():
            module.requires_grad_(id(module) not in frozen)


def run_in_parts(module: nn.Module, n: int) -> None:
    """Let a module that is not trained take n of its inputs (m, …) at a time, whose maps stay in the caches."""
    whole = module.forward
    module.forward = lambda x: torch.cat([whole(part) for part in x.split(n)])


def parameter_groups(encoder: nn.Module, config: TrainingConfig) -> list[dict]:
    """Return the groups of trained parameters, each with the `factor` of its learning rate.

    The biases of normalisation get `norm_bias_factor` times the rate, and as much less decay, so that in a step all
    weights decay by the same share. Only groups with parameters are returned.
    """
    norms = [module for module in encoder.modules() if isinstance(module, NORMS)]
    shifts = {id(norm.bias) for norm in norms if norm.bias is not None and config.norm_bias_factor != 1}
    trained = [p for p in encoder.parameters() if p.requires_grad]
    groups = [([p for p in trained if id(p) not in shifts], 1.0)]
    groups += [([p for p in trained if id(p) in shifts], config.norm_bias_factor)]
    return [
        {"params": params, "factor": factor, "weight_decay": config.weight_decay / factor}
        for params, factor in groups
        if params
    ]


def learning_rate_at(config: TrainingConfig, epoch: float) -> float:
    """Return the learning rate after `epoch` epochs (fractions count): linear warm-up, then the way down.

    "cosine" warms up from zero and comes down half a cosine to zero, "triangle" goes straight, from START of the peak
    up to it and down to END of it.
    """
    rest = max(config.epochs - config.warmup_epochs, 1e-9)
    progress = min(max(epoch - config.warmup_epochs, 0) / rest, 1)
    warm = epoch / config.warmup_epochs if epoch < config.warmup_epochs else 1.0
    if config.schedule == "triangle":
        return config.learning_rate * (START + (1 - START) * warm - (1 - END) * progress)
    return config.learning_rate * warm * (1 + math.cos(math.pi * progress)) / 2


class Lookahead(nn.Module):
    """Slow weights that follow an encoder, and take it along (Zhang et al. 2019; the schedule is Jordan's of 2024).

    Every LOOKAHEAD_STEPS the slow weights move towards the encoder's, the less the further the training is, and the
    encoder goes on from there. Statistics of normalisation are weights here.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.slow = copy.deepcopy(encoder)
        pairs = zip(self.slow.state_dict().values(), encoder.state_dict().values(), strict=True)
        self.pairs = [pair for pair in pairs if pair[0].is_floating_point()]  # not the counts of batches

    @torch.no_grad()
    def update(self, steps: int, of: int) -> None:
        """Move after `steps` of the training's `of`, when it is time and at its end."""
        if steps % LOOKAHEAD_STEPS and steps < of:
            return
        slow, fast = map(list, zip(*self.pairs, strict=True))
        torch._foreach_lerp_(slow, fast, 1 - LOOKAHEAD_DECAY * (steps / of) ** 3)
        torch._foreach_copy_(fast, slow)
