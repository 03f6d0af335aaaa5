"""Detector files: every detector is the same to the last bit after a file, and what is no detector is refused."""

import hashlib
import itertools
import json
import pickle
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.base import clone

from oodlib.clustering import cluster
from oodlib.encoders import Encoder, EncoderSpec, load_encoder, save_encoder
from oodlib.scoring import DISTANCES, THRESHOLDS, ClusterDetector, KNNDetector, OutlierExposureDetector, ViMDetector
from oodlib.scoring import cluster_detector as scoring
from oodlib.scoring.detector_file import FORMAT
from oodlib.scoring.loading import DETECTORS, load_detector

pytestmark = pytest.mark.filterwarnings("ignore:nothing is rejected")  # of few images, clusters have fewer

D = 13


def draw(n, seed, spread=1.0):
    """Return n embeddings around four means, in a subspace but for rounding, and the mean of each."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.resize(np.arange(4), n))
    z = np.random.default_rng(99).normal(size=(4, D))[y] + spread * rng.normal(size=(n, D)) * np.linspace(0.3, 1.5, D)
    z[:, -1] = z[:, 0] + z[:, 1]
    return z, y


Z, Y = draw(240, 0)
CALIBRATION = draw(45, 1)[0]  # too few for a threshold of their own in every cluster
QUERIES = np.concatenate([draw(60, 2)[0], draw(30, 3, spread=4)[0]])
WEIGHT, BIAS = np.random.default_rng(4).normal(size=(4, D)).astype(np.float32), np.arange(4.0)
DTYPES = (np.float32, np.float64)
EXAMPLES = {
    "clusters": ClusterDetector(distance="log-density", threshold="per-cluster"),
    "knn": KNNDetector(n_neighbors=5),
    "residual": ViMDetector(n_components=3),
    "vim": ViMDetector(WEIGHT, BIAS, alpha=0.1),
    "energy": ViMDetector(np.asfortranarray(WEIGHT), BIAS, n_components=D),
    "gaussians": OutlierExposureDetector(),
    "outlier-exposure": OutlierExposureDetector(),
}


def fit(name, dtype=np.float32):
    known = {"z_outliers": QUERIES[60:70].astype(dtype)} if name == "outlier-exposure" else {}
    return clone(EXAMPLES[name]).fit(Z.astype(dtype), Y, **known)


def assert_same(before, after, dtype=np.float32):
    """Assert that two detectors hold the same bits, in the same order in memory, and give the same bits."""
    z = QUERIES.astype(dtype)
    # the product of one row may differ in its last bit by where the arrays lie in memory
    np.testing.assert_allclose(before.score_samples(z[:1]), after.score_samples(z[:1]), rtol=8 * np.finfo(dtype).eps)
    for method in ("score_samples", "decision_function", "predict", "p_values"):
        assert np.array_equal(getattr(before, method)(z), getattr(after, method)(z)), method
    assert type(after) is type(before)
    assert vars(after).keys() == vars(before).keys()
    assert plain_parameters(after) == plain_parameters(before)
    for name in before.layout():
        attribute, _, entry = name.partition(".")
        a, b = (np.asarray(v[entry] if entry else v) for v in (getattr(d, attribute) for d in (before, after)))
        assert a.dtype == b.dtype
        assert a.flags.fnc == b.flags.fnc
        assert np.array_equal(a, b)


def plain_parameters(detector):
    return {name: np.asarray(value).tolist() for name, value in detector.get_params().items()}


def round_trip(detector, folder):
    """Return a detector after a file; assert that saving it again gives the same bytes."""
    detector.save(folder / "first")
    loaded = load_detector(folder / "first")
    loaded.save(folder / "second")
    assert (folder / "first").read_bytes() == (folder / "second").read_bytes()
    return loaded


@cache
def clusters_of(clustering, dtype):
    return cluster(Z.astype(dtype), Y, clustering, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_cluster_detector_is_the_same_to_the_last_bit(distance, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "cluster", lambda z, y, clustering, *_: clusters_of(clustering, dtype))
    for clustering, threshold in itertools.product(("labels", "gmm"), THRESHOLDS):
        detector = ClusterDetector(clustering, 4, distance, threshold, 0.08)
        detector.fit(Z.astype(dtype), Y, CALIBRATION.astype(dtype))
        assert_same(detector, round_trip(detector, tmp_path), dtype)
        assert np.isneginf(detector.offset_).any() == (threshold == "conformal-cluster")  # which rejects nothing


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_detector_is_the_same_to_the_last_bit(name, dtype, tmp_path):
    detector = fit(name, dtype)
    assert_same(detector, round_trip(detector, tmp_path), dtype)


def test_parameters_of_numpy_and_those_that_are_looked_for(tmp_path):
    detector = ClusterDetector("kmeans", np.int64(3), alpha=np.float32(0.25), seed=np.int32(7)).fit(Z)
    assert round_trip(detector, tmp_path).get_params() == detector.get_params()
    assert round_trip(ClusterDetector("kmeans", "auto").fit(Z), tmp_path).n_clusters == "auto"


# What is in a file


def read(path):
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert list(metadata) == [FORMAT]
    return json.loads(metadata[FORMAT]), load_file(path)


def test_file_is_what_the_fit_kept_as_arrays_and_json(tmp_path):
    z = np.array([[1, 0], [1, 0], [0, 2], [0, 2.0]])
    detector = ClusterDetector(distance="cosine", threshold="per-cluster", alpha=0.5)
    detector.fit(z, [7, 7, 9, 9]).save(tmp_path / "a.b")
    header, arrays = read(tmp_path / "a.b")
    assert header == {
        "class": "ClusterDetector",
        "parameters": detector.get_params(),
        "fortran_order": [],
        "encoder": "",
        "held_out": False,
        "classes": [],
    }
    known = {"state_.centers": [[1, 0], [0, 1]], "reference_": [0] * 4, "reference_nearest_": [0, 0, 1, 1]}
    assert {name: array.tolist() for name, array in arrays.items() if name != "offset_"} == known
    np.testing.assert_allclose(arrays["offset_"], [0, 0], atol=1e-12)


def test_classifier_of_vim_is_in_the_file_once(tmp_path):
    fit("vim").save(tmp_path / "detector")
    header, arrays = read(tmp_path / "detector")
    assert header["parameters"] == {"alpha": 0.1, "bias": "bias_", "n_components": None, "weight": "weight_"}
    assert arrays.keys() == {"weight_", "bias_", "origin_", "residual_", "scale_", "reference_", "offset_"}
    loaded = load_detector(tmp_path / "detector")
    assert loaded.weight is loaded.weight_
    assert np.array_equal(loaded.weight, WEIGHT)


@pytest.mark.parametrize("in_memory", [0, 2**30])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_knn_keeps_the_training_embeddings_once(dtype, in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr("oodlib.scoring.knn.IN_MEMORY", in_memory)
    z = np.random.default_rng(5).normal(size=(5000, 16)).astype(dtype)
    detector = KNNDetector(3).fit(z)
    assert (detector.index_.table is None) == (in_memory == 0)
    loaded = round_trip(detector, tmp_path)
    size = (tmp_path / "first").stat().st_size
    assert 0 <= size - (5000 * 16 * 4 + 5000 * 8 + 8) < 1000  # embeddings, reference scores, threshold
    given = z.astype(np.float64)
    expected = given / np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.embeddings_, expected, atol=1e-6)
    queries = z[:70] + z[1:71]
    assert np.array_equal(loaded.score_samples(queries), detector.score_samples(queries))
    nearest = np.sort(np.linalg.norm(loaded.embeddings_ - expected[:1], axis=1))[2]
    assert loaded.score_samples(z[:1])[0] == pytest.approx(-nearest, abs=1e-6)


def test_nothing_is_left_of_a_save_that_fails(tmp_path, monkeypatch):
    def fail(arrays, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    fit("clusters").save(tmp_path / "detector")
    before = (tmp_path / "detector").read_bytes()
    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        fit("vim").save(tmp_path / "detector")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_what_could_not_be_loaded_is_not_saved(tmp_path, monkeypatch):
    class KNNDetector(DETECTORS["KNNDetector"]):  # a name that is known
        pass

    monkeypatch.setitem(DISTANCES, "mine", replace(DISTANCES["euclidean"], state={}))
    broken = ClusterDetector().fit(Z, Y)
    broken.offset_ = np.nan
    for detector, error, said in (
        (KNNDetector().fit(Z), TypeError, "a detector of oodlib.scoring, got KNNDetector of "),
        (ClusterDetector(distance="mine").fit(Z, Y), ValueError, "'mine' does not say what its state is"),
        (ClusterDetector(seed=None).fit(Z, Y), ValueError, "seed must be int, got None"),
        (broken, ValueError, "offset_ contains NaN"),
    ):
        with pytest.raises(error, match=said):
            detector.save(tmp_path / "detector")
    assert not list(tmp_path.iterdir())


# The encoder


LATER = ("patch_size", "pool", "small_stem", "mirrored")  # fields of a spec that came later, at their defaults here
SPEC = EncoderSpec(
    "resnet20", ("a", "b"), ("classifier",), 16, 1, 16, (0.5, 0.4, 0.3), (0.25, 0.25, 0.1), projection_dim=8
)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder(SPEC).eval()


def test_fingerprint_is_the_hash_of_spec_and_weights_and_stays_where_the_embeddings_do(encoder, tmp_path):
    spec = {name: value for name, value in asdict(SPEC).items() if name not in LATER}
    parts = [json.dumps(spec).encode()]
    for name in sorted(encoder.state_dict()):
        array = encoder.state_dict()[name].numpy()
        parts += [f"\n{name} torch.{array.dtype} {list(array.shape)}\n".encode(), array.tobytes()]
    known = hashlib.sha256(b"".join(parts)).hexdigest()
    assert encoder.fingerprint() == known
    save_encoder(encoder, tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    assert loaded.train().to(memory_format=torch.channels_last).fingerprint() == known
    for name, value in zip(LATER, (4, "avg", False, True), strict=True):
        loaded.spec = replace(SPEC, **{name: value})
        assert loaded.fingerprint() != known, name
    loaded.spec = SPEC
    assert loaded.fingerprint() == known
    assert loaded.bfloat16().fingerprint() != known


@pytest.mark.parametrize("as_text", [True, False])
def test_detector_knows_its_encoder(encoder, as_text, tmp_path):
    fingerprint = encoder.fingerprint()
    given = fingerprint if as_text else encoder
    detector = ClusterDetector().fit(Z, Y)
    assert detector.encoder_ == ""
    detector.save(tmp_path / "first", encoder=given)
    assert read(tmp_path / "first")[0]["encoder"] == fingerprint
    loaded = load_detector(tmp_path / "first", encoder=given)
    assert loaded.encoder_ == load_detector(tmp_path / "first").encoder_ == fingerprint
    loaded.save(tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == (tmp_path / "first").read_bytes()
    assert loaded.fit(Z, Y).encoder_ == ""  # of embeddings of whichever encoder


def test_another_encoder_or_none_is_refused(encoder, tmp_path):
    detector, path = ClusterDetector().fit(Z, Y), tmp_path / "detector"
    other = Encoder(replace(SPEC, mean=(0.5, 0.4, 0.2)))
    known, others = encoder.fingerprint()[:12], other.fingerprint()[:12]
    detector.save(path, encoder)
    said = f"is for embeddings of another encoder: {known}…, the one given is {others}…"
    with pytest.raises(ValueError, match=f"{path} {said}"):
        load_detector(path, other)
    with pytest.raises(ValueError, match=f"the detector {said}"):
        load_detector(path).save(tmp_path / "copy", other)
    detector.save(path)
    with pytest.raises(ValueError, match=f"{path} was saved without an encoder"):
        load_detector(path, encoder)
    for given in ("", "A" * 64, 64 * "0" + "\n", 7):
        for ask in (detector.save, load_detector):
            with pytest.raises(ValueError, match="encoder must be an Encoder or its fingerprint, 64 hexadecimal"):
                ask(path, given)
    load_detector(path).save(path, other)  # now it is known
    assert load_detector(path, other).encoder_.startswith(others)


# What is no detector


@pytest.fixture
def path(tmp_path):
    fit("clusters", np.float64).save(tmp_path / "detector")
    return tmp_path / "detector"


def refused(path, *said):
    with pytest.raises(ValueError, match=f"^{path} ") as caught:
        load_detector(path)
    for part in said:
        assert part in str(caught.value)


def rewrite(path, change):
    """Change the header and the arrays of a file by a function of both."""
    header, arrays = read(path)
    change(header, arrays)
    arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    save_file(arrays, path, {FORMAT: json.dumps(header)})


def test_file_that_is_missing_cut_short_or_of_another_kind(path, encoder):
    for missing in (path.parent / "nothing", path.parent):
        with pytest.raises(FileNotFoundError, match=f"no detector at {missing}"):
            load_detector(missing)
    whole, arrays = path.read_bytes(), load_file(path)
    for content in (whole[:9], whole[: len(whole) // 3], whole[:-1], pickle.dumps(KNNDetector()), bytes(4096), b""):
        path.write_bytes(content)
        refused(path, "is no safetensors file of NumPy's dtypes, or is cut short: ")
    for write, found in (
        (lambda: save_file(arrays, path), []),
        (lambda: save_file(arrays, path, {"oodlib-detector-1": "{}"}), ["oodlib-detector-1"]),
        (lambda: save_encoder(encoder, path), ["oodlib-encoder-1"]),
    ):
        write()
        refused(path, f"is not a detector of this version: '{FORMAT}' is not in its metadata {found}")
    for text in ("", "[]", "[" * 100_000, '{"class": "KNNDetector"}'):
        save_file(arrays, path, {FORMAT: text})
        refused(path, "does not hold a detector and the arrays that fit it: ")


@pytest.mark.parametrize("calibration", [None, Z[:20]], ids=["none", "given"])
@pytest.mark.parametrize("name", ["global", "conformal", "knn", "vim", "outliers"])
def test_whether_reference_scores_are_held_out_and_the_classes_go_through_the_file(name, calibration, tmp_path):
    others = {"knn": KNNDetector(3), "vim": ViMDetector(n_components=2), "outliers": OutlierExposureDetector()}
    detector = others[name] if name in others else ClusterDetector(threshold=name)
    detector.fit(Z, Y, calibration)
    assert (detector.held_out_, detector.class_names_) == (
        {"global": False, "conformal": True}.get(name, calibration is not None),
        (),
    )
    detector.class_names_ = ("ä", "b", "c")
    detector.save(tmp_path / "detector")
    loaded = load_detector(tmp_path / "detector")
    assert (loaded.held_out_, loaded.class_names_) == (detector.held_out_, ("ä", "b", "c"))
    assert detector.fit(Z, Y).class_names_ == ()


PARTS = "its JSON must be an object of class (str), parameters (dict), fortran_order (list), encoder (str), "
KNOWN = "the parameters of ClusterDetector are clustering, n_clusters, distance, "
HEADERS = [  # what is changed of the header or of its parameters, what is said of it
    ({"class": "os.system"}, "unknown class 'os.system'; known: ClusterDetector, KNNDetector, "),
    ({"class": ["KNNDetector"]}, PARTS),
    ({"held_out": 1}, PARTS),
    ({"classes": ["cat", 3]}, "classes must be names, got 3"),
    ({"encoder": "resnet20"}, "64 hexadecimal digits, got 'resnet20'"),
    ({"parameters": {}}, KNOWN),
    ({"alpha": "0.05"}, "alpha must be float, got '0.05'"),
    ({"alpha": float("nan")}, "alpha must be between 0 and 1, got nan"),
    ({"n_clusters": True}, "n_clusters must be int | str | None, got True"),
    ({"distance": "distance_"}, "unknown distance 'distance_'; known: euclidean, "),
    ({"threshold": "os.system"}, "unknown threshold 'os.system'; known: global, "),
    ({"metric": "cosine"}, KNOWN),
    ({"distance": "mahalanobis"}, "its arrays must be reference_, offset_, "),
    ({"threshold": "global"}, "offset_ must be float64, got float64 (4,)"),
]


@pytest.mark.parametrize(("changes", "said"), HEADERS)
def test_a_header_that_does_not_fit(path, changes, said):
    def change(header, arrays):
        (header if changes.keys() <= header.keys() else header["parameters"]).update(changes)

    rewrite(path, change)
    refused(path, said)


@pytest.mark.parametrize("kind", ["clusters", "knn", "vim", "outlier-exposure"])
def test_every_array_is_checked(kind, path):
    fit(kind, np.float64).save(path)
    whole = path.read_bytes()
    for name, array in load_file(path).items():
        changed = [({name + "x": array}, ("its arrays must be ", name + "x"))]
        for wrong in (array.astype(np.int32), array.astype(np.float16), array[None]):
            changed.append(({name: wrong}, (f"{name} must be ", f"got {wrong.dtype} (")))
        if array.dtype.kind == "f":
            for value in (np.nan, np.inf) if name == "offset_" else (np.nan, np.inf, -np.inf):
                spoilt = array.copy()
                spoilt[(-1,) * spoilt.ndim] = value
                changed.append(({name: spoilt}, (f"{name} contains NaN or infinity",)))
        rewrite(path, lambda header, arrays, name=name: arrays.pop(name))
        refused(path, name)
        for change, said in changed:
            path.write_bytes(whole)
            rewrite(path, lambda header, arrays, change=change: arrays.update(change))
            refused(path, *said)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("kind", "name", "shape", "said"),
    [
        ("clusters", "reference_", (241,), "reference_nearest_ must be int64 m, m = 241, got int64 (240,)"),
        ("clusters", "state_.whiten", None, "its float arrays must be all float32 or all float64"),
        ("clusters", "offset_", (), "offset_ must be float64 k, got float64 ()"),
        ("clusters", "state_.origin", (12,), "whiten must be float d r, d = 12, r = 12, got float64 (13, 12)"),
        ("clusters", "state_.centers", (4, 13), "centers must be float64 k r, k = 4, r = 12, got float64 (4, 13)"),
        ("clusters", "state_.factors", (4, 12, 11), "factors must be float f r r, f = 4, r = 12, r = 12, got float64 "),
        ("clusters", "reference_", (0,), "reference_ is empty, of shape (0,)"),
        ("knn", "embeddings_", (240, 0), "embeddings_ is empty, of shape (240, 0)"),
        ("vim", "bias_", (5,), "bias_ must be float64 c, c = 4, got float64 (5,)"),
        ("vim", "residual_", (14, 6), "residual_ must be float d r, d = 13, r = 6, got float64 (14, 6)"),
        ("outlier-exposure", "widths_", (2,), "widths_ must be float64 o, o = 1, got float64 (2,)"),
    ],
)
def test_array_of_another_shape_or_dtype(kind, name, shape, said, path):
    fit(kind, np.float64).save(path)

    def change(header, arrays):
        if shape is None:
            arrays[name] = arrays[name].astype(np.float32)
        else:
            arrays[name] = np.zeros(shape, arrays[name].dtype)
            header["fortran_order"] = [other for other in header["fortran_order"] if other != name]

    rewrite(path, change)
    refused(path, said)
