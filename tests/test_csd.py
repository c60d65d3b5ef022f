"""Classifier score distillation, against its own formula and against the published code."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pisasr.method.model import predict_eps
from pisasr.models.bases import load_base
from pisasr.training.csd import ClassifierScoreDistillation

ALPHAS = torch.linspace(0.999, 0.01, 1000)


def distil(z, e_neg, e_pos, t, noise, cfg=7.5):
    """The loss under a teacher whose guesses are given; its first half is asked for the negative
    prompt.
    """

    def teacher(z_t, t, embeds):
        return torch.cat([e_neg, e_pos])

    embeds = torch.zeros(len(z), 1, 1)
    return ClassifierScoreDistillation(ALPHAS, cfg=cfg)(z, teacher, embeds, embeds, t, noise)


def test_gradient_is_the_direction_between_the_two_guesses():
    generator = torch.Generator().manual_seed(0)
    z, e_neg, e_pos, noise = torch.randn(4, 2, 4, 6, 5, generator=generator)
    z.requires_grad_()
    t = torch.tensor([20, 400])
    distil(z, e_neg, e_pos, t, noise, cfg=3.0).backward()

    alpha = ALPHAS[t].view(-1, 1, 1, 1)
    z_t = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
    guided = (z_t - (1 - alpha).sqrt() * (e_neg + 3 * (e_pos - e_neg))) / alpha.sqrt()
    pull = (
        ((1 - alpha) / alpha).sqrt()
        * 3
        * (e_pos - e_neg)
        / (z - guided).abs().mean((1, 2, 3), keepdim=True)
    )
    torch.testing.assert_close(z.grad, 2 * pull.detach() / z.numel(), rtol=1e-4, atol=1e-7)


def test_teachers_that_agree_pull_nowhere():
    z = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    same = torch.zeros_like(z)
    distil(z, same, same, torch.tensor([100]), torch.zeros_like(z)).backward()
    assert z.grad.abs().max() == 0


def test_every_sample_pulls_on_its_own():
    generator = torch.Generator().manual_seed(1)
    z, e_neg, e_pos, noise = torch.randn(4, 2, 4, 5, 5, generator=generator)
    t = torch.tensor([50, 300])
    both, one = z.clone().requires_grad_(), z[:1].clone().requires_grad_()
    distil(both, e_neg, e_pos, t, noise).backward()
    distil(one, e_neg[:1], e_pos[:1], t[:1], noise[:1]).backward()
    torch.testing.assert_close(both.grad[:1] * 2, one.grad)


def test_timesteps_stay_in_their_range():
    loss, generator = (
        ClassifierScoreDistillation(ALPHAS, t_min=20, t_max=23),
        torch.Generator().manual_seed(0),
    )
    assert {int(loss.draw_t(generator)) for _ in range(60)} == {20, 21, 22}


@pytest.fixture(scope="module")
def published(parity):
    base = load_base(parity / "pipeline")
    cases = json.loads((parity / "index.json").read_text())["csd"]["cases"]
    return base, cases, load_file(parity / "tensors" / "csd.safetensors")


@pytest.mark.parametrize("number", range(4))
def test_value_and_gradient_are_the_published_ones(published, number):
    base, cases, tensors = published
    name, cfg = cases[number]["case"], cases[number]["cfg"]
    z, pos, neg, t, noise = (
        tensors[f"{name}.{key}"]
        for key in ("latents", "pos_embeds", "neg_embeds", "timesteps", "noise")
    )
    z = z.clone().requires_grad_()
    distill = ClassifierScoreDistillation(base["scheduler"].alphas_cumprod, cfg)
    loss = distill(
        z, lambda z_t, t, embeds: predict_eps(base["unet"], z_t, embeds, t), pos, neg, t, noise
    )
    loss.backward()
    assert loss.item() == pytest.approx(cases[number]["loss"], rel=1e-5)
    expected = tensors[f"{name}.grad_latents"]
    assert (z.grad - expected).abs().max() <= 1e-5 * expected.abs().max()
