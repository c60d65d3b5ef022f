"""Step 2 of the embedded default: tiles of drawn text and plain shapes, what a screenshot has and
no photo of ours.

    python scripts/demo/pages.py --output data/demo/pages --count 60
    python scripts/demo/pages.py --output data/demo/letters --count 120 --zoom 2 4

Every tile is a window of made-up words in the DejaVu fonts that matplotlib brings along, on a plain
or shaded ground, with frames, buttons and lines. Nobody's work is in them, so they ship with no
notice. Same --seed, same tiles. The letters are 9 to 36 px high, so that a fourfold reduction
leaves hints of them; --zoom makes them larger, as they are in the pictures that are to come out
when a readable screenshot is enlarged.
"""

import argparse
import random
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from PIL import Image, ImageDraw, ImageFont

from pisasr.commands.options import positive_int
from pisasr.errors import guarded

TILE = 256
OVERSIZE = 2  # drawn larger and reduced, so that edges fall between pixels as they do on screens with smoothed fonts
FACES = ("Sans", "Sans-Bold", "Sans-Oblique", "Serif", "Serif-Bold", "SansMono", "SansMono-Bold")
SYLLABLES = "ra te li no ves mar con tri sta be ul ing er qu fo gy pla wex hom ji dak".split()
SYLLABLES += "07 3.5 19 x4 : - , . ( ) %".split()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=positive_int, default=60)
    parser.add_argument(
        "--zoom",
        nargs="+",
        type=int,
        default=[1],
        choices=range(1, 17),
        metavar="1..16",
        help="letters larger by this, tile by tile in turn",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    return guarded(lambda: draw_pages(args))


def draw_pages(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    for number in range(args.count):
        page = draw_page(random.Random(f"{args.seed} {number}"), args.zoom[number % len(args.zoom)])
        page.save(args.output / f"page_{number:03}.png")


def draw_page(chance: random.Random, zoom: int = 1) -> Image.Image:
    """One tile, TILE px wide and high: shapes first, then lines of text until the tile is full."""
    side = TILE * OVERSIZE
    paper, ink = colors(chance)
    page = Image.new("RGB", (side, side), paper)
    if chance.random() < 0.4:  # one shade into another
        shade = (
            Image.linear_gradient("L").rotate(chance.choice((0, 90, 180, 270))).resize((side, side))
        )
        page = Image.composite(Image.new("RGB", (side, side), colors(chance)[0]), page, shade)
    canvas = ImageDraw.Draw(page)
    for _ in range(chance.randrange(7)):
        draw_shape(canvas, chance, side)
    top = chance.randrange(0, 40)
    while top < side:
        font = load_font(
            chance.choice(FACES), zoom * chance.choice((18, 20, 22, 24, 26, 30, 36, 48, 72))
        )
        text = " ".join(word(chance) for _ in range(12))
        left = chance.randrange(-20, 60)
        fill = colors(chance)[1] if chance.random() < 0.15 else ink
        canvas.text((left, top), text, font=font, fill=fill)
        top += int(font.size * chance.uniform(1.15, 2))
    return page.resize((TILE, TILE), Image.Resampling.BOX)


def draw_shape(canvas: ImageDraw.ImageDraw, chance: random.Random, side: int) -> None:
    """A frame, a filled box with round corners, a disc or a line, anywhere."""
    left, top = chance.randrange(-40, side), chance.randrange(-40, side)
    box = (left, top, left + chance.randrange(20, 300), top + chance.randrange(20, 200))
    fill, edge = colors(chance)
    width = chance.choice((1, 2, 2, 3, 4, 8))
    match chance.randrange(4):
        case 0:
            canvas.rectangle(box, outline=edge, width=width)
        case 1:
            canvas.rounded_rectangle(
                box, radius=chance.randrange(2, 20), fill=fill, outline=edge, width=width
            )
        case 2:
            canvas.ellipse(box, fill=fill, outline=edge, width=width)
        case 3:
            canvas.line(box, fill=edge, width=width)


def colors(chance: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(paper, ink) that can be told apart: dark on light or light on dark, grey or tinted."""
    light, dark = chance.randrange(190, 256), chance.randrange(0, 90)
    tint = chance.choice((0, 0, 20, 60))
    pair = [
        tuple(min(255, max(0, level + chance.randint(-tint, tint))) for _ in range(3))
        for level in (light, dark)
    ]
    return (pair[0], pair[1]) if chance.random() < 0.65 else (pair[1], pair[0])


def word(chance: random.Random) -> str:
    text = "".join(chance.choice(SYLLABLES) for _ in range(chance.randint(1, 4)))
    return chance.choice((text, text, text.capitalize(), text.upper()))


@cache
def load_font(face: str, size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / f"fonts/ttf/DejaVu{face}.ttf", size)


if __name__ == "__main__":
    sys.exit(main())
