"""Reference rows in; the same rows, sorted into cells around centres and rounded, ready for `neighbor_search`, out.

A row y is kept twice: as it is, and relative to its cell's centre c and rounded to bfloat16, y' near y - c. How much
the rounding moved it is measured, since the search rests on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from oodlib.device import has_fast_bfloat16

CELL_ROWS = 1024  # on average
MAX_CELLS = 64
SAMPLE = 4096  # rows that the centres are found with; rows in a block
GROUP = 16  # rows of which a search looks at the nearest first
PADDING = 3e38  # half squared distance of what fills a cell's last group


@dataclass(frozen=True)
class Table:
    """Reference rows, ready to be searched. Row j G + g is member j of group g; groups of a cell are consecutive."""

    rows: Tensor  # (n', d) float32, n' = GROUP G
    ids: Tensor  # (n',) int64, places in the reference
    rounded: Tensor  # (n', d) y', held as bfloat16 or as float32
    cell: Tensor  # (G,) int64, of every group
    centers: Tensor  # (C, d) float32
    gaps: Tensor  # (C, C) float64, |c - o|
    half_squares: Tensor  # (C, n') float32, |y - o|² / 2, PADDING where a row repeats to fill a group
    edges: Tensor  # (C, C) float64, largest |y - c|² - |y - o|² of y in cell c, at [c, o]
    radius: Tensor  # (C,) float64, largest |y - c| of y in cell c
    moved: Tensor  # (C,) float64, largest |y - c - y'| of y in cell c


@contextmanager
def single_threaded() -> Iterator[int]:
    """Keep torch from sharing operations between threads; yield how many it had.

    The operations here are short: on a busy machine, threads that wait for one another take longer than the work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@single_threaded()
def make_table(rows: Tensor, ids: Tensor) -> Table:
    """Sort rows (n, d) float32, which are at places ids (n,) of the reference, into cells, and round them."""
    centers = _find_centers(rows)
    occupied, own = nearest_center(rows, centers).unique(return_inverse=True)
    centers = centers[occupied]
    place, cell, repeated = _arrange(own)
    rows, owner = rows.index_select(0, place), cell.repeat(GROUP)
    # a GPU may add up bfloat16 products in bfloat16; bfloat16 values in float32 are exact there, even with TF32
    fast = rows.device.type == "cpu" and has_fast_bfloat16(rows.device)
    rounded = torch.empty(rows.shape, dtype=torch.bfloat16 if fast else torch.float32, device=rows.device)
    half_squares = rows.new_empty(len(centers), len(rows))
    gaps = torch.linalg.vector_norm(centers.double()[:, None] - centers.double(), dim=2)
    edges, radius, moved = torch.full_like(gaps, -torch.inf), torch.zeros_like(gaps[0]), torch.zeros_like(gaps[0])
    for start in range(0, len(rows), SAMPLE):
        part = slice(start, start + SAMPLE)
        c = owner[part]
        rounded[part], length, change = round_offsets(rows[part], centers[c])
        along = (rows[part] - centers[c]) @ (centers - centers[0]).T  # (SAMPLE, C)
        rise = gaps[c] ** 2 - 2 * (along - along.gather(1, c[:, None]))  # |y - o|² - |y - c|²
        half_squares[:, part] = ((length[:, None] ** 2 + rise) / 2).T
        edges.scatter_reduce_(0, c[:, None].expand_as(rise), -rise, "amax")
        radius.scatter_reduce_(0, c, length, "amax")
        moved.scatter_reduce_(0, c, change, "amax")
    half_squares[:, repeated] = PADDING
    return Table(rows, ids[place], rounded, cell, centers, gaps, half_squares, edges, radius, moved)


def nearest_center(z: Tensor, centers: Tensor) -> Tensor:
    """Return which of centers (C, d) is nearest to every row of z (n, d), up to float32 rounding."""
    origin = centers[0]
    return torch.cat([_squares(part - origin, centers - origin).argmin(dim=1) for part in z.split(SAMPLE)])


def round_offsets(z: Tensor, center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return z - center (b, d) as bfloat16, its length (b,) before, how far the rounding moved it (b,) at most."""
    offset = z - center
    rounded = offset.bfloat16()
    length = torch.linalg.vector_norm(offset, dim=1).double()
    moved = torch.linalg.vector_norm(offset - rounded, dim=1).double()
    return rounded, length, moved * (1 + summing_error(z))


def summing_error(z: Tensor) -> float:
    """Return a bound of the relative error of float32 sums over rows of z: four times what d additions can make."""
    return (z.shape[1] + 16) * 2.0**-22


def _find_centers(rows: Tensor) -> Tensor:
    """Return centres (C, d): k-means of a sample, started by k-means++."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(rows), generator=generator)[:SAMPLE].sort().values
    sample = rows[chosen.to(rows.device)]
    origin = sample.mean(dim=0)
    sample = sample - origin
    centers = sample[:1]
    squares = _squares(sample, centers)[:, 0]
    while len(centers) < min(MAX_CELLS, len(rows) // CELL_ROWS) and squares.any():
        chosen = torch.multinomial(squares.cpu(), 1, generator=generator).to(rows.device)
        centers = torch.cat([centers, sample[chosen]])
        squares = torch.minimum(squares, _squares(sample, sample[chosen])[:, 0])
    for _ in range(3):
        own = _squares(sample, centers).argmin(dim=1)
        count = own.bincount(minlength=len(centers))
        sums = torch.zeros_like(centers).index_add_(0, own, sample)
        centers = (sums / count[:, None])[count > 0]
    return centers + origin


def _arrange(own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which row is where in a table: place (n',), the cell of every group (G,), which rows repeat one (n',).

    own (n,): the cell of every row, each of 0..C-1 at least once.
    """
    order, count = own.argsort(stable=True), own.bincount()
    slots = (count + GROUP - 1) // GROUP * GROUP
    cell = torch.arange(len(count), device=own.device).repeat_interleave(slots)  # (n',)
    slot = torch.arange(len(cell), device=own.device) - (slots.cumsum(0) - slots)[cell]
    place = order[(count.cumsum(0) - count)[cell] + torch.minimum(slot, count[cell] - 1)]
    place, repeated = (a.view(-1, GROUP).T.flatten() for a in (place, slot >= count[cell]))
    return place, cell[::GROUP], repeated


def _squares(z: Tensor, centers: Tensor) -> Tensor:
    """Return the squared distances (n, C) of z (n, d) to centers (C, d), both near the origin."""
    squares = torch.linalg.vector_norm(z, dim=1, keepdim=True) ** 2
    return (squares + (centers**2).sum(dim=1)).addmm_(z, centers.T, alpha=-2).clamp_(min=0)
