"""Losses against plain double loops in float64, their gradients against finite differences."""

import math

import pytest
import torch

from oodlib.losses import (
    compactness_loss,
    dispersion_loss,
    logitnorm_loss,
    nt_xent_loss,
    supcon_loss,
    update_prototypes,
)

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 1])  # 2 and 3 have no positive


def embeddings(m=8, d=5, seed=0, dtype=torch.float64):
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(row):
    norm = math.sqrt(sum(x * x for x in row))
    return [x / norm if norm else 0.0 for x in row]


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def log_sum_exp(values):
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))


def loss_by_loops(z, labels, temperature):
    """Khosla et al. 2020, eq. 2, term by term; anchors without a positive left out."""
    rows = [unit(row) for row in z.tolist()]
    similarity = [[dot(a, b) / temperature for b in rows] for a in rows]
    terms = []
    for i, anchor in enumerate(labels):
        positives = [j for j, label in enumerate(labels) if j != i and label == anchor]
        if not positives:
            continue
        log_sum = log_sum_exp([similarity[i][a] for a in range(len(rows)) if a != i])
        terms.append(-sum(similarity[i][p] - log_sum for p in positives) / len(positives))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("length", [1e-3, 1.0, 40.0])
def test_supcon_is_the_plain_loop(temperature, length):
    z = embeddings()
    expected = loss_by_loops(z, LABELS.tolist(), temperature)
    assert supcon_loss(length * z, LABELS, temperature).item() == pytest.approx(expected, rel=1e-12)
    found = supcon_loss((length * z).float(), LABELS, temperature)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_nt_xent_is_the_plain_loop_with_the_other_view_as_only_positive(temperature):
    z = embeddings()
    expected = loss_by_loops(z, [0, 1, 2, 3, 0, 1, 2, 3], temperature)
    assert nt_xent_loss(z, temperature).item() == pytest.approx(expected, rel=1e-12)
    assert nt_xent_loss(z.float(), temperature).item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_gradients_are_finite_differences(temperature):
    z = embeddings(m=6, d=3).requires_grad_()
    y = torch.tensor([0, 1, 0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda x: supcon_loss(x, y, temperature), z)
    assert torch.autograd.gradcheck(lambda x: nt_xent_loss(x, temperature), z)


def test_zero_rows_are_at_a_right_angle_to_everything():
    z = embeddings()
    z[[0, 3]] = 0
    z.requires_grad_()
    loss = supcon_loss(z, LABELS, 0.1)
    assert loss.item() == pytest.approx(loss_by_loops(z, LABELS.tolist(), 0.1), rel=1e-12)
    loss.backward()
    assert z.grad.isfinite().all()
    assert not z.grad[[0, 3]].any()  # which have no direction to turn


@pytest.mark.parametrize("m", [0, 1, 4])
def test_batch_without_positives_has_loss_zero_and_finite_gradients(m):
    z = embeddings(m).requires_grad_()
    loss = supcon_loss(z, torch.arange(m), 0.1)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(z.grad, torch.zeros(m, 5, dtype=torch.float64))


def test_anchors_without_a_positive_are_left_out_of_the_mean_but_stay_negatives():
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = supcon_loss(z, torch.tensor([4, 4, 7]), temperature=1.0).item()
    assert found == pytest.approx(math.log(math.e + 1) - 1, rel=1e-12)  # of two anchors; of three it were two thirds


def test_default_temperatures_are_those_of_the_papers():
    z = embeddings()
    assert supcon_loss(z, LABELS) == supcon_loss(z, LABELS, 0.1)
    assert nt_xent_loss(z) == nt_xent_loss(z, 0.5)


CLASSES = torch.tensor([0, 1, 0, 2, 1, 0, 4, 1])  # of five: 3 is not in the batch


@pytest.mark.parametrize("temperature", [0.04, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_logitnorm_is_the_plain_loop(temperature, smoothing):
    logits, labels = embeddings(m=6, d=4), [0, 3, 1, 2, 0, 0]
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        scaled = [value / math.sqrt(sum(v * v for v in row)) / temperature for value in row]
        log_prob = [value - log_sum_exp(scaled) for value in scaled]
        total -= (1 - smoothing) * log_prob[label] + smoothing * sum(log_prob) / 4
    found = logitnorm_loss(logits, torch.tensor(labels), temperature, smoothing)
    assert found.item() == pytest.approx(total / 6, rel=1e-9)
    assert logitnorm_loss(7 * logits, torch.tensor(labels), temperature, smoothing).item() == pytest.approx(total / 6)


def test_logitnorm_knows_no_norm_and_survives_rows_of_zeros():
    logits = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    loss = logitnorm_loss(logits, torch.tensor([1, 0]), temperature=1.0)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-0.2)) + math.log(2)) / 2, rel=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0] @ logits.detach()[0] == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match="^temperature must be positive, got 0$"):
        logitnorm_loss(logits, torch.tensor([1, 0]), temperature=0)


