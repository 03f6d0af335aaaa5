"""Reference rows, sorted into cells, in; queries' lists of nearest rows, brought up to date with these rows, out.

Distances are screened before they are measured. A query x is taken relative to the nearest cell's centre o and a row y
relative to its own cell's centre c, and both are rounded to bfloat16: x' near x - o, y' near y - c. One matrix product
then estimates every distance, as

    |x - y|² = |x - o|² + 2 h,    h = |y - o|² / 2 - (x - o)·(c - o) - (x - o)·(y - c).

The last term is replaced by x'·y' and so misses by at most |x - o - x'| |y'| + |x - o| |y - c - y'|, and these lengths
are measured: the tighter the clusters, the smaller the error. Rows that are out even so are left out; the others, some
2 k a query, are measured by differences in float32. Cells are left out unseen where the planes between centres show
that no row of theirs is near enough.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from oodlib.device import has_fast_bfloat16

CELL_ROWS = 1024  # on average
MAX_CELLS = 64
SAMPLE = 4096  # rows that the centres are found with; rows in a block
GROUP = 16  # rows of which only the nearest is looked at first
PRODUCTS = 2**23  # in one block
GATHERED = 2**20  # numbers gathered at once: they stay in cache
PADDING = 3e38  # h of what fills a cell's last group
REACHABLE = 1e37  # above every other h
OUTPUT_ROUNDING = 2**-7.9  # of a bfloat16 product, relative to the product: 2^-8, and a little as it is relative to the result


@dataclass(frozen=True)
class Table:
    """Reference rows, ready to be searched. Row j G + g is member j of group g; the groups of a cell are consecutive."""

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


@dataclass(frozen=True)
class Block:
    """Queries whose nearest centre is o."""

    x: Tensor  # (b, d) float32
    nearest: int  # o
    rounded: Tensor  # (b, d) x'
    length: Tensor  # (b,) float64, |x - o|
    moved: Tensor  # (b,) float64, |x - o - x'|
    shift: Tensor  # (b, C) float32, (x - o)·(c - o)


@dataclass(frozen=True)
class Screen:
    """What the product says of a block and some groups of rows; a member is a row, or a row is a group of its own."""

    h: Tensor  # (b, groups) float32, of the nearest member
    product: Tensor  # (b, members, groups) x'·y'
    rest: Tensor  # (b, groups) float32, and
    base: Tensor  # (members, groups) float32: h of a member is base - rest - product
    columns: Tensor  # (members, groups) int64, places in the table
    error: Tensor  # (b,) float64, of h at most, but for
    rounding: Tensor  # (b,) float64, at most that of the product


def make_table(rows: Tensor, ids: Tensor) -> Table:
    """Sort rows (n, d) float32, which are at places ids (n,) of the reference, into cells, and round them."""
    centers = _find_centers(rows)
    own = torch.cat([_squares(part - centers[0], centers - centers[0]).argmin(dim=1) for part in rows.split(SAMPLE)])
    occupied, own = own.unique(return_inverse=True)
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
        rounded[part], length, change = _round(rows[part], centers[c])
        along = (rows[part] - centers[c]) @ (centers - centers[0]).T  # (SAMPLE, C)
        rise = gaps[c] ** 2 - 2 * (along - along.gather(1, c[:, None]))  # |y - o|² - |y - c|²
        half_squares[:, part] = ((length[:, None] ** 2 + rise) / 2).T
        edges.scatter_reduce_(0, c[:, None].expand_as(rise), -rise, "amax")
        radius.scatter_reduce_(0, c, length, "amax")
        moved.scatter_reduce_(0, c, change, "amax")
    half_squares[:, repeated] = PADDING
    return Table(rows, ids[place], rounded, cell, centers, gaps, half_squares, edges, radius, moved)


def search_table(table: Table, queries: Tensor, distances: Tensor, ids: Tensor) -> None:
    """Bring distances and ids (m, k) of the rows nearest to queries (m, d) up to date with the rows of a table.

    Lists are ascending; one that is not full yet ends in infinite distances.
    """
    origin = table.centers[0]
    nearest = [_squares(x - origin, table.centers - origin).argmin(dim=1) for x in queries.split(SAMPLE)]
    nearest = torch.cat(nearest)  # (m,)
    size = max(64, min(2048, PRODUCTS // len(table.rows)))
    for o in nearest.unique().tolist():
        for part in (nearest == o).nonzero().flatten().split(size):
            block = _make_block(table, queries[part], o)
            distances[part], ids[part] = _search_block(table, block, distances[part], ids[part])


def _search_block(table: Table, block: Block, distances: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lists (b, k) of a block, up to date."""
    k = distances.shape[1]
    reach = distances[:, -1].double() * (1 + _summing(block.x))  # (b,) nothing beyond is wanted
    reach = _shorten(reach, block, _screen(table, block, table.cell == block.nearest, k), k)
    cells = (_smallest_possible(table, block) <= reach[:, None]).any(dim=0)
    cells[block.nearest] = True
    screen = _screen(table, block, cells[table.cell], k)
    row, column = _find_candidates(table, block, screen, _shorten(reach, block, screen, k), k)
    if len(row) == 0:
        return distances, ids
    count = row.bincount(minlength=len(distances))
    slot = k + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    longer = torch.nn.functional.pad(distances, (0, int(count.max())), value=torch.inf)
    longer_ids = torch.nn.functional.pad(ids, (0, int(count.max())))
    longer[row, slot] = _measure(block.x, table.rows, row, column)
    longer_ids[row, slot] = table.ids[column]
    best = longer.topk(k, dim=1, largest=False)
    return best.values, longer_ids.gather(1, best.indices)


