"""Benchmarks of clustering, distances and the product against other libraries, side by side in one process each.

Each benchmark takes the scale, 1 for the full size, and yields rows of the table.
"""

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from side_by_side import compare, embeddings, growth, resident

from oodlib.arrays import to_unit_norm
from oodlib.files import resolve

N, M, D, CLASSES = 50_000, 20_000, 512, 10
TIGHTNESS = {"tight": 0.3, "loose": 1.0}


def sizes(scale: float) -> tuple[int, int]:
    return int(N * scale), int(M * scale)


def knn(scale: float) -> Iterator[dict]:
    """Exact k nearest neighbours, index and search, on made embeddings and on those of trained encoders."""
    import faiss

    from oodlib.scoring.knn import NeighborIndex

    n, m = sizes(scale)
    pairs = {name: [embeddings(size, D, CLASSES, r, size)[0] for size in (n, m)] for name, r in TIGHTNESS.items()}
    pairs["tight, OOD queries"] = pairs["tight"][0], embeddings(m, D, m, 1.0, 3)[0]
    pairs["collapsed"] = [embeddings(size, D, CLASSES, 1e-3, size)[0] for size in (n, m)]
    tasks = [(name, pair, 50) for name, pair in pairs.items()]
    tasks += [(name, pair, k) for name, pair in trained() for k in (1, 50, 500)]
    for name, (z, queries), k in tasks:

        def ours(z=z, queries=queries, k=k):
            return NeighborIndex(z).kneighbors(queries, k)[0]

        def theirs(z=z, queries=queries, k=k):
            index = faiss.IndexFlatL2(z.shape[1])
            index.add(z)
            return index.search(queries, k)[0]

        row, found, squares = compare(ours, theirs, 3)
        row["difference"] = np.abs(found - np.sqrt(np.maximum(squares, 0))).max()
        yield {"benchmark": f"KNN, k = {k}", "data": name, "other": "faiss IndexFlatL2"} | row


def trained() -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Yield training and test embeddings, at unit norm, of each large first run with cross-entropy that is embedded."""
    for folder in sorted(resolve("outputs").glob("*/runs/*-ce-s0/embeddings")):
        id_dataset = folder.parent.name.split("-")[0]
        paths = [folder / f"{id_dataset}-{split}.npz" for split in ("train", "test")]
        if all(path.is_file() for path in paths):
            sets = [to_unit_norm(np.load(path)["z"].astype(np.float32)) for path in paths]
            if len(sets[0]) > 10_000:
                yield f"{id_dataset}, {sets[0].shape[1]} dimensions", tuple(sets)


def mahalanobis(scale: float) -> Iterator[dict]:
    """Tied and relative Mahalanobis and ViM, fit and score; the first against a plain Cholesky factor, too."""
    import torch
    from pytorch_ood.detector import RMD, Mahalanobis, ViM

    from oodlib.scoring import ViMDetector, nearest_cluster
    from oodlib.scoring.distances import fit_distances

    n, m = sizes(scale)
    z, y = embeddings(n, D, CLASSES, 1.0, 1)
    queries = embeddings(m, D, CLASSES, 1.0, 2)[0]
    weight, bias = np.random.default_rng(0).normal(size=(CLASSES, D)).astype(np.float32), np.zeros(CLASSES, np.float32)
    tensors = [torch.from_numpy(array) for array in (z, y, queries, weight, bias)]

    def ours(name):
        return nearest_cluster(queries, name, fit_distances([name], z, y, CLASSES)[name])[0]

    def our_vim():
        return ViMDetector(weight, bias, D // 2).fit(z).score_samples(queries)

    def theirs(detector):
        return -detector.fit_features(*tensors[:2]).predict_features(tensors[2]).numpy()

    def cholesky():
        x, classes, asked = tensors[:3]
        means = torch.stack([x[classes == c].mean(dim=0) for c in range(CLASSES)])
        within = x - means[classes]
        factor = torch.linalg.cholesky(within.T @ within / len(x))
        white, centers = (torch.linalg.solve_triangular(factor, a.T, upper=False).T for a in (asked, means))
        return -torch.cdist(white, centers).amin(dim=1).numpy()

    for name, run, others in (
        ("mahalanobis", partial(ours, "mahalanobis"), {"pytorch-ood": Mahalanobis, "torch, Cholesky": cholesky}),
        ("relative-mahalanobis", partial(ours, "relative-mahalanobis"), {"pytorch-ood": RMD}),
        ("vim", our_vim, {"pytorch-ood": lambda _: ViM(None, D // 2, *tensors[3:])}),
    ):
        for other, make in others.items():
            row, found, scores = compare(run, make if make is cholesky else lambda make=make: theirs(make(None)), 5)
            ranks = np.corrcoef(found.argsort().argsort(), scores.argsort().argsort())[0, 1]
            about = {"benchmark": f"{name}, fit and score", "data": "loose", "other": other}
            yield about | row | {"rank_correlation": ranks}


def clustering(scale: float) -> Iterator[dict]:
    """k-means of as many starts as each library's users take; inertias are means a row."""
    import faiss
    from sklearn.cluster import KMeans

    from oodlib.clustering.kmeans import kmeans

    def by_faiss(z, k):
        found = faiss.Kmeans(D, k, niter=100, nredo=10, seed=1, max_points_per_centroid=len(z))
        found.train(z)
        return found.index.search(z, 1)[0].sum()

    others = {
        "scikit-learn, 10 starts": lambda z, k: KMeans(k, n_init=10, random_state=0).fit(z).inertia_,
        "faiss, 10 starts": by_faiss,
    }
    for name, noise in TIGHTNESS.items():
        z = embeddings(sizes(scale)[0], D, CLASSES, noise, 1)[0]
        for k, (other, theirs) in itertools.product((10, 30), others.items()):
            row, found, inertia = compare(lambda z=z, k=k: kmeans(z, k)[2], partial(theirs, z, k), 3)
            row |= {"inertia": found / len(z), "inertia_other": inertia / len(z)}
            yield {"benchmark": f"k-means, K = {k}", "data": name, "other": other} | row


