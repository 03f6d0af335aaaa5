"""Encoders: their sizes counted by hand, their files, and what is said of files and installations that are wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from oodlib.embedding import embed
from oodlib.encoders import ARCHITECTURES, FORMAT, Encoder, EncoderSpec, load_encoder, save_encoder

SPEC = EncoderSpec(
    arch="resnet20",
    classes=("a", "b", "c"),
    heads=("classifier", "projection"),
    side=8,
    channels=1,
    input_size=16,
    mean=(0.2, 0.3, 0.4),
    std=(0.25, 0.5, 0.125),
    projection_dim=10,
)


@pytest.fixture(scope="module")
def encoder():
    """An encoder as training leaves it: channels last, and batch statistics that are not the initial ones."""
    torch.manual_seed(0)
    encoder = Encoder(SPEC).to(memory_format=torch.channels_last)
    encoder.train()(torch.rand(16, 3, 16, 16))
    return encoder.eval()


@pytest.fixture
def path(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def convolution(width_in, width, side=3):
    return side * side * width_in * width + 2 * width  # and the scale and shift of its normalisation


def basic_blocks(width, n):
    """Count a stage of n blocks that doubles the width, its shortcut a 1×1 convolution."""
    return convolution(width // 2, width) + convolution(width // 2, width, 1) + (2 * n - 1) * convolution(width, width)


def bottlenecks(width_in, width, n):
    first = convolution(width_in, width, 1) + convolution(width_in, 4 * width, 1)
    return first + (n - 1) * convolution(4 * width, width, 1) + n * (convolution(width, width) + last(width))


def last(width):
    return convolution(width, 4 * width, 1)


SIZES = {  # parameters, width of the embedding, side of the last map of a 32×32 image
    "resnet20": (convolution(3, 16) + 6 * convolution(16, 16) + basic_blocks(32, 3) + basic_blocks(64, 3), 64, 8),
    "resnet18": (
        convolution(3, 64) + 4 * convolution(64, 64) + sum(basic_blocks(w, 2) for w in (128, 256, 512)),
        512,
        4,
    ),
    "resnet34": (
        convolution(3, 64)
        + 6 * convolution(64, 64)
        + sum(basic_blocks(w, n) for w, n in ((128, 4), (256, 6), (512, 3))),
        512,
        4,
    ),
    "resnet50": (
        convolution(3, 64)
        + bottlenecks(64, 64, 3)
        + sum(bottlenecks(2 * w, w, n) for w, n in ((128, 4), (256, 6), (512, 3))),
        2048,
        4,
    ),
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_and_widths_are_those_counted_by_hand(arch):
    n_parameters, width, side = SIZES[arch]
    with torch.device("meta"):  # shapes only: nothing is computed
        encoder = Encoder(replace(SPEC, arch=arch, heads=()))
        features = encoder.backbone.forward_features(torch.empty(2, 3, 32, 32))
        z = encoder(torch.empty(2, 3, 32, 32))
    assert sum(p.numel() for p in encoder.parameters()) == n_parameters
    assert features.shape == (2, width, side, side)
    assert z.shape == (2, encoder.dim) == (2, width)


@pytest.mark.parametrize("arch", ["resnet20", "resnet18"])
def test_stem_keeps_the_resolution(arch):
    with torch.device("meta"):
        net = Encoder(replace(SPEC, arch=arch, heads=())).backbone
        stem = net.maxpool(net.act1(net.bn1(net.conv1(torch.empty(1, 3, 28, 28)))))
    assert stem.shape == (1, 16 if arch == "resnet20" else 64, 28, 28)


def test_sizes_are_the_published_ones():
    assert SIZES["resnet20"][0] == 271_824  # 269,722 of He et al., less 650 of the head, plus 2,752 of two shortcuts
    assert SIZES["resnet18"][0] == 11_168_832
    assert SIZES["resnet50"][0] == 23_500_352


@pytest.mark.parametrize("heads", [(), ("classifier",), ("projection",), ("projection", "classifier")])
def test_an_encoder_has_the_heads_it_is_asked_for(heads):
    encoder = Encoder(replace(SPEC, heads=heads))
    z = torch.zeros(2, 64)
    assert (encoder.classifier is not None) == ("classifier" in heads)
    assert (encoder.projection is not None) == ("projection" in heads)
    if "classifier" in heads:
        assert encoder.classifier(z).shape == (2, 3)
    if "projection" in heads:
        assert encoder.projection(z).shape == (2, 10)


def test_forward_standardises_and_stops_before_the_heads(encoder):
    images = torch.rand(4, 3, 16, 16)
    mean, std = (torch.tensor(v)[:, None, None] for v in (SPEC.mean, SPEC.std))
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), encoder.backbone((images - mean) / std), rtol=0, atol=0)
        assert encoder(images).shape == (4, 64)
    assert not {"mean", "std"} & dict(encoder.named_parameters()).keys()  # never trained


def test_prepared_input_has_the_encoders_form(encoder):
    grey = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    prepared = encoder.prepare(grey)
    assert (prepared.shape, prepared.dtype) == ((3, 3, 16, 16), torch.uint8)
    assert torch.equal(prepared[:, 0], prepared[:, 1])
    assert torch.equal(prepared[:, 0], prepared[:, 2])
    # a colour image of any size takes the ID set's own grey 8×8 first
    colour = np.full((1, 20, 24, 3), (200, 100, 50), dtype=np.uint8)
    assert encoder.prepare(colour).unique().tolist() == [124]  # 0.299 · 200 + 0.587 · 100 + 0.114 · 50 = 124.2
    large = Encoder(replace(SPEC, input_size=8)).prepare(grey)
    assert np.array_equal(large[:, 1].numpy(), grey)  # its own size passes through bit by bit


@pytest.mark.parametrize("arch", ["resnet21", "", "ResNet18"])
def test_unknown_architecture(arch):
    with pytest.raises(ValueError, match=f"unknown architecture '{arch}'; known: resnet20, "):
        Encoder(replace(SPEC, arch=arch))


def test_unknown_head():
    with pytest.raises(ValueError, match="unknown head 'decoder'; known: classifier, projection"):
        Encoder(replace(SPEC, heads=("classifier", "decoder")))


def test_saved_and_loaded_encoder_gives_the_same_bits(encoder, path):
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    loaded = load_encoder(path)
    assert loaded.spec == SPEC
    assert not loaded.training
    for before, after in zip(embed(encoder, images), embed(loaded, images), strict=True):
        assert np.array_equal(before, after)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_file_is_arrays_and_json(encoder, path):
    assert load_file(path).keys() == encoder.state_dict().keys()
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    assert list(metadata) == [FORMAT]
    assert json.loads(metadata[FORMAT])["classes"] == ["a", "b", "c"]


def test_same_encoder_same_bytes(encoder, tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(8)]  # a run is recognised by the SHA-256 of this file
    for path in paths:
        save_encoder(encoder, path)
    assert len({path.read_bytes() for path in paths}) == 1


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no encoder at .*nothing.safetensors"):
        load_encoder(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="no encoder at"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 8, 200, 0.5, 0.999, -1])
def test_truncated_file(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="encoder.safetensors is no safetensors file, or is cut short"):
        load_encoder(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip file", b"arch: resnet20\n", bytes(4096)])
def test_foreign_file(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no safetensors file, or is cut short"):
        load_encoder(path)


@pytest.mark.parametrize(("metadata", "shown"), [(None, ""), ({"format": "pt"}, "'format'")])
def test_safetensors_file_of_another_format(path, metadata, shown):
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(
        ValueError, match=rf"not an encoder of this version: '{FORMAT}' is not in its metadata \[{shown}\]"
    ):
        load_encoder(path)


def rewrite(path, weights=None, **changes):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    spec = json.loads(metadata[FORMAT]) | changes
    spec = {key: value for key, value in spec.items() if value is not ...}
    save_file(load_file(path) if weights is None else weights, path, {FORMAT: json.dumps(spec)})


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "resnet18"},  # other weights than the file has
        {"arch": "perceptron"},
        {"depth": 20},  # a field this version does not know
        {"side": ...},  # one that is missing
        {"classes": ["a"]},
        {"heads": ["classifier"]},
        {"mean": [0.5]},
        {"mean": "grey"},
        {"weights": {"weight": torch.zeros(2)}},
    ],
    ids=str,
)
def test_spec_that_does_not_fit_the_weights(path, changes):
    rewrite(path, **changes)
    with pytest.raises(ValueError, match="encoder.safetensors does not hold an encoder and the spec that fits it: ."):
        load_encoder(path)


@pytest.mark.parametrize("spec", ["{", "[]", "3"])
def test_spec_that_is_no_object(path, spec):
    save_file({"weight": torch.zeros(2)}, path, {FORMAT: spec})
    with pytest.raises(ValueError, match="does not hold an encoder and the spec"):
        load_encoder(path)


IMPORT = """
import os, sys
for os.environ["TIMM_ERROR"] in sys.argv[1:]:
    try:
        import oodlib.encoders
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_torch_and_torchvision_that_do_not_fit_are_named_with_the_way_out(tmp_path):
    (tmp_path / "timm.py").write_text("import os\nraise RuntimeError(os.environ['TIMM_ERROR'])\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", IMPORT, "operator torchvision::nms does not exist", "out of memory"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    mismatch, other = done.stdout.splitlines()
    start = f"ImportError: torch {torch.__version__} and the installed torchvision do not fit each other"
    assert mismatch.startswith(start + " (operator torchvision::nms does not exist)")
    assert mismatch.endswith("python -m pip install --force-reinstall torch torchvision")
    assert other == "RuntimeError: out of memory"  # what has another cause is not explained away
