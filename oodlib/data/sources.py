"""Sources of image sets: what scikit-learn, Pillow and the program bring along, and npz files in the data root.

Where a file is missing, torchvision's own loader fetches the set, once. Images are uint8, labels int64.
"""

import string
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from oodlib.data.decoding import photo_square
from oodlib.files import write_atomically

Arrays = tuple[np.ndarray, np.ndarray, tuple[str, ...]]

SEED = 0
TRAIN_SHARE = 0.7
N_PHOTOS, N_NOISE = 500, 1000
MAX_NOISE_SIDE = 256

# Letters that a person may read as a digit would count as errors of a detector that is right to accept them.
# An italic a is a 0, an open 4 is a y, a slanted T is a 7, and its serifs close an h to a b.
READ_AS_DIGITS = ("DOQao", "Iijl", "Zz", "J", "Yy", "Ss", "Gbh", "T", "B", "gq")  # as a 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
TOO_WIDE = "MWmw"  # squeezed to the width of a digit they are an even grey block
LETTERS = tuple(sorted(set(string.ascii_letters) - set("".join(READ_AS_DIGITS)) - set(TOO_WIDE)))
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmss10", "cmtt10", "cmb10", "cmmi10"),
)
DIGIT_SIZE = (20, 32)  # width and height that every handwritten digit was stretched to, centred in 32×32
DIGIT_INK = 313  # mean number of on-pixels of a digit's 32×32 bitmap


def digits(split: str) -> Arrays:
    """Return the handwritten digits 0–6 as (n, 8, 8) grey images: 885 in "train", 379 in "test".

    The 70/30 split is drawn within each class with a fixed seed. Source: Alpaydin & Kaynak 1998, scikit-learn's copy.
    """
    images, labels = _handwritten(0, 7)
    generator = np.random.default_rng(SEED)
    in_train = np.zeros(len(labels), dtype=bool)
    for label in range(7):
        members = generator.permutation(np.flatnonzero(labels == label))
        in_train[members[: round(TRAIN_SHARE * len(members))]] = True
    chosen = in_train if split == "train" else ~in_train
    return images[chosen], labels[chosen], tuple("0123456")


def digits789() -> Arrays:
    """Return the 533 handwritten digits 7–9 as (533, 8, 8) grey images, labels 0–2: unseen classes."""
    images, labels = _handwritten(7, 10)
    return images, labels - 7, tuple("789")


def letters() -> Arrays:
    """Return 25 printed Latin letters in 21 fonts as (525, 8, 8) grey images, made the way the digits were made.

    Size, stroke and resolution are those of `digits`, so that only the shape tells a letter from a digit. Letters that
    can be read as a digit are left out (`READ_AS_DIGITS`). Fonts: those that matplotlib installs.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images = []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 128, layout_engine=ImageFont.Layout.BASIC)
        images += [_letter(letter, font) for letter in LETTERS]
    labels = np.tile(np.arange(len(LETTERS)), len(FONTS))
    return _scale_16_to_255(np.stack(images)), labels, LETTERS


def photos() -> Arrays:
    """Return 500 random square crops of scikit-learn's two photographs as (500, 32, 32, 3) images.

    A crop is 32 to 200 pixels wide and averaged down to 32; photographs alternate; the label says which one it is.
    """
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(SEED)
    bunch = load_sample_images()
    photographs = [Image.fromarray(image) for image in bunch.images]
    labels = np.arange(N_PHOTOS) % len(photographs)
    images = np.empty((N_PHOTOS, 32, 32, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        photograph = photographs[label]
        side = int(generator.integers(32, 200, endpoint=True))
        left = int(generator.integers(0, photograph.width - side, endpoint=True))
        top = int(generator.integers(0, photograph.height - side, endpoint=True))
        corners = (left, top, left + side, top + side)
        images[i] = np.asarray(photograph.resize((32, 32), Image.Resampling.BOX, box=corners))
    return images, labels, tuple(Path(name).stem for name in bunch.filenames)


def noise(side: int = 32) -> Arrays:
    """Return 1,000 images (1000, side, side, 3) of independent uniform noise, label 0 all; side from 1 to 256."""
    if not 1 <= side <= MAX_NOISE_SIDE:
        raise ValueError(f"noise:SIDE takes a side from 1 to {MAX_NOISE_SIDE} pixels, not {side}")
    shape = (N_NOISE, side, side, 3)
    images = np.random.default_rng(SEED).integers(0, 256, size=shape, dtype=np.uint8)
    return images, np.zeros(N_NOISE, dtype=np.int64), ("noise",)


def _handwritten(first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the handwritten digits `first` to `stop - 1`: images (n, 8, 8) uint8, labels (n,) int64."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)  # (1797, 64) with 0..16, (1797,)
    chosen = (labels >= first) & (labels < stop)
    return _scale_16_to_255(values[chosen].reshape(-1, 8, 8)), labels[chosen].astype(np.int64)


def _scale_16_to_255(values: np.ndarray) -> np.ndarray:
    return np.rint(values * (255 / 16)).astype(np.uint8)


def _letter(letter: str, font) -> np.ndarray:
    """Draw one letter bright on dark as a digit was drawn: fill 20×32, even out the stroke, count 4×4 blocks, (8, 8).

    The strokes of the fonts differ twofold in width, those of the digits hardly (313 ± 33 on-pixels): ink alone would
    give a letter away. So the bitmap is taken as it is, thinned or thickened by a pixel, whichever is nearest to that.
    """
    canvas = Image.new("L", (384, 384))
    ImageDraw.Draw(canvas).text((192, 192), letter, fill=255, font=font, anchor="mm")
    glyph = canvas.crop(canvas.getbbox()).resize(DIGIT_SIZE, Image.Resampling.BOX)
    glyph = glyph.point([255 * (value >= 128) for value in range(256)])
    strokes = (glyph, glyph.filter(ImageFilter.MinFilter(3)), glyph.filter(ImageFilter.MaxFilter(3)))
    bitmaps = [np.asarray(stroke) > 0 for stroke in strokes]  # (32, 20)
    bitmap = min(bitmaps, key=lambda bits: abs(int(bits.sum()) - DIGIT_INK))
    margin = (32 - DIGIT_SIZE[0]) // 2
    return np.pad(bitmap, ((0, 0), (margin, margin))).reshape(8, 4, 8, 4).sum(axis=(1, 3))


BUNDLED = {
    "digits": {"train": partial(digits, "train"), "test": partial(digits, "test")},
    "digits789": {"test": digits789},
    "letters": {"test": letters},
    "photos": {"test": photos},
    "noise": {"test": noise},
}


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
