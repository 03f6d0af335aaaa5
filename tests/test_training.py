"""Training on tiny digits: schedule and split by hand, the same seed bit by bit, and clear refusals."""

import ast
import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oodlib import training
from oodlib.data import ImageSet, load_images
from oodlib.losses import nt_xent_loss, supcon_loss
from oodlib.training import (
    OBJECTIVES,
    Objective,
    TrainingConfig,
    encoder_spec,
    learning_rate_at,
    split_calibration,
    train,
)

TINY = TrainingConfig(epochs=1, batch_size=32, input_size=8, warmup_epochs=1)
HISTORY = ["epoch", "loss", "knn_accuracy", "learning_rate", "seconds", "images_per_second"]  # as DESIGN.md has them
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "01_train.ipynb"


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", "train")


@pytest.fixture(scope="module")
def few(digits):
    """Every tenth digit: 89 images of seven classes."""
    return ImageSet(digits.images[::10], digits.labels[::10], digits.classes, "few")


@pytest.fixture(scope="module")
def trained(digits):
    return train(replace(TINY, epochs=3), digits)


def noise(counts, side=4, seed=0):
    """Return random grey images, `counts` of each class, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    images = rng.integers(0, 256, (len(labels), side, side), dtype=np.uint8)
    return ImageSet(images, labels, tuple(f"class {k}" for k in range(len(counts))), "noise")


# Configuration


def test_defaults_are_the_parameters_of_notebook_01():
    papermill = pytest.importorskip("papermill")
    found = papermill.inspect_notebook(str(NOTEBOOK))
    defaults = {name: ast.literal_eval(about["default"]) for name, about in found.items()}
    types = {name: about["inferred_type_name"] for name, about in found.items()}
    for field in fields(TrainingConfig):
        assert defaults[field.name] == field.default, field.name
        assert types[field.name] == type(field.default).__name__, field.name
    assert defaults.keys() - asdict(TrainingConfig()).keys() == {"study", "data_root"}  # which decide no weights


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("arch", "resnet21", "unknown arch 'resnet21'; known: resnet20, resnet18"),
        ("objective", "triplet", "unknown objective 'triplet'; known: ce, simclr, supcon"),
        ("epochs", 0, "epochs must be positive, got 0"),
        ("epochs", -1, "epochs must be finite and not negative, got -1"),
        ("epochs", 2.5, "epochs must be of type int, got 2.5"),
        ("batch_size", 0, "batch_size must be positive, got 0"),
        ("batch_size", "64", "batch_size must be of type int, got '64'"),
        ("learning_rate", 0.0, "learning_rate must be positive, got 0"),
        ("learning_rate", "1e-3", "learning_rate must be of type float, got '1e-3'"),
        ("learning_rate", math.nan, "learning_rate must be finite and not negative, got nan"),
        ("learning_rate", math.inf, "learning_rate must be finite and not negative, got inf"),
        ("weight_decay", -1e-4, "weight_decay must be finite and not negative, got -0.0001"),
        ("warmup_epochs", -2, "warmup_epochs must be finite and not negative, got -2"),
        ("temperature", -0.1, "temperature must be finite and not negative, got -0.1"),
        ("input_size", -8, "input_size must be finite and not negative, got -8"),
        ("seed", -1, "seed must be finite and not negative, got -1"),
        ("seed", None, "seed must be of type int, got None"),
        ("seed", True, "seed must be of type int, got True"),
        ("id_dataset", 10, "id_dataset must be of type str, got 10"),
        ("arch", ["resnet20"], r"arch must be of type str, got \['resnet20'\]"),
        ("calibration_fraction", 0.0, "calibration_fraction must be between 0 and 1, got 0.0"),
        ("calibration_fraction", 1, "calibration_fraction must be between 0 and 1, got 1"),
        ("crop", 0.0, r"crop must be a number in \(0, 1\], got 0.0"),
        ("crop", 1.5, r"crop must be a number in \(0, 1\], got 1.5"),
        ("flip", 2, r"flip must be a number in \[0, 1\], got 2"),
        ("jitter", 3.0, r"jitter must be a number in \[0, 1\], got 3.0"),
        ("grayscale", 1.01, r"grayscale must be a number in \[0, 1\], got 1.01"),
    ],
)
def test_bad_value_is_named_with_the_allowed_ones(name, value, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        TrainingConfig(**{name: value})


def test_whole_numbers_are_numbers():
    assert TrainingConfig(jitter=0, flip=1, crop=1, temperature=1, weight_decay=0).flip == 1


def test_views_are_those_of_the_configuration():
    views = TrainingConfig(crop=0.4, flip=0.5, jitter=0.3, grayscale=0.2).views
    assert (views.crop, views.flip, views.jitter, views.grayscale) == (0.4, 0.5, 0.3, 0.2)


# Schedule


@pytest.mark.parametrize(
    ("epoch", "share"),
    [
        (0, 0.0),
        (0.5, 0.25),
        (1, 0.5),
        (2, 1.0),
        (4, (1 + math.sqrt(0.5)) / 2),  # a quarter of the cosine
        (6, 0.5),
        (8, (1 - math.sqrt(0.5)) / 2),
        (10, 0.0),
        (11, 0.0),
    ],
)
def test_learning_rate_warms_up_and_then_is_half_a_cosine(epoch, share):
    config = TrainingConfig(epochs=10, warmup_epochs=2, learning_rate=0.4)
    assert learning_rate_at(config, epoch) == pytest.approx(0.4 * share, abs=1e-15)


def test_learning_rate_without_warmup_starts_at_its_peak_and_with_nothing_else_ends_there():
    assert learning_rate_at(TrainingConfig(epochs=4, warmup_epochs=0, learning_rate=0.3), 0) == 0.3
    assert learning_rate_at(TrainingConfig(epochs=4, warmup_epochs=4, learning_rate=0.3), 4) == 0.3
    assert learning_rate_at(TrainingConfig(epochs=4, warmup_epochs=8, learning_rate=0.3), 4) == 0.15


# Calibration split


@pytest.mark.parametrize(
    ("fraction", "held_out"), [(0.1, [1, 2, 4]), (0.2, [2, 4, 8]), (0.5, [5, 10, 20]), (0.01, [1, 1, 1])]
)
def test_split_holds_out_the_same_share_of_every_class(fraction, held_out):
    images = noise([10, 20, 40])
    kept, calibration = split_calibration(images, fraction)
    assert np.bincount(images.labels[calibration]).tolist() == held_out
    assert np.array_equal(np.sort(np.concatenate([kept, calibration])), np.arange(70))  # each image on one side
    assert np.array_equal(kept, np.unique(kept))
    assert np.array_equal(calibration, np.unique(calibration))


def test_split_keeps_an_image_of_every_class_for_training():
    images = noise([1, 2, 3])
    for fraction, held_out in ((0.5, [0, 1, 2]), (0.99, [0, 1, 2]), (0.01, [0, 1, 1])):
        calibration = split_calibration(images, fraction)[1]
        assert np.bincount(images.labels[calibration], minlength=3).tolist() == held_out


def test_split_is_drawn_by_its_seed_and_not_by_the_order_of_classes():
    images = noise([30, 30])
    first, again, other = (split_calibration(images, 0.2, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, np.arange(12))  # drawn, not the first ones


def test_calibration_images_are_not_trained_on(few, monkeypatch):
    seen = []
    monkeypatch.setattr(
        training, "_train_epoch", lambda encoder, optimizer, x, y, *_: seen.append((x, y)) or np.ones(1)
    )
    encoder, _ = train(TINY, few)
    kept, _ = split_calibration(few, TINY.calibration_fraction)
    assert torch.equal(seen[0][0].cpu(), encoder.prepare(few.images[kept]))
    assert np.array_equal(seen[0][1].cpu().numpy(), few.labels[kept])


# What the encoder is built from


def test_spec_takes_size_and_channels_of_the_set_and_its_mean_and_spread(few):
    spec = encoder_spec(replace(TINY, objective="supcon"), few)
    assert (spec.arch, spec.heads, spec.side, spec.channels, spec.input_size) == ("resnet20", ("projection",), 8, 1, 8)
    pixels = few.images.astype(np.float64) / 255
    assert spec.mean == pytest.approx([pixels.mean()] * 3, rel=1e-5)
    assert spec.std == pytest.approx([pixels.std(ddof=1)] * 3, rel=1e-5)
    assert encoder_spec(replace(TINY, input_size=0), few).input_size == 8
    assert encoder_spec(replace(TINY, input_size=12), few).input_size == 12


def test_spec_of_colour_images_keeps_its_channels_apart_and_never_divides_by_zero():
    images = np.zeros((6, 4, 4, 3), dtype=np.uint8)
    images[:3, ..., 0], images[..., 2] = 255, 51
    spec = encoder_spec(replace(TINY, input_size=0), ImageSet(images, np.arange(6) % 2, ("a", "b"), "flags"))
    assert (spec.side, spec.channels, spec.input_size) == (4, 3, 4)
    assert spec.mean == pytest.approx([0.5, 0, 0.2], abs=1e-6)
    assert spec.std == pytest.approx([0.5 * math.sqrt(96 / 95), 1e-3, 1e-3], rel=1e-5)


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
    assert (logits.argmax(dim=1).numpy() == test.labels).mean() > 0.9


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


@pytest.mark.parametrize("objective", ["ce", "supcon"])
def test_same_seed_same_bits_other_seed_other_weights(few, objective):
    config = replace(TINY, objective=objective, jitter=0.4, grayscale=0.2)
    first, again, other = (train(replace(config, seed=seed), few) for seed in (3, 3, 4))
    state = first[0].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again[0].state_dict().items())
    assert [row["loss"] for row in first[1]] == [row["loss"] for row in again[1]]
    assert not torch.equal(other[0].state_dict()["backbone.conv1.weight"], state["backbone.conv1.weight"])


def test_order_and_views_are_drawn_by_the_seed(few, monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", lambda _: torch.random.default_generator.manual_seed(5))
    first, other = (train(replace(TINY, seed=seed), few)[1][0]["loss"] for seed in (0, 1))  # from the same weights
    assert first != other


def test_seed_of_the_process_does_not_matter(few):
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        weights.append(train(TINY, few)[0].state_dict()["backbone.conv1.weight"])
    assert torch.equal(*weights)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_the_heads_it_names(few, objective):
    encoder, history = train(replace(TINY, objective=objective), few)
    assert set(encoder.spec.heads) == set(OBJECTIVES[objective].heads)
    assert (encoder.classifier is None) == ("classifier" not in OBJECTIVES[objective].heads)
    assert (encoder.projection is None) == ("projection" not in OBJECTIVES[objective].heads)
    assert math.isfinite(history[0]["loss"])


def test_objectives_are_their_losses_on_the_right_head(few):
    encoder = training.Encoder(replace(encoder_spec(TINY, few), heads=("classifier", "projection")))
    torch.manual_seed(0)
    z, y = torch.randn(8, 64), torch.tensor([0, 1, 2, 0])
    views, labels = encoder.projection(z), y.repeat(2)
    assert OBJECTIVES["simclr"].loss(encoder, z, y, 0.5) == nt_xent_loss(views)
    assert OBJECTIVES["supcon"].loss(encoder, z, y, 0.1) == supcon_loss(views, labels)
    logits = encoder.classifier(z[:4]).double()
    for temperature in (1.0, 0.5):
        expected = -torch.log_softmax(logits / temperature, dim=1)[torch.arange(4), y].mean().item()
        assert OBJECTIVES["ce"].loss(encoder, z[:4], y, temperature).item() == pytest.approx(expected, rel=1e-5)
    usual = {name: OBJECTIVES[name].temperature for name in ("ce", "simclr", "supcon")}
    assert usual == {"ce": 1.0, "simclr": 0.5, "supcon": 0.1}


def test_temperature_zero_takes_the_usual_one(few, monkeypatch):
    seen = []

    def loss(encoder, z, y, temperature):
        seen.append(temperature)
        return z.square().mean()

    monkeypatch.setitem(OBJECTIVES, "ce", Objective(("classifier",), 1, 0.7, loss))
    train(TINY, few)
    train(replace(TINY, temperature=0.3), few)
    assert seen == [0.7, 0.7, 0.3, 0.3]  # 80 images: two batches of 32


def test_a_batch_larger_than_the_set_is_the_set(few):  # of 89 images, less one in ten of each class
    _, history = train(replace(TINY, batch_size=1000), few)
    assert history[0]["images_per_second"] * history[0]["seconds"] == pytest.approx(80)


def test_huge_learning_rate_stops_with_epoch_step_and_what_to_try(few):
    said = r"no longer finite in epoch 1, step 2: try a lower learning_rate than 1e\+30, more warmup_epochs than 0"
    with pytest.raises(FloatingPointError, match=said):
        train(replace(TINY, learning_rate=1e30, warmup_epochs=0), few)


def test_loss_that_turns_nan_stops_at_its_epoch_and_step(few, monkeypatch):
    steps = []

    def loss(encoder, z, y, temperature):
        steps.append(len(steps))
        return z.square().mean() * (math.nan if len(steps) == 6 else 1)  # two steps an epoch

    monkeypatch.setitem(OBJECTIVES, "ce", Objective(("classifier",), 1, 1.0, loss))
    with pytest.raises(FloatingPointError, match="no longer finite in epoch 3, step 2:"):
        train(replace(TINY, epochs=5), few)
    assert len(steps) == 6  # the epochs after it are not trained


@pytest.mark.parametrize(("counts", "said"), [([8], "8 images, 1 classes"), ([1, 1, 1], "3 images, 3 classes")])
def test_set_that_is_too_small(counts, said):
    with pytest.raises(ValueError, match=f"noise is too small to train on: {said}"):
        train(TINY, noise(counts))
