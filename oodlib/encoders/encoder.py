"""Encoders: a backbone and its heads turn images into embeddings; its spec says everything but the weights.

The backbone is one of `architectures`, the heads are those its objective trains: a linear classifier, a projection, or
both. Weights and spec are one safetensors file, which holds arrays and JSON only.
"""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from oodlib.data.sets import prepare
from oodlib.encoders.architectures import EncoderSpec, build_backbone
from oodlib.files import read_tensors, write_tensors

FORMAT = "oodlib-encoder-1"


class Encoder(nn.Module):
    """A backbone and the heads it was trained with.

    Calling it maps images (n, 3, s, s), floats in [0, 1], to embeddings (n, d): the backbone's output before any head.
    With a `mirrored` spec, in evaluation mode, it is the mean over an image and its mirror image.
    `classifier` maps embeddings to logits (n, C), `projection` to (n, projection_dim), or with a projection_dim of 0 to
    themselves; either is None where the spec's `heads` do not name it.
    Raises as `build_backbone`, and ValueError for an unknown head.
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
    weights = encoder.state_dict()
    if half:
        weights |= {name: weights[name].half() for name, p in encoder.named_parameters() if p.ndim > 1}
    write_tensors(path, weights, FORMAT, asdict(encoder.spec), "the encoder")


def load_encoder(path: str | Path) -> Encoder:
    """Return the encoder that `save_encoder` wrote, on the CPU, in evaluation mode.

    Raises FileNotFoundError, or ValueError when the file is cut short, foreign or of another format. The file cannot
    run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no encoder at {path}")
    weights, spec = read_tensors(path, FORMAT)
    try:
        spec = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
        encoder = Encoder(EncoderSpec(**spec))
        encoder.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold an encoder and the spec that fits it: {error}") from error
    return encoder.eval()
