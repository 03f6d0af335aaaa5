"""Encoders: an architecture's name and what the images look like in; a network that turns images into embeddings out.

An `Encoder` is a timm backbone with a stem for small images, and the heads its objective trains: a linear classifier, a
projection, or both. Its `EncoderSpec` says everything needed to build it again and to bring any image into its
input form; weights and spec are one safetensors file, which holds arrays and JSON only.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from oodlib.data import prepare
from oodlib.files import write_atomically

try:
    import timm
    from timm.models.resnet import BasicBlock, ResNet
except RuntimeError as error:
    if "torchvision" not in str(error):
        raise
    raise ImportError(
        f"torch {torch.__version__} and the installed torchvision do not fit each other ({error}). Install the two "
        "together from one place: python -m pip install --force-reinstall torch torchvision"
    ) from error

FORMAT = "oodlib-encoder-1"


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is, apart from its weights.

    `side` and `channels` (1 or 3) are the ID set's own; every image takes them before it is brought to `input_size`.
    `mean` and `std` are of the prepared training images in [0, 1], one a channel.
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


def _with_small_stem(name: str) -> Callable[[], nn.Module]:
    """Return a builder of a timm ResNet whose stem keeps the resolution: 3×3, stride 1, no pooling."""

    def build() -> nn.Module:
        net = timm.create_model(name, num_classes=0)
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
        return net

    return build


def _resnet20() -> nn.Module:
    """Build the CIFAR ResNet of He et al. 2016: three stages of three blocks, widths 16, 32, 64."""
    # the deep stem is what lets timm start at width 16; its three convolutions are then replaced by one
    net = ResNet(BasicBlock, (3, 3, 3), num_classes=0, channels=(16, 32, 64), stem_type="deep", stem_width=8)
    net.conv1 = nn.Conv2d(3, 16, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    net.layer4 = nn.Identity()
    return net


class Encoder(nn.Module):
    """A backbone and the heads it was trained with.

    Calling it maps images (n, 3, s, s), floats in [0, 1], to embeddings (n, d): the backbone's output before any head.
    `classifier` maps embeddings to logits (n, C), `projection` to (n, projection_dim); either is None where the
    spec's `heads` do not name it. Raises ValueError for an unknown architecture or head.
    """

    def __init__(self, spec: EncoderSpec):
        super().__init__()
        if spec.arch not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {spec.arch!r}; known: {', '.join(ARCHITECTURES)}")
        if unknown := set(spec.heads) - {"classifier", "projection"}:
            raise ValueError(f"unknown head {unknown.pop()!r}; known: classifier, projection")
        self.spec = spec
        self.backbone = ARCHITECTURES[spec.arch]()
        self.dim = d = self.backbone.num_features
        self.classifier = nn.Linear(d, len(spec.classes)) if "classifier" in spec.heads else None
        self.projection = None
        if "projection" in spec.heads:
            self.projection = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, spec.projection_dim))
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone((images - self.mean) / self.std)

    def prepare(self, images: np.ndarray) -> torch.Tensor:
        """Return images uint8 (n, h, w[, c]) in this encoder's input form, uint8 (n, 3, s, s)."""
        return prepare(images, self.spec.side, self.spec.channels, self.spec.input_size)


def save_encoder(encoder: Encoder, path: str | Path) -> None:
    """Write weights and spec to one safetensors file, whole or not at all; the same encoder gives the same bytes."""
    from safetensors.torch import save_file

    weights = {name: tensor.contiguous().cpu() for name, tensor in encoder.state_dict().items()}
    metadata = {FORMAT: json.dumps(asdict(encoder.spec))}  # one entry: safetensors writes several in any order
    write_atomically(path, lambda temporary: save_file(weights, temporary, metadata))


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


ARCHITECTURES = {
    "resnet20": _resnet20,
    "resnet18": _with_small_stem("resnet18"),
    "resnet34": _with_small_stem("resnet34"),
    "resnet50": _with_small_stem("resnet50"),
}
