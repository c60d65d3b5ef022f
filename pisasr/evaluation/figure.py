"""Score, last stop: details side by side, labelled; what a table cannot show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pisasr.evaluation.pairs import Example
from pisasr.pictures.opening import read_picture

CELL_PX, GAP_PX, HEAD_PX, FOOT_PX = 256, 4, 28, 22
ROWS_PER_SHEET = 6
INK, PAPER, MARK = (24, 24, 24), (255, 255, 255), (220, 30, 30)
OVERVIEW, INPUT, TRUTH = "detail of", "input", "true picture"

# Methods are compared on luma blurred this much: grain of single pixels fades to a fifth, texture
# and edges stay.
BLUR_SIGMA_PX = 1.5

# left, top, right, bottom, as Pillow counts them
Box = tuple[int, int, int, int]


def busiest_detail(picture: Image.Image, side: int) -> Box:
    """The box of `side` px with the most fine structure in the picture, searched every eighth of
    its side.
    """
    y = np.asarray(picture.convert("L"), np.float64)
    energy = np.zeros_like(y)
    energy[:, 1:] += np.abs(np.diff(y, axis=1))
    energy[1:] += np.abs(np.diff(y, axis=0))
    return _densest_box(energy, side)[0]


def most_different_box(pictures: Sequence[Image.Image], side: int) -> Box:
    """The box of `side` px where pictures of one size differ most from each other, searched as
    `busiest_detail` does.

    Difference is the variance over the pictures of their blurred luma. Where there is none (one
    picture, or equal ones), the box is the first picture's busiest detail.
    """
    box, variance = _densest_box(_disagreement(pictures), side)
    return box if variance > 0 else busiest_detail(pictures[0], side)


def pick_examples(examples: Sequence[Example], count: int, detail_px: int = 128) -> list[Example]:
    """The `count` examples whose most different boxes differ most (mean variance there), in the
    order they came.

    The best `count` of the whole set, by what the sheet will show: they speak for where methods
    part, not for the set. Equal ones are taken in order.
    """
    variances = [
        _densest_box(_disagreement(_read_methods(example)), detail_px)[1] for example in examples
    ]
    chosen = sorted(range(len(examples)), key=lambda index: -variances[index])[:count]
    return [examples[index] for index in sorted(chosen)]


def draw_sheets(
    examples: Sequence[Example],
    detail_px: int = 128,
    captions: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> list[Image.Image]:
    """Comparison sheets of these examples: input, every method, true picture, at the place where
    the methods differ.

    captions: (method, name of the picture) -> what stands under that detail, such as "25.79 dB".
    The examples are spread evenly over as few sheets as ROWS_PER_SHEET allows; all of them have an
    input and a true picture, or none.
    """
    sheets, count = [], -(-len(examples) // ROWS_PER_SHEET)
    for part in (
        examples[len(examples) * k // count : len(examples) * (k + 1) // count]
        for k in range(count)
    ):
        rows, boxes, notes = [], [], []
        for example in part:
            methods = dict(zip(example.sr, _read_methods(example), strict=True))
            first = {INPUT: Image.fromarray(read_picture(example.lq))} if example.lq else {}
            last = {TRUTH: Image.fromarray(read_picture(example.hq))} if example.hq else {}
            rows.append({**first, **methods, **last})
            boxes.append(most_different_box([*methods.values()], detail_px))
            below = {method: captions.get((method, example.name), "") for method in methods}
            notes.append({OVERVIEW: Path(example.name).stem, **below})
        sheets.append(
            draw_comparison(
                rows, detail_px, boxes, notes, TRUTH if part[0].hq else next(iter(part[0].sr))
            )
        )
    return sheets


def draw_comparison(
    rows: Sequence[dict[str, Image.Image]],
    detail_px: int = 128,
    boxes: Sequence[Box] = (),
    captions: Sequence[Mapping[str, str]] = (),
    overview: str | None = None,
) -> Image.Image:
    """A row per picture: the whole of it with the detail marked, then that detail of every entry
    under its label.

    rows: label -> picture, the same labels in each row. overview: the label of the entry that is
    shown whole, the last one unless said. boxes: each row's detail, in pixels of its overview;
    without them the overview's busiest one. captions: for each row, label -> the line under its
    detail (OVERVIEW's is under the whole picture).

    An entry smaller than the overview, such as the input, shows the same region. Details are
    enlarged by repeating pixels, so that nothing is smoothed for show.
    """
    labels = list(rows[0])
    pitch, height = CELL_PX + GAP_PX, CELL_PX + GAP_PX + (FOOT_PX if captions else 0)
    sheet = Image.new(
        "RGB", (pitch * (len(labels) + 1) - GAP_PX, HEAD_PX + height * len(rows) - GAP_PX), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate([OVERVIEW, *labels]):
        _write(draw, label, column, HEAD_PX / 2)
    for index, pictures in enumerate(rows):
        top = HEAD_PX + index * height
        whole = pictures[overview or labels[-1]]
        box = boxes[index] if boxes else busiest_detail(whole, detail_px)
        sheet.paste(_overview(whole, box), (0, top))
        for column, label in enumerate(labels, start=1):
            sheet.paste(_detail(pictures[label], box, whole.size), (column * pitch, top))
        for column, label in enumerate([OVERVIEW, *labels] if captions else []):
            _write(
                draw, captions[index].get(label, ""), column, top + CELL_PX + FOOT_PX / 2, size=14
            )
    return sheet


def _read_methods(example: Example) -> list[Image.Image]:
    return [Image.fromarray(read_picture(path)) for path in example.sr.values()]


def _disagreement(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Variance over the pictures of their blurred luma, in grey levels squared, [H, W]."""
    blur = ImageFilter.GaussianBlur(BLUR_SIGMA_PX)
    return np.var(
        [np.asarray(picture.convert("L").filter(blur), np.float64) for picture in pictures], axis=0
    )


def _densest_box(density: np.ndarray, side: int) -> tuple[Box, float]:
    """The box of `side` px with the largest sum of [H, W], and its mean; corners lie on multiples
    of side / 8.
    """
    side = min(side, *density.shape)
    step = max(side // 8, 1)
    sums = np.pad(density.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    totals = (
        sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    )[::step, ::step]
    top, left = (int(index) * step for index in np.unravel_index(totals.argmax(), totals.shape))
    return (left, top, left + side, top + side), float(totals.max()) / side**2


def _detail(picture: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """The box, given in pixels of a picture of `size`, as one cell.

    Each pixel is repeated a whole number of times; what is then too much is averaged away, so that
    pixels come out equally wide where their number does not divide the cell's.
    """
    scale = picture.width / size[0], picture.height / size[1]
    enlarged = -(-CELL_PX // (box[2] - box[0])) * (box[2] - box[0])
    left, top, right, bottom = box
    region = left * scale[0], top * scale[1], right * scale[0], bottom * scale[1]
    detail = picture.resize((enlarged, enlarged), Image.Resampling.NEAREST, box=region)
    return detail.resize((CELL_PX, CELL_PX), Image.Resampling.BOX)


def _overview(picture: Image.Image, box: Box) -> Image.Image:
    """The picture fitted into a cell, the box outlined in red on white, so that it shows on any
    ground.
    """
    scale = CELL_PX / max(picture.size)
    small = picture.resize(
        [max(round(side * scale), 1) for side in picture.size], Image.Resampling.LANCZOS
    )
    left, top, right, bottom = (round(edge * scale) for edge in box)
    draw = ImageDraw.Draw(small)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=PAPER, width=4)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=MARK, width=2)
    cell = Image.new("RGB", (CELL_PX, CELL_PX), PAPER)
    cell.paste(small, ((CELL_PX - small.width) // 2, (CELL_PX - small.height) // 2))
    return cell


def _write(
    draw: ImageDraw.ImageDraw, text: str, column: int, middle: float, size: int = 16
) -> None:
    """One line centred on a column; when it is too wide it is set smaller, then loses its
    middle.
    """
    width, half, shown = CELL_PX - 2 * GAP_PX, len(text) // 2, text
    font = ImageFont.load_default(size)
    while font.getlength(shown) > width and size > 11:
        size -= 1
        font = ImageFont.load_default(size)
    while font.getlength(shown) > width:
        half -= 1
        shown = f"{text[:half]}...{text[-half:]}"
    draw.text((column * (CELL_PX + GAP_PX) + CELL_PX / 2, middle), shown, INK, font, anchor="mm")
