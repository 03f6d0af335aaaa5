"""Your images: a folder of images goes in; an encoder, a detector chosen and calibrated without OOD data, tables out.

For whoever has some hundred images in class folders and no study: what the notebooks 01 to 04 do for a run, here for
the parts of one folder (`oodlib.app.folder`) and in a minute.
"""

import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD

from oodlib.app.folder import HELD_OUT, Part
from oodlib.clustering.clusters import cluster
from oodlib.data.folders import MAX_SIDE
from oodlib.data.sets import ImageSet
from oodlib.device import default_device
from oodlib.encoders.architectures import check_arch, pretrained_config
from oodlib.encoders.embedding import embed_images
from oodlib.encoders.encoder import Encoder, EncoderSpec
from oodlib.encoders.epoch import Trainer, print_header
from oodlib.encoders.foreign_weights import encoder_of_state, has_small_stem, own_encoder, read_state, set_classifier
from oodlib.encoders.settings import TrainingConfig
from oodlib.encoders.training import encoder_spec
from oodlib.files import resolve
from oodlib.scoring.choices import OF_NOTEBOOK, choose_candidate, rank_candidates
from oodlib.scoring.cluster_detector import ClusterDetector
from oodlib.scoring.detector import Detector, check_alpha
from oodlib.scoring.knn import KNNDetector
from oodlib.scoring.product import Embedded, RunEmbeddings
from oodlib.scoring.thresholds import images_needed, rate_band
from oodlib.separation import cluster_purity, global_separation

SIDE = 32  # that the network sees where it is trained here
EPOCH = 1000  # views: an epoch goes through a smaller folder several times
N_NEIGHBORS = 5  # k of KNN
FALLBACK = "knn"  # see `oodlib.scoring.choices`


