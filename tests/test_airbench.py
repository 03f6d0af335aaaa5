"""The airbench network: its sizes counted by hand, its whitening and its identities on images with known statistics."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from oodlib.data import load_images
from oodlib.encoders import Encoder, EncoderSpec, load_encoder, save_encoder
from oodlib.encoders.airbench import SCALE, Airbench, airbench_widths

SPEC = EncoderSpec("airbench_4_6_8", ("a", "b"), ("classifier",), 32, 3, 32, (0.5,) * 3, (0.25,) * 3)


def photographs(n=200, side=32):
    photos = load_images("photos").images
    return torch.from_numpy(photos[:n]).permute(0, 3, 1, 2)[:, :, :side, :side].float() / 255 - 0.5


@pytest.mark.parametrize(
    ("arch", "widths"),
    [("airbench", (64, 256, 256)), ("airbench_32_128_128", (32, 128, 128)), ("resnet20", None), ("airbenches", None)],
)
def test_a_name_gives_the_widths(arch, widths):
    assert airbench_widths(arch) == widths


def test_parameters_are_those_counted_by_hand():
    a, b, c = 32, 128, 128
    convolutions = 9 * (24 * a + a * a + a * b + b * b + b * c + c * c)
    shifts = 24 + 2 * (a + b + c)
    net = Airbench((a, b, c))
    assert sum(p.numel() for p in net.parameters()) == convolutions + shifts
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, c)
    assert net.forward_features(torch.rand(2, 3, 32, 32)).shape == (2, c, 3, 3)
    published = Airbench()  # 2.0 million, its classifier and its fixed layer included
    assert sum(p.numel() for p in published.parameters()) + 2560 + 288 == pytest.approx(2.0e6, rel=0.02)


def test_an_embedding_is_the_largest_of_each_map_scaled():
    net = Airbench((4, 6, 8)).eval()
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(net(x), net.forward_features(x).flatten(2).max(2).values * SCALE)
    for group in net.groups:  # whose first filters start as the identity
        for conv in (group.conv1, group.conv2):
            x = torch.rand(1, conv.in_channels, 5, 5)
            n = min(conv.in_channels, conv.out_channels)
            torch.testing.assert_close(conv(x)[:, :n], x[:, :n])


def test_whitened_patches_have_unit_second_moments_and_no_correlations():
    net, x = Airbench((4, 6, 8)), photographs()
    net.whiten(x)
    found = F.conv2d(x, net.whitening)  # (n, 24, 31, 31)
    torch.testing.assert_close(found[:, 12:], -found[:, :12])
    z = found[:, :12].transpose(0, 1).flatten(1).double()
    moments = z @ z.T / z.shape[1]
    patches = F.unfold(x, 2).transpose(1, 2).flatten(0, 1).double()
    eigenvalues = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)
    torch.testing.assert_close(moments, torch.diag(eigenvalues / (eigenvalues + 5e-4)), rtol=1e-3, atol=1e-3)
    assert moments[0, 0] > 0.999


def test_grey_images_have_four_directions_thrice():
    net, x = Airbench((4, 6, 8)), photographs().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    net.whiten(x)
    filters = net.whitening[:12].flatten(1)
    assert torch.linalg.matrix_rank(filters) == 4
    assert torch.equal(filters[:4], filters[4:8])
    assert torch.equal(filters[:4], filters[8:])
    z = F.conv2d(x, net.whitening[:4]).transpose(0, 1).flatten(1)
    assert (z.square().mean(1) > 0.5).all()


def test_kept_in_half_precision_it_takes_half_the_room_and_gives_nearly_the_same(tmp_path):
    torch.manual_seed(0)
    encoder, x = Encoder(replace(SPEC, arch="airbench_16_64_64")).eval(), torch.rand(4, 3, 32, 32)
    for name, half in (("whole", False), ("half", True)):
        save_encoder(encoder, tmp_path / f"{name}.safetensors", half)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    loaded = load_encoder(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.state_dict().values() if p.is_floating_point()} == {torch.float32}
    torch.testing.assert_close(loaded(x), encoder(x), rtol=2e-2, atol=2e-3)
    for name, tensor in encoder.named_parameters():
        rounded = tensor.half().float() if tensor.ndim > 1 else tensor
        assert torch.equal(loaded.get_parameter(name), rounded)


def test_mirrored_embeds_an_image_and_its_mirror_image_alike():
    torch.manual_seed(0)
    plain = Encoder(SPEC).eval()
    torch.manual_seed(0)
    mirrored = Encoder(replace(SPEC, mirrored=True)).eval()
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(mirrored(x), (plain(x) + plain(x.flip(3))) / 2)
    torch.testing.assert_close(mirrored(x), mirrored(x.flip(3)))
    plain.train(), mirrored.train()
    torch.testing.assert_close(mirrored(x), plain(x))  # while it is trained, an image is an image
