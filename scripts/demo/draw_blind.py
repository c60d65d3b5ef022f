"""A blind test of methods: the middles of pictures, each method's side by side in an order that nobody is told.

    python scripts/demo/draw_blind.py --methods results/more/{bicubic,ours_1_0,ours_1_1,Real-ESRGAN_x4plus} \\
        --output results/blind
    python scripts/demo/draw_blind.py --output results/blind --answers answers.txt

The first writes OUTPUT/sheet_01.png ... with a row per picture, its panels lettered, and OUTPUT/key.json, which the
judge doesn't see. The judge writes a line per row, like "7 CABD": its number and the letters, the best first. The
second counts how often each method came first, and its mean place.
"""

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from PIL import Image, ImageDraw, ImageFont

from pisasr.commands.options import positive_int
from pisasr.errors import PisasrError, guarded

LETTERS = "ABCDEFGH"
GAP, HEAD = 8, 24


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--methods", type=Path, nargs="+", help="folders of pictures with the same names")
    asked.add_argument("--answers", type=Path, metavar="FILE", help="what the judge wrote")
    parser.add_argument("--panel", type=positive_int, default=256, metavar="PX", help="side of a panel (default 256)")
    parser.add_argument("--rows", type=positive_int, default=5, help="pictures on a sheet (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    return guarded(lambda: count(args) if args.answers else draw(args))


def draw(args: argparse.Namespace) -> None:
    names = sorted(set.intersection(*({path.name for path in folder.glob("*.png")} for folder in args.methods)))
    if not names or len(args.methods) > len(LETTERS):
        raise PisasrError(f"--methods wants at most {len(LETTERS)} folders with *.png of the same names.")
    chance = random.Random(args.seed)
    chance.shuffle(names)
    key = [chance.sample([folder.name for folder in args.methods], len(args.methods)) for _ in names]
    folders = {folder.name: folder for folder in args.methods}
    args.output.mkdir(parents=True, exist_ok=True)
    pitch, font = args.panel + GAP, ImageFont.load_default(16)
    for sheet, first in enumerate(range(0, len(names), args.rows), start=1):
        rows = range(first, min(first + args.rows, len(names)))
        paper = Image.new("RGB", (len(args.methods) * pitch - GAP, len(rows) * (pitch + HEAD)), "white")
        for line, row in enumerate(rows):
            top = line * (pitch + HEAD)
            for column, (letter, method) in enumerate(zip(LETTERS, key[row], strict=False)):
                picture = Image.open(folders[method] / names[row]).convert("RGB")
                left, above = ((side - args.panel) // 2 for side in picture.size)
                ImageDraw.Draw(paper).text((column * pitch, top + 3), f"{row + 1} {letter}", "black", font)
                panel = picture.crop((left, above, left + args.panel, above + args.panel))
                paper.paste(panel, (column * pitch, top + HEAD))
        paper.save(args.output / f"sheet_{sheet:02d}.png")
    (args.output / "key.json").write_text(json.dumps({"names": names, "order": key}, indent=1) + "\n")
    print(f"{len(names)} pictures on {sheet} sheets in {args.output}")


def count(args: argparse.Namespace) -> None:
    order = json.loads((args.output / "key.json").read_text())["order"]
    places: dict[str, list[int]] = {}
    for line in filter(str.strip, args.answers.read_text().splitlines()):
        number, _, letters = line.strip().partition(" ")
        if not number.isdigit() or not 0 < int(number) <= len(order) or len(set(letters)) != len(order[0]):
            raise PisasrError(f"{args.answers}: {line!r} is no row's number and its letters, like 7 CABD.")
        for place, letter in enumerate(letters, start=1):
            places.setdefault(order[int(number) - 1][LETTERS.index(letter)], []).append(place)
    for method, found in sorted(places.items(), key=lambda item: sum(item[1])):
        mean = sum(found) / len(found)
        first, last = found.count(1), found.count(len(order[0]))
        print(f"{method}: first {first} times of {len(found)}, last {last}, mean place {mean:.2f}")


if __name__ == "__main__":
    sys.exit(main())
