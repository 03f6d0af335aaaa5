"""Embedding: embeddings of images, with logits where there is a classifier; how accurate they are, and their file."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch

from oodlib.data.folders import Images
from oodlib.encoders.encoder import Encoder
from oodlib.encoders.views import Views
from oodlib.files import write_atomically

BLOCK = 10_000  # images that are prepared at a time
CPU_PIXELS, GPU_PIXELS = 2**17, 2**21  # of a batch: on a CPU more would leave its caches, at half the speed
VOTERS = 1_000  # images whose similarities to all training images are in memory at a time


@torch.inference_mode()
def embed(encoder: Encoder, images: torch.Tensor, batch_size: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Return embeddings z (n, d) float32 of prepared images (n, 3, s, s) uint8, and logits (n, C) or None.

    The embedding is the backbone's output before any head, raw, in float32 and evaluation mode. A batch_size of 0 takes
    what suits the device.
    Raises ValueError for an empty set and FloatingPointError where the encoder gives NaN or infinity.
    """
    if not len(images):
        raise ValueError("no images to embed")
    device = encoder.mean.device
    batch_size = batch_size or suitable_batch(images[0, 0].numel(), device)
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


def suitable_batch(pixels: int, device: torch.device) -> int:
    """Return how many images of so many pixels this device takes at a time best, at least 1."""
    return max(1, (CPU_PIXELS if device.type == "cpu" else GPU_PIXELS) // pixels)


def _exactly(device: torch.device) -> AbstractContextManager:
    """Return a context in which a GPU convolves in float32, the same every time; its default is TF32, of ten bits."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def embed_images(encoder: Encoder, images: Images) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what `embed` does for images (n, h, w[, c]) uint8, which may lie in files, prepared a block at a time."""
    blocks = (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
    z, logits = zip(*(embed(encoder, encoder.prepare(block)) for block in blocks), strict=True)
    return np.concatenate(z), None if logits[0] is None else np.concatenate(logits)


def embed_views(encoder: Encoder, images: Images, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings (n, d) of two random views each of images (n, h, w[, c]) uint8, drawn as SimCLR does.

    The views are the same for every encoder, however it was trained, so that `collapse.alignment` can compare them.
    """
    prepared, generator = encoder.prepare(images), torch.Generator().manual_seed(seed)
    first, second = (embed(encoder, Views()(prepared, generator).mul(255).round().byte())[0] for _ in range(2))
    return first, second


def knn_accuracy(
    z_train: np.ndarray, y_train: np.ndarray, z: np.ndarray, y: np.ndarray, n_neighbors: int = 20
) -> float:
    """Return the accuracy in [0, 1] of the vote of the nearest training embeddings by cosine.

    z_train (m, d), y_train (m,), z (n, d), y (n,); votes are weighted by exp(cosine / 0.07) (Wu et al. 2018).
    """
    unit = partial(torch.nn.functional.normalize, dim=1)
    neighbors, labels, right = unit(torch.from_numpy(z_train)), torch.from_numpy(y_train), 0
    n_classes, k = int(max(y_train.max(), y.max())) + 1, min(n_neighbors, len(z_train))
    for voters, expected in zip(*(torch.from_numpy(a).split(VOTERS) for a in (z, y)), strict=True):
        similarity, index = (unit(voters) @ neighbors.T).topk(k, dim=1)  # (b, k)
        votes = torch.zeros(len(voters), n_classes, dtype=similarity.dtype)
        votes.scatter_add_(1, labels[index], (similarity / 0.07).exp())
        right += int((votes.argmax(dim=1) == expected).sum())
    return right / len(z)


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

    y is -1 in an OOD set, whose own labels are `own`. The file is written whole or not at all.
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