def mixture(scale: float) -> Iterator[dict]:
    """A mixture of ten Gaussians with full covariances, k-means start included; likelihoods are means a row."""
    from sklearn.mixture import GaussianMixture

    from oodlib.clustering.mixture import fit_mixture

    for name, noise in TIGHTNESS.items():
        z = embeddings(sizes(scale)[0], D, CLASSES, noise, 1)[0]
        row, found, other = compare(
            lambda z=z: fit_mixture(z, CLASSES),
            lambda z=z: GaussianMixture(CLASSES, random_state=0).fit(z),
            3,
            lambda z=z: [z @ np.eye(D, dtype=np.float32) for _ in range(CLASSES)],
        )
        row["log_likelihood"] = round(found.log_likelihood, 3)
        row["log_likelihood_other"] = round(float(other.score_samples(z.astype(np.float64)).mean()), 3)
        yield {"benchmark": "Gaussian mixture, 10 full", "data": name, "other": "scikit-learn, float32"} | row


def product(scale: float) -> Iterator[dict]:
    """64 combinations of clustering, K, distance and threshold on 6 OOD sets, against the estimators one by one."""
    from sklearn.metrics import roc_auc_score

    from oodlib.clustering import cluster
    from oodlib.scoring import THRESHOLDS, ClusterDetector
    from oodlib.scoring.evaluation import Embedded, RunEmbeddings, cluster_scores, evaluate

    n, m = sizes(scale)
    share = m // 8
    train, calibration, test = (
        Embedded(*embeddings(k, D, CLASSES, 0.7, seed)) for seed, k in enumerate((n, share, share))
    )
    ood = {f"ood {i}": Embedded(*embeddings(share, D, 20 + i, 0.7 + i / 10, 10 + i)) for i in range(6)}
    data = RunEmbeddings(train, calibration, test, ood)
    clusterings = [("labels", CLASSES), ("kmeans", 10), ("kmeans", 20), ("spherical-kmeans", 10)]
    distances = ["euclidean", "cosine", "mahalanobis", "relative-mahalanobis"]

    def together():
        assignments = {(c, k): cluster(train.z, train.y, c, k).assignments for c, k in clusterings}
        rows = [
            row
            for scored in cluster_scores(data, assignments, distances)
            for row in evaluate(scored, list(ood), np.ones(len(test.z), dtype=bool), 0.05)
        ]
        key = ("clustering", "n_clusters", "distance", "threshold", "ood_dataset")
        return {tuple(row[k] for k in key): row["auroc"] for row in rows}

    def one_by_one():
        found = {}
        for (c, k), distance, threshold in ((a, b, t) for a in clusterings for b in distances for t in THRESHOLDS):
            detector = ClusterDetector(c, k, distance, threshold).fit(train.z, train.y, calibration.z)
            score = detector.p_values if threshold.endswith("cluster") else detector.score_samples
            inside = score(test.z)
            for name, embedded in ood.items():
                scores, is_id = np.concatenate([inside, score(embedded.z)]), np.repeat([1, 0], [len(inside), share])
                found[c, k, distance, threshold, name] = roc_auc_score(is_id, scores)
        return found

    def floor():  # a whitening of all sets for each clustering, and as many distances in the product
        everything, square = np.concatenate([part.z for part in data.sets().values()]), np.eye(D, dtype=np.float32)
        return [everything @ square for _ in clusterings]

    row, shared, single = compare(together, one_by_one, 1, floor)
    difference = max(abs(shared[key] - single[key]) for key in single)
    about = {"benchmark": "product, 64 × 6", "data": "middling", "other": "one ClusterDetector each"}
    yield about | row | {"difference": difference}


