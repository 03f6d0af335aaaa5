"""Settings: defaults, what is refused, and the learning rate by hand."""

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
        assert (defaults[field.name], types[field.name]) == (field.default, type(field.default).__name__)
    assert defaults.keys() - asdict(TrainingConfig()).keys() == {"study", "data_root"}  # which decide no weights


def test_parameters_of_a_notebook_are_taken_by_name_and_the_rest_keeps_its_default():
    found = TrainingConfig.from_parameters({"epochs": 3, "half": True, "study": "digits", "__name__": 1, "views": 2})
    assert found == TrainingConfig(epochs=3, half=True)
    assert TrainingConfig.from_parameters(asdict(found)) == found


BAD = {
    "arch": ["resnet21", "resnet18.nonsense", "airbench_32_128", "airbench_0_1_2", "airbench-32-128-128", ["resnet20"]],
    "objective": ["triplet", ""],
    "schedule": ["step"],
    "pool": ["max"],
    "id_dataset": [10],
    "epochs": [0, -1, 2.5, "3"],
    "batch_size": [0],
    "checkpoint_epochs": [0],
    "snapshot_epochs": [-1],
    "learning_rate": [0.0, "1e-3", math.nan, math.inf],
    "weight_decay": [-1e-4],
    "norm_bias_factor": [0.0],
    "temperature": [-0.1, False],
    "clip_norm": [-0.5],
    "patch_size": [-4, 4.0],
    "seed": [-1, None, True],
    "calibration_fraction": [0.0, 1],
    "translate": [65, 1.5],
    "crop": [0.0, 1.5],
    "rotate": [181.0],
    **{name: [-0.5, 1.01] for name in ("flip", "jitter", "grayscale", "blur", "erase")},
    **{name: [1, 0.0, "true", None] for name in ("pretrained", "lookahead", "mirrored", "half")},
    **{name: [1, 1.0, 1.5] for name in SHARES},
    "alternate_flip": [1, True],  # without flip
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        TrainingConfig(**{name: value})


def test_the_allowed_values_are_named():
    with pytest.raises(ValueError, match="known: ce, logitnorm, simclr, supcon, joint, cider$"):
        TrainingConfig(objective="triplet")
    with pytest.raises(ValueError, match="known: airbench, airbench_WIDTH_WIDTH_WIDTH, resnet20"):
        TrainingConfig(arch="resnet21")
    for n_views in (1, 3):
        with pytest.raises(ValueError, match=f"'simclr' compares two views .*{n_views}"):
            TrainingConfig(objective="simclr", n_views=n_views)


def test_good_values_at_the_edge_are_taken():
    assert TrainingConfig(jitter=0, flip=1, crop=1, temperature=1, weight_decay=0).flip == 1  # whole numbers, too
    assert TrainingConfig(**dict.fromkeys(SHARES, 0.999)).momentum == 0.999
    assert TrainingConfig(objective="simclr", n_views=2).n_views == 2
    assert TrainingConfig(arch="wide_resnet50_2", pretrained=True).pretrained
    with pytest.raises(ValueError, match="'resnet20' has no pretrained weights"):
        TrainingConfig(arch="resnet20", pretrained=True)


def test_views_are_those_of_the_configuration():
    chosen = dict.fromkeys(VIEWS, 0.25) | {"translate": 2}
    views = asdict(TrainingConfig(**chosen).views)
    assert {name: views[name] for name in chosen} == chosen


HALF = math.sqrt(0.5)  # the cosine of a quarter of the way
SHARES_AT = {
    "cosine": {0: 0, 0.5: 0.25, 1: 0.5, 2: 1, 4: (1 + HALF) / 2, 6: 0.5, 8: (1 - HALF) / 2, 10: 0, 11: 0},
    "triangle": {0: 0.2, 1: 0.6, 2: 1, 6: 0.535, 10: 0.07, 11: 0.07, 2 + 8 / 93: 0.99},
}


@pytest.mark.parametrize("schedule", SHARES_AT)
def test_the_learning_rate_warms_up_and_comes_down(schedule):
    config = TrainingConfig(epochs=10, warmup_epochs=2, learning_rate=0.4, schedule=schedule)
    for epoch, share in SHARES_AT[schedule].items():
        assert learning_rate_at(config, epoch) == pytest.approx(0.4 * share, abs=1e-15)


def test_a_warm_up_may_be_none_or_all():
    for warmup, epoch, rate in ((0, 0, 0.3), (4, 4, 0.3), (8, 4, 0.15)):
        config = TrainingConfig(epochs=4, warmup_epochs=warmup, learning_rate=0.3, schedule="cosine")
        assert learning_rate_at(config, epoch) == rate
