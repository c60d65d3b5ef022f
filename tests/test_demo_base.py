"""The base's training: what it leaves, that it learns, that a cut run ends with the same bytes."""

from pathlib import Path

import base
import prior
import pytest
import torch
from base import Schedule
from diffusers import UNet2DConditionModel
from PIL import Image

from pisasr.models.autoencoder import LappedAutoencoder
from pisasr.models.bases import load_base, own_color_fix
from pisasr.pipeline import COLOR_FIXES

RECIPE = Path(__file__).parents[1] / "configs/degradation/camera.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(NAME, OPTION...) trains a base on four photos of noise, in steps that take no time."""
    folder = tmp_path_factory.mktemp("base")
    photos = folder / "photos"
    photos.mkdir()
    for i in range(4):
        soft = smooth_picture(i).permute(1, 2, 0)
        Image.fromarray(((soft + 1) * 127.5).byte().numpy()).save(photos / f"{i}.png")

    def start(name, *options):
        command = [
            "--photos",
            str(photos),
            "--output",
            str(folder / name),
            "--degradation",
            str(RECIPE),
        ]
        steps = [
            "--crop",
            "32",
            "--batch",
            "2",
            "--autoencoder_steps",
            "4",
            "--prior_steps",
            "4",
            "--device",
            "cpu",
        ]
        return base.main([*command, *steps, *options]), folder / name

    small = {
        **prior.build_unet(16).config,
        "block_out_channels": (16, 16, 16),
        "norm_num_groups": 4,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "build_unet", lambda channels: UNet2DConditionModel.from_config(small))
        patch.setattr(base, "STATISTICS", 16)
        yield start


@pytest.fixture(scope="module")
def whole(run):
    code, folder = run("whole")
    assert code == 0
    return folder


def smooth_picture(seed):
    """[3, 48, 48] in [-1, 1]: noise of 6 px cells, so that neighbours are alike as in photos."""
    cells = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(cells, size=(48, 48), mode="bicubic").clamp(-1, 1)[0]


def test_a_base_is_left_that_the_trainer_can_load(whole):
    parts = load_base(whole)
    assert isinstance(parts["vae"], LappedAutoencoder) and parts["unet"].config.in_channels == 16
    assert own_color_fix(whole, COLOR_FIXES) == "wavelet"


def test_a_cut_run_ends_with_the_same_bytes(run, whole, monkeypatch):
    save = base.save
    monkeypatch.setattr(base.train_part, "__defaults__", (1, 100))
    for name, stop in (
        ("vae", 3),
        ("prior", 2),
    ):  # each in the middle of its steps, with a checkpoint after every one

        def save_and_stop(file, moving, schedule, step, name=name, stop=stop):
            save(file, moving, schedule, step)
            if (file.stem, step) == (name, stop):
                raise KeyboardInterrupt

        monkeypatch.setattr(base, "save", save_and_stop)
        assert run("cut")[0] == 130
    monkeypatch.setattr(base, "save", save)
    _, cut = run("cut")
    for file in whole.glob("*/*.safetensors"):
        assert file.read_bytes() == (cut / file.relative_to(whole)).read_bytes(), file


def test_the_autoencoder_learns(run):
    unseen = torch.stack([smooth_picture(seed) for seed in range(10, 14)])
    errors = []
    for steps in (1, 40):
        _, folder = run(f"after{steps}", "--autoencoder_steps", str(steps), "--prior_steps", "0")
        model = LappedAutoencoder.from_pretrained(folder / "vae")
        errors.append((model(unseen) - unseen).square().mean().item())
    assert errors[1] < 0.8 * errors[0] and errors[1] < 0.02 * unseen.var()


def test_another_schedule_is_refused(run, capsys):
    run("one", "--prior_steps", "0")
    code, _ = run("one", "--prior_steps", "0", "--autoencoder_steps", "5")
    assert code == 1 and "give the same numbers again" in capsys.readouterr().err


def test_a_mix_that_is_none_is_told(run, capsys):
    code, _ = run("none", "--mix", "photos")
    assert code == 1 and "wanted NAME=WEIGHT" in capsys.readouterr().err


def test_the_learning_rate_rises_stays_and_falls():
    schedule = Schedule(steps=1000, batch_size=1, lr=2.0, warmup_steps=100)
    assert [schedule.lr_at(step) for step in (50, 100, 500, 750, 1000)] == [1.0, 2.0, 2.0, 1.0, 0.0]
