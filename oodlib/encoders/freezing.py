"""The trained part: an encoder and the stage from which it is trained in; what is frozen gets no gradients out.

The frozen stages also keep their batch statistics, so that they cost one pass forward and nothing else.
"""

from torch import nn

from oodlib.encoders.encoder import Encoder

ALL, HEADS = "all", "heads"  # values of the parameter `trained`; any other is the name of a stage


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


def freeze(encoder: Encoder, trained: str) -> None:
    """Let gradients reach the heads, and the stages of the backbone from `trained` on.

    What a backbone holds beside its stages, as the class token of a vision transformer, goes with the first of them.
    """
    encoder.backbone.requires_grad_(trained == ALL)
    frozen = {id(module) for module in frozen_modules(encoder.backbone, trained)}
    if trained not in (ALL, HEADS):
        for module in stages(encoder.backbone).values():
            module.requires_grad_(id(module) not in frozen)
