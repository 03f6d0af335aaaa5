"""An epoch on 80 tiny digits: a step by hand, every option, randomness that seed, epoch and step alone decide."""

import multiprocessing
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from conftest import PLAIN
from torch import nn

from oodlib.data import decoding
from oodlib.encoders import OBJECTIVES, Objective, TrainingConfig, embed, embedding, epoch, knn_accuracy, loader
from oodlib.encoders.optimisation import learning_rate_at
from oodlib.encoders.training import make_trainer, train

# views are the images
TINY = TrainingConfig(**PLAIN | {"epochs": 3, "batch_size": 32, "input_size": 8, "warmup_epochs": 1, "crop": 1.0})
RATE = 0.5


@pytest.fixture
def float32(monkeypatch):
    monkeypatch.setattr(epoch, "has_fast_bfloat16", lambda device: False)


def weights(module, buffers=False):
    """Return copies of a module's parameters by name, or of all its state."""
    named = module.state_dict() if buffers else dict(module.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def same(some, other):
    return some.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in some.items())


def after_one_step(config, images):
    """Return a trainer, its weights, the loss of a step of rate RATE on the first batch, and what the step added."""
    trainer = make_trainer(config, images)
    trainer.state.encoder.train()
    for group in trainer.state.optimizer.param_groups:
        group["lr"] = RATE * group["factor"]
    before = weights(trainer.state.encoder)
    batch = torch.arange(32, device=trainer.device)
    loss = trainer.step(batch, trainer.views(batch[None], trainer.x[batch], 0)[0])
    added = {name: tensor - before[name] for name, tensor in weights(trainer.state.encoder).items()}
    return trainer, before, loss.item(), added


def test_a_step_is_nesterov_sgd_on_the_loss_of_its_images(few, float32):
    decay = 0.01
    trainer, before, loss, added = after_one_step(replace(TINY, weight_decay=decay), few)
    encoder = make_trainer(TINY, few).state.encoder.train()
    assert same(weights(encoder), before)
    logits = encoder.classifier(encoder(trainer.x[:32].float() / 255))
    expected = nn.functional.cross_entropy(logits, trainer.y[:32])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, weight in encoder.named_parameters():
        gradient = weight.grad + decay * before[name]
        torch.testing.assert_close(added[name], -RATE * (gradient + 0.9 * gradient), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.01, 0.2])
def test_clip_norm_bounds_the_update_and_keeps_its_direction(few, clip_norm):
    free, clipped = (
        torch.cat([t.double().flatten() for t in after_one_step(config, few)[3].values()])
        for config in (replace(TINY, weight_decay=0.0), replace(TINY, weight_decay=0.0, clip_norm=clip_norm))
    )
    assert free.norm() > 2 * 1.9 * RATE * clip_norm
    assert clipped.norm().item() == pytest.approx(1.9 * RATE * clip_norm, rel=1e-3)
    assert torch.cosine_similarity(free, clipped, dim=0).item() == pytest.approx(1, abs=1e-5)


def test_the_loss_gets_float32_outputs_of_all_views_their_labels_and_the_temperature(few, monkeypatch):
    seen = []

    def loss(heads, y, temperature, config, memory):
        assert memory is None
        seen.append((temperature, {name: (tuple(out.shape), out.dtype) for name, out in heads.items()}, len(y)))
        return heads["projection"].square().mean()

    monkeypatch.setitem(OBJECTIVES, "simclr", Objective(("projection",), 2, 0.7, loss))
    for temperature in (0.0, 0.3):
        after_one_step(replace(TINY, objective="simclr", temperature=temperature), few)
    outputs = {"projection": ((64, 128), torch.float32)}
    assert seen == [(0.7, outputs, 32), (0.3, outputs, 32)]


def test_lookahead_is_that_of_a_plain_loop_over_steps(few, monkeypatch):
    config = replace(TINY, lookahead=True, epochs=6)
    trainer = make_trainer(config, few)
    encoder, lookahead, fast = trainer.state.encoder, trainer.state.lookahead, []
    slow = {name: tensor.double() for name, tensor in weights(encoder, True).items()}
    update = lookahead.update
    monkeypatch.setattr(lookahead, "update", lambda *a, **k: (fast.append(weights(encoder, True)), update(*a, **k)))
    for _ in range(config.epochs):
        trainer.epoch(threading.Event())
        trainer.end_epoch()
    assert len(fast) == 12
    for steps in (5, 10, 12):  # of 12
        share = 1 - 0.95**5 * (steps / 12) ** 3
        slow = {name: tensor + share * (fast[steps - 1][name].double() - tensor) for name, tensor in slow.items()}
    for name, tensor in weights(encoder, True).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), slow[name], rtol=1e-5, atol=1e-6)
    assert same(weights(train(config, few)[0], True), weights(encoder, True))


