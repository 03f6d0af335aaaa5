"""Stored image sets: an npz file is read and checked; where it is missing, torchvision's own loader fetches the set.

Nothing read here can run code, with one exception that torchvision brings: it unpickles the CIFAR files, after their
checksum has matched, the one time that it fetches them.
"""

from pathlib import Path

import numpy as np
from filelock import FileLock

from oodlib.data.bundled import Arrays
from oodlib.data.decoding import photo_square
from oodlib.files import write_atomically

STORED_SIDE = 64  # pixels, in sets of torchvision whose images vary in size


def read_npz(path: Path, classes: tuple[str, ...] | None = None) -> Arrays:
    """Read images, labels and class names from an npz file.

    Its arrays: images uint8 (n, h, w) or (n, h, w, c), c 1 or 3; labels integers (n,), -1 for none; optionally classes,
    the names. Where it has no classes, the argument's are taken, else the numbers themselves are the names.
    Raises ValueError, naming the file and what is wrong, when it is cut short, foreign or not of this form.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as stored:
                held = stored.files
                arrays = {key: np.asarray(stored[key]) for key in ("images", "labels", "classes") if key in held}
        except Exception as error:  # a damaged file fails in zipfile, zlib or NumPy, each with errors of its own
            raise ValueError(f"{path} is no npz file, is damaged, or holds Python objects: {error}") from error
    missing = {"images", "labels"} - arrays.keys()
    if missing:
        raise ValueError(f"{path} lacks {' and '.join(sorted(missing))}: it holds {', '.join(held) or 'nothing'}")
    try:
        return _checked(arrays["images"], arrays["labels"], arrays.get("classes", classes))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked(images: np.ndarray, labels: np.ndarray, classes) -> Arrays:
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise ValueError(f"images must be uint8 (n, h, w) or (n, h, w, 3), not {images.dtype} {images.shape}")
    if not images.size:
        raise ValueError(f"there are no images: their shape is {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be integers ({len(images)},), not {labels.dtype} {labels.shape}")
    labels = labels.astype(np.int64)
    low, high = int(labels.min()), int(labels.max())
    names = np.asarray([str(label) for label in range(high + 1)] if classes is None else classes)
    if names.ndim != 1 or (names.size and names.dtype.kind != "U"):
        raise ValueError(f"classes must be a row of names, not {names.dtype} {names.shape}")
    if low < -1 or high >= len(names):
        raise ValueError(f"labels go from {low} to {high}, but there are {len(names)} classes (-1 is no class)")
    return images, labels, tuple(names.tolist())


def fetch(name: str, split: str, path: Path) -> None:
    """Have torchvision download and check a set into a folder beside `path`, and write `path`, its npz.

    One process at a time fetches a set, others wait for it. Raises FileNotFoundError that names `path` and the cause.
    """
    folder = path.parent / "torchvision" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not path.exists():
                images, labels, classes = _download(name, split, folder)
                write_atomically(path, lambda file: np.savez(file, images=images, labels=labels, classes=classes))
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise FileNotFoundError(
            f"{path} is not there, and torchvision's download of {name!r} to {folder} failed: {cause}"
        ) from error


def _download(name: str, split: str, folder: Path) -> Arrays:
    from torchvision import datasets

    loader, options, varying_size = TORCHVISION[name]
    found = getattr(datasets, loader)(str(folder), download=True, **options[split])
    images, labels = [], []
    for i in range(len(found)):
        image, label = found[i]
        images.append(photo_square(image, STORED_SIDE) if varying_size else np.asarray(image))
        labels.append(label)
    index = getattr(found, "class_to_idx", None) or {str(label): label for label in range(max(labels) + 1)}
    return np.stack(images), np.array(labels, dtype=np.int64), tuple(sorted(index, key=index.get))


_FLAG = {"train": {"train": True}, "test": {"train": False}}
_WORD = {"train": {"split": "train"}, "test": {"split": "test"}}
TORCHVISION = {  # name: (class in torchvision.datasets, its options for each split, whether its images vary in size)
    "cifar10": ("CIFAR10", _FLAG, False),
    "cifar100": ("CIFAR100", _FLAG, False),
    "svhn": ("SVHN", _WORD, False),
    "mnist": ("MNIST", _FLAG, False),
    "fashionmnist": ("FashionMNIST", _FLAG, False),
    "kmnist": ("KMNIST", _FLAG, False),
    "dtd": ("DTD", _WORD, True),
    "places365": ("Places365", {"test": {"split": "val", "small": True}}, True),  # the training images are 24 GB
}
