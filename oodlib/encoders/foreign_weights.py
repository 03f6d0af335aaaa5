"""Foreign weights: a file that training wrote, here or elsewhere, becomes the encoder whose weights it holds.

A file is known by its content, not by its name: an encoder of this project with all that belongs to it, or the state
dict of a backbone, as PyTorch saves it or as safetensors. Neither can run code.
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from oodlib.encoders.architectures import ARCHITECTURES, import_timm
from oodlib.encoders.encoder import Encoder, EncoderSpec, load_encoder

WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "state_dict_ema", "net", "network", "teacher")
HEADS = ("fc", "head", "classifier", "linear")  # what classifiers are called
RENAMED = {".shortcut.": ".downsample."}  # OpenOOD's and SupContrast's ResNets: timm's
N_NAMED = 3  # of the weights that do not fit
MOST_CLASSES = 100  # of objects beside the weights
GUESSES = (
    *ARCHITECTURES,
    *("tf_efficientnet_lite0", "efficientnet_b0", "mobilenetv3_large_100", "resnet101", "convnext_tiny"),
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")),
)


def own_encoder(path: Path, backbone: str = "") -> Encoder | None:
    """Return the encoder of a file that this project wrote, None for other weights.

    Raises FileNotFoundError, and ValueError for a damaged file and for an encoder of another backbone than is wanted.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if not _is_safetensors(path) or not _is_ours(path):
        return None
    encoder = load_encoder(path)
    if backbone and encoder.spec.arch != backbone:
        raise ValueError(f"the encoder in {path} is a {encoder.spec.arch}: take backbone = {encoder.spec.arch!r}")
    return encoder


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # the length of a header in JSON, and the header


def _is_ours(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return any(name.startswith("oodlib-") for name in file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is cut short: {error}") from error


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a state dict in a file by their names, out of its wrappers.

    Objects of other kinds beside the weights are left out. Raises ValueError where the file holds something else.
    """
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = _load_without_code(path)
    except Exception as error:  # a foreign file fails in zipfile or the unpickler, each with errors of its own
        said = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(error).split()))
        said = said[max(said.find("Trying to load"), 0) :]  # after PyTorch's advice to run the code
        raise ValueError(f"{path} is no file of weights, or holds code: {said[:200]}") from error
    if isinstance(found, _Inert) and not _tensors(found):
        kind = f"{type(found).__module__}.{type(found).__name__}"
        raise ValueError(f"{path} holds an object of {kind}, whose code is not run: save its state_dict() instead")
    while inner := [found[key] for key in WRAPPERS if isinstance(found, dict) and isinstance(found.get(key), dict)]:
        found = inner[0]
    if not (state := _tensors(found)):
        raise ValueError(f"{path} holds no state dict, names and tensors, nor one under {', '.join(WRAPPERS)}")
    return state


def _tensors(found: object) -> dict[str, torch.Tensor]:
    entries = found.items() if isinstance(found, dict) else ()
    return {name: v for name, v in entries if isinstance(name, str) and isinstance(v, torch.Tensor)}


class _Inert(dict):
    """Stands for an object of any class in a file: takes what it was made with, and does nothing."""

    def __init__(self, *_: object, **__: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _load_without_code(path: Path) -> object:
    """Return what `torch.save` wrote, but of weights and plain containers only: each other object is an _Inert."""
    stands_for = []
    for _ in range(MOST_CLASSES):
        try:
            # an open file, because torch.load would go by the suffix of a name
            with torch.serialization.safe_globals(stands_for), path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            unknown = re.search(r"Unsupported global: GLOBAL (\S+) was not", str(error))
            if not unknown:
                raise
            module, _, name = unknown[1].rpartition(".")
            stands_for.append(type(name, (_Inert,), {"__module__": module or "builtins"}))
    raise ValueError(f"objects of more than {MOST_CLASSES} classes lie beside the weights")


def fit_names(state: dict[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Return a state dict under the names that a backbone wants, as far as it can be told.

    Names of other projects are put into timm's; the prefix that most of the wanted names have is taken off, and what
    has another one, such as a projection, is left out; so are classifiers.
    """
    for theirs, ours in RENAMED.items():
        state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
    prefixes = dict.fromkeys(
        name.removesuffix(end) for end in wanted for name in state if name == end or name.endswith(f".{end}")
    )
    prefix = max(prefixes, key=lambda prefix: sum(f"{prefix}{name}" in state for name in wanted), default="")
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    # a head's normalisation is part of some backbones
    return {name: tensor for name, tensor in state.items() if name in wanted or name.split(".")[0] not in HEADS}


def has_small_stem(state: dict[str, torch.Tensor], backbone: str) -> bool:
    """Return whether weights fit the stem for small images of one of ARCHITECTURES rather than timm's own."""
    if backbone not in ARCHITECTURES or not import_timm().is_model(backbone):
        return backbone in ARCHITECTURES
    own = ARCHITECTURES[backbone]().state_dict().get("conv1.weight")
    stems = [t.shape for name, t in state.items() if name.endswith("conv1.weight") and t.shape[1:2] == (3,)]
    return own is None or not stems or own.shape in stems


def guess_backbone(path: Path, state: dict[str, torch.Tensor]) -> str:
    """Return the first of GUESSES that weights fit. Raises ValueError where none does."""
    for name in GUESSES:
        small = has_small_stem(state, name)
        with torch.device("meta"):
            net = ARCHITECTURES[name]() if small else import_timm().create_model(name, num_classes=0)
        expected = net.state_dict()
        if not _mismatches(expected, fit_names(state, expected)):
            return name
    raise ValueError(f"the weights in {path} are of none of {', '.join(GUESSES)}: say which backbone they are of")


def encoder_of_state(path: Path, state: dict[str, torch.Tensor], spec: EncoderSpec) -> Encoder:
    """Return the encoder of a spec with the weights of a state dict, whose classifier, if any, is left out.

    Raises ValueError that names what is nearest to fitting of the weights that are missing, too many or of another
    shape.
    """
    encoder = Encoder(replace(spec, small_stem=has_small_stem(state, spec.arch)))
    expected = encoder.backbone.state_dict()
    state = fit_names(state, expected)
    if wrong := _mismatches(expected, state):
        more = f" and {len(wrong) - N_NAMED} more" if len(wrong) > N_NAMED else ""
        raise ValueError(f"the weights in {path} are not those of {spec.arch!r}: {'; '.join(wrong[:N_NAMED])}{more}")
    encoder.backbone.load_state_dict(state, strict=False)  # what may be missing are counts of batches
    return encoder.eval()


def _mismatches(expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> list[str]:
    """Return what does not fit, a text each, the nearest to fitting first."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    said = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and tensor.shape != state[name].shape
    ]
    likened = []
    for name in missing[:N_NAMED]:
        likened += [(name, other) for other in difflib.get_close_matches(name, unexpected, 1, 0.8)]
    said += [f"{name} is missing, the file has {other}" for name, other in likened]
    said += [f"{name} is missing" for name in missing if name not in dict(likened)]
    return said + [f"{name} is too many" for name in unexpected if name not in dict(likened).values()]


def set_classifier(encoder: Encoder, classes: tuple[str, ...], weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give an encoder a classifier of these classes, weight (C, d) and bias (C,), in the place of its own."""
    others = [head for head in encoder.spec.heads if head != "classifier"]
    encoder.spec = replace(encoder.spec, classes=classes, heads=("classifier", *others))
    encoder.classifier = nn.Linear(*weight.T.shape, device=encoder.mean.device)
    encoder.classifier.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    encoder.eval()
