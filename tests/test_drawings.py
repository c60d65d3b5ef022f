"""The scripts that draw the README's figures: the right pixels in the right place."""

import json

import draw_before_after
import draw_blind
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
        argv = [
            "--pictures",
            str(tmp_path),
            "--box",
            "5",
            "6",
            "20",
            "10",
            "--output",
            str(tmp_path / "sheet.png"),
        ]
        assert draw_strengths.main(argv) == 0
        return np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))

    return draw


def test_strengths_are_ordered_as_numbers(draw):
    sheet = draw("pix0_sem10.png", "pix0_sem2.png", "pix1_sem10.png", "pix1_sem2.png")
    places = {level: np.argwhere(sheet == level).mean(0) for level in range(4)}
    assert all((sheet == level).sum() >= 20 * 10 for level in range(4))
    assert (
        places[1][1] < places[0][1] and places[0][0] < places[2][0]
    )  # 2 is left of 10, pix 0 is above pix 1


@pytest.mark.parametrize("names", [[], ["pix0_sem0.png", "pix1_sem1.png"]])
def test_a_grid_with_holes_is_refused(tmp_path, capsys, names):
    for name in names:
        flat(0).save(tmp_path / name)
    argv = [
        "--pictures",
        str(tmp_path),
        "--output",
        str(tmp_path / "sheet.png"),
        "--box",
        "0",
        "0",
        "9",
        "9",
    ]
    assert draw_strengths.main(argv) == 1
    assert "a whole grid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("box", "file", "reason"),
    [
        (
            "30 6 20 10",
            "sheet.png",
            "--box 30 6 20 10 is no place inside the pictures of 40 x 30 px",
        ),
        ("0 0 0 9", "sheet.png", "is no place"),
        ("-1 0 9 9", "sheet.png", "is no place"),
        ("0 0 9 9", "sheet.xyz", "give a file such as sheet.png"),
    ],
)
def test_places_that_are_not_there_are_one_line(tmp_path, capsys, box, file, reason):
    flat(0).save(tmp_path / "pix0_sem0.png")
    argv = [
        "--pictures",
        str(tmp_path),
        "--output",
        str(tmp_path / "new" / file),
        "--box",
        *box.split(),
    ]
    assert draw_strengths.main(argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line and not (tmp_path / "new").exists()


def test_the_picture_that_can_not_be_read_is_named(tmp_path, capsys):
    assert (
        draw_before_after.main(["--input", str(tmp_path / "gone.png"), "--output", str(tmp_path)])
        == 1
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "gone.png: no such file" in line


@pytest.fixture
def blind(tmp_path):
    """Three methods' pictures of four scenes, each of one level, and the words that draw them."""
    levels = {"dark": 10, "grey": 120, "bright": 240}
    for name, level in levels.items():
        (tmp_path / name).mkdir()
        for number in range(4):
            flat(level).save(tmp_path / name / f"{number}.png")
    key = ["--key", str(tmp_path / "key.json")]
    methods = [
        "--methods",
        *(str(tmp_path / name) for name in levels),
        "--panel",
        "20",
        "--rows",
        "3",
    ]
    return levels, key, [*key, *methods, "--output", str(tmp_path / "sheets")]


def test_a_blind_sheet_hides_who_is_who_and_the_key_tells(blind, tmp_path, capsys):
    levels, key, words = blind
    assert draw_blind.main(words) == 0
    order = json.loads((tmp_path / "key.json").read_text())["order"]
    assert len({tuple(row) for row in order}) > 1
    assert [path.name for path in sorted((tmp_path / "sheets").iterdir())] == [
        "sheet_01.png",
        "sheet_02.png",
    ]
    first = np.asarray(Image.open(tmp_path / "sheets" / "sheet_01.png"))
    shown = [
        first[draw_before_after.HEAD + 10, column * (20 + draw_before_after.GAP) + 10, 0]
        for column in range(3)
    ]
    assert shown == [levels[name] for name in order[0]]
    letters = ["".join("ABC"[row.index(method)] for method in levels) for row in order]
    (tmp_path / "answers.txt").write_text(
        "".join(f"{n} {answer}\n" for n, answer in enumerate(letters, start=1))
    )
    assert draw_blind.main([*key, "--answers", str(tmp_path / "answers.txt")]) == 0
    told = capsys.readouterr().out
    assert "dark: places 4, 0, 0; mean 1.00" in told and "bright: places 0, 0, 4; mean 3.00" in told


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ("1 ABCA", "each of ABC once"),
        ("1 ABH", "each of ABC once"),
        ("one ABC", "no row's number"),
        ("9 ABC", "not among the 4 drawn"),
        ("1 ABC\n1 CBA", "row 1 is there twice"),
        ("", "lacks 4 of 4 rows, like 1"),
    ],
)
def test_answers_that_answer_nothing_are_told(blind, tmp_path, capsys, answers, reason):
    _, key, words = blind
    assert draw_blind.main(words) == 0
    (tmp_path / "answers.txt").write_text(answers)
    assert draw_blind.main([*key, "--answers", str(tmp_path / "answers.txt")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line and "answers.txt" in line


def test_pictures_that_cannot_be_compared_blind_are_told(blind, tmp_path, capsys):
    _, key, words = blind
    flat(1, (41, 10)).save(tmp_path / "grey" / "2.png")
    assert draw_blind.main(words) == 1 and "2.png is not of one size" in capsys.readouterr().err
    assert not (tmp_path / "sheets").exists()
    twice = ["--methods", *[str(tmp_path / "dark")] * 2, "--output", str(tmp_path / "sheets")]
    assert draw_blind.main([*key, *twice]) == 1 and "different names" in capsys.readouterr().err
    assert draw_blind.main([*key, *twice[:-1], str(tmp_path)]) == 1
    (tmp_path / "key.json").write_text("[]")
    assert draw_blind.main([*key, "--answers", str(tmp_path / "a.txt")]) == 1
    assert "key.json is no key" in capsys.readouterr().err
