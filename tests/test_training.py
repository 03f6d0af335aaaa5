"""Training on tiny digits: split and spec by hand, the same seed bit by bit, what it writes, and clear refusals."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PLAIN
from PIL import Image

from oodlib.data import ImageSet, folders, load_images, prepare
from oodlib.data.sets import split_calibration
from oodlib.encoders import OBJECTIVES, Objective, TrainingConfig, load_encoder, training
from oodlib.encoders.epoch import Trainer
from oodlib.encoders.training import CHECKPOINT, SNAPSHOTS, encoder_spec, make_trainer, snapshots_of, train

TINY = TrainingConfig(**PLAIN | {"epochs": 1, "batch_size": 32, "input_size": 8, "warmup_epochs": 1})
SMALL = replace(TINY, arch="airbench_4_8_8", input_size=16)  # the smallest network
HISTORY = ["epoch", "loss", "knn_accuracy", "learning_rate", "seconds", "images_per_second"]  # as DESIGN.md has them


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", "train")


@pytest.fixture(scope="module")
def trained(digits):
    return train(replace(TINY, epochs=3), digits)


def noise(counts, side=4, seed=0):
    """Return random grey images, `counts` of each class, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    images = rng.integers(0, 256, (len(labels), side, side), dtype=np.uint8)
    return ImageSet(images, labels, tuple(f"class {k}" for k in range(len(counts))), "noise")


def same(encoder, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


# Calibration split


@pytest.mark.parametrize(
    ("counts", "fraction", "held_out"),
    [
        ([10, 20, 40], 0.1, [1, 2, 4]),
        ([10, 20, 40], 0.5, [5, 10, 20]),
        ([10, 20, 40], 0.01, [1, 1, 1]),
        ([1, 2, 3], 0.99, [0, 1, 2]),  # an image of every class stays
        ([1, 2, 3], 0.01, [0, 1, 1]),
    ],
)
def test_split_holds_out_the_same_share_of_every_class(counts, fraction, held_out):
    images = noise(counts)
    kept, calibration = split_calibration(images, fraction)
    assert np.bincount(images.labels[calibration], minlength=3).tolist() == held_out
    assert np.array_equal(np.sort(np.concatenate([kept, calibration])), np.arange(sum(counts)))  # each on one side
    assert (np.diff(kept) > 0).all()
    assert (np.diff(calibration) > 0).all()
    assert np.array_equal(calibration, split_calibration(images, fraction)[1])
    if len(images.labels) > 6:
        assert not np.array_equal(calibration, split_calibration(images, fraction, seed=1)[1])


def test_calibration_images_are_not_trained_on(few):
    trainer = make_trainer(TINY, few)
    kept, held_out = split_calibration(few, TINY.calibration_fraction)
    prepare = trainer.state.encoder.prepare
    assert torch.equal(trainer.x.cpu(), prepare(few.images[kept]))
    assert np.array_equal(trainer.y.cpu().numpy(), few.labels[kept])
    shown = {image.tobytes() for image in trainer.x_held_out.numpy()}
    assert shown == {image.tobytes() for image in prepare(few.images[held_out]).numpy()}
    assert sorted(trainer.y_held_out.tolist()) == sorted(few.labels[held_out])


# What the encoder is built from


def test_spec_takes_size_and_channels_of_the_set_and_its_mean_and_spread(few):
    spec = encoder_spec(replace(TINY, objective="supcon"), few)
    assert (spec.arch, spec.heads, spec.side, spec.channels, spec.input_size) == ("resnet20", ("projection",), 8, 1, 8)
    pixels = few.images.astype(np.float64) / 255
    assert spec.mean == pytest.approx([pixels.mean()] * 3, rel=1e-5)
    assert spec.std == pytest.approx([pixels.std(ddof=1)] * 3, rel=1e-5)
    assert [encoder_spec(replace(TINY, input_size=size), few).input_size for size in (0, 12)] == [8, 12]
    images = np.zeros((6, 4, 4, 3), dtype=np.uint8)  # channels are kept apart, and nothing is divided by zero
    images[:3, ..., 0], images[..., 2] = 255, 51
    spec = encoder_spec(replace(TINY, input_size=0), ImageSet(images, np.arange(6) % 2, ("a", "b"), "flags"))
    assert (spec.side, spec.channels, spec.input_size) == (4, 3, 4)
    assert spec.mean == pytest.approx([0.5, 0, 0.2], abs=1e-6)
    assert spec.std == pytest.approx([0.5 * math.sqrt(96 / 95), 1e-3, 1e-3], rel=1e-5)


def test_colours_of_a_large_set_are_measured_block_by_block(monkeypatch):
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (50, 6, 6, 3), dtype=np.uint8), np.arange(50) % 2, ("a", "b"), "colours")
    for config in (replace(TINY, input_size=6), replace(TINY, input_size=11)):
        whole, sizes = encoder_spec(config, images), []
        with monkeypatch.context() as patch:
            patch.setattr(training, "prepare", lambda x, *form, sizes=sizes: sizes.append(len(x)) or prepare(x, *form))
            patch.setattr(training, "WHOLE_PIXELS", 32 * config.input_size**2)  # in blocks of two
            blocks = encoder_spec(config, images)
        assert sizes == [2] * 25
        assert blocks.mean == pytest.approx(whole.mean, rel=1e-6)
        assert blocks.std == pytest.approx(whole.std, rel=1e-6)


