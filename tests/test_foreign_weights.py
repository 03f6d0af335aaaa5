"""Foreign weights: files as other projects write them are read, whatever they are called, and never run code."""

import argparse
import collections
import io
import os
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from oodlib.encoders import ARCHITECTURES, Encoder, EncoderSpec, foreign_weights, save_encoder
from oodlib.encoders.foreign_weights import encoder_of_state, guess_backbone, has_small_stem, own_encoder, read_state


def spec(arch="resnet18", side=32):
    return EncoderSpec(arch, ("a", "b"), (), side, 3, side, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def net():
    """A timm ResNet-18 of nine classes."""
    torch.manual_seed(3)
    return timm.create_model("resnet18", num_classes=9).eval()


def assert_taken(state, net, arch="resnet18"):
    """Assert that an encoder of a state has the weights of a network."""
    encoder = encoder_of_state("the file", state, spec(arch))
    expected = net.state_dict()
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", ["weights.pth", "WEIGHTS.BIN", "weights.safetensors", "weights"])
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_a_file_is_read_by_its_content(net, tmp_path, name, write):
    write(net.state_dict(), tmp_path / name)
    assert own_encoder(tmp_path / name) is None
    assert_taken(read_state(tmp_path / name), net)
    encoder = Encoder(spec("resnet20"))
    save_encoder(encoder, tmp_path / name)
    assert own_encoder(tmp_path / name).fingerprint() == encoder.fingerprint()


def renamed(state, prefix, **changes):
    for old, new in changes.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return {prefix + name: tensor for name, tensor in state.items()}


def of_supcontrast(state):
    encoder = renamed({k: v for k, v in state.items() if k[:2] != "fc"}, "encoder.module.", downsample="shortcut")
    return {"opt": argparse.Namespace(), "model": encoder | {"head.0.weight": torch.ones(2, 2)}, "epoch": 9}


def of_moco(state):
    other = renamed({name: tensor + 1 for name, tensor in state.items()}, "module.encoder_k.")
    return {"state_dict": renamed(state, "module.encoder_q.") | other | {"module.queue": torch.ones(2)}}


THEIRS = {  # "old": in the format of PyTorch before 1.6
    "old": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1)},
    "timm": lambda s: {"epoch": 3, "arch": "resnet18", "state_dict": s, "args": argparse.Namespace(lr=0.1)},
    "optimiser": lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}},
    "numpy": lambda s: {"net": s, "accuracy": np.float64(93.1), "best": np.arange(3)},
    "average": lambda s: {"model_ema": s, "version": 2, "log": io.StringIO},
    "lightning": lambda s: {"state_dict": renamed(s, "model."), "hyper_parameters": collections.Counter("aab")},
    "compiled": lambda s: renamed(s, "_orig_mod.module."),
    "supcontrast": of_supcontrast,
    "openood": lambda s: renamed(s, "", downsample="shortcut", fc="linear"),
    "moco": of_moco,
    "without counts": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("kind", THEIRS)
def test_what_lies_around_the_weights_is_taken_off(net, tmp_path, kind):
    torch.save(THEIRS[kind](net.state_dict()), tmp_path / "theirs", _use_new_zipfile_serialization=kind != "old")
    state = read_state(tmp_path / "theirs")
    assert not has_small_stem(state, "resnet18")
    assert guess_backbone(tmp_path, state) == "resnet18"
    if kind == "without counts":
        state |= {name: tensor for name, tensor in net.state_dict().items() if name not in state}
    assert_taken(state, net)


@pytest.mark.parametrize("arch", ["resnet18", "resnet20", "resnet50"])
def test_stems_for_small_images_are_told(arch):
    torch.manual_seed(0)
    small = ARCHITECTURES[arch]()
    state = renamed(small.state_dict(), "backbone.", downsample="shortcut")
    assert has_small_stem(state, arch)
    assert guess_backbone("the file", state) == arch
    assert_taken(state, small, arch)


def test_normalisation_in_a_head_is_kept():
    state = timm.create_model("convnext_atto", num_classes=3).state_dict()
    fitted = foreign_weights.fit_names(state, timm.create_model("convnext_atto", num_classes=0).state_dict())
    assert state.keys() - fitted.keys() == {"head.fc.weight", "head.fc.bias"}


class Evil:
    def __init__(self, function, path):
        self.function, self.path = function, path

    def __reduce__(self):
        return self.function, (str(self.path), "wb")


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_file_is_never_run(net, tmp_path, new):
    for function in (io.open, os.makedirs):
        evil = Evil(function, tmp_path / "made")
        torch.save({"net": net.state_dict(), "x": evil}, tmp_path / "evil", _use_new_zipfile_serialization=new)
        if function is io.open:
            assert_taken(read_state(tmp_path / "evil"), net)
        else:
            with pytest.raises(ValueError, match="evil is no file .*, or holds code: Trying to load .*makedirs"):
                read_state(tmp_path / "evil")
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps(evil))
        with pytest.raises(ValueError, match="plain.pkl (is no file of weights|holds an object of .*open, whose code)"):
            read_state(tmp_path / "plain.pkl")
        assert not evil.path.exists()


def test_files_that_hold_no_weights(tmp_path, monkeypatch):
    (tmp_path / "junk.pth").write_text("hello, I am no file of weights")
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    save_file({"a": torch.ones(3)}, tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:40])
    monkeypatch.setattr(foreign_weights, "GUESSES", ("resnet20", "resnet18"))
    for ask, said in (
        (lambda: read_state(tmp_path / "junk.pth"), "junk.pth is no file of weights, or holds code: "),
        (lambda: read_state(tmp_path / "list.pth"), "list.pth holds no state dict"),
        (lambda: read_state(tmp_path / "model.pth"), "holds an object of torch.nn.*Linear, whose code is not run: "),
        (lambda: own_encoder(tmp_path / "cut"), "cut is no safetensors file, or is cut short"),
        (lambda: guess_backbone("it", read_state(tmp_path / "whole")), "it are of none of resnet20, resnet18: say "),
    ):
        with pytest.raises(ValueError, match=said):
            ask()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("layer4.0.conv1.weight"), "layer4.0.conv1.weight is missing$"),
        (
            lambda s: s.update({"layer4.0.convx1.weight": s.pop("layer4.0.conv1.weight")}),
            "layer4.0.conv1.weight is missing, the file has layer4.0.convx1.weight$",
        ),
        (lambda s: s.update(extra=torch.zeros(2)), "extra is too many$"),
        (lambda s: s.update({"bn1.weight": torch.zeros(2)}), r"bn1.weight is \(2,\), not \(64,\)$"),
        (lambda s: [s.pop(n) for n in list(s) if n[:5] == "layer"], r"[^;]*; [^;]*; [^;]* and \d+ more$"),
    ],
)
def test_weights_that_do_not_fit_are_named_the_nearest_first_and_three_of_many(net, change, said):
    wrong = dict(net.state_dict())
    change(wrong)
    with pytest.raises(ValueError, match=f"^the weights in it are not those of 'resnet18': {said}"):
        encoder_of_state("it", wrong, spec())
