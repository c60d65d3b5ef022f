"""A figure of the README, figs/framework.png: inference and both training stages, with the
project's own photos in it.

python scripts/demo/draw_framework.py --input pisasr/demo/examples/chelsea.png --output
figs/framework.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from PIL import Image, ImageDraw, ImageFont

from pisasr.errors import guarded

WIDTH, HEIGHT = 1560, 860
INK, PAPER = "#1d2733", "white"
FROZEN, PIX, SEM, PLAIN = "#dfe5ec", "#cfe3ff", "#ffdfc2", "#f6f6f3"

Box = tuple[int, int, int, int]


class Sheet:
    """Boxes, arrows, words and pictures on paper."""

    def __init__(self) -> None:
        self.paper = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        self.pen = ImageDraw.Draw(self.paper)

    def box(
        self, x: int, y: int, text: str, fill: str = FROZEN, width: int = 150, height: int = 64
    ) -> Box:
        """A rounded box around (x, y) with its text in the middle."""
        place = (x - width // 2, y - height // 2, x + width // 2, y + height // 2)
        self.pen.rounded_rectangle(place, 10, fill=fill, outline=INK, width=2)
        self.words(x, y, text, 19)
        return place

    def words(self, x: int, y: int, text: str, size: int = 19, anchor: str = "mm") -> None:
        font = ImageFont.load_default(size)
        self.pen.multiline_text(
            (x, y), text, INK, font=font, anchor=anchor, align="center", spacing=5
        )

    def arrow(self, *points: tuple[int, int]) -> None:
        """A line through the points with a head at the last."""
        self.pen.line(points, INK, 2, joint="curve")
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        self.pen.polygon(
            [
                (x, y),
                (x - 11 * dx - 6 * dy, y - 11 * dy - 6 * dx),
                (x - 11 * dx + 6 * dy, y - 11 * dy + 6 * dx),
            ],
            INK,
        )

    def picture(self, x: int, y: int, image: Image.Image, caption: str, width: int = 150) -> None:
        image = image.resize(
            (width, round(image.height * width / image.width)), Image.Resampling.LANCZOS
        )
        self.paper.paste(image, (x - width // 2, y - image.height // 2))
        self.words(x, y + image.height // 2 + 20, caption)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="a low-quality photo")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    return guarded(lambda: draw(args.input, args.output))


def draw(photo_file: Path, output: Path) -> None:
    from pisasr import PiSASRPipeline
    from pisasr.pictures.images import open_image
    from pisasr.pictures.saving import save_image

    photo = open_image(photo_file)
    restored = PiSASRPipeline.from_pretrained()(photo).images[0]
    enlarged = photo.resize(restored.size, Image.Resampling.BICUBIC)
    sheet = Sheet()
    draw_inference(sheet, enlarged, restored)
    draw_training(sheet, restored)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_image(sheet.paper, output)


def draw_inference(sheet: Sheet, x_L: Image.Image, x_H: Image.Image) -> None:
    y, up, down = 215, 130, 300
    sheet.words(30, 34, "Inference: one step, two strengths", 26, "lm")
    sheet.picture(115, y, x_L, "x_L, enlarged")
    sheet.arrow((192, y), (232, y))
    sheet.box(295, y, "VAE\nencoder", width=120)
    sheet.arrow((357, y), (420, y), (420, up), (470, up))
    sheet.arrow((420, y), (420, down), (470, down))
    sheet.words(388, y - 18, "z_L")
    sheet.box(580, up, "UNet + pix", PIX, 210)
    sheet.box(580, down, "UNet + pix + sem", SEM, 210)
    sheet.arrow((687, up), (850, up), (850, y - 48))
    sheet.arrow((687, down), (850, down), (850, y + 48))
    sheet.words(765, up - 18, "eps_pix")
    sheet.words(765, down + 20, "eps_pisa")
    formula = "z_H = z_L - [ lambda_pix * eps_pix\n+ lambda_sem * (eps_pisa - eps_pix) ]"
    sheet.box(910, y, formula, PLAIN, 390, 92)
    sheet.arrow((420, y), (713, y))
    sheet.arrow((1107, y), (1175, y))
    sheet.words(1140, y - 18, "z_H")
    sheet.box(1240, y, "VAE\ndecoder", width=120)
    sheet.arrow((1302, y), (1352, y))
    sheet.picture(1432, y, x_H, "x_H")
    sheet.pen.line((30, 400, WIDTH - 30, 400), "#c8cdd3", 2)


def draw_training(sheet: Sheet, x_H: Image.Image) -> None:
    sheet.words(30, 438, "Training: one adapter at a time, everything else frozen", 26, "lm")
    y = 620
    sheet.picture(115, y, x_H, "x_H, a sharp photo")
    sheet.arrow((192, y), (232, y))
    sheet.box(300, y, "degrade:\nblur, resize,\nnoise, JPEG", PLAIN, 130, 92)
    sheet.arrow((367, y), (400, y))
    sheet.box(465, y, "VAE\nencoder", width=120)
    first, second = 530, 720
    sheet.arrow((527, y), (560, y), (560, first), (600, first))
    sheet.arrow((560, y), (560, second), (600, second))
    for place, unet, fill, losses, name in (
        (first, "UNet + pix\npix learns", PIX, "l2", "stage 1"),
        (second, "UNet + pix + sem\npix frozen, sem learns", SEM, "l2 + 2 LPIPS + CSD", "stage 2"),
    ):
        sheet.box(720, place, unet, fill, 236)
        sheet.words(720, place - 48, name)
        sheet.arrow((840, place), (880, place))
        sheet.box(970, place, "z_L - eps = z_H", PLAIN, 176)
        sheet.arrow((1060, place), (1098, place))
        sheet.box(1160, place, "VAE\ndecoder", width=120)
        sheet.arrow((1222, place), (1262, place))
        sheet.box(1390, place, losses, PLAIN, 250)
    sheet.box(1180, 812, "CSD: the base itself, adapters off, is the teacher", FROZEN, 470, 44)
    sheet.arrow((1417, 812), (1460, 812), (1460, second + 34))
    sheet.arrow((970, second + 34), (970, 790))


if __name__ == "__main__":
    sys.exit(main())
