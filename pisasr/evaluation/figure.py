"""Details side by side, labelled: what a table cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL_PX, GAP_PX, HEAD_PX = 256, 4, 28
INK, PAPER, MARK = (24, 24, 24), (255, 255, 255), (220, 30, 30)


def busiest_detail(hq: Image.Image, side: int) -> tuple[int, int, int, int]:
    """The box of `side` px with the most fine structure in the true picture, searched every eighth of its side."""
    side = min(side, *hq.size)
    y = np.asarray(hq.convert("L"), np.float64)
    energy = np.zeros_like(y)
    energy[:, 1:] += np.abs(np.diff(y, axis=1))
    energy[1:] += np.abs(np.diff(y, axis=0))
    step = max(side // 8, 1)
    rows, columns = (range(0, length - side + 1, step) for length in energy.shape)
    top, left = max(product(rows, columns), key=lambda corner: energy[corner[0] :, corner[1] :][:side, :side].sum())
    return left, top, left + side, top + side


def draw_comparison(rows: Sequence[dict[str, Image.Image]], detail_px: int = 128) -> Image.Image:
    """A row per picture: the whole of it with the detail marked, then that detail of every entry under its label.

    rows: label -> picture, the same labels in each row, equal sizes within a row, the true picture last. The detail is
    the busiest one of the true picture, enlarged by repeating pixels so that nothing is smoothed for show.
    """
    labels = list(rows[0])
    pitch = CELL_PX + GAP_PX
    sheet = Image.new("RGB", (pitch * (len(labels) + 1) - GAP_PX, HEAD_PX + pitch * len(rows) - GAP_PX), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for column, label in enumerate(["detail of", *labels]):
        draw.text((column * pitch + CELL_PX / 2, HEAD_PX / 2), label, INK, font, anchor="mm")
    for index, pictures in enumerate(rows):
        top = HEAD_PX + index * pitch
        box = busiest_detail(pictures[labels[-1]], detail_px)
        sheet.paste(_overview(pictures[labels[-1]], box), (0, top))
        for column, label in enumerate(labels, start=1):
            detail = pictures[label].crop(box).resize((CELL_PX, CELL_PX), Image.Resampling.NEAREST)
            sheet.paste(detail, (column * pitch, top))
    return sheet


def _overview(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The picture fitted into a cell, the box outlined."""
    scale = CELL_PX / max(picture.size)
    small = picture.resize([max(round(side * scale), 1) for side in picture.size], Image.Resampling.LANCZOS)
    ImageDraw.Draw(small).rectangle([round(edge * scale) for edge in box], outline=MARK, width=2)
    cell = Image.new("RGB", (CELL_PX, CELL_PX), PAPER)
    cell.paste(small, ((CELL_PX - small.width) // 2, (CELL_PX - small.height) // 2))
    return cell
