"""Image folders: classes, order and splits against torchvision's, odd files by hand, decoding later against now."""

import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from oodlib.data import decoding, folders, load_images, prepare, take
from oodlib.data.folders import FolderImages


def write_folder(folder, sizes, mode="RGB"):
    """Write one class for each size (width, height), holding two images: one grey level, the class's and ten more."""
    for i, size in enumerate(sizes):
        (folder / f"class{i}").mkdir(parents=True)
        for j in range(2):
            level = 40 * i + 10 * j
            Image.new("RGB", size, (level,) * 3).convert(mode).save(folder / f"class{i}" / f"{j}.png")
    return folder


def write_noise(folder, names, side=12):
    """Write an image of noise at each of these paths below the folder."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size=(side, side, 3), dtype=np.uint8)).save(folder / name)
    return folder


def load(folder, split="test", side=8):
    return load_images(f"folder:{folder}@{side}", split)


def test_a_folder_without_splits_is_a_test_set(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "pictures", [(80, 60), (60, 80), (10, 10)])
    monkeypatch.chdir(tmp_path)
    pictures = load_images("folder:pictures@16")
    assert pictures.images.shape == (6, 16, 16, 3)
    assert pictures.images.dtype == np.uint8
    assert pictures.images[:, 5, 5, 0].tolist() == [0, 10, 40, 50, 80, 90]
    assert (pictures.labels.tolist(), pictures.labels.dtype) == ([0, 0, 1, 1, 2, 2], np.int64)
    assert pictures.classes == ("class0", "class1", "class2")
    assert (pictures.name, pictures.skipped, pictures.converted) == ("folder:pictures@16", (), {})
    assert load_images(f"folder:{tmp_path}/pictures").images.shape == (6, 64, 64, 3)
    with pytest.raises(ValueError, match=r"has no 'train' split: expected are the folders .*pictures/train and"):
        load_images("folder:pictures", "train")
    assert capsys.readouterr().out == ""  # there is nothing to say


@pytest.mark.parametrize(("name", "side"), [("me@home", 64), ("2024@07@x", 64), ("", 64), ("@9", 9)])
def test_only_a_trailing_number_is_a_side(tmp_path, name, side):
    write_folder(tmp_path / name, [(8, 8)])
    assert load_images(f"folder:{tmp_path}/{name}@5").images.shape == (2, 5, 5, 3)
    if name != "@9":
        assert load_images(f"folder:{tmp_path}/{name}").images.shape == (2, 64, 64, 3)


def test_a_folder_with_splits(tmp_path):
    write_folder(tmp_path / "train", [(8, 8), (8, 8)], mode="L")
    write_folder(tmp_path / "test", [(8, 8), (8, 8)], mode="RGBA")
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert (train.labels.tolist(), train.converted) == ([0, 0, 1, 1], {"grey": 4})
    assert (test.labels.tolist(), test.converted) == ([0, 0, 1, 1], {"transparent": 4})
    shutil.rmtree(tmp_path / "test" / "class1")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match="train has classes without an image in test: class1$"):
            load(tmp_path, split)
    write_noise(tmp_path, ["beside/0.png"])  # both splits have class folders: it is no class beside them
    with pytest.raises(ValueError, match="without an image in test: class1$"):
        load(tmp_path, "test")
    shutil.rmtree(tmp_path / "beside")
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(ValueError, match="has no 'test' split"):  # train is a split, not a class of a test set
        load(tmp_path, "test")


NAMES = ["b/2.png", "b/10.png", "b/sub/0.png", "b/sub/deep/1.png", "b/sub.png", "B/x.png", "a b/ü.png", "a/z.png"]


def test_classes_labels_and_order_are_torchvisions(tmp_path):
    ours, theirs = load(write_noise(tmp_path, NAMES), side=12), ImageFolder(str(tmp_path))
    assert list(ours.classes) == theirs.classes == ["B", "a", "a b", "b"]
    assert ours.labels.tolist() == theirs.targets
    np.testing.assert_array_equal(ours.images, np.stack([np.asarray(image) for image, _ in theirs]))


def test_folders_that_are_none_say_so(tmp_path):
    def refused(path, message, **options):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            load(path, **options)

    refused(tmp_path / "nowhere", "nowhere")
    for side in (0, 4097, 10**12):
        refused(tmp_path, f"from 1 to 4096 pixels, not {side}", side=side)
    refused(tmp_path, r"no image in .*: expected is one sub-folder of images .* \(it is empty\)")
    (tmp_path / "hollow").mkdir()
    write_noise(tmp_path, ["flat.png"])
    refused(tmp_path, r"no image in .*\(flat.png: in no class folder; hollow: a class without an image\)")


def write_odd(folder):
    """Write a class of each kind of file that is no plain image, and return what is to be said of them."""
    write_noise(folder, [f"b/{i}.png" for i in range(3)] + ["in no class.png", ".hidden/0.png", "b/.hidden.png"])
    for name in ("c/a.txt", "c/b.jpg", "d/only.png", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    (folder / "c/empty.png").touch()
    Image.new("CMYK", (8, 8)).save(folder / "c/1.jpg")
    Image.new("CMYK", (8, 8)).save(folder / "c/2.tif")
    Image.fromarray(np.full((8, 8), 25700, dtype=np.uint16)).save(folder / "c/3.png")
    (folder / "a lone class").mkdir()
    whole = (folder / "b/1.png").read_bytes()
    (folder / "b/1.png").write_bytes(whole[:200])
    os.mkfifo(folder / "b/pipe.png")
    (folder / "b/dead.png").symlink_to("nowhere.png")
    (folder / "b/loop").symlink_to("loop")
    return (
        (".hidden", "hidden"),
        ("a lone class", "a class without an image"),
        ("b/.hidden.png", "hidden"),
        ("b/1.png", "image file is truncated"),
        ("b/dead.png", "not a file"),
        ("b/loop", "not a file"),
        ("b/pipe.png", "not a file"),
        ("c/a.txt", "no image of a format that is read here"),
        ("c/b.jpg", "no image of a format that is read here"),
        ("c/empty.png", "empty"),
        ("d", "a class without an image"),
        ("d/only.png", "no image of a format that is read here"),
        ("in no class.png", "in no class folder"),
        ("notes.txt", "in no class folder"),
    )


@pytest.mark.parametrize("n_threads", [1, 3])
def test_odd_files_are_skipped_and_counted_and_said(tmp_path, monkeypatch, capsys, n_threads):
    monkeypatch.setattr(decoding, "n_threads", n_threads)
    expected = write_odd(tmp_path)
    found = load(tmp_path, side=12)
    assert found.skipped == expected
    assert found.converted == {"16 bit": 1, "CMYK": 2, "grey": 1}
    assert (found.classes, found.labels.tolist()) == (("b", "c"), [0, 0, 1, 1, 1])
    for i, name in enumerate(("b/0.png", "b/2.png")):
        np.testing.assert_array_equal(found.images[i], np.asarray(Image.open(tmp_path / name)))
    assert found.images[2:, 5, 5].tolist() == [[255] * 3, [255] * 3, [100] * 3]
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}: 5 images; 14 skipped (.hidden: hidden, a lone class: a class without an ima")
    assert said.endswith(", …); converted: 16 bit 1, CMYK 2, grey 1\n")


def test_a_class_that_cannot_be_decoded_or_read_is_dropped_and_the_labels_close_up(tmp_path, monkeypatch):
    write_noise(tmp_path, ["a/0.png", "b/0.png", "c/0.png", "d/0.png"])
    Image.new("L", (300, 300)).save(tmp_path / "b/1.bmp")
    for name in ("b/0.png", "b/1.bmp"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    listdir = os.listdir

    def refusing(path):
        if path == str(tmp_path / "d"):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    found = load(tmp_path)
    assert (found.classes, found.labels.tolist(), found.converted) == (("a", "c"), [0, 1], {})  # grey, but broken
    assert [path for path, _ in found.skipped] == ["b", "b/0.png", "b/1.bmp", "d"]
    assert found.skipped[-1] == ("d", "Permission denied")


def test_links_are_followed_but_never_round_and_round(tmp_path):
    write_noise(tmp_path / "elsewhere", ["0.png", "1.png"])
    write_noise(tmp_path / "set", ["a/0.png"])
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/a/up").symlink_to(tmp_path / "set")
    (tmp_path / "set/a/itself").symlink_to(tmp_path / "set/a")
    found = load(tmp_path / "set")
    assert (found.classes, found.labels.tolist(), found.skipped) == (("a", "b"), [0, 1, 1], ())


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_names_that_no_terminal_takes_are_escaped(tmp_path, capsys):
    write_noise(tmp_path, ["größe/0.png"])
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(odd)
    for name in (b"/a\nb.png", b"/\xff.txt"):
        with open(odd + name, "wb") as file:
            file.write((tmp_path / "größe/0.png").read_bytes() if name.endswith(b"png") else b"text")
    found = load(tmp_path)
    assert (found.classes, found.labels.tolist()) == (("caf\\udce9", "größe"), [0, 1])
    assert found.skipped == (("caf\\udce9/\\udcff.txt", "no image of a format that is read here"),)
    capsys.readouterr().out.encode("utf-8")


@pytest.fixture
def both(tmp_path, monkeypatch):
    """Return the same folder, of odd files without a broken one, in memory and decoded later."""
    write_odd(tmp_path)
    (tmp_path / "b/1.png").unlink()
    write_noise(tmp_path, [f"b/{i}.png" for i in range(10, 17)], side=20)
    now = load(tmp_path)
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 12 * 8 * 8 * 3 - 1)
    return now, load(tmp_path)


@pytest.fixture
def decoded(monkeypatch):
    """Return the list that every decoded image's side is added to."""
    sides, photo_square = [], decoding.photo_square

    def counted(image, side):
        sides.append(side)
        return photo_square(image, side)

    monkeypatch.setattr(decoding, "photo_square", counted)
    return sides


