"""Benchmarks of a model in a program: the milliseconds of one image, and the images per second of batches.

The network is resnet20 with random weights, the detector labels/mahalanobis, or knn (k = 50) where it is named, on
50,000 random embeddings. The other is the encoder alone, with its classifier, on the same images as tensors: what a
program without a detector would run. The ratio is ours over the other's rate, so the share of the encoder's rate that
is left.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import numpy as np
import torch
from side_by_side import compare_rates, take_turns

from oodlib.app import OODModel
from oodlib.device import describe_machine
from oodlib.encoders import Encoder, EncoderSpec
from oodlib.scoring import ClusterDetector, Detector, KNNDetector

SIDE, CLASSES, REFERENCE = 32, 10, 50_000
WARM_UP = 20


def one_image(scale: float) -> Iterator[dict]:
    """One image at a time: a tensor, a tensor in the exported graph, and an array, which is prepared first."""
    model, images = make_model(scale), random_images(1)
    x = model.encoder.prepare(images)
    graph = torch.export.export(model, (random_input(model, 2),), dynamic_shapes={"x": {0: torch.export.Dim("n")}})
    runs = {"tensor": partial(model, x), "exported": partial(graph.module(), x)}
    for way, run in (runs | {"array": partial(model.predict, images)}).items():
        row = latency(run, partial(encoder_alone, model.encoder, x), max(3, int(300 * scale)))
        yield about("deployment-latency", way, 1) | row


def batches(scale: float) -> Iterator[dict]:
    """A batch of 512, with labels/mahalanobis and with the nearest neighbours among as many embeddings."""
    n = max(1, int(512 * scale))
    for way, detector in {"tensor": ClusterDetector(), "tensor, knn": KNNDetector()}.items():
        model = make_model(scale, detector)
        x = random_input(model, n)
        with torch.inference_mode():
            row = compare_rates(partial(model, x), partial(encoder_alone, model.encoder, x), n, 15)
        yield about("deployment-throughput", way, n) | row


def make_model(scale: float, detector: Detector | None = None) -> OODModel:
    torch.manual_seed(0)
    classes = tuple(f"class {k}" for k in range(CLASSES))
    spec = EncoderSpec("resnet20", classes, ("classifier",), SIDE, 3, SIDE, (0.5,) * 3, (0.25,) * 3)
    encoder = Encoder(spec).to(memory_format=torch.channels_last)
    z = np.random.default_rng(0).normal(size=(int(REFERENCE * scale), encoder.dim)).astype(np.float32)
    return OODModel(encoder, (detector or ClusterDetector()).fit(z, np.arange(len(z)) % CLASSES))


def random_images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(n, SIDE, SIDE, 3), dtype=np.uint8)


def random_input(model: OODModel, n: int) -> torch.Tensor:
    return model.encoder.prepare(random_images(n))


def encoder_alone(encoder: Encoder, x: torch.Tensor) -> torch.Tensor:
    return encoder.classifier(encoder((x.float() / 255).contiguous(memory_format=torch.channels_last))).argmax(dim=1)


def latency(ours: Callable, other: Callable, repeats: int) -> dict:
    """Return a row of the median milliseconds of an image, and the ratio other / ours as the median of the turns."""
    with torch.inference_mode():
        take_turns({"ours": ours, "other": other}, WARM_UP)
        seconds, _ = take_turns({"ours": ours, "other": other}, repeats)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["other"], strict=True)]
    row = {f"{name}_milliseconds": round(1000 * median(times), 2) for name, times in seconds.items()}
    return row | {"ratio": round(median(ratios), 2), "lowest_ratio": round(min(ratios), 2), "repeats": repeats}


def about(benchmark: str, way: str, batch: int) -> dict:
    """Return what says which row it is."""
    machine = describe_machine(torch.device("cpu"))
    device = f"{machine['processor']}, {machine['threads']} threads"
    row = {"benchmark": benchmark, "data": way, "network": "resnet20", "batch": batch, "device": device}
    return row | {"other": "encoder alone"}


BENCHMARKS = {"deployment-latency": one_image, "deployment-throughput": batches}
