"""Names to arrays: bundled sets by their numbers, npz files by hand-made ones, torchvision by a stand-in."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from oodlib.data import ImageSet, data_root, load_images, prepare
from oodlib.data.sources import TORCHVISION, read_npz

ZEROS = np.zeros(6, dtype=int)


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


@pytest.fixture
def images():
    return noise(0, 6, 4, 5, 3)


def save(root, name, **arrays):
    np.savez(root / f"{name}.npz", **arrays)
    return root


def sha(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_digits_are_scikit_learns_with_sixteen_as_255_split_seventy_to_thirty_in_every_class():
    train, test, rest = load_images("digits", "train"), load_images("digits", "test"), load_images("digits789")
    assert np.bincount(train.labels).tolist() == [125, 127, 124, 128, 127, 127, 127]  # round(0.7 n) of each class
    assert np.bincount(test.labels).tolist() == [53, 55, 53, 55, 54, 55, 54]
    assert np.bincount(rest.labels).tolist() == [179, 174, 180]
    for part in (train, test, rest):
        assert (part.images.shape[1:], part.images.dtype, part.labels.dtype) == ((8, 8), np.uint8, np.int64)
        assert part.classes == (("7", "8", "9") if part is rest else tuple("0123456"))
    assert (sha(train.images), sha(test.images)) == ("453f038a1c6ae283", "cbbcfa9fcb0d1eca")
    values, labels = load_digits(return_X_y=True)
    ours = np.concatenate([train.images, test.images, rest.images]).reshape(-1, 64)
    our_labels = np.concatenate([train.labels, test.labels, rest.labels + 7])
    expected = np.array([[int(v * 255 / 16 + 0.5) for v in row] for row in values])
    pairs = (np.column_stack(pair).tolist() for pair in ((ours, our_labels), (expected, labels)))
    assert sorted(next(pairs)) == sorted(next(pairs))  # none lost, none twice


def test_letters_are_25_in_21_fonts_none_to_be_read_as_a_digit_with_the_ink_of_digits():
    letters, digits = load_images("letters"), load_images("digits", "train").images
    assert (letters.images.shape, letters.images.dtype) == ((525, 8, 8), np.uint8)
    assert "".join(letters.classes) == "ACEFHKLNPRUVXcdefknprtuvx"
    assert not set(letters.classes) & set("BDGIOQSZbgijloqsz")
    assert np.bincount(letters.labels).tolist() == [21] * 25
    x = letters.images
    assert set(np.unique(x)) <= {round(v * 255 / 16) for v in range(17)}
    assert not x[:, :, [0, 7]].any()  # 20 of 32 columns, centred: the outer blocks are empty
    assert (x[:, :, [1, 6]] <= 128).all()  # and half of the next ones
    assert (digits[:, :, [0, 7]].mean(), np.median(digits[:, :, 1])) < (3, 128)
    assert x[:, [0, 7]].max(axis=2).all()  # the whole height
    ink, digit_ink = (x.reshape(len(x), -1).sum(axis=1) / 255 * 16 for x in (x, digits))
    assert abs(ink.mean() - digit_ink.mean()) < 10  # 314 and 312 of 1,024 on-pixels
    assert 0.8 < ink.std() / digit_ink.std() < 1.4


def test_photos_are_coloured_crops_half_of_each_photograph():
    photos = load_images("photos")
    assert (photos.images.shape, photos.images.dtype) == ((500, 32, 32, 3), np.uint8)
    assert photos.classes == ("china", "flower")
    assert np.bincount(photos.labels).tolist() == [250, 250]
    china, flower = (photos.images[photos.labels == i].mean(axis=(0, 1, 2)) for i in range(2))
    assert china.min() > 120  # mostly a pale sky
    assert flower[0] < 100
    assert flower[2] < 80
    assert len(np.unique(photos.images.reshape(500, -1), axis=0)) == 500
    assert (photos.images.std(axis=(1, 2, 3)) > 2).mean() > 0.9


def test_noise_is_uniform_and_independent():
    assert load_images("noise:33").images.shape == (1000, 33, 33, 3)
    noise = load_images("noise")
    assert (noise.images.shape, noise.images.dtype, len(noise)) == ((1000, 32, 32, 3), np.uint8, 1000)
    counts = np.bincount(noise.images.ravel(), minlength=256)
    assert abs(counts / counts.mean() - 1).max() < 0.06  # 12,000 expected in each, sd 0.9 %
    pixels = noise.images.astype(float)
    assert abs(np.corrcoef(pixels[:, :-1].ravel(), pixels[:, 1:].ravel())[0, 1]) < 0.002
    assert set(noise.labels) == {0}


@pytest.mark.parametrize("name", ["digits", "digits789", "letters", "photos", "noise:8"])
def test_bundled_sets_are_the_same_each_time(name):
    first, second = load_images(name), load_images(name)
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.labels.max() < len(first.classes)


@pytest.mark.parametrize("name", ["cifar", "CIFAR10", "../x", "a/b", "a\\b", "/etc/x", ".", "", "digits:3", "folder:"])
def test_an_unknown_name_lists_what_is_allowed_and_never_leaves_the_root(name, tmp_path, images):
    root = tmp_path / "inside"
    root.mkdir()
    for folder, other in ((tmp_path, "mine"), (tmp_path, "x"), (root, "cars")):
        save(folder, f"{other}-test", images=images, labels=ZEROS)
    with pytest.raises(ValueError, match="unknown image set") as caught:
        load_images(name, "test", root)
    for allowed in (repr(name), "digits789", "noise:SIDE", "places365", "cars (npz files in", "folder:PATH"):
        assert allowed in str(caught.value)


def test_data_root_is_argument_then_environment_then_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value, expected in (("", "data"), ("sets", "sets"), (str(tmp_path / "absolute"), "absolute")):
        monkeypatch.setenv("OODLIB_DATA", value)
        assert data_root() == tmp_path / expected
    assert data_root("other") == tmp_path / "other"


def test_npz_is_read_as_it_is_but_cifar10_has_its_names_also_where_the_file_lacks_them(tmp_path, monkeypatch, images):
    labels = np.array([0, 1, 2, 1, 0, -1])
    save(tmp_path, "cars-train", images=images, labels=labels, classes=np.array(["a", "bb", "c"]))
    monkeypatch.setenv("OODLIB_DATA", str(tmp_path))
    cars = load_images("cars", "train")
    assert isinstance(cars, ImageSet)
    np.testing.assert_array_equal(cars.images, images)
    np.testing.assert_array_equal(cars.labels, labels)
    assert (cars.classes, cars.name, len(cars)) == (("a", "bb", "c"), "cars", 6)
    for name, expected in (("cifar10", ("airplane", "automobile", "bird")), ("cifar100", ("0", "1", "2"))):
        save(tmp_path, f"{name}-test", images=images, labels=labels)
        assert load_images(name).classes[:3] == expected


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64", ">i4"])
def test_npz_labels_become_int64_and_name_the_classes_and_one_channel_is_grey(tmp_path, images, dtype):
    labels = np.array([0, 3, 1, 0, 0, 255]).astype(dtype)
    cars = load_images("cars", root=save(tmp_path, "cars-test", images=images[..., 0], labels=labels))
    assert (cars.images.shape, cars.labels.dtype) == ((6, 4, 5), np.int64)
    assert cars.labels.tolist() == [0, 3, 1, 0, 0, 255]
    assert cars.classes == tuple(str(label) for label in range(256))
    cars = load_images("cars", root=save(tmp_path, "cars-test", images=images[..., :1], labels=np.full(6, -1)))
    np.testing.assert_array_equal(cars.images, images[..., 0])
    assert cars.classes == ()  # no labels are no classes


WRONG = [  # what is changed, what is named
    ({"labels": None, "images": None}, "lacks images and labels"),
    ({"images": np.zeros((6, 4, 5, 3), dtype="float32")}, "float32"),
    ({"images": np.zeros((6, 20), dtype="uint8")}, r"\(6, 20\)"),
    ({"images": np.zeros((6, 3, 4, 5), dtype="uint8")}, r"\(6, 3, 4, 5\)"),
    ({"images": np.zeros((0, 4, 5), dtype="uint8"), "labels": np.zeros(0, dtype=int)}, r"\(0, 4, 5\)"),
    ({"labels": np.zeros(5, dtype=int)}, r"\(5,\)"),
    ({"labels": np.zeros((6, 1), dtype=int)}, r"\(6, 1\)"),
    ({"labels": np.zeros(6)}, "float64"),
    ({"labels": np.arange(6) % 3, "classes": np.array(["a", "b"])}, "from 0 to 2, but there are 2 classes"),
    ({"labels": np.arange(6) % 3 - 2}, "from -2 to 0"),
    ({"classes": np.arange(2)}, "int64"),
    ({"classes": np.array([["a", "b"]])}, r"\(1, 2\)"),
    ({"classes": np.array(["a", "bb"], dtype=object)}, "Python objects"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_npz_of_another_form_is_refused_with_its_name(changes, said, tmp_path, images):
    arrays = {"images": images, "labels": ZEROS} | changes
    save(tmp_path, "cars-test", **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=f"cars-test.npz.*{said}"):
        load_images("cars", root=tmp_path)


def test_foreign_cut_and_changed_files_are_refused_and_run_nothing(tmp_path, images):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code in a file was run",))

    path = save(tmp_path, "cars-test", images=images, labels=ZEROS) / "cars-test.npz"
    whole = path.read_bytes()
    at = whole.index(images.tobytes()) + 100
    changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for content in (b"text", pickle.dumps(Trap()), changed, *(whole[:end] for end in range(0, len(whole), 97))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cars-test.npz"):
            read_npz(path)


@pytest.mark.parametrize(
    ("name", "split", "error", "said"),
    [
        ("digits", "val", ValueError, "unknown split 'val'"),
        ("digits789", "train", ValueError, "'digits789' has no 'train' split"),
        ("noise:8", "train", ValueError, "'noise' has no 'train' split"),
        ("places365", "train", ValueError, "'places365' has no 'train' split"),
        ("cars", "train", FileNotFoundError, "cars-train.npz"),
        *((f"noise:{side}", "test", ValueError, "noise:SIDE") for side in ("", "0", "257", "-8", "8.5", "²")),
    ],
)
def test_a_split_or_side_that_is_not_there_is_named(name, split, error, said, tmp_path, images):
    save(tmp_path, "cars-test", images=images, labels=ZEROS)
    with pytest.raises(error, match=said):
        load_images(name, split, tmp_path)


def stand_in(monkeypatch, name, error=None, classes=("x", "y"), shape=(32, 32, 3)):
    """Put a small set in the place of a torchvision class; return the list of the calls to it."""
    calls = []

    class Small:
        def __init__(self, root, **options):
            calls.append(options)
            if error is not None:
                raise error
            if classes:
                self.class_to_idx = {c: i for i, c in reversed(list(enumerate(classes)))}

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return Image.fromarray(np.full(shape, 60 * i, dtype=np.uint8)), i % 2

    monkeypatch.setattr(f"torchvision.datasets.{TORCHVISION[name][0]}", Small)  # which there must be
    return calls


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_is_asked_once_and_the_npz_ever_after(name, tmp_path, monkeypatch):
    _, options, varying_size = TORCHVISION[name]
    calls, side = stand_in(monkeypatch, name), 64 if varying_size else 32
    for split in options:
        first, again = load_images(name, split, tmp_path), load_images(name, split, tmp_path)
        assert calls == [options[split] | {"download": True}]
        calls.clear()
        np.testing.assert_array_equal(first.images, again.images)
        assert first.images.shape == (4, side, side, 3)
        assert first.images[:, 0, 0, 0].tolist() == [0, 60, 120, 180]
        assert (first.labels.tolist(), first.labels.dtype) == ([0, 1, 0, 1], np.int64)
        assert first.classes == again.classes == ("x", "y")


def test_torchvision_sets_may_be_grey_vary_in_size_and_lack_names_or_fail_without_a_file(tmp_path, monkeypatch):
    stand_in(monkeypatch, "cifar10", RuntimeError("File not found\n or corrupted."))
    with pytest.raises(FileNotFoundError, match=r"cifar10-train\.npz.* RuntimeError: File not found or corrupted\.$"):
        load_images("cifar10", "train", tmp_path)
    assert not list(tmp_path.rglob("*.npz"))
    stand_in(monkeypatch, "mnist", shape=(28, 28))
    assert load_images("mnist", "train", tmp_path).images.shape == (4, 28, 28)
    stand_in(monkeypatch, "svhn", classes=None)
    assert load_images("svhn", "test", tmp_path).classes == ("0", "1")
    stand_in(monkeypatch, "dtd", shape=(300, 400, 3))
    assert load_images("dtd", "test", tmp_path).images.shape == (4, 64, 64, 3)


def triangle_resize(image, side):
    """Resize a square image (h, h) in float64: an output pixel is the mean under a triangle as wide as two of them."""
    scale = len(image) / side
    width = max(scale, 1)
    centres = (np.arange(side) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - abs(np.arange(len(image)) - centres[:, None]) / width)  # (side, h)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ image @ weights.T


@pytest.mark.parametrize("shape", [(5, 32, 32, 3), (5, 8, 8), (5, 8, 8, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_already_right_pass_bit_by_bit(shape, channels):
    x = noise(1, *shape)
    side = shape[1]
    out = prepare(x, side, channels, side)
    assert (out.dtype, tuple(out.shape)) == (torch.uint8, (5, 3, side, side))
    if x.ndim == 4 and x.shape[3] == 3:
        expected = x if channels == 3 else np.rint(x @ np.array([0.299, 0.587, 0.114]))[..., None]
    else:
        expected = x.reshape(5, side, side, 1)
    np.testing.assert_array_equal(out.permute(0, 2, 3, 1).numpy(), np.broadcast_to(expected, (5, side, side, 3)))


@pytest.mark.parametrize(("given", "side"), [(32, 8), (32, 28), (28, 32), (8, 32), (7, 3), (64, 32)])
def test_resizing_is_the_antialiased_triangle_rounded_once(given, side):
    x = noise(2, 4, given, given)
    out = prepare(x, side, 1, side)[:, 0].numpy()
    exact = np.stack([triangle_resize(image, side) for image in x])
    assert abs(out - exact).max() < 0.5 + 1e-3
    pillow = [np.asarray(Image.fromarray(i).resize((side, side), Image.Resampling.BILINEAR)) for i in x]
    assert abs(out.astype(int) - np.stack(pillow)).max() <= 2  # Pillow rounds between the two directions


def test_ood_images_take_the_id_sets_resolution_and_colour_first():
    x = noise(3, 3, 32, 32, 3)
    grey = np.rint(x @ np.array([0.299, 0.587, 0.114]))
    small = np.stack([np.rint(triangle_resize(image, 8)) for image in grey])
    expected = np.stack([triangle_resize(image, 32) for image in small])
    out = prepare(x, 8, 1, 32)
    assert tuple(out.shape) == (3, 3, 32, 32)
    assert (out == out[:, :1]).all()  # three equal channels
    assert abs(out[:, 0].numpy() - expected).max() < 0.5 + 1e-3
    straight = np.stack([triangle_resize(image, 32) for image in grey])
    assert abs(out[:, 0].numpy() - straight).mean() > 40  # the sharpness of noise at 32×32 is gone


def test_grey_levels_keep_their_value_through_luminance():
    x = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None, None], 3, axis=3)  # (256, 1, 1, 3)
    assert prepare(x, 1, 1, 1)[:, 0, 0, 0].tolist() == list(range(256))
    pure = np.diag([255, 255, 255]).astype(np.uint8).reshape(3, 1, 1, 3)
    assert prepare(pure, 1, 1, 1)[:, 0, 0, 0].tolist() == [76, 150, 29]  # 255 × 0.299, 0.587, 0.114


@pytest.mark.parametrize("shape", [(2, 20, 60), (2, 60, 20), (2, 21, 60, 3)])
def test_of_an_image_that_is_not_square_the_centre_is_taken(shape):
    x = noise(4, *shape)
    short = min(shape[1:3])
    top, left = (shape[1] - short) // 2, (shape[2] - short) // 2
    centre = x[:, top : top + short, left : left + short]
    assert torch.equal(prepare(x, 8, 3, 16), prepare(centre, 8, 3, 16))


def test_prepare_refuses_and_takes_nothing_and_views_and_blocks(monkeypatch):
    x = noise(6, 7, 8, 8, 3)
    whole = prepare(x, 8, 1, 16)
    assert torch.equal(prepare(x[::-1], 8, 1, 16), whole.flip(0))
    assert tuple(prepare(x[:0], 8, 3, 8).shape) == (0, 3, 8, 8)
    for pixels in (1, 3 * 256, 7 * 256):
        monkeypatch.setattr("oodlib.data.sets.BLOCK_PIXELS", pixels)
        assert torch.equal(prepare(x, 8, 1, 16), whole)
    transposed = x.transpose(0, 3, 1, 2)
    for wrong, said in ((x.astype("float32"), "float32"), (transposed, r"\(7, 3, 8, 8\)"), (x[0, 0], "uint8")):
        with pytest.raises(ValueError, match=f"images must be uint8 .*{said}"):
            prepare(wrong, 8, 3, 8)
    for side, channels, input_size in ((8, 2, 8), (0, 1, 8), (8, 1, -1)):
        with pytest.raises(ValueError, match=f"channels={channels}, side={side}, input_size={input_size}"):
            prepare(x, side, channels, input_size)
