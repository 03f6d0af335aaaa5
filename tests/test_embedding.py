"""Embeddings: the same whatever the batches; the neighbours' vote against scikit-learn; files that are wrong."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from oodlib.encoders import Encoder, EncoderSpec, embedding
from oodlib.encoders.embedding import embed, embed_images, knn_accuracy, linear_probe, load_embeddings, save_embeddings


def build(heads=("classifier",)):
    torch.manual_seed(0)
    spec = EncoderSpec("resnet20", ("a", "b", "c"), heads, 8, 1, 8, (0.5,) * 3, (0.25,) * 3)
    encoder = Encoder(spec).to(memory_format=torch.channels_last)
    encoder.train()(torch.rand(16, 3, 8, 8))  # batch statistics that are not the initial ones
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return build()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8, generator=generator)


def test_embeddings_are_the_backbones_output_and_logits_the_classifiers_and_nothing_changes(encoder, images):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    z, logits = embed(encoder.train(), images)
    assert not encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert (z.shape, z.dtype, logits.shape, logits.dtype) == ((11, 64), np.float32, (11, 3), np.float32)
    with torch.inference_mode():
        expected = encoder.backbone((images.float() / 255 - 0.5) / 0.25)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
    weight, bias = (p.detach().double().numpy() for p in encoder.classifier.parameters())
    np.testing.assert_allclose(logits, z @ weight.T + bias, rtol=1e-4, atol=1e-5)


def test_on_a_gpu_convolutions_are_of_float32_and_the_same_every_time():
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.enabled
    with embedding._exactly(torch.device("cuda")):
        assert (cudnn.allow_tf32, cudnn.deterministic, cudnn.enabled) == (False, True, True)
    assert (cudnn.allow_tf32, cudnn.deterministic, cudnn.enabled) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_embeddings_on_a_gpu_are_those_of_the_cpu(encoder, images):
    on_gpu = build().to("cuda")
    np.testing.assert_allclose(embed(on_gpu, images)[0], embed(encoder, images)[0], rtol=1e-4, atol=1e-5)


def test_without_a_classifier_there_are_no_logits_and_without_images_or_numbers_an_error(images):
    headless = build(("projection",))
    z, logits = embed(headless, images)
    assert (z.shape, logits) == ((11, 64), None)  # before the projection, not after it
    with pytest.raises(ValueError, match="no images"):
        embed(headless, images[:0])
    headless.state_dict()["backbone.layer3.2.bn2.bias"][5] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        embed(headless, images)


def on_circle(*degrees):
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_vote_counted_by_hand():
    z_train, y_train = on_circle(0, 10, 20, 90, 100), np.array([0, 1, 1, 2, 2])
    z = on_circle(1, 14, 95, 50)
    # one neighbour: 0° → 0, 10° → 1, 90° or 100° → 2, 20° → 1
    assert knn_accuracy(z_train, y_train, z, np.array([0, 1, 2, 1]), n_neighbors=1) == 1
    assert knn_accuracy(z_train, y_train, z, np.array([1, 1, 2, 2]), n_neighbors=1) == 0.5
    # three neighbours of 1°: e^(0.9998 / 0.07) : e^(0.9877 / 0.07) + e^(0.9455 / 0.07) = 1 : 0.84 + 0.46
    assert knn_accuracy(z_train, y_train, z[:1], np.array([1]), n_neighbors=3) == 1
    # fewer images than neighbours, and a class that is not among them
    assert knn_accuracy(z_train, y_train, on_circle(2, 170), np.array([1, 7]), n_neighbors=20) == 0.5


@pytest.mark.parametrize("n_neighbors", [1, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vote_is_scikit_learns(n_neighbors, dtype, monkeypatch):
    monkeypatch.setattr(embedding, "VOTERS", 30)  # at a time, of 80
    rng = np.random.default_rng(0)
    z_train, z = rng.normal(size=(150, 4)).astype(dtype), rng.normal(size=(80, 4)).astype(dtype)
    y_train, y = ((a[:, 0] > 0.2) * 1 + (a[:, 1] > 0) + rng.integers(0, 2, len(a)) for a in (z_train, z))
    peer = KNeighborsClassifier(
        n_neighbors, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(z_train.astype(np.float64), y_train)
    accuracy = knn_accuracy(z_train, y_train, z, y, n_neighbors)
    assert accuracy == pytest.approx(peer.score(z.astype(np.float64), y), abs=1e-12)
    assert 0.3 < accuracy < 0.8  # a case in which the vote matters
    scale = np.linspace(0.1, 9, 80, dtype=dtype)[:, None]
    assert knn_accuracy(z_train, y_train, scale * z, y, n_neighbors) == accuracy  # by cosine: no length


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    z, logits = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)
    return {"z": z, "y": np.arange(6) - 1, "logits": logits}


@pytest.mark.parametrize("names", [("z", "y"), ("z", "y", "logits")])
def test_arrays_come_back_as_they_were_written(tmp_path, arrays, names):
    path = tmp_path / "new" / "digits-test.npz"
    save_embeddings(path, *(arrays[name] for name in names))
    found = load_embeddings(str(path))
    assert tuple(found) == names
    for name in names:
        assert found[name].dtype == arrays[name].dtype
        assert np.array_equal(found[name], arrays[name])
    assert [p.name for p in path.parent.iterdir()] == ["digits-test.npz"]


def test_files_without_whole_embeddings_are_named(tmp_path, arrays):
    path = tmp_path / "z.npz"
    with pytest.raises(FileNotFoundError, match="z.npz"):
        load_embeddings(path)
    save_embeddings(path, **arrays)
    content = path.read_bytes()
    at = content.index(arrays["z"].tobytes()) + 7
    changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    for wrong in (b"", content[:100], content[:-1], changed, b"z,y\n0.1,3\n"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="z.npz"):
            load_embeddings(path)
    for name, wrong in (
        *((name, None) for name in ("z", "y")),
        *(("z", z) for z in (np.zeros(6), np.full((6, 4), math.nan))),
        *(("y", y) for y in (np.arange(5), np.arange(6)[:, None], np.array(3), np.array([{}] * 6, dtype=object))),
        *(("logits", logits) for logits in (np.zeros((5, 3)), np.zeros(6), np.full((6, 3), -math.inf))),
        ("own", np.zeros(5)),
    ):
        np.savez(path, **{key: array for key, array in (arrays | {name: wrong}).items() if array is not None})
        with pytest.raises(ValueError, match="z.npz"):
            load_embeddings(path)


def test_linear_probe_minimises_the_penalised_log_loss_of_standardised_embeddings():
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rng = np.random.default_rng(0)
    y_train = np.arange(60) % 3
    z_train, z = (rng.normal(size=(n, 4)) * [1, 10, 0.1, 1] + [0, 50, 0, 0] for n in (60, 500))
    z_train[:, :2] += 2 * np.eye(3)[y_train][:, :2] * [1, 10]
    z_train[:, 3], z[:, 3] = 7, 7  # a dimension that never changes
    mean, spread = z_train.mean(axis=0), np.where(z_train.std(axis=0) > 0, z_train.std(axis=0), 1)

    def logits(parameters, embeddings):
        weight, bias = parameters[:12].reshape(4, 3), parameters[12:]
        return (embeddings - mean) / spread @ weight + bias

    def loss(parameters):
        return (
            0.5 * (parameters[:12] ** 2).sum() - log_softmax(logits(parameters, z_train), 1)[range(60), y_train].sum()
        )

    best = minimize(loss, np.zeros(15), tol=1e-9).x
    labels = linear_probe(z_train, y_train, z)
    assert (labels == logits(best, z).argmax(axis=1)).mean() > 0.99  # both stop a hair before the minimum
    assert min(np.bincount(labels)) > 25


def test_images_are_embedded_block_by_block_as_all_at_once(monkeypatch):
    encoder = build()
    images = np.random.default_rng(0).integers(0, 256, (25, 12, 9, 3), dtype=np.uint8)
    whole = embed(encoder, encoder.prepare(images))
    monkeypatch.setattr(embedding, "BLOCK", 10)
    for parts in (embed_images(encoder, images), embed(encoder, encoder.prepare(images), batch_size=4)):
        for part, expected in zip(parts, whole, strict=True):
            np.testing.assert_allclose(part, expected, atol=1e-5)
    encoder.classifier = None
    assert embed_images(encoder, images)[1] is None
