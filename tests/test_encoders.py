"""Encoders: their sizes counted by hand, their files, and what is said of files and installations that are wrong."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from oodlib.encoders import ARCHITECTURES, Encoder, EncoderSpec, embed, load_encoder, save_encoder
from oodlib.encoders.encoder import FORMAT, check_arch, pretrained_config

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
VIT = replace(SPEC, arch="vit_tiny_patch16_224", input_size=32, patch_size=4)
OFFLINE = "^the pretrained weights of 'resnet18' are not on this machine and could not be fetched "


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


def bottlenecks(width_in, width, n, widening=1):
    """Count a stage of n blocks that ends four times as wide; inside, a wide network is wider."""
    inside, out = widening * width, 4 * width
    first = convolution(width_in, inside, 1) + convolution(width_in, out, 1)
    return (
        first + (n - 1) * convolution(out, inside, 1) + n * (convolution(inside, inside) + convolution(inside, out, 1))
    )


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
    "wide_resnet50_2": (
        convolution(3, 64)
        + bottlenecks(64, 64, 3, widening=2)
        + sum(bottlenecks(2 * w, w, n, widening=2) for w, n in ((128, 4), (256, 6), (512, 3))),
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
    assert SIZES["wide_resnet50_2"][0] == 68_883_240 - 2_049_000 - (49 - 9) * 3 * 64  # less head and stem


@pytest.fixture(scope="module", params=["", "token", "avg"])
def vit(request):
    torch.manual_seed(0)
    encoder = Encoder(replace(VIT, pool=request.param)).eval()
    for parameter in encoder.backbone.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # a trained network's norms are not the identity
    return encoder


def test_vision_transformer_has_the_parameters_counted_by_hand(vit):
    d, tokens = 192, 1 + (32 // 4) ** 2
    attention, mlp, norm = (d + 1) * 3 * d + (d + 1) * d, (d + 1) * 4 * d + (4 * d + 1) * d, 2 * d
    expected = (4 * 4 * 3 + 1) * d + d + tokens * d + 12 * (attention + mlp + 2 * norm) + norm
    assert sum(p.numel() for p in vit.backbone.parameters()) == expected
    assert vit.dim == vit.classifier.in_features == d


def test_embedding_of_a_vision_transformer_is_its_class_token_or_the_mean_of_its_patches(vit):
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (VIT.mean, VIT.std))
    with torch.inference_mode():
        tokens = vit.backbone.forward_features((images - mean) / std)
        z = vit(images)
    assert tokens.shape == (2, 65, 192)  # the class, and 8 × 8 patches
    if vit.spec.pool != "avg":  # timm normalises the tokens, and its usual pool is the class token
        expected = tokens[:, 0]
    else:  # timm normalises the mean
        norm = vit.backbone.fc_norm
        patches = tokens[:, 1:].mean(dim=1)
        expected = torch.nn.functional.layer_norm(patches, (192,), norm.weight, norm.bias, eps=1e-6)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)


def test_saved_and_loaded_vision_transformer_gives_the_same_bits(vit, tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(vit, path)
    loaded = load_encoder(path)
    assert loaded.spec == vit.spec
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images), vit(images))
        assert torch.equal(loaded.classifier(loaded(images)), vit.classifier(vit(images)))


@pytest.mark.parametrize(("size", "patch_size", "n_tokens"), [(32, 0, 5), (48, 0, 10), (32, 8, 17), (8, 2, 17)])
def test_patches_cut_the_image_that_the_network_sees(size, patch_size, n_tokens):
    with torch.device("meta"):
        encoder = Encoder(replace(VIT, input_size=size, patch_size=patch_size))
        assert encoder.backbone.forward_features(torch.empty(1, 3, size, size)).shape == (1, n_tokens, 192)


@pytest.mark.parametrize(
    ("arch", "width"),
    [("mobilenetv3_small_050", 1024), ("convnext_atto", 320), ("efficientnet_b0", 1280), ("resnet18.a1_in1k", 512)],
)
def test_any_other_name_is_timms_with_its_own_stem(arch, width):
    with torch.device("meta"):
        encoder = Encoder(replace(SPEC, arch=arch, input_size=64)).eval()
        z = encoder(torch.empty(2, 3, 64, 64))
        assert {name: out.shape for name, out in encoder.outputs(z).items()} == {
            "classifier": (2, 3),
            "projection": (2, 10),
        }
        timms = timm.create_model(arch, num_classes=0)
    assert z.shape == (2, encoder.dim) == (2, width)
    sizes = {name: tensor.shape for name, tensor in timms.state_dict().items()}
    assert {name: tensor.shape for name, tensor in encoder.backbone.state_dict().items()} == sizes


@pytest.mark.parametrize(("small_stem", "side"), [(True, 4), (False, 1)])
def test_timms_stem_is_kept_where_the_small_one_is_not_wanted(small_stem, side):
    with torch.device("meta"):
        net = Encoder(replace(SPEC, arch="resnet18", small_stem=small_stem)).backbone
        assert net.forward_features(torch.empty(2, 3, 32, 32)).shape == (2, 512, side, side)
    assert net.conv1.kernel_size == ((3, 3) if small_stem else (7, 7))


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


UNKNOWN = [
    "resnet21",
    "",
    "ResNet18",
    "hf-hub:timm/resnet18",
    "../resnet18",
    "resnet18.nonsense",
    "resnet18.",
    "resnet20.a",
]


@pytest.mark.parametrize("arch", UNKNOWN)
def test_unknown_architecture(arch):
    known = ", ".join(("airbench", "airbench_WIDTH_WIDTH_WIDTH", *ARCHITECTURES))
    said = f"^unknown arch '{arch}'; known: {known}, and all of timm.list_models\\(\\)$"
    for call in (check_arch, lambda name: Encoder(replace(SPEC, arch=name))):
        with pytest.raises(ValueError, match=said):
            call(arch)


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "vit_tiny_patch16_224", "resnet18.a1_in1k"])
def test_known_architecture(arch):
    check_arch(arch)
    if arch != "resnet20":  # which timm does not have
        check_arch(arch, pretrained=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": 4}, "arch 'resnet20' takes no patch_size and no pool: they are of vision transformers"),
        ({"pool": "avg"}, "arch 'resnet20' takes no patch_size and no pool: they are of vision transformers"),
        (
            {"arch": "resnet18", "patch_size": 4, "small_stem": False},
            "arch 'resnet18' cannot be built with patch_size=4: .",
        ),
        (
            {"arch": "resnet18", "pool": "token", "small_stem": False},
            "arch 'resnet18' cannot be built with global_pool=",
        ),
        (
            {"arch": "mobilenetv3_small_050", "patch_size": 4},
            "arch 'mobilenetv3_small_050' cannot be built with patch_siz",
        ),
        ({"small_stem": False}, "arch 'resnet20' cannot be built with its defaults: Unknown model"),
    ],
)
def test_an_argument_that_is_not_the_architectures_is_refused(changes, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        Encoder(replace(SPEC, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": 5}, "cuts patches of side 5: input_size 32 is no multiple$"),
        ({"patch_size": 64}, "cuts patches of side 64: input_size 32 is no multiple$"),
        ({"patch_size": 0, "input_size": 28}, "cuts patches of side 16: input_size 28 is no multiple$"),
        ({"patch_size": -4}, "cannot be built with patch_size=-4, img_size=32: ."),
        ({"patch_size": "4"}, "cannot be built with patch_size='4', img_size=32: ."),
        ({"pool": "sum"}, "cannot be built with patch_size=4, global_pool='sum', img_size=32: ."),
    ],
)
def test_a_vision_transformer_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=f"'vit_tiny_patch16_224' {said}"):
        Encoder(replace(VIT, **changes))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The hub's client without network and without a cache."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))


def test_pretrained_weights_that_are_not_there_are_said_to_be_missing(offline):
    with pytest.raises(ConnectionError, match=OFFLINE + r"\(\w+\); use pretrained: false, fetch them where there is"):
        Encoder(replace(SPEC, arch="resnet18", small_stem=False), pretrained=True)
    Encoder(replace(SPEC, arch="resnet18", small_stem=False))  # which needs none


class OldHubError(FileNotFoundError, ValueError):
    """As huggingface_hub's LocalEntryNotFoundError was before version 1."""


