"""Models: an encoder and a fitted detector in one torch module, from images to classes, scores and decisions.

What a program needs to judge an image is one graph: normalisation, backbone, head, distance to clusters, threshold and
p-value. `OODModel.predict` takes images as they come; `OODModel.forward` takes tensors and can be exported by
`torch.export.export` and `torch.onnx.export`, batch size free. The distances are those of
`oodlib.scoring.distances`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from oodlib.arrays import to_unit_norm
from oodlib.data.decoding import decode, photo_square, reason_of
from oodlib.encoders.encoder import Encoder, load_encoder
from oodlib.progress import BATCH, loaded_ahead
from oodlib.scoring.cluster_detector import ClusterDetector
from oodlib.scoring.detector import Detector
from oodlib.scoring.distances import DISTANCES, Distance
from oodlib.scoring.knn import KNNDetector
from oodlib.scoring.loading import load_detector
from oodlib.scoring.vim import ViMDetector

if TYPE_CHECKING:
    from PIL import Image

    Given = np.ndarray | Sequence[Image.Image | str | os.PathLike] | Image.Image | str | os.PathLike

Tensors = dict[str, torch.Tensor]
Score = Callable[[torch.Tensor, Tensors], tuple[torch.Tensor, torch.Tensor]]  # z (n, d), state → scores, nearest
OUTPUTS = ("class_index", "normality", "p_value", "accepted")  # of `OODModel.forward`, in this order


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of n images.

    class_index (n,) int64: the likeliest of the encoder's classes, -1 where the model knows none; class_name (n,) str:
    its name, or "". normality (n,) float64: higher is more normal. p_value (n,) float64 in (0, 1]: small means unlike
    the reference images. accepted (n,) bool: whether the detector takes the image as in-distribution.
    """

    class_index: np.ndarray
    class_name: np.ndarray
    normality: np.ndarray
    p_value: np.ndarray
    accepted: np.ndarray


