"""Distances to clusters of embeddings: Euclidean, cosine, Mahalanobis and its relatives.

Every distance is fitted to a state, a dictionary of arrays (so that a detector is arrays and nothing else), and
measured to (n, K) distances, smaller is closer. Differences are taken in float64, so that classes may be as tight and
as far from the origin as float32 can hold; the large products, with d × d matrices, are float32 where the embeddings
are. Fits take arrays; measures take arrays, or tensors with a state of tensors, in which `oodlib.app.model` has them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.special import logsumexp

from oodlib.arrays import read_blocks, squared_distances, to_float64, to_unit_norm, working_dtype
from oodlib.clustering.gaussians import Gaussians
from oodlib.clustering.moments import Moments, spectrum

State = dict[str, np.ndarray]
LEAST = 2  # members a dimension that a cluster needs for a covariance of its own


@dataclass(frozen=True)
class Distance:
    """A distance: how it is fitted and measured, and how distances make a score.

    `fit(moments)` returns the state; where the clusters are the components of a mixture and `of_mixture` is given,
    `of_mixture(mixture)` does. `base(z, state)` returns the (n, K) distances, which `finish(distances, state)` turns
    into others where it is given. `unit`: the embeddings are taken at unit norm. `joint`: the distances are minus log
    densities, and a score is the log of the sum of all, not that of the largest alone. `state`: dtype and shape of each
    array of the state, as in the layout of `oodlib.scoring.detector_file`; without it a detector cannot be saved.
    """

    fit: Callable[[Moments], State]
    base: Callable[[np.ndarray, State], np.ndarray]
    finish: Callable[[np.ndarray, State], np.ndarray] | None = None
    of_mixture: Callable[[Gaussians], State] | None = None
    unit: bool = False
    joint: bool = False
    state: dict[str, str] = field(default_factory=dict)

    def measure_base(self, z: np.ndarray, state: State) -> np.ndarray:
        """Return the distances (n, K) float64 of a block z (n, d) to every cluster, before `finish`."""
        z = to_float64(z)
        return self.base(to_unit_norm(z) if self.unit else z, state)

    def measure(self, z: np.ndarray, state: State) -> np.ndarray:
        """Return the distances (n, K) float64 of a block z (n, d) to every cluster."""
        distances = self.measure_base(z, state)
        return self.finish(distances, state) if self.finish else distances


def fit_distances(
    names: list[str], z: np.ndarray, assignments: np.ndarray, n_clusters: int, mixture: Gaussians | None = None
) -> dict[str, State]:
    """Fit distances to the clusters of z (n, d), assignments (n,) in 0 … K - 1; what they share is computed once.

    mixture: the Gaussians of z whose likeliest components the assignments are; "log-density" is then theirs.
    Distances with the same fit share one state. Raises ValueError for an unknown name, an empty cluster, and where a
    distance is not defined: no variation within clusters (Mahalanobis), one cluster (relative).
    """
    if unknown := [name for name in names if name not in DISTANCES]:
        raise ValueError(f"unknown distance {unknown[0]!r}; known: {', '.join(DISTANCES)}")
    moments, states, keys = {}, {}, {}
    for name in names:
        distance = DISTANCES[name]
        if distance.unit not in moments:
            moments[distance.unit] = Moments(z, assignments, n_clusters, distance.unit)
        of_mixture = mixture is not None and distance.of_mixture is not None
        keys[name] = key = distance.of_mixture if of_mixture else distance.fit, distance.unit
        if key not in states:
            state = distance.of_mixture(mixture) if of_mixture else distance.fit(moments[distance.unit])
            large = [part for part, kind in distance.state.items() if kind.startswith("float ")]
            states[key] = state | {part: state[part].astype(working_dtype(z)) for part in large}
    return {name: states[keys[name]] for name in names}


def fit_euclidean(moments: Moments) -> State:
    """Take the cluster means, relative to the mean of all so that a common shift costs no digits."""
    return {"origin": moments.origin, "centers": moments.means}


def measure_euclidean(z: np.ndarray, state: State) -> np.ndarray:
    """Return squared Euclidean distances (n, K)."""
    return squared_distances(z - state["origin"], state["centers"])


def fit_cosine(moments: Moments) -> State:
    """Take mean directions: the cluster means of unit vectors, at unit length."""
    return {"centers": to_unit_norm(moments.means + moments.origin)}


def measure_cosine(z: np.ndarray, state: State) -> np.ndarray:
    """Return one minus the cosine to each mean direction, (n, K) in [0, 2]."""
    return 1 - z @ state["centers"].T


def fit_mahalanobis(moments: Moments) -> State:
    """Take cluster means and one tied within-cluster covariance (Lee et al. 2018), as a whitening."""
    return _whitened(moments, moments.whiten)


def fit_shrunk(moments: Moments) -> State:
    """Take cluster means and one tied covariance, shrunk (Ledoit and Wolf 2004), so that no direction is left out."""
    return _whitened(moments, moments.whiten_shrunk)


def _whitened(moments: Moments, whiten: np.ndarray) -> State:
    return {"origin": moments.origin, "whiten": whiten, "centers": moments.means @ whiten}


def measure_mahalanobis(z: np.ndarray, state: State) -> np.ndarray:
    """Return squared Mahalanobis distances (n, K) under the tied covariance."""
    return squared_distances(_product(z - state["origin"], state["whiten"]), state["centers"])


def _product(z: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the product (n, r) of z (n, d) float64 and a matrix (d, r), in the dtype of the matrix."""
    return (z.astype(matrix.dtype) if isinstance(z, np.ndarray) else z.to(matrix.dtype)) @ matrix