INDICES = [slice(None), slice(2, 9, 3), slice(None, None, -1), slice(5, 5), slice(8, 99)]
INDICES += [np.array([7, 0, 0, 11, -1]), np.array([], dtype=int), np.arange(12) % 3 == 0, [3, 1]]
PLACES = [4, -2, np.int64(9)]


def test_decoded_later_all_is_the_same(both, tmp_path, monkeypatch):
    now, later = both
    assert (len(now), type(now.images), type(later.images)) == (12, np.ndarray, FolderImages)
    for name in ("shape", "dtype", "ndim"):
        assert getattr(now.images, name) == getattr(later.images, name)
    assert len(now) == len(later) == len(later.images)
    assert (now.classes, now.skipped, now.converted) == (later.classes, later.skipped, later.converted)
    np.testing.assert_array_equal(now.labels, later.labels)
    np.testing.assert_array_equal(np.stack(list(later.images)), now.images)
    for index in INDICES + PLACES:
        found = later.images[index]
        assert (type(found), found.dtype) == (np.ndarray, np.uint8)
        np.testing.assert_array_equal(found, now.images[index])
    with pytest.raises(IndexError):
        later.images[12]
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 12 * 8 * 8 * 3)  # the size of the array
    assert isinstance(load(tmp_path).images, np.ndarray)
    assert isinstance(load(tmp_path, side=9).images, FolderImages)