@pytest.mark.parametrize(
    "error", [OldHubError("no file"), TimeoutError("slow"), PermissionError(13, "locked")], ids=repr
)
def test_whatever_keeps_the_weights_away_is_named(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        ConnectionError, match=OFFLINE + rf"\({type(error).__name__}\); use pretrained: false"
    ) as raised:
        Encoder(replace(SPEC, arch="resnet18", small_stem=False), pretrained=True)
    assert raised.value.__cause__ is error
    assert "\n" not in str(raised.value)


def test_pretrained_weights_are_taken_and_need_no_network_once_saved(offline, monkeypatch, tmp_path):
    weights = timm.create_model("resnet18").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(weights))
    encoder = Encoder(replace(SPEC, arch="resnet18", small_stem=False), pretrained=True)
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    monkeypatch.undo()
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(tmp_path / "encoder.safetensors")
    assert torch.equal(loaded.backbone.conv1.weight, weights["conv1.weight"])


def test_pretrained_weights_fit_no_small_stem_and_no_network_of_ours():
    with pytest.raises(
        ValueError, match="^the pretrained weights of 'resnet18' fit timm's stem, which small_stem=False"
    ):
        Encoder(replace(SPEC, arch="resnet18"), pretrained=True)
    with pytest.raises(ValueError, match="^arch 'resnet20' has no pretrained weights in timm; use pretrained: false$"):
        Encoder(SPEC, pretrained=True)


