"""Encoders: their sizes counted by hand, their files, and which names, arguments and files are refused."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from oodlib.encoders import ARCHITECTURES, Encoder, EncoderSpec, architectures, embed, load_encoder, save_encoder
from oodlib.encoders.architectures import check_arch
from oodlib.encoders.encoder import FORMAT
from oodlib.files import read_tensors, write_tensors

SPEC = EncoderSpec(
    "resnet20", ("a", "b", "c"), ("classifier", "projection"), 8, 1, 16, (0.2, 0.3, 0.4), (0.25, 0.5, 0.125), 10
)
VIT = replace(SPEC, arch="vit_tiny_patch16_224", input_size=32, patch_size=4)


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


STEM = (49 - 9) * 3 * 64  # of timm's first filters, 7×7 where ours are 3×3
SIZES = {  # published parameters less head and stem, width of the embedding, side of the last map of a 32×32 image
    "resnet20": (269_722 - 650 + 2_752, 64, 8),  # He et al.'s two shortcuts have no weights
    "resnet18": (11_689_512 - 513_000 - STEM, 512, 4),
    "resnet34": (21_797_672 - 513_000 - STEM, 512, 4),
    "resnet50": (25_557_032 - 2_049_000 - STEM, 2048, 4),
    "wide_resnet50_2": (68_883_240 - 2_049_000 - STEM, 2048, 4),
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_and_widths_are_the_published_ones(arch):
    n_parameters, width, side = SIZES[arch]
    with torch.device("meta"):  # shapes only: nothing is computed
        encoder = Encoder(replace(SPEC, arch=arch, heads=()))
        features = encoder.backbone.forward_features(torch.empty(2, 3, 32, 32))
        z = encoder(torch.empty(2, 3, 32, 32))
    assert sum(p.numel() for p in encoder.parameters()) == n_parameters
    assert features.shape == (2, width, side, side)
    assert z.shape == (2, encoder.dim) == (2, width)


@pytest.mark.parametrize("pool", ["", "token", "avg"])
def test_embedding_of_a_vision_transformer_is_its_class_token_or_the_mean_of_its_patches(pool):
    torch.manual_seed(0)
    vit = Encoder(replace(VIT, pool=pool)).eval()
    for parameter in vit.backbone.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # a trained network's norms are not the identity
    d, n_tokens = 192, 1 + (32 // 4) ** 2  # the class, and 8 × 8 patches
    attention, mlp, norm = (d + 1) * 3 * d + (d + 1) * d, (d + 1) * 4 * d + (4 * d + 1) * d, 2 * d
    counted = (4 * 4 * 3 + 1) * d + d + n_tokens * d + 12 * (attention + mlp + 2 * norm) + norm
    assert sum(p.numel() for p in vit.backbone.parameters()) == counted
    assert vit.dim == vit.classifier.in_features == d
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (VIT.mean, VIT.std))
    with torch.inference_mode():
        tokens, z = vit.backbone.forward_features((images - mean) / std), vit(images)
    assert tokens.shape == (2, n_tokens, d)
    if pool != "avg":  # timm normalises the tokens, and its usual pool is the class token
        expected = tokens[:, 0]
    else:  # timm normalises the mean
        norm = vit.backbone.fc_norm
        expected = nn.functional.layer_norm(tokens[:, 1:].mean(dim=1), (d,), norm.weight, norm.bias, eps=1e-6)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "width"),
    [("mobilenetv3_small_050", 1024), ("convnext_atto", 320), ("efficientnet_b0", 1280), ("resnet18.a1_in1k", 512)],
)
def test_any_other_name_is_timms_with_its_own_stem(arch, width):
    with torch.device("meta"):
        encoder = Encoder(replace(SPEC, arch=arch, input_size=64)).eval()
        z = encoder(torch.empty(2, 3, 64, 64))
        timms = timm.create_model(arch, num_classes=0)
    shapes = {name: out.shape for name, out in encoder.outputs(z).items()}
    assert shapes == {"classifier": (2, 3), "projection": (2, 10)}
    assert z.shape == (2, encoder.dim) == (2, width)
    ours, theirs = ({n: t.shape for n, t in net.state_dict().items()} for net in (encoder.backbone, timms))
    assert ours == theirs


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


def test_heads_are_those_that_are_asked_for_and_stand_behind_the_embedding(encoder):
    z = torch.zeros(2, 64)
    for heads in ((), ("classifier",), ("projection", "classifier")):
        headed = Encoder(replace(SPEC, heads=heads))
        assert headed.outputs(z).keys() == set(heads)
        assert (headed.projection is None) == ("projection" not in heads)
    assert Encoder(replace(SPEC, projection_dim=0)).projection(z) is z
    with pytest.raises(ValueError, match="unknown head 'decoder'"):
        Encoder(replace(SPEC, heads=("classifier", "decoder")))
    images = torch.rand(4, 3, 16, 16)
    mean, std = (torch.tensor(v)[:, None, None] for v in (SPEC.mean, SPEC.std))
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), encoder.backbone((images - mean) / std), rtol=0, atol=0)
    assert not {"mean", "std"} & dict(encoder.named_parameters()).keys()  # never trained


def test_names_are_ours_or_timms():
    for arch in (*ARCHITECTURES, "vit_tiny_patch16_224", "resnet18.a1_in1k"):
        check_arch(arch, pretrained=arch != "resnet20")  # which timm does not have
    for arch in ("resnet21", "", "ResNet18", "../resnet18", "hf-hub:timm/resnet18", "resnet18.nonsense", "resnet20.a"):
        with pytest.raises(ValueError, match=f"unknown arch '{arch}'; known: .*resnet20.* and all of timm"):
            Encoder(replace(SPEC, arch=arch))


REFUSED = [  # changes of the spec, what is named
    (SPEC, {"patch_size": 4}, "'resnet20' takes no patch_size and no pool"),
    (SPEC, {"small_stem": False}, "'resnet20' cannot be built"),
    (SPEC, {"arch": "resnet18", "patch_size": 4, "small_stem": False}, "'resnet18' cannot be built with patch_size=4"),
    (SPEC, {"arch": "mobilenetv3_small_050", "pool": "token"}, "'mobilenetv3_small_050' cannot be built"),
    (SPEC, {"arch": "airbench_4_6_8", "input_size": 15}, "side 16 or more: input_size is 15"),
    (VIT, {"patch_size": 5}, "patches of side 5: input_size 32"),
    (VIT, {"patch_size": 0, "input_size": 28}, "patches of side 16: input_size 28"),
    (VIT, {"patch_size": -4}, "patch_size=-4"),
    (VIT, {"pool": "sum"}, "global_pool='sum'"),
]


@pytest.mark.parametrize(("spec", "changes", "said"), REFUSED)
def test_an_argument_that_is_not_the_architectures_is_named(spec, changes, said):
    with pytest.raises(ValueError, match=said):
        Encoder(replace(spec, **changes))


class OldHubError(FileNotFoundError, ValueError):
    """As huggingface_hub's LocalEntryNotFoundError was before version 1."""


