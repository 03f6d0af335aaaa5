"""Image sets by name, as uint8 arrays, and `prepare`, which brings any of them to a network's input.

A name is one of the bundled sets (offline, `oodlib.data.sources`), one of torchvision's (fetched once, then read from
ROOT/NAME-SPLIT.npz), any other NAME for which that npz is there, or folder:PATH, with one sub-folder of images a class,
which folder:PATH@SIDE brings to another side than 64 pixels.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oodlib.data.catalogue import look_up
from oodlib.data.folders import FolderImages, Images, read_folder
from oodlib.data.sources import BUNDLED, TORCHVISION, fetch, read_npz
from oodlib.files import resolve

if TYPE_CHECKING:
    import torch


SPLITS = ("train", "test")
FOLDER_SIDE = 64  # of the images of a folder:PATH without @SIDE
BLOCK_PIXELS = 2**22  # what `prepare` resizes at a time: about 100 MiB of floats, whatever the size of the set


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of an image set; `len()` is the number of images."""

    images: Images  # (n, h, w, 3) or, grey, (n, h, w), uint8; FolderImages where they would not fit into memory
    labels: np.ndarray  # (n,) int64, an index into classes, -1 where there is none
    classes: tuple[str, ...]
    name: str
    skipped: tuple[tuple[str, str], ...] = ()  # of a folder: (path in it, why there is no image of it)
    converted: dict[str, int] = field(default_factory=dict)  # of a folder: what was changed, and in how many images
    files: np.ndarray | None = None  # of a folder: (n,) the path of each image

    def __len__(self) -> int:
        return len(self.images)


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder of the npz files: the argument, else the environment variable OODLIB_DATA, else data/."""
    return resolve(root or os.environ.get("OODLIB_DATA") or "data")


def load_images(name: str, split: str = "test", root: str | Path | None = None, flat: bool = False) -> ImageSet:
    """Load one split, "train" or "test", of an image set by its name.

    `root` is where the npz files are (see `data_root`). A line is printed about a folder where files were skipped or
    converted; with `flat`, its images need no sub-folders, as OOD images have no classes. Raises ValueError for an
    unknown name or split, for a file that is damaged or not of the form that `stored.read_npz` says and for a folder
    without an image, FileNotFoundError for a set that is neither there nor can be fetched.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: allowed are {' and '.join(SPLITS)}")
    kind, colon, argument = name.partition(":")
    if kind == "folder" and argument:
        return _load_folder(name, split, flat)
    if name in BUNDLED or kind == "noise":
        _check_split(kind, split, BUNDLED[kind])
        build = BUNDLED[kind][split]
        return ImageSet(*(build(_side(argument)) if colon else build()), name)
    root = data_root(root)
    if not re.fullmatch(r"\w[\w.+-]*", name):  # with a slash it could lead out of the root
        raise ValueError(_unknown(name, root))
    path = root / f"{name}-{split}.npz"
    if not path.exists():
        if name in TORCHVISION:
            _check_split(name, split, TORCHVISION[name][1])
            fetch(name, split, path)
        elif name in stored_names(root):
            raise FileNotFoundError(f"{path} is not there: {name!r} has only its other split in {root}")
        else:
            raise ValueError(_unknown(name, root))
    return ImageSet(*read_npz(path, look_up(name).classes or None), name)


def _load_folder(name: str, split: str, flat: bool) -> ImageSet:
    path, side = re.fullmatch(r"folder:(.+?)(?:@([0-9]+))?", name, re.DOTALL).groups()
    images, labels, classes, *about = read_folder(resolve(path), split, int(side or FOLDER_SIDE), flat)
    skipped, converted, _ = about
    notes = []
    if skipped:
        first = [f"{file}: {reason}" for file, reason in skipped[:3]] + ["…"] * (len(skipped) > 3)
        notes.append(f"{len(skipped)} skipped ({', '.join(first)})")
    if converted:
        notes.append(f"converted: {', '.join(f'{what} {n}' for what, n in converted.items())}")
    if notes:
        print(f"{path}: {'; '.join([f'{len(images)} images', *notes])}")
    return ImageSet(images, labels, classes, name, *about)


