"""Losses: what has a weight is computed, and the total is their weighted sum."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from pisasr.method.adapters import active, attach, parameters_of
from pisasr.method.color import wavelet
from pisasr.method.model import PiSASR
from pisasr.models.rrdbnet import PixelAutoencoder, RRDBNet
from pisasr.training import critic
from pisasr.training.config import StageConfig
from pisasr.training.losses import (
    Batch,
    Scorers,
    color_l2,
    minus_psnr,
    pixel_l2,
    score,
    taught_by_base,
)


def test_l2_is_the_mean_of_squares_in_float32():
    a, b = torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16), torch.full((1, 3, 2, 2), 0.5)
    assert pixel_l2(a, b).item() == 0.25 and pixel_l2(a, b).dtype == torch.float32


def test_minus_psnr_is_the_mean_of_decibels_and_differs_from_the_decibels_of_the_mean():
    x_pred = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1).expand(2, 3, 4, 4)  # 20 and 40 dB
    assert minus_psnr(x_pred, torch.zeros(2, 3, 4, 4)).item() == pytest.approx(-30, abs=1e-3)


def test_the_color_loss_sees_a_tint_and_no_grain():
    x_H, grain = torch.zeros(1, 3, 32, 24), torch.ones(32, 24)
    grain[::2] = -1
    assert color_l2(x_H + grain, x_H).item() == 0
    tint = torch.tensor([0.5, 0, 0])[:, None, None]
    assert color_l2(x_H + tint, x_H).item() == pytest.approx(1 / 12)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 3, 0), (0.5, 2, 4)])
def test_the_total_is_the_sum_of_what_has_a_weight(weights):
    x_H = torch.zeros(2, 3, 4, 4)
    batch = Batch(x_L=x_H, x_H=x_H, captions=["", ""], seeds=[0, 1])
    x_pred = torch.full_like(x_H, 0.5, requires_grad=True)
    scorers = Scorers(torch.nn.PairwiseDistance(), lambda batch, z_H: z_H.sum())
    settings = StageConfig(
        **dict(zip(("weight_l2", "weight_lpips", "weight_csd"), weights, strict=True))
    )
    z_H = 3 * x_pred.mean((2, 3), keepdim=True)
    total, values = score(settings, scorers, batch, x_pred, z_H)
    names = [name for name, weight in zip(("l2", "lpips", "csd"), weights, strict=True) if weight]
    assert list(values) == [*names, "total"] and not values["total"].requires_grad
    expected = sum(settings.weights[name] * values[name] for name in names)
    assert total.item() == pytest.approx(expected.item()) and total.requires_grad


def test_pixels_are_the_photos_and_the_look_is_the_targets():
    x_H, x_pred = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.5)
    batch = Batch(x_L=x_H, x_H=x_H, captions=[""], seeds=[0])
    settings = StageConfig(weight_psnr=1, weight_color=1, weight_lpips=1, weight_critic=1)
    looks = {
        "lpips": lambda x_pred, x_seen: (x_pred - x_seen).abs(),  # in [0, 1]
        "critic": lambda x_pred, x_seen: (x_pred - x_seen).mean(),
    }
    for target, lpips, truer in ((None, 0.25, 0.5), (lambda batch: batch.x_H - 0.5, 0.5, 1)):
        _, values = score(settings, Scorers(**looks, target=target), batch, x_pred, x_pred)
        expected = {"l2": 0.25, "psnr": 10 * math.log10(0.25 / 4), "color": 0.25}
        expected |= {"lpips": lpips, "critic": truer}
        del values["total"]
        assert {name: value.item() for name, value in values.items()} == pytest.approx(expected)


@torch.no_grad()
def test_the_base_teaches_by_its_picture_of_the_small_photo_in_the_photos_tones():
    torch.manual_seed(0)
    unet = RRDBNet(blocks=1, features=8, growth=4)
    x_H = avg_pool2d(torch.rand(1, 3, 64, 64), 5, 1, 2) * 2 - 1
    small = interpolate(x_H / 2 + 0.5, scale_factor=1 / 4, mode="bicubic", antialias=True)
    own = unet.upscale(small)
    attach(unet, "pix", 2, 8)
    for key, parameter in parameters_of(unet, "pix").items():
        parameter.fill_(1.0 if ".lora_B." in key else parameter.mean())
    model = PiSASR(unet, PixelAutoencoder(), lambda prompts: None)
    batch = Batch(x_L=-x_H, x_H=x_H, captions=[""], seeds=[0])
    with active(unet, ["pix"]):
        taught = taught_by_base(batch, model, 4, ratio=1) / 2 + 0.5
    torch.testing.assert_close(taught, wavelet(own, x_H / 2 + 0.5), atol=2e-2, rtol=0)
    assert (taught - own).abs().mean() > 0.1
    many = replace(batch, x_H=x_H[:, :, :8, :8].repeat(40, 1, 1, 1), seeds=list(range(40)))
    changed = (taught_by_base(many, model, 4, ratio=0.3) != many.x_H).flatten(1).any(1)
    assert 5 < changed.sum() < 20


@pytest.fixture
def build_critic(monkeypatch):
    monkeypatch.setitem(critic.CHANNELS, "tiny", (8, 12))
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 12, 3, stride=2)
    trunk = torch.nn.Sequential(first, second).requires_grad_(False)

    def features(x):
        seen = trunk[0](x).relu()
        return seen, trunk[1](seen).relu(), None  # a depth beyond those that are judged

    return lambda: critic.Critic(SimpleNamespace(features=features), "tiny", lambda grad: grad)


def draw(step, sharpness):
    """Restored pictures, blurred photos to a degree, and the photos."""
    x_H = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(step)) * 2 - 1
    blurred = avg_pool2d(x_H, 3, 1, 1)
    return blurred + sharpness * (x_H - blurred), x_H


def test_the_critic_learns_to_tell_and_pulls_toward_photos(build_critic):
    judge, sharpness = build_critic(), torch.tensor(0.2, requires_grad=True)
    values = [judge(*draw(step, sharpness)).item() for step in range(150)]
    assert values[0] == pytest.approx(0.69, abs=0.03) and values[-1] > 1.2  # log 2: it can't tell
    judge(*draw(999, sharpness)).backward()
    assert sharpness.grad < 0 and all(p.requires_grad for p in judge.heads.parameters())


def test_the_critic_goes_on_where_it_was_to_the_bit(build_critic):
    def teach(judge, steps):
        return [judge(*draw(step, torch.tensor(0.2))).item() for step in steps]

    once, begun, resumed = build_critic(), build_critic(), build_critic()
    values = teach(once, range(7))
    teach(begun, range(3))
    resumed.load(begun.state())
    assert teach(resumed, range(3, 7)) == values[3:]
    assert all(map(torch.equal, once.heads.parameters(), resumed.heads.parameters()))
