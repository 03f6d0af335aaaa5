"""Your folder: a folder of images, one sub-folder a class, is split into parts, in which every image keeps its name.

The part "train" fits encoder and clusters, "choice" chooses the detector, "calibration", which has seen neither, sets
its threshold and so can promise a false-alarm rate, "test" shows what that is worth, "ood" is there where it was given.
There is no "choice" where the encoder has seen no image: "train" then serves for that, too.
"""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from oodlib.data.folders import FolderImages, class_folders, printable, split_folders
from oodlib.data.sets import SPLITS, ImageSet, load_images, split_calibration, take
from oodlib.files import resolve

TEST_SHARE, CALIBRATION_SHARE, CHOICE_SHARE = 0.2, 0.25, 0.2  # each of the images that are left
OOD_DIGITS = "digits789"  # what the bundled digits, the default, are shown against
PICTURE_SIDE = 96  # pixels of an image that is looked at
HELD_OUT = ("choice", "calibration", "test")  # parts that no encoder has seen


@dataclass(frozen=True, eq=False)
class Part:
    """Some images, with the name (n,) of each: its path in the folder, or its place where there are no files."""

    images: ImageSet
    names: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def take(self, index: np.ndarray) -> "Part":
        whole = self.images
        files = None if whole.files is None else whole.files[index]
        chosen = replace(whole, images=take(whole.images, index), labels=whole.labels[index], files=files)
        return Part(chosen, self.names[index])

    def pictures(self, index: np.ndarray) -> np.ndarray:
        """Return some images to look at, (n, h, w[, 3]) uint8: those in files sharper than the network sees them."""
        files = self.images.files
        return take(self.images.images, index)[:] if files is None else FolderImages(files[index], PICTURE_SIDE)[:]


def read_parts(
    id_folder: str, ood_folder: str, side: int, data_root: str = "", frozen: bool = False
) -> dict[str, Part]:
    """Return the parts train, choice, calibration, test and, where a folder is given, ood.

    A folder, or the name of an image set, is read as `load_images` does; what has no train and test (or val) is split,
    every class in the same shares; where the classes are too small for that, or there are none, all images are one
    class. An encoder that is `frozen` needs no part choice, see `workflow.rank_detectors`. The images of the folder ood
    need no sub-folders; of the bundled digits these are OOD_DIGITS where no folder is given. Raises as `load_images`,
    and ValueError for too few images and for classes that only the test images have.
    """
    if not id_folder:
        raise ValueError("id_folder is empty: give a folder with one sub-folder of images a class, or an image set")
    folder = _folder(id_folder)
    if not folder and id_folder == "digits":
        ood_folder = ood_folder or OOD_DIGITS
    if folder and not (folder.is_dir() and split_folders(folder)):
        whole = _labelled(_read(id_folder, "test", side, data_root, flat=folder.is_dir() and not class_folders(folder)))
        parts = _parts(*_split(whole, TEST_SHARE), frozen)
        parts = parts if _is_enough(parts) else _parts(*_split(_as_one_class(whole), TEST_SHARE), frozen)
    else:
        train, test = (_labelled(_read(id_folder, split, side, data_root)) for split in SPLITS)
        test = replace(test, images=_with_classes(test.images, train.images.classes))
        parts = _parts(train, test, frozen)
    if not _is_enough(parts):
        n = sum(map(len, parts.values()))
        raise ValueError(f"{id_folder} is too small: {n} images; a class needs five or more")
    return parts | ({"ood": _read(ood_folder, "test", side, data_root, flat=True)} if ood_folder else {})


def _parts(train: Part, test: Part, frozen: bool) -> dict[str, Part]:
    fitted, calibration = _split(train, CALIBRATION_SHARE)
    if frozen:
        return {"train": fitted, "calibration": calibration, "test": test}
    fitted, choice = _split(fitted, CHOICE_SHARE)
    return {"train": fitted, "choice": choice, "calibration": calibration, "test": test}


def _split(part: Part, share: float) -> list[Part]:
    return [part.take(index) for index in split_calibration(part.images, share)] if len(part) else [part, part]