def take(images: Images, index: np.ndarray | slice) -> Images:
    """Return a selection of images by indices, a mask or a slice; images that are in files stay there."""
    return images.take(index) if isinstance(images, FolderImages) else images[index]


def prepare(images: Images, side: int, channels: int, input_size: int) -> "torch.Tensor":
    """Bring images (n, h, w) or (n, h, w, c), uint8, to a network's input: (n, 3, input_size, input_size), uint8.

    First to the `side` and `channels` (1 or 3) that the ID set has on disk, then to `input_size`. The order matters: an
    OOD image first takes the ID set's own resolution and colour, so that a detector cannot win by sharpness or colour
    alone, which would say nothing of what the image shows. What is right already passes through bit by bit.

    Grey is ITU-R 601 luminance; one channel is repeated to three; an image that is not square is cut to its centre.
    Resizing is bilinear with antialias, rounded at both steps, because an ID image on disk is rounded too. It goes
    block by block, so that no more than a block of FolderImages is decoded at a time.
    """
    import torch

    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
        raise ValueError(f"images must be uint8 (n, h, w) or (n, h, w, 3), not {images.dtype} {images.shape}")
    if channels not in (1, 3) or side < 1 or input_size < 1:
        raise ValueError(f"channels must be 1 or 3 and sizes positive, not {channels=}, {side=}, {input_size=}")
    n, height, width = images.shape[:3]
    prepared = torch.empty((n, 3, input_size, input_size), dtype=torch.uint8)
    block = max(1, BLOCK_PIXELS // max(height * width, side**2, input_size**2))
    for start in range(0, n, block):
        x = torch.from_numpy(np.require(images[start : start + block], requirements=["C", "W"]))  # W: torch warns else
        x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)  # (b, c, h, w)
        if channels == 1 and x.shape[1] == 3:
            red, green, blue = x.float().unbind(1)
            x = (0.299 * red + 0.587 * green + 0.114 * blue).round_().to(torch.uint8)[:, None]
        prepared[start : start + block] = _square(_square(x, side), input_size)  # one channel fills all three
    return prepared


def _square(x: "torch.Tensor", side: int) -> "torch.Tensor":
    """Return the centre squares of images (n, c, h, w), uint8, resized to (n, c, side, side): bilinear, antialias."""
    import torch
    from torch.nn.functional import interpolate

    height, width = x.shape[2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    x = x[:, :, top : top + short, left : left + short]
    if short == side:
        return x
    # in float32, because the uint8 kernel, which only some processors have, rounds twice: machines would differ
    return interpolate(x.float(), size=(side, side), mode="bilinear", antialias=True).round_().to(torch.uint8)


def _side(argument: str) -> int:
    if not argument.isdecimal():
        raise ValueError(f"noise:SIDE takes a whole number of pixels, not {argument!r}")
    return int(argument)


def _check_split(name: str, split: str, splits: dict) -> None:
    if split not in splits:
        raise ValueError(f"{name!r} has no {split!r} split, only {' and '.join(map(repr, splits))}")


def stored_names(root: Path) -> set[str]:
    """Return the names of the sets whose npz files are in a root."""
    return {path.name.removesuffix(f"-{split}.npz") for split in SPLITS for path in root.glob(f"*-{split}.npz")}


def _unknown(name: str, root: Path) -> str:
    there = ", ".join(sorted(stored_names(root) - set(TORCHVISION))) or "none"
    return (
        f"unknown image set {name!r}: allowed are {', '.join(BUNDLED)}, noise:SIDE (bundled), {', '.join(TORCHVISION)} "
        f"(torchvision), {there} (npz files in {root}) and folder:PATH[@SIDE]"
    )


def split_calibration(images: ImageSet, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (training, calibration) of a training set, `fraction` of every class held out.

    A class of two or more has at least one image on either side; the only one of a class is for training. Nothing is
    trained on the calibration images: the accuracy of a history row and conformal thresholds come from them.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(images.labels):
        members = rng.permutation(np.flatnonzero(images.labels == label))
        held_out.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    held_out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(images)), held_out), held_out
