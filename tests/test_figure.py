"""The sheets: they show the place where methods differ, of the pictures on which they differ, under
labels that fit.
"""

import numpy as np
import pytest
from PIL import Image

from pisasr.evaluation import figure
from pisasr.evaluation.figure import (
    CELL_PX,
    FOOT_PX,
    HEAD_PX,
    busiest_detail,
    draw_comparison,
    draw_sheets,
    most_different_box,
    pick_examples,
)
from pisasr.evaluation.pairs import Example

PITCH = CELL_PX + 4


def grey(width=64, height=64, level=128):
    return Image.new("RGB", (width, height), (level,) * 3)


def with_patch(picture, box, level):
    picture = picture.copy()
    picture.paste((level,) * 3, box)
    return picture


def cell(sheet, column, row=0, pitch=PITCH):
    left, top = column * PITCH, HEAD_PX + row * pitch
    return sheet.crop((left, top, left + CELL_PX, top + CELL_PX))


@pytest.fixture
def examples(tmp_path):
    """Seven pictures of 64 x 48; the methods differ by 10 k levels in the k-th."""
    found = []
    for k in range(7):
        pictures = {
            "plain": grey(64, 48),
            "bold": with_patch(grey(64, 48), (40, 8, 56, 24), 128 + 10 * k),
            "hq": with_patch(grey(64, 48), (0, 32, 16, 48), 250),
            "lq": grey(16, 12, 60),
        }
        for role, picture in pictures.items():
            (tmp_path / role).mkdir(exist_ok=True)
            picture.save(tmp_path / role / f"{k}.png")
        files = {role: tmp_path / role / f"{k}.png" for role in pictures}
        found.append(
            Example(f"{k}.png", {m: files[m] for m in ("plain", "bold")}, files["hq"], files["lq"])
        )
    return found


def test_the_busiest_detail_is_found():
    picture = np.full((64, 64, 3), 128, np.uint8)
    picture[32:48, 8:24] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    assert busiest_detail(Image.fromarray(picture), 16) == (8, 32, 24, 48)


def test_the_box_lies_where_methods_differ_and_not_where_the_picture_is_busy():
    busy = np.full((64, 96, 3), 128, np.uint8)
    busy[:32, :32] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    busy = Image.fromarray(busy)
    assert most_different_box([busy, busy, with_patch(busy, (64, 32, 80, 48), 190)], 16) == (
        64,
        32,
        80,
        48,
    )
    assert (
        most_different_box([busy, busy], 16)
        == most_different_box([busy], 16)
        == busiest_detail(busy, 16)
    )


def test_grain_does_not_attract_the_box():
    rng = np.random.default_rng(0)
    grainy = np.full((64, 64), 128)
    grainy[:, :32] += rng.integers(-30, 31, (64, 32))
    other = with_patch(grey(), (40, 40, 56, 56), 145)
    assert np.var(grainy[:16, :16]) > (145 - 128) ** 2
    assert most_different_box([grey(), Image.fromarray(grainy.astype(np.uint8)), other], 16) == (
        40,
        40,
        56,
        56,
    )


def test_a_box_is_no_larger_than_the_picture():
    assert most_different_box(
        [grey(40, 30), with_patch(grey(40, 30), (20, 0, 40, 30), 0)], 128
    ) == (9, 0, 39, 30)


def test_the_pictures_on_which_methods_differ_most_are_picked_in_their_order(examples):
    shuffled = [examples[k] for k in (5, 0, 6, 1, 4, 3, 2)]
    assert [example.name for example in pick_examples(shuffled, 3, detail_px=16)] == [
        "5.png",
        "6.png",
        "4.png",
    ]
    assert pick_examples(shuffled, 99, detail_px=16) == shuffled


@pytest.mark.parametrize("side", [32, 48, 100, 300])
def test_a_detail_shows_its_box_and_no_more(side):
    picture = with_patch(grey(400, 320, 0), (16, 16, 16 + side, 16 + side), 255)
    sheet = draw_comparison([{"one": picture}], boxes=[(16, 16, 16 + side, 16 + side)])
    assert cell(sheet, 1).getextrema() == ((255, 255),) * 3


def test_the_input_shows_the_same_region_by_repeating_pixels():
    rng = np.random.default_rng(0)
    lq = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    sr = lq.resize((128, 96), Image.Resampling.NEAREST)
    sheet = draw_comparison([{"input": lq, "method": sr}], boxes=[(32, 16, 96, 80)])
    wanted = lq.crop((8, 4, 24, 20)).resize((CELL_PX, CELL_PX), Image.Resampling.NEAREST)
    assert cell(sheet, 1).tobytes() == cell(sheet, 2).tobytes() == wanted.tobytes()


def test_long_labels_stay_in_their_column():
    row = {"m" * 200: grey(), "i": grey()}
    sheet = np.asarray(draw_comparison([row], captions=[{"m" * 200: "w" * 200}]))
    ink = np.flatnonzero(
        (sheet[[*range(HEAD_PX), *range(HEAD_PX + CELL_PX, len(sheet))]] < 128).any(axis=(0, 2))
    )
    columns = [
        range(PITCH + 2, PITCH + CELL_PX - 2),
        range(0, CELL_PX),
        range(2 * PITCH, 2 * PITCH + CELL_PX),
    ]
    assert set(ink) <= {x for column in columns for x in column}
    assert len(set(ink) & set(columns[0])) > 150


def test_sheets_share_the_pictures_evenly(examples, monkeypatch):
    monkeypatch.setattr(figure, "ROWS_PER_SHEET", 3)
    sheets = draw_sheets(examples, 16)
    assert [(sheet.height - HEAD_PX + 4) // (PITCH + FOOT_PX) for sheet in sheets] == [2, 2, 3]
    assert {sheet.width for sheet in sheets} == {5 * PITCH - 4}
    assert draw_sheets([], 16) == []


def test_a_sheet_looks_where_the_methods_differ(examples):
    (sheet,) = draw_sheets(examples[6:], 16)
    assert [cell(sheet, k).getpixel((128, 128))[0] for k in (1, 2, 3, 4)] == [60, 128, 188, 128]


def test_a_set_without_true_pictures_shows_the_first_method_whole(examples):
    bare = [Example(example.name, example.sr, None, example.lq) for example in examples]
    (sheet,) = draw_sheets(bare[6:], 16)
    assert sheet.width == 4 * PITCH - 4
    assert cell(sheet, 0).getpixel((16, 200)) == (128, 128, 128)
    (alone,) = draw_sheets([Example("6.png", examples[6].sr)], 16, {("bold", "6.png"): "3 dB"})
    assert alone.width == 3 * PITCH - 4
