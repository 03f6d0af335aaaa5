"""Your images: a folder of images goes in; an encoder, a detector chosen and calibrated without OOD data, tables out.

For whoever has some hundred images in class folders and no study: what the notebooks 01 to 04 do for a run, here for
the parts of one folder (`oodlib.your_folder`) and in a minute.
"""

import math
import threading

import numpy as np
import pandas as pd

from oodlib.choices import choice_table
from oodlib.clustering import cluster
from oodlib.data import ImageSet
from oodlib.detector import Detector
from oodlib.embedding import embed
from oodlib.encoders import Encoder, EncoderSpec, check_arch, load_encoder, pretrained_config
from oodlib.files import resolve
from oodlib.product import Embedded, RunEmbeddings
from oodlib.scoring import ClusterDetector, KNNDetector
from oodlib.separation import cluster_purity, global_separation
from oodlib.settings import TrainingConfig
from oodlib.thresholds import rate_band
from oodlib.trainer import Trainer, print_header
from oodlib.training import encoder_spec
from oodlib.your_folder import HELD_OUT, Part

SIDE = 32  # that the network sees where it is trained here
EPOCH = 1000  # views: an epoch goes through a smaller folder several times
DISTANCES = ("mahalanobis", "relative-mahalanobis", "cosine", "euclidean")  # a covariance a cluster needs more images
N_NEIGHBORS = 5  # k of KNN
FALLBACK = "knn"  # the detector where classes are too few to choose one; it assumes least of the clusters


def image_side(backbone: str, weights: str, side: int) -> int:
    """Return the side in pixels that the images of a folder are brought to; side 0 takes what the encoder needs.

    Raises ValueError for weights that are neither "", "pretrained" nor a file, and for a side that is not the file's.
    """
    if weights not in ("", "pretrained"):
        if not resolve(weights).is_file():
            raise ValueError(
                f"weights must be empty (train here), 'pretrained' (timm's) or a file of 01: no file {weights!r}"
            )
        own = load_encoder(resolve(weights)).spec.side
        if side not in (0, own):
            raise ValueError(f"the encoder in {weights!r} takes images of side {own}, not {side}; leave side at 0")
        return own
    check_arch(backbone)
    return side or (pretrained_config(backbone).get("input_size", (3, SIDE, SIDE))[-1] if weights else SIDE)


def make_encoder(
    parts: dict[str, Part], backbone: str, weights: str, side: int, epochs: int
) -> tuple[Encoder, pd.DataFrame]:
    """Return an encoder for these images and the history of its training, empty where it was not trained here.

    weights: "" trains with cross-entropy on the part train, "pretrained" takes timm's, a path takes a file. Raises
    ConnectionError where pretrained weights cannot be fetched, ValueError where there are none, for an unknown backbone
    and for less than two classes to train on.
    """
    if weights == "pretrained":
        return _pretrained(parts["train"].images, backbone, side), pd.DataFrame()
    if weights:
        return load_encoder(resolve(weights)).eval(), pd.DataFrame()
    images, held_out = parts["train"].images, parts["choice"].images
    if len(images.classes) < 2:
        raise ValueError("an encoder is trained to tell classes apart: one class needs weights='pretrained' or a file")
    # grey images are taken for signs: a mirrored digit is no digit
    about = {"batch_size": 64, "crop": 0.5} | ({"flip": 0.5, "jitter": 0.4} if images.images.ndim == 4 else {})
    config = TrainingConfig(arch=backbone, epochs=epochs, input_size=side, **about)
    return _train(config, images, held_out)


