"""Numbers that are none, or all the same: caught wherever they arise, tried once more in float32,
never written.
"""

from functools import partial

import numpy as np
import pytest
import tiny
import torch
from tiny import equal

from pisasr import PiSASRPipeline
from pisasr.errors import PisasrError, UserNotice

photo = partial(tiny.photo, 24, 20)
SMALL = {"upscale": 2, "process_size": 16, "lambda_sem": 0.5}
TILED = {**SMALL, "tile_size": 6, "tile_overlap": 2}


def spoil(module, change, low_alone: bool = False) -> list[torch.dtype]:
    """Have a network's answer changed in place; returns the dtypes that it was asked in, a list
    that grows.
    """
    asked = []

    def after(module, inputs, output):
        asked.append(module.dtype)
        if not low_alone or module.dtype != torch.float32:
            change(output[0] if isinstance(output, tuple) else output.sample, len(asked))

    module.register_forward_hook(after)
    return asked


def one_pixel(value):
    return lambda x, number: x[..., 3, 2].fill_(value)


def one_tile(x, number):
    if number == 2:
        x.fill_(torch.nan)


def everything(x, number):
    x.fill_(torch.nan)


SITES = {
    "unet, a pixel": ("unet", one_pixel(torch.inf)),
    "unet, a tile": ("unet", one_tile),
    "unet_pix, all": ("unet_pix", everything),
    "unet_pix, a pixel": ("unet_pix", one_pixel(-torch.inf)),
}


@pytest.mark.parametrize("site", SITES)
def test_an_answer_of_a_unet_that_is_not_finite_is_an_error(pipe, site):
    part, change = SITES[site]
    spoil(getattr(pipe, part), change)
    with pytest.raises(PisasrError, match="the model answered with nan or inf; try float32"):
        pipe(photo(), **TILED)


@pytest.mark.parametrize("step", ["encode", "decode"])
@pytest.mark.parametrize("where", [..., (..., 3, 2)])
def test_an_answer_of_the_vae_that_is_not_finite_is_an_error(pipe, monkeypatch, step, where):
    own = getattr(pipe.vae, step)

    def wrong(x):
        answer = own(x)
        (answer.sample if step == "decode" else answer.latent_dist.mean)[where] = torch.nan
        return answer

    monkeypatch.setattr(pipe.vae, step, wrong)
    with pytest.raises(PisasrError, match="nan or inf"):
        pipe(photo(), **SMALL, output_type="latent" if step == "encode" else "pil")


@pytest.mark.parametrize("part", ["unet", "unet_pix"])
def test_what_half_precision_can_not_hold_is_made_once_more_in_float32(base_folder, part):
    """The picture is float32's, with the weights as half precision has them, and these are what
    they were.
    """
    pipe = PiSASRPipeline.from_pretrained(base_folder, torch_dtype=torch.bfloat16)
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    asked = spoil(getattr(pipe, part), one_pixel(torch.inf), low_alone=True)
    with pytest.warns(UserNotice, match="in torch.bfloat16; once more in float32"):
        prediction = pipe.predict(photo(), upscale=2, process_size=16)
    assert (
        asked == [torch.bfloat16, torch.float32]
        and pipe.unet.dtype == pipe.vae.dtype == torch.bfloat16
    )
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.unet.state_dict().items())
    for network in (pipe.vae, pipe.unet, pipe.unet_pix):
        network.to(torch.float32)
    wanted = pipe.predict(photo(), upscale=2, process_size=16)
    assert torch.equal(prediction.latents.eps_pix, wanted.latents.eps_pix) and torch.equal(
        prediction.latents.eps_full, wanted.latents.eps_full
    )


def test_a_vae_that_overflows_in_float16_is_asked_once_more(base_folder):
    """As Stable Diffusion's own does on some pictures: its widest maps pass 65,504."""
    pipe = PiSASRPipeline.from_pretrained(base_folder, torch_dtype=torch.float16)
    pipe.vae.decoder.conv_in.weight.data *= 60_000
    pipe.vae.decoder.conv_in.bias.data *= 60_000
    options = {"upscale": 2, "process_size": 16}
    prediction = pipe.predict(photo(), **options)
    with pytest.warns(UserNotice, match="in torch.float16; once more in float32"):
        came = pipe.decode(prediction, lambda_sem=0.5)
    assert pipe.vae.dtype == torch.float16
    assert (
        equal(came, pipe.to(torch.float32).decode(prediction, lambda_sem=0.5))
        and np.asarray(came).std() > 1
    )


def test_unusual_strengths_are_told_and_usual_ones_are_not(pipe, recwarn):
    prediction = pipe.predict(photo(), upscale=2, process_size=16)
    for pair in [(1, 1), (0, 3), (-1, 1.5)]:
        pipe.decode(prediction, *pair)
    assert not [warning for warning in recwarn if issubclass(warning.category, UserNotice)]
    for pair, told in [((1, 4), "lambda_sem is 4;"), ((-1000.0, 1), "lambda_pix is -1000;")]:
        with pytest.warns(UserNotice, match=told):
            pipe.decode(prediction, *pair)
    with pytest.warns(UserNotice, match=r"lambda_pix is 1e\+30;"), pytest.raises(PisasrError):
        pipe.decode(prediction, 1e30, 1)
    steep = np.linspace(0, 50, 24 * 20, dtype=np.float32).reshape(20, 24)
    with pytest.warns(UserNotice, match="lambda_pix is 50;"):
        pipe.decode(prediction, steep, 1)