def _is_enough(parts: dict[str, Part]) -> bool:
    return all(len(part) for part in parts.values()) and len(parts["train"]) > 1


def _as_one_class(part: Part) -> Part:
    images = replace(part.images, labels=np.zeros_like(part.images.labels), classes=(part.images.name,))
    return replace(part, images=images)


def is_folder(name: str) -> bool:
    """Return whether a name stands for a folder of images rather than for an image set."""
    return _folder(name) is not None


def _folder(name: str) -> Path | None:
    """Return the folder that a name stands for, PATH or folder:PATH; None where it is the name of an image set."""
    path = name.removeprefix("folder:")
    folder = resolve(path)
    return folder if folder.is_dir() or path != name or "/" in name or os.sep in name else None


def _read(name: str, split: str, side: int, data_root: str, flat: bool = False) -> Part:
    folder = _folder(name)
    if not folder:
        try:
            images = load_images(name, split, data_root or None)
        except ValueError as error:
            raise ValueError(f"there is no folder {resolve(name)}, and of image sets: {error}") from error
        return Part(images, np.array([f"{split} {i}" for i in range(len(images))], dtype=object))
    images = load_images(f"folder:{folder}@{side}", split, flat=flat)
    names = [printable(os.path.relpath(path, folder)) for path in images.files]
    return Part(replace(images, name=folder.name), np.array(names, dtype=object))


def _labelled(part: Part) -> Part:
    """Return a part whose classes are those that have images. Raises ValueError where an image has no class."""
    images = part.images
    if unlabelled := int((images.labels < 0).sum()):
        raise ValueError(f"{images.name}: {unlabelled} of {len(images)} images have no class")
    present, labels = np.unique(images.labels, return_inverse=True)
    classes = tuple(images.classes[k] for k in present)
    return replace(part, images=replace(images, labels=labels.astype(np.int64), classes=classes))


def _with_classes(images: ImageSet, classes: tuple[str, ...]) -> ImageSet:
    """Return images with labels that are places in these classes, whichever of them the images have."""
    if unknown := [name for name in images.classes if name not in classes]:
        raise ValueError(f"{images.name}: class {unknown[0]!r} has test images, but no training images")
    places = np.array([classes.index(name) for name in images.classes])
    return replace(images, labels=places[images.labels], classes=classes)


def count_table(parts: dict[str, Part]) -> pd.DataFrame:
    """Return the number of images of every class, a row, in every part of the ID images, a column."""
    classes = parts["train"].images.classes
    counts = {
        name: np.bincount(part.images.labels, minlength=len(classes)) for name, part in parts.items() if name != "ood"
    }
    return pd.DataFrame(counts, index=pd.Index(classes, name="class"))


def skipped_table(parts: dict[str, Part]) -> pd.DataFrame:
    """Return what was skipped, a row a file or a class: set, file, reason."""
    rows = [{"set": images.name, "file": f, "reason": why} for images in _read_sets(parts) for f, why in images.skipped]
    return pd.DataFrame(rows, columns=["set", "file", "reason"])


def note_lines(parts: dict[str, Part]) -> list[str]:
    """Say of each set that was read how many images it has, how many files were skipped and converted, and why."""
    lines = []
    for images in _read_sets(parts):
        n = sum(len(part) for part in parts.values() if part.images.converted is images.converted)
        reasons = Counter(reason for _, reason in images.skipped)
        said = [f"{n} images"]
        for what, counted in (("skipped", reasons), ("converted", Counter(images.converted))):
            if counted:
                said.append(f"{what} {counted.total()}: " + ", ".join(f"{why} {k}" for why, k in counted.most_common()))
        lines.append(f"{images.name}: {'; '.join(said)}")
    return lines


def _read_sets(parts: dict[str, Part]) -> list[ImageSet]:
    """Return one of the parts of each folder or image set that was read: they share its notes."""
    return list({(id(part.images.converted), part.images.name): part.images for part in parts.values()}.values())
