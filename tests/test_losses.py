"""Contrastive losses against plain double loops in float64, and their gradients against finite differences."""

import math

import pytest
import torch

from oodlib.losses import nt_xent_loss, supcon_loss

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 1])  # 2 and 3 have no positive


def embeddings(m=8, d=5, seed=0, dtype=torch.float64):
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loss_by_loops(z, labels, temperature):
    """Khosla et al. 2020, eq. 2, term by term; anchors without a positive left out."""
    rows = []
    for row in z.tolist():
        norm = math.sqrt(sum(x * x for x in row))
        rows.append([x / norm if norm else 0.0 for x in row])
    similarity = [[sum(p * q for p, q in zip(a, b, strict=True)) / temperature for b in rows] for a in rows]
    terms = []
    for i, anchor in enumerate(labels):
        positives = [j for j, label in enumerate(labels) if j != i and label == anchor]
        if not positives:
            continue
        others = [similarity[i][a] for a in range(len(rows)) if a != i]
        largest = max(others)
        log_sum = largest + math.log(sum(math.exp(s - largest) for s in others))
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


def test_values_counted_by_hand():
    # two views each of two images at a right angle: positives at cosine 1, the two others at 0
    z = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 5.0]])
    expected = -math.log(math.e / (math.e + 2))
    assert nt_xent_loss(z, temperature=1.0).item() == pytest.approx(expected, rel=1e-6)
    assert supcon_loss(z, torch.tensor([0, 1, 0, 1]), temperature=1.0).item() == pytest.approx(expected, rel=1e-6)
    # all one class: every other row is a positive, one of three at cosine 1
    expected = math.log(math.e + 2) - 1 / 3
    assert supcon_loss(z, torch.zeros(4, dtype=torch.long), temperature=1.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_gradients_are_finite_differences(temperature):
    z = embeddings(m=6, d=3).requires_grad_()
    y = torch.tensor([0, 1, 0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda x: supcon_loss(x, y, temperature), z)
    assert torch.autograd.gradcheck(lambda x: nt_xent_loss(x, temperature), z)


def test_gradient_at_a_low_temperature_is_finite_and_small_along_the_row():
    z = embeddings().float().requires_grad_()
    supcon_loss(z, LABELS, 0.01).backward()
    assert z.grad.isfinite().all()
    # a loss of unit vectors does not change with length: the gradient is at a right angle to the embedding
    torch.testing.assert_close((z.grad * z).sum(dim=1), torch.zeros(8), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapsed_embeddings_lose_the_log_of_their_number(dtype):
    z = torch.ones(8, 4, dtype=dtype, requires_grad=True)
    for loss in (nt_xent_loss(z, 0.01), supcon_loss(z, torch.arange(4).repeat(2), 0.01)):
        assert loss.item() == pytest.approx(math.log(7), rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(gradient, torch.zeros_like(z), rtol=0, atol=1e-4)


def test_zero_rows_are_at_a_right_angle_to_everything():
    z = embeddings()
    z[[0, 3]] = 0
    z.requires_grad_()
    loss = supcon_loss(z, LABELS, 0.1)
    assert loss.item() == pytest.approx(loss_by_loops(z, LABELS.tolist(), 0.1), rel=1e-12)
    loss.backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("m", [0, 1, 4])
def test_batch_without_positives_has_loss_zero_and_finite_gradients(m):
    z = embeddings(m).requires_grad_()
    loss = supcon_loss(z, torch.arange(m), 0.1)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(z.grad, torch.zeros(m, 5, dtype=torch.float64))


def test_one_image_has_nothing_to_be_told_from():
    z = embeddings(2).requires_grad_()
    loss = nt_xent_loss(z)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    loss.backward()
    assert z.grad.isfinite().all()


def test_anchors_without_a_positive_are_left_out_of_the_mean_but_stay_negatives():
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = supcon_loss(z, torch.tensor([4, 4, 7]), temperature=1.0).item()
    assert found == pytest.approx(math.log(math.e + 1) - 1, rel=1e-12)  # of two anchors; of three it were two thirds


def test_order_of_rows_and_names_of_labels_do_not_matter():
    z, order = embeddings(), torch.tensor([5, 2, 7, 0, 3, 1, 6, 4])
    expected = supcon_loss(z, LABELS).item()
    assert supcon_loss(z[order], LABELS[order]).item() == pytest.approx(expected, rel=1e-12)
    assert supcon_loss(z, 100 - 7 * LABELS).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = embeddings(dtype=dtype)
    for loss, exact in (
        (supcon_loss(z, LABELS), supcon_loss(z.double(), LABELS)),
        (nt_xent_loss(z), nt_xent_loss(z.double())),
    ):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_mixed_precision_does_not_round_the_cosines():
    z = embeddings(m=32, d=16, dtype=torch.float32)
    y = torch.arange(32) % 4
    expected = supcon_loss(z, y, 0.01), nt_xent_loss(z, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        found = supcon_loss(z, y, 0.01), nt_xent_loss(z, 0.01)
    assert found == expected


def test_default_temperatures_are_those_of_the_papers():
    z = embeddings()
    assert supcon_loss(z, LABELS) == supcon_loss(z, LABELS, 0.1)
    assert nt_xent_loss(z) == nt_xent_loss(z, 0.5)


@pytest.mark.parametrize(
    ("z", "y"),
    [((4,), (4,)), ((4, 3), (3,)), ((4, 3), (2,)), ((4, 3), (4, 1)), ((2, 4, 3), (2,))],
)
def test_supcon_refuses_shapes_that_do_not_fit(z, y):
    with pytest.raises(ValueError, match=r"needs z \(m, d\) and y \(m,\), got \("):
        supcon_loss(torch.zeros(z), torch.zeros(y, dtype=torch.long))


@pytest.mark.parametrize("shape", [(3, 5), (4,), (2, 4, 5)])
def test_nt_xent_refuses_what_is_no_two_views(shape):
    with pytest.raises(ValueError, match=r"needs z \(2n, d\), two views of n images, got \("):
        nt_xent_loss(torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0, -0.5])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
        supcon_loss(embeddings(), LABELS, temperature)
    with pytest.raises(ValueError, match="temperature must be positive"):
        nt_xent_loss(embeddings(), temperature)
