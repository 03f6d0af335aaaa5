"""Two processes train as one: the gradients of every objective, the order of views, what one raises and all do."""

import multiprocessing
import os
import socket
import threading
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from conftest import few_digits
from timm.layers import BatchNormAct2d
from torch import nn

from oodlib.encoders import ARCHITECTURES, TrainingConfig, distributed
from oodlib.encoders import epoch as trainer_module
from oodlib.encoders.training import make_trainer, train


class Plain(nn.Sequential):
    """A backbone without batch normalisation, so that two processes can do to the last digits what one does."""

    num_features = 8

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.GELU(), nn.Linear(16, 8))


ARCHITECTURES["plain"] = Plain  # in this process and, as they import this file, in the others
PLAIN = {"arch": "plain", "input_size": 8, "batch_size": 32}
SMALL = {"arch": "airbench_4_8_8", "batch_size": 32, "epochs": 2}
CONFIGS = {name: TrainingConfig(objective=name, **PLAIN) for name in ("ce", "simclr", "supcon", "joint", "cider")}
CONFIGS["clipped"] = TrainingConfig(clip_norm=0.1, **PLAIN)
del ARCHITECTURES["plain"]


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "plain", Plain)


@contextmanager
def fixed_views():
    """First views are the images, second ones their mirror images; all in float32."""

    def views(images, generator, flipped=None):
        turns.append(images)
        return (images if len(turns) % 2 else images.flip(-1)).float() / 255

    turns = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingConfig, "views", property(lambda config: views))
        patch.setattr(trainer_module, "has_fast_bfloat16", lambda device: False)
        yield


def one_step(config, batch):
    """Return a fresh trainer after a step on images, and the loss of the step."""
    with fixed_views():
        trainer = make_trainer(config, few_digits())
        trainer.state.encoder.train()
        x = trainer.views(batch[None], trainer.x[distributed.share(batch)], 0)[0]
        return trainer, trainer.step(batch, x).item()


def first_step(config):
    """Return the loss of the first step on 32 images, the gradient it leaves, and CIDER's memory."""
    trainer, loss = one_step(config, torch.arange(32))
    gradient = torch.cat([p.grad.flatten() for p in trainer.state.encoder.parameters()])
    return loss, gradient, trainer.state.memory.values if trainer.state.memory else torch.zeros(0)


def running_mean(batch):
    """Return the mean that the first batch normalisation of a fresh network keeps of a step on these images."""
    return one_step(TrainingConfig(**SMALL), batch)[0].state.encoder.backbone.groups[0].norm1.running_mean


def gathered():
    """Return the gathered views of two images a process, and the gradient of Σ i · gathered[i]."""
    x = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]]) * 10 ** distributed.rank()  # a, a, b, b
    x.requires_grad_()
    views = distributed.gather_views(x, 2)
    (views.flatten() * torch.arange(8)).sum().backward()
    return views.flatten().tolist(), x.grad.flatten().tolist()


def raised(failing):
    """Return what this process raises where those of rank `failing` fail in a block that is done together."""
    try:
        with distributed.together():
            if distributed.rank() in failing:
                raise OSError(28, f"disk {distributed.rank()} is full", "a/path")
    except OSError as error:
        return str(error)


@contextmanager
def noting(notes):
    notes.append("enters")
    yield "given"
    notes.append("leaves")


def on_first():
    """Return what happens to a context of the first process, and what all are given."""
    notes = []
    with distributed.on_first(noting(notes), otherwise="other") as given:
        notes.append(given)
    return notes


def steps_until_rank_1_stops():
    """Return seed and images of every step, the number of steps and whether it was the epoch's end."""
    trainer, stop, steps = make_trainer(CONFIGS["ce"], few_digits()), threading.Event(), []
    step = trainer.step
    trainer.step = lambda batch, x: steps.append((trainer.generator.initial_seed(), batch.tolist())) or step(batch, x)
    if distributed.rank() == 1:
        stop.set()
    ended = trainer.epoch(stop)
    return steps, trainer.state.step, ended


def refused():
    with pytest.raises(ValueError, match="evenly") as error:
        make_trainer(TrainingConfig(arch="airbench_4_8_8", batch_size=33), few_digits())
    return str(error.value)


def parameters():
    encoder, _ = train(TrainingConfig(**SMALL), few_digits())
    return torch.cat([p.detach().flatten() for p in encoder.parameters()])


def observe():
    """Return what one process sees of each function."""
    rank = distributed.rank()
    return {
        "rank": (rank, distributed.world_size()),
        "share": distributed.share(torch.arange(6)).tolist(),
        "gathered": gathered(),
        "anywhere": [distributed.anywhere(flag) for flag in (False, True, rank == 0, rank == 1)],
        "raised": [raised(failing) for failing in ((), (0,), (1,), (0, 1))],
        "on_first": on_first(),
        "refused": refused(),
        "first steps": {name: first_step(config) for name, config in CONFIGS.items()},
        "running mean": running_mean(torch.arange(32)),
        "stopped": steps_until_rank_1_stops(),
        "parameters": parameters(),
    }


