"""The embedded model's photos: tiles with something to learn, and photos kept for testing."""

import json
from pathlib import Path

import numpy as np
import photos
from PIL import Image

from pisasr.training.config import load_config

DEMO = Path(photos.__file__).parent


def test_a_series_lies_on_one_side_and_both_sides_have_photos():
    sides: dict[str, set[bool]] = {}
    held = []
    for row in json.loads((DEMO / "more.json").read_text()):
        for name in row["photos"]:
            held.append(photos.is_held_out(row["package"], name))
            series = name if "@" in name else name.split(".")[0].rstrip("0123456789")
            sides.setdefault(f"{row['package']} {series}", set()).add(held[-1])
    assert sum(held) >= 30
    assert len(held) > 10 * sum(held)
    assert all(len(found) == 1 for found in sides.values())


def test_training_tiles_are_those_that_bicubic_gets_wrong(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    photo = np.full((512, 1024, 3), 128, np.uint8)
    photo[:, 512:] = noise[..., None]  # the left half is flat, at any size
    row = {"name": "p", "split": "train"}
    assert photos.save_best(row, Image.fromarray(photo), tmp_path) == 5
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"p_1_0_512", "p_1_0_768", "p_1_256_512", "p_1_256_768", "p_2_0_256"}


def test_the_held_out_crop_is_the_middle():
    photo = np.zeros((360, 720, 3), np.uint8)
    photo[:, 104:616] = 200
    crop = np.asarray(photos.middle(Image.fromarray(photo)))
    assert crop.shape == (352, 512, 3)
    assert (crop == 200).all()


def test_the_recipe_of_the_embedded_model_can_be_read():
    config = load_config(DEMO / "demo.yaml", ["run.output=y"])
    assert config.degradation.scale == 4
    assert config.sem.weight_csd == 0
