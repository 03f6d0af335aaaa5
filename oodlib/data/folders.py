"""Image folders: one sub-folder of images for each class gives images, labels and class names.

A folder of photographs holds files of every kind. What can be shown becomes a square RGB image, and is counted where
that changes more than its size; what cannot is skipped and listed with the reason. A set too large for memory comes
out as `FolderImages`, decoded when it is asked for.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from oodlib.data.decoding import decode, read_headers, reason_of

MAX_SIDE = 4096
IN_MEMORY_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Images in files, decoded when they are asked for: stands for an array (n, side, side, 3) uint8.

    An index gives that part of the array, as NumPy would; ValueError names a file that cannot be decoded.
    """

    paths: np.ndarray  # (n,) of str
    side: int
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.paths), self.side, self.side, 3)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        chosen = self.paths[index]
        paths = np.atleast_1d(chosen)
        images, failed = decode(paths, self.side)
        for i, reason in failed.items():
            raise ValueError(f"cannot read the image {printable(paths[i])}: {reason}")
        return images if isinstance(chosen, np.ndarray) else images[0]

    def take(self, index: slice | np.ndarray) -> "FolderImages":
        """Return a selection by a slice, indices or a mask; nothing is decoded."""
        return FolderImages(self.paths[index], self.side)


Images = np.ndarray | FolderImages
FolderSet = tuple[Images, np.ndarray, tuple[str, ...], tuple[tuple[str, str], ...], dict[str, int], np.ndarray]


def read_folder(folder: Path, split: str, side: int, flat: bool = False) -> FolderSet:
    """Read an image folder: images (n, side, side, 3) uint8, labels (n,) int64, classes, skipped, converted, files.

    Its sub-folders are the classes, with whatever is below them, in the order of torchvision's ImageFolder. The folders
    train and test, or val where there is no test, are the splits (see `split_folders`); where there is none, the folder
    itself is the split "test". `flat`: files that are in no sub-folder count, too, as a class of the folder's name. The
    images are `FolderImages` where they would fill more than IN_MEMORY_BYTES.
    `skipped` holds (path in the folder, reason) of files, hidden folders and classes without an image; `converted`
    counts the images that were no upright RGB of 8 bit, by what their headers tell (see `decoding.read_headers`);
    `files` (n,) is the path of each image.
    Raises FileNotFoundError where there is no folder, ValueError for a split that is not there, or has other classes
    than the other one, for a side out of range, and where no image is left.
    """
    if not 1 <= side <= MAX_SIDE:
        raise ValueError(f"the images of a folder have a side from 1 to {MAX_SIDE} pixels, not {side}")
    root = _split_folder(folder, split)
    paths, skipped = _files(root, flat)
    conversions, no_images = read_headers(paths)
    images, paths, broken = _load(list(conversions), side)
    parents = [os.path.dirname(path)[len(root) + 1 :] for path in paths]
    owners = [parent.split(os.sep)[0] or folder.name for parent in parents]
    number = {name: i for i, name in enumerate(sorted(set(owners)))}
    empty = {f"{root}/{name}": "a class without an image" for name in class_folders(root) if name not in number}
    skipped = empty | skipped | no_images | broken
    listed = tuple((printable(os.path.relpath(path, folder)), skipped[path]) for path in sorted(skipped))
    if not paths:
        first = "; ".join(f"{path}: {reason}" for path, reason in listed[:3]) or "it is empty"
        raise ValueError(f"no image in {root}: expected is one sub-folder of images for each class ({first})")
    if not flat:
        _check_classes(folder, split, set(number))
    converted = Counter(word for path in paths for word in conversions[path])
    labels = np.array([number[name] for name in owners], dtype=np.int64)
    files = np.array(paths, dtype=object)
    return images, labels, tuple(map(printable, number)), listed, dict(sorted(converted.items())), files