def one_of_two(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with open(folder / f"printed{rank}", "w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        patch.setitem(ARCHITECTURES, "plain", Plain)
        with distributed.process_group():
            seen = observe()
    assert not dist.is_initialized()
    torch.save(seen, folder / f"seen{rank}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two processes wrote here what they saw and printed."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["oodlib.encoders.training", "sklearn.datasets", "torch._dynamo", "pytest"])
    processes = [context.Process(target=one_of_two, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def seen(folder):
    """What each of two processes saw."""
    return [torch.load(folder / f"seen{rank}") for rank in range(2)]


def test_what_one_decides_or_raises_all_do(seen):
    assert [of["rank"] for of in seen] == [(0, 2), (1, 2)]
    assert [of["share"] for of in seen] == [[0, 1, 2], [3, 4, 5]]
    assert [of["anywhere"] for of in seen] == [[False, True, True, True]] * 2
    full = [f"[Errno 28] disk {rank} is full: 'a/path'" for rank in range(2)]
    assert [of["raised"] for of in seen] == [[None, full[0], full[1], full[0]]] * 2
    assert [of["on_first"] for of in seen] == [["enters", "given", "leaves"], ["other"]]
    assert [of["refused"] for of in seen] == ["2 processes cannot share a batch of 33 evenly"] * 2


def test_both_see_the_same_batches_in_other_views_end_with_the_same_weights_and_the_first_prints(seen, folder):
    (seed, batch), (other_seed, other_batch) = (of["stopped"][0][0] for of in seen)
    assert seed != other_seed
    assert batch == other_batch
    assert [of["stopped"][1:] for of in seen] == [(1, False)] * 2  # one asks to stop: after one step of two
    assert torch.equal(*(of["parameters"] for of in seen))
    lines = (folder / "printed0").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "1", "2"]
    assert (folder / "printed1").read_text() == ""


def test_gathered_views_are_first_all_first_ones_then_all_second_ones(seen):
    a, b = [1, 2, 10, 20], [-1, -2, -10, -20]
    assert [of["gathered"][0] for of in seen] == [a + b] * 2
    own = [[0, 1, 4, 5], [2, 3, 6, 7]]  # where the views of each process lie
    assert [of["gathered"][1] for of in seen] == [[2 * i for i in rows] for rows in own]  # the sum over two losses


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_of_two_processes_is_that_of_one(seen, name):
    loss, gradient, memory = first_step(CONFIGS[name])
    for of in seen:
        other_loss, other, other_memory = of["first steps"][name]
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert (other - gradient).norm() < 1e-5 * gradient.norm()
        torch.testing.assert_close(other_memory, memory, rtol=1e-5, atol=1e-7)
    assert (name == "clipped") == (gradient.norm().item() == pytest.approx(0.1, rel=1e-3))
    assert (name == "cider") == bool(len(memory))


def test_on_the_cpu_batch_normalisation_sees_the_share_of_its_process(seen):
    means = [of["running mean"] for of in seen]
    for mean, own in zip(means, (torch.arange(16), torch.arange(16, 32)), strict=True):
        torch.testing.assert_close(mean, running_mean(own), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*means, rtol=1e-3)


def test_one_process_gets_back_what_it_gives(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    x, network = torch.randn(4, 2), nn.BatchNorm2d(1)
    with distributed.process_group():
        assert not dist.is_initialized()
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.share(torch.arange(3)).tolist() == [0, 1, 2]
        assert distributed.gather_views(x, 2) is x
        assert distributed.parallel(network) is network
        assert distributed.synchronised(network) is network
        assert [distributed.anywhere(flag) for flag in (True, False)] == [True, False]
    assert raised((0,)) == "[Errno 28] disk 0 is full: 'a/path'"
    assert on_first() == ["enters", "given", "leaves"]
    distributed.say("heard")
    assert capsys.readouterr().out == "heard\n"


def test_synchronised_layers_take_over_everything(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), BatchNormAct2d(4, act_layer=nn.ReLU))
    network(torch.randn(8, 3, 5, 5))
    network[1].weight.requires_grad_(False)
    x, state = torch.randn(2, 3, 5, 5), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = network.eval()(x)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.synchronised(network) is network  # on the CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    converted = distributed.synchronised(network)
    assert [isinstance(layer, nn.SyncBatchNorm) for layer in converted] == [False, True, True]
    assert torch.equal(converted.eval()(x), expected)
    assert (expected >= 0).all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in converted.state_dict().items())
    assert converted.state_dict().keys() == state.keys()
    assert [p.requires_grad for p in converted[1].parameters()] == [False, True]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    said = "^each process needs a GPU of its own: 4 processes on a machine with 1$"
    with pytest.raises(ValueError, match=said), distributed.process_group():
        pass
