"""Views: how a random view of each image of a batch is drawn, on the device.

Every image draws its own crop, flip, rotation, colours, blur and erased rectangle, all from one seeded generator.
torchvision.transforms.v2 draws one set of parameters for a whole batch; kornia.augmentation draws them for every image,
but takes several times as long and draws from torch's global generator (outputs/benchmarks/training.md).
Geometry is one affine map and one `grid_sample`, colour is one 3 × 4 matrix an image: no step waits for the device.

The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, RandomAffine, ColorJitter,
RandomGrayscale, GaussianBlur and RandomErasing. What differs, measured on photographs of 32 × 32 pixels:

* Half a pixel inside its edge, a crop interpolates with the pixel beyond it, where torchvision repeats its last pixel.
* There is no shear, and the crop does what RandomAffine's scales do.
* A rotated view shows, beyond its crop, more of the image, mirrored at the image's edge, and not black corners.
* Colour is clipped once, at the end, and in the order brightness, contrast, saturation, hue, grayscale; torchvision
  clips after each and shuffles the first four. Means and standard deviations over views agree within 0.01.
* Hue turns colours about the grey axis of the RGB cube by the angle that torchvision adds to the HSV hue: for turns
  up to a tenth, 0.03 root mean square apart (leaving the hue alone: 0.055; turning in the YIQ plane: 0.054).
"""

import math
from dataclasses import dataclass, fields
from numbers import Real

import torch
import torch.nn.functional as F

HIGHEST = {"hue": 0.5, "rotate": 180.0, "translate": 64}  # every other argument ends at 1
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the grey of torchvision and of PIL
CROP_RATIO = (3 / 4, 4 / 3)  # width / height
ERASE_SCALE, ERASE_RATIO = (0.02, 0.33), (1 / 3.3, 1 / 0.3)  # width / height, so the inverse of torchvision's
BLUR_SIGMA = (0.1, 2.0)  # pixels; SimCLR
TRIES = 10


