"""A figure of the README: one place of a picture under every pair of strengths, its pixels as they
are.

    python scripts/infer.py --input pisasr/demo/examples/coffee.png --output results/grid \
        --lambda_grid "0,0.5,1,1.5" "0,0.5,1,1.5"
    python scripts/demo/draw_strengths.py --pictures results/grid/coffee --box 150 130 220 170 \\
        --output figs/adjustable.png

Rows are lambda_pix, columns lambda_sem, as in the sheet that infer.py makes of whole pictures.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from PIL import Image

from pisasr.errors import PisasrError, guarded
from pisasr.pictures.sheets import draw_sheet


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, required=True, help="folder with pixX_semY.png, from --lambda_grid"
    )
    parser.add_argument(
        "--box", type=int, nargs=4, required=True, metavar=("LEFT", "TOP", "WIDTH", "HEIGHT")
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(argv)
    return guarded(lambda: draw(args.pictures, tuple(args.box), args.output))


def draw(folder: Path, box: tuple[int, int, int, int], output: Path) -> None:
    found = {pair: path for path in folder.glob("pix*_sem*.png") if (pair := strengths(path.stem))}
    lambdas_pix, lambdas_sem = (sorted({pair[axis] for pair in found}) for axis in (0, 1))
    absent = [(pix, sem) for pix in lambdas_pix for sem in lambdas_sem if (pix, sem) not in found]
    if not found or absent:
        raise PisasrError(
            f"{folder}: a whole grid of pixX_semY.png is wanted; missing: {absent or 'all'}"
        )
    if output.suffix.lower() not in Image.registered_extensions():
        raise PisasrError(f"--output is {output}; give a file such as sheet.png")
    left, top, width, height = box
    details = []
    for pair in sorted(found):
        with Image.open(found[pair]) as picture:
            inside = left + width <= picture.width and top + height <= picture.height
            if min(left, top) < 0 or min(width, height) < 1 or not inside:
                size = f"{picture.width} x {picture.height}"
                raise PisasrError(
                    f"--box {left} {top} {width} {height} is no place inside the pictures of {size} px"
                )
            details.append(picture.crop((left, top, left + width, top + height)))
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(details, lambdas_pix, lambdas_sem).save(output)


def strengths(name: str) -> tuple[float, float] | None:
    """(lambda_pix, lambda_sem) of a picture's name, as infer.py gives it."""
    match = re.fullmatch(r"pix([\d.]+)_sem([\d.]+)", name)
    return (float(match[1]), float(match[2])) if match else None


if __name__ == "__main__":
    sys.exit(main())