def _screen(table: Table, block: Block, chosen: Tensor, k: int) -> Screen:
    """Estimate the distances of a block to the groups that `chosen` (G,) marks, or to all where that is less work."""
    everything = 2 * int(chosen.count_nonzero()) > len(chosen)
    groups = torch.arange(len(chosen), device=chosen.device) if everything else chosen.nonzero().flatten()
    columns = torch.arange(GROUP, device=groups.device)[:, None] * len(chosen) + groups  # (GROUP, groups)
    y = table.rounded if everything else table.rounded.index_select(0, columns.flatten())
    base = table.half_squares[block.nearest]
    base = base if everything else base[columns.flatten()]
    cell = table.cell[groups]
    if len(groups) < 4 * k:  # too few to tell the k nearest by
        columns, cell = columns.reshape(1, -1), cell.repeat(GROUP)
    base = base.view(columns.shape)
    product = (block.rounded.to(y.dtype) @ y.T).view(-1, *columns.shape)  # (b, members, groups)
    rest = block.shift[:, cell]
    h = torch.full_like(rest, torch.inf)
    for member in range(len(columns)):
        torch.minimum(h, base[member] - product[:, member], out=h)
    error, rounding = _errors(table, block, cell.unique())
    return Screen(h - rest, product, rest, base, columns, error, rounding)


