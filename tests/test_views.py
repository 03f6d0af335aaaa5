"""Random views: torchvision's distributions, its pixels for the same parameters, determinism, independence, errors."""

import math
from colorsys import rgb_to_hsv
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest
from sklearn.datasets import load_sample_images
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from oodlib.encoders.views import Views

OFF = {"crop": 1.0, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0}
EVERYTHING = {"rotate": 30.0, "blur": 0.5, "erase": 0.5}
N = 4000  # draws where distributions are compared


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def views_of(images, seed=0, **arguments):
    return Views(**(OFF | arguments))(images, seeded(seed))


def ramp(n, h, w):
    """Images whose red is 4 × column and green 4 × row, so that a view says where each of its pixels comes from."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return (4 * torch.stack((columns, rows, torch.zeros_like(rows)))).to(torch.uint8).expand(n, 3, h, w)


def boxes_of(views):
    """top, left, height, width (each (n,)) of crops without flip, from views of `ramp`; bilinear keeps a ramp exact."""
    found = []
    for channel, axis in ((1, 2), (0, 3)):
        side = views.shape[axis]
        line = views[:, channel].select(5 - axis - 1, 0) * 255 / 4  # (n, side) source coordinate of each pixel
        a, b = side // 4, side - side // 4 - 1  # away from the edge, where it is mirrored
        size = (line[:, b] - line[:, a]) / (b - a) * side
        found.append((line[:, a] - (a + 0.5) * size / side + 0.5, size))
    (top, height), (left, width) = found
    return torch.stack((top, left, height, width))


@pytest.fixture(scope="module")
def photographs():
    """(60, 3, 32, 32) uint8 crops of scikit-learn's two photographs at three scales."""
    rng, crops = np.random.default_rng(0), []
    for photograph in load_sample_images().images:
        image = torch.from_numpy(photograph.copy()).permute(2, 0, 1)
        for side in (32, 64, 160):
            for _ in range(10):
                i, j = (rng.integers(0, high - side) for high in image.shape[1:])
                crops.append(TF.resize(image[:, i : i + side, j : j + side], [32, 32], antialias=True))
    return torch.stack(crops)


def test_all_off_is_division_by_255_and_draws_nothing(photographs):
    generator = seeded()
    before = generator.get_state()
    assert torch.equal(Views(**OFF)(photographs, generator), photographs.float() / 255)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("shape", [(8, 8), (20, 50), (97, 97)])
def test_views_are_float32_in_zero_to_one_whatever_the_layout(shape):
    images = torch.randint(0, 256, (16, 3, *shape), dtype=torch.uint8, generator=seeded())
    kept, strided = images.clone(), images.contiguous(memory_format=torch.channels_last)  # as data sets store them
    for arguments in ({}, EVERYTHING, {"jitter": 1.0, "jitter_p": 1.0, "hue": 0.5, "rotate": 180.0}):
        view = Views(**arguments)(images, seeded())
        assert (view.shape, view.dtype, view.is_contiguous()) == (images.shape, torch.float32, True)
        assert 0 <= view.min() < view.max() <= 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(view, Views(**arguments)(strided, seeded()))
    assert torch.equal(images, kept)
    white = torch.full((64, 3, *shape), 255, dtype=torch.uint8)
    torch.testing.assert_close(views_of(white, crop=0.2, rotate=180.0), torch.ones(64, 3, *shape))  # no black corners


def test_same_seed_same_views_and_each_image_has_its_own_parameters(photographs):
    views, generator = Views(**EVERYTHING), seeded(1)
    first = views(photographs, generator)
    assert torch.equal(first, views(photographs, seeded(1)))
    assert not torch.equal(first, views(photographs, generator))  # the generator has moved on
    torch.rand(7)  # the global generator plays no part
    assert torch.equal(first, Views(**asdict(views))(photographs, seeded(1)))
    same = photographs[:1].expand(64, -1, -1, -1)
    assert len(torch.unique(Views()(same, seeded()).flatten(1), dim=0)) == 64
    # what happens to one image does not depend on the others
    others = torch.cat((photographs[:1], photographs[1:].flip(0), photographs[:4]))
    torch.testing.assert_close(views(same, seeded())[0], views(others, seeded())[0])


