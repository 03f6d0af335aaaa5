"""Loader: the images of each batch, from the device or, where they would not fit, decoded from files by workers."""

import os
import signal
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from oodlib.data import decoding
from oodlib.data.folders import FolderImages
from oodlib.data.sets import prepare
from oodlib.encoders import distributed
from oodlib.encoders.encoder import Encoder

MOST_WORKERS = 8  # processes that decode images from files
FORK = "fork" if sys.platform == "linux" else None  # a fork server would die of the signals that workers outlive


class LazyImages(Dataset):
    """Images that stay in files, prepared when a batch asks for them: stands for a tensor (n, 3, s, s) uint8."""

    def __init__(self, encoder: Encoder, images: FolderImages):
        self.spec, self.images = encoder.spec, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: np.ndarray) -> torch.Tensor:
        return prepare(self.images[np.asarray(index)], self.spec.side, self.spec.channels, self.spec.input_size)


class Loader:
    """Gives this process its share of the images of each batch, on the device."""

    def __init__(self, x: torch.Tensor | LazyImages, device: torch.device):
        self.x, self.device = x, device
        self.shares: list[torch.Tensor] = []  # of an epoch: what the workers are asked for
        self.workers = self._start_workers() if isinstance(x, LazyImages) else None

    def images(self, batches: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the images (n, 3, s, s) uint8 of each batch, rows of indices (steps, n)."""
        self.shares[:] = [distributed.share(batch) for batch in batches]
        if self.workers is None:
            yield from (self.x[share] for share in self.shares)
        else:
            yield from (images.to(self.device, non_blocking=True) for images in self.workers)

    def _start_workers(self) -> DataLoader:
        return DataLoader(
            self.x,
            batch_size=None,
            sampler=self.shares,
            num_workers=n_workers(),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_start_worker,
            multiprocessing_context=FORK,
            persistent_workers=True,
        )


def n_workers() -> int:
    """Return how many processes decode images for this one: the processes that torchrun started share the cores."""
    return min(MOST_WORKERS, max(1, decoding.usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _start_worker(_: int) -> None:
    """Leave signals to the trainer, which still needs images for its step: Slurm and Ctrl-C send them to all.

    A worker ends when the trainer does.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    decoding.n_threads = 1  # there is a worker a core
