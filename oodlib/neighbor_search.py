"""A table of reference rows and queries in; the queries' lists of nearest rows, brought up to date with the table, out.

Distances are screened before they are measured. A query x is taken relative to the nearest centre o, as a row y is
relative to the centre c of its cell, and rounded to bfloat16: x' near x - o, y' near y - c. With

    |x - y|² = |x - o|² + 2 h,    h = |y - o|² / 2 - (x - o)·(c - o) - (x - o)·(y - c),

one matrix product x'·y' in place of the last term estimates all distances. It misses that term by at most
|x - o - x'| |y'| + |x - o| |y - c - y'|, lengths that are known: the tighter the clusters, the smaller the error. Rows
that are out even so are left out; the others, some 2 k a query, are measured by differences in float32. Cells are left
out unseen where the planes between centres show that no row of theirs is near enough.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from oodlib.neighbor_table import GROUP, Table, nearest_center, round_offsets, single_threaded, summing_error

PRODUCTS = 2**24  # at once, over all threads
GATHERED = 2**20  # numbers gathered at once: they stay in cache
REACHABLE = 1e37  # above every h but PADDING
OUTPUT_ROUNDING = 2**-7.9  # of a product in bfloat16: 2^-8, and a little more since it is relative to what came out


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
    """Estimates of h for a block and groups of rows; where groups are few, every row is a group of its own."""

    h: Tensor  # (b, groups) float32, of the nearest member
    base: Tensor  # (members, groups) float32; h of a member is base - product - shift
    product: Tensor  # (b, members, groups)
    shift: Tensor  # (b, groups) float32
    columns: Tensor  # (members, groups) int64, rows of the table
    error: Tensor  # (b,) float64, of h at most, apart from
    rounding: Tensor  # (b,) float64, at most that of the product


def search_table(table: Table, queries: Tensor, distances: Tensor, ids: Tensor) -> None:
    """Bring distances and ids (m, k) of the rows nearest to queries (m, d) up to date with the rows of a table.

    Lists are ascending; one that is not full yet ends in infinite distances.
    """
    with single_threaded() as threads:
        nearest = nearest_center(queries, table.centers)
        n_workers = threads if queries.device.type == "cpu" else 1
        size = max(64, min(2048, PRODUCTS // n_workers // len(table.rows)))
        parts = [part for o in nearest.unique() for part in (nearest == o).nonzero().flatten().split(size)]

        def search(part: Tensor) -> None:
            block = _make_block(table, queries[part], int(nearest[part[0]]))
            distances[part], ids[part] = _search_block(table, block, distances[part], ids[part])

        with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(search, parts))


def _search_block(table: Table, block: Block, distances: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lists (b, k) of a block, up to date."""
    k = distances.shape[1]
    reach = distances[:, -1].double() * (1 + summing_error(block.x))  # (b,) what is further away is not wanted
    own = torch.arange(len(table.centers), device=ids.device) == block.nearest
    reach = _shorten(reach, block, _screen(table, block, own, k), k)
    cells = own | (_smallest_possible(table, block) <= reach[:, None]).any(dim=0)
    screen = _screen(table, block, cells, k)
    row, column = _find_candidates(table, block, screen, _shorten(reach, block, screen, k), k)
    if len(row) == 0:
        return distances, ids
    count = row.bincount(minlength=len(distances))
    slot = k + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    longer, longer_ids = pad(distances, (0, int(count.max())), value=torch.inf), pad(ids, (0, int(count.max())))
    longer[row, slot] = _measure(block.x, table.rows, row, column)
    longer_ids[row, slot] = table.ids[column]
    best = longer.topk(k, dim=1, largest=False)
    return best.values, longer_ids.gather(1, best.indices)


def _make_block(table: Table, x: Tensor, o: int) -> Block:
    rounded, length, moved = round_offsets(x, table.centers[o])
    shift = (x - table.centers[o]) @ (table.centers - table.centers[o]).T
    return Block(x, o, rounded, length, moved, shift)


