"""Layers computed in fewer steps give what diffusers' layers give."""

from copy import deepcopy

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pisasr.method.layers import (
    FoldedUpsample2D,
    RememberingLinear,
    enlarge,
    forget,
    lay_out,
    use_fast_layers,
)
from pisasr.method.model import predict


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
    assert (
        (enlarge(x, fast.conv.bfloat16()).float() - exact).abs() / exact.abs().max()
    ).max() < 2**-7


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
    z, words = (
        torch.randn(2, 4, 8, 12, dtype=torch.float64),
        torch.randn(2, 3, 8, dtype=torch.float64),
    )
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
    lay_out(nn.Sequential(conv))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    lay_out(nn.Sequential(conv, norm))
    assert conv.weight.is_contiguous()


# --- what is computed once ---


def remembering_unet():
    """A tiny UNet that remembers, and its twin of diffusers' own layers."""
    fast, plain = tiny.make_unet().double(), tiny.make_unet().double()
    use_fast_layers(fast)
    return fast, plain


def words(prompts=1, phase=0.0):
    return tiny.wave((prompts, 7, tiny.CROSS), phase).double()


def latents(count=1, phase=0.0):
    return tiny.wave((count, 4, 8, 12), phase).double()


class Calls:
    """How often layers that may remember were computed."""

    def __init__(self, monkeypatch):
        self.count, own = 0, nn.Linear.forward

        def forward(layer, x):
            self.count += type(layer) is RememberingLinear
            return own(layer, x)

        monkeypatch.setattr(nn.Linear, "forward", forward)

    def of(self, call):
        before = self.count
        call()
        return self.count - before


@torch.no_grad()
def test_timestep_and_prompt_are_computed_once_for_a_weight_set_and_nothing_changes(monkeypatch):
    fast, plain = remembering_unet()
    layers = sum(type(module) is RememberingLinear for module in fast.modules())
    resnets = sum(name.endswith("time_emb_proj") for name, _ in fast.named_modules())
    attentions = sum(name.endswith("attn2") for name, _ in fast.named_modules())
    assert layers == 2 + resnets + 2 * attentions and min(resnets, attentions) > 1
    calls, embeds = Calls(monkeypatch), words()
    assert calls.of(lambda: predict(fast, latents(), embeds)) == layers
    for phase in (0.0, 1.0):  # other pictures
        came = predict(fast, latents(phase=phase), embeds)
        torch.testing.assert_close(
            came, predict(plain, latents(phase=phase), embeds), rtol=1e-12, atol=1e-12
        )
    assert calls.of(lambda: predict(fast, latents(phase=2.0), embeds)) == 0
    assert (
        calls.of(lambda: fast(latents(), 1, encoder_hidden_states=embeds)) == layers
    )  # by whom promises nothing


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    ["words", "words written over", "batch", "timestep", "weights", "bias", "dtype", "time"],
)
def test_what_changes_is_computed_anew(change):
    fast, plain = remembering_unet()
    z, embeds, timestep = latents(), words(), 1
    predict(fast, z, embeds)
    if change == "words":
        embeds = words(phase=1.0)
    elif change == "words written over":
        embeds.neg_()
    elif change == "batch":
        z, embeds = latents(4), words(2)
    elif change == "timestep":
        timestep = 500
    else:
        name = {"bias": "time_emb_proj.bias", "time": "time_embedding.linear_1.weight"}.get(
            change, ""
        )
        for unet in (fast, plain):
            if change == "dtype":
                unet.float()
            for parameter in (
                p for own, p in unet.named_parameters() if change != "dtype" and own.endswith(name)
            ):
                parameter.mul_(1.5)
    tolerance = 1e-4 if change == "dtype" else 1e-11
    wanted = predict(plain, z, embeds, timestep)
    torch.testing.assert_close(
        predict(fast, z, embeds, timestep), wanted, rtol=tolerance, atol=tolerance
    )
    assert change == "dtype" or not torch.allclose(
        wanted[-1:], predict(remembering_unet()[1], latents(), words())
    )


def test_inference_mode_may_come_and_go():
    fast, plain = remembering_unet()
    z, embeds = latents(), words()
    with torch.inference_mode():
        inside = [predict(fast, z, own) for own in (embeds, words(), embeds)]
    z.requires_grad_()
    wanted = predict(plain, z, embeds)
    came = predict(fast, z, embeds)
    came.sum().backward()
    assert z.grad is not None
    for one in [*inside, came]:
        torch.testing.assert_close(one, wanted, rtol=1e-11, atol=1e-11)


def test_where_weights_learn_nothing_is_remembered():
    fast, plain = remembering_unet()
    embeds, gradients = words(), []
    for unet in (fast, plain):
        unet.requires_grad_(True)
        for _ in range(2):
            unet.zero_grad()
            predict(unet, latents(), embeds).square().sum().backward()
        gradients.append([parameter.grad for parameter in unet.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert not any("_remembered" in module.__dict__ for module in fast.modules())


@torch.no_grad()
def test_what_is_remembered_is_not_saved_and_can_be_forgotten(monkeypatch):
    fast, _ = remembering_unet()
    names, embeds = list(fast.state_dict()), words()
    predict(fast, latents(), embeds)
    assert list(fast.state_dict()) == names
    forget(fast)
    assert Calls(monkeypatch).of(lambda: predict(fast, latents(), embeds)) > 0
    copy = deepcopy(fast)
    for parameter in copy.parameters():
        parameter.mul_(0.5)
    assert not torch.allclose(predict(copy, latents(), embeds), predict(fast, latents(), embeds))