class OODModel(nn.Module):
    """An encoder and a detector of its embeddings in one graph, which agrees with `embed` and the detector's methods.

    encoder: is put into evaluation mode. detector: one of SCORES, fitted; its arrays are copied.
    classes: the names that class indices stand for. The class is that of the encoder's classifier; without one it is
    that of the nearest cluster, where the clusters are the labels and the detector knows their names, else it is -1.
    Raises NotFittedError, TypeError for another detector, and ValueError for one of embeddings of another width, of
    another encoder where it knows its own, and of other classes than those of the encoder's classifier.
    """

    def __init__(self, encoder: Encoder, detector: Detector):
        super().__init__()
        _check_fit(encoder, detector)
        self.encoder = encoder
        names = detector.class_names_
        by_label = getattr(detector, "clustering", "") == "labels" and detector.n_clusters_ == len(names)
        self.nearest_is_class = by_label and encoder.classifier is None
        knows = encoder.classifier is not None or by_label
        self.classes = (names or encoder.spec.classes) if knows else ()
        self.by_cluster = np.ndim(detector.offset_) > 0
        state, self.score = SCORES[type(detector)](detector)
        self.state = _as_buffers(state)
        groups = detector.reference_nearest_ if self.by_cluster else np.zeros(len(detector.reference_), dtype=np.int64)
        offsets = np.atleast_1d(detector.offset_)
        sizes = np.bincount(groups, minlength=len(offsets))
        self.largest = int(sizes.max())
        reference = detector.reference_[np.lexsort((detector.reference_, groups))]
        starts = np.cumsum(sizes) - sizes
        self.threshold = _as_buffers({"reference": reference, "starts": starts, "sizes": sizes, "offsets": offsets})
        self.eval()

    @classmethod
    def load(cls, encoder_path: str | Path, detector_path: str | Path) -> Self:
        """Return the model of an encoder's file and a detector's, on the CPU.

        Raises as `load_encoder` and `load_detector`: ValueError where the detector's file does not name this encoder.
        """
        encoder = load_encoder(encoder_path)
        return cls(encoder, load_detector(detector_path, encoder))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return OUTPUTS, each (n,), of images x (n, 3, s, s) uint8 as `Encoder.prepare` makes them.

        An image whose normality is NaN has the lowest p-value and is not accepted. Raises ValueError for x of
        another dtype or shape.
        """
        side = self.encoder.spec.input_size
        if x.dtype != torch.uint8 or x.shape[1:] != (3, side, side):
            raise ValueError(f"x must be uint8 (n, 3, {side}, {side}), got {x.dtype} {tuple(x.shape)}")
        x = (x.float() / 255).contiguous(memory_format=torch.channels_last)
        z = self.encoder(x).detach()  # (n, d)
        scores, nearest = self.score(z, dict(self.state.named_buffers()))
        scores, own = scores.double(), dict(self.threshold.named_buffers())
        group = nearest if self.by_cluster else torch.zeros_like(nearest)
        size = own["sizes"][group]
        rank = count_at_most(scores, own["reference"], own["starts"][group], size, self.largest)
        return self._classify(z, nearest), scores, (1 + rank) / (1 + size).double(), scores >= own["offsets"][group]

    def _classify(self, z: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        if self.encoder.classifier is not None:
            return self.encoder.classifier(z).argmax(dim=1)
        return nearest if self.nearest_is_class else torch.full_like(nearest, -1)

    def predict(self, images: "Given", batch_size: int = 500) -> Predictions:
        """Return predictions of images uint8 (n, h, w) or (n, h, w, 3), of PIL images of any size, or of files.

        Files, by their paths, and PIL images become square and RGB as those of image folders do; all take the ID set's
        size and channels. Raises ValueError for no images, other arrays, a PIL image that cannot be read, by its place,
        and a file that cannot, TypeError for a list of something else, and FloatingPointError where the encoder gives
        NaN or infinity.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        images = [images] if isinstance(images, str | os.PathLike) else images
        if not isinstance(images, list | tuple) or not images or not isinstance(images[0], str | os.PathLike):
            return self._predict(self.encoder.prepare(self._as_array(images)), batch_size)
        found = []
        for place, (predictions, failed) in enumerate(self.predict_files(images, batch_size)):
            for i, reason in failed.items():
                raise ValueError(f"cannot read the image {images[place * batch_size + i]}: {reason}")
            found.append(predictions)
        arrays = ([getattr(part, field.name) for part in found] for field in fields(Predictions))
        return Predictions(*map(np.concatenate, arrays))

    def predict_files(
        self, paths: Sequence[str | os.PathLike], batch_size: int = BATCH
    ) -> Iterator[tuple[Predictions, dict[int, str]]]:
        """Yield of each batch of files the predictions of those that can be read, and by its place why another cannot.

        While one batch is judged, the next one is decoded.
        """

        def load(first: int) -> tuple[torch.Tensor, dict[int, str]]:
            images, failed = decode([str(path) for path in paths[first : first + batch_size]], self.encoder.spec.side)
            return self.encoder.prepare(np.delete(images, list(failed), axis=0)), failed

        for x, failed in loaded_ahead(load, range(0, len(paths), batch_size)):
            yield self._predict(x, batch_size), failed

    @torch.inference_mode()
    def _predict(self, x: torch.Tensor, batch_size: int) -> Predictions:
        self.eval()
        device = self.encoder.mean.device
        batches = [self(batch.to(device)) for batch in x.split(batch_size)]
        outputs = (torch.cat(parts).cpu().numpy() for parts in zip(*batches, strict=True))
        found = dict(zip(OUTPUTS, outputs, strict=True))
        if not np.isfinite(found["normality"]).all():
            raise FloatingPointError("the encoder gives embeddings that are not finite; was its training cut short?")
        names = np.array([*self.classes, ""])  # the last one is that of -1
        return Predictions(class_name=names[found["class_index"]], **found)

    def _as_array(self, images: "np.ndarray | Sequence[Image.Image] | Image.Image") -> np.ndarray:
        from PIL import Image

        if isinstance(images, Image.Image):
            images = [images]
        if not len(images):
            raise ValueError("no images to judge")
        if not isinstance(images, list | tuple):
            return _checked_array(images)
        side, squares = self.encoder.spec.side, []
        for i, image in enumerate(images):
            if not isinstance(image, Image.Image):
                raise TypeError(
                    f"images must be a uint8 array or a list of PIL images or paths, got {type(image)} in it"
                )
            if 0 in image.size:
                raise ValueError(f"image {i} of the list has no pixels: its size is {image.size}")
            try:
                squares.append(photo_square(image, side))
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
                raise ValueError(f"image {i} of the list cannot be read: {reason_of(error)}") from error
        return np.stack(squares)


