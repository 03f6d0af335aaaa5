"""Epoch: what happens in one. Draw the views of a batch, take a step down its loss, and at the end a row of history.

The whole set lies on the device, or comes from files where it would not fit (`loader`). Views are made on the device,
on a GPU those of several batches at once, and but for CIDER's prototypes nothing in a step waits for it. The randomness
of a step is drawn from seed, epoch and step, so that a training that was interrupted goes on to the same weights.
`training.train` calls this epoch after epoch.
"""

import itertools
import math
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch

from oodlib.device import default_device, has_fast_bfloat16
from oodlib.encoders import distributed
from oodlib.encoders.airbench import Airbench
from oodlib.encoders.checkpoint import TrainingState
from oodlib.encoders.embedding import embed, knn_accuracy, suitable_batch
from oodlib.encoders.encoder import Encoder
from oodlib.encoders.loader import LazyImages, Loader
from oodlib.encoders.objectives import OBJECTIVES
from oodlib.encoders.optimisation import (
    Lookahead,
    freeze,
    frozen_modules,
    learning_rate_at,
    parameter_groups,
    run_in_parts,
)
from oodlib.encoders.settings import TrainingConfig

MONITOR_TRAIN, MONITOR_HELD_OUT = 2000, 1000  # images behind the accuracy of a history row, so that it costs little
WHITENING_IMAGES = 5_000  # whose patches the first layer of airbench whitens
AT_ONCE = 8  # batches whose views a GPU makes together: they are many small kernels, and it waits for their launches
PIXELS_AT_ONCE = 2**24  # of these views at most
LOOK = 200  # steps between looks at the losses: a look waits for the device, hours of training on NaN cost more


