"""Reference rows in; the same rows, sorted into cells around centres and rounded, ready for `neighbor_search`, out.

A row y is kept twice: as it is, and as the row of a matrix whose products tell how near it is: relative to its cell's
centre c and rounded to bfloat16, y' near y - c, then three ones, then -|y - c|² / 2 as a sum of three bfloat16 numbers.
How much the rounding moved y is measured, since the search rests on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from oodlib.device import has_fast_bfloat16

CELL_ROWS = 256  # on average, unless MAX_CELLS are more
MAX_CELLS = 32
SAMPLE = 4096  # rows that the centres are found with; rows in a block
GROUP = 16  # rows of which a search looks at the nearest first
PADDING = 3e38  # half squared length of what fills a cell's last group
PIECES = 3  # bfloat16 numbers whose sum is as good as float32


@dataclass(frozen=True)
class Table:
    """Reference rows, ready to be searched. Those of a cell are consecutive, and fill whole groups."""

    rows: Tensor  # (n', d) float32
    ids: Tensor  # (n',) int64, places in the reference
    factors: Tensor  # (n', d + 2 PIECES) [y', 1, -|y - c|² / 2], held as bfloat16 or as float32
    starts: list[int]  # (C + 1,) rows starts[c] to starts[c + 1] are in cell c
    counts: Tensor  # (C,) int64, rows of a cell without those that repeat to fill a group
    centers: Tensor  # (C, d) float32
    gaps: Tensor  # (C, C) float64, |c - o|
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
    rows = rows.index_select(0, place)
    # a GPU may add up bfloat16 products in bfloat16; bfloat16 values in float32 are exact there, even with TF32
    fast = rows.device.type == "cpu" and has_fast_bfloat16(rows.device)
    d, dtype = rows.shape[1], torch.bfloat16 if fast else torch.float32
    factors = torch.ones(len(rows), d + 2 * PIECES, dtype=dtype, device=rows.device)
    gaps = torch.linalg.vector_norm(centers.double()[:, None] - centers.double(), dim=2)
    edges, radius, moved = torch.full_like(gaps, -torch.inf), torch.zeros_like(gaps[0]), torch.zeros_like(gaps[0])
    for start in range(0, len(rows), SAMPLE):
        part = slice(start, start + SAMPLE)
        c = cell[part]
        offset = rows[part] - centers[c]
        factors[part, :d], length, change = round_offsets(offset)
        factors[part, -PIECES:] = split(-(length**2 / 2).masked_fill(repeated[part], PADDING)).to(dtype)
        along = offset @ (centers - centers[0]).T  # (SAMPLE, C)
        rise = gaps[c] ** 2 - 2 * (along - along.gather(1, c[:, None]))  # |y - o|² - |y - c|²
        edges.scatter_reduce_(0, c[:, None].expand_as(rise), -rise, "amax")
        radius.scatter_reduce_(0, c, length, "amax")
        moved.scatter_reduce_(0, c, change, "amax")
    starts = [0, *cell.bincount().cumsum(0).tolist()]
    return Table(rows, ids[place], factors, starts, own.bincount(), centers, gaps, edges, radius, moved)


def nearest_center(z: Tensor, centers: Tensor) -> Tensor:
    """Return which of centers (C, d) is nearest to every row of z (n, d), up to float32 rounding."""
    origin = centers[0]
    return torch.cat([_squares(part - origin, centers - origin).argmin(dim=1) for part in z.split(SAMPLE)])


def round_offsets(offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return offsets (b, d) as bfloat16, their lengths (b,) before, how far the rounding moved them (b,) at most."""
    rounded = offset.bfloat16()
    length = torch.linalg.vector_norm(offset, dim=1).double()
    moved = torch.linalg.vector_norm(offset - rounded, dim=1).double()
    return rounded, length, moved * (1 + summing_error(offset))


def split(values: Tensor) -> Tensor:
    """Return values (b,) float64 as sums of PIECES bfloat16 numbers (b, PIECES)."""
    pieces = []
    for _ in range(PIECES):
        pieces.append(values.bfloat16())
        values = values - pieces[-1]
    return torch.stack(pieces, dim=1)


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
    """Return which row is where in a table: place (n',), the cell of each (n',), which of them repeat one (n',).

    own (n,): the cell of every row, each of 0..C-1 at least once.
    """
    order, count = own.argsort(stable=True), own.bincount()
    slots = (count + GROUP - 1) // GROUP * GROUP
    cell = torch.arange(len(count), device=own.device).repeat_interleave(slots)  # (n',)
    slot = torch.arange(len(cell), device=own.device) - (slots.cumsum(0) - slots)[cell]
    place = order[(count.cumsum(0) - count)[cell] + torch.minimum(slot, count[cell] - 1)]
    return place, cell, slot >= count[cell]


def _squares(z: Tensor, centers: Tensor) -> Tensor:
    """Return the squared distances (n, C) of z (n, d) to centers (C, d), both near the origin."""
    squares = torch.linalg.vector_norm(z, dim=1, keepdim=True) ** 2
    return (squares + (centers**2).sum(dim=1)).addmm_(z, centers.T, alpha=-2).clamp_(min=0)