def test_spec_of_pretrained_weights_takes_their_mean_and_spread_and_their_stem(few):
    spec = encoder_spec(replace(TINY, arch="resnet18", pretrained=True), few)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's
    assert not spec.small_stem
    spec = encoder_spec(replace(TINY, arch="vit_tiny_patch16_224", patch_size=4, pool="avg"), few)
    assert (spec.patch_size, spec.pool, spec.small_stem) == (4, "avg", True)


# Training


def test_three_epochs_of_cross_entropy_tell_digits_apart(trained, digits):
    encoder, history = trained
    assert not encoder.training
    assert history[-1]["knn_accuracy"] > 0.93  # 0.97 to 1.00 over seeds; chance is 0.14
    assert history[-1]["loss"] < history[0]["loss"] < math.log(7)
    test = load_images("digits", "test")
    with torch.inference_mode():
        images = encoder.prepare(test.images).float() / 255
        logits = encoder.cpu().classifier(encoder(images))
    assert (logits.argmax(dim=1).numpy() == test.labels).mean() > 0.85  # 0.88 to 0.97


def test_history_is_one_row_an_epoch_and_is_printed(trained, few, capsys):
    _, history = trained
    assert [list(row) for row in history] == [HISTORY] * 3
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [row["learning_rate"] for row in history] == pytest.approx([0.1, 0.05, 0], abs=1e-12)
    for row in history:  # 797 training images: 24 whole batches of 32
        assert row["images_per_second"] * row["seconds"] == pytest.approx(24 * 32)
    _, history = train(replace(TINY, objective="simclr"), few)
    assert history[0]["images_per_second"] * history[0]["seconds"] == pytest.approx(2 * 2 * 32)  # 80 images, two views
    header, row = capsys.readouterr().out.splitlines()
    assert header.replace("images/s", "images_per_second").split() == HISTORY
    assert row.split()[0] == "1"
    assert float(row.split()[1]) == pytest.approx(history[0]["loss"], abs=1e-4)
    assert len(row) == len(header)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_its_heads_and_the_same_seed_gives_the_same_bits(few, objective):
    config = replace(SMALL, objective=objective, jitter=0.4, grayscale=0.2)
    before = dict(make_trainer(config, few).state.encoder.named_parameters())
    encoder, history = train(config, few)
    assert encoder.spec.heads == OBJECTIVES[objective].heads
    assert not [name for name, weight in encoder.named_parameters() if torch.equal(weight, before[name])]
    assert math.isfinite(history[0]["loss"])
    torch.manual_seed(5)  # the generators of the process play no part
    assert same(encoder, train(config, few)[0])
    assert not same(encoder, train(replace(config, seed=4), few)[0])


# What it writes


def test_checkpoints_and_snapshots_are_written_when_they_are_due(few, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "oodlib.encoders.training.save_checkpoint", lambda path, state, config: written.append(state.epoch)
    )
    train(replace(SMALL, epochs=5, checkpoint_epochs=2, snapshot_epochs=3), few, tmp_path)
    assert written == [2, 4]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == [f"{SNAPSHOTS}/0003.safetensors"]
    train(replace(SMALL, epochs=3, checkpoint_epochs=4), few, tmp_path / "short")
    assert written == [2, 4]


def test_a_snapshot_is_the_encoder_after_its_epoch(few, tmp_path):
    config = replace(SMALL, epochs=3, snapshot_epochs=1, lookahead=True)
    encoder, _ = train(config, few, tmp_path)
    trainer = make_trainer(config, few)
    for epoch in (1, 2, 3):
        trainer.epoch(threading.Event())
        trainer.end_epoch()
        assert same(trainer.state.encoder, load_encoder(tmp_path / SNAPSHOTS / f"{epoch:04d}.safetensors"))
    assert same(trainer.state.encoder, encoder)