@pytest.mark.parametrize("error", [OldHubError("no file"), TimeoutError("slow"), PermissionError(13, "locked")])
def test_whatever_keeps_pretrained_weights_away_is_named(monkeypatch, error):
    def fail(*_, **__):
        raise error

    for arch, said in (("resnet18", "fit timm's stem"), ("resnet20", "has no pretrained weights in timm")):
        with pytest.raises(ValueError, match=f"'{arch}' {said}"):
            Encoder(replace(SPEC, arch=arch), pretrained=True)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ConnectionError, match=rf"'resnet18' .*{type(error).__name__}.*use pretrained: false") as raised:
        Encoder(replace(SPEC, arch="resnet18", small_stem=False), pretrained=True)
    assert raised.value.__cause__ is error


def test_torch_and_torchvision_that_do_not_fit_are_named_with_the_way_out(monkeypatch):
    def fail(name):
        raise RuntimeError(error)

    monkeypatch.setattr(architectures, "import_module", fail)
    for error, kind in (("operator torchvision::nms does not exist", ImportError), ("out of memory", RuntimeError)):
        architectures.import_timm.cache_clear()
        with pytest.raises(kind, match=error):
            check_arch("vgg11")
    architectures.import_timm.cache_clear()


def test_pretrained_weights_are_taken_and_need_no_network_once_saved(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    weights = timm.create_model("resnet18").state_dict()
    with monkeypatch.context() as patch:
        patch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(weights))
        encoder = Encoder(replace(SPEC, arch="resnet18", small_stem=False), pretrained=True)
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(tmp_path / "encoder.safetensors")
    assert torch.equal(loaded.backbone.conv1.weight, weights["conv1.weight"])


def test_saved_and_loaded_encoder_gives_the_same_bits(encoder, path, tmp_path):
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    loaded = load_encoder(path)
    assert loaded.spec == SPEC
    assert not loaded.training
    for before, after in zip(embed(encoder, images), embed(loaded, images), strict=True):
        assert np.array_equal(before, after)
    weights, spec = read_tensors(path, FORMAT)
    assert spec == {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(SPEC).items()}
    for state in (weights, loaded.state_dict()):
        assert state.keys() == encoder.state_dict().keys()
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, state[name]), name
    save_encoder(encoder, tmp_path / "again.safetensors")  # a run is recognised by the SHA-256 of this file
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    for name in ("patch_size", "pool", "small_stem", "mirrored"):  # came later: a file may lack them
        del spec[name]
    write_tensors(path, weights, FORMAT, spec, "the encoder")
    assert load_encoder(path).spec == SPEC
    assert load_encoder(path).fingerprint() == encoder.fingerprint()


def test_files_that_are_missing_cut_short_or_whose_spec_does_not_fit_the_weights_are_named(path):
    weights, spec = read_tensors(path, FORMAT)
    content = path.read_bytes()
    for kept in (0, len(content) // 2, -1):
        path.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"encoder\.safetensors"):
            load_encoder(path)
    path.unlink()
    for missing in (path, path.parent):
        with pytest.raises(FileNotFoundError, match=missing.name):
            load_encoder(missing)
    changes = [  # an architecture of other weights, fields that are unknown, missing, or of another kind
        *({"arch": arch} for arch in ("resnet18", "perceptron", 3)),
        {"arch": "vit_tiny_patch16_224", "patch_size": 5},
        *(
            {"depth": 20},
            {"side": ...},
            {"classes": ["a"]},
            {"heads": ["classifier"]},
            {"mean": "grey"},
            {"mean": [0.5]},
        ),
    ]
    changed = [{key: value for key, value in (spec | change).items() if value is not ...} for change in changes]
    for wrong in (*changed, [], 3, "{"):
        write_tensors(path, weights, FORMAT, wrong, "the encoder")
        with pytest.raises(ValueError, match=r"encoder\.safetensors"):
            load_encoder(path)
