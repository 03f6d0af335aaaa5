"""Encoders: an architecture's name and what the images look like in; a network that turns images into embeddings out.

An `Encoder` is a backbone, timm's or made for small images, and the heads its objective trains: a linear classifier, a
projection, or both. Its `EncoderSpec` says everything needed to build it again and to bring any image into its
input form; weights and spec are one safetensors file, which holds arrays and JSON only.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from oodlib.data.sets import prepare
from oodlib.encoders import packaged_weights as packages
from oodlib.encoders.airbench import NAME, SMALLEST, Airbench, airbench_widths
from oodlib.files import write_atomically

FORMAT = "oodlib-encoder-1"


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


@cache
def _timm() -> ModuleType:
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


def check_arch(arch: str, pretrained: bool = False) -> None:
    """Raise ValueError for a name that is neither ours nor timm's, or lacks the weights it should have."""
    ours = airbench_widths(arch) is not None or arch in ARCHITECTURES
    if ours and not pretrained:
        return
    timm = _timm()
    is_timm = timm.is_model_pretrained if "." in arch else timm.is_model  # what follows a dot names weights
    if not ours and not is_timm(arch):
        known = ", ".join((NAME, f"{NAME}_WIDTH_WIDTH_WIDTH", *ARCHITECTURES))
        raise ValueError(f"unknown arch {arch!r}; known: {known}, and all of timm.list_models()")
    if pretrained and not timm.is_model_pretrained(arch):
        raise ValueError(f"arch {arch!r} has no pretrained weights in timm; use pretrained: false")


def _with_small_stem(name: str) -> Callable[[], nn.Module]:
    """Return a builder of a timm ResNet whose stem keeps the resolution: 3×3, stride 1, no pooling."""

    def build() -> nn.Module:
        net = _timm().create_model(name, num_classes=0)
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
        return net

    return build


def _resnet20() -> nn.Module:
    """Build the CIFAR ResNet of He et al. 2016: three stages of three blocks, widths 16, 32, 64."""
    from timm.models.resnet import BasicBlock, ResNet

    # the deep stem is what lets timm start at width 16; its three convolutions are then replaced by one
    net = ResNet(BasicBlock, (3, 3, 3), num_classes=0, channels=(16, 32, 64), stem_type="deep", stem_width=8)
    net.conv1 = nn.Conv2d(3, 16, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    net.layer4 = nn.Identity()
    return net


ARCHITECTURES = {  # with a stem for small images; every other name is timm's, with its own stem
    "resnet20": _resnet20,
    "resnet18": _with_small_stem("resnet18"),
    "resnet34": _with_small_stem("resnet34"),
    "resnet50": _with_small_stem("resnet50"),
    "wide_resnet50_2": _with_small_stem("wide_resnet50_2"),
}


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
        net = _timm().create_model(spec.arch, pretrained=pretrained and not packaged, num_classes=0, **options)
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


def pretrained_config(arch: str) -> dict:
    """Return what is known of an architecture's pretrained weights: mean, std, input_size, fixed_input_size, …"""
    timm = _timm()
    about = timm.get_pretrained_cfg(arch).to_dict() if timm.is_model(arch) else {}
    return about | ({"mean": packages.MEAN, "std": packages.STD} if packages.packaged_weights(arch) else {})


class Encoder(nn.Module):
    """A backbone and the heads it was trained with.

    Calling it maps images (n, 3, s, s), floats in [0, 1], to embeddings (n, d): the backbone's output before any head,
    in evaluation mode of a `mirrored` spec the mean of that of an image and its mirror image.
    `classifier` maps embeddings to logits (n, C), `projection` to (n, projection_dim), or with a projection_dim of 0 to
    themselves; either is None where the
    spec's `heads` do not name it. Raises as `build_backbone`, and ValueError for an unknown head.
    """

    def __init__(self, spec: EncoderSpec, pretrained: bool = False):
        super().__init__()
        if unknown := set(spec.heads) - {"classifier", "projection"}:
            raise ValueError(f"unknown head {unknown.pop()!r}; known: classifier, projection")
        self.spec = spec
        self.backbone = build_backbone(spec, pretrained)
        self.dim = d = getattr(self.backbone, "head_hidden_size", self.backbone.num_features)
        self.classifier = nn.Linear(d, len(spec.classes)) if "classifier" in spec.heads else None
        self.projection = None
        if "projection" in spec.heads:
            self.projection = nn.Identity()
            if spec.projection_dim:
                self.projection = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, spec.projection_dim))
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = (images - self.mean) / self.std
        if self.training or not self.spec.mirrored:
            return self.backbone(images)
        return (self.backbone(images) + self.backbone(images.flip(3))) / 2

    def outputs(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what each head gives for embeddings (n, d), by its name."""
        return {name: getattr(self, name)(z) for name in self.spec.heads}

    def prepare(self, images: np.ndarray) -> torch.Tensor:
        """Return images uint8 (n, h, w[, c]) in this encoder's input form, uint8 (n, 3, s, s)."""
        return prepare(images, self.spec.side, self.spec.channels, self.spec.input_size)

    def fingerprint(self) -> str:
        """Return the SHA-256 of spec and weights, 64 hexadecimal digits.

        The spec includes how images are prepared. Device, memory format, mode, and a way through a file change nothing.
        """
        # what is at its default is left out, so that a field that is added to the specs leaves fingerprints as they are
        spec = {f.name: value for f in fields(self.spec) if (value := getattr(self.spec, f.name)) != f.default}
        digest = hashlib.sha256(json.dumps(spec).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def save_encoder(encoder: Encoder, path: str | Path, half: bool = False) -> None:
    """Write weights and spec to one safetensors file, whole or not at all; the same encoder gives the same bytes.

    With `half`, the weights of convolutions and linear layers are rounded to float16; what is small stays float32.
    Raises OSError, naming the file, where it cannot be written.
    """
    from safetensors.torch import save

    weights = {name: tensor.contiguous().cpu() for name, tensor in encoder.state_dict().items()}
    if half:
        weights |= {name: weights[name].half() for name, p in encoder.named_parameters() if p.ndim > 1}
    metadata = {FORMAT: json.dumps(asdict(encoder.spec))}  # one entry: safetensors writes several in any order
    content = save(weights, metadata)  # its save_file raises errors of its own, and leaves others no right to read
    write_atomically(path, lambda temporary: temporary.write_bytes(content), "the encoder")


def load_encoder(path: str | Path) -> Encoder:
    """Return the encoder that `save_encoder` wrote, on the CPU, in evaluation mode.

    Raises FileNotFoundError, or ValueError when the file is cut short, foreign or of another format. The file cannot
    run code.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no encoder at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is cut short: {error}") from error
    if FORMAT not in metadata:
        raise ValueError(
            f"{path} is not an encoder of this version: {FORMAT!r} is not in its metadata {list(metadata)}"
        )
    try:
        spec = json.loads(metadata[FORMAT])
        spec = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
        encoder = Encoder(EncoderSpec(**spec))
        encoder.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold an encoder and the spec that fits it: {error}") from error
    return encoder.eval()
