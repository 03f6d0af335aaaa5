"""Benchmarks of training: the loop against its bare network and a conventional loop, views against other libraries'.

Images are random, 32 × 32 pixels, their views those of SimCLR on CIFAR. A turn is one epoch of a few batches. Images
per second count network inputs, as history.csv does: two views of an image are two. The ratio is ours over the other's,
so against the bare network it is the share of the hardware's rate that the loop reaches.
"""

import sys
import threading
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from PIL import Image
from side_by_side import compare_rates
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from oodlib.data import ImageSet
from oodlib.device import describe_machine
from oodlib.encoders import Encoder, TrainingConfig
from oodlib.encoders.epoch import Trainer
from oodlib.encoders.training import make_trainer
from oodlib.encoders.views import Views

SIDE, CLASSES = 32, 10
VIEWS = {"crop": 0.2, "flip": 0.5, "jitter": 0.4, "grayscale": 0.2}


def loop(scale: float) -> Iterator[dict]:
    """The loop against forward, loss, backward and optimiser step on views that lie ready on the device."""
    for objective in ("simclr", "ce"):
        yield against_network("training-loop", "airbench_32_128_128", objective, int(512 * scale), 4)


def conventional(scale: float) -> Iterator[dict]:
    """The loop against PIL, torchvision.transforms and a DataLoader, in float32 and the default memory format."""
    for objective in ("simclr", "ce"):
        trainer = new_trainer("airbench_32_128_128", objective, int(512 * scale), 4)
        other = conventional_loop(trainer)
        rates = compare_rates(partial(our_epoch, trainer), other, inputs_of_an_epoch(trainer), 7)
        yield about("training-conventional", trainer) | {"other": "PIL, torchvision, DataLoader, float32"} | rates


def views(scale: float) -> Iterator[dict]:
    """Views of a batch against kornia's, also whole batches with parameters an image, and PIL's, image by image."""
    from kornia import augmentation

    ours, batch = Views(**VIEWS), int(256 * scale)
    images = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    kornia = augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop((SIDE, SIDE), (ours.crop, 1.0), align_corners=False, cropping_mode="resample"),
        augmentation.RandomHorizontalFlip(ours.flip),
        augmentation.ColorJitter(ours.jitter, ours.jitter, ours.jitter, ours.hue, p=ours.jitter_p),
        augmentation.RandomGrayscale(p=ours.grayscale),
        same_on_batch=False,
    )
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    view = picture_view(ours)
    others = {
        "kornia.augmentation": lambda: kornia(images.float().div_(255)),
        "PIL, torchvision": lambda: torch.stack([view(picture) for picture in pictures]),
    }
    machine = describe_machine(torch.device("cpu"))
    where = {
        "network": "views alone",
        "batch": batch,
        "device": f"{machine['processor']}, {machine['threads']} threads",
    }
    for name, other in others.items():
        row = {"benchmark": "training-views", "data": f"SimCLR views of {SIDE} × {SIDE}, {name}"} | where
        yield row | {"other": name} | compare_rates(partial(ours, images, generator), other, batch, 15)


def gpu(scale: float) -> Iterator[dict]:
    """The loop on a GPU against its bare network, and what a hundred epochs of CIFAR-10 take at that rate."""
    if not torch.cuda.is_available():
        print("training-gpu: torch finds no GPU here, so there is no row", file=sys.stderr)
        return
    row = against_network("training-gpu", "airbench", "simclr", int(1024 * scale), 20)
    yield row | {"hundred_epochs_seconds": round(100 * 45_000 * 2 / row["ours_images_per_second"])}  # two views


def new_trainer(arch: str, objective: str, batch: int, steps: int) -> Trainer:
    """Return a trainer on random images, whose epoch has this many steps."""
    config = TrainingConfig(arch=arch, objective=objective, batch_size=batch, input_size=SIDE, epochs=100, **VIEWS)
    n = int((steps * batch + CLASSES) / (1 - config.calibration_fraction))  # a part of every class is held out
    images = np.random.default_rng(0).integers(256, size=(n, SIDE, SIDE, 3), dtype=np.uint8)
    classes = tuple(f"class {k}" for k in range(CLASSES))
    return make_trainer(config, ImageSet(images, np.arange(n) % CLASSES, classes, "random"))