@dataclass(frozen=True)
class Views:
    """Make random views of whole batches; 0 switches an argument off, crop=1 the crop.

    The defaults are the views of SupCon's reference code (Khosla et al. 2020), which follow SimCLR's.
    `Views(crop=1, flip=0, jitter=0, grayscale=0)` draws nothing and only divides by 255.

    crop: smallest share of the area that the random resized crop keeps, in (0, 1]; aspect 3/4 to 4/3.
    translate: largest shift either way, whole pixels, down and across; what it uncovers is mirrored at the edge.
    flip: probability of a horizontal flip.
    jitter: strength of the colour jitter: factors of brightness, contrast and saturation lie in 1 ± jitter.
    hue: largest turn of the hue, as a share of the full circle, in [0, 0.5]; part of the jitter: jitter=0 stops it too.
    jitter_p: probability of the colour jitter (all four together).
    grayscale: probability of a grey image.
    rotate: largest rotation, degrees, in [0, 180].
    blur: probability of a Gaussian blur, about a tenth of the image wide (3 × 3 pixels up to side 59), sigma 0.1 to 2.
    erase: probability of a black rectangle, 0.02 to 0.33 of the area.

    Raises ValueError for a value that is not a number in its range.
    """

    crop: float = 0.2
    translate: int = 0
    flip: float = 0.5
    jitter: float = 0.4
    hue: float = 0.1
    jitter_p: float = 0.8
    grayscale: float = 0.2
    rotate: float = 0.0
    blur: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value, high = getattr(self, name), HIGHEST.get(name, 1.0)
            inside = isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= high
            if not inside or (name == "crop" and value == 0):
                left = "(" if name == "crop" else "["
                raise ValueError(f"{name} must be a number in {left}0, {high:g}], got {value!r}")
        if self.translate != int(self.translate):
            raise ValueError(f"translate must be a whole number of pixels, got {self.translate}")

    @torch.no_grad()
    def __call__(
        self, images: torch.Tensor, generator: torch.Generator, flipped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return one random view of each image.

        images: (n, 3, h, w) uint8; generator: on the same device, the only source of randomness. flipped: (n,) bool,
        which images are mirrored, in place of a draw with probability `flip`.
        Returns (n, 3, h, w) float32 in [0, 1], contiguous, on the same device.
        Raises ValueError for another dtype or shape, or a generator on another device.
        """
        _check(images, generator)
        with torch.autocast(images.device.type, enabled=False):  # mixed precision would round the colours
            x = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # (n, 3, h, w)
            if flipped is None and self.flip:
                flipped = torch.rand(len(x), generator=generator, device=x.device) < self.flip
            if self.crop < 1 or flipped is not None or self.rotate or self.translate:
                x = _warp(x, self.crop, flipped, self.rotate, self.translate, generator)
            if self.grayscale or (self.jitter and self.jitter_p):
                p = self.jitter_p if self.jitter else 0.0
                x = _recolour(x, self.jitter, self.hue, p, self.grayscale, generator)
            x = x.clamp_(0, 1)
            if self.blur:
                x = _blur(x, self.blur, generator)
            if self.erase:
                x = _erase(x, self.erase, generator)
        return x


def _check(images: torch.Tensor, generator: torch.Generator) -> None:
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        raise ValueError(f"images must be a uint8 tensor, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (n, 3, h, w), got {tuple(images.shape)}")
    if generator.device.type != images.device.type:
        raise ValueError(f"generator is on {generator.device}, images are on {images.device}: put both on one device")


def _rectangles(n, h, w, scale, ratio, otherwise, generator):
    """Draw a rectangle inside each image; top, left, height, width in pixels, each (n,) float.

    As in torchvision: the first of ten draws of area share and aspect that fits, at a random place; where none does,
    `otherwise` (height, width), centred.
    """
    device = generator.device
    share, aspect = torch.rand(2, n, TRIES, generator=generator, device=device)  # (n, TRIES)
    area = h * w * (scale[0] + (scale[1] - scale[0]) * share)
    aspect = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * aspect)  # width / height
    heights, widths = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (heights >= 1) & (widths >= 1) & (heights <= h) & (widths <= w)
    first = fits.int().argmax(1, keepdim=True)  # (n, 1) of equal maxima, the first
    missed = ~fits.any(1)
    height = heights.gather(1, first).squeeze(1).masked_fill(missed, otherwise[0])
    width = widths.gather(1, first).squeeze(1).masked_fill(missed, otherwise[1])
    room = torch.stack((h - height, w - width))  # (2, n)
    corner = torch.rand(2, n, generator=generator, device=device) * (room + 1)
    corner = corner.floor().minimum(room)  # float32 may round u × (room + 1) up to room + 1
    top, left = torch.where(missed, (room / 2).floor(), corner)
    return top, left, height, width


def _warp(x, crop, flipped, rotate, translate, generator):
    """Crop, flip, rotate and shift (n, 3, h, w) with one bilinear `grid_sample`."""
    n, _, h, w = x.shape
    device = x.device
    affine = torch.zeros(n, 2, 3, device=device)  # from a view's coordinates to the image's, both in [-1, 1]
    affine[:, 0, 0].fill_(1)
    affine[:, 1, 1].fill_(1)
    if rotate:
        angle = math.radians(rotate) * (2 * torch.rand(n, generator=generator, device=device) - 1)  # (n,)
        affine[:, 0, 0] = affine[:, 1, 1] = angle.cos()
        affine[:, 0, 1], affine[:, 1, 0] = -angle.sin() * h / w, angle.sin() * w / h  # by pixels, not by sides
    if flipped is not None:
        affine[:, 0] *= 1 - 2 * flipped[:, None].float()
    if crop < 1:
        whole = min(h, round(w / CROP_RATIO[0])), min(w, round(h * CROP_RATIO[1]))
        top, left, height, width = _rectangles(n, h, w, (crop, 1.0), CROP_RATIO, whole, generator)
        affine *= torch.stack((width / w, height / h), 1)[:, :, None]
        affine[:, :, 2] += torch.stack(((2 * left + width) / w, (2 * top + height) / h), 1) - 1
    if translate:
        shifts = torch.randint(-translate, translate + 1, (2, n), generator=generator, device=device)
        affine[:, 0, 2] += 2 * shifts[0] / w
        affine[:, 1, 2] += 2 * shifts[1] / h
    rows, columns = (2 * torch.arange(side, device=device) + 1 for side in (h, w))
    rows, columns = torch.meshgrid(rows / h - 1, columns / w - 1, indexing="ij")  # (h, w) pixel centres
    points = torch.stack((columns, rows, torch.ones_like(rows))).flatten(1)  # (3, hw)
    grid = (affine @ points).view(n, 2, h, w).permute(0, 2, 3, 1)  # (n, h, w, 2)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolour(x, jitter, hue, jitter_p, grayscale, generator):
    """Jitter the colours of (n, 3, h, w) and turn some images grey, one affine map of RGB an image; not clipped."""
    n, device = len(x), x.device
    jittered = torch.rand(n, generator=generator, device=device) < jitter_p
    draws = (2 * torch.rand(4, n, generator=generator, device=device) - 1) * jittered  # (4, n) in [-1, 1)
    bright, contrast, saturation = (1 + jitter * draws[:3])[:, :, None, None]  # (n, 1, 1)
    angle = (2 * math.pi * hue * draws[3])[:, None, None]  # (n, 1, 1)

    eye = torch.eye(3, device=device)
    luma = torch.stack([torch.full((3,), weight, device=device) for weight in LUMA], 1)  # (3, 3) RGB to its grey
    axis = (eye.roll(1, 0) - eye.roll(-1, 0)) / math.sqrt(3)  # cross product with the grey axis
    turn = angle.cos() * eye + (1 - angle.cos()) / 3 + angle.sin() * axis  # (n, 3, 3)
    matrix = bright * contrast * (turn @ (saturation * eye + (1 - saturation) * luma))  # (n, 3, 3)
    grey = torch.rand(n, 1, 1, generator=generator, device=device) < grayscale
    matrix = torch.where(grey, luma @ matrix, matrix)
    mean = (x.mean((2, 3)) @ luma[0])[:, None, None]  # (n, 1, 1) grey mean of the image, what contrast pulls towards
    return torch.baddbmm(bright * (1 - contrast) * mean, matrix, x.flatten(2)).view_as(x)


def _blur(x, p, generator):
    """Blur each image of (n, 3, h, w) with probability p by its own Gaussian, two grouped convolutions."""
    n, c, h, w = x.shape
    radius = max(1, min(h, w) // 20)
    chosen = torch.rand(n, 1, 1, 1, generator=generator, device=x.device) < p
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * torch.rand(n, 1, generator=generator, device=x.device)  # (n, 1)
    taps = torch.arange(-radius, radius + 1, device=x.device)  # (k,)
    kernel = torch.softmax(-(taps**2) / (2 * sigma**2), 1)  # (n, k)
    kernel = kernel[:, None].expand(n, c, -1).reshape(n * c, 1, -1)
    y = F.pad(x, (radius,) * 4, mode="reflect").reshape(1, n * c, h + 2 * radius, w + 2 * radius)
    y = F.conv2d(y, kernel[:, :, :, None], groups=n * c)
    y = F.conv2d(y, kernel[:, :, None, :], groups=n * c)
    return x.lerp(y.reshape(x.shape).clamp_(0, 1), chosen.float())  # exact at 0 and 1, four times the speed of where


def _erase(x, p, generator):
    """Blacken a random rectangle of each image of (n, 3, h, w) with probability p, in place."""
    n, _, h, w = x.shape
    chosen = torch.rand(n, generator=generator, device=x.device) < p
    box = _rectangles(n, h, w, ERASE_SCALE, ERASE_RATIO, (0, 0), generator)
    top, left, height, width = (side[:, None] for side in box)  # (n, 1)
    rows, columns = (torch.arange(side, device=x.device) for side in (h, w))
    in_rows = ((rows >= top) & (rows < top + height) & chosen[:, None]).float()  # (n, h)
    in_columns = ((columns >= left) & (columns < left + width)).float()  # (n, w)
    return x.mul_(1 - in_rows[:, None, :, None] * in_columns[:, None, None, :])
