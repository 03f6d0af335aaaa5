"""Queries and reference embeddings in; Euclidean distances to the k nearest reference rows, and their places, out.

The result is exact: only work whose outcome is certain is left out, see `oodlib.neighbor_search`. A reference that is
too large to be kept in memory is read in blocks at every query.
"""

from collections.abc import Iterator

import numpy as np

from oodlib.blocks import release

IN_MEMORY = 2**30  # bytes that an index may take
BLOCK = 2**24  # numbers in a block of a larger reference, and of queries
BLOCK_ROWS = 2**16  # at most, in such a block
LARGEST = 1e15  # sums of squares stay far from the limits of float32


def kneighbors(queries, reference, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Euclidean distances (m, k) float32, ascending, of the k nearest reference rows, and their places.

    queries (m, d), reference (n, d): arrays (memory-mapped ones too) or tensors, taken as float32. Distances are not
    squared; places (m, k) are int64. `NeighborIndex` says how exact they are and which errors are raised.
    """
    return NeighborIndex(reference).kneighbors(queries, k)


class NeighborIndex:
    """Reference embeddings (n, d), made ready once for exact nearest-neighbour queries.

    reference: array (a memory-mapped one too) or tensor, taken as float32. It is copied, except where the index would
    take more than IN_MEMORY bytes: it is then read at every query. device: where to compute, default that of a tensor,
    else the CPU. Raises ValueError unless it has two dimensions, neither empty, and values are finite and at most 1e15.
    """

    def __init__(self, reference, device: str | None = None):
        if len(reference.shape) != 2 or 0 in reference.shape:
            raise ValueError(f"reference must be (n, d), neither of them 0, got shape {tuple(reference.shape)}")
        self.shape = tuple(reference.shape)
        self.device = device or str(getattr(reference, "device", "cpu"))
        self.reference = self.table = None
        n, d = self.shape
        if n * (6 * d + 256) <= IN_MEMORY:
            self.table = self._make_table(reference[:], 0)
        else:
            self.reference = reference

    def kneighbors(self, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the Euclidean distances (m, k) float32, ascending, of the k nearest rows, and their places (m, k).

        queries (m, d): array or tensor, taken as float32; places are int64. Distances have the resolution of float32,
        and rows that it cannot tell apart come in an order that is unspecified, but always the same. Raises ValueError
        unless 1 <= k <= n, the width is that of the reference, and values are finite and at most 1e15.
        """
        n, d = self.shape
        if len(queries.shape) != 2 or queries.shape[1] != d:
            raise ValueError(f"queries must be (m, {d}) as the reference is ({n}, {d}), got {tuple(queries.shape)}")
        if not 1 <= k <= n:
            raise ValueError(f"k must lie in [1, {n}], the number of reference rows, got {k}")
        distances, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        size = max(1, BLOCK // d)
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            distances[part], ids[part] = self._search(_as_float32(queries[part], "queries"), k)
        return distances, ids

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        from oodlib.neighbor_search import search_table

        x = torch.from_numpy(queries).to(self.device)
        distances = torch.full((len(x), k), torch.inf, device=self.device)
        ids = torch.zeros((len(x), k), dtype=torch.int64, device=self.device)
        for table in self._read_tables() if self.table is None else [self.table]:
            search_table(table, x, distances, ids)
        return distances.cpu().numpy(), ids.cpu().numpy()

    def _read_tables(self) -> Iterator:
        size = max(1, min(BLOCK // self.shape[1], BLOCK_ROWS))
        for start in range(0, self.shape[0], size):
            yield self._make_table(self.reference[start : start + size], start)
            release(self.reference)

    def _make_table(self, block, start: int):
        import torch

        from oodlib.neighbor_table import make_table

        rows = torch.from_numpy(_as_float32(block, "reference")).to(self.device)
        return make_table(rows, torch.arange(start, start + len(rows), device=self.device))


def _as_float32(block, name: str) -> np.ndarray:
    """Return a block of an array or tensor as a float32 array that torch can share; check its values."""
    if hasattr(block, "detach"):
        block = block.detach().float().cpu().numpy()
    block = np.require(block, np.float32, ["C", "W"])
    if not max(-block.min(), block.max()) <= LARGEST:
        raise ValueError(f"{name} must be finite and at most {LARGEST:g}, found {block.min()} to {block.max()}")
    return block