def test_what_timm_says_of_pretrained_weights():
    about = pretrained_config("vit_tiny_patch16_224")
    assert about["mean"] == about["std"] == (0.5, 0.5, 0.5)
    assert (about["input_size"], about["fixed_input_size"]) == ((3, 224, 224), True)
    assert pretrained_config("resnet18")["mean"] == (0.485, 0.456, 0.406)
    assert not pretrained_config("resnet18").get("fixed_input_size")
    assert pretrained_config("resnet20") == {}  # not timm's


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


def test_files_of_before_vision_transformers_are_read_as_ever(encoder, path):
    rewrite(path, patch_size=..., pool=..., small_stem=...)
    loaded = load_encoder(path)
    assert (loaded.spec.patch_size, loaded.spec.pool, loaded.spec.small_stem) == (0, "", True)
    assert loaded.spec == SPEC
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "encoder.safetensors"
    save_encoder(Encoder(VIT), path)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "vit_nano"}, "unknown arch 'vit_nano'"),
        ({"arch": "vit_tiny_patch16_224.nonsense"}, "unknown arch 'vit_tiny_patch16_224.nonsense'"),
        ({"arch": 3}, "."),
        ({"arch": ["resnet20"]}, "."),
        ({"patch_size": 5}, "'vit_tiny_patch16_224' cuts patches of side 5"),
        ({"patch_size": "4"}, "arch 'vit_tiny_patch16_224' cannot be built with patch_size='4'"),
        ({"patch_size": 8}, "Error.* in loading state_dict"),  # other weights than the file has
        ({"input_size": 16}, "Error.* in loading state_dict"),
        ({"input_size": 0}, "arch 'vit_tiny_patch16_224' cannot be built with patch_size=4"),
        ({"pool": "sum"}, "arch 'vit_tiny_patch16_224' cannot be built with .*global_pool='sum'"),
        ({"pool": "avg"}, "Error.* in loading state_dict"),
        (
            {"small_stem": False, "arch": "resnet20", "patch_size": 0},
            "arch 'resnet20' cannot be built with its defaults",
        ),
        ({"arch": "resnet20"}, "arch 'resnet20' takes no patch_size and no pool"),
    ],
    ids=str,
)
def test_spec_of_a_vision_transformer_that_does_not_fit(vit_file, tmp_path, changes, said):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(vit_file.read_bytes())
    rewrite(path, **changes)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(path))} does not hold an encoder and the spec that fits it: {said}"
    ):
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
        from oodlib.encoders.encoder import check_arch

        check_arch("vgg11")
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
