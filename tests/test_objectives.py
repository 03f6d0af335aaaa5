"""Objectives as the trainer calls them: each loss counted by hand from its heads, and what CIDER remembers."""

import math

import pytest
import torch

from oodlib.encoders import OBJECTIVES, Encoder, EncoderSpec, TrainingConfig
from oodlib.encoders.objectives import Prototypes

LOGITS = [[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [1.0, -1.0, 3.0], [0.0, 0.0, 0.25]]  # two views each of two images
RIGHT, UP = [3.0, 0.0], [0.0, 0.5]  # projections: their length does not matter


def spec(heads=("classifier", "projection"), n_classes=3, projection_dim=2):
    classes = tuple(f"class {k}" for k in range(n_classes))
    return EncoderSpec("resnet20", classes, heads, 8, 3, 8, (0.5,) * 3, (0.25,) * 3, projection_dim)


def loss_of(objective, y, temperature=None, memory=None, projection=None, logits=None, **settings):
    heads = {"projection": projection, "classifier": logits}
    heads = {name: torch.tensor(rows) for name, rows in heads.items() if rows is not None}
    chosen = OBJECTIVES[objective]
    config = TrainingConfig(objective=objective, **settings)
    return chosen.loss(heads, torch.tensor(y), temperature or chosen.temperature, config, memory)


def cross_entropy_by_loop(logits, labels, temperature=1.0, smoothing=0.0):
    """Minus the log-probabilities, weighted 1 - ε at the label and ε / C everywhere (Szegedy et al. 2016)."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        log_sum = math.log(sum(math.exp(x / temperature) for x in row))
        for k, x in enumerate(row):
            weight = (1 - smoothing) * (k == label) + smoothing / len(row)
            total += weight * (log_sum - x / temperature)
    return total / len(logits)


def test_what_each_objective_trains_sees_and_remembers():
    table = {
        "ce": (("classifier",), 1, 1.0, False),
        "logitnorm": (("classifier",), 1, 0.04, False),
        "simclr": (("projection",), 2, 0.5, False),
        "supcon": (("projection",), 2, 0.1, False),
        "joint": (("classifier", "projection"), 2, 0.1, False),
        "cider": (("projection",), 2, 0.1, True),
    }
    assert table == {name: (o.heads, o.n_views, o.temperature, o.memory is not None) for name, o in OBJECTIVES.items()}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_the_formula(temperature, smoothing):
    found = loss_of("ce", [0, 1, 0, 2], temperature, logits=LOGITS, label_smoothing=smoothing)
    expected = cross_entropy_by_loop(LOGITS, [0, 1, 0, 2], temperature, smoothing)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
def test_simclr_and_supcon_pull_views_of_an_image_and_of_a_class_together(temperature):
    views = [RIGHT, UP, RIGHT, UP]  # cosine 1 to the other view, 0 to the two of the other image
    expected = pytest.approx(math.log1p(2 * math.exp(-1 / temperature)), rel=1e-5, abs=1e-6)
    assert loss_of("simclr", [0, 0], temperature, projection=views).item() == expected
    assert loss_of("supcon", [0, 1], temperature, projection=views).item() == expected
    found = loss_of("supcon", [1, 1], temperature, projection=views).item()
    # of three positives, two are at a right angle
    assert found == pytest.approx(math.log1p(2 * math.exp(-1 / temperature)) + 2 / (3 * temperature), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_joint_is_supcon_and_cross_entropy_on_both_views(weight, smoothing):
    settings = {"ce_weight": weight, "label_smoothing": smoothing}
    found = loss_of("joint", [0, 1], 0.5, projection=[RIGHT, UP, RIGHT, UP], logits=LOGITS, **settings)
    # the temperature is that of the contrastive part alone
    expected = math.log1p(2 * math.exp(-2)) + weight * cross_entropy_by_loop(LOGITS, [0, 1, 0, 1], 1.0, smoothing)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def cider_by_hand(angle, temperature, weight):
    """CIDER for the views right, up, up, up of classes 0, 1, 0, 1: prototype 0 ends at `angle` degrees, 1 is up."""
    along, across = math.cos(math.radians(angle)), math.sin(math.radians(angle))  # prototype 0 · right, · up
    cosines = [(along, 0.0), (1.0, across), (across, 1.0), (1.0, across)]  # to the own prototype, to the other
    compactness = sum(math.log1p(math.exp((other - own) / temperature)) for own, other in cosines) / 4
    return across / temperature + weight * compactness


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_cider_moves_its_prototypes_from_batch_to_batch(temperature, weight):
    memory = Prototypes(3, 2)
    assert torch.equal(memory.values, torch.zeros(3, 2))
    # halfway to each projection in turn: right, then up; again from there; the third class has no image
    for angle in (45.0, (45.0 / 2 + 90) / 2):
        settings = {"prototype_decay": 0.5, "compactness_weight": weight}
        found = loss_of("cider", [0, 1], temperature, memory, [RIGHT, UP, UP, UP], **settings)
        assert found.item() == pytest.approx(cider_by_hand(angle, temperature, weight), rel=1e-5)
        turned = math.radians(angle)
        expected = torch.tensor([[math.cos(turned), math.sin(turned)], [0.0, 1.0], [0.0, 0.0]])
        torch.testing.assert_close(memory.values, expected)


def test_cider_remembers_values_and_not_how_they_came_about():
    memory = Prototypes(3, 4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # a second backward pass through the first batch would be an error
        heads = {"projection": torch.randn(6, 4, generator=generator).requires_grad_()}
        loss = OBJECTIVES["cider"].loss(heads, torch.tensor([0, 2, 0]), 0.1, TrainingConfig(), memory)
        loss.backward()
        assert heads["projection"].grad.isfinite().all()
        assert not memory.values.requires_grad
    assert not list(memory.parameters())
    torch.testing.assert_close(memory.values.norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_heads_of_an_encoder_learn(name, dtype):
    torch.manual_seed(0)
    objective = OBJECTIVES[name]
    encoder = Encoder(spec(objective.heads, projection_dim=16))
    memory = objective.memory(encoder) if objective.memory else None
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        heads = encoder.outputs(encoder(torch.rand(6 * objective.n_views, 3, 8, 8)))
    assert {out.dtype for out in heads.values()} == {dtype}
    heads = {head: out.float() for head, out in heads.items()}
    loss = objective.loss(heads, y, objective.temperature, TrainingConfig(objective=name), memory)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    loss.backward()
    for parameter, tensor in encoder.named_parameters():
        assert tensor.grad.isfinite().all(), parameter
    for head in objective.heads:
        assert all(tensor.grad.any() for tensor in getattr(encoder, head).parameters()), head
    assert encoder.backbone.conv1.weight.grad.any()
