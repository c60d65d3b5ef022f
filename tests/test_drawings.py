"""The scripts that draw the README's figures: the right pixels in the right place."""

import draw_before_after
import draw_strengths
import numpy as np
import pytest
from PIL import Image


def flat(level, size=(40, 30)):
    return Image.new("RGB", size, (level, level, level))


def test_before_and_after_stand_in_a_row_in_their_own_pixels():
    pictures = [flat(level, (400, 300)) for level in (10, 20, 30)]
    for index, picture in enumerate(pictures):
        picture.putpixel((200, 150), (200 + index, 0, 0))  # the middle
    sheet = np.asarray(draw_before_after.side_by_side(pictures, 100))
    head, pitch = draw_before_after.HEAD, 100 + draw_before_after.GAP
    assert sheet.shape == (head + 100, 3 * pitch - draw_before_after.GAP, 3)
    for index in range(3):
        panel = sheet[head:, index * pitch : index * pitch + 100]
        assert tuple(panel[50, 50]) == (200 + index, 0, 0)
        assert (panel[..., 2] != 10 * (index + 1)).sum() == 1


@pytest.fixture
def draw(tmp_path):
    def draw(*names):
        for level, name in enumerate(names):
            flat(level).save(tmp_path / name)
        argv = ["--pictures", str(tmp_path), "--box", "5", "6", "20", "10", "--output", str(tmp_path / "sheet.png")]
        assert draw_strengths.main(argv) == 0
        return np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))

    return draw


def test_strengths_are_ordered_as_numbers(draw):
    sheet = draw("pix0_sem10.png", "pix0_sem2.png", "pix1_sem10.png", "pix1_sem2.png")
    places = {level: np.argwhere(sheet == level).mean(0) for level in range(4)}
    assert all((sheet == level).sum() >= 20 * 10 for level in range(4))
    assert places[1][1] < places[0][1] and places[0][0] < places[2][0]  # 2 is left of 10, pix 0 is above pix 1


@pytest.mark.parametrize("names", [[], ["pix0_sem0.png", "pix1_sem1.png"]])
def test_a_grid_with_holes_is_refused(tmp_path, capsys, names):
    for name in names:
        flat(0).save(tmp_path / name)
    argv = ["--pictures", str(tmp_path), "--output", str(tmp_path / "sheet.png"), "--box", "0", "0", "9", "9"]
    assert draw_strengths.main(argv) == 1
    assert "a whole grid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("box", "file", "reason"),
    [
        ("30 6 20 10", "sheet.png", "--box 30 6 20 10 is no place inside the pictures of 40 x 30 px"),
        ("0 0 0 9", "sheet.png", "is no place"),
        ("-1 0 9 9", "sheet.png", "is no place"),
        ("0 0 9 9", "sheet.xyz", "give a file such as sheet.png"),
    ],
)
def test_places_that_are_not_there_are_one_line(tmp_path, capsys, box, file, reason):
    flat(0).save(tmp_path / "pix0_sem0.png")
    argv = ["--pictures", str(tmp_path), "--output", str(tmp_path / "new" / file), "--box", *box.split()]
    assert draw_strengths.main(argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line and not (tmp_path / "new").exists()


def test_the_picture_that_can_not_be_read_is_named(tmp_path, capsys):
    assert draw_before_after.main(["--input", str(tmp_path / "gone.png"), "--output", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "gone.png: no such file" in line
