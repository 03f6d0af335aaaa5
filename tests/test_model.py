"""Models against embed and the detector's own methods, hand-counted decisions, and graphs that left Python."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError
from torch import nn

from oodlib.app import OODModel
from oodlib.app.model import OUTPUTS, count_at_most
from oodlib.data.decoding import photo_square
from oodlib.encoders import Encoder, EncoderSpec, embed, save_encoder
from oodlib.scoring import DISTANCES, THRESHOLDS, ClusterDetector, KNNDetector, OutlierExposureDetector, ViMDetector

pytestmark = pytest.mark.filterwarnings("ignore:nothing is rejected")  # of few images, clusters have fewer

PIXELS = EncoderSpec("resnet20", ("ant", "bee", "cat"), ("classifier",), 2, 3, 2, (0.0,) * 3, (1 / 255,) * 3)
RESNET = replace(PIXELS, side=8, input_size=16, mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.1))
WEIGHT, BIAS = np.random.default_rng(4).normal(size=(3, 12)) / 255, np.arange(3.0)
OTHERS = {"knn": KNNDetector(7), "vim": ViMDetector(WEIGHT, BIAS, 5), "residual": ViMDetector(n_components=5)}
TOLERANCE = {KNNDetector: 1e-6}  # it computes in float32 whatever the embeddings are
CENTERS = np.random.default_rng(99).uniform(60, 190, size=(3, 2, 2, 3))
FREE = {"x": {0: torch.export.Dim("n")}}


def embeddings(encoder, images, dtype=np.float64):
    return embed(encoder, encoder.prepare(images))[0].astype(dtype)


def make_encoder(heads=("classifier",)):
    """Return an encoder whose embeddings (n, 12) are the pixels of 2×2 images."""
    torch.manual_seed(0)
    encoder = Encoder(replace(PIXELS, heads=heads))
    encoder.backbone, encoder.dim = nn.Flatten(), 12
    encoder.classifier = nn.Linear(12, 3) if heads else None
    if heads:  # the class after that of the nearest centre
        z = torch.from_numpy(embeddings(encoder, np.roll(CENTERS, 1, axis=0).astype(np.uint8), np.float32))
        encoder.classifier.weight.data, encoder.classifier.bias.data = z, -(z**2).sum(dim=1) / 2
    return encoder.eval()


def draw(n, seed, side=2, spread=30.0):
    """Return n images (n, side, side, 3) uint8 around three others, and which."""
    y = np.random.default_rng(seed).permutation(np.resize(np.arange(3), n))
    centers = CENTERS.repeat(side // 2, axis=1).repeat(side // 2, axis=2)
    noise = np.random.default_rng([1, seed]).normal(size=centers[y].shape)
    return (centers[y] + spread * noise).clip(0, 255).astype(np.uint8), y


IMAGES, Y = draw(240, 0)
CALIBRATION = draw(50, 1)[0]  # too few for a threshold of their own in every cluster
QUERIES = np.concatenate([draw(60, 2)[0], draw(30, 3, spread=90)[0]])
ENCODER = make_encoder()


def fit(detector, encoder=ENCODER, dtype=np.float64, side=2):
    z, calibration = (embeddings(encoder, images, dtype) for images in (draw(240, 0, side)[0], draw(50, 1, side)[0]))
    return detector.fit(z, Y, calibration)


def assert_agrees(found, detector, z, rtol=1e-9):
    """Assert that OUTPUTS agree with the detector on embeddings z, decisions but for scores within the rounding."""
    _, normality, p_value, accepted = (np.asarray(output) for output in found)
    assert [output.dtype.name for output in (normality, p_value, accepted)] == ["float64", "float64", "bool"]
    slack = rtol * (np.abs(normality) + np.median(np.abs(detector.reference_)))
    assert (np.abs(normality - detector.score_samples(z)) <= slack).all()
    decision = detector.decision_function(z)
    clear = np.abs(decision) > slack
    assert clear.mean() > 0.9
    assert np.array_equal(accepted[clear], decision[clear] >= 0)
    assert np.isclose(p_value, detector.p_values(z), rtol=1e-12).mean() > (0.95 if rtol > 1e-9 else 1 - 1e-9)


@pytest.mark.parametrize(
    "detector",
    [
        *(ClusterDetector("labels", distance=d, threshold=t, alpha=0.08) for d in DISTANCES for t in THRESHOLDS),
        *OTHERS.values(),
    ],
    ids=str,
)
def test_every_detector_is_the_same_in_the_graph(detector):
    x = ENCODER.prepare(QUERIES)
    found = OODModel(ENCODER, fit(detector))(x)
    assert_agrees(found, detector, embeddings(ENCODER, QUERIES), TOLERANCE.get(type(detector), 1e-9))
    if isinstance(detector, ClusterDetector):
        other = fit(ClusterDetector("kmeans", 9, detector.distance, detector.threshold, 0.08), dtype=np.float32)
        assert_agrees(OODModel(ENCODER, other)(x), other, embeddings(ENCODER, QUERIES, np.float32), 1e-5)


@pytest.mark.parametrize("spread", [3e-3, 3e-4])
@pytest.mark.parametrize("kind", ["knn", "residual", *DISTANCES])
def test_tight_classes_are_decided_alike(kind, spread):
    """In units of their distance from the origin classes are so tight that squares in float32 would drown them."""
    rng = np.random.default_rng(0)
    means, y = rng.normal(size=(3, 12)), np.arange(3000) % 3
    train, calibration, queries = (
        (means[y] + width * spread * rng.normal(size=(3000, 12))).astype(np.float32) for width in (1, 1, 1.5)
    )
    detector = OTHERS[kind] if kind in OTHERS else ClusterDetector(distance=kind, threshold="conformal")
    detector.fit(train, y, calibration)
    model = OODModel(make_encoder(()), detector)
    scores, _ = model.score(torch.from_numpy(queries), dict(model.state.named_buffers()))
    decision = detector.decision_function(queries)
    assert 0.1 < (decision < 0).mean() < 0.9
    assert np.array_equal(scores.double().numpy() >= detector.offset_, decision >= 0)


@pytest.mark.parametrize("threshold", ["global", "per-cluster"])
def test_decisions_counted_by_hand(threshold):
    def grey(*values):
        return np.array(values, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)

    z = embeddings(ENCODER, grey(0, 4, 20, 30, 25))  # scores -48, -48 around 2 and -300, -300, 0 around 25
    detector = ClusterDetector(distance="euclidean", threshold=threshold, alpha=0.4).fit(z, [0, 0, 1, 1, 1])
    found = OODModel(ENCODER, detector).predict(grey(5, 60, 26))
    np.testing.assert_allclose(found.normality, [-12 * 3**2, -12 * 35**2, -12 * 1**2], rtol=1e-4)
    p_values = {"global": [3 / 6, 1 / 6, 5 / 6], "per-cluster": [1 / 3, 1 / 4, 3 / 4]}
    assert found.p_value.tolist() == p_values[threshold]
    assert found.accepted.tolist() == [threshold == "global", False, True]


def test_count_at_most_is_a_search_in_every_range():
    rng = np.random.default_rng(0)
    sizes = np.array([1, 0, 7, 8, 64, 3])
    starts = np.cumsum(sizes) - sizes
    ranges = [np.sort(rng.integers(0, 20, size)).astype(float) for size in sizes]
    groups, scores = rng.integers(0, 6, 500), rng.integers(-2, 22, 500) / 1.0
    scores[:9] = [np.nan, np.inf, -np.inf] * 3
    tensors = (torch.tensor(a) for a in (scores, np.concatenate(ranges), starts[groups], sizes[groups]))
    expected = [(ranges[group] <= score).sum() for group, score in zip(groups, scores, strict=True)]
    assert count_at_most(*tensors, largest=64).tolist() == expected


def test_class_is_that_of_the_classifier():
    _, logits = embed(ENCODER, ENCODER.prepare(QUERIES))
    for detector in (ClusterDetector("labels"), ClusterDetector("kmeans", 3), KNNDetector(5)):
        found = OODModel(ENCODER, fit(detector)).predict(QUERIES)
        assert set(found.class_index.tolist()) == {0, 1, 2}
        assert np.array_equal(found.class_index, logits.argmax(axis=1))
        assert (found.class_index[:60] == (draw(60, 2)[1] + 1) % 3).mean() > 0.95
        assert np.array_equal(found.class_name, np.array(PIXELS.classes)[found.class_index])


def test_class_without_a_classifier_is_the_nearest_label_that_has_a_name():
    encoder = make_encoder(())
    z, queries = embeddings(encoder, IMAGES), embeddings(encoder, QUERIES)
    means = np.stack([z[k == Y].mean(axis=0) for k in range(3)])
    expected = ((queries[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    detector = ClusterDetector(distance="euclidean").fit(z, Y)
    detector.class_names_ = ("oak", "elm", "fir")  # the encoder was trained to tell others
    found = OODModel(encoder, detector).predict(QUERIES)
    assert np.array_equal(found.class_index, expected)
    assert found.class_name.tolist() == [detector.class_names_[k] for k in expected]
    misses_one = ClusterDetector().fit(z[Y > 0], Y[Y > 0])
    misses_one.class_names_ = PIXELS.classes
    nameless = ClusterDetector("labels"), ClusterDetector("kmeans", 3), KNNDetector(5)
    for detector in (misses_one, *(fit(detector) for detector in nameless)):
        found = OODModel(encoder, detector).predict(QUERIES[:2])
        assert (found.class_index.tolist(), found.class_name.tolist()) == ([-1, -1], ["", ""])


@pytest.mark.filterwarnings("error")
def test_images_of_any_form_are_prepared_as_those_of_the_encoder():
    model = OODModel(ENCODER, fit(ClusterDetector()))
    pictures = [
        Image.fromarray(draw(1, 5, 40)[0][0]).resize((60, 40)),
        Image.fromarray(draw(1, 6, 10)[0][0]).convert("L"),
        Image.fromarray(draw(1, 7, 16)[0][0]).convert("P"),
        Image.fromarray(np.random.default_rng(0).integers(256, size=(7, 5, 4), dtype=np.uint8)),
    ]
    array = np.stack([photo_square(picture.copy(), 2) for picture in pictures])
    array.setflags(write=False)  # taken without a warning
    found, expected = model.predict(tuple(pictures)), model.predict(array)
    for name in OUTPUTS:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert model.predict(pictures[1]).normality == pytest.approx([found.normality[1]])  # a product of another shape
    large = draw(3, 8, 6)[0]
    assert_agrees(model(ENCODER.prepare(large)), fit(ClusterDetector()), embeddings(ENCODER, large))
    grey = model.predict(large[..., 0])
    assert np.array_equal(grey.normality, model.predict(large[..., :1].repeat(3, axis=3)).normality)


def test_batches_and_mode_change_nothing(network):
    model, images = OODModel(*network), draw(30, 2, 8)[0]
    whole, parts = model.predict(images), model.train().predict(images, batch_size=7)
    assert not model.training
    np.testing.assert_allclose(parts.normality, whole.normality, rtol=1e-5)
    assert np.array_equal(parts.accepted, whole.accepted)


@pytest.fixture(scope="module")
def network():
    """A network with batch statistics of images, and a detector on it."""
    torch.manual_seed(1)
    encoder = Encoder(RESNET)
    encoder.train()(encoder.prepare(draw(64, 0, 8)[0]) / 255)
    return encoder.eval(), fit(ClusterDetector(threshold="conformal"), encoder, np.float32, 8)


class Several(nn.Module):
    """Models that are exported together, which saves the time of an export each."""

    def __init__(self, detectors):
        super().__init__()
        self.models = nn.ModuleList(OODModel(ENCODER, detector) for detector in detectors)

    def forward(self, x):
        return [output for model in self.models for output in model(x)]


def exported(model, x, folder):
    """Return a function of x that runs the graph from a file."""
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=FREE), folder / "model.pt2")
    return torch.export.load(folder / "model.pt2").module()


def exported_to_onnx(model, x, folder):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = folder / "model.onnx"
    torch.onnx.export(model, (x,), path, input_names=["x"], dynamo=True, dynamic_shapes=FREE, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("leave", "rtol"), [(exported, 1e-9), (exported_to_onnx, 1e-5)])
def test_exported_detectors_agree_at_any_batch_size(leave, rtol, tmp_path):
    named = {"relative-mahalanobis": "conformal", "log-density": "conformal-cluster"}  # these take in the others
    detectors = [ClusterDetector("kmeans", 4, distance, threshold, 0.1) for distance, threshold in named.items()]
    detectors = [fit(detector) for detector in (*detectors, OTHERS["knn"], OTHERS["vim"])]
    x, z = ENCODER.prepare(QUERIES), embeddings(ENCODER, QUERIES)
    graph = leave(Several(detectors).eval(), x[:2], tmp_path)
    for n in (len(x), 1):
        outputs = graph(x[:n])
        for i, detector in enumerate(detectors):
            assert_agrees(outputs[4 * i : 4 * i + 4], detector, z[:n], max(rtol, TOLERANCE.get(type(detector), 0)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("leave", [exported, exported_to_onnx])
def test_exported_network_agrees(leave, network, tmp_path):
    encoder, detector = network
    model, images = OODModel(encoder, detector), draw(90, 2, 8)[0]
    graph = leave(model, encoder.prepare(images[:2]), tmp_path)
    found = graph(encoder.prepare(images))
    assert_agrees(found, detector, embeddings(encoder, images, np.float32), 1e-5)
    assert np.array_equal(np.asarray(found[0]), model.predict(images).class_index)


def test_model_of_two_files(network, tmp_path):
    encoder, detector = network
    save_encoder(encoder, tmp_path / "encoder")
    detector.save(tmp_path / "detector", encoder)
    images = draw(20, 2, 8)[0]
    found = OODModel.load(tmp_path / "encoder", tmp_path / "detector").predict(images)
    expected = OODModel(encoder, detector).predict(images)
    np.testing.assert_allclose(found.normality, expected.normality, rtol=1e-5)
    assert np.array_equal(found.accepted, expected.accepted)
    assert np.array_equal(found.class_name, expected.class_name)
    save_encoder(Encoder(RESNET), tmp_path / "encoder")
    detector.save(tmp_path / "nameless")
    for name, said in (("detector", "is for embeddings of another encoder"), ("nameless", "saved without an encoder")):
        with pytest.raises(ValueError, match=said):
            OODModel.load(tmp_path / "encoder", tmp_path / name)


def test_detectors_that_are_refused():
    class Own(ClusterDetector):
        pass

    def refused(detector, error, said):
        with pytest.raises(error, match=said):
            OODModel(ENCODER, detector)

    z = embeddings(ENCODER, IMAGES)
    for detector in (OutlierExposureDetector().fit(z, Y), Own().fit(z, Y)):
        said = f"can hold one of ClusterDetector, KNNDetector, ViMDetector, got {type(detector).__name__}"
        refused(detector, TypeError, said)
    refused(KNNDetector(3), NotFittedError, "This KNNDetector instance is not fitted yet")
    narrow = ClusterDetector().fit(z[:, 1:], Y)
    refused(narrow, ValueError, "takes embeddings of width 11, the encoder's have 12")
    detector = fit(KNNDetector(5))
    detector.class_names_, detector.encoder_ = PIXELS.classes, ENCODER.fingerprint()
    assert set(OODModel(ENCODER, detector).predict(QUERIES).class_name) == set(PIXELS.classes)
    detector.class_names_ = ("oak", "elm", "fir")
    refused(detector, ValueError, "classifier tells ant, bee, cat, the detector's classes are oak, elm, fir: ")
    detector.class_names_, detector.encoder_ = PIXELS.classes, "0" * 64
    refused(detector, ValueError, f"of another encoder: 000000000000…, not {ENCODER.fingerprint()[:12]}…")


def test_images_that_are_refused():
    model, whole = OODModel(ENCODER, fit(ClusterDetector())), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(99, 99, 3), dtype=np.uint8)).save(whole, "JPEG")
    broken = Image.open(io.BytesIO(whole.getvalue()[:2000]))
    form = r"images must be uint8 \(n, h, w\) or \(n, h, w, 3\), not float64 "
    for images, error, said in (
        ([], ValueError, "no images to judge"),
        (QUERIES[:0], ValueError, "no images to judge"),
        ([QUERIES[0]], TypeError, "array or a list of PIL images or paths, got <class 'numpy.ndarray'> in it"),
        (QUERIES / 255, ValueError, form),
        (np.zeros((2, 0, 0, 3), np.uint8), ValueError, r"images of shape \(2, 0, 0, 3\) have no pixels"),
        (np.zeros((2, 5, 0), np.uint8), ValueError, r"images of shape \(2, 5, 0\) have no pixels"),
        (np.zeros((32, 32, 3), np.uint8), ValueError, r"got \(32, 32, 3\): of one image, give images\[None\]"),
        (np.zeros((20, 30, 4), np.uint8), ValueError, r"got \(20, 30, 4\): of one image, give images\[None\]"),
        ([Image.new("L", (9, 9)), broken], ValueError, "^image 1 of the list cannot be read: image file is truncated"),
        (Image.new("RGB", (0, 5)), ValueError, "^image 0 of the list has no pixels: "),
    ):
        with pytest.raises(error, match=said):
            model.predict(images)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.predict(QUERIES, batch_size=0)
    x = ENCODER.prepare(QUERIES)
    for wrong in (x / 255, x[:, :1], x[..., :1], x[0]):
        with pytest.raises(ValueError, match=re.escape(f"(n, 3, 2, 2), got {wrong.dtype} {tuple(wrong.shape)}")):
            model(wrong)


def test_image_whose_normality_is_nan_is_never_accepted():
    encoder = make_encoder(())
    model = OODModel(encoder, fit(ClusterDetector(), encoder))
    encoder.mean.fill_(torch.nan)
    _, _, p_value, accepted = model(encoder.prepare(QUERIES[:3]))
    assert p_value.tolist() == [1 / 241] * 3
    assert accepted.tolist() == [False] * 3
    with pytest.raises(FloatingPointError, match="embeddings that are not finite"):
        model.predict(QUERIES[:3])
