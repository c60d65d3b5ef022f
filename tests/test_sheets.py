"""Sheets: what is shown lies where it should, at the place that a comparison is about."""

import numpy as np
from PIL import Image

from pisasr.pictures.sheets import (
    CELL_PX,
    INK,
    MARK,
    draw_comparison,
    draw_sheet,
    most_different_box,
    spread,
)


def test_a_grid_has_rows_for_pix_and_columns_for_sem():
    pictures = [
        Image.new("RGB", (200, 100), (10 * row, 10 * column, 255))
        for row in range(3)
        for column in range(2)
    ]
    pixels = np.asarray(draw_sheet(pictures, [0, 0.5, 1], [0, 1])).astype(int)
    centres = {}
    for row in range(3):
        for column in range(2):
            y, x = np.where((pixels == (10 * row, 10 * column, 255)).all(-1))
            assert len(y) == 200 * 100
            centres[row, column] = y.mean(), x.mean()
    assert centres[0, 0][0] < centres[1, 0][0] < centres[2, 0][0]
    assert centres[0, 0][1] < centres[0, 1][1]
    assert (pixels == INK).all(-1).any()


def test_a_grid_takes_gray_and_transparent_pictures_and_stays_small():
    assert draw_sheet([Image.new("LA", (9, 6000))], [1], [1]).size[1] <= 4200
    assert draw_sheet([Image.new("L", (2, 2))] * 4, [0, 1], [0, 1]).mode == "RGB"


def test_the_detail_is_where_the_methods_differ_most():
    one = Image.new("RGB", (256, 256), (90, 90, 90))
    other = one.copy()
    other.paste((200, 90, 90), (160, 64, 192, 96))
    left, top, right, bottom = most_different_box([one, other], 64)
    assert left <= 160 and top <= 64 and right >= 192 and bottom >= 96
    assert most_different_box([one, other], 1000) == (0, 0, 256, 256)


def test_of_equal_pictures_it_is_where_the_structure_is():
    picture = np.full((128, 128), 90, np.uint8)
    picture[64:96:2, 96:] = 200
    left, top, _, _ = most_different_box([Image.fromarray(picture)] * 2, 32)
    assert 88 <= left <= 96 and 60 <= top <= 68


def test_a_comparison_shows_the_same_place_of_every_entry():
    hq = Image.new("RGB", (64, 64), (0, 0, 250))
    hq.paste((0, 250, 0), (32, 0, 64, 32))
    lq = hq.resize((16, 16), Image.Resampling.NEAREST)
    sheet = draw_comparison([{"input": lq, "true": hq}], ["a"], [(32, 0, 64, 32)])
    pixels = np.asarray(sheet).astype(int)
    green = (pixels == (0, 250, 0)).all(-1)
    assert green.sum() > 2 * CELL_PX**2, "both details, and a part of the whole picture"
    assert (pixels == MARK).all(-1).any()


def test_a_few_of_many_are_spread_over_all():
    assert spread(range(100), 4) == [0, 25, 50, 75] and spread("abc", 8) == ["a", "b", "c"]
