"""Settings of a training run: defaults, what is refused and how it is said, and the schedule by hand."""

import ast
import math
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from oodlib.encoders import TrainingConfig
from oodlib.encoders.optimisation import learning_rate_at
from oodlib.encoders.settings import SHARES, VIEWS

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "01_train.ipynb"


def test_defaults_are_the_parameters_of_notebook_01():
    papermill = pytest.importorskip("papermill")
    found = papermill.inspect_notebook(str(NOTEBOOK))
    defaults = {name: ast.literal_eval(about["default"]) for name, about in found.items()}
    types = {name: about["inferred_type_name"] for name, about in found.items()}
    for field in fields(TrainingConfig):
        assert defaults[field.name] == field.default, field.name
        assert types[field.name] == type(field.default).__name__, field.name
    assert defaults.keys() - asdict(TrainingConfig()).keys() == {"study", "data_root"}  # which decide no weights


def test_parameters_of_a_notebook_are_taken_by_name_and_the_rest_keeps_its_default():
    found = TrainingConfig.from_parameters({"epochs": 3, "half": True, "study": "digits", "__name__": 1, "views": 2})
    assert found == TrainingConfig(epochs=3, half=True)
    assert TrainingConfig.from_parameters({}) == TrainingConfig()
    assert TrainingConfig.from_parameters(asdict(found)) == found
    with pytest.raises(ValueError, match="epochs must be of type int, got '3'"):
        TrainingConfig.from_parameters({"epochs": "3"})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("arch", "resnet21", "unknown arch 'resnet21'; known: airbench, airbench_WIDTH_WIDTH_WIDTH, resnet20"),
        ("arch", "resnet18.nonsense", "unknown arch 'resnet18.nonsense'; known: airbench, "),
        (
            "arch",
            "airbench_32_128",
            "arch 'airbench_32_128': after airbench stand three widths, as in airbench_32_128_128",
        ),
        ("arch", "airbench_0_1_2", "arch 'airbench_0_1_2': after airbench stand three widths"),
        ("arch", "airbench-32-128-128", "arch 'airbench-32-128-128': after airbench stand three widths"),
        ("arch", ["resnet20"], r"arch must be of type str, got \['resnet20'\]"),
        ("objective", "triplet", "unknown objective 'triplet'; known: ce, logitnorm, simclr, supcon, joint, cider$"),
        ("objective", "", "unknown objective ''; known: ce, logitnorm"),
        ("schedule", "step", "unknown schedule 'step'; known: cosine, triangle$"),
        ("norm_bias_factor", 0.0, "norm_bias_factor must be positive, got 0"),
        ("n_views", -1, "n_views must be finite and not negative, got -1"),
        ("translate", 65, r"translate must be a number in \[0, 64\], got 65"),
        ("translate", 1.5, "translate must be of type int, got 1.5"),
        ("alternate_flip", True, "alternate_flip mirrors images: give flip, too, as 0.5$"),
        ("pool", "max", "unknown pool 'max'; known: '', token, avg$"),
        ("epochs", 0, "epochs must be positive, got 0"),
        ("epochs", -1, "epochs must be finite and not negative, got -1"),
        ("epochs", 2.5, "epochs must be of type int, got 2.5"),
        ("batch_size", 0, "batch_size must be positive, got 0"),
        ("batch_size", "64", "batch_size must be of type int, got '64'"),
        ("checkpoint_epochs", 0, "checkpoint_epochs must be positive, got 0"),
        ("snapshot_epochs", -1, "snapshot_epochs must be finite and not negative, got -1"),
        ("learning_rate", 0.0, "learning_rate must be positive, got 0"),
        ("learning_rate", "1e-3", "learning_rate must be of type float, got '1e-3'"),
        ("learning_rate", math.nan, "learning_rate must be finite and not negative, got nan"),
        ("learning_rate", math.inf, "learning_rate must be finite and not negative, got inf"),
        ("weight_decay", -1e-4, "weight_decay must be finite and not negative, got -0.0001"),
        ("warmup_epochs", -2, "warmup_epochs must be finite and not negative, got -2"),
        ("temperature", -0.1, "temperature must be finite and not negative, got -0.1"),
        ("ce_weight", -1.0, "ce_weight must be finite and not negative, got -1.0"),
        ("compactness_weight", math.inf, "compactness_weight must be finite and not negative, got inf"),
        ("clip_norm", -0.5, "clip_norm must be finite and not negative, got -0.5"),
        ("input_size", -8, "input_size must be finite and not negative, got -8"),
        ("patch_size", -4, "patch_size must be finite and not negative, got -4"),
        ("patch_size", 4.0, "patch_size must be of type int, got 4.0"),
        ("seed", -1, "seed must be finite and not negative, got -1"),
        ("seed", None, "seed must be of type int, got None"),
        ("seed", True, "seed must be of type int, got True"),
        ("temperature", False, "temperature must be of type float, got False"),
        ("id_dataset", 10, "id_dataset must be of type str, got 10"),
        ("calibration_fraction", 0.0, "calibration_fraction must be between 0 and 1, got 0.0"),
        ("calibration_fraction", 1, "calibration_fraction must be between 0 and 1, got 1"),
        ("crop", 0.0, r"crop must be a number in \(0, 1\], got 0.0"),
        ("crop", 1.5, r"crop must be a number in \(0, 1\], got 1.5"),
        ("flip", 2, r"flip must be a number in \[0, 1\], got 2"),
        ("jitter", 3.0, r"jitter must be a number in \[0, 1\], got 3.0"),
        ("grayscale", 1.01, r"grayscale must be a number in \[0, 1\], got 1.01"),
        ("rotate", 181.0, r"rotate must be a number in \[0, 180\], got 181.0"),
        ("blur", 1.5, r"blur must be a number in \[0, 1\], got 1.5"),
        ("erase", 2, r"erase must be a number in \[0, 1\], got 2"),
    ],
)
def test_bad_value_is_named_with_the_allowed_ones(name, value, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize("name", ["pretrained", "lookahead", "alternate_flip", "mirrored", "half", "compile"])
@pytest.mark.parametrize("value", [1, 0, 1.0, "true", None], ids=repr)
def test_a_switch_is_true_or_false(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be of type bool, got {value!r}$"):
        TrainingConfig(**{name: value})


def test_shares_are_below_one():
    assert set(SHARES) == {"momentum", "label_smoothing", "prototype_decay"}
    for name in SHARES:
        assert getattr(TrainingConfig(**{name: 0.999}), name) == 0.999
        assert getattr(TrainingConfig(**{name: 0}), name) == 0
        for value in (1, 1.0, 1.5):
            with pytest.raises(ValueError, match=f"^{name} must be below 1, got {value}$"):
                TrainingConfig(**{name: value})


def test_pretrained_needs_weights():
    assert TrainingConfig(arch="wide_resnet50_2", pretrained=True).pretrained
    assert TrainingConfig(arch="vit_tiny_patch16_224", pretrained=True, pool="avg", patch_size=4).patch_size == 4
    with pytest.raises(ValueError, match="^arch 'resnet20' has no pretrained weights in timm; use pretrained: false$"):
        TrainingConfig(arch="resnet20", pretrained=True)


def test_whole_numbers_are_numbers():
    assert TrainingConfig(jitter=0, flip=1, crop=1, temperature=1, weight_decay=0).flip == 1


def test_views_are_those_of_the_configuration():
    chosen = {
        "crop": 0.4,
        "translate": 2,
        "flip": 0.5,
        "jitter": 0.3,
        "grayscale": 0.2,
        "rotate": 15.0,
        "blur": 0.1,
        "erase": 0.25,
    }
    assert chosen.keys() == set(VIEWS)
    views = asdict(TrainingConfig(**chosen).views)
    assert {name: views[name] for name in chosen} == chosen


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
    config = TrainingConfig(epochs=10, warmup_epochs=2, learning_rate=0.4, schedule="cosine")
    assert learning_rate_at(config, epoch) == pytest.approx(0.4 * share, abs=1e-15)


@pytest.mark.parametrize(
    ("epoch", "share"), [(0, 0.2), (1, 0.6), (2, 1.0), (6, 0.535), (10, 0.07), (11, 0.07), (2 + 8 / 93, 0.99)]
)
def test_a_triangle_rises_from_a_fifth_and_falls_straight_to_seven_percent(epoch, share):
    config = TrainingConfig(epochs=10, warmup_epochs=2, learning_rate=0.4, schedule="triangle")
    assert learning_rate_at(config, epoch) == pytest.approx(0.4 * share, abs=1e-15)


@pytest.mark.parametrize("n_views", [1, 3])
def test_simclr_takes_pairs_of_views(n_views):
    said = f"^objective 'simclr' compares two views of an image: n_views is {n_views}$"
    with pytest.raises(ValueError, match=said):
        TrainingConfig(objective="simclr", n_views=n_views)
    assert TrainingConfig(objective="simclr", n_views=2).n_views == TrainingConfig(n_views=2).n_views == 2


def test_learning_rate_without_warmup_starts_at_its_peak_and_with_nothing_else_ends_there():
    for warmup, epoch, rate in ((0, 0, 0.3), (4, 4, 0.3), (8, 4, 0.15)):
        config = TrainingConfig(epochs=4, warmup_epochs=warmup, learning_rate=0.3, schedule="cosine")
        assert learning_rate_at(config, epoch) == rate