def make_prototypes(seen=(0, 1, 3), n_classes=5, d=5):
    """Unit vectors for the classes that were seen, zeros for the others."""
    prototypes = torch.zeros(n_classes, d, dtype=torch.float64)
    prototypes[list(seen)] = torch.nn.functional.normalize(embeddings(n_classes, d, seed=7), dim=1)[list(seen)]
    return prototypes


def prototypes_by_loop(prototypes, z, labels, decay):
    """Ming et al. 2023, eq. 6, one embedding after another in the order of the batch."""
    rows = [list(row) for row in prototypes.tolist()]
    for row, label in zip(z.tolist(), labels, strict=True):
        pairs = zip(rows[label], unit(row), strict=True)
        rows[label] = unit([decay * old + (1 - decay) * new for old, new in pairs])
    return torch.tensor(rows, dtype=torch.float64)


def dispersion_by_loops(prototypes, temperature):
    """Ming et al. 2023, eq. 5, over the classes that were seen."""
    seen = [row for row in prototypes.tolist() if any(row)]
    terms = []
    for i, row in enumerate(seen):
        others = [dot(row, other) / temperature for j, other in enumerate(seen) if j != i]
        terms.append(log_sum_exp(others) - math.log(len(others)))
    return sum(terms) / len(terms)


def compactness_by_loops(z, labels, prototypes, temperature):
    """Ming et al. 2023, eq. 4, over the classes that were seen."""
    rows = prototypes.tolist()
    terms = []
    for row, label in zip(z.tolist(), labels, strict=True):
        similarity = {c: dot(unit(row), other) / temperature for c, other in enumerate(rows) if any(other)}
        terms.append(log_sum_exp(list(similarity.values())) - similarity[label])
    return sum(terms) / len(terms)


def cider(z, y, prototypes, temperature=0.1, decay=0.95, weight=2.0):
    """The three functions as the objective joins them."""
    prototypes = update_prototypes(prototypes, z, y, decay)
    return dispersion_loss(prototypes, temperature) + weight * compactness_loss(z, y, prototypes, temperature)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("order", [range(8), range(7, -1, -1), [5, 2, 7, 0, 3, 1, 6, 4]], ids=str)
