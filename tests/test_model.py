"""Encode, predict, decode: what training and inference share."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from golden import FILE, LAMBDAS
from safetensors.torch import load_file

from pisasr.method import model as model_module
from pisasr.method.adapters import merged
from pisasr.method.model import PiSASR, Plan, predict_eps, vae_factor
from pisasr.method.residual import mix_residuals, remove_residual
from pisasr.method.text import PromptEncoder
from pisasr.models.rrdbnet import PixelAutoencoder


@pytest.fixture(scope="module")
def golden():
    return load_file(FILE)


@pytest.fixture
def model(unet, vae):
    return PiSASR(unet, vae)


@pytest.fixture
def prompts(tmp_path):
    return PromptEncoder(tiny.make_tokenizer(tmp_path / "tokenizer"), tiny.make_text_encoder())


@torch.no_grad()
def test_every_step_gives_the_stored_numbers(golden, unet, vae, pix, sem, prompts):
    def assert_near(value, name):
        torch.testing.assert_close(
            value, golden[name], atol=1e-4, rtol=0, msg=lambda text: f"{name}: {text}"
        )

    embeds, model = prompts(""), PiSASR(unet, vae)
    assert_near(embeds[:, :4], "embeds")
    z_L = model.encode(golden["x_L"])
    assert_near(z_L, "z_L")
    assert_near(model.encode(golden["x_L"], golden["noise"]), "z_L_sampled")
    eps_pix = predict_eps(merged(unet, [pix]), z_L, embeds)
    assert_near(eps_pix, "eps_pix")
    eps_full = predict_eps(merged(unet, [pix, sem]), z_L, embeds)
    assert_near(eps_full, "eps_full")
    z_H = remove_residual(z_L, mix_residuals(eps_pix, eps_full, *LAMBDAS))
    assert_near(z_H, "z_H")
    assert_near(model.decode(z_H), "x_H")


def test_the_mean_leaves_nothing_to_chance_and_noise_is_all_that_a_sample_adds(model, golden):
    x = golden["x_L"]
    assert torch.equal(model.encode(x), model.encode(x))
    assert not torch.equal(model.encode(x), model.encode(x, golden["noise"]))


def test_sizes_come_from_the_configs(vae):
    assert vae_factor(vae) == 4
    model = PiSASR(tiny.make_unet(48), PixelAutoencoder())
    x = tiny.wave((1, 3, 20, 28), 1.0)
    z = model.encode(x)
    assert model.factor == 4 and z.shape == (1, 48, 5, 7)
    assert predict_eps(model.unet, z, torch.zeros(1, 77, tiny.CROSS)).shape == z.shape
    assert model.decode(z).shape == x.shape


def test_tiled_coding_gives_the_same_tensors(model):
    x, plan = tiny.wave((1, 3, 48, 40), 1.0), Plan(vae_tile_px=16)
    torch.testing.assert_close(model.encode(x, plan=plan), model.encode(x), atol=1e-5, rtol=0)
    z = model.encode(x)
    torch.testing.assert_close(model.decode(z, plan), model.decode(z), atol=1e-4, rtol=0)


def test_the_unet_computes_in_its_own_dtype_and_answers_in_the_latents(model, golden):
    z, embeds = golden["z_L"], torch.zeros(1, 77, tiny.CROSS)
    exact = predict_eps(model.unet, z, embeds)
    model.unet.to(torch.bfloat16)
    rounded = predict_eps(model.unet, z, embeds)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1


def test_one_embedding_serves_a_batch(model, golden):
    z, embeds = golden["z_L"], tiny.wave((1, 77, tiny.CROSS), 2.0)
    both = predict_eps(model.unet, torch.cat([z, -z]), embeds)
    torch.testing.assert_close(both[1:], predict_eps(model.unet, -z, embeds), atol=1e-5, rtol=0)


def test_each_prompt_is_encoded_once(prompts):
    calls = []
    prompts.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = prompts(["", "a sharp photo"])
    assert torch.equal(prompts(["a sharp photo", ""]), first.flip(0))
    assert first.shape == (2, 77, tiny.CROSS) and len(calls) == 2
    prompts.text_encoder.to(torch.float64)
    assert prompts("").dtype == torch.float64


def test_the_prompt_store_has_a_bound(prompts, monkeypatch):
    monkeypatch.setattr("pisasr.method.text.CACHED", 2)
    for prompt in "abc":
        prompts(prompt)
    assert [key[0] for key in prompts._cache] == ["b", "c"]


def test_noise_is_drawn_where_the_generator_lives():
    like = torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16)
    drawn = model_module.draw_noise(like, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.bfloat16
    assert torch.equal(
        drawn,
        torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    )


def test_a_text_encoder_that_is_offloaded_is_on_the_device_for_new_words_alone(prompts):
    """And none that hooks move, and nowhere where a CPU computes."""
    moves, own = [], prompts.text_encoder

    class Encoder:
        device, dtype = torch.device("cpu"), torch.float32

        def to(self, device):
            moves.append(str(device))

        def __call__(self, ids):
            moves.append("encode")
            return own(ids.ids)

    class Ids:
        def __init__(self, ids):
            self.ids = ids

        def to(self, device):
            return self

    tokenizer = prompts.tokenizer

    class Tokenizer:
        model_max_length = tokenizer.model_max_length

        def __call__(self, *args, **settings):
            return SimpleNamespace(input_ids=Ids(tokenizer(*args, **settings).input_ids))

    encoder = PromptEncoder(Tokenizer(), Encoder(), offload=True)
    for prompt in ("a", "a", "b"):
        encoder(prompt, torch.device("cuda"))
    assert moves == ["cuda", "encode", "cpu"] * 2
    moves.clear()
    encoder("a", torch.device("cpu"))
    encoder.offload = False
    encoder("c", torch.device("cuda"))
    assert moves == ["encode", "encode"]