class NoHostSync(TorchDispatchMode):
    """Refuse what would make a GPU wait: reading a value, sizes that depend on data, constants copied from the host."""

    FORBIDDEN = ["_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "equal.default"]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.FORBIDDEN), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(photographs):
    generator = seeded()
    with NoHostSync():
        Views(**EVERYTHING)(photographs, generator)
    with pytest.raises(AssertionError, match="waits"), NoHostSync():
        torch.ones(1).item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_without_synchronisation(photographs):
    images, generator = photographs.cuda(), torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        first = Views(**EVERYTHING)(images, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert first.is_cuda
    assert torch.equal(first, Views(**EVERYTHING)(images, generator.manual_seed(0)))


def assert_drawn_as(ours, reference, shape, sides):
    """Assert that boxes (4, N) have the distributions of those that a transform of torchvision draws; return these."""
    torch.manual_seed(0)
    drawn = [reference.make_params([torch.zeros(3, *shape)]) for _ in range(N)]
    theirs = np.array([[box[side] for box in drawn] for side in sides])
    for a, b in zip(ours, theirs, strict=True):
        assert ks_2samp(a, b).statistic < 0.04  # 1.63 √(2 / N) = 0.036 is the 1 % point
        assert abs(a.mean() - b.mean()) < 4.5 * b.std() * math.sqrt(2 / N)
        assert a.std() == pytest.approx(b.std(), rel=0.06, abs=0.08)
    return theirs


@pytest.mark.parametrize(("shape", "crop"), [((32, 32), 0.2), ((32, 32), 0.08), ((20, 60), 0.3), ((60, 20), 0.3)])
def test_crop_boxes_follow_torchvision(shape, crop):
    read = boxes_of(views_of(ramp(N, *shape), crop=crop)).double().numpy()
    ours = read.round()
    np.testing.assert_allclose(read, ours, atol=5e-3)  # whole pixels
    sides = ("top", "left", "height", "width")
    theirs = assert_drawn_as(ours, v2.RandomResizedCrop(shape, (crop, 1.0)), shape, sides)
    assert ks_2samp(ours[3] / ours[2], theirs[3] / theirs[2]).statistic < 0.04
    assert (ours[0] + ours[2]).max() <= shape[0]
    assert (ours[1] + ours[3]).max() <= shape[1]


def test_crop_is_torchvisions_resized_crop(photographs):
    boxes = boxes_of(views_of(ramp(len(photographs), 32, 32), crop=0.2)).round().int().T.tolist()
    views = views_of(photographs, crop=0.2)
    for image, box, view in zip(photographs, boxes, views, strict=True):
        expected = TF.resized_crop(image.float() / 255, *box, [32, 32])
        torch.testing.assert_close(view[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-4, rtol=0)
        assert (view - expected).abs().mean() < 0.005  # the outermost pixels see half a pixel beyond the crop


def share_changed(views, changed, kept, atol=1e-5):
    """Return which share of views (n, 3, h, w) is one image rather than another; assert that each is one of them."""
    is_changed, is_kept = ((views - a).abs().amax((1, 2, 3)) < tol for a, tol in ((changed, atol), (kept, 1e-5)))
    assert torch.all(is_changed ^ is_kept)
    return is_changed.double().mean()


@pytest.mark.parametrize("p", [0.5, 0.1, 1.0])
def test_flip(photographs, p):
    image = photographs[0] / 255
    share = share_changed(views_of(photographs[:1].expand(2000, -1, -1, -1), flip=p), image.flip(2), image)
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 2000))


def test_rotation_is_uniform():
    views = views_of(ramp(N, 32, 32), rotate=40.0)[:, 0, 16:18, 16:18]
    angle = torch.rad2deg(torch.atan2(views[:, 1, 0] - views[:, 0, 0], views[:, 0, 1] - views[:, 0, 0]))
    assert kstest(angle, "uniform", args=(-40, 80)).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(32, 32), (30, 50)])
def test_crop_flip_rotate_is_torchvisions_chain(shape):
    """Read box, flip and angle off the middle of each view, then compare the view with torchvision's three steps."""
    h, w = shape
    views = views_of(ramp(40, *shape), crop=0.3, flip=0.5, rotate=30.0) * 255 / 4
    i, j = h // 2, w // 2
    middle = views[:, :2, i - 1 : i + 1, j - 1 : j + 1].double()  # the two pixels each side of the centre
    across = (middle[..., 1] - middle[..., 0]).mean(2)  # (n, 2) change of column and row, for a step to the right
    down = (middle[..., 1, :] - middle[..., 0, :]).mean(2)
    width, height = (torch.hypot(across[:, k], down[:, k]) * side for k, side in ((0, w), (1, h)))
    left, top = middle[:, 0].mean((1, 2)) + 0.5 - width / 2, middle[:, 1].mean((1, 2)) + 0.5 - height / 2
    angle = torch.rad2deg(torch.atan2(across[:, 1] / height * h, down[:, 1] / height * h))
    boxes = torch.stack((top, left, height, width), 1)
    torch.testing.assert_close(boxes, boxes.round(), atol=0.02, rtol=0)
    assert 10 < (across[:, 0] < 0).sum() < 30
    for view, box, flipped, degrees in zip(views, boxes.round().int().tolist(), across[:, 0] < 0, angle, strict=True):
        expected = TF.resized_crop(ramp(1, *shape)[0].float() / 4, *box, list(shape))
        expected = TF.horizontal_flip(expected) if flipped else expected
        inside = torch.zeros(1, *shape)
        inside[:, 3:-3, 3:-3] = 1
        inside = TF.rotate(inside, degrees.item())[0].bool()
        expected = TF.rotate(expected, degrees.item(), interpolation=v2.InterpolationMode.BILINEAR)
        torch.testing.assert_close(view[:, inside], expected[:, inside], atol=0.02, rtol=0)  # pixels


