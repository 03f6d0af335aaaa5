"""Training: prepared images and a configuration in; an encoder and one row of history an epoch out."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F

from oodlib.data import ImageSet, prepare
from oodlib.device import default_device, has_fast_bfloat16
from oodlib.embedding import embed, knn_accuracy
from oodlib.encoders import ARCHITECTURES, Encoder, EncoderSpec
from oodlib.losses import nt_xent_loss, supcon_loss
from oodlib.views import Views

MONITOR_TRAIN, MONITOR_HELD_OUT = 5000, 1000  # images behind the accuracy of a history row, so that it costs little


@dataclass(frozen=True)
class Objective:
    """An objective: the heads it trains, how many views of an image it sees, its usual temperature, its loss.

    `loss(encoder, z, y, temperature)` takes the embeddings (views·n, d) of all views stacked, and labels (n,).
    """

    heads: tuple[str, ...]
    n_views: int
    temperature: float
    loss: Callable[[Encoder, torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class TrainingConfig:
    """Every choice that decides the weights. Names and defaults are those of the parameters of notebook 01.

    `temperature` 0 takes the objective's usual one, `input_size` 0 the ID set's own side. `crop` is the smallest share
    of the area a random crop keeps; `flip` and `grayscale` are probabilities; `jitter` is the strength of the colour
    jitter. Raises ValueError naming the allowed values.
    """

    id_dataset: str = "digits"
    arch: str = "resnet20"
    objective: str = "ce"
    seed: int = 0
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    warmup_epochs: int = 2
    temperature: float = 0.0
    input_size: int = 16
    calibration_fraction: float = 0.1
    crop: float = 0.3
    flip: float = 0.0
    jitter: float = 0.0
    grayscale: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{field.name} must be of type {kind.__name__}, got {value!r}")  # YAML's 1e-3 is a str
            if kind is not str and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be finite and not negative, got {value}")
        for name, known in (("arch", ARCHITECTURES), ("objective", OBJECTIVES)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be positive, got 0")
        if not 0 < self.calibration_fraction < 1:
            raise ValueError(f"calibration_fraction must be between 0 and 1, got {self.calibration_fraction}")
        _ = self.views  # which checks its own arguments

    @property
    def views(self) -> Views:
        return Views(crop=self.crop, flip=self.flip, jitter=self.jitter, grayscale=self.grayscale)


def split_calibration(images: ImageSet, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (training, calibration) of a training set, `fraction` of every class held out.

    Of a class of two or more, at least one image is on either side; the only one of a class is for training. The
    calibration images are never trained on: the accuracy of a history row and conformal thresholds come from them.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(images.labels):
        members = rng.permutation(np.flatnonzero(images.labels == label))
        held_out.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    held_out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(images)), held_out), held_out


def encoder_spec(config: TrainingConfig, images: ImageSet) -> EncoderSpec:
    """Return the spec of the encoder that this configuration trains on this ID set."""
    side = min(images.images.shape[1:3])
    channels = 1 if images.images.ndim == 3 else 3
    input_size = config.input_size or side
    prepared = prepare(images.images, side, channels, input_size)
    flat = prepared.transpose(0, 1).flatten(1)  # (3, pixels)
    mean, std = zip(
        *((c.float().mean().item() / 255, max(c.float().std().item() / 255, 1e-3)) for c in flat), strict=True
    )
    heads = OBJECTIVES[config.objective].heads
    return EncoderSpec(config.arch, images.classes, heads, side, channels, input_size, mean, std)


def learning_rate_at(config: TrainingConfig, epoch: float) -> float:
    """Return the learning rate after `epoch` epochs (fractions count): linear warm-up, then half a cosine to zero."""
    if epoch < config.warmup_epochs:
        return config.learning_rate * epoch / config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.learning_rate * (1 + math.cos(math.pi * min(progress, 1))) / 2


def train(config: TrainingConfig, images: ImageSet) -> tuple[Encoder, list[dict]]:
    """Train an encoder on the training images of an ID set; print and return one row an epoch.

    A row holds epoch, loss (mean over batches), knn_accuracy (of held-out images against training images, in [0, 1]),
    learning_rate, seconds (of training alone) and images_per_second (network inputs; two views of an image count
    twice). Same machine, threads and configuration: the same weights. Raises FloatingPointError when the loss is no
    longer finite, ValueError for a set that is too small.
    """
    device = default_device()
    train_index, held_out_index = split_calibration(images, config.calibration_fraction)
    if len(images.classes) < 2 or len(train_index) < 2 or not len(held_out_index):
        raise ValueError(f"{images.name} is too small to train on: {len(images)} images, {len(images.classes)} classes")
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    encoder = Encoder(encoder_spec(config, images)).to(device, memory_format=torch.channels_last)
    x = encoder.prepare(images.images[train_index]).to(device)  # (n, 3, s, s) uint8
    y = torch.from_numpy(images.labels[train_index]).to(device)
    shown = np.random.default_rng(0).permutation(len(train_index))[:MONITOR_TRAIN]
    shown_held_out = np.random.default_rng(0).permutation(held_out_index)[:MONITOR_HELD_OUT]
    x_held_out = encoder.prepare(images.images[shown_held_out])
    optimizer = torch.optim.SGD(
        encoder.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=config.weight_decay, fused=True
    )
    history = []
    print(f"{'epoch':>5} {'loss':>9} {'knn_accuracy':>12} {'learning_rate':>13} {'seconds':>8} {'images/s':>9}")
    for epoch in range(config.epochs):
        start = time.perf_counter()
        losses = _train_epoch(encoder, optimizer, x, y, config, epoch, generator)
        seconds = time.perf_counter() - start
        _check_finite(losses, epoch, config)
        z_train, z_held_out = embed(encoder, x[shown])[0], embed(encoder, x_held_out)[0]
        row = {
            "epoch": epoch + 1,
            "loss": float(np.mean(losses)),
            "knn_accuracy": knn_accuracy(
                z_train, images.labels[train_index[shown]], z_held_out, images.labels[shown_held_out]
            ),
            "learning_rate": optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "images_per_second": OBJECTIVES[config.objective].n_views
            * len(losses)
            * min(config.batch_size, len(x))
            / seconds,
        }
        history.append(row)
        print(
            "{epoch:5d} {loss:9.4f} {knn_accuracy:12.4f} {learning_rate:13.5f} {seconds:8.2f} "
            "{images_per_second:9.0f}".format(**row)
        )
    return encoder.eval(), history


def _train_epoch(
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    config: TrainingConfig,
    epoch: int,
    generator: torch.Generator,
) -> np.ndarray:
    """Train one epoch in place; return the loss of every batch. The incomplete last batch is left out."""
    objective = OBJECTIVES[config.objective]
    temperature = config.temperature or objective.temperature
    batch_size = min(config.batch_size, len(x))
    n_batches = len(x) // batch_size
    order = torch.randperm(len(x), generator=generator, device=x.device)
    losses = torch.zeros(n_batches, device=x.device)
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=has_fast_bfloat16(x.device))
    encoder.train()
    for step in range(n_batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, epoch + (step + 1) / n_batches)
        batch = order[step * batch_size : (step + 1) * batch_size]
        images = x[batch]
        views = torch.cat([config.views(images, generator) for _ in range(objective.n_views)])
        with autocast:
            z = encoder(views.contiguous(memory_format=torch.channels_last))
            loss = objective.loss(encoder, z, y[batch], temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    return losses.cpu().numpy()


def _check_finite(losses: np.ndarray, epoch: int, config: TrainingConfig) -> None:
    if not np.isfinite(losses).all():
        step = int(np.flatnonzero(~np.isfinite(losses))[0]) + 1
        raise FloatingPointError(
            f"the loss is no longer finite in epoch {epoch + 1}, step {step}: try a lower learning_rate than "
            f"{config.learning_rate}, more warmup_epochs than {config.warmup_epochs} or a higher temperature"
        )


def _cross_entropy(encoder: Encoder, z: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    return F.cross_entropy(encoder.classifier(z).float() / temperature, y)


def _simclr(encoder: Encoder, z: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    return nt_xent_loss(encoder.projection(z).float(), temperature)


def _supcon(encoder: Encoder, z: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    return supcon_loss(encoder.projection(z).float(), y.repeat(2), temperature)


OBJECTIVES = {
    "ce": Objective(("classifier",), 1, 1.0, _cross_entropy),
    "simclr": Objective(("projection",), 2, 0.5, _simclr),
    "supcon": Objective(("projection",), 2, 0.1, _supcon),
}