def _train(config: TrainingConfig, images: ImageSet, held_out: ImageSet) -> tuple[Encoder, pd.DataFrame]:
    import torch

    torch.manual_seed(config.seed)
    encoder = Encoder(encoder_spec(config, images))
    repeats = max(1, EPOCH // len(images))
    x, y = encoder.prepare(images.images), torch.from_numpy(images.labels)
    shown = encoder.prepare(held_out.images), torch.from_numpy(held_out.labels)
    trainer = Trainer(config, encoder, x.repeat(repeats, 1, 1, 1), y.repeat(repeats), shown)
    print_header()
    for _ in range(config.epochs):
        trainer.epoch(threading.Event())
        trainer.end_epoch()
    return trainer.result.eval(), pd.DataFrame(trainer.state.history)


def _pretrained(images: ImageSet, backbone: str, side: int) -> Encoder:
    about = pretrained_config(backbone)
    if not about.get("mean"):
        raise ValueError(f"{backbone!r} has no pretrained weights: take another backbone, or leave weights empty")
    own, channels = min(images.images.shape[1:3]), 1 if images.images.ndim == 3 else 3
    look = (own, channels, side, tuple(about["mean"]), tuple(about["std"]))
    try:
        return Encoder(EncoderSpec(backbone, images.classes, (), *look, small_stem=False), pretrained=True).eval()
    except ConnectionError as error:
        raise ConnectionError(
            f"the pretrained weights of {backbone!r} are not on this machine and could not be fetched: leave weights "
            "empty to train here, or run this once where there is a network"
        ) from error


def embed_parts(encoder: Encoder, parts: dict[str, Part]) -> dict[str, Embedded]:
    """Return the embeddings of every part by its name; labels of OOD images are -1."""
    found = {}
    for name, part in parts.items():
        z, _ = embed(encoder, encoder.prepare(part.images.images))
        found[name] = Embedded(z, np.full(len(z), -1) if name == "ood" else part.images.labels)
    return found


def together(data: dict[str, Embedded], names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings (n, d) and labels (n,) of several parts."""
    z, y = zip(*((data[name].z, data[name].y) for name in names), strict=True)
    return np.concatenate(z), np.concatenate(y)


def cluster_table(data: dict[str, Embedded], classes: tuple[str, ...]) -> pd.DataFrame:
    """Return how good the clusters of the held-out images are, by label and by k-means: a row a cluster.

    separation is in [-1, 1], purity, the share of the largest class, in (0, 1]; higher is better.
    """
    z, y = together(data, HELD_OUT)
    tables = []
    for method in ("labels", "kmeans"):
        _, assigned = np.unique(y, return_inverse=True)
        if method == "kmeans":
            assigned = cluster(z, y, method).assignments
        largest = [np.bincount(y[assigned == k]).argmax() for k in np.unique(assigned)]
        about = {"clustering": method, "class": [classes[label] for label in largest], "images": np.bincount(assigned)}
        measured = {"separation": global_separation(z, assigned), "purity": cluster_purity(assigned, y)}
        tables.append(pd.DataFrame(about | measured))
    return pd.concat(tables, ignore_index=True)


def rank_detectors(data: dict[str, Embedded]) -> pd.DataFrame:
    """Return the detectors, best first, by their AUROC against classes that are left out in turn: detector, auroc.

    The images are those of the part choice. Where no class can be left out, of two classes or of too few images, the
    table is FALLBACK alone, its AUROC nan.
    """
    train, choice = data["train"], data["choice"]
    keys = [(0, method, len(np.unique(train.y))) for method in ("labels", "kmeans")]
    found = choice_table(
        RunEmbeddings(train, choice, choice, {}), ["left-out classes"], keys, list(DISTANCES), N_NEIGHBORS
    )
    names = found.distance.where(found.clustering == "none", found.clustering + "/" + found.distance)
    found = found.assign(detector=names)[(found.clustering != "none") | (found.distance == "knn")]
    if found.empty:
        return pd.DataFrame({"detector": [FALLBACK], "auroc": [np.nan]})
    return found[["detector", "auroc"]].sort_values("auroc", ascending=False, kind="stable", ignore_index=True)


def fit_detector(data: dict[str, Embedded], name: str, alpha: float) -> Detector:
    """Fit the detector of this name, CLUSTERING/DISTANCE or knn, with a conformal threshold at alpha."""
    train = data["train"]
    if name == "knn":
        unfitted = KNNDetector(min(N_NEIGHBORS, len(train.z) - 1), alpha)
    else:
        clustering, distance = name.split("/")
        unfitted = ClusterDetector(clustering, distance=distance, threshold="conformal", alpha=alpha)
    return unfitted.fit(train.z, train.y, data["calibration"].z)


def promise(n_calibration: int, alpha: float) -> str:
    """Say whether so many calibration images can promise a false-alarm rate of at most alpha."""
    least = math.ceil(1 / alpha - 1 - 1e-9)
    if n_calibration >= least:
        return f"{n_calibration} calibration images: at most {alpha:.1%} of images like these are rejected."
    return (
        f"{n_calibration} calibration images are too few to promise {alpha:.1%}, which takes {least}: nothing is "
        f"rejected. Add images, or take alpha = {1 / (n_calibration + 1):.3f} or more."
    )


def rejection_table(detector: Detector, data: dict[str, Embedded], alpha: float) -> pd.DataFrame:
    """Return how many test and OOD images are rejected: part, images, rejected, share, low, high, about.

    Of test images, low and high are where the share lies in 95 of 100 splits if the promise holds; of OOD images they
    are Wilson's 95 % interval.
    """
    from scipy.stats import binomtest

    rows = []
    for name in [name for name in ("test", "ood") if name in data]:
        z = data[name].z
        n, rejected = len(z), int((detector.predict(z) == -1).sum())
        if name == "test":
            low, high, about = *rate_band(alpha, len(data["calibration"].z), n), "false alarms; 95 % expected"
        else:
            low, high, about = *binomtest(rejected, n).proportion_ci(method="wilson"), "found; 95 % interval"
        rows.append({"part": name, "images": n, "rejected": rejected, "share": rejected / n, "low": low, "high": high})
        rows[-1]["about"] = about
    return pd.DataFrame(rows)


def drift_stream(detector: Detector, data: dict[str, Embedded], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (n,) of a stream that drifts, and which of its images (n,) are OOD.

    Test images come in random order; from half of the stream on, as many OOD images at most come among them, ever
    denser. Without OOD images nothing drifts.
    """
    rng = np.random.default_rng(seed)
    n = len(data["test"].z)
    scores, when = [detector.score_samples(data["test"].z)], [rng.random(n)]
    if "ood" in data:
        some = rng.permutation(len(data["ood"].z))[:n]
        scores.append(detector.score_samples(data["ood"].z[some]))
        when.append(0.5 + 0.5 * np.sqrt(rng.random(len(some))))
    is_ood = np.repeat(np.arange(len(scores)) > 0, [len(part) for part in scores])
    order = np.argsort(np.concatenate(when))
    return np.concatenate(scores)[order], is_ood[order]
