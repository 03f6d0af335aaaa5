"""Arrays at the door and in blocks: checks of embeddings, labels and scores, unit norm, squared distances.

What goes over all embeddings reads them a block of rows at a time, in float32 or float64: neither a copy in another
dtype nor a file larger than the memory has to fit. Memory that a memory map took for a block is given back.
"""

import mmap
import sys
from collections.abc import Iterator

import numpy as np

ROWS = 4096  # in a block
ROWS_IN_CACHE = 2048  # whose products with some tens of rows stay in the processor's cache
SAMPLED = 10_000  # rows, at most, where a sample of them is enough


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


def check_labels(name: str, y, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct labels (C,), ascending, and the place (n,) of each row's label among them.

    Raises ValueError, with the name, if y is not (n,) integers, or has a negative label, which means unknown.
    """
    y = np.asarray(as_array(y))
    if y.shape != (n,) or n == 0:
        raise ValueError(f"{name} must have shape (n,), one label a row, with n = {n or 'at least 1'}, got {y.shape}")
    if y.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got dtype {y.dtype}")
    if y.min() < 0:
        raise ValueError(f"{name} must be >= 0 (-1 means unknown), got {(y < 0).sum()} negative labels")
    return np.unique(y, return_inverse=True)


def check_scores(name: str, scores) -> np.ndarray:
    """Return scores as float64 (n,); raise ValueError, with the name, if they are not real, not 1-d, empty or NaN."""
    scores = np.asarray(as_array(scores))
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"{name} must have shape (n,) with n >= 1, got {scores.shape}")
    if scores.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers (float, int or bool), got dtype {scores.dtype}")
    scores = scores.astype(np.float64, copy=False)
    if np.isnan(scores).any():
        raise ValueError(f"{name} must not hold NaN, got {np.isnan(scores).sum()} of {scores.size}")
    return scores


def as_array(z):
    """Return a torch tensor, of whichever device and gradient, as an array; bfloat16, which NumPy lacks, as float32.

    All else is returned as it is.
    """
    torch = sys.modules.get("torch")  # where nobody has imported it, nothing is a tensor
    if torch is None or not isinstance(z, torch.Tensor):
        return z
    return (z.float() if z.dtype == torch.bfloat16 else z).numpy(force=True)


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


def slices(n: int) -> Iterator[slice]:
    """Yield the slices of n rows, ROWS_IN_CACHE at a time."""
    return (slice(start, start + ROWS_IN_CACHE) for start in range(0, n, ROWS_IN_CACHE))


def release(z) -> None:
    """Give back the memory that the pages read from a read-only memory map take."""
    base = z
    while isinstance(base, np.ndarray):
        base = base.base
    # a map that may be written to could hold changes that are in no file
    if isinstance(base, mmap.mmap) and memoryview(base).readonly and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def sample_rows(n: int, size: int | None = None, seed: int = 0) -> np.ndarray:
    """Return the places (m,) int64, ascending, of n rows, or of a seeded sample where they are more than `size`.

    size: None takes SAMPLED.
    """
    return np.sort(np.random.default_rng(seed).permutation(n)[: SAMPLED if size is None else size])


def to_float64(z):
    """Return z, array or tensor, in float64."""
    return z.astype(np.float64, copy=False) if isinstance(z, np.ndarray) else z.double()


def squared_distances(z: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances (n, K) float64 of z (n, d) to centers (K, d) float64, arrays or tensors.

    They come from a product, so they err by 1e-16 of the squared norms; at least 0.
    """
    xp, z = _module_of(z), to_float64(z)
    distances = z @ (-2 * centers.T)
    distances += xp.einsum("nd,nd->n", z, z)[:, None]
    distances += (centers**2).sum(axis=1)
    return xp.clip(distances, 0, None, out=distances)


def to_unit_norm(z: np.ndarray) -> np.ndarray:
    """Return the rows of z (n, d), array or tensor, at unit length; a zero row stays zero, at distance 1 of all."""
    norms = _module_of(z).linalg.norm(z, axis=1, keepdims=True)
    if isinstance(z, np.ndarray) and not (usual := (norms[:, 0] > 1e-15) & (norms[:, 0] < 1e15)).all():
        # the squares of some rows left the range of float32, or were zero: bring their largest value to one first
        z, norms, odd = z.copy(), norms.copy(), z[~usual]
        largest = np.abs(odd).max(axis=1, keepdims=True)
        z[~usual] = odd = odd / (largest + (largest == 0))
        norms[~usual] = np.linalg.norm(odd, axis=1, keepdims=True)
    return z / (norms + (norms == 0))


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


def _module_of(z):
    """Return the module, NumPy or torch, whose functions take z, so that one formula is for arrays and tensors."""
    return np if isinstance(z, np.ndarray) else sys.modules["torch"]
