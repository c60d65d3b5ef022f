"""A blind test of methods: the middles of pictures, each method's side by side in an order that
nobody is told.

    python scripts/demo/draw_blind.py --methods results/more/{bicubic,ours_1_0,ours_1_1,Real-ESRGAN_x4plus} \\
        --output results/blind --key results/key.json
    python scripts/demo/draw_blind.py --answers answers.txt --key results/key.json

The first writes OUTPUT/sheet_01.png ... with a row per picture, its panels lettered, and the key,
which the judge doesn't see. The judge writes a line per row, like "7 CABD": its number and the
letters, the best first. The second counts how often each method came first, second and so on.
"""

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from draw_before_after import side_by_side
from PIL import Image

from pisasr.commands.options import positive_int
from pisasr.errors import PisasrError, guarded

LETTERS = "ABCDEFGH"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="who is who")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--methods", type=Path, nargs="+", help="folders of pictures (PNG) with the same names"
    )
    asked.add_argument("--answers", type=Path, metavar="FILE", help="what the judge wrote")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the sheets go: a new folder"
    )
    parser.add_argument(
        "--panel",
        type=positive_int,
        default=256,
        metavar="PX",
        help="side of a panel (default 256)",
    )
    parser.add_argument(
        "--rows", type=positive_int, default=5, help="pictures on a sheet (default 5)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.methods and not args.output:
        parser.error("--methods wants --output, a new folder for the sheets")
    return guarded(lambda: count(args) if args.answers else draw(args))


def draw(args: argparse.Namespace) -> None:
    from pisasr.pictures.images import open_image

    folders = {folder.resolve().name: folder for folder in args.methods}
    if not 2 <= len(folders) == len(args.methods) <= len(LETTERS):
        raise PisasrError(f"--methods wants 2 to {len(LETTERS)} folders of different names.")
    if args.output.exists():
        raise PisasrError(
            f"{args.output} exists; name a new folder, so that no sheet of another draw lies in it."
        )
    found = [{path.name for path in folder.glob("*.png")} for folder in folders.values()]
    names = sorted(set.intersection(*found))
    if not names:
        raise PisasrError(
            f"--methods: the folders have no PNG of the same name; the first has {len(found[0])} of them."
        )
    chance = random.Random(args.seed)
    chance.shuffle(names)
    order = [chance.sample(list(folders), len(folders)) for _ in names]
    rows = []
    for number, (name, row) in enumerate(zip(names, order, strict=True), start=1):
        pictures = [open_image(folders[method] / name).convert("RGB") for method in row]
        if len({picture.size for picture in pictures}) > 1:
            raise PisasrError(f"--methods: {name} is not of one size in all folders.")
        titles = [f"{number} {letter}" for letter in LETTERS[: len(row)]]
        rows.append(side_by_side(pictures, args.panel, titles))
    args.output.mkdir(parents=True)
    sheets = [rows[first : first + args.rows] for first in range(0, len(rows), args.rows)]
    for number, sheet in enumerate(sheets, start=1):
        paper = Image.new(
            "RGB", (max(row.width for row in sheet), sum(row.height for row in sheet)), "white"
        )
        for line, row in enumerate(sheet):
            paper.paste(row, (0, sum(above.height for above in sheet[:line])))
        paper.save(args.output / f"sheet_{number:02d}.png")
    args.key.write_text(
        json.dumps({"names": names, "order": order}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"{len(names)} pictures on {len(sheets)} sheets in {args.output}")


def count(args: argparse.Namespace) -> None:
    try:
        order = json.loads(args.key.read_text(encoding="utf-8"))["order"]
    except (ValueError, KeyError, TypeError):
        raise PisasrError(f"{args.key} is no key of this script; draw the sheets again.") from None
    letters = LETTERS[: len(order[0])]
    places: dict[str, list[int]] = {method: [] for method in order[0]}
    missing = set(range(1, len(order) + 1))
    for line in filter(
        str.strip, args.answers.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    ):
        number, _, answer = line.strip().partition(" ")
        answer = answer.replace(" ", "").upper()
        if not (number.isascii() and number.isdigit()) or sorted(answer) != sorted(letters):
            raise PisasrError(
                f"{args.answers}: {line!r} is no row's number and each of {letters} once, like 7 {letters}."
            )
        if int(number) not in missing:
            raise PisasrError(
                f"{args.answers}: row {number} is there twice, or not among the {len(order)} drawn."
            )
        missing.remove(int(number))
        for place, letter in enumerate(answer):
            places[order[int(number) - 1][letters.index(letter)]].append(place)
    if missing:
        raise PisasrError(
            f"{args.answers} lacks {len(missing)} of {len(order)} rows, like {min(missing)}."
        )
    for method, found in sorted(places.items(), key=lambda item: sum(item[1])):
        counts = ", ".join(str(found.count(place)) for place in range(len(letters)))
        print(f"{method}: places {counts}; mean {1 + sum(found) / len(found):.2f}")


if __name__ == "__main__":
    sys.exit(main())
