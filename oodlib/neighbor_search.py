"""A table of reference rows and queries in; the queries' lists of nearest rows, brought up to date with the table, out.

Distances are screened before they are measured. Of a query x it is known, to begin with, that its k nearest rows are
within a distance r. A row y of the cell with centre c is so much further inside:

    s = (r² - |x - y|²) / 2 = (x - c)·(y - c) + (r² - |x - c|²) / 2 - |y - c|² / 2

One matrix product estimates it for all rows: x - c and y - c are rounded to bfloat16, x' and y', and the other two
terms are split into bfloat16 numbers and stand in further columns. The estimate misses the product by at most
|x - c - x'| |y'| + |x - c| |y - c - y'|, lengths that are known: the tighter the clusters, the smaller the error. It is
added, so that no row inside has a negative estimate. Among positive numbers the bit patterns of floats are ordered as
integers are, so that maxima over groups of rows are taken at full speed; they tell a shorter r, and the few groups to
look into. The rows that are left, some 2 k a query, are measured by differences in float32. Cells are left out unseen
where the planes between centres show that no row of theirs is near enough.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from oodlib.neighbor_table import (
    GROUP,
    PADDING,
    PIECES,
    Table,
    nearest_center,
    round_offsets,
    single_threaded,
    split,
    summing_error,
)

PRODUCTS = 2**25  # at once, over all threads
LARGEST_BLOCK = 256  # queries
GATHERED = 2**20  # numbers gathered at once: they stay in cache
SMALLEST = 1e-36  # added to every estimate: zero might be a negative zero
ROUNDING = 2**-7.9  # of a product in bfloat16: 2^-8, and a little more since it is relative to what came out
INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # whose order is that of positive floats


@dataclass(frozen=True)
class Block:
    """Queries, and where they are."""

    x: Tensor  # (b, d) float32
    nearest: Tensor  # (b,) int64, o, the cell whose centre is nearest
    length: Tensor  # (b, C) float64, |x - c|
    possible: Tensor  # (b, C) float64, no row of a cell is nearer


@dataclass(frozen=True)
class Screen:
    """Estimates of s for a block and the rows of some cells, as integers, ordered as they are where they are positive.

    Column j g + i of a cell of g groups is member j of its group i.
    """

    estimates: Tensor  # (b n,) cell after cell, each (b, GROUP g)
    dtype: torch.dtype  # of which they are the bit patterns
    cells: list[int]
    n_groups: list[int]  # g of every cell
    error: Tensor  # (b,) float64, what was added to estimates for the errors of the product, at most

    def by_cell(self) -> list[Tensor]:
        """Return the estimates of every cell (b, GROUP, g)."""
        b = len(self.error)
        parts = self.estimates.split([b * GROUP * g for g in self.n_groups])
        return [part.view(b, GROUP, g) for part, g in zip(parts, self.n_groups, strict=True)]

    def as_numbers(self, estimates: Tensor) -> Tensor:
        """Return estimates as float64."""
        return estimates.contiguous().view(self.dtype).double()


def search_table(table: Table, queries: Tensor, distances: Tensor, ids: Tensor) -> None:
    """Bring distances and ids (m, k) of the rows nearest to queries (m, d) up to date with the rows of a table.

    Lists are ascending; one that is not full yet ends in infinite distances.
    """
    with single_threaded() as threads:
        nearest = nearest_center(queries, table.centers)
        n_workers = threads if queries.device.type == "cpu" else 1
        size = max(64, min(LARGEST_BLOCK, PRODUCTS // n_workers // len(table.rows)))

        def search(part: Tensor) -> None:
            block = _make_block(table, queries[part], nearest[part])
            distances[part], ids[part] = _search_block(table, block, distances[part], ids[part])

        # neighbours in the order of their cells need the same cells
        with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(search, nearest.argsort(stable=True).split(size)))


def _search_block(table: Table, block: Block, distances: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lists (b, k) of a block, up to date."""
    k = distances.shape[1]
    known = distances[:, -1].double() * (1 + summing_error(block.x))  # (b,) what is further away is not wanted
    reach = torch.minimum(known, _certain_reach(table, block, k))
    own = block.nearest.unique()
    if table.counts[own].sum() >= k:
        screen = _screen(table, block, own.tolist(), reach)
        lowest = _lowest(screen, torch.cat([part.flatten(1) for part in screen.by_cell()], dim=1), k)
        reach = torch.minimum(reach, (reach**2 - 2 * lowest).clamp(min=0).sqrt())
    cells = (block.possible <= reach[:, None]).any(dim=0).nonzero().flatten().tolist()
    if not cells:
        return distances, ids
    row, column = _find_candidates(table, block, _screen(table, block, cells, reach), k)
    if len(row) == 0:
        return distances, ids
    count = row.bincount(minlength=len(distances))
    slot = k + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    longer, longer_ids = pad(distances, (0, int(count.max())), value=torch.inf), pad(ids, (0, int(count.max())))
    longer[row, slot] = _measure(block.x, table.rows, row, column)
    longer_ids[row, slot] = table.ids[column]
    best = longer.topk(k, dim=1, largest=False)
    return best.values, longer_ids.gather(1, best.indices)


