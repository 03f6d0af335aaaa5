"""Mistakes of earlier code on drawn embeddings, each made again in the test."""

import numpy as np
import pytest

from oodlib.metrics import auroc
from oodlib.scoring.product import Embedded, RunEmbeddings
from oodlib.study.ablations import COLUMNS, ablation_table


def draw(n, seed, shift=0.0, dim=5):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    z = 2 * np.eye(dim)[y] + rng.normal(size=(n, dim)) * np.linspace(0.5, 1.5, dim) + shift
    return Embedded(z.astype(np.float32), y)


@pytest.fixture(scope="module")
def data():
    return RunEmbeddings(draw(300, 0), draw(30, 1), draw(90, 2), {"near": draw(60, 3, 0.5), "far": draw(60, 4, 3)})


def test_true_labels_make_id_images_look_less_normal(data):
    table = ablation_table(data)
    assert list(table) == COLUMNS
    wrong = table[(table.mistake == "true label") & (table.distance == "mahalanobis")].set_index("ood_dataset")
    means = np.stack([data.train.z[data.train.y == c].mean(axis=0, dtype=np.float64) for c in range(3)])
    within = sum(np.cov(data.train.z[data.train.y == c].T, bias=True) for c in range(3)) / 3

    def to_all(z):
        apart = z[:, None] - means
        return np.einsum("ncd,de,nce->nc", apart, np.linalg.inv(within), apart)

    own = to_all(data.test.z)[np.arange(90), data.test.y]
    for name, ood in data.ood.items():
        nearest = -to_all(ood.z).min(axis=1)
        assert wrong.right[name] == pytest.approx(auroc(-to_all(data.test.z).min(axis=1), nearest), abs=1e-3)
        assert wrong.wrong[name] == pytest.approx(auroc(-own, nearest), abs=1e-3)
    assert wrong.wrong["near"] < wrong.right["near"]


def test_plain_inverse_is_harmless_where_nothing_is_singular(data):
    plain = ablation_table(data).query("mistake == 'plain inverse'")
    assert plain.ood_dataset.tolist() == ["near", "far"]
    np.testing.assert_allclose(plain.wrong, plain.right, atol=2e-3)


def test_plain_inverse_of_a_singular_covariance_is_missing_or_wrong(data):
    def padded(embedded):  # a dimension that never changes
        return Embedded(np.pad(embedded.z, ((0, 0), (0, 1))), embedded.y)

    ood = {name: padded(embedded) for name, embedded in data.ood.items()}
    table = ablation_table(RunEmbeddings(*(padded(e) for e in (data.train, data.calibration, data.test)), ood))
    plain, before = (t.query("mistake == 'plain inverse'") for t in (table, ablation_table(data)))
    np.testing.assert_allclose(plain.right, before.right, atol=1e-3)
    assert plain.wrong.isna().all()


def test_plain_inverse_of_classes_smaller_than_the_space_is_wrong():
    """Forty dimensions and 32 images a class: the right distance falls back on the tied covariance."""
    sets = [draw(n, seed, shift, dim=40) for n, seed, shift in ((300, 0, 0), (30, 1, 0), (90, 2, 0), (60, 3, 1.5))]
    table = ablation_table(RunEmbeddings(*sets[:3], {"near": sets[3]}))
    few = table[table.mistake == "plain inverse, 32 images a class"]
    assert few.distance.tolist() == ["mahalanobis-cluster"]
    assert few.right.item() > 0.85
    assert np.isnan(few.wrong.item()) or few.wrong.item() < few.right.item() - 0.1