def inputs_of_an_epoch(trainer: Trainer) -> int:
    return len(trainer.state.losses) * trainer.batch_size * trainer.n_views


def about(benchmark: str, trainer: Trainer) -> dict:
    """Return what says which row it is."""
    machine, n_views = describe_machine(trainer.device), trainer.n_views
    device = f"{machine['processor']}, {machine['threads']} threads"
    return {
        "benchmark": benchmark,
        "data": f"{trainer.config.objective}, {n_views} view{'s' if n_views > 1 else ''} of {SIDE} × {SIDE}",
        "network": trainer.config.arch,
        "batch": trainer.batch_size,
        "device": device if machine["device"] == "cpu" else machine["device"],
    }


def our_epoch(trainer: Trainer) -> None:
    """Train as `train` does, without the accuracy at the end of the epoch."""
    trainer.epoch(threading.Event())
    state = trainer.state
    state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0


def against_network(benchmark: str, arch: str, objective_name: str, batch: int, steps: int) -> dict:
    """Return the row of the loop against its network on one fixed batch of views, same precision, same layout."""
    trainer, bare = (new_trainer(arch, objective_name, batch, steps) for _ in range(2))
    config, objective, optimizer = bare.config, bare.objective, bare.state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * group["factor"]
    images, y = bare.x[:batch], bare.y[:batch]
    views = torch.cat([config.views(images, bare.generator) for _ in range(objective.n_views)])
    views = views.contiguous(memory_format=torch.channels_last)

    def network() -> float:
        for _ in range(len(bare.state.losses)):
            with bare.autocast:
                heads = bare.network(views)
            heads = {name: out.float() for name, out in heads.items()}
            loss = objective.loss(heads, y, objective.temperature, config, bare.state.memory)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss.item()  # waits for the device

    rates = compare_rates(partial(our_epoch, trainer), network, inputs_of_an_epoch(trainer), 15)
    return about(benchmark, trainer) | {"other": "network on fixed views"} | rates


def picture_view(views: Views) -> transforms.Compose:
    """Return torchvision's transforms of a PIL image to a random view, with the same parameters."""
    jitter = transforms.ColorJitter(views.jitter, views.jitter, views.jitter, views.hue)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, (views.crop, 1.0)),
            transforms.RandomHorizontalFlip(views.flip),
            transforms.RandomApply([jitter], views.jitter_p),
            transforms.RandomGrayscale(views.grayscale),
            transforms.ToTensor(),
        ]
    )


class ViewsOfPictures(Dataset):
    """Images (n, h, w, 3) uint8 and labels; an item is some views of one, made from a PIL image, and its label."""

    def __init__(self, images: np.ndarray, labels: list[int], views: Views, n_views: int):
        self.images, self.labels, self.n_views = images, labels, n_views
        self.view = picture_view(views)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[list[torch.Tensor], int]:
        image = Image.fromarray(self.images[i])
        return [self.view(image) for _ in range(self.n_views)], self.labels[i]


def conventional_loop(trainer: Trainer):
    """Return a function that trains one epoch as the field's code does, on a trainer's images, network and loss."""
    config, objective, device = trainer.config, trainer.objective, trainer.device
    n = len(trainer.state.losses) * trainer.batch_size
    images, labels = trainer.x[:n].permute(0, 2, 3, 1).cpu().numpy(), trainer.y[:n].tolist()
    pictures = ViewsOfPictures(np.ascontiguousarray(images), labels, config.views, objective.n_views)
    loader = DataLoader(
        pictures, trainer.batch_size, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )
    encoder = Encoder(trainer.state.encoder.spec).to(device)
    optimizer = torch.optim.SGD(
        encoder.parameters(), config.learning_rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )

    def epoch() -> float:
        for views, y in loader:
            heads = encoder.outputs(encoder(torch.cat(views).to(device)))
            loss = objective.loss(heads, y.to(device), objective.temperature, config, None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()  # waits for the device

    return epoch


BENCHMARKS = {
    "training-loop": loop,
    "training-conventional": conventional,
    "training-views": views,
    "training-gpu": gpu,
}
