"""Checkpoints: how a training resumes. Its state goes to a file, from which it goes on to the same weights, bit by bit.

A checkpoint is one safetensors file, arrays and JSON only, written whole or not at all. The randomness of a step is a
function of seed, epoch and step, so there is no generator whose state has to be kept. `noticing_sigterm` tells when it
is time to write one and end.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from oodlib.encoders import distributed
from oodlib.encoders.encoder import Encoder
from oodlib.files import differences, read_tensors, write_tensors

if TYPE_CHECKING:
    from oodlib.encoders.settings import TrainingConfig

FORMAT = "oodlib-checkpoint-1"


@dataclass
class TrainingState:
    """All that changes while training: the next step is `step` of `epoch`, `losses` and `seconds` are this epoch's."""

    encoder: Encoder
    optimizer: torch.optim.Optimizer
    losses: torch.Tensor  # (steps an epoch,)
    memory: nn.Module | None = None
    lookahead: nn.Module | None = None
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)

    def modules(self) -> dict[str, nn.Module]:
        """Return the parts that have a state of their own, by name."""
        parts = {"encoder": self.encoder, "memory": self.memory, "lookahead": self.lookahead}
        return {name: module for name, module in parts.items() if module is not None}

    def momenta(self) -> dict[str, torch.Tensor]:
        """Return the momentum of each trained parameter, made where there is none yet."""
        named = {f"momentum.{name}": p for name, p in self.encoder.named_parameters() if p.requires_grad}
        return {
            name: self.optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            for name, p in named.items()
        }


def save_checkpoint(path: str | Path, state: TrainingState, config: "TrainingConfig") -> None:
    """Write a checkpoint; where that fails, with an OSError, the one that was there stays."""
    about = {"config": asdict(config), "history": state.history}
    about |= {"epoch": state.epoch, "step": state.step, "seconds": state.seconds, "where": _where()}
    write_tensors(path, _tensors(state), FORMAT, about, "the checkpoint")


@torch.no_grad()
def load_checkpoint(path: str | Path, state: TrainingState, config: "TrainingConfig") -> None:
    """Bring a fresh state to where a checkpoint left off; say so where the weights will not be the undisturbed ones.

    Raises ValueError for a file that is cut short, foreign, or of another configuration or network; it names which.
    """
    anew = "delete it to train anew"
    try:
        found, about = read_tensors(path, FORMAT)
        before = about["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint, or is cut short ({error}); {anew}") from error
    if different := differences(before, asdict(config)):
        raise ValueError(f"{path} is of a training with {'; '.join(different)}; {anew}")
    tensors = _tensors(state)
    if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in found.items()}:
        raise ValueError(f"{path} does not fit this network and image set; {anew}")
    for name, tensor in tensors.items():
        tensor.copy_(found[name])
    if different := differences(about["where"], _where()):
        what = f"{path} was written with {'; '.join(different)}"
        distributed.say(f"{what}: the weights may differ from those without a break")
    state.epoch, state.step, state.seconds = about["epoch"], about["step"], about["seconds"]
    state.history = about["history"]


def _where() -> dict[str, str | int]:
    """Return what, next to the configuration, decides the last bits of the weights and may change in a break."""
    return {"processes": distributed.world_size(), "torch": torch.__version__}


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and what killed processes left of theirs."""
    for left in path.parent.glob(f"{path.stem}*{path.suffix}"):
        left.unlink(missing_ok=True)


def _tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    tensors = {"losses": state.losses} | state.momenta()
    for part, module in state.modules().items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    return tensors


class Stop(threading.Event):
    """Set by SIGTERM, which Slurm and spot machines send before they take the machine away, or when time is over."""

    def __init__(self, until: float = math.inf):
        super().__init__()
        self.until = until

    @property
    def is_asked(self) -> bool:
        return super().is_set()

    @property
    def time_is_over(self) -> bool:
        return time.monotonic() >= self.until

    def is_set(self) -> bool:
        return self.is_asked or self.time_is_over


@contextmanager
def noticing_sigterm(until: float = math.inf) -> Iterator[Stop]:
    """Give an event that SIGTERM sets, and that is set from the time `until` of time.monotonic on."""
    asked = Stop(until)
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