def _make_block(table: Table, x: Tensor, nearest: Tensor) -> Block:
    """Return queries (b, d) with their distances to centres, and bounds of those to rows.

    |z - c|² - |z - o|² is linear in z with slope 2 |c - o|, and `edges[c, o]` is its largest value in cell c; a query
    where it is larger is at least the difference over the slope away.
    """
    gap, offset = table.gaps[nearest], x - table.centers[nearest]
    centers = table.centers.double()
    shift = offset.double() @ (centers - centers[0]).T
    shift -= shift.gather(1, nearest[:, None])  # (b, C) (x - o)·(c - o)
    square = torch.linalg.vector_norm(offset, dim=1, keepdim=True).double() ** 2
    length = (square + gap**2 - 2 * shift).clamp(min=0).sqrt()
    rise = gap**2 - 2 * shift - table.edges.T[nearest]
    rise -= 4 * summing_error(x) * (square.sqrt() + table.radius + gap) * (gap + table.gaps[0])
    return Block(x, nearest, length, rise / (2.001 * gap).clamp(min=1e-30))


def _certain_reach(table: Table, block: Block, k: int) -> Tensor:
    """Return distances (b,) within which k rows are certainly, or all where a table has fewer."""
    far = ((block.length + table.radius) * (1 + summing_error(block.x))).sort(dim=1)
    enough = (table.counts[far.indices].cumsum(dim=1) < k).sum(dim=1, keepdim=True)
    return far.values.gather(1, enough.clamp(max=far.values.shape[1] - 1)).flatten()