class HeadOutputs(torch.nn.Module):
    """Maps views to the outputs of the encoder's heads in one call, which is what DistributedDataParallel needs."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.encoder.outputs(self.encoder(views))


class Trainer:
    """Trains an encoder epoch by epoch: `step` is one batch, `epoch` goes through all, `end_epoch` adds a history row.

    x (n, 3, s, s) uint8, a tensor or LazyImages, and y (n,) are trained on; `held_out` are such images and labels for
    the accuracy of a history row. All that changes is in `state`.
    Raises ValueError for a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        config: TrainingConfig,
        encoder: Encoder,
        x: torch.Tensor | LazyImages,
        y: torch.Tensor,
        held_out: tuple[torch.Tensor, torch.Tensor],
    ):
        self.config, self.objective, self.device = config, OBJECTIVES[config.objective], default_device()
        self.n_views = config.n_views or self.objective.n_views
        self.batch_size = min(config.batch_size, len(x))
        if self.batch_size % distributed.world_size():
            raise ValueError(f"{distributed.world_size()} processes cannot share a batch of {self.batch_size} evenly")
        self.x = x.to(self.device) if isinstance(x, torch.Tensor) else x
        self.loader = Loader(self.x, self.device)
        self.y = y.to(self.device)
        self.x_held_out, self.y_held_out = held_out
        self.say_every = math.inf  # seconds between the lines within an epoch
        self.generator = torch.Generator(self.device)
        self.flipped = self._flipped() if config.alternate_flip else None
        if self.device.type == "cuda":
            torch.backends.cudnn.deterministic = True  # else the same steps give other weights
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=_mixes_precision(encoder, self.device))
        self.state = self._first_state(encoder)
        self.at_once = self._at_once()
        self.network = distributed.parallel(HeadOutputs(self.state.encoder))

    def _first_state(self, encoder: Encoder) -> TrainingState:
        config = self.config
        if isinstance(encoder.backbone, Airbench):
            some = np.random.default_rng(config.seed).permutation(len(self.x))[:WHITENING_IMAGES]
            encoder.backbone.whiten((self.x[some].cpu() / 255 - encoder.mean) / encoder.std)
        freeze(encoder, config.trained)
        if self.device.type == "cpu":
            for module in frozen_modules(encoder.backbone, config.trained):
                run_in_parts(module, suitable_batch(encoder.spec.input_size**2, self.device))
        encoder = distributed.synchronised(encoder).to(self.device, memory_format=torch.channels_last)
        groups, nesterov = parameter_groups(encoder, config), config.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=nesterov, fused=True)
        memory = self.objective.memory(encoder).to(self.device) if self.objective.memory else None
        lookahead = Lookahead(encoder) if config.lookahead else None
        losses = torch.zeros(len(self.x) // self.batch_size, device=self.device)
        return TrainingState(encoder, optimizer, losses, memory, lookahead)

    def _flipped(self) -> torch.Tensor:
        """Return which images each view mirrors in the first epoch: (views, n) bool, a function of the seed alone."""
        generator = torch.Generator().manual_seed(_seed(self.config.seed))
        return (torch.rand(self.n_views, len(self.x), generator=generator) < self.config.flip).to(self.device)

    def _at_once(self) -> int:
        """Return of how many batches the views are made together, 1 on a CPU."""
        pixels = self.n_views * self.batch_size * self.state.encoder.spec.input_size**2
        return max(1, min(AT_ONCE, PIXELS_AT_ONCE // pixels)) if self.device.type == "cuda" else 1

    def step(self, batch: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """Train one step on a batch of indices (n,), given the views of this process's share; return its loss."""
        state, config, objective = self.state, self.config, self.objective
        with self.autocast:
            heads = self.network(views)
        heads = {name: distributed.gather_views(out.float(), self.n_views) for name, out in heads.items()}
        loss = objective.loss(heads, self.y[batch], config.temperature or objective.temperature, config, state.memory)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(state.encoder.parameters(), config.clip_norm)
        state.optimizer.step()
        if state.lookahead is not None:
            n_steps = len(state.losses)
            state.lookahead.update(state.epoch * n_steps + state.step + 1, of=config.epochs * n_steps)
        return loss.detach()

    def views(self, batches: torch.Tensor, images: torch.Tensor, first: int) -> list[torch.Tensor]:
        """Return the random views of each of some batches, stacked: (views·n, 3, s, s) float32.

        `batches` are rows of indices, `images` this process's share of all of them, `first` the step of the first.
        """
        self.generator.manual_seed(_seed(self.config.seed, self.state.epoch, first, distributed.rank()))
        flips = [None] * self.n_views
        if self.flipped is not None:
            shares = torch.cat([distributed.share(batch) for batch in batches])
            flips = self.flipped[:, shares] ^ (self.state.epoch % 2 == 1)
        drawn = [self.config.views(images, self.generator, flipped).chunk(len(batches)) for flipped in flips]
        return [torch.cat(views).contiguous(memory_format=torch.channels_last) for views in zip(*drawn, strict=True)]

    def epoch(self, stop: threading.Event) -> bool:
        """Train to the end of the epoch, or to a step after which `stop` is set; return whether it was the end.

        The incomplete last batch is left out.
        """
        state, config = self.state, self.config
        n_steps = len(state.losses)
        state.encoder.train()
        for module in frozen_modules(state.encoder.backbone, config.trained):
            module.eval()
        said = time.perf_counter()
        start = said - state.seconds
        for batch, views in self._batches_and_views():
            self._set_seed_and_rate()
            state.losses[state.step] = self.step(batch, views)
            state.step += 1
            if state.step % LOOK == 0 and state.step < n_steps:
                self._check_finite()
            if time.perf_counter() - said > self.say_every:
                said = time.perf_counter()
                rate = self.n_views * self.batch_size * state.step / (said - start)
                distributed.say(f"{state.epoch + 1:5d}, step {state.step} of {n_steps}, {rate:.0f} images/s")
            if distributed.anywhere(stop.is_set()):
                break
        self._check_finite()  # waits for the device
        state.seconds = time.perf_counter() - start
        return state.step == n_steps

    def _batches_and_views(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the indices (n,) of each batch that the epoch still has, and the views of this process's share."""
        step, n_steps = self.state.step, len(self.state.losses)
        order = torch.from_numpy(np.random.default_rng((self.config.seed, self.state.epoch)).permutation(len(self.x)))
        done = step % self.at_once  # batches whose views are made again with those that follow them
        batches = order[: n_steps * self.batch_size].view(n_steps, -1)[step - done :]
        if isinstance(self.x, torch.Tensor):  # else the workers are asked for them
            batches = batches.to(self.device)
        images = self.loader.images(batches)
        for start in range(0, len(batches), self.at_once):
            some = batches[start : start + self.at_once].to(self.device)
            together = torch.cat(list(itertools.islice(images, len(some))))
            views = self.views(some, together, step - done + start)
            yield from itertools.islice(zip(some, views, strict=True), max(0, done - start), None)

    def _set_seed_and_rate(self) -> None:
        """Seed the next step, and set the learning rate at its end."""
        state, config = self.state, self.config
        torch.manual_seed(_seed(config.seed, state.epoch, state.step, distributed.rank()))  # dropout
        rate = learning_rate_at(config, state.epoch + (state.step + 1) / len(state.losses))
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["factor"]

    def _check_finite(self) -> None:
        """Raise FloatingPointError where a loss of this epoch, or a weight after its last step, is not finite."""
        state = self.state
        losses = state.losses[: state.step].cpu().numpy()
        if not np.isfinite(losses).all():
            raise self._not_finite("the loss is", int(np.flatnonzero(~np.isfinite(losses))[0]) + 1)
        finite = [tensor.isfinite().all() for tensor in state.encoder.state_dict().values()]
        if not torch.stack(finite).all():
            raise self._not_finite("the weights are", state.step)

    def _not_finite(self, what: str, step: int) -> FloatingPointError:
        config = self.config
        return FloatingPointError(
            f"{what} no longer finite in epoch {self.state.epoch + 1}, step {step}: try a lower learning_rate than "
            f"{config.learning_rate}, more warmup_epochs than {config.warmup_epochs}, clip_norm or a higher temperature"
        )

    def end_epoch(self) -> None:
        """Append the row of the epoch to the history, print it, and go to the next."""
        state = self.state
        n_steps = len(state.losses)
        some = np.random.default_rng(0).permutation(len(self.x))[:MONITOR_TRAIN]
        try:
            with self.autocast:
                z_train, z_held_out = (embed(state.encoder, x)[0] for x in (self.x[some], self.x_held_out))
        except FloatingPointError as error:  # weights may be finite, and yet so large that embeddings are not
            raise self._not_finite("the embeddings are", n_steps) from error
        row = {
            "epoch": state.epoch + 1,
            "loss": float(state.losses.cpu().numpy().mean()),
            "knn_accuracy": knn_accuracy(z_train, self.y[some].cpu().numpy(), z_held_out, self.y_held_out.numpy()),
            "learning_rate": state.optimizer.param_groups[0]["lr"],
            "seconds": state.seconds,
            "images_per_second": self.n_views * n_steps * self.batch_size / state.seconds,
        }
        state.history.append(row)
        state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
        print_row(row)


def _mixes_precision(encoder: Encoder, device: torch.device) -> bool:
    """Return whether steps compute in bfloat16: where it is fast, but for grouped convolutions on a CPU.

    Their gradients take twice as long in bfloat16 there.
    """
    grouped = any(isinstance(module, torch.nn.Conv2d) and module.groups > 1 for module in encoder.modules())
    return has_fast_bfloat16(device) and not (grouped and device.type == "cpu")


def print_header() -> None:
    """Print what the columns of `print_row` are, on the first process alone."""
    distributed.say(
        f"{'epoch':>5} {'loss':>9} {'knn_accuracy':>12} {'learning_rate':>13} {'seconds':>8} {'images/s':>9}"
    )


def print_row(row: dict) -> None:
    """Print a row of the history, fixed in width, on the first process alone."""
    form = "{epoch:5d} {loss:9.4f} {knn_accuracy:12.4f} {learning_rate:13.5f} {seconds:8.2f} {images_per_second:9.0f}"
    distributed.say(form.format(**row))


def _seed(*numbers: int) -> int:
    """Return a seed that is a function of these numbers, and of nothing else."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
