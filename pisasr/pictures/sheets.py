"""Pictures side by side under labels: a grid of strengths, and details of several methods."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

T = TypeVar("T")
Box = tuple[int, int, int, int]  # left, top, right, bottom, as Pillow counts them

SHEET_PX = 4096  # the longer side of a grid's pictures together, at most
CELL_PX, GAP_PX, DETAIL_PX = 256, 4, 128
INK, PAPER, MARK = (24, 24, 24), (255, 255, 255), (220, 30, 30)
BLUR_SIGMA_PX = 1.5  # grain of single pixels fades, texture and edges stay


def draw_sheet(
    pictures: Sequence[Image.Image], lambdas_pix: Sequence[float], lambdas_sem: Sequence[float]
) -> Image.Image:
    """Lay out pictures of one size, given row by row: rows lambda_pix, columns lambda_sem."""
    rows, columns = len(lambdas_pix), len(lambdas_sem)
    scale = min(1, SHEET_PX / max(rows, columns) / max(pictures[0].size))
    size = [max(round(side * scale), 1) for side in pictures[0].size]
    cells = [_on_paper(picture, (size[0], size[1])) for picture in pictures]
    table = [cells[row * columns : (row + 1) * columns] for row in range(rows)]
    labels = [f"lambda_pix = {value:g}" for value in lambdas_pix]
    return _lay_out(table, [f"lambda_sem = {value:g}" for value in lambdas_sem], labels)


def draw_comparison(
    rows: Sequence[Mapping[str, Image.Image]], names: Sequence[str] = (), boxes: Sequence[Box] = ()
) -> Image.Image:
    """Draw a row per picture: its last entry whole with the detail marked, then every detail.

    rows: label -> picture, the same labels in each. names: of the rows. boxes: each row's detail,
    in pixels of its last entry; without them its busiest one. A smaller entry, such as the input,
    shows the same region. Pixels are enlarged by repeating.
    """
    table = []
    for index, pictures in enumerate(rows):
        whole = list(pictures.values())[-1]
        box = boxes[index] if boxes else most_different_box([whole])
        details = [_detail(picture, box, whole.width) for picture in pictures.values()]
        table.append([_overview(whole, box), *details])
    return _lay_out(table, ["detail of", *rows[0]], names or [""] * len(rows))


def most_different_box(pictures: Sequence[Image.Image], side: int = DETAIL_PX) -> Box:
    """Find the box of `side` px where pictures of one size differ most, on blurred luma.

    Of one picture, or equal ones: where it has most fine structure. Searched every side / 8.
    """
    gray = [picture.convert("L") for picture in pictures]
    blurred = [np.asarray(x.filter(ImageFilter.GaussianBlur(BLUR_SIGMA_PX)), float) for x in gray]
    density = np.var(blurred, axis=0)
    if not density.any():
        density = np.hypot(*np.gradient(np.pad(np.asarray(gray[0], float), 1, "edge")))[1:-1, 1:-1]
    side = min(side, *density.shape)
    step = max(side // 8, 1)
    sums = np.pad(density.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    totals = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    searched = totals[::step, ::step]
    top, left = (int(i) * step for i in np.unravel_index(searched.argmax(), searched.shape))
    return left, top, left + side, top + side


def spread(items: Sequence[T], count: int) -> list[T]:
    """Take `count` items, evenly from first to last; all where there are fewer."""
    count = min(count, len(items))
    return [items[len(items) * k // count] for k in range(count)]


def _lay_out(
    table: Sequence[Sequence[Image.Image]], heads: Sequence[str], labels: Sequence[str]
) -> Image.Image:
    """Draw rows of cells of one size, a head over each column, a label left of each row."""
    width, height = table[0][0].size
    font = ImageFont.load_default(size=min(max(max(width, height) // 14, 12), 40))
    head = 2 * int(font.getbbox("Ag")[3])
    margin = int(max(map(font.getlength, labels))) + 3 * GAP_PX
    across = max(width, int(max(map(font.getlength, heads)))) + GAP_PX
    down = max(height, head) + GAP_PX
    sheet = Image.new("RGB", (margin + across * len(heads), head + down * len(table)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(heads):
        middle = margin + column * across + across / 2
        draw.text((middle, head / 2), text, INK, font, anchor="mm")
    for row, cells in enumerate(table):
        top = head + row * down
        draw.text((margin - 2 * GAP_PX, top + down / 2), labels[row], INK, font, anchor="rm")
        for column, cell in enumerate(cells):
            sheet.paste(cell, (margin + column * across + (across - width) // 2, top))
    return sheet


def _detail(picture: Image.Image, box: Box, width: int) -> Image.Image:
    """Enlarge the box, given in pixels of a picture of that width, to one cell."""
    left, top, right, bottom = (edge * picture.width / width for edge in box)
    times = -(-CELL_PX // (box[2] - box[0])) * (box[2] - box[0])  # whole repeats, then averaged
    region = left, top, right, bottom
    detail = picture.resize((times, times), Image.Resampling.NEAREST, box=region)
    return detail.resize((CELL_PX, CELL_PX), Image.Resampling.BOX)


def _overview(picture: Image.Image, box: Box) -> Image.Image:
    """Fit the picture into a cell, the box outlined in red on white."""
    scale = CELL_PX / max(picture.size)
    size = [max(round(side * scale), 1) for side in picture.size]
    small = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    left, top, right, bottom = (round(edge * scale) for edge in box)
    draw = ImageDraw.Draw(small)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=PAPER, width=4)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=MARK, width=2)
    cell = Image.new("RGB", (CELL_PX, CELL_PX), PAPER)
    cell.paste(small, ((CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2))
    return cell


def _on_paper(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if "A" not in picture.getbands():
        return picture.convert("RGB")
    paper = Image.new("RGBA", size, (*PAPER, 255))
    return Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")
