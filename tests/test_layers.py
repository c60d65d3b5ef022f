"""Layers computed in fewer steps give what diffusers' layers give."""

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pisasr.method.layers import FoldedUpsample2D, enlarge, set_memory_format, use_fast_layers


def pair(channels=6, out=5, dtype=torch.float64):
    torch.manual_seed(0)
    plain = Upsample2D(channels, use_conv=True, out_channels=out).to(dtype)
    fast = Upsample2D(channels, use_conv=True, out_channels=out).to(dtype)
    fast.load_state_dict(plain.state_dict())
    use_fast_layers(nn.Sequential(fast))
    assert type(fast) is FoldedUpsample2D
    return plain, fast


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (5, 4), (8, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_folded_enlargement_is_the_enlargement(h, w, layout):
    plain, fast = pair()
    x = torch.randn(2, 6, h, w, dtype=torch.float64).contiguous(memory_format=layout)
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-13, atol=1e-13)
    x.requires_grad_()
    (wanted,), (came,) = (torch.autograd.grad(layer(x).sin().sum(), x) for layer in (plain, fast))
    torch.testing.assert_close(came, wanted, rtol=1e-12, atol=1e-12)


def test_it_costs_four_ninths():
    plain, fast = pair()
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    costs = []
    for layer in (plain, fast):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        costs.append(counter.get_total_flops())
    assert costs[1] * 9 == costs[0] * 4


def test_odd_sides_and_adapters_are_computed_as_before():
    plain, fast = pair()
    x = torch.randn(1, 6, 4, 5, dtype=torch.float64)
    assert torch.equal(fast(x, (7, 10)), plain(x, (7, 10)))
    for layer in (plain, fast):
        layer.conv = nn.Sequential(layer.conv, nn.Tanh())  # any wrapper, as an adapter is
    assert torch.equal(fast(x), plain(x))


def test_taps_of_half_precision_are_summed_in_float32():
    _, fast = pair(dtype=torch.bfloat16)
    x = torch.randn(1, 6, 5, 5).bfloat16()
    exact = enlarge(x.float(), fast.conv.float())
    error = (enlarge(x, fast.conv.bfloat16()).float() - exact).abs().max()
    assert error < 2**-7 * exact.abs().max()


def test_a_whole_unet_is_the_same_and_is_saved_the_same():
    torch.manual_seed(0)
    sizes = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
    }
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    }
    unet = UNet2DConditionModel(sample_size=8, layers_per_block=1, **sizes, **kinds).double().eval()
    z, words = torch.randn(2, 4, 8, 12).double(), torch.randn(2, 3, 8).double()
    odd = z[..., :7, :11]
    with torch.no_grad():
        wanted = [unet(x, 1, encoder_hidden_states=words).sample for x in (z, odd)]
        names = list(unet.state_dict())
        use_fast_layers(unet)
        for x, before in zip((z, odd), wanted, strict=True):
            came = unet(x, 1, encoder_hidden_states=words).sample
            torch.testing.assert_close(came, before, rtol=1e-12, atol=1e-12)
    assert names == list(unet.state_dict())


def test_channels_lie_together_only_where_no_norm_suffers():
    conv, norm = nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)
    set_memory_format(nn.Sequential(conv))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    set_memory_format(nn.Sequential(conv, norm))
    assert conv.weight.is_contiguous()
    set_memory_format(nn.Sequential(conv, norm).bfloat16())
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_pass_of_channels_that_lie_together_hardly_reorders_a_map(capfd):
    """In float32, which oneDNN convolves on any processor; what begins with 5 is a map."""
    vae, unet = tiny.make_vae(), tiny.make_unet()
    for network in (vae, unet):
        use_fast_layers(network)
        network.to(memory_format=torch.channels_last)
    x, words = torch.zeros(5, 3, 32, 32), torch.zeros(5, 2, tiny.CROSS)
    with torch.no_grad(), torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        z = vae.encode(x).latent_dist.mean
        vae.decode(unet(z, 1, encoder_hidden_states=words).sample)
    calls = [line.split(",") for line in capfd.readouterr().out.splitlines() if ",exec," in line]
    kinds = [(call[5], call[-2].partition("x")[0]) for call in calls]
    assert sum(kind == "convolution" for kind, _ in kinds) > 20
    assert kinds.count(("reorder", "5")) <= 20


def test_taps_are_made_anew_when_the_weight_changes():
    plain, fast = pair()
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    for change in (lambda w: None, lambda w: w.mul_(2), lambda w: w.neg_()):
        for layer in (plain, fast):
            with torch.no_grad():
                change(layer.conv.weight)
                layer.came = layer(x)
        torch.testing.assert_close(fast.came, plain.came, rtol=1e-13, atol=1e-13)
    assert list(fast.state_dict()) == list(plain.state_dict())