def test_alternating_flips_mirror_an_image_in_every_other_epoch(few, monkeypatch):
    trainer = make_trainer(replace(TINY, flip=0.5, alternate_flip=True, n_views=2, objective="supcon"), few)
    batch, n = torch.arange(40), len(trainer.x)
    first = trainer.views(batch[None], trainer.x[batch], 0)[0]
    trainer.state.epoch = 1
    second = trainer.views(batch[None], trainer.x[batch], 0)[0]
    trainer.state.epoch = 2
    assert torch.equal(trainer.views(batch[None], trainer.x[batch], 0)[0], first)
    torch.testing.assert_close(second, first.flip(3), rtol=0, atol=1e-6)
    mirrored = trainer.flipped.float().mean(1)
    assert trainer.flipped.shape == (2, n)
    assert ((mirrored > 0.3) & (mirrored < 0.7)).all()
    assert not torch.equal(trainer.flipped[0], trainer.flipped[1])


def test_views_made_together_are_of_the_images_of_each_batch_and_a_later_step_goes_on_with_them(few):
    for objective, n, expected in (("ce", 0, 1), ("ce", 2, 2), ("supcon", 0, 2), ("supcon", 1, 1), ("cider", 3, 3)):
        trainer = make_trainer(replace(TINY, objective=objective, n_views=n, batch_size=16, flip=0.0), few)
        for trainer.at_once in (1, 3):
            seen = list(trainer._batches_and_views())
            assert len(seen) == len(trainer.state.losses) > 4
            for batch, views in seen:
                torch.testing.assert_close(views, trainer.x[batch].repeat(expected, 1, 1, 1) / 255)
    trainer = make_trainer(replace(TINY, batch_size=16, translate=1), few)
    assert trainer.at_once == 1
    trainer.at_once = 3
    whole = list(trainer._batches_and_views())
    for trainer.state.step in range(len(whole)):
        rest = list(trainer._batches_and_views())
        assert len(rest) == len(whole) - trainer.state.step
        for pair, other in zip(rest, whole[trainer.state.step :], strict=True):
            assert all(map(torch.equal, pair, other))
    trainer.device = torch.device("cuda")  # of which nothing but the type is asked
    for trainer.batch_size, expected in ((16, 8), (2**16, 4), (2**20, 1)):  # of 64 pixels each
        assert trainer._at_once() == expected  # as many batches as fit


def test_what_is_frozen_keeps_every_bit(few):
    layers = {"heads": (), "layer3": ("backbone.layer3",)}
    scales = {f"backbone.groups.{g}.norm{k}.weight" for g in range(3) for k in (1, 2)}
    configs = [replace(TINY, objective="joint", trained=trained, epochs=1) for trained in layers]
    for config in (*configs, replace(TINY, arch="airbench_4_8_8", input_size=16, epochs=1)):
        before = weights(make_trainer(config, few).state.encoder, buffers=True)
        after = weights(train(config, few)[0], buffers=True)
        kept = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
        frozen = {"mean", "std", "backbone.whitening", *scales}
        if config.trained in layers:
            trained = (*layers[config.trained], "classifier", "projection")
            frozen = {name for name in before if not name.startswith(trained)}
        assert kept == frozen
    with pytest.raises(ValueError, match="unknown stage 'layer9' .*all, heads, conv1, bn1, layer1.0"):
        make_trainer(replace(TINY, trained="layer9"), few)


