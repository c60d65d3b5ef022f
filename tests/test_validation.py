"""Validation: the right pictures, the right scores, and a training that stays as it was."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from pisasr.errors import PisasrError
from pisasr.evaluation.metrics import psnr
from pisasr.method.adapters import active, active_names, attach, load_into, parameters_of
from pisasr.method.model import PiSASR
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import load_others
from pisasr.pipeline import PiSASRPipeline
from pisasr.training.config import DataConfig, RunConfig, TrainConfig, ValidationConfig
from pisasr.training.stages import stages_of
from pisasr.training.validation import Validator, read_pairs, restore_picture

PIX, SEM = stages_of(TrainConfig(data=DataConfig(photos=[]), run=RunConfig(output="")))


def picture(seed, width=48, height=40):
    """Smooth shapes with some noise: neither flat nor all noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3))
    waves = [90 + 60 * np.sin(x / (3 + seed + c)) * np.cos(y / (4 + c)) for c in range(3)]
    return Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Three pairs, LQ a quarter of HQ's sides."""
    for name in ("lq", "hq"):
        (tmp_path / "val" / name).mkdir(parents=True)
    for i in range(3):
        hq = picture(i)
        hq.save(tmp_path / "val" / "hq" / f"{i}.png")
        hq.resize((12, 10), Image.Resampling.BICUBIC).save(tmp_path / "val" / "lq" / f"{i}.png")
    (tmp_path / "out").mkdir()
    return tmp_path / "val"


@pytest.fixture(scope="module")
def shared_model(base_folder):
    """The tiny base with both adapters live and filled; tests leave it as it was."""
    unet = tiny.make_unet()
    for name, rank in (("pix", 4), ("sem", 2)):
        adapter = tiny.make_adapter(tiny.make_unet(), name, rank)
        attach(unet, name, rank, adapter.alpha)
        load_into(unet, name, adapter.tensors)
    base = load_others(base_folder)
    return PiSASR(unet, base["vae"], PromptEncoder(base["tokenizer"], base["text_encoder"]))


@pytest.fixture
def model(shared_model):
    held = {key: p.detach().clone() for key, p in parameters_of(shared_model.unet, "pix").items()}
    yield shared_model
    load_into(shared_model.unet, "pix", held)


class Difference(torch.nn.Module):
    """A stand-in for LPIPS."""

    def forward(self, x, y):
        return (x - y).abs().mean((1, 2, 3))


def build(folder, **settings):
    validation = ValidationConfig(every=1, pairs=str(folder), **settings)
    output = str(folder.parent / "out")
    return Validator.build(
        TrainConfig(data=DataConfig(photos=[]), validation=validation, run=RunConfig(output=output))
    )


@torch.no_grad()
def test_it_restores_what_inference_restores(model, base_folder):
    """On a size that is no multiple of 8; merged weights round differently."""
    lq, pairs = picture(1, 45, 38), [(1.0, 0.0), (1.0, 1.0)]
    pipe = PiSASRPipeline.from_pretrained(base_folder, torch_dtype=torch.float32)
    for pair, found in zip(pairs, restore_picture(model, lq, pairs), strict=True):
        (expected,) = pipe(lq, *pair, upscale=1, process_size=1, color_fix="none").images
        difference = np.abs(np.asarray(found, int) - np.asarray(expected, int))
        assert found.size == lq.size and difference.max() <= 1 and difference.mean() < 0.01