def _checked_array(images: np.ndarray) -> np.ndarray:
    """Return an array of images; raise ValueError for one without pixels, or that looks like a single image."""
    shape = tuple(getattr(images, "shape", ()))
    if 0 in shape:
        raise ValueError(f"images of shape {shape} have no pixels")
    if len(shape) == 3 and shape[2] in (3, 4) and shape[1] != shape[2]:
        raise ValueError(f"images must be (n, h, w) or (n, h, w, 3), got {shape}: of one image, give images[None]")
    return images


def count_at_most(
    scores: torch.Tensor, values: torch.Tensor, starts: torch.Tensor, sizes: torch.Tensor, largest: int
) -> torch.Tensor:
    """Return how many of values[start : start + size] are at most each score, (n,) int64; none are at most NaN.

    scores, starts, sizes (n,); values (m,) ascend within each range; largest: the size of the largest. A binary search
    in plain operations, because ONNX has none.
    """
    count = torch.zeros_like(starts)
    for bit in reversed(range(largest.bit_length())):
        ahead = count + 2**bit
        last = values[(starts + ahead - 1).clamp(max=len(values) - 1)]
        count = torch.where((ahead <= sizes) & (last <= scores), ahead, count)
    return count


def score_by_clusters(z: torch.Tensor, state: Tensors, distance: Distance) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `oodlib.scoring.nearest_cluster` of z (n, d) as tensors: scores (n,), nearest (n,)."""
    distances = distance.measure(z, state)  # (n, K)
    scores = torch.logsumexp(-distances, dim=1) if distance.joint else -distances.amin(dim=1)
    return scores, distances.argmin(dim=1)


def score_by_neighbor(z: torch.Tensor, state: Tensors, n_neighbors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return minus the distance (n,) float64 of z (n, d) at unit norm to its k-th nearest row, and zeros (n,)."""
    unit, rows = to_unit_norm(z.double()), state["rows"].double()  # in float32, near rows would be told apart by noise
    closeness = unit @ rows.T - (rows**2).sum(dim=1) / 2
    kth = closeness.topk(n_neighbors, dim=1).indices[:, -1]
    return -torch.linalg.norm(unit - rows[kth], dim=1), torch.zeros_like(kth)


def score_by_residual(z: torch.Tensor, state: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the energy of z (n, d) minus its scaled residual, (n,) float64, and zeros (n,)."""
    z = z.double()
    residual = torch.linalg.norm((z - state["origin"]).to(state["residual"].dtype) @ state["residual"], dim=1)
    energy = torch.logsumexp(z @ state["weight"].T + state["bias"], dim=1)  # 0 without a classifier, all zeros
    return energy - state["scale"] * residual, torch.zeros_like(residual, dtype=torch.int64)


def _clusters(detector: ClusterDetector) -> tuple[dict[str, np.ndarray], Score]:
    return detector.state_, partial(score_by_clusters, distance=DISTANCES[detector.distance])


def _neighbors(detector: KNNDetector) -> tuple[dict[str, np.ndarray], Score]:
    return {"rows": detector.embeddings_}, partial(score_by_neighbor, n_neighbors=detector.n_neighbors)


def _residual(detector: ViMDetector) -> tuple[dict[str, np.ndarray], Score]:
    parts = ("weight", "bias", "origin", "residual", "scale")
    return {part: getattr(detector, f"{part}_") for part in parts}, score_by_residual


SCORES = {ClusterDetector: _clusters, KNNDetector: _neighbors, ViMDetector: _residual}


def _check_fit(encoder: Encoder, detector: Detector) -> None:
    if type(detector) not in SCORES:
        known = ", ".join(kind.__name__ for kind in SCORES)
        raise TypeError(f"a model can hold one of {known}, got {type(detector).__name__}")
    check_is_fitted(detector, "reference_")
    width, known = detector.n_features_in_, detector.encoder_
    if width != encoder.dim:
        raise ValueError(f"the detector takes embeddings of width {width}, the encoder's have {encoder.dim}")
    names = detector.class_names_
    if encoder.classifier is not None and names and names != encoder.spec.classes:
        raise ValueError(
            f"the encoder's classifier tells {', '.join(encoder.spec.classes)}, the detector's classes are "
            f"{', '.join(names)}: give the encoder a classifier of these"
        )
    if known and (given := encoder.fingerprint()) != known:
        raise ValueError(f"the detector is for embeddings of another encoder: {known[:12]}…, not {given[:12]}…")


def _as_buffers(arrays: dict[str, np.ndarray]) -> nn.Module:
    module = nn.Module()
    for name, array in arrays.items():
        module.register_buffer(name, torch.from_numpy(np.array(array, order="C")))
    return module
