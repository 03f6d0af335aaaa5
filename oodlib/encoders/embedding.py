"""Embedding: an encoder and images in; embeddings, and logits where there is a classifier, out and on disk."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from oodlib.data.folders import Images
from oodlib.files import write_atomically

if TYPE_CHECKING:  # encoders import timm, which takes seconds; who only loads embeddings need not wait for it
    from oodlib.encoders.encoder import Encoder

BLOCK = 10_000  # images that are prepared at a time
VOTERS, NEIGHBORS = 1_000, 30_000  # images, and training images, whose similarities are in memory at a time


@torch.inference_mode()
def embed(encoder: "Encoder", images: torch.Tensor, batch_size: int = 500) -> tuple[np.ndarray, np.ndarray | None]:
    """Return embeddings z (n, d) float32 of prepared images (n, 3, s, s) uint8, and logits (n, C) or None.

    The embedding is the backbone's output before any head, raw, in float32 and evaluation mode.
    Raises ValueError for an empty set and FloatingPointError where the encoder gives NaN or infinity.
    """
    if not len(images):
        raise ValueError("no images to embed")
    device = encoder.mean.device
    encoder.eval()
    z, logits = [], []
    with _exactly(device):
        for batch in images.split(batch_size):
            batch = batch.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)
            z.append(encoder(batch).float())
            if encoder.classifier is not None:
                logits.append(encoder.classifier(z[-1]).float().cpu())
    z = torch.cat(z).cpu().numpy()
    if not np.isfinite(z).all():
        raise FloatingPointError("the encoder gives embeddings that are not finite; was its training cut short?")
    return z, torch.cat(logits).numpy() if logits else None


def _exactly(device: torch.device) -> AbstractContextManager:
    """Return a context of float32 convolutions, the same every time; a GPU's are by default TF32, of ten bits."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def embed_images(encoder: "Encoder", images: Images) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what `embed` gives of images (n, h, w[, c]) uint8, prepared a block at a time: they may lie in files."""
    blocks = (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
    z, logits = zip(*(embed(encoder, encoder.prepare(block)) for block in blocks), strict=True)
    return np.concatenate(z), None if logits[0] is None else np.concatenate(logits)


def embed_views(encoder: "Encoder", images: Images, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings (n, d) of two random views each of images (n, h, w[, c]) uint8, by the views of SimCLR.

    The same views for every encoder, however it was trained: what `collapse.alignment` compares them by.
    """
    from oodlib.encoders.views import Views

    prepared, generator = encoder.prepare(images), torch.Generator().manual_seed(seed)
    first, second = (embed(encoder, Views()(prepared, generator).mul(255).round().byte())[0] for _ in range(2))
    return first, second


def knn_accuracy(
    z_train: np.ndarray, y_train: np.ndarray, z: np.ndarray, y: np.ndarray, n_neighbors: int = 20
) -> float:
    """Return the accuracy in [0, 1] of the vote of the nearest training embeddings by cosine.

    z_train (m, d), y_train (m,), z (n, d), y (n,); votes are weighted by exp(cosine / 0.07) (Wu et al. 2018).
    """
    training = [torch.from_numpy(a).split(NEIGHBORS) for a in (z_train, y_train)]
    voters = [torch.from_numpy(a).split(VOTERS) for a in (z, y)]
    n_classes, right = int(max(y_train.max(), y.max())) + 1, 0
    for block, expected in zip(*voters, strict=True):
        similarity, labels = _nearest(block, training, n_neighbors)  # (b, k)
        votes = torch.zeros(len(block), n_classes, dtype=similarity.dtype)
        votes.scatter_add_(1, labels, (similarity / 0.07).exp())
        right += int((votes.argmax(dim=1) == expected).sum())
    return right / len(z)


def _nearest(z: torch.Tensor, training: list[tuple[torch.Tensor, ...]], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and label, (n, k) each, of the k training embeddings, in parts, nearest to each row of z (n, d)."""
    unit = partial(torch.nn.functional.normalize, dim=1)
    z, best, labels = unit(z), [], []
    for z_part, y_part in zip(*training, strict=True):
        similarity, index = (z @ unit(z_part).T).topk(min(k, len(z_part)), dim=1)
        best.append(similarity)
        labels.append(y_part[index])
    best, index = torch.cat(best, dim=1).topk(min(k, sum(len(part) for part in training[0])), dim=1)
    return best, torch.cat(labels, dim=1).gather(1, index)


def linear_probe(z_train: np.ndarray, y_train: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the labels (n,) that a linear classifier gives to embeddings z (n, d): the usual test of an encoder.

    Multinomial logistic regression with L2 penalty (C = 1) of z_train (m, d), standardised, and y_train (m,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return probe.fit(z_train, y_train).predict(z)


def save_embeddings(
    path: str | Path, z: np.ndarray, y: np.ndarray, logits: np.ndarray | None = None, own: np.ndarray | None = None
) -> None:
    """Write z (n, d) float32, y (n,) int64 and, where given, logits (n, C) and own (n,) to an npz file.

    y of an OOD set is -1, `own` are the labels that it has itself. The file is written whole or not at all.
    """
    arrays = {"z": z, "y": y, "logits": logits, "own": own}
    present = {name: array for name, array in arrays.items() if array is not None}
    write_atomically(path, lambda temporary: np.savez(temporary, **present))


def load_embeddings(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of an embeddings file: z, y and perhaps logits and own.

    Raises FileNotFoundError, or ValueError when the file is cut short, foreign, or holds NaN.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # a file cut short fails in zipfile, zlib or NumPy, each with errors of its own
        raise ValueError(f"{path} is no npz file, or is cut short: {error}") from error
    if not {"z", "y"} <= arrays.keys() or arrays["z"].ndim != 2 or arrays["y"].shape != arrays["z"].shape[:1]:
        raise ValueError(f"{path} does not hold embeddings z (n, d) and labels y (n,)")
    if "logits" in arrays and (arrays["logits"].ndim != 2 or len(arrays["logits"]) != len(arrays["z"])):
        raise ValueError(f"{path} does not hold logits (n, C) of its {len(arrays['z'])} embeddings")
    if "own" in arrays and arrays["own"].shape != arrays["y"].shape:
        raise ValueError(f"{path} does not hold own labels (n,) of its {len(arrays['z'])} embeddings")
    if not all(a.dtype.kind in "fiu" and np.isfinite(a).all() for a in arrays.values()):
        raise ValueError(f"{path} holds values that are not finite")
    return arrays