def _smallest_possible(table: Table, block: Block) -> Tensor:
    """Return a lower bound (b, C) of the distances of a block to the rows of every cell.

    |z - c|² - |z - o|² is linear in z with slope 2 |c - o|, and `edges[c, o]` is its largest value in cell c; a query
    where it is larger is at least the difference over the slope away.
    """
    gap = table.gaps[block.nearest]
    rise = gap**2 - 2 * block.shift - table.edges[:, block.nearest]
    rise -= 4 * summing_error(block.x) * (block.length[:, None] + table.radius + gap) * (gap + table.gaps[0])
    return rise / (2.001 * gap).clamp(min=1e-30)


def _screen(table: Table, block: Block, cells: Tensor, k: int) -> Screen:
    """Estimate the distances of a block to the rows of some cells, marked in `cells` (C,)."""
    n_groups = len(table.cell)
    groups = cells[table.cell].nonzero().flatten()
    everything = 2 * len(groups) > n_groups  # faster than to copy more than half of the table
    if everything:
        groups = torch.arange(n_groups, device=groups.device)
    columns = torch.arange(GROUP, device=groups.device)[:, None] * n_groups + groups  # (GROUP, groups)
    y = table.rounded if everything else table.rounded.index_select(0, columns.flatten())
    cell = table.cell[groups]
    if len(groups) < 4 * k:  # too few to tell the k nearest by
        columns, cell = columns.reshape(1, -1), cell.repeat(GROUP)
    product = (block.rounded.to(y.dtype) @ y.T).view(-1, *columns.shape)
    base = table.half_squares[block.nearest][columns]
    shift = block.shift.masked_fill(~cells, -torch.inf)[:, cell]
    h = torch.full_like(shift, torch.inf)
    for member in range(len(columns)):
        torch.minimum(h, base[member] - product[:, member], out=h)
    return Screen(h - shift, base, product, shift, columns, *_errors(table, block, cells))


def _errors(table: Table, block: Block, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return the errors that the estimates for some cells can have, as Screen holds them."""
    radius, moved = table.radius[cells].max(), table.moved[cells].max()
    rounding = OUTPUT_ROUNDING * block.length * radius
    error = block.moved * radius * (1 + 2**-8) + block.length * moved
    gap = (table.gaps[block.nearest] + table.gaps[0])[cells].max()  # `half_squares` were summed from centre 0
    error = error + summing_error(block.x) * (block.length + radius) * (block.length + radius + gap)
    return error + 2**-21 * gap**2, rounding


def _shorten(reach: Tensor, block: Block, screen: Screen, k: int) -> Tensor:
    """Return reach (b,) or, where k rows of the screen are certainly nearer, a distance within which they are."""
    if screen.h.shape[1] < k:
        return reach
    h = screen.h.topk(k, dim=1, largest=False).values[:, -1] + screen.error + screen.rounding
    return torch.minimum(reach, (block.length**2 + 2 * h).clamp(min=0).sqrt())


def _find_candidates(table: Table, block: Block, screen: Screen, reach: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return pairs (p,), (p,) of query and row, sorted by query: all rows that may be within reach (b,).

    Where these are many, only the k nearest of them.
    """
    limit = ((reach**2 - block.length**2) / 2 + screen.error).clamp(max=REACHABLE)
    near = screen.h <= (limit + screen.rounding).float()[:, None]
    if 2 * int(near.count_nonzero()) > near.numel():
        return _choose_by_float64(table, block, screen, k)
    row, group = near.nonzero().unbind(dim=1)
    product = screen.product[row, :, group]  # (p, members)
    h = screen.base.T[group] - product - OUTPUT_ROUNDING * product.abs() - screen.shift[row, group, None]
    inside = h <= limit.float()[row, None]
    if 8 * int(inside.count_nonzero()) > screen.product.numel():
        return _choose_by_float64(table, block, screen, k)
    hit, member = inside.nonzero().unbind(dim=1)
    return row[hit], screen.columns[member, group[hit]]


def _choose_by_float64(table: Table, block: Block, screen: Screen, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of every query, as such pairs, by products in float64, which err less than float32."""
    columns = screen.columns[(screen.base < REACHABLE) & screen.shift[0].isfinite()]
    k = min(k, len(columns))
    center = table.centers[block.nearest].double()
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
