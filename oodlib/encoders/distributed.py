"""Distributed: several processes, started by torchrun, train one encoder.

Every process (rank) holds the whole encoder and draws the views of its share of each batch. The processes read the same
files; the first one alone writes and prints. With one process every function here gives back what it was given.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # the first process may wait for another training, or for a download


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, for as long as the block lasts; alone, do nothing.

    Gloo on the CPU; on GPUs NCCL, one GPU a process. Raises ValueError where a machine has fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        n_here, n_gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if n_here > n_gpus:
            raise ValueError(f"each process needs a GPU of its own: {n_here} processes on a machine with {n_gpus}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, 0 for the one that writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: torch.Tensor) -> torch.Tensor:
    """Return this process's share of the indices of a batch (n,): (n / world_size,)."""
    return batch.view(world_size(), -1)[rank()]


def gather_views(x: torch.Tensor, n_views: int) -> torch.Tensor:
    """Return x (views·n, d) of all processes' images, the views stacked as if they were one batch: (views·N, d).

    Gradients flow back to the process that x came from. Every process computes the same loss of the gathered x, and
    DistributedDataParallel averages the gradients of its parameters: so they are those of one process and one batch.
    """
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    own = x.view_as(x)
    if own.requires_grad:  # the same loss on each of N processes: the sum of its gradients is N times one of them
        own.register_hook(lambda gradient: gradient * world_size())
    parts[rank()] = own
    return torch.cat([part.unflatten(0, (n_views, -1)) for part in parts], dim=1).flatten(0, 1)


def anywhere(flag: bool) -> bool:
    """Return whether `flag` is true on any process: what one decides, all do."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))  # on the CPU: gloo, so that no GPU is waited for
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


@contextmanager
def together() -> Iterator[None]:
    """Do a block that differs between processes: all wait for its end, and what one raises, all raise."""
    if world_size() == 1:
        yield
        return
    error, errors = None, [None] * world_size()
    try:
        yield
    except Exception as raised:
        error = raised
    dist.all_gather_object(errors, error)
    for raised in errors:
        if raised is not None:
            raise raised


@contextmanager
def on_first(context: AbstractContextManager[T], otherwise: T) -> Iterator[T]:
    """Enter and leave a context on the first process alone; the others are given `otherwise`."""
    with ExitStack() as stack:
        with together():
            given = stack.enter_context(context) if rank() == 0 else otherwise
        yield given
        with together():
            stack.close()


def say(text: str) -> None:
    """Print a line, on the first process alone."""
    if rank() == 0:
        print(text, flush=True)


def parallel(network: torch.nn.Module) -> torch.nn.Module:
    """Return a network whose gradients are averaged over all processes.

    On GPUs batch normalisation takes its statistics from the whole batch; torch has no such layer for the CPU, where
    each process normalises by its own share.
    """
    if world_size() == 1:
        return network
    return torch.nn.parallel.DistributedDataParallel(network)


def synchronised(network: torch.nn.Module) -> torch.nn.Module:
    """Return a network whose batch normalisation takes its statistics from all processes, if these are on GPUs."""
    if world_size() == 1 or not torch.cuda.is_available():
        return network
    from timm.layers import convert_sync_batchnorm  # torch's would drop the activation that some of timm's layers hold

    return convert_sync_batchnorm(network)
