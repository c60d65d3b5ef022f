"""A VAE in bands gives the whole picture's result, in less memory, and leaves its input alone."""

import warnings
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pisasr.method.vae_tiling import Bands, _attend, _windows, decode_tiled, encode_tiled

# height, width, tile in latent pixels
CUTS = [(16, 16, 5), (9, 20, 3), (1, 40, 2), (40, 1, 3), (15, 9, 1), (3, 2, 2)]


def small_vae(attention=True, channels=(16, 16, 32), **config):
    """Seeded, fourfold, and with norms that scale and shift, so that a wrong statistic shows."""
    from diffusers import AutoencoderKL  # here, after pisasr made it importable

    torch.manual_seed(0)
    levels = len(channels)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=8,
        mid_block_add_attention=attention,
        **config,
    )
    for norm in (m for m in vae.modules() if isinstance(m, nn.GroupNorm)):
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
    return vae.eval()


shared_vae = cache(small_vae)  # for tests that only call it


def picture(h, w, batch=1):
    """Noise on a strong slope: bands differ in mean, so that statistics joined wrongly show."""
    slope = torch.linspace(-1, 1, h).view(-1, 1) + torch.linspace(-1, 1, w)
    return slope + 0.5 * torch.randn(batch, 3, h, w, generator=torch.Generator().manual_seed(h))


def latent(h, w, channels=4, batch=1):
    seeded = torch.Generator().manual_seed(w)
    return picture(h, w, batch)[:, :1] + torch.randn(batch, channels, h, w, generator=seeded)


def assert_equal_images(came, wanted):
    size = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(came, wanted, rtol=0, atol=2e-5 * size)


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once, but for convolutions' workspaces."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = WeakIdKeyDictionary(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.live.values()))
        return out