def test_frozen_stages_take_images_in_parts_to_the_same_loss(few, float32, monkeypatch):
    losses = []
    for pixels in (2**20, 7 * 8**2):
        monkeypatch.setattr(embedding, "CPU_PIXELS", pixels)
        losses.append(train(replace(TINY, trained="layer3", epochs=2), few)[1][-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("arch", "input_size", "mixed"), [("resnet20", 16, True), ("mobilenetv3_small_050", 32, False)]
)
def test_grouped_convolutions_are_trained_in_float32_on_a_cpu(few, monkeypatch, arch, input_size, mixed):
    monkeypatch.setattr(epoch, "has_fast_bfloat16", lambda device: True)
    trainer = make_trainer(replace(TINY, arch=arch, input_size=input_size), few)
    assert trainer.autocast._enabled is mixed


def test_the_first_layer_of_airbench_is_whitened_for_its_images(few):
    trainer = make_trainer(replace(TINY, arch="airbench_4_8_8", input_size=16), few)
    encoder = trainer.state.encoder
    z = nn.functional.conv2d((trainer.x / 255 - encoder.mean) / encoder.std, encoder.backbone.whitening[:4])
    assert z.square().mean((0, 2, 3)).tolist() == pytest.approx([1] * 4, abs=0.05)


def test_biases_of_normalisation_get_their_factor_of_the_rate_and_all_decay_alike(few, float32):
    plain, favoured = (after_one_step(replace(TINY, norm_bias_factor=f, weight_decay=0.0), few)[3] for f in (1.0, 4.0))
    shifts = {name for name in plain if name.endswith(("bn1.bias", "bn2.bias", "downsample.1.bias"))}
    assert len(shifts) == 21
    for name in plain:
        torch.testing.assert_close(favoured[name], (4 if name in shifts else 1) * plain[name], rtol=1e-4, atol=1e-7)
    groups = make_trainer(replace(TINY, norm_bias_factor=4.0, weight_decay=0.01), few).state.optimizer.param_groups
    assert [group["factor"] * group["weight_decay"] for group in groups] == [0.01, 0.01]


@pytest.mark.parametrize(("cores", "processes", "n"), [(1, 1, 1), (4, 1, 4), (4, 2, 2), (2, 4, 1), (64, 4, 8)])
def test_processes_on_one_machine_share_its_cores_among_their_workers(monkeypatch, cores, processes, n):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert loader.n_workers() == n


def in_a_worker():
    loader._start_worker(0)
    handlers = {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    os._exit(not (decoding.n_threads == 1 and handlers == {signal.SIG_IGN}))


def test_a_worker_decodes_in_one_thread_and_is_deaf_to_signals():
    process = multiprocessing.get_context("fork").Process(target=in_a_worker)
    process.start()
    process.join()
    assert process.exitcode == 0


def drawn(trainer, monkeypatch):
    """Return a list that gets epoch, step, images, seeds and learning rate of every step that the trainer makes."""
    steps, state, step = [], trainer.state, trainer.step

    def noticed(batch, images):
        seeds = trainer.generator.initial_seed(), torch.initial_seed()
        steps.append((state.epoch, state.step, batch.tolist(), seeds, state.optimizer.param_groups[0]["lr"]))
        return step(batch, images)

    monkeypatch.setattr(trainer, "step", noticed)
    return steps


def test_order_and_seeds_are_a_function_of_seed_epoch_and_step(few, monkeypatch):
    whole, later, other = (make_trainer(replace(TINY, seed=seed), few) for seed in (0, 0, 1))
    steps, resumed, others = (drawn(trainer, monkeypatch) for trainer in (whole, later, other))
    for trainer in (whole, other):
        for _ in range(2):
            trainer.epoch(threading.Event())
            trainer.end_epoch()
    later.state.epoch, later.state.step = 1, 1
    later.epoch(threading.Event())
    assert [step[:2] for step in steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert resumed == steps[3:]
    assert len({seed for step in steps + others for seed in step[3]}) == 8  # one a step
    assert not {tuple(step[2]) for step in steps} & {tuple(step[2]) for step in others}


def test_an_epoch_sees_no_image_twice_warms_up_by_the_step_and_has_a_row(few, monkeypatch, capsys):
    trainer = make_trainer(replace(TINY, batch_size=10, lookahead=True, objective="simclr"), few)
    steps = drawn(trainer, monkeypatch)
    trainer.epoch(threading.Event())
    assert sorted(i for step in steps for i in step[2]) == list(range(80))
    assert [step[4] for step in steps] == [learning_rate_at(TINY, k / 8) for k in range(1, 9)]
    losses, trainer.state.seconds = trainer.state.losses.clone(), 0.5
    trainer.end_epoch()
    (row,) = trainer.state.history
    with trainer.autocast:
        z, z_held_out = (embed(trainer.state.encoder, x)[0] for x in (trainer.x, trainer.x_held_out))
    accuracy = knn_accuracy(z, trainer.y.cpu().numpy(), z_held_out, trainer.y_held_out.numpy())
    assert row == {
        "epoch": 1,
        "loss": pytest.approx(losses.mean().item(), rel=1e-6),
        "knn_accuracy": pytest.approx(accuracy),
        "learning_rate": TINY.learning_rate,
        "seconds": 0.5,
        "images_per_second": 2 * 8 * 10 / 0.5,  # two views of the images of eight batches
    }
    assert capsys.readouterr().out.split() == ["1", f"{row['loss']:.4f}", f"{accuracy:.4f}", "0.10000", "0.50", "320"]
    assert (trainer.state.epoch, trainer.state.step, trainer.state.seconds) == (1, 0, 0.0)