def _screen(table: Table, block: Block, cells: list[int], reach: Tensor) -> Screen:
    """Estimate s for a block and the rows of some cells, given reach (b,)."""
    b, d = block.x.shape
    sizes = [table.starts[c + 1] - table.starts[c] for c in cells]
    factors = table.factors.new_ones(b, d + 2 * PIECES)
    products, error = table.factors.new_empty(b * sum(sizes)), torch.zeros_like(reach)
    for c, product in zip(cells, products.split([b * size for size in sizes]), strict=True):
        factors[:, :d], _, moved = round_offsets(block.x - table.centers[c])
        length, radius = block.length[:, c], table.radius[c]
        margin = moved * radius * (1 + 2**-8) + length * table.moved[c] + SMALLEST
        margin += summing_error(block.x) * ((length + radius) ** 2 + reach**2)
        wanted = block.possible[:, c] <= reach
        limit = torch.where(wanted, (reach**2 - length**2) / 2 + margin, -PADDING)
        factors[:, d : d + PIECES] = split(limit).to(factors.dtype)
        torch.mm(factors, table.factors[table.starts[c] : table.starts[c + 1]].T, out=product.view(b, -1))
        error = torch.maximum(error, torch.where(wanted, 2 * margin, 0))
    integers = products.view(INTEGERS[products.dtype])
    return Screen(integers, products.dtype, cells, [size // GROUP for size in sizes], error)


def _lowest(screen: Screen, estimates: Tensor, k: int) -> Tensor:
    """Return numbers (b,) float64 that s of k rows is not below, from estimates (b, n), n >= k, of rows or groups."""
    return screen.as_numbers(estimates.topk(k, dim=1).values[:, -1]) * (1 - ROUNDING) - screen.error


def _find_candidates(table: Table, block: Block, screen: Screen, k: int) -> tuple[Tensor, Tensor]:
    """Return pairs (p,), (p,) of query and row, sorted by query: all rows that may be among the k nearest.

    Where these are many, only the k nearest of them.
    """
    largest = torch.cat([part.amax(dim=1) for part in screen.by_cell()], dim=1)  # (b, G)
    cut = _cut(screen, largest, k)
    row, group = (largest >= cut[:, None]).nonzero().unbind(dim=1)
    if 2 * len(row) > largest.numel():
        return _choose_by_differences(table, block, screen.cells, k)
    b, device = len(cut), cut.device
    n_groups = torch.tensor(screen.n_groups, device=device)
    cell = torch.arange(len(n_groups), device=device).repeat_interleave(n_groups)[group]  # (p,)
    before = n_groups.cumsum(0) - n_groups  # groups of the cells before
    g, place = n_groups[cell], group - before[cell]
    first = GROUP * (b * before[cell] + row * g) + place  # where member 0 is
    estimates = screen.estimates[first[:, None] + g[:, None] * torch.arange(GROUP, device=device)]  # (p, GROUP)
    hit, member = (estimates >= cut[row, None]).nonzero().unbind(dim=1)
    if 8 * len(hit) > screen.estimates.numel():
        return _choose_by_differences(table, block, screen.cells, k)
    start = torch.tensor([table.starts[c] for c in screen.cells], device=device)[cell] + place
    return row[hit], start[hit] + member * g[hit]


def _cut(screen: Screen, largest: Tensor, k: int) -> Tensor:
    """Return estimates (b,) that no row among the k nearest is below, given the largest of every group (b, G)."""
    n_groups = largest.shape[1]
    if n_groups < 4 * k:  # too few to tell the k nearest by
        estimates = torch.cat([part.flatten(1) for part in screen.by_cell()], dim=1)
    elif n_groups < 16 * k:
        estimates = largest
    else:  # as good, and faster
        estimates = largest[:, : n_groups // 4 * 4].unflatten(1, (4, -1)).amax(dim=1)
    cut = torch.full_like(screen.error, SMALLEST / 2)
    if estimates.shape[1] >= k:
        cut = torch.maximum(cut, _lowest(screen, estimates, k) * (1 - ROUNDING))
    return (cut * (1 - 2**-7)).to(screen.dtype).view(largest.dtype)  # that it is rounded itself does not raise it


def _choose_by_differences(table: Table, block: Block, cells: list[int], k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of every query in some cells, as such pairs, by measuring all."""
    device, counts = block.x.device, table.counts.tolist()
    columns = torch.cat([torch.arange(counts[c], device=device) + table.starts[c] for c in cells])
    values, chosen = [], []
    for part in columns.split(2048):
        distances = torch.cdist(block.x, table.rows[part], compute_mode="donot_use_mm_for_euclid_dist")
        best = distances.topk(min(k, len(part)), dim=1, largest=False)
        values.append(best.values)
        chosen.append(part[best.indices])
    best = torch.cat(values, dim=1).topk(min(k, len(columns)), dim=1, largest=False).indices
    row = torch.arange(len(best), device=device).repeat_interleave(best.shape[1])
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