def _errors(table: Table, block: Block, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds of the errors in a screen of some cells."""
    radius, moved = table.radius[cells].max(), table.moved[cells].max()
    gap = table.gaps[block.nearest, cells].max() + table.gaps[0, cells].max()  # `along` had its origin at centre 0
    rounding = OUTPUT_ROUNDING * block.length * radius
    error = block.moved * radius * (1 + 2**-8) + block.length * moved
    return error + _summing(block.x) * (block.length + radius) * (block.length + radius + gap), rounding


def _shorten(reach: Tensor, block: Block, screen: Screen, k: int) -> Tensor:
    """Return a distance (b,) that is not larger than reach, but within which k rows are if they are within reach."""
    if screen.h.shape[1] < k:
        return reach
    h = screen.h.topk(k, dim=1, largest=False).values[:, -1] + screen.error + screen.rounding
    return torch.minimum(reach, (block.length**2 + 2 * h).clamp(min=0).sqrt())


def _find_candidates(table: Table, block: Block, screen: Screen, reach: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return pairs (p,), (p,) of query and row, sorted by query: all rows that may be among the k within reach."""
    limit = ((reach**2 - block.length**2) / 2 + screen.error).clamp(max=REACHABLE)
    row, group = (screen.h <= (limit + screen.rounding).float()[:, None]).nonzero().unbind(dim=1)
    product = screen.product[row, :, group]  # (p, members)
    h = screen.base.T[group] - screen.rest[row, group, None] - product - OUTPUT_ROUNDING * product.abs()
    inside = h <= limit.float()[row, None]
    if 8 * int(inside.count_nonzero()) > screen.product.numel():
        return _choose_by_float64(table, block, screen.columns.flatten(), k)
    hit, member = inside.nonzero().unbind(dim=1)
    return row[hit], screen.columns[member, group[hit]]


def _choose_by_float64(table: Table, block: Block, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of every query among some columns, as such pairs, chosen by products in float64."""
    center = table.centers[block.nearest].double()
    columns = columns[table.half_squares[block.nearest][columns] < REACHABLE]
    k = min(k, len(columns))
    x = block.x.double() - center
    values, chosen = [], []
    for part in columns.split(2048):
        y = table.rows[part].double() - center
        best = torch.addmm((y**2).sum(dim=1), x, y.T, alpha=-2).topk(min(k, len(y)), dim=1, largest=False)
        values.append(best.values)
        chosen.append(part[best.indices])
    best = torch.cat(values, dim=1).topk(k, dim=1, largest=False).indices
    row = torch.arange(len(x), device=x.device).repeat_interleave(k)
    return row, torch.cat(chosen, dim=1).gather(1, best).flatten()


def _measure(x: Tensor, y: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the distances (p,) of x[row] and y[column], by differences, so that nothing cancels."""
    size = max(1, GATHERED // x.shape[1])
    distances = x.new_empty(len(row))
    for start in range(0, len(row), size):
        part = slice(start, start + size)
        difference = y.index_select(0, column[part])
        difference -= x.index_select(0, row[part])
        torch.linalg.vector_norm(difference, dim=1, out=distances[part])
    return distances


def _smallest_possible(table: Table, block: Block) -> Tensor:
    """Return a lower bound (b, C) of the distances of a block to the rows of every cell.

    |z - c|² - |z - o|² is linear in z with slope 2 |c - o|, and `edges[c, o]` is its largest value in cell c; a query
    where it is larger is at least the difference over the slope away.
    """
    gap = table.gaps[block.nearest]
    rise = gap**2 - 2 * block.shift - table.edges[:, block.nearest]
    rise -= 4 * _summing(block.x) * (block.length[:, None] + table.radius + gap) * (gap + table.gaps[0])
    return rise / (2.001 * gap).clamp(min=1e-30)


def _make_block(table: Table, x: Tensor, o: int) -> Block:
    rounded, length, moved = _round(x, table.centers[o])
    shift = (x - table.centers[o]) @ (table.centers - table.centers[o]).T
    return Block(x, o, rounded, length, moved, shift)


def _round(z: Tensor, center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return z - center as bfloat16 (b, d); its length before, float64 (b,); how far it moved at most, float64 (b,)."""
    offset = z - center
    rounded = offset.bfloat16()
    length = torch.linalg.vector_norm(offset, dim=1).double()
    moved = torch.linalg.vector_norm(offset - rounded, dim=1).double()
    return rounded, length, moved * (1 + _summing(z))


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


def _squares(z: Tensor, centers: Tensor) -> Tensor:
    """Return the squared distances (n, C) of z (n, d) to centers (C, d), both near the origin."""
    squares = torch.linalg.vector_norm(z, dim=1, keepdim=True) ** 2
    return (squares + (centers**2).sum(dim=1)).addmm_(z, centers.T, alpha=-2).clamp_(min=0)


def _summing(z: Tensor) -> float:
    """Return a bound of the relative error of a sum over a row of z in float32, with room for a few roundings."""
    return (z.shape[1] + 16) * 2.0**-22