@torch.no_grad()
def test_scores_are_means_and_the_sheet_has_every_picture(model, folder):
    validator = build(folder)
    chance = torch.get_rng_state()
    with active(model.unet, ("pix",)):
        scores, sheet = validator.run(model, SEM, 7, Difference())
        assert active_names(model.unet) == ["pix"]
    assert torch.equal(torch.get_rng_state(), chance)
    names = ("lq", "pix1_sem0", "pix1_sem1")
    assert list(scores) == [f"{metric}/{name}" for metric in ("lpips", "psnr") for name in names]
    lqs = [np.asarray(pair.lq) for pair in validator.pairs]
    hqs = [np.asarray(pair.hq) for pair in validator.pairs]
    expected = np.mean([psnr(lq, hq) for lq, hq in zip(lqs, hqs, strict=True)])
    assert scores["psnr/lq"] == pytest.approx(expected)
    restored = [np.asarray(restore_picture(model, p.lq, [(1.0, 1.0)])[0]) for p in validator.pairs]
    expected = np.mean([psnr(sr, hq) for sr, hq in zip(restored, hqs, strict=True)])
    assert scores["psnr/pix1_sem1"] == pytest.approx(expected)
    expected = np.mean([np.abs(a / 255 - b / 255).mean() for a, b in zip(lqs, hqs, strict=True)])
    assert scores["lpips/lq"] == pytest.approx(expected, rel=1e-5)
    row = json.loads((validator.output / "validation.jsonl").read_text())
    assert row == {"stage": "sem", "step": 7, **scores}
    with Image.open(validator.output / "validation" / "sem-7.png") as image:
        assert image.size == sheet.size and sheet.height > 3 * 100 and sheet.width > 4 * 100


def test_each_strength_costs_one_pass_and_no_gradient(model, folder):
    seen = []
    handle = model.unet.register_forward_hook(
        lambda *call: seen.append((active_names(model.unet), call[2].sample.requires_grad))
    )
    build(folder, count=1).run(model, SEM, 1, None)
    handle.remove()
    assert seen == [(["pix"], False), (["pix", "sem"], False)]


@torch.no_grad()
def test_a_model_that_answers_nan_gets_null_and_a_sheet(model, folder):
    parameters_of(model.unet, "pix")["conv_in.lora_B.weight"].fill_(math.nan)
    validator = build(folder, count=1)
    scores, _ = validator.run(model, PIX, 1, None)
    assert math.isnan(scores["psnr/pix1_sem0"]) and math.isfinite(scores["psnr/lq"])
    row = json.loads((validator.output / "validation.jsonl").read_text())
    assert row["psnr/pix1_sem0"] is None


@pytest.mark.parametrize("scale", [1, 3, 4])
def test_both_are_cropped_at_the_same_place(tmp_path, scale):
    """A picture whose pixels say where they are: LQ and HQ agree after cropping."""
    y, x = np.mgrid[:33, :47]
    lq = np.stack([x * 5, y * 5, x + y], -1).astype(np.uint8)
    for name, pixels in (("lq", lq), ("hq", lq.repeat(scale, 0).repeat(scale, 1))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    (pair,) = read_pairs(ValidationConfig(pairs=str(tmp_path), crop_px=50))
    side = 50 // scale * scale
    assert pair.hq.size == pair.lq.size == (min(side, 47 * scale), min(side, 33 * scale))
    inside = np.s_[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    assert np.abs(np.asarray(pair.lq, int)[inside] - np.asarray(pair.hq, int)[inside]).max() <= 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "lq" / "1.png").unlink(), "1 pictures are in only one of .*, like 1"),
        (lambda f: picture(0, 12, 11).save(f / "lq" / "1.png"), "1.png is 48x40, .* is 12x11"),
        (lambda f: (f / "hq" / "2.png").write_bytes(b"no picture"), "2.png"),
        (lambda f: (f / "hq").rename(f / "gt"), "hq is not a folder"),
    ],
)
def test_what_does_not_match_is_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(PisasrError, match=message) as refused:
        build(folder)
    assert "\n" not in str(refused.value)


def test_a_few_of_many_are_spread_over_all(folder):
    pairs = read_pairs(ValidationConfig(pairs=str(folder), count=2))
    assert [np.array_equal(pairs[1].hq, picture(i)) for i in range(3)] == [False, True, False]
