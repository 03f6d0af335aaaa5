"""Bundled image sets, which need no network: images uint8, labels int64 and class names of each split.

They are computed from files that scikit-learn and matplotlib install, or from a seeded generator. `digits` is the ID
set of the offline study, the others are its OOD sets: digits789 and letters near, photos far, noise a sanity check.
"""

import string
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

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
