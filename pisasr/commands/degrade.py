"""`pisasr degrade`: photos in, pairs for training, validation and scoring out.

Writes OUTPUT/hq and OUTPUT/lq. Every photo's draws are keyed by --seed and its name below --input,
without extension: adding photos changes none of the others, and the same command writes the same
pixels. Photos are cut to a multiple of the recipe's scale first.
"""

import argparse
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pisasr.commands.options import command_parser, positive_int
from pisasr.errors import (
    OK,
    SOME_FAILED,
    ImageError,
    OverlapError,
    PisasrError,
    explain,
    guarded,
    safe_text,
)
from pisasr.pictures.folders import EXTENSIONS

if TYPE_CHECKING:
    from PIL import Image

    from pisasr.data.degradation import DegradationRecipe


EXAMPLES = """examples:
  pisasr degrade --input photos --output data/pairs --seed 7
  pisasr degrade --input photos --output data/val --crop 512 --recipe camera.yaml"""


def degrade(argv: list[str]) -> int:
    """Make pairs: `pisasr degrade --help`."""
    parser = command_parser("pisasr degrade", "Degrade photos as Real-ESRGAN does.", EXAMPLES)
    add = parser.add_argument
    add("--input", nargs="+", required=True, type=Path, help="folders of photos, or photos")
    add("--output", required=True, type=Path, help="folder that receives hq/ and lq/")
    add("--recipe", type=Path, help="YAML over the published recipe; see configs/degradation")
    add("--seed", type=int, default=0)
    add("--crop", type=positive_int, metavar="N", help="take the N x N middle of each photo")
    args = parser.parse_args(argv)
    return guarded(lambda: _degrade(args), args.debug)


def _degrade(args: argparse.Namespace) -> int:
    from pisasr.data.degradation import DegradationRecipe
    from pisasr.training.config import load_recipe

    recipe = load_recipe(args.recipe) if args.recipe else DegradationRecipe()
    photos = find_photos(args.input, args.output)
    failed = 0
    for name, path in photos.items():
        try:
            degrade_photo(name, path, recipe, args)
        except (PisasrError, OSError) as error:
            print(f"{safe_text(path)}: {safe_text(explain(error))}", file=sys.stderr)
            failed += 1
    print(f"{len(photos) - failed} pairs in {safe_text(args.output)}")
    return SOME_FAILED if failed else OK


def find_photos(inputs: list[Path], output: Path) -> dict[str, Path]:
    """List photos by their name below --input, without extension; equal names are refused."""
    photos: dict[str, Path] = {}
    for place in inputs:
        root, files = (
            (place, sorted(place.rglob("*"))) if place.is_dir() else (place.parent, [place])
        )
        for path in files:
            if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
                continue
            if output.resolve() in path.resolve().parents:
                raise OverlapError(f"{path} lies in --output; choose another folder")
            name = path.relative_to(root).with_suffix("").as_posix()
            if name in photos:
                raise PisasrError(f"{photos[name]} and {path} would both be {name}.png; rename one")
            photos[name] = path
    if not photos:
        raise PisasrError(f"--input: no photos in {', '.join(map(str, inputs))}")
    return photos


def degrade_photo(
    name: str, path: Path, recipe: "DegradationRecipe", args: argparse.Namespace
) -> None:
    from pisasr.data.degradation import degrade_one, sample_generator
    from pisasr.pictures.images import open_image, to_image, to_tensor
    from pisasr.pictures.saving import save_image

    hq = cut_middle(open_image(path).convert("RGB"), args.crop, recipe.scale)
    index = int.from_bytes(sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    x_L = degrade_one(to_tensor(hq)[0], recipe, sample_generator(args.seed, 0, index))
    for side, picture in (("lq", to_image(x_L)), ("hq", hq)):
        file = args.output / side / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(picture, file)


def cut_middle(photo: "Image.Image", side: int | None, scale: int) -> "Image.Image":
    """Cut the middle, at most side x side, each a multiple of scale."""
    width, height = (min(length, side or length) // scale * scale for length in photo.size)
    if min(width, height) == 0:
        raise ImageError(f"{photo.width}x{photo.height} leaves nothing at 1/{scale} of its size")
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    return photo.crop((left, top, left + width, top + height))