def fit_per_cluster(moments: Moments) -> State:
    """Fit one covariance a cluster, as a factor in the space that the tied covariance makes white.

    There the tied covariance is the identity, so neither unit nor redundant dimensions matter. A cluster of less than
    LEAST members a dimension of this space takes the tied covariance: its own is singular, or so nearly that new
    members would be far from all its old ones. `own` (f,) are the clusters that have factors (f, r, r).
    """
    tied = fit_mahalanobis(moments)
    n_clusters, rank = tied["centers"].shape
    sizes = np.bincount(moments.assignments)
    own, volumes = np.flatnonzero(sizes >= LEAST * rank), np.zeros(n_clusters)
    factors = np.empty((len(own), rank, rank), moments.dtype)
    for i, k in enumerate(own):
        eigenvalues, vectors = _cluster_spectrum(moments, tied, k)
        # in the tied-white space 1e-6 is a millionth of the usual variance: what a cluster lacks, it lacks up to there
        eigenvalues = np.maximum(eigenvalues, 1e-6)
        factors[i], volumes[k] = vectors / np.sqrt(eigenvalues), np.log(eigenvalues).sum() / 2
    log_weights = np.log(moments.weights) - volumes - rank / 2 * np.log(2 * np.pi)
    return tied | {"own": own, "factors": factors, "log_weights": log_weights}