@pytest.mark.parametrize(("attention", "low_memory"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize(("h", "w", "tile"), CUTS)
@torch.no_grad()
def test_decoding_in_bands_is_decoding(attention, low_memory, h, w, tile):
    vae, z = shared_vae(attention), latent(h, w, batch=2)
    assert_equal_images(decode_tiled(vae, z, tile, low_memory), vae.decode(z).sample)


@pytest.mark.parametrize(("attention", "low_memory"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize(("h", "w", "tile"), CUTS)
@torch.no_grad()
def test_encoding_in_bands_is_encoding(attention, low_memory, h, w, tile):
    vae, x = shared_vae(attention), picture(4 * h, 4 * w, batch=2)
    tiled, whole = encode_tiled(vae, x, 4 * tile, low_memory), vae.encode(x).latent_dist
    assert_equal_images(tiled.mean, whole.mean)
    assert_equal_images(tiled.std, whole.std)


@torch.no_grad()
def test_attention_over_few_queries_at_a_time_is_attention(monkeypatch):
    vae, z = small_vae(), latent(9, 14)
    monkeypatch.setattr("pisasr.method.vae_tiling.ATTENTION_SCORES", 1000)
    assert_equal_images(decode_tiled(vae, z, 4), vae.decode(z).sample)


@torch.no_grad()
def test_a_larger_map_attends_to_the_window_around_each_block(monkeypatch):
    """Against diffusers' own attention, asked for each block's window alone."""
    monkeypatch.setattr("pisasr.method.vae_tiling.WINDOW", 6)
    monkeypatch.setattr("pisasr.method.vae_tiling.BLOCK", 3)
    attention = small_vae().decoder.mid_block.attentions[0]
    x = latent(11, 8, channels=attention.group_norm.num_channels)
    normed = attention.group_norm(x)
    attention.group_norm = torch.nn.Identity()
    wanted = torch.zeros_like(x)
    for block, window in _windows(11, 8):
        assert window.height * window.width == 36
        inner = block._replace(top=block.top - window.top, left=block.left - window.left)
        seen = window.crop(normed).contiguous()
        added = attention(seen) - seen
        block.crop(wanted).copy_(block.crop(x) + inner.crop(added))
    attention = shared_vae(True).decoder.mid_block.attentions[0]
    torch.testing.assert_close(_attend(attention, x, Bands(2, 3)), wanted)


@pytest.mark.parametrize(
    ("height", "width"), [(128, 128), (4, 4096), (129, 128), (300, 20), (20, 1500), (512, 512)]
)
def test_blocks_cover_a_map_once_and_lie_in_windows_of_one_area(height, width):
    seen = torch.zeros(height, width, dtype=torch.int)
    for block, window in _windows(height, width):
        block.crop(seen).add_(1)
        assert window.height * window.width <= 128**2
        assert 0 <= window.top <= block.top and 0 <= window.left <= block.left
        assert block.top + block.height <= window.top + window.height <= height
        assert block.left + block.width <= window.left + window.width <= width
    assert (seen == 1).all()


@torch.no_grad()
def test_a_vae_without_quant_convs_and_with_single_layers_is_known():
    no_quant = {"use_quant_conv": False, "use_post_quant_conv": False}
    vae = small_vae(layers_per_block=2, latent_channels=6, **no_quant)
    x, z = picture(32, 40), latent(8, 10, channels=6)
    assert_equal_images(encode_tiled(vae, x, 8).mean, vae.encode(x).latent_dist.mean)
    assert_equal_images(decode_tiled(vae, z, 3), vae.decode(z).sample)


@torch.no_grad()
def test_inputs_and_weights_are_left_alone():
    vae, x = small_vae(), picture(48, 32)
    z = latent(12, 8, channels=vae.config.latent_channels)
    kept = [x.clone(), z.clone(), *(p.clone() for p in vae.parameters())]
    encode_tiled(vae, x, 8)
    decode_tiled(vae, z, 2)
    assert all(map(torch.equal, [x, z, *vae.parameters()], kept))


@torch.no_grad()
def test_what_fits_one_tile_is_computed_whole():
    vae, x = small_vae(), picture(16, 64)
    z = latent(4, 16, channels=vae.config.latent_channels)
    assert torch.equal(encode_tiled(vae, x, 32).parameters, vae.encode(x).latent_dist.parameters)
    assert torch.equal(decode_tiled(vae, z, 8), vae.decode(z).sample)


@torch.no_grad()
def test_half_precision_is_as_near_to_float32_as_untiled():
    vae, z = small_vae(), latent(16, 24)
    exact = vae.decode(z).sample
    vae.bfloat16()
    untiled = (vae.decode(z.bfloat16()).sample.float() - exact).norm()
    tiled = decode_tiled(vae, z.bfloat16(), 6)
    assert tiled.dtype == torch.bfloat16 and (tiled.float() - exact).norm() < 1.2 * untiled


@torch.no_grad()
def test_bands_hold_two_maps_and_no_more():
    vae, z = small_vae(attention=False), latent(32, 24)
    with PeakBytes() as whole:
        vae.decode(z)
    with PeakBytes() as tiled:
        decode_tiled(vae, z, 5)
    one_map = 16 * z.shape[-2] * z.shape[-1] * 16 * z.element_size()  # 16 channels at image size
    two_widest = 3 * one_map  # where the last level takes 32 channels in and gives 16
    assert tiled.peak < min(1.25 * two_widest, 0.65 * whole.peak)


@torch.no_grad()
def test_unknown_layers_are_named_and_the_picture_still_comes_out():
    vae, z = small_vae(), latent(8, 8)
    vae.decoder.mid_block.resnets[0].nonlinearity = nn.GELU()
    said = r"mid_block.resnets.0.nonlinearity \(GELU\).* the decoder whole"
    with pytest.warns(UserWarning, match=said):
        tiled = decode_tiled(vae, z, 4)
    assert torch.equal(tiled, vae.decode(z).sample)
    with warnings.catch_warnings(action="error"):
        encode_tiled(vae, picture(32, 32), 16)


@pytest.mark.parametrize("side", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_bands_cover_an_axis_once(side, count):
    edges = Bands(2, count).along(side)
    assert [edge for band in edges for edge in band][1:-1:2] == [start for start, _ in edges[1:]]
    assert (edges[0][0], edges[-1][1]) == (0, side)
    assert all(start < stop for start, stop in edges)


@torch.no_grad()
def test_published_decodings_come_out_of_bands(parity):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(parity / "pipeline" / "vae").eval()
    for name in ("default_nofix", "floor8_up2_adain"):
        published = load_file(parity / "tensors" / f"{name}.safetensors")
        x = decode_tiled(vae, published["z_H"] / vae.config.scaling_factor, 3)
        torch.testing.assert_close(x, published["decoded"], rtol=0, atol=1e-4)
