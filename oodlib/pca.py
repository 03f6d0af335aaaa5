"""PCA: training embeddings in; a basis of principal directions, and embeddings in its coordinates, out."""

import numpy as np

from oodlib.blocks import read_blocks, working_dtype
from oodlib.moments import mean_of, spectrum

Basis = tuple[np.ndarray, np.ndarray]  # mean (d,), directions (d, p)


def pca_basis(z: np.ndarray, n_components: int) -> Basis:
    """Return mean (d,) and the first principal directions (d, p) of the training embeddings z (n, d).

    Raises ValueError when there are not so many dimensions.
    """
    if not 1 <= n_components <= z.shape[1]:
        raise ValueError(f"pca must be between 1 and d = {z.shape[1]}, or 0 for none, got {n_components}")
    mean = mean_of(z)
    dtype = working_dtype(z)
    centred = lambda kind: ((b - mean).astype(kind) for _, b in read_blocks(z))
    directions = spectrum(centred, dtype, *z.shape)[1][:, : -n_components - 1 : -1]  # eigenvalues ascend
    return mean.astype(dtype), directions.astype(dtype)


def project(z: np.ndarray, basis: Basis | None) -> np.ndarray:
    """Return z (n, d) in the coordinates of a PCA basis, or as it is where there is none."""
    return z if basis is None else np.concatenate([(block - basis[0]) @ basis[1] for _, block in read_blocks(z)])
