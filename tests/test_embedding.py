"""Embeddings: the same whatever the batches; the neighbours' vote against scikit-learn; files that are wrong."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from oodlib.encoders import (
    Encoder,
    EncoderSpec,
    embed,
    embed_images,
    embedding,
    knn_accuracy,
    linear_probe,
    load_embeddings,
    save_embeddings,
)


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


# embed


def test_embeddings_are_the_backbones_output_and_logits_the_classifiers(encoder, images):
    z, logits = embed(encoder, images)
    assert (z.shape, z.dtype, logits.shape, logits.dtype) == ((11, 64), np.float32, (11, 3), np.float32)
    with torch.inference_mode():
        expected = encoder.eval().backbone((images.float() / 255 - 0.5) / 0.25)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
    weight, bias = (p.detach().double().numpy() for p in encoder.classifier.parameters())
    np.testing.assert_allclose(logits, z @ weight.T + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 11, 1000])
def test_batches_do_not_matter(encoder, images, batch_size):
    for whole, parts in zip(embed(encoder, images), embed(encoder, images, batch_size), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


def test_embedding_is_in_evaluation_mode_and_changes_nothing(encoder, images):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    first = embed(encoder.train(), images)[0]
    assert not encoder.training
    assert np.array_equal(first, embed(encoder, images)[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("heads", [(), ("projection",)])
def test_without_a_classifier_there_are_no_logits(images, heads):
    z, logits = embed(build(heads), images)
    assert logits is None
    assert z.shape == (11, 64)  # before the projection, not after it


def test_nothing_to_embed(encoder, images):
    with pytest.raises(ValueError, match="no images to embed"):
        embed(encoder, images[:0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite(images, value):
    encoder = build()
    encoder.state_dict()["backbone.layer3.2.bn2.bias"][5] = value
    with pytest.raises(FloatingPointError, match="embeddings that are not finite; was its training cut short"):
        embed(encoder, images)


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


# Nearest neighbours


def on_circle(*degrees):
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_vote_counted_by_hand():
    z_train, y_train = on_circle(0, 10, 20, 90, 100), np.array([0, 1, 1, 2, 2])
    z = on_circle(1, 14, 95, 50)
    # one neighbour: 0° → 0, 10° → 1, 90° or 100° → 2, 20° → 1
    assert knn_accuracy(z_train, y_train, z, np.array([0, 1, 2, 1]), n_neighbors=1) == 1
    assert knn_accuracy(z_train, y_train, z, np.array([1, 1, 2, 2]), n_neighbors=1) == 0.5
    # three neighbours of 1°: 0° weighs e^(0.9998 / 0.07), less than those of 10° and 20°, e^(0.9877 / 0.07) and
    # e^(0.9455 / 0.07), together: 1 : 0.84 + 0.46
    assert knn_accuracy(z_train, y_train, z[:1], np.array([1]), n_neighbors=3) == 1
    # two neighbours: 0° alone weighs more than 10° alone
    assert knn_accuracy(z_train, y_train, on_circle(0), np.array([0]), n_neighbors=2) == 1


@pytest.mark.parametrize("n_neighbors", [1, 5, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vote_is_scikit_learns(n_neighbors, dtype):
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


def test_vote_of_fewer_images_than_neighbours_and_of_unseen_classes():
    z_train, y_train = on_circle(0, 5, 180), np.array([0, 0, 1])
    assert knn_accuracy(z_train, y_train, on_circle(2, 170), np.array([0, 1])) == 1
    assert knn_accuracy(z_train, y_train, on_circle(2, 170), np.array([0, 7])) == 0.5


# Files


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


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-test.npz"):
        load_embeddings(tmp_path / "nothing-test.npz")


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.95, -1])
def test_truncated_file(tmp_path, arrays, kept):
    path = tmp_path / "z.npz"
    save_embeddings(path, **arrays)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="z.npz is no npz file, or is cut short: "):
        load_embeddings(path)


def test_file_with_a_flipped_byte(tmp_path, arrays):
    path = tmp_path / "z.npz"
    save_embeddings(path, **arrays)
    content = bytearray(path.read_bytes())
    content[content.index(arrays["z"].tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="z.npz is no npz file, or is cut short: .*CRC"):
        load_embeddings(path)


@pytest.mark.parametrize("kind", ["text", "npy", "pickle", "folder"])
def test_foreign_file(tmp_path, kind):
    path = tmp_path / "z.npz"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("z,y\n0.1,3\n")
    else:
        with open(path, "wb") as file:
            np.save(file, np.zeros(3) if kind == "npy" else np.array([{"z": 0}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="z.npz is no npz file, or is cut short"):
        load_embeddings(path)


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "z.npz", z=np.zeros((2, 3)), y=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match="z.npz is no npz file, .*allow_pickle=False"):
        load_embeddings(tmp_path / "z.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"z": None},
        {"y": None},
        {"z": np.zeros(6)},
        {"z": np.zeros((6, 2, 2))},
        {"y": np.arange(5)},
        {"y": np.arange(6)[:, None]},
        {"y": np.array(3)},
    ],
)
def test_arrays_that_are_no_embeddings_with_their_labels(tmp_path, arrays, changes):
    kept = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez(tmp_path / "z.npz", **kept)
    with pytest.raises(ValueError, match=r"z.npz does not hold embeddings z \(n, d\) and labels y \(n,\)"):
        load_embeddings(tmp_path / "z.npz")


@pytest.mark.parametrize("shape", [(5, 3), (6,), (7, 3), ()])
def test_logits_of_another_number_of_images(tmp_path, arrays, shape):
    save_embeddings(tmp_path / "z.npz", arrays["z"], arrays["y"], np.zeros(shape))
    with pytest.raises(ValueError, match=r"z.npz does not hold logits \(n, C\) of its 6 embeddings"):
        load_embeddings(tmp_path / "z.npz")


@pytest.mark.parametrize("name", ["z", "logits"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_values_that_are_not_finite(tmp_path, arrays, name, value):
    arrays[name][2, 1] = value
    save_embeddings(tmp_path / "z.npz", **arrays)
    with pytest.raises(ValueError, match="z.npz holds values that are not finite"):
        load_embeddings(tmp_path / "z.npz")


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
    from oodlib.encoders import embedding

    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("resnet20", ("a", "b"), ("classifier",), 8, 1, 8, (0.3,) * 3, (0.3,) * 3))
    images = np.random.default_rng(0).integers(0, 256, (25, 12, 9, 3), dtype=np.uint8)
    whole = embed(encoder, encoder.prepare(images))
    monkeypatch.setattr(embedding, "BLOCK", 10)
    for part, expected in zip(embed_images(encoder, images), whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-5)
    encoder.classifier = None
    assert embed_images(encoder, images)[1] is None


def test_a_vote_in_blocks_is_the_vote_of_all(monkeypatch):
    rng = np.random.default_rng(0)
    z_train, z = rng.normal(size=(300, 8)).astype(np.float32), rng.normal(size=(105, 8)).astype(np.float32)
    y_train, y = rng.integers(5, size=300), rng.integers(5, size=105)
    for n_neighbors in (1, 20, 400):
        whole = knn_accuracy(z_train, y_train, z, y, n_neighbors)
        for neighbors in (30_000, 300, 299, 37, 1):
            monkeypatch.setattr(embedding, "VOTERS", 10)
            monkeypatch.setattr(embedding, "NEIGHBORS", neighbors)
            assert knn_accuracy(z_train, y_train, z, y, n_neighbors) == whole
        monkeypatch.undo()
        assert 0 < whole < 1