@pytest.fixture(scope="module")
def dull():
    """(3, 16, 16) uint8 image whose views are never clipped."""
    return torch.randint(80, 110, (3, 16, 16), generator=seeded(), dtype=torch.uint8)


def factors_of(views, image):
    """Brightness, contrast and saturation factors of views with jitter and no hue of one unclipped image, each (n,)."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    views, image = views.double(), image.double() / 255
    grey, grey_views = (weights * image).sum(0), (weights * views).sum(1)
    brightness = grey_views.mean((1, 2)) / grey.mean()
    slope = grey_views.std((1, 2)) / grey.std()  # brightness × contrast
    chroma = (views - grey_views[:, None]).norm(dim=(2, 3)).norm(dim=1) / (image - grey).norm()
    return torch.stack((brightness, slope / brightness, chroma / slope))


def test_jitter_is_torchvisions_with_uniform_and_independent_factors(dull):
    views = views_of(dull.expand(N, -1, -1, -1), jitter=0.4, hue=0.0, jitter_p=1.0)
    factors = factors_of(views, dull)
    for factor in factors:
        assert kstest(factor, "uniform", args=(0.6, 0.8)).pvalue > 1e-3
    assert (torch.corrcoef(factors) - torch.eye(3)).abs().max() < 4 / math.sqrt(N)
    for view, (brightness, contrast, saturation) in zip(views[:50], factors.T[:50].tolist(), strict=True):
        expected = TF.adjust_brightness(dull / 255, brightness)
        expected = TF.adjust_saturation(TF.adjust_contrast(expected, contrast), saturation)
        torch.testing.assert_close(view, expected, atol=2e-4, rtol=0)  # torchvision's grey weights have a sum of 0.9999


def test_hue_turns_by_torchvisions_angle(photographs):
    """The turns are uniform, keep r + g + b, and photographs land 0.03 from torchvision's (unturned: 0.055)."""
    colour = torch.tensor([150, 90, 100])
    arguments = {"jitter": 1e-6, "hue": 0.1, "jitter_p": 1.0}
    turned = views_of(colour.byte()[:, None, None].expand(300, 3, 4, 4), **arguments)[:, :, 0, 0].double()
    torch.testing.assert_close(turned.sum(1), (colour / 255).sum().double().expand(300), atol=1e-5, rtol=0)
    angle = [
        torch.atan2(math.sqrt(3) * (c[..., 1] - c[..., 2]), 3 * c[..., 0] - c.sum(-1))
        for c in (turned, colour.double())
    ]
    turns = torch.remainder((angle[0] - angle[1]) / (2 * math.pi) + 0.5, 1) - 0.5
    assert kstest(turns, "uniform", args=(-0.1, 0.2)).pvalue > 1e-3
    for rgb, turn in zip(turned[:50].tolist(), turns[:50].tolist(), strict=True):
        expected = TF.adjust_hue((colour / 255)[:, None, None], turn).flatten().tolist()
        moved = rgb_to_hsv(*rgb)[0] - rgb_to_hsv(*expected)[0]
        assert abs((moved + 0.5) % 1 - 0.5) < 0.0065  # HSV measures the angle on a hexagon: 1.1° off at most, twice

    images = photographs.repeat(5, 1, 1, 1)  # the same seed, the same turns
    views = views_of(images, **arguments)
    expected = torch.stack([TF.adjust_hue(i / 255, t) for i, t in zip(images, turns.tolist(), strict=True)])
    assert (views - expected).square().mean().sqrt() < 0.033
    assert (images / 255 - expected).square().mean().sqrt() > 0.05


def test_grayscale(photographs):
    image = photographs[0] / 255
    views = views_of(photographs[:1].expand(2000, -1, -1, -1), grayscale=0.2)
    share = share_changed(views, TF.rgb_to_grayscale(image, 3), image, atol=5e-4)
    assert share == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 2000))
    jittered = views_of(photographs, jitter=0.4, grayscale=1.0, jitter_p=1.0)
    assert (jittered - jittered.mean(1, keepdim=True)).abs().max() < 1e-6


