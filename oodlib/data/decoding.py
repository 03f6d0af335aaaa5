"""Decoding: image files become square RGB arrays, and each file that cannot has a reason.

Pillow decodes, in threads, the formats that it knows by their first bytes; those that it would hand to another program
are left out. A file that fails stops nothing.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
WORDS = {**dict.fromkeys(("1", "L", "LA", "La", "I"), "grey"), "P": "palette", "PA": "palette"}  # for Pillow's modes
BITS_PER_SAMPLE, ORIENTATION = 258, 274  # tags of TIFF and EXIF


def usable_cores() -> int:
    """Return how many cores this process may use: a Slurm job or a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


n_threads = usable_cores()  # that decode; a process that is one of many decoders sets it to 1


def decode(paths: Sequence[str], side: int) -> tuple[np.ndarray, dict[int, str]]:
    """Return images (n, side, side, 3) uint8 of n files, and the reason for each that fails, by its index."""
    images = np.empty((len(paths), side, side, 3), dtype=np.uint8)
    failed = {}
    for i, (image, reason) in enumerate(_in_threads(partial(photo_square, side=side), paths)):
        if reason:
            failed[i] = reason
        else:
            images[i] = image
    return images, failed


def read_headers(paths: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return, by path, what decoding each image will change, and the reason for each file that is none.

    The words: grey, palette, CMYK and other modes by Pillow's name; 16 bit, transparent, rotated, first frame.
    """
    results = list(zip(paths, _in_threads(_conversions, paths), strict=True))
    conversions = {path: words for path, (words, reason) in results if not reason}
    return conversions, {path: reason for path, (_, reason) in results if reason}


def reason_of(error: Exception) -> str:
    """Return what an error says in one line, without the path that an OSError repeats."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def photo_square(image: Image.Image, side: int) -> np.ndarray:
    """Return an image of any mode as upright RGB, transparency on white, its centre resized: (side, side, 3) uint8.

    Resizing is Pillow's, bilinear with antialias, in integers: the same on every machine. An animation gives its first
    frame; colour profiles are ignored. Raises ValueError for a mode without a known white, and Pillow's errors.
    """
    image = _rgb(image)
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    centre = image.crop((left, top, left + short, top + short))  # the filter of resize(box=…) would look beyond it
    return np.asarray(centre.resize((side, side), Image.Resampling.BILINEAR))


def _rgb(image: Image.Image) -> Image.Image:
    white = _white(image)
    image.load()
    with suppress(Exception):  # where EXIF is broken the image is taken as it is stored
        image = ImageOps.exif_transpose(image)
    if white is not None:
        return Image.fromarray(np.rint(np.asarray(image) * (255 / white)).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", layer.size, "white")
    canvas.paste(layer, mask=layer)
    return canvas


def _white(image: Image.Image) -> int | None:
    """Return the value that is white in a single deep channel, None for modes of 8 bit, of which Pillow knows it."""
    if image.mode.startswith("I;16"):
        return 2 ** getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0] - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 2**16 - 1
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}, 32 bit, has no known white")
    return None


def _conversions(image: Image.Image) -> list[str]:
    rotated, animated = False, True
    with suppress(Exception):  # PNG's own getexif would decode the image
        rotated = Image.Image.getexif(image).get(ORIENTATION) in range(2, 9)
    with suppress(Exception):  # in the second frame
        animated = getattr(image, "is_animated", False)
    mode = image.mode.partition(";")[0]
    conversions = {
        WORDS.get(mode, mode): mode not in ("RGB", "RGBA", "RGBa"),
        "16 bit": _white(image) is not None or ";16" in str(image.tile[:1]),  # colour is 8 bit, but its raw mode tells
        "transparent": image.has_transparency_data,
        "rotated": rotated,
        "first frame": animated,
    }
    return [word for word, holds in conversions.items() if holds]


def _in_threads(function: Callable, paths: Sequence[str]) -> Iterator[tuple]:
    """Yield, in order, (function(image), "") of each file, or (None, reason) where that fails."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # AVIF came late to Pillow
    pending = deque()
    with warnings.catch_warnings(), ThreadPoolExecutor(n_threads) as pool:
        warnings.simplefilter("ignore")  # about files that Pillow reads all the same
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for path in paths:
            pending.append(pool.submit(_attempt, function, formats, path))
            if len(pending) > 4 * n_threads:  # a million files must not wait, nor a million results
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _attempt(function: Callable, formats: list[str], path: str) -> tuple:
    try:
        if not os.path.getsize(path):
            return None, "empty"
        with Image.open(path, formats=formats) as image:
            return function(image), ""
    except UnidentifiedImageError:
        return None, "no image of a format that is read here"
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
        return None, reason_of(error)