def test_snapshots_that_a_kill_or_another_training_left_are_no_part_of_the_next(few, tmp_path):
    folder = tmp_path / SNAPSHOTS
    folder.mkdir()
    for name in ("0001.safetensors", "0004.safetensors", "0002.partial-0123456789ab.safetensors"):
        (folder / name).touch()
    assert [path.stem for path in snapshots_of(tmp_path)] == ["0001", "0004"]
    train(replace(SMALL, epochs=2, snapshot_epochs=1), few, tmp_path)
    assert [path.stem for path in snapshots_of(tmp_path)] == ["0001", "0002"]
    assert sorted(path.name for path in folder.iterdir()) == ["0001.safetensors", "0002.safetensors"]
    assert snapshots_of(tmp_path / "none") == []


# Refusals


def test_weights_that_break_without_a_loss_that_tells_are_said_as_a_loss_is(few, tmp_path, monkeypatch):
    step, end_epoch = Trainer.step, Trainer.end_epoch

    def breaking(trainer, *batch):
        loss = step(trainer, *batch)
        if (trainer.state.epoch, trainer.state.step) == (1, 1):  # the last of the last epoch
            trainer.state.encoder.state_dict()["classifier.weight"][0, 0] = math.nan
        return loss

    def enlarged(trainer):
        for part in ("bias", "weight"):
            trainer.state.encoder.state_dict()[f"backbone.layer3.2.bn2.{part}"].fill_(3e38)
        end_epoch(trainer)

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(FloatingPointError, match="the weights are no longer finite in epoch 2, step 2"):
        train(replace(SMALL, epochs=2, checkpoint_epochs=5), few, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Trainer, "end_epoch", enlarged)
    said = "^the embeddings are no longer finite in epoch 1, step 2: try a lower learning_rate than 0.1, more"
    with pytest.raises(FloatingPointError, match=said):
        train(TINY, few)


def test_loss_that_turns_nan_stops_at_its_epoch_and_step_also_when_resumed(few, tmp_path, monkeypatch):
    steps, broken = [], [6, 8]

    def loss(heads, y, temperature, config, memory):
        steps.append(len(steps))
        return heads["classifier"].square().mean() * (math.nan if len(steps) in broken else 1)  # two steps an epoch

    monkeypatch.setitem(OBJECTIVES, "ce", Objective(("classifier",), 1, 1.0, loss))
    for n_steps in broken:  # the second call goes on after epoch 2
        with pytest.raises(FloatingPointError, match="the loss is no longer finite in epoch 3, step 2: try a lower"):
            train(replace(SMALL, epochs=5), few, tmp_path)
        assert len(steps) == n_steps  # the epochs after it are not trained
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    monkeypatch.setattr("oodlib.encoders.epoch.LOOK", 5)  # in a long epoch it is seen before the end
    broken.append(len(steps) + 4)
    with pytest.raises(FloatingPointError, match="the loss is no longer finite in epoch 1, step 4:"):
        train(replace(SMALL, batch_size=4), few)  # twenty steps
    assert len(steps) == 8 + 5


def test_set_that_is_too_small_and_a_rate_that_is_too_large(few):
    for counts, said in (([8], "8 images, 1 classes"), ([1, 1, 1], "3 images, 3 classes")):
        with pytest.raises(ValueError, match=f"noise is too small to train on: {said}"):
            train(TINY, noise(counts))
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 2: try a lower learning_rate than 1e\+30"):
        train(replace(TINY, learning_rate=1e30, warmup_epochs=0), few)


def test_images_that_stay_in_files_give_the_weights_of_those_in_memory(few, tmp_path, monkeypatch):
    for i, (image, label) in enumerate(zip(few.images, few.labels, strict=True)):
        path = tmp_path / "train" / str(label) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    config = replace(SMALL, objective="simclr", jitter=0.4)
    in_memory = load_images(f"folder:{tmp_path}@8", "train")
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 1000)
    in_files = load_images(f"folder:{tmp_path}@8", "train")
    assert isinstance(in_files.images, folders.FolderImages)
    (first, history), (other, history_other) = (train(config, images) for images in (in_memory, in_files))
    assert same(first, other)
    assert [row["loss"] for row in history] == [row["loss"] for row in history_other]
    assert other.spec == first.spec
    monkeypatch.setattr(training, "SPEC_IMAGES", 30)  # colours of a part of them are close to those of all
    assert encoder_spec(config, in_files).mean == pytest.approx(first.spec.mean, abs=0.05)
    assert encoder_spec(config, in_memory) == first.spec
