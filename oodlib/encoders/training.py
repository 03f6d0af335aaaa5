"""Training: one from beginning to end. Set it up, go on from its checkpoint, write what is due, stop when asked.

What happens in an epoch is in `epoch`, what a checkpoint holds in `checkpoint`.
"""

import math
import os
import signal
from pathlib import Path

import numpy as np
import torch

from oodlib.data.folders import FolderImages, Images
from oodlib.data.sets import ImageSet, prepare, split_calibration, take
from oodlib.encoders import distributed
from oodlib.encoders.architectures import pretrained_config
from oodlib.encoders.checkpoint import TrainingState, load_checkpoint, noticing_sigterm, save_checkpoint
from oodlib.encoders.encoder import Encoder, EncoderSpec, save_encoder
from oodlib.encoders.epoch import MONITOR_HELD_OUT, Trainer, print_header, print_row
from oodlib.encoders.loader import LazyImages
from oodlib.encoders.objectives import OBJECTIVES
from oodlib.encoders.settings import TrainingConfig
from oodlib.files import remove_partial_files

SPEC_IMAGES = 10_000  # images that give mean and standard deviation where they lie in files
WHOLE_PIXELS = 2**27  # pixels of a set that is measured in one piece, as CIFAR is; half a GiB of floats
CHECKPOINT, SNAPSHOTS = "checkpoint.safetensors", "snapshots"  # in a run's folder


def encoder_spec(config: TrainingConfig, images: ImageSet) -> EncoderSpec:
    """Return the spec of the encoder that this configuration trains on this ID set."""
    side = min(images.images.shape[1:3])
    channels = 1 if images.images.ndim == 3 else 3
    input_size = config.input_size or side
    if config.pretrained:
        about = pretrained_config(config.arch)
        mean, std = tuple(about["mean"]), tuple(about["std"])
    else:
        mean, std = _mean_and_std(_some(images.images), side, channels, input_size)
    return EncoderSpec(
        config.arch,
        images.classes,
        OBJECTIVES[config.objective].heads,
        side,
        channels,
        input_size,
        mean,
        std,
        projection_dim=config.projection_dim,
        patch_size=config.patch_size,
        pool=config.pool,
        small_stem=not config.pretrained,
        mirrored=config.mirrored,
    )


