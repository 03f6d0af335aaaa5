"""Detector files: a fitted detector in one safetensors file, from which it scores the same to the last bit.

A file holds arrays and JSON, which cannot run code. The JSON says which of `oodlib.scoring.DETECTORS` it is, with which
parameters, of which encoder's embeddings and which classes, and whether its reference scores are held out; the arrays
are those that the detector's `layout` names. A layout gives the dtype and shape of every array, as in "float k d": a
letter stands for one size and "float" for one of float32 and float64, the same wherever it stands. A name with a dot is
that of an entry of a dictionary.
"""

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from oodlib.files import write_atomically

if TYPE_CHECKING:  # it brings torch and timm
    from oodlib.encoders.encoder import Encoder

FORMAT = "oodlib-detector-3"
HEADER = {
    "class": str, "parameters": dict, "fortran_order": list, "encoder": str, "held_out": bool, "classes": list
}  # fmt: skip
FINGERPRINT = re.compile("[0-9a-f]{64}")
ATTRIBUTES = {"d": "n_features_in_", "k": "n_clusters_"}  # sizes that are attributes
MAY_BE_ZERO = ("f", "o", "r")  # own covariances, known outliers, dimensions outside a subspace


def save_detector(detector: BaseEstimator, path: str | Path, encoder: "Encoder | str | None" = None) -> None:
    """Write a fitted detector to one file, whole or not at all; the same detector gives the same bytes.

    encoder: the `oodlib.encoders.Encoder` whose embeddings it takes, or its fingerprint; a detector that was loaded
    keeps the one of its file. Raises NotFittedError, TypeError for what is none of the detectors, and ValueError for
    parameters or arrays that `load_detector` would refuse and for another encoder than that of its file.
    """
    from safetensors.numpy import save_file

    kind = type(detector)
    if not kind.__module__.startswith(__package__):  # what is loaded is made of these classes alone
        raise TypeError(f"a file can hold a detector of {__package__}, got {kind.__name__} of {kind.__module__}")
    check_is_fitted(detector, "reference_")
    arrays = {name: np.asarray(_get(detector, name)) for name in detector.layout()}
    _check_arrays(arrays, detector.layout())
    stored = {name: _as_json(name, value) for name, value in detector.get_params(deep=False).items()}
    _parameters(kind, stored, arrays)
    fingerprint = _fingerprint_of(encoder) or detector.encoder_
    _check_encoder("the detector", detector.encoder_ or fingerprint, fingerprint)
    # a product with a matrix may differ in its last bits by the matrix's order in memory
    fortran_order = [name for name, array in arrays.items() if array.flags.fnc]
    header = {"class": kind.__name__, "parameters": stored, "fortran_order": fortran_order, "encoder": fingerprint}
    header |= {"held_out": detector.held_out_, "classes": list(detector.class_names_)}
    arrays = {name: np.asarray(a.T if name in fortran_order else a, order="C") for name, a in arrays.items()}
    # one entry of metadata: safetensors writes several in any order
    write_atomically(path, lambda temporary: save_file(arrays, temporary, {FORMAT: json.dumps(header)}))


def read_detector(
    path: str | Path, detectors: dict[str, type[BaseEstimator]], encoder: "Encoder | str | None" = None
) -> BaseEstimator:
    """Return the detector of a file, one of `detectors` by name, as `oodlib.scoring.load_detector` describes it."""
    path, given = Path(path), _fingerprint_of(encoder)
    text, arrays = _read(path)
    try:
        detector = _restore(text, arrays, detectors)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not hold a detector and the arrays that fit it: {error}") from error
    _check_encoder(path, detector.encoder_, given or detector.encoder_)
    return detector


def _fingerprint_of(encoder: "Encoder | str | None") -> str:
    """Return the fingerprint of an encoder, given as such or by its fingerprint; "" for None."""
    if encoder is None:
        return ""
    if hasattr(encoder, "spec"):
        return encoder.fingerprint()
    if not (isinstance(encoder, str) and FINGERPRINT.fullmatch(encoder)):
        raise ValueError(f"encoder must be an Encoder or its fingerprint, 64 hexadecimal digits, got {encoder!r}")
    return encoder


def _check_encoder(what: str | Path, known: str, given: str) -> None:
    if given and not known:
        raise ValueError(f"{what} was saved without an encoder, so the one given cannot be compared: load without it")
    if known != given:
        raise ValueError(f"{what} is for embeddings of another encoder: {known[:12]}…, the one given is {given[:12]}…")