@pytest.mark.parametrize(("side", "taps"), [(16, 3), (32, 3), (64, 7), (224, 23)])
def test_blur_is_torchvisions_for_the_same_sigma(side, taps):
    n = 8
    impulse = torch.zeros(n, 3, side, side, dtype=torch.uint8)
    impulse[:, :, side // 2, side // 2] = 255
    blurred = views_of(impulse, blur=1.0)[:, 0, side // 2]  # (n, side) the middle row
    assert (blurred > 0).sum(1).max() == taps
    sigma = (0.5 / (blurred[:, side // 2] / blurred[:, side // 2 + 1]).log()).sqrt()
    noise = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=seeded(1))
    views = views_of(noise, blur=1.0)
    compared = [i for i in range(n) if sigma[i] > 0.25]  # below, the neighbour's weight is below 0.0005
    assert len(compared) > n / 2
    for i in compared:
        expected = TF.gaussian_blur(noise[i] / 255, [taps, taps], sigma[i].item())
        torch.testing.assert_close(views[i], expected, atol=1e-4, rtol=0)


def test_erased_rectangles_follow_torchvision():
    erased = views_of(torch.full((N, 3, 32, 32), 255, dtype=torch.uint8), erase=1.0) == 0  # (N, 3, 32, 32)
    assert torch.equal(erased[:, 0], erased[:, 1])
    rows, columns = erased[:, 0].any(2), erased[:, 0].any(1)
    assert torch.equal(erased[:, 0], rows[:, :, None] & columns[:, None, :])  # full rectangles
    ours = torch.stack((rows.int().argmax(1), columns.int().argmax(1), rows.sum(1), columns.sum(1))).numpy()
    assert_drawn_as(ours, v2.RandomErasing(1.0), (32, 32), "ijhw")


def test_a_shift_moves_by_whole_pixels_every_way_alike_and_mirrors_at_the_edge(photographs):
    views = views_of(photographs[:1].expand(N, 3, 32, 32), translate=2)
    padded = torch.from_numpy(np.pad(photographs[0] / 255, ((0, 0), (2, 2), (2, 2)), "symmetric"))
    counts = []
    for down, across in np.ndindex(5, 5):
        expected = padded[:, down : down + 32, across : across + 32]
        counts.append(((views - expected).abs().amax((1, 2, 3)) < 1e-4).sum().item())
    assert sum(counts) == N
    assert np.allclose(counts, N / 25, atol=5 * math.sqrt(N / 25))


def test_flips_that_are_given_take_the_place_of_draws(photographs):
    flipped = torch.tensor([True, False, False, True])
    views = Views(**OFF | {"flip": 0.5})(photographs[:4], seeded(), flipped)
    for view, image, mirrored in zip(views, photographs[:4] / 255, flipped, strict=True):
        torch.testing.assert_close(view, image.flip(2) if mirrored else image, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sd"),
    [({"jitter": 0.4, "jitter_p": 0.8}, 0.16), ({"erase": 0.2}, 0.16), ({"blur": 0.3}, 0.21)],
    ids=["jitter", "erase", "blur"],
)
def test_shares_of_changed_images(arguments, sd):
    noise = torch.randint(1, 255, (3, 8, 8), dtype=torch.uint8, generator=seeded())
    views = views_of(noise.expand(N, -1, -1, -1), **arguments)
    changed = ((views - noise / 255).abs().amax((1, 2, 3)) > 1e-5).double().mean()
    p = next(value for name, value in arguments.items() if name != "jitter")
    sharp = 0.05 / 1.9 if "blur" in arguments else 0  # sigma below about 0.15 rounds to no blur at all
    assert changed == pytest.approx(p, abs=p * sharp + 4 * math.sqrt(sd / N))


BAD = {"crop": [0.0, 1.5], "translate": [-1, 1.5], "hue": [0.6], "grayscale": [math.nan], "rotate": [181]}
BAD |= {"blur": ["0.5"], "erase": [True, None], **{name: [-0.1, 1.1] for name in ("flip", "jitter", "jitter_p")}}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named(name):
    for value in BAD[name]:
        with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
            Views(**{name: value})


def test_bad_images_are_refused():
    good = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for images in (good.float(), good.numpy(), good[:, :1], good.permute(0, 2, 3, 1), good[0]):
        with pytest.raises(ValueError, match="images must"):
            Views()(images, seeded())
    with pytest.raises(ValueError, match="generator is on cpu, images are on meta"):
        Views()(good.to("meta"), seeded())
