"""Infer, after --lambda_grid: one sheet for all strengths, rows lambda_pix, columns lambda_sem, as
in the paper.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MAX_CELL = 1024  # longer sides are shown smaller; the pictures themselves are beside the sheet
GAP = 4
INK, PAPER = (24, 24, 24), (255, 255, 255)


def draw_sheet(
    pictures: Sequence[Image.Image], lambdas_pix: Sequence[float], lambdas_sem: Sequence[float]
) -> Image.Image:
    """Lay out len(lambdas_pix) x len(lambdas_sem) pictures of one size, given row by row, with
    their strengths.
    """
    rows, columns = len(lambdas_pix), len(lambdas_sem)
    if len(pictures) != rows * columns:
        raise ValueError(
            f"{rows} x {columns} strengths need {rows * columns} pictures, {len(pictures)} came"
        )
    cell = _fit(pictures[0].size, max(MAX_CELL * 4 // max(rows, columns), 64))
    font = ImageFont.load_default(size=min(max(max(cell) // 14, 12), 40))
    labels = [f"lambda_pix = {value:g}" for value in lambdas_pix]
    heads = [f"lambda_sem = {value:g}" for value in lambdas_sem]
    margin = int(max(font.getlength(label) for label in labels)) + 4 * GAP
    head = int(getattr(font, "size", 12) * 1.8)
    pitch = (
        max(cell[0], int(max(font.getlength(label) for label in heads)) + 2 * GAP),
        max(cell[1], head),
    )
    sheet = Image.new(
        "RGB", (margin + columns * (pitch[0] + GAP), head + rows * (pitch[1] + GAP)), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(heads):
        draw.text(
            (margin + column * (pitch[0] + GAP) + pitch[0] / 2, head / 2),
            label,
            INK,
            font,
            anchor="mm",
        )
    for row, label in enumerate(labels):
        draw.text(
            (margin - 2 * GAP, head + row * (pitch[1] + GAP) + pitch[1] / 2),
            label,
            INK,
            font,
            anchor="rm",
        )
    for index, picture in enumerate(pictures):
        left = margin + index % columns * (pitch[0] + GAP) + (pitch[0] - cell[0]) // 2
        top = head + index // columns * (pitch[1] + GAP) + (pitch[1] - cell[1]) // 2
        sheet.paste(_on_paper(picture, cell), (left, top))
    return sheet


def _fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """`size` with its long side no longer than `longest`."""
    scale = min(1.0, longest / max(size))
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _on_paper(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if "A" not in picture.getbands():
        return picture.convert("RGB")
    paper = Image.new("RGBA", size, (*PAPER, 255))
    return Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")