def split_folders(folder: Path) -> dict[str, str]:
    """Return the folders of the splits that a folder has, "train" and "test"; none where its sub-folders are classes.

    A class may be called train, test or val: splits are where there is nothing else, or where train and test (or val)
    have class folders of their own.
    """
    names = set(class_folders(folder))
    test = next((name for name in ("test", "val") if name in names), "")
    found = {"train": "train"} if "train" in names else {}
    found |= {"test": test} if test else {}
    alone = names <= {"train", "test", "val"}
    if not alone and not (len(found) == 2 and all(class_folders(folder / name) for name in found.values())):
        return {}
    return {split: str(folder / name) for split, name in found.items()}


def _split_folder(folder: Path, split: str) -> str:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: expected is one sub-folder of images for each class")
    splits = split_folders(folder)
    if split not in splits and (split == "train" or splits):
        raise ValueError(
            f"{folder} has no {split!r} split: expected are the folders {folder}/train and {folder}/test (or val)"
        )
    return splits.get(split, str(folder))


def _check_classes(folder: Path, split: str, classes: set[str]) -> None:
    """Raise ValueError where the other split of a folder has other classes: labels would mean something else there."""
    splits = split_folders(folder)
    for other in splits.keys() - {split}:
        theirs = {name for name in class_folders(splits[other]) if _has_image(f"{splits[other]}/{name}")}
        for alone, of, lacking in ((classes - theirs, split, other), (theirs - classes, other, split)):
            if alone and theirs:
                named = ", ".join(printable(name) for name in sorted(alone)[:5]) + ", …" * (len(alone) > 5)
                raise ValueError(f"{folder}: {of} has classes without an image in {lacking}: {named}")


def _has_image(folder: str) -> bool:
    files = sorted(path for path, reason in _walk(folder, ()) if not reason)
    return any(read_headers(files[i : i + 8])[0] for i in range(0, len(files), 8))


def class_folders(root: str | Path) -> list[str]:
    """Return the names of the folders in a folder that are not hidden."""
    return [entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]


def _files(root: str, flat: bool) -> tuple[list[str], dict[str, str]]:
    """Return the files in the class folders, sorted by folder, then name, and the reason for each that is left out."""
    found = dict(_walk(root, ()))
    loose = [path for path in found if not found[path] and os.path.dirname(path) == root]
    outside = {} if flat else dict.fromkeys(loose, "in no class folder")
    skipped = {path: reason for path, reason in found.items() if reason} | outside
    return sorted(found.keys() - skipped.keys(), key=os.path.split), skipped


def list_files(folder: str | Path) -> list[tuple[str, str]]:
    """Return each path below a folder that is no folder to look into, with "" or the reason why it is skipped."""
    return sorted(_walk(str(folder), ()))


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield each path below a folder that is no folder to look into, with "" or the reason why it is skipped."""
    place = os.path.realpath(folder)
    try:
        names = os.listdir(folder) if place not in above else []  # a link to a folder above would never end
    except OSError as error:
        names = []
        yield folder, reason_of(error)
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith("."):
            yield path, "hidden"
        elif os.path.isdir(path):
            yield from _walk(path, (*above, place))
        else:
            yield path, "" if os.path.isfile(path) else "not a file"  # a dead link, or a pipe, which would never end


def _load(paths: list[str], side: int) -> tuple[Images, list[str], dict[str, str]]:
    """Return images, their paths, and the reason for each that is left out because it fails when decoded now."""
    images = FolderImages(np.array(paths, dtype=object), side)
    if math.prod(images.shape) > IN_MEMORY_BYTES:
        return images, paths, {}
    array, failed = decode(paths, side)
    if failed:
        array = np.delete(array, list(failed), axis=0)
    kept = [path for i, path in enumerate(paths) if i not in failed]
    return array, kept, {paths[i]: reason for i, reason in failed.items()}


def printable(name: str) -> str:
    """Return a name with what neither a terminal nor UTF-8 takes, such as undecodable bytes, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
