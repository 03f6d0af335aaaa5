"""The airbench network for small images, which needs a tenth of the epochs that a ResNet takes.

Six convolutions behind a fixed one that whitens patches of 2×2 pixels (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds
on a single GPU"). What is not trained is a buffer: the whitening, and the scales of batch normalisation.
"""

import re

import torch
import torch.nn.functional as F
from torch import nn

NAME = "airbench"
WIDTHS = (64, 256, 256)  # of the published network for 94 %
SMALLEST = 16  # side in pixels, of which three poolings leave one
PATCH = 2  # side in pixels of the patches that are whitened
WHITENED = 2 * 3 * PATCH**2  # filters: the principal directions of colour patches, and their negatives
WHITENING_EPS = 5e-4
VARIES = 1e-6  # share of the largest eigenvalue above which a direction counts as varying
SCALE = 1 / 9  # of the embedding, so that the logits of a fresh network are small


def airbench_widths(arch: str) -> tuple[int, ...] | None:
    """Return the widths that a name gives, airbench_32_128_128 or airbench alone; None for another architecture.

    Raises ValueError for a name that begins so and does not go on with three positive widths.
    """
    if not re.match(rf"{NAME}(?![a-z])", arch):
        return None
    found = re.fullmatch(rf"{NAME}_([1-9]\d*)_([1-9]\d*)_([1-9]\d*)", arch)
    if arch != NAME and not found:
        raise ValueError(f"arch {arch!r}: after {NAME} stand three widths, as in {NAME}_32_128_128, or nothing")
    return tuple(map(int, found.groups())) if found else WIDTHS


class ShiftNorm(nn.BatchNorm2d):
    """Batch normalisation whose shift alone is trained."""

    def __init__(self, width: int):
        super().__init__(width, momentum=0.4)
        del self.weight
        self.register_buffer("weight", torch.ones(width))


class Group(nn.Module):
    """Two 3×3 convolutions; the first halves the side. Their first filters start as the identity."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.norm1 = ShiftNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = ShiftNorm(width)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Airbench(nn.Module):
    """The network up to its embedding, as wide as the last of three widths. `whiten` fits its first layer to images."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.num_features = widths[-1]
        self.register_buffer("whitening", torch.randn(WHITENED, 3, PATCH, PATCH) / WHITENED**0.5)
        self.whitening_bias = nn.Parameter(torch.zeros(WHITENED))
        self.groups = nn.Sequential(*map(Group, (WHITENED, *widths[:-1]), widths))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last maps (n, d, s, s) of images (n, 3, h, w)."""
        return self.groups(F.gelu(F.conv2d(x, self.whitening, self.whitening_bias)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return SCALE * self.forward_features(x).amax((2, 3))

    @torch.no_grad()
    def whiten(self, x: torch.Tensor) -> None:
        """Make the first layer's filters the whitened principal directions of the patches of images (n, 3, h, w).

        Directions in which nothing varies, as between the channels of grey images, give way to copies of the others.
        """
        patches = F.unfold(x, PATCH).transpose(1, 2).flatten(0, 1).double()  # (patches, 12)
        eigenvalues, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (eigenvalues + WHITENING_EPS).sqrt()).T.flip(0)  # the largest eigenvalue first
        n_varying = int((eigenvalues > VARIES * eigenvalues[-1]).sum())
        filters = filters[torch.arange(len(filters)) % n_varying]
        self.whitening.copy_(torch.cat((filters, -filters)).view_as(self.whitening))
