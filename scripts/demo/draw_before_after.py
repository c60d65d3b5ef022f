"""Figures of the README, what the model does: bicubic, (1, 0) and (1, 1) side by side, one JPEG per
picture.

    python scripts/demo/draw_before_after.py --input pisasr/demo/examples/*.png --output results/before_after

Each panel is the middle of the picture after fourfold enlargement, its pixels as they are.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from PIL import Image, ImageDraw, ImageFont

from pisasr.commands.options import positive_int
from pisasr.errors import ImageError, guarded

SCALE = 4
GAP = 8
HEAD = 28
STRENGTHS = ((1.0, 0.0), (1.0, 1.0))
TITLES = ("bicubic", *(f"lambda_pix {pix:g}, lambda_sem {sem:g}" for pix, sem in STRENGTHS))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="low-quality pictures")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--pretrained_model", metavar="MODEL", help="folder or hub id (default: the embedded model)"
    )
    parser.add_argument(
        "--adapters",
        metavar="PATH",
        help="folder, hub id or .pkl (default: those beside the model)",
    )
    parser.add_argument(
        "--panel",
        type=positive_int,
        default=360,
        metavar="PX",
        help="side of a panel (default 360)",
    )
    args = parser.parse_args(argv)
    return guarded(lambda: draw(args))


def draw(args: argparse.Namespace) -> None:
    from pisasr import PiSASRPipeline
    from pisasr.pictures.images import open_image

    pipeline = PiSASRPipeline.from_pretrained(args.pretrained_model, args.adapters)
    args.output.mkdir(parents=True, exist_ok=True)
    for path in args.input:
        try:
            photo = open_image(path).convert("RGB")
        except ImageError as error:
            raise ImageError(f"{path}: {error}; give the pictures themselves, no folders") from None
        bicubic = photo.resize(
            (SCALE * photo.width, SCALE * photo.height), Image.Resampling.BICUBIC
        )
        place = args.output / f"{path.stem}.jpg"
        prediction = pipeline.predict(photo, upscale=SCALE)
        results = [pipeline.decode(prediction, *pair) for pair in STRENGTHS]
        side_by_side([bicubic, *results], args.panel).save(place, quality=92)
        print(place)


def side_by_side(
    pictures: list[Image.Image], panel: int, titles: Sequence[str] = TITLES
) -> Image.Image:
    """The middle of each picture, at most `panel` px wide and high, in a row on white under its
    title.
    """
    width, height = (min(panel, side) for side in pictures[0].size)
    left, top = (pictures[0].width - width) // 2, (pictures[0].height - height) // 2
    sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, HEAD + height), "white")
    for column, (title, picture) in enumerate(zip(titles, pictures, strict=True)):
        x = column * (width + GAP)
        ImageDraw.Draw(sheet).text(
            (x + width / 2, HEAD / 2), title, "black", ImageFont.load_default(18), anchor="mm"
        )
        sheet.paste(picture.crop((left, top, left + width, top + height)), (x, HEAD))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