def memory(scale: float) -> Iterator[dict]:
    """Growth of resident memory while a fitted detector scores all queries."""
    from oodlib.scoring import ClusterDetector, KNNDetector

    n, m = sizes(scale)
    z, y = embeddings(n, D, CLASSES, 0.3, 1)
    queries = embeddings(m, D, CLASSES, 0.3, 2)[0]
    detectors = {"knn": KNNDetector(50)}
    for distance in ("cosine", "mahalanobis", "mahalanobis-cluster", "relative-mahalanobis", "log-density"):
        detectors[distance] = ClusterDetector("labels", distance=distance)
    for name, detector in detectors.items():
        detector.fit(z, y).score_samples(queries[:2])  # what is loaded once is no growth
        megabytes = round(growth(partial(detector.score_samples, queries)))
        yield {"benchmark": "memory growth while scoring", "data": name, "megabytes": megabytes}


def large(scale: float) -> Iterator[dict]:
    """Resident memory of all, at most, when half-precision embeddings as many as ImageNet's are read from a file."""
    import time

    from oodlib.scoring import ClusterDetector, KNNDetector

    n, d, classes, rows = int(1_281_167 * scale), 1024, 1000, 20_000
    queries = embeddings(rows, d, classes, 0.7, 2)[0]
    with tempfile.TemporaryDirectory() as folder:
        file = np.lib.format.open_memmap(Path(folder) / "z.npy", "w+", np.float16, (n, d))
        y = np.empty(n, dtype=np.int64)
        for i in range(0, n, rows):
            part = slice(i, min(i + rows, n))
            file[part], y[part] = embeddings(part.stop - i, d, classes, 0.7, 100 + i)
        file.flush()
        del file
        z = np.load(Path(folder) / "z.npy", mmap_mode="r")
        for name, detector, n_queries in (
            ("cosine", ClusterDetector("labels", distance="cosine"), rows),
            ("mahalanobis", ClusterDetector("labels", distance="mahalanobis"), rows),
            ("knn", KNNDetector(50), 2000),
        ):
            start, before = time.perf_counter(), resident()
            calibration = {"z_calibration": queries[:1000]} if name == "knn" else {}
            most = before + growth(lambda: detector.fit(z, y, **calibration).score_samples(queries[:n_queries]))  # noqa: B023
            seconds = round(time.perf_counter() - start, 1)
            about = {"benchmark": f"{n:,} × {d:,} float16 from a file", "data": f"{name}, {n_queries:,} queries"}
            yield about | {"ours_seconds": seconds, "megabytes": round(most)}


BENCHMARKS = {
    "knn": knn,
    "mahalanobis": mahalanobis,
    "kmeans": clustering,
    "mixture": mixture,
    "product": product,
    "memory": memory,
    "large": large,
}
