"""Reading rows in blocks: embeddings in memory or memory-mapped in; blocks of rows in float32 or float64 out.

What goes over all embeddings reads them so: neither a copy in another dtype nor a file larger than the memory has to
fit. What a block took of a memory map is given back before the next is read.
"""

import mmap
import sys
from collections.abc import Iterator

import numpy as np

ROWS = 4096  # in a block
SAMPLED = 10_000  # rows, at most, where a sample of them is enough


def working_dtype(z) -> np.dtype:
    """Return the dtype that embeddings z are computed in: float64 where they are float64, else float32."""
    return np.dtype(np.float64 if z.dtype == np.float64 else np.float32)


def read_blocks(z, rows: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks (b, d) of z (n, d) in its working dtype, each with the slice of the rows it holds.

    rows (m,) int: only these rows, in this order; slices are then of `rows`.
    """
    dtype, n = working_dtype(z), len(z) if rows is None else len(rows)
    for start in range(0, n, ROWS):
        part = slice(start, min(start + ROWS, n))
        yield part, np.asarray(z[part if rows is None else rows[part]]).astype(dtype, copy=False)
        release(z)


def sample_rows(n: int, size: int | None = None, seed: int = 0) -> np.ndarray:
    """Return the places (m,) int64, ascending, of n rows, or of a seeded sample where they are more than `size`.

    size: None takes SAMPLED.
    """
    return np.sort(np.random.default_rng(seed).permutation(n)[: SAMPLED if size is None else size])


def release(z) -> None:
    """Give back the memory that the pages read from a read-only memory map take."""
    base = z
    while isinstance(base, np.ndarray):
        base = base.base
    # a map that may be written to could hold changes that are in no file
    if isinstance(base, mmap.mmap) and memoryview(base).readonly and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def as_array(z):
    """Return a torch tensor, of whichever device and gradient, as an array; bfloat16, which NumPy lacks, as float32.

    All else is returned as it is.
    """
    torch = sys.modules.get("torch")  # where nobody has imported it, nothing is a tensor
    if torch is None or not isinstance(z, torch.Tensor):
        return z
    return (z.float() if z.dtype == torch.bfloat16 else z).numpy(force=True)


def array_module(z):
    """Return the module, NumPy or torch, whose functions take z, so that one formula is for arrays and tensors."""
    if isinstance(z, np.ndarray):
        return np
    import torch

    return torch


def to_float64(z):
    """Return z, array or tensor, in float64."""
    return z.astype(np.float64, copy=False) if isinstance(z, np.ndarray) else z.double()


def to_unit_norm(z: np.ndarray) -> np.ndarray:
    """Return the rows of z (n, d), array or tensor, at unit length; a zero row stays zero, at distance 1 of all."""
    norms = array_module(z).linalg.norm(z, axis=1, keepdims=True)
    if isinstance(z, np.ndarray) and not (usual := (norms[:, 0] > 1e-15) & (norms[:, 0] < 1e15)).all():
        z, norms = z.copy(), norms.copy()  # the squares of some rows left the range of float32, or were zero
        z[~usual], norms[~usual] = _at_largest_one(z[~usual])
    return z / (norms + (norms == 0))


def _at_largest_one(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of z (n, d), each divided by its largest value, and their norms (n, 1)."""
    largest = np.abs(z).max(axis=1, keepdims=True)
    z = z / (largest + (largest == 0))
    return z, np.linalg.norm(z, axis=1, keepdims=True)


class UnitRows:
    """Embeddings z (n, d) with every row at unit length in float64, made so as it is read."""

    dtype = np.dtype(np.float64)

    def __init__(self, z: np.ndarray):
        self.z, self.shape = z, z.shape

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        found = to_unit_norm(np.asarray(self.z[rows]).astype(np.float64, copy=False))
        release(self.z)
        return found


def check_matrix(name: str, z) -> np.ndarray:
    """Return z as an array (n, d) float32 or float64; raise ValueError as `check_rows`."""
    z = check_rows(name, z)
    return z if z.dtype in (np.float32, np.float64) else z.astype(np.float32 if z.dtype.kind == "f" else np.float64)


def check_rows(name: str, z) -> np.ndarray:
    """Return z as an array (n, d); raise ValueError, with the name, if it is not 2-d, empty, not real or not finite."""
    z = np.asanyarray(as_array(z))
    if z.ndim != 2 or z.size == 0:
        raise ValueError(f"{name} must have shape (n, d) with n, d >= 1, got {z.shape}")
    if z.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be real numbers (float or int), got dtype {z.dtype}")
    n_bad = sum(int((~np.isfinite(block).all(axis=1)).sum()) for _, block in read_blocks(z))
    if n_bad:
        raise ValueError(f"{name} must be finite, got {n_bad} of {len(z)} rows with NaN or infinity")
    return z
