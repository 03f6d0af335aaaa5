"""Losses against plain double loops in float64, their gradients against finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from oodlib import losses
from oodlib.losses import compactness_loss, dispersion_loss, logitnorm_loss, nt_xent_loss, supcon_loss

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 1])  # 2 and 3 have no positive


def embeddings(m=8, d=5, seed=0, dtype=torch.float64):
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(z):
    """Return rows (m, d) float64 at unit length; zeros stay zeros."""
    norms = np.linalg.norm(z, axis=-1, keepdims=True)
    return np.divide(z, norms, out=np.zeros_like(z), where=norms > 0)


def loss_by_loops(z, labels, temperature):
    """Khosla et al. 2020, eq. 2, term by term; anchors without a positive left out."""
    rows, terms = unit(z.numpy()), []
    for i, anchor in enumerate(labels):
        similarity = rows @ rows[i] / temperature
        positives = [j for j, label in enumerate(labels) if j != i and label == anchor]
        if positives:
            terms.append(logsumexp(np.delete(similarity, i)) - similarity[positives].mean())
    return np.mean(terms)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("length", [1e-3, 1.0, 40.0])
def test_supcon_and_nt_xent_are_the_plain_loop(temperature, length):
    z = length * embeddings()
    for labels, loss in (
        (LABELS.tolist(), lambda z: supcon_loss(z, LABELS, temperature)),
        ([0, 1, 2, 3, 0, 1, 2, 3], lambda z: nt_xent_loss(z, temperature)),  # the other view is the only positive
    ):
        expected = loss_by_loops(z, labels, temperature)
        assert loss(z).item() == pytest.approx(expected, rel=1e-12)
        assert loss(z.float()).dtype == torch.float32
        assert loss(z.float()).item() == pytest.approx(expected, rel=2e-5)
    assert supcon_loss(z, LABELS) == supcon_loss(z, LABELS, 0.1)  # as in the papers
    assert nt_xent_loss(z) == nt_xent_loss(z, 0.5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_gradients_are_finite_differences(temperature):
    z = embeddings(m=6, d=3).requires_grad_()
    y = torch.tensor([0, 1, 0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda x: supcon_loss(x, y, temperature), z)
    assert torch.autograd.gradcheck(lambda x: nt_xent_loss(x, temperature), z)


def test_zero_rows_are_at_a_right_angle_to_everything_and_without_positives_there_is_no_loss():
    z = embeddings()
    z[[0, 3]] = 0
    z.requires_grad_()
    loss = supcon_loss(z, LABELS, 0.1)
    assert loss.item() == pytest.approx(loss_by_loops(z.detach(), LABELS.tolist(), 0.1), rel=1e-12)
    loss.backward()
    assert z.grad.isfinite().all()
    assert not z.grad[[0, 3]].any()  # which have no direction to turn
    for m in (0, 1, 4):
        z = embeddings(m).requires_grad_()
        loss = supcon_loss(z, torch.arange(m), 0.1)
        assert loss.item() == 0
        loss.backward()
        assert torch.equal(z.grad, torch.zeros(m, 5, dtype=torch.float64))


CLASSES = torch.tensor([0, 1, 0, 2, 1, 0, 4, 1])  # of five: 3 is not in the batch


@pytest.mark.parametrize("temperature", [0.04, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_logitnorm_is_the_plain_loop(temperature, smoothing):
    logits, labels = embeddings(m=6, d=4), [0, 3, 1, 2, 0, 0]
    total = 0.0
    for row, label in zip(logits.numpy(), labels, strict=True):
        scaled = row / math.sqrt(sum(v * v for v in row)) / temperature
        log_prob = scaled - logsumexp(scaled)
        total -= (1 - smoothing) * log_prob[label] + smoothing * log_prob.mean()
    for length, rel in ((1, 1e-9), (7, 1e-6)):
        found = logitnorm_loss(length * logits, torch.tensor(labels), temperature, smoothing)
        assert found.item() == pytest.approx(total / 6, rel=rel)


def test_logitnorm_knows_no_norm_and_survives_rows_of_zeros():
    logits = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    loss = logitnorm_loss(logits, torch.tensor([1, 0]), temperature=1.0)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-0.2)) + math.log(2)) / 2, rel=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0] @ logits.detach()[0] == pytest.approx(0, abs=1e-7)


def make_prototypes(seen=(0, 1, 3), n_classes=5, d=5):
    """Unit vectors for the classes that were seen, zeros for the others."""
    prototypes = torch.zeros(n_classes, d, dtype=torch.float64)
    prototypes[list(seen)] = torch.nn.functional.normalize(embeddings(n_classes, d, seed=7), dim=1)[list(seen)]
    return prototypes


def prototypes_by_loop(prototypes, z, labels, decay):
    """Ming et al. 2023, eq. 6, one embedding after another in the order of the batch."""
    rows = prototypes.numpy().copy()
    for row, label in zip(unit(z.numpy()), labels, strict=True):
        rows[label] = unit(decay * rows[label] + (1 - decay) * row)
    return torch.from_numpy(rows)


def dispersion_by_loops(prototypes, temperature):
    """Ming et al. 2023, eq. 5, over the classes that were seen."""
    seen = prototypes[prototypes.any(dim=1)].numpy()
    terms = [logsumexp(np.delete(seen @ row, i) / temperature) for i, row in enumerate(seen)]
    return np.mean(terms) - math.log(len(seen) - 1)


def compactness_by_loops(z, labels, prototypes, temperature):
    """Ming et al. 2023, eq. 4, over the classes that were seen."""
    seen, terms = prototypes.any(dim=1).numpy(), []
    for row, label in zip(unit(z.numpy()), labels, strict=True):
        similarity = prototypes.numpy() @ row / temperature
        terms.append(logsumexp(similarity[seen]) - similarity[label])
    return np.mean(terms)


def cider(z, y, prototypes, temperature=0.1, decay=0.95, weight=2.0):
    """The three functions as the objective joins them."""
    prototypes = losses.update_prototypes(prototypes, z, y, decay)
    return dispersion_loss(prototypes, temperature) + weight * compactness_loss(z, y, prototypes, temperature)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("n", [8, 200])  # a sort may lose the order from 17 elements on
@pytest.mark.parametrize("length", [1e-3, 1.0, 40.0])
def test_prototypes_move_one_embedding_after_another(decay, n, length):
    z, before = length * embeddings(n), make_prototypes()
    y = torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(1))]
    expected = prototypes_by_loop(before, z, y.tolist(), decay)
    found = losses.update_prototypes(before, z, y, decay)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert torch.equal(found[3], before[3])  # not in the batch
    found = losses.update_prototypes(before.float(), z.float(), y, decay)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


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
def test_gradients_of_cider_are_finite_differences_and_compactness_holds_the_prototypes(decay):
    z, before = embeddings().requires_grad_(), make_prototypes()
    assert torch.autograd.gradcheck(lambda x: losses.update_prototypes(before, x, CLASSES, decay), z)
    assert torch.autograd.gradcheck(
        lambda x: dispersion_loss(losses.update_prototypes(before, x, CLASSES, decay), 0.1), z
    )
    every = make_prototypes((0, 1, 2, 3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: dispersion_loss(p, 0.1), every)
    held = losses.update_prototypes(before, z, CLASSES, decay)
    assert torch.autograd.gradcheck(lambda x: compactness_loss(x, CLASSES, held.detach(), 0.1), z)
    found, expected = (
        torch.autograd.grad(compactness_loss(z, CLASSES, p, 0.1), z, retain_graph=True) for p in (held, held.detach())
    )
    assert torch.equal(*found, *expected)


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


def test_an_embedding_opposite_to_its_prototype_leaves_it():
    before, y = torch.eye(2), torch.tensor([0, 1])
    z = torch.tensor([[-3.0, 0.0], [0.0, 2.0]], requires_grad=True)
    assert losses.update_prototypes(before, z, y, decay=0.5).equal(before)  # half of each is nothing
    cider(z, y, before, decay=0.5).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("zeros", [[], [0, 3, 6]])  # one of class 0, and the only ones of 2 and 4, never seen before
def test_cider_is_the_plain_loops_and_embeddings_of_zeros_move_nothing(zeros):
    z = embeddings()
    z[zeros] = 0
    z.requires_grad_()
    before, labels = make_prototypes(), CLASSES.tolist()
    after = prototypes_by_loop(before, z.detach(), labels, 0.5)
    torch.testing.assert_close(losses.update_prototypes(before, z, CLASSES, 0.5), after, rtol=0, atol=1e-14)
    assert after[[2, 4]].any() == (not zeros)
    loss = cider(z, CLASSES, before, decay=0.5)
    kept = [i for i in range(8) if i not in zeros[1:]]  # embeddings of a class without a prototype are left out
    compactness = compactness_by_loops(z.detach()[kept], CLASSES[kept].tolist(), after, 0.1)
    assert loss.item() == pytest.approx(dispersion_by_loops(after, 0.1) + 2 * compactness, rel=1e-12)
    loss.backward()
    assert z.grad.isfinite().all()
    assert not z.grad[zeros].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_and_mixed_precision_are_computed_in_float32(dtype):
    y, before = torch.arange(32) % 4, make_prototypes()
    functions = (
        lambda z: supcon_loss(z, y, 0.01),
        lambda z: nt_xent_loss(z, 0.01),
        lambda z: cider(z, y, before.to(torch.promote_types(z.dtype, torch.float32)), 0.01),
    )
    for loss in functions:
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
    labels = torch.zeros(y, dtype=torch.long)
    with pytest.raises(ValueError, match="supcon_loss needs"):
        supcon_loss(torch.zeros(z), labels)
    for shapes in ((z, y, (2, 3)), ((4, 3), (4,), (2, 4)), ((4, 3), (4,), (3,))):
        given, labels, prototypes = (torch.zeros(shape) for shape in shapes)
        for loss in (lambda *of: losses.update_prototypes(of[2], *of[:2], 0.5), lambda *of: compactness_loss(*of, 0.1)):
            with pytest.raises(ValueError, match=r"needs z \(m, d\), y \(m,\) and prototypes \(C, d\)"):
                loss(given, labels.long(), prototypes)


@pytest.mark.parametrize("temperature", [0, -0.5])
def test_temperatures_and_odd_views_are_refused(temperature):
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
    for shape in ((3, 5), (4,), (2, 4, 5)):
        with pytest.raises(ValueError, match="nt_xent_loss needs"):
            nt_xent_loss(torch.zeros(shape))