def _cluster_spectrum(moments: Moments, tied: State, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (r,) and eigenvectors (r, r) of the covariance of cluster k in the white space."""
    whiten, rows = tied["whiten"].astype(moments.dtype), np.flatnonzero(moments.assignments == k)
    mean = moments.means[k] + moments.origin

    def centred(dtype: type) -> Iterator[np.ndarray]:
        for _, block in read_blocks(moments.z, rows):
            yield _product(block - mean, whiten).astype(dtype, copy=False)

    return spectrum(centred, moments.dtype, len(rows), whiten.shape[1])


def measure_per_cluster(z: np.ndarray, state: State) -> np.ndarray:
    """Return squared Mahalanobis distances (n, K), each under its cluster's own covariance, else the tied one."""
    x = to_float64(_product(z - state["origin"], state["whiten"]))
    distances = squared_distances(x, state["centers"])
    for i, factor in enumerate(state["factors"]):
        k = state["own"][i]
        white = to_float64(_product(x - state["centers"][k], factor))
        distances[:, k] = (white**2).sum(axis=1)
    return distances


def to_log_density(distances: np.ndarray, state: State) -> np.ndarray:
    """Return minus the log of weight times density (n, K) of each Gaussian; up to a common constant for clusters."""
    return distances / 2 - state["log_weights"]


def fit_relative(moments: Moments) -> State:
    """Take the tied Mahalanobis distance, and that to all training embeddings as one cluster (Ren et al. 2021).

    Raises ValueError for a single cluster: the two would be the same, and their difference zero everywhere.
    """
    if len(moments.means) < 2:
        raise ValueError("a relative distance needs at least two clusters")
    return fit_mahalanobis(moments) | {"background": moments.whiten_total}


def measure_relative(z: np.ndarray, state: State) -> np.ndarray:
    """Return squared tied Mahalanobis distances (n, K) minus that to the Gaussian of all; they may be negative."""
    background = to_float64(_product(z - state["origin"], state["background"]))
    return measure_mahalanobis(z, state) - (background**2).sum(axis=1)[:, None]


_CENTERS = {"origin": "float64 d", "centers": "float64 k d"}
_TIED = {"origin": "float64 d", "whiten": "float d r", "centers": "float64 k r"}
_RELATIVE = _TIED | {"background": "float d s"}
_PER_CLUSTER = _TIED | {"own": "int64 f", "factors": "float f r r", "log_weights": "float64 k"}
DISTANCES = {
    "euclidean": Distance(fit_euclidean, measure_euclidean, state=_CENTERS),
    "cosine": Distance(fit_cosine, measure_cosine, unit=True, state={"centers": "float64 k d"}),
    "mahalanobis": Distance(fit_mahalanobis, measure_mahalanobis, state=_TIED),
    "mahalanobis-shrunk": Distance(fit_shrunk, measure_mahalanobis, state=_TIED),
    "mahalanobis-cluster": Distance(fit_per_cluster, measure_per_cluster, state=_PER_CLUSTER),
    "relative-mahalanobis": Distance(fit_relative, measure_relative, state=_RELATIVE),
    # the same at unit norm, where the norm of an embedding cannot pass for its kind (Müller and Hein 2025)
    "mahalanobis++": Distance(fit_mahalanobis, measure_mahalanobis, unit=True, state=_TIED),
    "relative-mahalanobis++": Distance(fit_relative, measure_relative, unit=True, state=_RELATIVE),
    "mahalanobis-shrunk++": Distance(fit_shrunk, measure_mahalanobis, unit=True, state=_TIED),
    # SSD (Sehwag et al. 2021) standardises each dimension first; Mahalanobis distances do not depend on that. It takes
    # the pseudo-inverse of each cluster's covariance; here small clusters take the tied one, and what a cluster lacks
    # has a millionth of the tied variance, so that to leave its directions is no distance of zero.
    "ssd": Distance(fit_per_cluster, measure_per_cluster, unit=True, state=_PER_CLUSTER),
    "log-density": Distance(
        fit_per_cluster,
        measure_per_cluster,
        finish=to_log_density,
        of_mixture=Gaussians.whitened,
        joint=True,
        state=_PER_CLUSTER,
    ),
}


def nearest_cluster(z: np.ndarray, distance: str, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Return the score (n,) of each row of z, minus the distance to its nearest cluster, and that cluster (n,).

    Where the distance is joint, the score is the log density under all clusters together.
    """
    return nearest_clusters(z, {distance: state})[distance]


def nearest_clusters(z: np.ndarray, states: dict[str, State]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return `nearest_cluster` for several distances, by name, reading z (n, d) once and in blocks.

    Distances that rest on the same measurement share it.
    """
    found = {name: (np.empty(len(z)), np.empty(len(z), dtype=np.int64)) for name in states}
    for part, block in read_blocks(z):
        measured = {}
        for name, state in states.items():
            distance = DISTANCES[name]
            key = distance.base, distance.unit, id(state)
            if key not in measured:
                measured[key] = distance.measure_base(block, state)
            distances = measured[key] if distance.finish is None else distance.finish(measured[key], state)
            scores, nearest = found[name]
            nearest[part] = distances.argmin(axis=1)
            scores[part] = logsumexp(-distances, axis=1) if distance.joint else -distances.min(axis=1)
    return found