def test_take_selects_without_decoding(both, decoded):
    now, later = both
    for index in INDICES:
        taken = take(later.images, index)
        assert isinstance(taken, FolderImages)
        assert len(taken) == len(take(now.images, index))
    twice = take(take(later.images, slice(2, None)), np.array([5, 3]))
    assert decoded == []
    np.testing.assert_array_equal(twice[:], take(take(now.images, slice(2, None)), np.array([5, 3])))
    assert decoded == [8, 8]


def test_prepare_decodes_block_by_block(both, monkeypatch, decoded):
    now, later = both
    expected = prepare(now.images, 6, 1, 10)
    sizes, decode = [], folders.decode
    monkeypatch.setattr(folders, "decode", lambda paths, side: sizes.append(len(paths)) or decode(paths, side))
    monkeypatch.setattr("oodlib.data.sets.BLOCK_PIXELS", 5 * 100)
    assert torch.equal(prepare(later.images, 6, 1, 10), expected)
    assert sizes == [5, 5, 2]
    assert len(decoded) == 12
    assert torch.equal(prepare(take(later.images, np.array([3, 1])), 6, 1, 10), expected[[3, 1]])
    assert tuple(prepare(take(later.images, slice(0)), 8, 3, 8).shape) == (0, 3, 8, 8)


def test_a_file_that_fails_when_decoded_later_is_named(tmp_path, monkeypatch):
    write_noise(tmp_path, ["a/0.png", "a/1.png"])
    (tmp_path / "a/1.png").write_bytes((tmp_path / "a/1.png").read_bytes()[:200])
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 0)
    images = load(tmp_path).images
    assert images[:1].shape == (1, 8, 8, 3)
    with pytest.raises(ValueError, match=r"cannot read the image .*/a/1\.png: image file is truncated"):
        images[:]
    os.remove(tmp_path / "a/0.png")
    with pytest.raises(ValueError, match=r"cannot read the image .*/a/0\.png: No such file or directory"):
        images[0]
