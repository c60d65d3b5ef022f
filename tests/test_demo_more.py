"""The second set of photos: where they lie in their packages, and which of them are kept for
testing.
"""

import io
import json
import zipfile
from pathlib import Path

import more
import numpy as np
import pytest
from PIL import Image

from pisasr.config import load_recipe

DEMO = Path(__file__).parents[1] / "scripts" / "demo"


def picture(level: int, side: int = 64, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side), (level,) * 3).save(content, form)
    return content.getvalue()


def test_photos_are_read_from_files_from_zips_and_from_the_middle_of_files(tmp_path):
    root = tmp_path / "pack"
    root.mkdir()
    (root / "plain.png").write_bytes(picture(10))
    (root / "many.rcc").write_bytes(b"before" + picture(20))
    with zipfile.ZipFile(root / "packed.zip", "w") as archive:
        archive.writestr("in/side.png", picture(30))

    def read(folder, name):
        package = {"package": "pack", "folder": folder, "photos": [name], "shrink": 2}
        ((found, photo),) = more.photos_of(package, tmp_path)
        assert (found, photo.size) == (name, (32, 32))
        return photo.getpixel((5, 5))[0]

    assert [read("", "plain.png"), read("", "many.rcc@6"), read("packed.zip!in/", "side.png")] == [
        10,
        20,
        30,
    ]


def test_a_series_lies_on_one_side_and_both_sides_have_photos():
    rows = json.loads(more.LIST.read_text())
    sides: dict[str, set[bool]] = {}
    held_out = 0
    for row in rows:
        for name in row["photos"]:
            held = more.is_held_out(row["package"], name)
            held_out += held
            series = name if "@" in name else name.split(".")[0].rstrip("0123456789")
            sides.setdefault(f"{row['package']} {series}", set()).add(held)
    assert held_out >= 30 and sum(len(row["photos"]) for row in rows) > 10 * held_out
    assert all(len(found) == 1 for found in sides.values())


def test_no_photo_has_more_than_its_share_and_flat_ones_have_none(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 1200, 3), dtype=np.uint8)
    assert more.cut_for_training(Image.fromarray(noise), "noise", tmp_path) == 4
    assert more.cut_for_training(Image.new("RGB", (400, 400)), "flat", tmp_path) == 0
    assert {Image.open(path).size for path in tmp_path.iterdir()} == {(192, 192)}
    assert all(path.name.startswith("noise_") for path in tmp_path.iterdir())


def test_the_held_out_crop_is_the_middle(tmp_path):
    photo = np.zeros((360, 720, 3), np.uint8)
    photo[:, 104:616] = 200
    more.cut_for_testing(Image.fromarray(photo), "p", tmp_path)
    crop = np.asarray(Image.open(tmp_path / "p.png"))
    assert crop.shape == (352, 512, 3) and (crop == 200).all()


@pytest.mark.parametrize("name", ["photos", "soft"])
def test_the_recipes_of_the_demo_can_be_read(name):
    assert load_recipe(DEMO / f"{name}.yaml").scale == 4