@pytest.mark.parametrize("length", [1e-3, 1.0, 40.0])
def test_prototypes_move_one_embedding_after_another(decay, order, length):
    z, y, before = length * embeddings()[list(order)], CLASSES[list(order)], make_prototypes()
    expected = prototypes_by_loop(before, z, y.tolist(), decay)
    found = update_prototypes(before, z, y, decay)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert torch.equal(found[3], before[3])  # not in the batch
    found = update_prototypes(before.float(), z.float(), y, decay)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_prototypes_keep_the_order_of_a_large_batch():  # a sort may lose it from 17 elements on
    z, before = embeddings(200), make_prototypes()
    y = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(1))
    expected = prototypes_by_loop(before, z, y.tolist(), 0.5)
    torch.testing.assert_close(update_prototypes(before, z, y, 0.5), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("length", [1e-3, 1.0, 40.0])
def test_dispersion_and_compactness_are_the_plain_loops(temperature, length):
    z, labels = length * embeddings(), [0, 1, 0, 3, 1, 0, 3, 1]
    y, prototypes = torch.tensor(labels), make_prototypes()
    for rel, dtype in ((1e-12, torch.float64), (2e-5, torch.float32)):
        found = dispersion_loss(prototypes.to(dtype), temperature)
        assert found.dtype == dtype
        assert found.item() == pytest.approx(dispersion_by_loops(prototypes, temperature), rel=rel)
        found = compactness_loss(z.to(dtype), y, prototypes.to(dtype), temperature)
        assert found.dtype == dtype
        assert found.item() == pytest.approx(compactness_by_loops(z, labels, prototypes, temperature), rel=rel)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_gradients_of_cider_are_finite_differences(decay):
    z, before = embeddings().requires_grad_(), make_prototypes()
    constants = make_prototypes((0, 1, 2, 4))
    assert torch.autograd.gradcheck(lambda x: update_prototypes(before, x, CLASSES, decay), z)
    assert torch.autograd.gradcheck(lambda x: dispersion_loss(update_prototypes(before, x, CLASSES, decay), 0.1), z)
    assert torch.autograd.gradcheck(lambda x: compactness_loss(x, CLASSES, constants, 0.1), z)
    every = make_prototypes((0, 1, 2, 3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: dispersion_loss(p, 0.1), every)


def test_cider_is_the_plain_loops_and_compactness_holds_the_prototypes():
    z, before, labels = embeddings().requires_grad_(), make_prototypes(), CLASSES.tolist()
    moved = prototypes_by_loop(before, z.detach(), labels, 0.5)
    expected = dispersion_by_loops(moved, 0.1) + 2 * compactness_by_loops(z.detach(), labels, moved, 0.1)
    assert cider(z, CLASSES, before, decay=0.5).item() == pytest.approx(expected, rel=1e-12)
    held = update_prototypes(before, z, CLASSES, 0.5)
    found = torch.autograd.grad(compactness_loss(z, CLASSES, held, 0.1), z)[0]
    expected = torch.autograd.grad(compactness_loss(z, CLASSES, held.detach(), 0.1), z)[0]
    assert torch.equal(found, expected)  # no gradient through the prototypes; each part is a finite difference above


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_one_class_is_neither_dispersed_nor_told_from_others(dtype, temperature):
    for n_classes in (1, 3):
        z = embeddings(dtype=dtype).requires_grad_()
        y, prototypes = torch.zeros(8, dtype=torch.long), torch.zeros(n_classes, 5, dtype=dtype)
        loss = cider(z, y, prototypes, temperature)
        assert loss.item() == 0
        loss.backward()
        assert not z.grad.any()


def test_embeddings_of_zeros_move_nothing_and_get_no_gradient():
    z = embeddings()
    z[[0, 3, 6]] = 0  # one of class 0, and the only ones of 2 and 4, which were never seen
    z.requires_grad_()
    before = make_prototypes()
    after = update_prototypes(before, z, CLASSES, 0.5)
    torch.testing.assert_close(after, prototypes_by_loop(before, z.detach(), CLASSES.tolist(), 0.5), rtol=0, atol=1e-14)
    assert not after[[2, 4]].any()
    loss = cider(z, CLASSES, before, decay=0.5)
    kept = [0, 1, 2, 4, 5, 7]  # embeddings of a class without a prototype are left out
    compactness = compactness_by_loops(z.detach()[kept], CLASSES[kept].tolist(), after, 0.1)
    assert loss.item() == pytest.approx(dispersion_by_loops(after, 0.1) + 2 * compactness, rel=1e-12)
    loss.backward()
    assert z.grad[[1, 2, 4, 5, 7]].isfinite().all()
    assert not z.grad[[0, 3, 6]].any()


def test_an_embedding_opposite_to_its_prototype_leaves_it():
    before = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z = torch.tensor([[-3.0, 0.0], [0.0, 2.0]], requires_grad=True)
    assert update_prototypes(before, z, torch.tensor([0, 1]), decay=0.5).equal(before)  # half of each is nothing
    cider(z, torch.tensor([0, 1]), before, decay=0.5).backward()
    assert z.grad.isfinite().all()


# All of them


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_and_mixed_precision_are_computed_in_float32(dtype):
    y, before = torch.arange(32) % 4, make_prototypes()
    losses = (
        lambda z: supcon_loss(z, y, 0.01),
        lambda z: nt_xent_loss(z, 0.01),
        lambda z: cider(z, y, before.to(torch.promote_types(z.dtype, torch.float32)), 0.01),
    )
    for loss in losses:
        z = embeddings(32, dtype=dtype).requires_grad_()
        found = loss(z)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(loss(z.detach().double()).item(), rel=1e-5)
        found.backward()
        assert z.grad.isfinite().all()
        with torch.autocast("cpu", torch.bfloat16):
            assert loss(z.detach().float()) == loss(z.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_collapsed_embeddings_have_a_finite_loss_and_no_gradient(dtype):
    z, y = torch.ones(8, 4, dtype=dtype, requires_grad=True), torch.arange(4).repeat(2)
    for loss, expected in (
        (nt_xent_loss(z, 0.01), math.log(7)),
        (supcon_loss(z, y, 0.01), math.log(7)),
        (cider(z, y, torch.zeros(4, 4), 0.01), 100 + 2 * math.log(4)),  # cosines of 1, one class in four
    ):
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        (gradient,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(gradient, torch.zeros_like(z), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("z", "y"), [((4,), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1)), ((2, 4, 3), (2,))])
def test_shapes_that_do_not_fit_are_refused(z, y):
    y = torch.zeros(y, dtype=torch.long)
    with pytest.raises(ValueError, match="supcon_loss needs"):
        supcon_loss(torch.zeros(z), y)
    for loss in (lambda *of: update_prototypes(of[2], *of[:2], 0.5), lambda *of: compactness_loss(*of, 0.1)):
        with pytest.raises(ValueError, match=r"needs z \(m, d\), y \(m,\) and prototypes \(C, d\)"):
            loss(torch.zeros(z), y, torch.zeros(2, 3))
        for prototypes in ((2, 4), (3,)):
            with pytest.raises(ValueError, match="prototypes"):
                loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), torch.zeros(prototypes))
    for shape in ((3, 5), (4,), (2, 4, 5)):
        with pytest.raises(ValueError, match="nt_xent_loss needs"):
            nt_xent_loss(torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0, -0.5])
def test_temperature_must_be_positive(temperature):
    z, prototypes = embeddings(), make_prototypes((0, 1, 2, 4))
    for loss in (
        lambda: supcon_loss(z, LABELS, temperature),
        lambda: nt_xent_loss(z, temperature),
        lambda: logitnorm_loss(z, LABELS, temperature),
        lambda: dispersion_loss(prototypes, temperature),
        lambda: compactness_loss(z, CLASSES, prototypes, temperature),
    ):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
            loss()