def _mean_and_std(images: Images, *form: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of images, prepared to a `form`, in [0, 1].

    Where many images are enlarged, block by block, so that they are never all in memory; the sums of integers are
    exact. The others are summed in float32, as in all runs on record: other last bits would be other weights.
    """
    if len(images) * form[-1] ** 2 <= WHOLE_PIXELS:
        flat = prepare(images, *form).transpose(0, 1).flatten(1)  # (3, pixels)
        moments = [(c.float().mean().item(), c.float().std().item()) for c in flat]
    else:
        counts = torch.zeros(3, 256, dtype=torch.float64)  # of each value in each channel
        block = max(1, WHOLE_PIXELS // 16 // form[-1] ** 2)
        for start in range(0, len(images), block):
            flat = prepare(images[start : start + block], *form).transpose(0, 1).flatten(1)
            counts += torch.stack([torch.bincount(c, minlength=256) for c in flat])
        values, n = torch.arange(256, dtype=torch.float64), counts[0].sum()
        means = counts @ values / n
        variances = (counts * (values - means[:, None]) ** 2).sum(1) / (n - 1)
        moments = list(zip(means.tolist(), variances.sqrt().tolist(), strict=True))
    mean, std = zip(*((mean / 255, max(std / 255, 1e-3)) for mean, std in moments), strict=True)
    return mean, std


def _some(images: Images) -> Images:
    """Return the images that colours are measured with: all, or SPEC_IMAGES evenly spread where they lie in files."""
    if not isinstance(images, FolderImages):
        return images
    return images.take(np.linspace(0, len(images) - 1, min(SPEC_IMAGES, len(images))).astype(int))


def make_trainer(config: TrainingConfig, images: ImageSet) -> Trainer:
    """Return the trainer of a configuration on an ID set, at its start. Raises ValueError for too small a set."""
    index, held_out = split_calibration(images, config.calibration_fraction)
    if len(images.classes) < 2 or len(index) < 2 or not len(held_out):
        raise ValueError(f"{images.name} is too small to train on: {len(images)} images, {len(images.classes)} classes")
    torch.manual_seed(config.seed)
    encoder = Encoder(encoder_spec(config, images), config.pretrained)
    x = take(images.images, index)
    x = LazyImages(encoder, x) if isinstance(x, FolderImages) else encoder.prepare(x)
    shown = np.random.default_rng(0).permutation(held_out)[:MONITOR_HELD_OUT]
    x_held_out, y_held_out = encoder.prepare(take(images.images, shown)), torch.from_numpy(images.labels[shown])
    return Trainer(config, encoder, x, torch.from_numpy(images.labels[index]), (x_held_out, y_held_out))


class OutOfTime(Exception):
    """Time was over before a training was done; its checkpoint is written."""


def train(
    config: TrainingConfig,
    images: ImageSet,
    folder: Path | None = None,
    until: float = math.inf,
    say_every: float = math.inf,
) -> tuple[Encoder, list[dict]]:
    """Train an encoder on the training images of an ID set; print and return one row an epoch.

    A row holds epoch, loss (mean over batches), knn_accuracy (of held-out images against training images, in [0, 1]),
    learning_rate, seconds (of training alone) and images_per_second (network inputs; two views of an image count
    twice). Same machine, threads and configuration: the same weights.

    Where a folder is given, its CHECKPOINT is written every `checkpoint_epochs` and at SIGTERM, after which the process
    ends as the signal wants; where it is there already, training goes on from it, to the weights it would have had
    without a break. Its folder SNAPSHOTS gets the encoder of every `snapshot_epochs`. `until` is a time of
    time.monotonic, `say_every` the seconds after which a line says how far and how fast an epoch is.
    Raises OutOfTime where it is not done by then, FloatingPointError when the loss is no longer finite, ValueError for
    a set that is too small or a checkpoint that does not fit, OSError where a checkpoint cannot be written.
    """
    trainer = make_trainer(config, images)
    trainer.say_every, state = say_every, trainer.state
    if folder is not None:
        _resume(trainer, folder)
    print_header()
    for row in state.history:
        print_row(row)
    with noticing_sigterm(until) as stop:
        while state.epoch < config.epochs and not distributed.anywhere(stop.is_set()):
            if trainer.epoch(stop):
                trainer.end_epoch()
                _write(trainer, folder, stopping=False)
        late = distributed.anywhere(stop.time_is_over) and state.epoch < config.epochs
        asked = distributed.anywhere(stop.is_asked)
        if late or asked:
            _write(trainer, folder, stopping=True)
    if asked:
        _end_as_asked(state)
    if late:
        raise OutOfTime(f"stopped in epoch {state.epoch + 1}, after step {state.step}")
    return state.encoder.eval(), state.history


def _resume(trainer: Trainer, folder: Path) -> None:
    """Go on from the checkpoint in a folder; where there is none, remove what a training that was given up left."""
    going_on = distributed.anywhere((folder / CHECKPOINT).exists())
    if going_on:
        with distributed.together():
            load_checkpoint(folder / CHECKPOINT, trainer.state, trainer.config)
    if distributed.rank() == 0:
        remove_partial_files(folder / SNAPSHOTS)
        for left in () if going_on else snapshots_of(folder):
            left.unlink()


def snapshots_of(folder: Path) -> list[Path]:
    """Return the files of the encoders that a training kept on its way, in order; none that a kill cut short."""
    return sorted(path for path in (folder / SNAPSHOTS).glob("*.safetensors") if path.stem.isdecimal())


def _write(trainer: Trainer, folder: Path | None, stopping: bool) -> None:
    """Write what is due after an epoch, or before `stopping`, in the first process alone."""
    state, config = trainer.state, trainer.config
    with distributed.together():
        if folder is None or distributed.rank() > 0:
            return
        if not stopping and config.snapshot_epochs and state.epoch % config.snapshot_epochs == 0:
            save_encoder(state.encoder, folder / SNAPSHOTS / f"{state.epoch:04d}.safetensors", config.half)
        if stopping or state.epoch % config.checkpoint_epochs == 0:
            save_checkpoint(folder / CHECKPOINT, state, config)


def _end_as_asked(state: TrainingState) -> None:
    """End this process by the SIGTERM that it has put off."""
    distributed.say(f"stopped by SIGTERM in epoch {state.epoch + 1}, after step {state.step}")
    os.kill(os.getpid(), signal.SIGTERM)
    raise SystemExit(128 + signal.SIGTERM)  # where something else handles the signal
