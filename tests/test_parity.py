"""Numbers and pictures of the published implementation, reproduced (skipped if absent)."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pisasr import PiSASRPipeline
from pisasr import pipeline as pipeline_module
from pisasr.method.adapters import active, attach, load_into, merged
from pisasr.method.model import Plan, Predictors, encode_and_predict, predict_eps, restore
from pisasr.models.weights import convert_release
from pisasr.pictures import frames, images

PARTS = 5  # of the 25 cases, so that no test is long
COLOR_FIXES = {"nofix": "none", "adain": "adain", "wavelet": "wavelet"}


def near(value, wanted, name):
    torch.testing.assert_close(value, wanted, atol=1e-4, rtol=0, msg=lambda text: f"{name}: {text}")


@pytest.fixture(scope="module")
def index(parity):
    return json.loads((parity / "index.json").read_text())


@pytest.fixture(params=range(PARTS), ids=lambda part: f"part{part}")
def cases(request, index):
    return index["eval_cases"][request.param :: PARTS]


@pytest.fixture(scope="module")
def published(parity):
    return PiSASRPipeline.from_pretrained(parity / "pipeline", adapters=parity / "pisa_sr.pkl")


@pytest.fixture(scope="module")
def base(parity):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(parity / "pipeline" / "unet").eval()


def test_prompt_embeddings(parity, index, published):
    wanted = load_file(parity / index["text"]["file"])["prompt_embeds"]
    near(published.model.prompt_encoder(index["text"]["prompts"]), wanted, "prompt_embeds")


@torch.no_grad()
def test_the_unet_with_each_set_of_adapters(parity, index, published, base):
    wanted = load_file(parity / index["unet"]["file"])
    z, embeds = wanted["z_in"], wanted["prompt_embeds"]
    near(predict_eps(base, z, embeds), wanted["eps_base"], "eps_base")
    near(predict_eps(base, z, embeds, timestep=500), wanted["eps_base_t500"], "eps_base_t500")
    near(predict_eps(published.unet_pix, z, embeds), wanted["eps_pix"], "eps_pix")
    near(predict_eps(published.unet, z, embeds), wanted["eps_pix_sem"], "eps_pix_sem")

    live = merged(base, [])
    for adapter in convert_release(parity / "pisa_sr.pkl"):
        attach(live, adapter.name, adapter.rank, adapter.alpha)
        load_into(live, adapter.name, adapter.tensors)
    for names, key in (([], "eps_base"), (["pix"], "eps_pix"), (["pix", "sem"], "eps_pix_sem")):
        with active(live, names):
            near(predict_eps(live, z, embeds), wanted[key], f"live {key}")


def test_merged_weights(parity, index, published):
    wanted = load_file(parity / index["unet"]["merged_weights"])
    for name in index["unet"]["merged_names"]:
        near(published.unet_pix.get_parameter(f"{name}.weight"), wanted[f"{name}.pix"], name)
        near(published.unet.get_parameter(f"{name}.weight"), wanted[f"{name}.pix_sem"], name)


@torch.no_grad()
def test_every_case_as_tensors(parity, cases, published):
    """From the published prepared input on, so that cases of squeezed sizes count, too."""
    model, embeds = published.model, published.model.prompt_encoder("")
    unets = published.unet_pix, published.unet
    for case in cases:
        name, options, wanted = case["name"], case["options"], load_file(parity / case["tensors"])
        x_L = images.to_tensor(Image.open(parity / case["prepared_input"])) * 2 - 1
        predictors = Predictors(
            *(partial(predict_eps, unet, prompt_embeds=embeds) for unet in unets)
        )
        plan = Plan(options["latent_tiled_size"], options["latent_tiled_overlap"])
        z_L, *found = encode_and_predict(model, x_L, predictors, plan, wanted.get("vae_noise"))
        near(z_L, wanted["z_L"], f"{name} z_L")
        for key, eps in zip(("eps_pix", "eps_full"), found, strict=True):
            if key in wanted:
                near(eps, wanted[key], f"{name} {key}")
        pair = options["lambda_pix"], options["lambda_sem"]
        ((x_H, z_H),) = restore(model, x_L, predictors, [pair], plan, wanted.get("vae_noise"))
        near(z_L - z_H, wanted["eps_used"], f"{name} eps_used")
        near(z_H, wanted["z_H"], f"{name} z_H")
        if "decoded" in wanted:
            near(x_H, wanted["decoded"], f"{name} decoded")


def repair(published, picture, case, tensors, monkeypatch, **changes):
    options = case["options"]
    if "vae_noise" in tensors:
        monkeypatch.setattr(
            pipeline_module, "draw_noise", lambda like, generator: tensors["vae_noise"]
        )
    settings = {
        "upscale": options["upscale"],
        "process_size": options["process_size"],
        "color_fix": COLOR_FIXES[options["align_method"]],
        "tile_size": options["latent_tiled_size"],
        "tile_overlap": options["latent_tiled_overlap"],
        "generator": 0 if "vae_noise" in tensors else None,
    }
    return published(
        picture, options["lambda_pix"], options["lambda_sem"], **{**settings, **changes}
    ).images[0]


def assert_alike(picture, wanted, name):
    assert picture.size == wanted.size, name
    difference = np.abs(
        np.asarray(picture).astype(int) - np.asarray(wanted.convert("RGB")).astype(int)
    )
    assert difference.max() <= 3 and difference.mean() <= 0.6, (
        name,
        difference.max(),
        difference.mean(),
    )


def test_every_picture_whose_sizes_the_published_code_does_not_squeeze(
    parity, cases, published, monkeypatch
):
    compared = 0
    for case in cases:
        picture, upscale = Image.open(parity / case["input"]), case["options"]["upscale"]
        frame = frames.plan_frame(*picture.size, upscale, case["options"]["process_size"])
        if frame.content != frame.padded:
            continue  # published: floored to a multiple of 8 and resized; not here
        with monkeypatch.context() as patch:
            result = repair(published, picture, case, load_file(parity / case["tensors"]), patch)
        assert_alike(result, Image.open(parity / case["expected_png"]), case["name"])
        compared += 1
    assert compared > 0


def test_every_picture_from_its_prepared_input(parity, cases, published, monkeypatch):
    """The published sizes fed in as they are (upscale 1), so the squeezed cases count too."""
    for case in cases:
        prepared = Image.open(parity / case["prepared_input"])
        with monkeypatch.context() as patch:
            tensors = load_file(parity / case["tensors"])
            result = repair(published, prepared, case, tensors, patch, upscale=1, process_size=8)
        wanted = Image.open(parity / case["expected_png"])
        if (
            result.size != wanted.size
        ):  # published step 7: small pictures come back to their own size
            result = result.resize(wanted.size, Image.Resampling.BICUBIC)
        assert_alike(result, wanted, case["name"])
