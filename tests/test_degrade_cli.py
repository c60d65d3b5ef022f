"""`pisasr degrade`: a fixed folder of pairs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pisasr.commands.degrade import degrade


def run(*arguments: object) -> int:
    return degrade(list(map(str, arguments)))


@pytest.fixture
def photos(tmp_path) -> Path:
    """a.png and more/b.bmp: the same picture, 71 x 50."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    picture = coarse.resize((71, 50), Image.Resampling.BICUBIC)
    picture.save(folder / "a.png")
    picture.save(folder / "more" / "b.bmp")
    return folder


def test_pairs_depend_on_name_and_seed(photos, tmp_path, capsys):
    once, other, again = (tmp_path / name for name in ("once", "other", "again"))
    assert run("--input", photos, "--output", once, "--crop", 45, "--seed", 7) == 0
    a, b = (Image.open(once / "lq" / name) for name in ("a.png", "more/b.png"))
    assert a.size == b.size == (11, 11) and Image.open(once / "hq" / "a.png").size == (44, 44)
    assert a.tobytes() != b.tobytes()
    middle = Image.open(photos / "a.png").crop((13, 3, 57, 47))
    assert Image.open(once / "hq" / "a.png").tobytes() == middle.tobytes()
    assert run("--input", photos, "--output", other, "--crop", 45, "--seed", 8) == 0
    assert Image.open(other / "lq" / "a.png").tobytes() != a.tobytes()

    (photos / "a.png").unlink()
    (photos / "broken.png").write_bytes(b"no picture")
    capsys.readouterr()
    assert run("--input", photos, "--output", again, "--crop", 45, "--seed", 7) == 3
    errors = capsys.readouterr().err
    assert "broken.png" in errors and len(errors.splitlines()) == 1
    for side in ("lq", "hq"):
        one, two = (folder / side / "more" / "b.png" for folder in (once, again))
        assert one.read_bytes() == two.read_bytes()


def test_a_recipe_may_be_another(photos, tmp_path):
    (tmp_path / "clean.yaml").write_text("prob_clean: 1.0\nscale: 2\n")
    assert (
        run("--input", photos, "--output", tmp_path / "x", "--recipe", tmp_path / "clean.yaml") == 0
    )
    assert Image.open(tmp_path / "x" / "lq" / "a.png").size == (35, 25)


def test_what_would_meet_is_refused(photos, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(photos / "a.jpg")
    assert run("--input", photos, "--output", tmp_path / "x") == 1
    assert "would both be a.png" in capsys.readouterr().err
    assert run("--input", photos, "--output", photos) == 2
    assert "lies in --output" in capsys.readouterr().err
    assert run("--input", tmp_path / "nowhere", "--output", tmp_path / "x") == 1
    assert not (tmp_path / "x").exists()