def check_settings(side: int, epochs: int, alpha: float) -> None:
    """Raise ValueError for a setting that nothing can be done with, before anything is read or trained."""
    check_alpha(alpha)
    for name, value, least in (("side", side, 0), ("epochs", epochs, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if side > MAX_SIDE:
        raise ValueError(f"side must be at most {MAX_SIDE} pixels, got {side}")


def image_side(backbone: str, weights: str, side: int) -> int:
    """Return the side in pixels that the images of a folder are brought to; side 0 takes what the encoder needs.

    Raises ValueError for an unknown backbone, weights that are neither "", "pretrained" nor a file that can be read,
    and for a side or a backbone that is not the file's.
    """
    check_arch(backbone)
    small = not weights
    if weights not in ("", "pretrained"):
        path = resolve(weights)
        if not path.is_file():
            raise ValueError(f"weights must be empty (train here), 'pretrained' (timm's) or a file: there is no {path}")
        if encoder := own_encoder(path, backbone):
            own = encoder.spec.side
            if side not in (0, own):
                raise ValueError(f"the encoder in {weights!r} takes images of side {own}, not {side}; leave side at 0")
            return own
        small = has_small_stem(read_state(path), backbone)
    return side or (SIDE if small else pretrained_config(backbone).get("input_size", (3, SIDE, SIDE))[-1])


def make_encoder(
    parts: dict[str, Part], backbone: str, weights: str, side: int, epochs: int
) -> tuple[Encoder, pd.DataFrame]:
    """Return an encoder for these images and the history of its training, empty where it was not trained here.

    weights: "" trains with cross-entropy on the part train, "pretrained" takes timm's, a path takes a file, see
    `oodlib.encoders.foreign_weights`. In every case the encoder has a classifier of the classes of the part train,
    fitted to it unless the file brings one of the same names. Raises ConnectionError where pretrained weights cannot be
    fetched, ValueError where there are none or they do not fit, for an unknown backbone and for less than two classes
    to train.
    """
    images, held_out = parts["train"].images, parts["choice"].images
    if weights:
        encoder = _pretrained(images, backbone, side) if weights == "pretrained" else None
        encoder = encoder or own_encoder(resolve(weights), backbone)
        encoder = (encoder or _of_state(images, backbone, side, resolve(weights))).to(default_device())
        if encoder.classifier is None or encoder.spec.classes != images.classes:
            z, _ = embed_images(encoder, images.images)
            set_classifier(encoder, images.classes, *_probe(z, images.labels))
        return encoder, pd.DataFrame()
    if len(images.classes) < 2:
        raise ValueError("an encoder is trained to tell classes apart: one class needs weights='pretrained' or a file")
    # grey images are taken for signs: a mirrored digit is no digit
    about = {"batch_size": 64, "crop": 0.5} | ({"flip": 0.5, "jitter": 0.4} if images.images.ndim == 4 else {})
    config = TrainingConfig(arch=backbone, epochs=epochs, input_size=side, **about)
    return _train(config, images, held_out)


def _train(config: TrainingConfig, images: ImageSet, held_out: ImageSet) -> tuple[Encoder, pd.DataFrame]:
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
    return trainer.state.encoder.eval(), pd.DataFrame(trainer.state.history)


def _pretrained(images: ImageSet, backbone: str, side: int) -> Encoder:
    about = pretrained_config(backbone)
    if not about.get("mean"):
        raise ValueError(f"{backbone!r} has no pretrained weights: take another backbone, or leave weights empty")
    try:
        return Encoder(replace(_timm_spec(images, backbone, side), small_stem=False), pretrained=True).eval()
    except ConnectionError as error:
        raise ConnectionError(
            f"the pretrained weights of {backbone!r} are not on this machine and could not be fetched: leave weights "
            "empty to train here, or run this once where there is a network"
        ) from error


def _of_state(images: ImageSet, backbone: str, side: int, path: Path) -> Encoder:
    return encoder_of_state(path, read_state(path), _timm_spec(images, backbone, side))


def _timm_spec(images: ImageSet, backbone: str, side: int) -> EncoderSpec:
    """Return the spec of a backbone without heads, with the colours that timm trained it with."""
    own, channels = min(images.images.shape[1:3]), 1 if images.images.ndim == 3 else 3
    about = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} | pretrained_config(backbone)
    return EncoderSpec(backbone, images.classes, (), own, channels, side, tuple(about["mean"]), tuple(about["std"]))


def _probe(z: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight (C, d) and bias (C,) of the usual linear probe of z (n, d), y (n,)."""
    scaler, n_classes = StandardScaler().fit(z.astype(np.float64)), int(y.max()) + 1
    if n_classes == 1:
        return torch.zeros(1, z.shape[1]), torch.zeros(1)
    fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(z), y)
    weight, bias = fitted.coef_ / scaler.scale_, fitted.intercept_
    bias = bias - weight @ scaler.mean_
    if n_classes == 2:  # scikit-learn has one row for two classes
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    return torch.from_numpy(weight), torch.from_numpy(bias)


def embed_parts(encoder: Encoder, parts: dict[str, Part]) -> dict[str, Embedded]:
    """Return the embeddings of every part by its name; labels of OOD images are -1."""
    found = {}
    for name, part in parts.items():
        z, _ = embed_images(encoder, part.images.images)
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
    """Return the detectors, best first, by their AUROC against classes left out in turn: detector, auroc, ahead, noise.

    The images are those of the part choice; ahead and noise are of `choices.rank_candidates`. Where no class can be
    left out, of two classes or of too few images, the table is FALLBACK alone, its AUROC nan.
    """
    few = np.unique(data["train"].y, return_counts=True)[1].min() < 2  # one image does not say how a class varies
    parts = RunEmbeddings(data["train"], data["choice"], data["choice"], {})
    found = pd.DataFrame() if few else rank_candidates(parts, N_NEIGHBORS)
    if found.empty:
        return pd.DataFrame({"detector": [FALLBACK], "auroc": [np.nan], "ahead": [0.0], "noise": [0.0]})
    names = [_name(*candidate) for candidate in zip(found.clustering, found.distance, strict=True)]
    return found.assign(detector=names)[["detector", "auroc", "ahead", "noise"]]


def choose_detector(ranking: pd.DataFrame) -> str:
    """Return the first of `rank_detectors`, or FALLBACK where it is not ahead of that by more than noise."""
    parts = ranking.detector.str.rpartition("/")
    return _name(*choose_candidate(ranking.assign(clustering=parts[0].replace("", "none"), distance=parts[2])))


def _name(clustering: str, distance: str) -> str:
    return distance if clustering == "none" else f"{clustering}/{distance}"


def regret_sentence() -> str:
    """Say what choosing as here has cost in the studies of this project, as their reports measured it."""
    said = []
    patterns = ("reported/*/report/regret.csv", "*/report/regret.csv")  # a study's own report, where there is one
    reports = {path.parents[1].name: path for pattern in patterns for path in resolve("outputs").glob(pattern)}
    for _, path in sorted(reports.items()):
        table = pd.read_csv(path)
        table = table[table.rule.isin([OF_NOTEBOOK, f"always {FALLBACK}"]) & table.group.isin(["near", "far"])]
        if OF_NOTEBOOK in set(table.rule):
            mean = table.groupby(["rule", "group"]).regret.mean()
            here, always = (
                " and ".join(f"{mean[rule, g]:.1f} ({g})" for g in ("near", "far") if (rule, g) in mean.index)
                for rule in (OF_NOTEBOOK, f"always {FALLBACK}")
            )
            said.append(
                f"{path.parents[1].name}, {table.run.nunique()} runs: {here} AUROC points below the best of all "
                f"detectors, which nobody could have known; always {FALLBACK}: {always}."
            )
    return "\n".join(said) or "No report of a study here has measured what choosing like this costs."


def fit_detector(data: dict[str, Embedded], name: str, alpha: float, classes: tuple[str, ...] = ()) -> Detector:
    """Fit the detector of this name, CLUSTERING/DISTANCE or knn, with a conformal threshold at alpha.

    classes: the names of the labels, which the detector's file keeps.
    """
    train = data["train"]
    if name == "knn":
        unfitted = KNNDetector(min(N_NEIGHBORS, len(train.z) - 1), alpha)
    else:
        clustering, distance = name.split("/")
        unfitted = ClusterDetector(clustering, distance=distance, threshold="conformal", alpha=alpha)
    detector = unfitted.fit(train.z, train.y, data["calibration"].z)
    detector.class_names_ = classes
    return detector


def promise(n_calibration: int, alpha: float) -> str:
    """Say whether so many calibration images can promise a false-alarm rate of at most alpha."""
    least = images_needed(alpha)
    if n_calibration >= least:
        return f"{n_calibration} calibration images: at most {100 * alpha:.4g} % of images like these are rejected."
    enough = math.ceil(1000 / (n_calibration + 1)) / 1000  # rounded down it would still be too little
    return (
        f"{n_calibration} calibration images are too few to promise {100 * alpha:.4g} %, which takes {least}: nothing "
        f"is rejected. Add images, or take alpha = {enough:.3f} or more."
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


def with_shift(encoder: Encoder, parts: dict[str, Part], data: dict[str, Embedded]) -> tuple[dict[str, Embedded], str]:
    """Return the embeddings with something for a stream to drift to, and what it is called.

    That is the part ood; where there is none, the test images with inverted colours stand in.
    """
    if "ood" in data:
        return data, "OOD image"
    z, _ = embed_images(encoder, 255 - parts["test"].images.images[:])
    return data | {"ood": Embedded(z, np.full(len(z), -1))}, "test image, inverted: there are no OOD images"


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
