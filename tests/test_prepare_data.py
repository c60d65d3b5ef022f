"""scripts/prepare_data.py: what is found, what is dropped and why, in which order."""

from pathlib import Path

import numpy as np
import prepare_data
import pytest
from PIL import Image, ImageFilter, ImageOps

from pisasr.data.photos import list_photos

EXAMPLES = Path(__file__).parents[1] / "pisasr" / "demo" / "examples"


def scene(seed, width=160, height=120):
    """A picture with soft and hard edges that no other seed has."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = small.resize((width, height), Image.Resampling.BICUBIC)
    for _ in range(12):
        x, y = random.integers(0, width), random.integers(0, height)
        size = tuple(random.integers(5, 50, 2))
        color = tuple(random.integers(0, 256, 3).tolist())
        picture.paste(color, (x, y, x + int(size[0]), y + int(size[1])))
    return picture


@pytest.fixture
def photos(tmp_path):
    """Two good photos, and one of everything that is to be dropped."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    scene(1).save(folder / "a.png")
    scene(2).save(folder / "more" / "b.png")
    scene(1).save(folder / "more" / "copy.bmp")
    scene(2).save(folder / "more" / "near.jpg", quality=40)
    scene(3, 90, 60).save(folder / "small.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:900])
    return folder


def run(*arguments: object) -> int:
    return prepare_data.main(list(map(str, arguments)))


def dropped(file):
    lines = file.with_suffix(".dropped.txt").read_text().splitlines()
    return {line.split("\t")[0].rsplit("/", 1)[1]: line.split("\t")[1] for line in lines}


def test_good_photos_stay_and_the_others_are_named(photos, tmp_path, capsys):
    output = tmp_path / "set" / "train.txt"
    assert run("--input", photos, "--output", output, "--min_side", 100) == 3
    assert output.read_text() == "../photos/a.png\n../photos/more/b.png\n"
    kept = [photo.path.resolve() for photo in list_photos([str(output)])]
    assert kept == [photos / "a.png", photos / "more" / "b.png"]
    reasons = {name: reason.split(":")[0] for name, reason in dropped(output).items()}
    assert reasons == {
        "broken.png": "unreadable",
        "copy.bmp": "duplicate",
        "near.jpg": "near duplicate",
        "small.png": "small",
    }
    assert "2 of 6 photos kept" in capsys.readouterr().out
    (photos / "broken.png").unlink()
    before = output.read_bytes()
    assert run("--input", photos, "--output", output, "--min_side", 100) == 0
    assert output.read_bytes() == before


def test_the_best_share_is_kept(tmp_path):
    """Photos are better than blurred ones."""
    pytest.importorskip("iqa")
    (tmp_path / "photos").mkdir()
    for name in ("chelsea", "coffee"):
        with Image.open(EXAMPLES / f"{name}.png") as photo:
            large = ImageOps.fit(photo.convert("RGB"), (320, 240))
        large.save(tmp_path / "photos" / f"{name}.png")
        soft = large.filter(ImageFilter.GaussianBlur(4))
        soft.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
            tmp_path / "photos" / f"{name}_soft.png"
        )
    output = tmp_path / "train.txt"
    given = ("--input", tmp_path / "photos", "--output", output, "--min_side", 100)
    assert run(*given, "--best", 0.5) == 0
    assert output.read_text() == "photos/chelsea.png\nphotos/coffee.png\n"
    assert {reason[:10] for reason in dropped(output).values()} == {"worse: NIQ"}
    assert run(*given, "--best", 0) == 2


def test_captions_are_written_where_there_are_none(photos, tmp_path):
    (photos / "a.txt").write_text("mine")
    paths = [photos / "a.png", photos / "more" / "b.png"]
    prepare_data.write_captions(paths, lambda picture: f"{picture.mode} {picture.width}")
    assert (photos / "a.txt").read_text() == "mine"
    assert (photos / "more" / "b.txt").read_text() == "RGB 160\n"
