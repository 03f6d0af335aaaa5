"""Your weights: a file of weights goes in; the encoder that they fit comes out.

A file holds an encoder of this project, with all that belongs to it, or the state dict of a timm backbone as PyTorch
saves it (.pth, .pt) or safetensors. Neither can run code.
"""

from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import nn

from oodlib.encoders.architectures import ARCHITECTURES
from oodlib.encoders.encoder import Encoder, EncoderSpec, load_encoder

WRAPPERS = ("state_dict", "model")  # keys under which training scripts put the state dict
HEADS = ("fc", "head", "classifier")  # what timm calls its classifiers
N_NAMED = 5  # of the weights that are missing or too many


def own_encoder(path: Path, backbone: str) -> Encoder | None:
    """Return the encoder of a file that this project wrote, None for other weights.

    Raises FileNotFoundError, and ValueError for a damaged file and for an encoder of another backbone.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix in (".pth", ".pt") or not _is_ours(path):
        return None
    encoder = load_encoder(path)
    if encoder.spec.arch != backbone:
        raise ValueError(f"the encoder in {path} is a {encoder.spec.arch}: take backbone = {encoder.spec.arch!r}")
    return encoder


def _is_ours(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return any(name.startswith("oodlib-") for name in file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is cut short: {error}") from error


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights by their names of a state dict in a file, out of its wrappers.

    Raises ValueError where the file holds something else.
    """
    try:
        if path.suffix in (".pth", ".pt"):
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            from safetensors.torch import load_file

            found = load_file(path)
    except Exception as error:  # a foreign file fails in zipfile or the unpickler, each with errors of its own
        raise ValueError(
            f"{path} is no file of weights, or holds code: {' '.join(str(error).split())[:200]}"
        ) from error
    while isinstance(found, dict) and (inner := [key for key in WRAPPERS if isinstance(found.get(key), dict)]):
        found = found[inner[0]]
    if not isinstance(found, dict) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ValueError(f"{path} holds no state dict, names and tensors, nor one under {' or '.join(WRAPPERS)}")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def has_small_stem(state: dict[str, torch.Tensor], backbone: str) -> bool:
    """Return whether weights fit the stem for small images of one of ARCHITECTURES rather than timm's own."""
    if backbone not in ARCHITECTURES or not timm.is_model(backbone):
        return backbone in ARCHITECTURES
    own = ARCHITECTURES[backbone]().state_dict().get("conv1.weight")
    return own is None or "conv1.weight" not in state or own.shape == state["conv1.weight"].shape


def encoder_of_state(path: Path, state: dict[str, torch.Tensor], spec: EncoderSpec) -> Encoder:
    """Return the encoder of a spec with the weights of a state dict, whose classifier, if any, is left out.

    Raises ValueError that names the weights which are missing, too many or of another shape.
    """
    encoder = Encoder(replace(spec, small_stem=has_small_stem(state, spec.arch)))
    expected = encoder.backbone.state_dict()
    # a head's normalisation is part of some backbones
    state = {name: v for name, v in state.items() if name in expected or name.split(".")[0] not in HEADS}
    shapes = {name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape}
    wrong = {"missing": expected.keys() - state.keys(), "unexpected": state.keys() - expected.keys()}
    wrong |= {"of another shape": shapes}
    if said := "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items() if names):
        raise ValueError(f"the weights in {path} are not those of {spec.arch!r}: {said}")
    encoder.backbone.load_state_dict(state)
    return encoder.eval()


def _some(names: set[str]) -> str:
    first = sorted(names)[:N_NAMED]
    return ", ".join(first) + (f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else "")


def set_classifier(encoder: Encoder, classes: tuple[str, ...], weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give an encoder a classifier of these classes, weight (C, d) and bias (C,), in the place of its own."""
    others = [head for head in encoder.spec.heads if head != "classifier"]
    encoder.spec = replace(encoder.spec, classes=classes, heads=("classifier", *others))
    encoder.classifier = nn.Linear(*weight.T.shape, device=encoder.mean.device)
    encoder.classifier.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    encoder.eval()
