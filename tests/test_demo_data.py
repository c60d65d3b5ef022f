"""What the embedded default is trained on: tiles with something to learn, drawn pages, a teacher's
pictures.
"""

import importlib
from pathlib import Path

import degrade
import numpy as np
import pages
import photos
import pytest
import torch
from PIL import Image

from pisasr.config import load_config
from pisasr.data.degradation import degrade_one, draw_steps, sample_generator

ROOT = Path(__file__).parents[1]


def test_training_tiles_are_those_that_bicubic_gets_wrong(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    photo = np.full((512, 1024, 3), 128, np.uint8)
    photo[:, 512:] = noise[..., None]  # the left half is flat, at any size
    Image.fromarray(photo).save(tmp_path / "photo.png")
    folder = tmp_path / "tiles"
    folder.mkdir()
    count = photos.cut_for_training(tmp_path / "photo.png", "p", folder)
    names = {path.stem for path in folder.iterdir()}
    assert count == len(names)
    assert names == {"p_1_0_512", "p_1_0_768", "p_1_256_512", "p_1_256_768", "p_2_0_256"}
    assert {Image.open(path).size for path in folder.iterdir()} == {(256, 256)}


def test_of_a_rich_photo_only_the_sharpest_tiles_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "TILES_PER_PHOTO", 1)
    contrast = np.repeat([20, 90], 256)[None, :, None]
    noise = np.random.default_rng(0).normal(128, contrast, (256, 512, 1)).clip(0, 255)
    Image.fromarray(noise.astype(np.uint8).repeat(3, 2)).save(tmp_path / "photo.png")
    folder = tmp_path / "tiles"
    folder.mkdir()
    assert photos.cut_for_training(tmp_path / "photo.png", "p", folder) == 1
    assert [path.stem for path in folder.iterdir()] == ["p_1_0_256"]


def test_pages_are_the_same_for_a_seed_and_have_letters_on_paper(tmp_path):
    def draw(name, seed):
        assert (
            pages.main(["--output", str(tmp_path / name), "--count", "4", "--seed", str(seed)]) == 0
        )
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    assert draw("a", 0) == draw("b", 0)
    assert not set(draw("c", 1)) & set(draw("a", 0))
    for path in (tmp_path / "a").iterdir():
        page = np.asarray(Image.open(path).convert("L"), float)
        assert page.shape == (256, 256) and page.std() > 15  # something to read


def test_zoom_makes_the_letters_larger_and_the_strokes_wider(tmp_path):
    def widths(zoom):
        """Mean length of a run of ink or paper along the rows of four tiles, px."""
        assert pages.main(["--output", str(tmp_path / zoom), "--count", "4", "--zoom", *zoom]) == 0
        drawn = [
            np.asarray(Image.open(path).convert("L"), float)
            for path in sorted((tmp_path / zoom).iterdir())
        ]
        inked = [page > (page.min() + page.max()) / 2 for page in drawn]
        return [256 / (1 + np.diff(page, axis=1).sum(1).mean()) for page in inked]

    plain, mixed = widths("1"), widths("14")
    assert mixed[0] == plain[0] and mixed[2] == plain[2]
    assert mixed[1] > 1.5 * plain[1] and mixed[3] > 1.5 * plain[3]


def test_the_clean_recipe_only_reduces():
    recipe = degrade.read_recipe(ROOT / "configs/degradation/clean.yaml", None)
    photo = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    reduced = torch.nn.functional.interpolate(
        photo[None], scale_factor=0.25, mode="bicubic", antialias=True
    )[0]
    for index in range(4):
        x_L = degrade_one(photo, recipe, sample_generator(0, 0, index))
        assert (x_L - reduced.clamp(0, 1)).abs().max() < 1.5 / 255


def test_the_mild_recipe_is_one_blur_one_noise_and_one_jpeg(tmp_path):
    recipe = degrade.read_recipe(ROOT / "configs/degradation/mild.yaml", None)
    gray = torch.full((3, 128, 128), 0.5)
    for index in range(8):
        steps = list(draw_steps(recipe, (128, 128), sample_generator(0, 0, index)))
        assert [type(step).__name__ for step in steps] == [
            "Kernel",
            "Resize",
            "Noise",
            "Resize",
            "Jpeg",
        ]
        assert (
            steps[1].to == steps[3].to == (32, 32)
            and steps[2].kind == "gaussian"
            and not steps[2].gray
        )
        x_L = degrade_one(gray, recipe, sample_generator(0, 0, index))
        assert x_L.shape == (3, 32, 32) and 255 * x_L.std() < 9


def test_the_adapters_learn_from_the_cameras_degradations():
    """Through the path in demo.yaml, which is seen from where demo.yaml lies."""
    config = load_config(ROOT / "scripts/demo/demo.yaml", ["data.photos=photos", "run.output=run"])
    assert config.degradation == degrade.read_recipe(ROOT / "configs/degradation/camera.yaml", None)


def test_a_package_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get there
    assert photos.main(["--output", str(tmp_path / "demo")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "apt-get" in line


@pytest.mark.parametrize("script", ["photos", "pages", "base", "assemble"])
def test_every_step_explains_itself(script, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main(["--help"])
    assert ended.value.code == 0 and f"python scripts/demo/{script}.py" in capsys.readouterr().out
