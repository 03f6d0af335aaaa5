"""Files of every kind to pixels: each made by Pillow with known values, or broken by hand."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from oodlib.data.decoding import decode, photo_square, read_headers, reason_of


def one(path, side=1):
    """Decode one file that can be: (side, side, 3), and the words for its conversions."""
    images, failed = decode([str(path)], side)
    conversions, no_images = read_headers([str(path)])
    assert failed == no_images == {}
    return images[0], conversions[str(path)]


def reasons(path):
    """Return why a file is no image by its header, and by decoding it; "" where it is one."""
    return read_headers([str(path)])[1].get(str(path), ""), decode([str(path)], 4)[1].get(0, "")


def picture(height=40, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm", "webp", "jp2"])
def test_rgb_of_the_right_side_passes_bit_by_bit_and_cut_short_it_has_a_reason(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(picture()).save(path, **({"lossless": True} if ending == "webp" else {}))
    pixels, words = one(path, 40)
    np.testing.assert_array_equal(pixels, picture())
    assert words == []
    whole = path.read_bytes()
    for share in (0.02, 0.5):
        path.write_bytes(whole[: int(share * len(whole))])
        by_header, by_decoding = reasons(path)
        assert by_decoding
        assert by_header in ("", by_decoding)
        assert "\n" not in by_decoding
        assert str(tmp_path) not in by_decoding


COLOURS = [  # mode, colour, the same in RGB, the words, endings
    ("1", 255, (255, 255, 255), ["grey"], "png tif"),
    ("L", 77, (77, 77, 77), ["grey"], "png jpg"),
    ("CMYK", (0, 100, 255, 51), (204, 124, 0), ["CMYK"], "tif jpg"),  # (1 - ink) (1 - black): 155 × 0.8
    ("LA", (55, 51), (215, 215, 215), ["grey", "transparent"], "png"),
    ("RGBA", (9, 8, 7, 255), (9, 8, 7), ["transparent"], "png tif"),
    ("RGBA", (9, 8, 7, 0), (255, 255, 255), ["transparent"], "png tif"),
    ("RGBA", (0, 255, 55, 51), (204, 255, 215), ["transparent"], "png tif"),
]


@pytest.mark.parametrize(("mode", "colour", "expected", "words", "endings"), COLOURS)
def test_modes_become_rgb_with_transparency_on_white(tmp_path, mode, colour, expected, words, endings):
    for ending in endings.split():
        options = {"quality": 100} if ending == "jpg" else {}
        Image.new(mode, (8, 8), colour).save(tmp_path / f"a.{ending}", **options)
        pixels, found = one(tmp_path / f"a.{ending}")
        assert abs(pixels[0, 0].astype(int) - expected).max() <= (1 if ending == "jpg" else 0)
        assert found == words


@pytest.mark.parametrize("transparency", [1, b"\xff\x00", b"\xff\x33"])
def test_a_palette_with_transparency_is_laid_on_white(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 0, 55, 255])
    image.save(tmp_path / "a.png", transparency=transparency)
    right = (204, 215, 255) if transparency == b"\xff\x33" else (255, 255, 255)  # 51 of 255: a fifth of its colour
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "P"
        flat = np.stack([photo_square(opened.crop((x, 0, x + 1, 1)), 1)[0, 0] for x in range(2)])
    assert flat.tolist() == [[10, 20, 30], list(right)]
    assert one(tmp_path / "a.png")[1] == ["palette", "transparent"]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, ending):
    for level, expected in {0: 0, 128: 0, 129: 1, 257: 1, 32768: 128, 65278: 254, 65535: 255}.items():  # level / 257
        Image.fromarray(np.full((8, 8), level, dtype=np.uint16)).save(tmp_path / f"a.{ending}")
        pixels, words = one(tmp_path / f"a.{ending}")
        assert pixels[0, 0].tolist() == [expected] * 3
        assert words == ["grey", "16 bit"]


def tiff(samples, bits, dtype):
    """Return the bytes of an uncompressed TIFF, one row of `samples`, (w, channels); Pillow writes none this deep."""
    width, channels = samples.shape
    values = samples.astype(dtype).tobytes() if bits == 16 else pack12(samples.ravel())
    depth_at, data_at = 200, 220
    tags = [(256, 4, 1, width), (257, 4, 1, 1), (259, 3, 1, 1), (262, 3, 1, 1 if channels == 1 else 2)]
    tags += [(258, 3, channels, bits if channels == 1 else depth_at), (273, 4, 1, data_at), (277, 3, 1, channels)]
    tags += [(278, 4, 1, 1), (279, 4, 1, len(values))]
    directory = b"".join(
        np.array(tag[:2], "<u2").tobytes() + np.array(tag[2:], "<u4").tobytes() for tag in sorted(tags)
    )
    head = b"II*\0" + np.array(8, "<u4").tobytes() + np.array(len(tags), "<u2").tobytes() + directory + bytes(4)
    return head.ljust(depth_at, b"\0") + np.full(10, bits, "<u2").tobytes() + values


def pack12(values):
    bits = "".join(f"{value:012b}" for value in values)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_other_depths_have_their_own_white_or_none(tmp_path):
    path = tmp_path / "a.tif"
    for level, expected in ((0, 0), (2048, 128), (4095, 255)):
        path.write_bytes(tiff(np.full((2, 1), level), 12, "<u2"))
        assert one(path)[0][0, 0].tolist() == [expected] * 3
    path.write_bytes(tiff(np.array([[65535, 32768, 256]]), 16, "<u2"))
    pixels, words = one(path)
    assert (pixels[0, 0].tolist(), words) == ([255, 128, 1], ["16 bit"])
    for mode in ("I", "F"):
        Image.new(mode, (4, 4), 1).save(path)
        assert reasons(path) == (f"mode {mode}, 32 bit, has no known white",) * 2


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, ending):
    corners = np.zeros((16, 16, 3), dtype=np.uint8)
    corners[:8, :8, 0] = corners[:8, 8:, 1] = corners[8:, :8, 2] = 255  # red, green over blue, black
    names = {(255, 0, 0): "r", (0, 255, 0): "g", (0, 0, 255): "b", (0, 0, 0): "k"}
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    # where red, green, blue, black are shown: the meaning of the tag, by rows and columns of the file
    upright = {1: "rgbk", 2: "grkb", 3: "kbgr", 4: "bkrg", 5: "rbgk", 6: "brkg", 7: "kgbr", 8: "gkrb"}
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(corners).save(tmp_path / f"a.{ending}", exif=exif, **options)
        pixels, words = one(tmp_path / f"a.{ending}", 2)
        seen = [names[tuple(255 * (p > 127) for p in pixel)] for pixel in pixels.reshape(4, 3).tolist()]
        assert "".join(seen) == expected
        assert words == ([] if orientation == 1 else ["rotated"])


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0no such thing", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0", "\nexif\n 4\nno number"]
)
def test_broken_exif_costs_no_image(tmp_path, exif):
    path, image = tmp_path / "a", Image.new("RGB", (8, 8), (50, 100, 150))
    if isinstance(exif, str):  # in the text of a PNG
        text = PngImagePlugin.PngInfo()
        text.add_text("Raw profile type exif", exif)
        image.save(path, "PNG", pnginfo=text)
        with Image.open(path) as opened, pytest.raises(ValueError, match="fromhex"):
            ImageOps.exif_transpose(opened)
    else:
        image.save(path, "JPEG", exif=exif, quality=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own word on it would stand between the lines of a run
        pixels, words = one(path)
    assert abs(pixels[0, 0].astype(int) - [50, 100, 150]).max() <= 1
    assert words == []


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif", "mpo"])
def test_of_several_frames_the_first_is_taken_also_where_the_second_is_cut_short(tmp_path, ending):
    path, frames = tmp_path / f"a.{ending}", [Image.new("RGB", (8, 8), c) for c in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    pixels, words = one(path)
    assert abs(pixels[0, 0].astype(int) - [255, 0, 0]).max() <= 2
    assert words == (["palette", "first frame"] if ending == "gif" else ["first frame"])
    if ending == "gif":
        frames = [Image.fromarray(picture(seed=seed)) for seed in range(2)]
        frames[0].save(path)
        length = path.stat().st_size
        frames[0].save(path, save_all=True, append_images=frames[1:])
        whole, first = path.read_bytes(), one(path, 40)[0]
        for end in (*range(length + 20, length + 50, 4), len(whole) - 500):  # in its header and in its pixels
            path.write_bytes(whole[:end])
            np.testing.assert_array_equal(one(path, 40)[0], first)


def test_a_file_is_what_it_holds_and_not_what_it_is_called(tmp_path):
    path = tmp_path / "a.png"
    for content in (b"some text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"<svg/>", bytes(1000)):
        path.write_bytes(content)
        assert reasons(path) == ("no image of a format that is read here",) * 2
    Image.new("RGB", (4, 4)).save(path, format="EPS")  # which another program would draw
    assert reasons(path) == ("no image of a format that is read here",) * 2
    path.write_bytes(b"")
    assert reasons(path) == ("empty",) * 2
    for size in ((4, 4), (1, 500)):  # a tiny one is enlarged
        Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.txt", format="PNG")
        assert (one(tmp_path / "a.txt", 64)[0] == (1, 2, 3)).all()
    assert reason_of(OSError(13, "Permission denied", "/somewhere/a.png")) == "Permission denied"
    assert reason_of(ValueError("two\n lines")) == "two lines"
    assert reason_of(MemoryError()) == "MemoryError"


@pytest.mark.parametrize("limit", [399, 150])  # one and two times the limit: Pillow warns, then refuses
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, limit):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    assert reasons(tmp_path / "a.png") == ("", "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    by_header, by_decoding = reasons(tmp_path / "a.png")
    assert by_header == by_decoding
    assert "(400 pixels) exceeds limit" in by_header


@pytest.mark.parametrize(("height", "width"), [(20, 60), (60, 20), (21, 60), (33, 33)])
@pytest.mark.parametrize("side", [8, 20, 50])
def test_the_centre_square_is_resized_and_nothing_beyond_it(height, width, side):
    array = picture(height, width)
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    pixels = photo_square(Image.fromarray(array), side)
    assert (pixels.shape, pixels.dtype) == ((side, side, 3), np.uint8)
    array[:top], array[top + short :], array[:, :left], array[:, left + short :] = 0, 0, 0, 0
    np.testing.assert_array_equal(photo_square(Image.fromarray(array), side), pixels)
    centre = Image.fromarray(array[top : top + short, left : left + short])
    np.testing.assert_array_equal(pixels, ImageOps.fit(centre, (side, side), Image.Resampling.BILINEAR))


def test_many_files_keep_their_order_and_no_warning_filter_is_left(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(60)]
    for i, path in enumerate(paths):
        Image.new("L", (30 if i % 7 else 400,) * 2, i).save(path)  # some take longer
    os.remove(paths[5])
    (tmp_path / "50.png").write_bytes(b"no")
    before = list(warnings.filters)
    images, failed = decode(paths, 3)
    assert failed == {5: "No such file or directory", 50: "no image of a format that is read here"}
    right = [i for i in range(60) if i not in failed]
    assert images[right, 1, 1].tolist() == [[i] * 3 for i in right]
    assert warnings.filters == before
    assert decode([], 3)[0].shape == (0, 3, 3, 3)


def test_headers_are_read_without_decoding(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"a.{ending}") for ending in ("png", "jpg", "gif", "tif", "bmp", "webp")]
    for path in paths:
        Image.fromarray(picture()).save(path)
    loaded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loaded.append(image.format) or load(image))
    assert read_headers(paths)[0] == {path: ["palette"] if path.endswith("gif") else [] for path in paths}
    assert loaded == []
    decode(paths[:1], 4)
    assert set(loaded) == {"PNG"}


def test_the_callers_image_stays_as_it_is():
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    image.getexif()[0x0112] = 6  # turn a quarter
    before = np.asarray(image).copy()
    assert np.array_equal(photo_square(image, 2), photo_square(image, 2))
    assert np.array_equal(np.asarray(image), before)