def _read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Return the JSON and the arrays of a file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no detector at {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                found = list(metadata)
                raise ValueError(f"{path} is not a detector of this version: {FORMAT!r} is not in its metadata {found}")
            return metadata[FORMAT], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, AttributeError) as error:  # the last two: a dtype that NumPy does not have
        raise ValueError(f"{path} is no safetensors file of NumPy's dtypes, or is cut short: {error}") from error


def _restore(text: str, arrays: dict[str, np.ndarray], detectors: dict[str, type[BaseEstimator]]) -> BaseEstimator:
    """Return the detector that the JSON and the arrays of a file describe."""
    header = json.loads(text)
    if not isinstance(header, dict) or {key: type(value) for key, value in header.items()} != HEADER:
        parts = ", ".join(f"{key} ({kind.__name__})" for key, kind in HEADER.items())
        raise ValueError(f"its JSON must be an object of {parts}, got {text[:80]}")
    if header["class"] not in detectors:
        raise ValueError(f"unknown class {header['class']!r}; known: {', '.join(detectors)}")
    kind = detectors[header["class"]]
    arrays = {name: array.T if name in header["fortran_order"] else array for name, array in arrays.items()}
    detector = kind(**_parameters(kind, header["parameters"], arrays))
    detector.check_parameters()
    sizes = _check_arrays(arrays, detector.layout())
    for name in detector.layout():
        _set(detector, name, arrays[name])
    for letter in ATTRIBUTES.keys() & sizes:
        setattr(detector, ATTRIBUTES[letter], sizes[letter])
    detector.encoder_, detector.held_out_ = _fingerprint_of(header["encoder"] or None), header["held_out"]
    if wrong := [name for name in header["classes"] if not isinstance(name, str)]:
        raise ValueError(f"classes must be names, got {wrong[0]!r}")
    detector.class_names_ = tuple(header["classes"])
    return detector


def _as_json(name: str, value):
    """Return a parameter as the JSON holds it: for an array, the name of the fitted array that it became."""
    if np.ndim(value):
        return f"{name}_"
    return value.item() if isinstance(value, np.generic) else value


def _parameters(kind: type, stored: dict, arrays: dict[str, np.ndarray]) -> dict:
    """Return what to construct a detector with, from its parameters as the JSON holds them."""
    hints = get_type_hints(kind.__init__)
    if stored.keys() != hints.keys():
        raise ValueError(f"the parameters of {kind.__name__} are {', '.join(hints)}, got {', '.join(stored)}")
    values = {name: arrays.get(value, value) if value == f"{name}_" else value for name, value in stored.items()}
    for name, hint in hints.items():
        if isinstance(values[name], bool) or not isinstance(values[name], hint):
            raise ValueError(f"{name} must be {inspect.formatannotation(hint)}, got {stored[name]!r}")
    return values


def _check_arrays(arrays: dict[str, np.ndarray], layout: dict[str, str]) -> dict[str, int]:
    """Return the sizes that the letters of a layout stand for; raise ValueError where the arrays do not fit it."""
    if arrays.keys() != layout.keys():
        raise ValueError(f"its arrays must be {', '.join(layout)}, got {', '.join(arrays)}")
    sizes = {}
    for name, expected in layout.items():
        array, (dtype, *letters) = arrays[name], expected.split()
        dtypes = ("float32", "float64") if dtype == "float" else (dtype,)
        shape = tuple(sizes.setdefault(letter, size) for letter, size in zip(letters, array.shape, strict=False))
        if array.dtype.name not in dtypes or array.ndim != len(letters) or array.shape != shape:
            known = "".join(f", {letter} = {sizes[letter]}" for letter in letters if letter in sizes)
            raise ValueError(f"{name} must be {expected}{known}, got {array.dtype} {array.shape}")
        if any(sizes[letter] == 0 for letter in letters if letter not in MAY_BE_ZERO):
            raise ValueError(f"{name} is empty, of shape {array.shape}")
        finite = np.isfinite(array)
        if not (finite | np.isneginf(array) if name == "offset_" else finite).all():  # -inf rejects nothing
            raise ValueError(f"{name} contains NaN or infinity")
    if len({arrays[name].dtype for name, expected in layout.items() if expected.startswith("float ")}) > 1:
        raise ValueError("its float arrays must be all float32 or all float64")
    return sizes


def _get(detector: BaseEstimator, name: str):
    attribute, _, entry = name.partition(".")
    value = getattr(detector, attribute)
    return value[entry] if entry else value


def _set(detector: BaseEstimator, name: str, array: np.ndarray) -> None:
    attribute, _, entry = name.partition(".")
    if entry:
        vars(detector).setdefault(attribute, {})[entry] = array
    else:
        setattr(detector, attribute, array if array.ndim else array[()])
