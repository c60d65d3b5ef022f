"""Make low-quality pictures of good photos, the way training does.

python scripts/degrade.py --input photos --output results/lq --seed 7 python scripts/degrade.py
--input photos --output results/lq --hq_output results/hq --crop 512 --recipe camera.yaml python
scripts/degrade.py --verify results/lq/manifest.json

Every photo's chance comes from --seed and from its name below --input, without extension: adding
photos changes none of the others, and the same command writes the same pixels. Photos are cut to a
multiple of the scale first; --hq_output keeps what the low-quality picture was made of.
OUTPUT/manifest.json holds the recipe, the versions that pixels depend on, and the size and SHA-256
of every file read and written; it is there once everything else is.

--verify tells whether a folder still is what its manifest says: the manifest's own folder, or
--output where it lies elsewhere, and --hq_output too if given. Pictures that are missing, differ or
were added are listed.

Exit code: 0 all fine, 1 nothing could start, 2 usage, 3 some photos failed or a folder differs from
its manifest.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.batch import check_output
from pisasr.commands.options import command_parser, positive_int
from pisasr.errors import (
    OK,
    SOME_FAILED,
    ImageError,
    OverlapError,
    PisasrError,
    UsageError,
    explain,
    guarded,
    safe_text,
)
from pisasr.pictures.folders import Input, find_inputs, resolved
from pisasr.pictures.manifest import find_differences, read_entries

if TYPE_CHECKING:
    from PIL import Image

    from pisasr.data.degradation import DegradationRecipe

MANIFEST = "manifest.json"


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return guarded(lambda: verify(args) if args.verify else degrade(args), args.debug)


def verify(args: argparse.Namespace) -> int:
    """Hold the pictures against their manifest."""
    return SOME_FAILED if report_differences(args) else OK


def degrade(args: argparse.Namespace) -> int:
    """Every photo's low-quality version, and a manifest of them all."""
    recipe = read_recipe(args.recipe, args.scale)
    entries, failed = [], 0
    photos = find_photos(args)
    folders = list(filter(None, (args.output, args.hq_output)))
    for folder in folders:
        check_output(folder, *[MANIFEST] * (folder == args.output))
    for photo in photos:
        if photo.status == "skipped":
            print(f"{safe_text(photo.path)}: skipped ({safe_text(photo.reason)})")
            continue
        try:
            entries.append(degrade_photo(photo, recipe, args))
            print(f"{safe_text(photo.path)}: {entries[-1]['lq']['size']}")
        except (ImageError, OSError) as error:
            failed += 1
            print(f"{safe_text(photo.path)}: {safe_text(explain(error))}", file=sys.stderr)
    write_manifest(args, recipe, entries)
    return SOME_FAILED if failed else OK


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("degrade.py", __doc__)
    parser.add_argument("--input", help="folder of photos, searched recursively, or one photo")
    parser.add_argument("--output", type=Path, help="folder for the low-quality PNGs")
    parser.add_argument(
        "--hq_output", type=Path, help="folder for the photos as degraded: cut, upright, sRGB"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=positive_int, help="reduction; the recipe's own (published: 4) if not given"
    )
    parser.add_argument(
        "--recipe", type=Path, help="YAML over the published recipe; see configs/degradation"
    )
    parser.add_argument(
        "--crop", type=positive_int, metavar="N", help="take the N x N middle of each photo"
    )
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="MANIFEST",
        help="write nothing; compare folders with a manifest",
    )
    args = parser.parse_args(argv)
    if args.verify and args.input:
        parser.error("--verify reads no --input; give one of them")
    if not args.verify and not (args.input and args.output):
        parser.error("--input and --output are wanted, or --verify")
    return args


def read_recipe(path: Path | None, scale: int | None) -> "DegradationRecipe":
    try:
        from pisasr.config import load_recipe
        from pisasr.data.degradation import DegradationRecipe
    except ModuleNotFoundError as error:
        raise PisasrError(f"degrade.py needs {error.name}; install pisasr[train]") from None
    recipe = load_recipe(path) if path else DegradationRecipe()
    return recipe if scale is None else replace(recipe, scale=scale)


def find_photos(args: argparse.Namespace) -> list[Input]:
    """The photos that --input means; refused where two would be written to one name, or one over
    another's file.
    """
    folders = [resolved(folder) for folder in (args.output, args.hq_output) if folder]
    if len(set(folders)) < len(folders):
        raise UsageError("--output and --hq_output are the same folder; wanted two")
    photos = find_inputs([args.input], args.output, recursive=True)
    if (
        args.hq_output and resolved(Path(args.input)) in folders[1].parents
    ):  # what an earlier run wrote is no photo
        photos = [photo for photo in photos if folders[1] not in resolved(photo.path).parents]
    ready = [photo for photo in photos if photo.status == "ready"]
    if not ready:
        raise PisasrError(
            f"--input {args.input}: {photos[0].reason if photos else 'no photos there'}"
        )
    inputs = {resolved(photo.path) for photo in ready}
    owners: dict[str, Path] = {}
    for photo in ready:
        name = stem(photo)
        if name in owners:
            raise PisasrError(
                f"{owners[name]} and {photo.path} would both be written to {name}.png; rename one"
            )
        if taken := [folder for folder in folders if resolved(folder / f"{name}.png") in inputs]:
            raise OverlapError(
                f"{taken[0] / name}.png is one of the photos; write to another folder"
            )
        owners[name] = photo.path
    return photos


def stem(photo: Input) -> str:
    return photo.name.with_suffix("").as_posix()


def degrade_photo(photo: Input, recipe: "DegradationRecipe", args: argparse.Namespace) -> dict:
    """Read, cut, degrade and write one photo; returns its line of the manifest."""
    from pisasr.data.degradation import degrade_one, sample_generator
    from pisasr.pictures.images import open_image, split, to_image, to_tensor

    if photo.status != "ready":
        raise ImageError(photo.reason)
    name = stem(photo)
    x_H = cut_middle(split(open_image(photo.path))[0], args.crop, recipe.scale)
    index = int.from_bytes(sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    x_L = degrade_one(to_tensor(x_H)[0], recipe, sample_generator(args.seed, 0, index))
    entry = {
        "name": f"{name}.png",
        "input_sha256": sha256(photo.path.read_bytes()).hexdigest(),
        "lq": write_png(to_image(x_L), args.output / f"{name}.png"),
    }
    if args.hq_output:
        entry["hq"] = write_png(x_H, args.hq_output / f"{name}.png")
    return entry


def cut_middle(photo: "Image.Image", side: int | None, scale: int) -> "Image.Image":
    """The middle: at most side x side, each a multiple of scale, so that x_L and x_H cover the same
    scene.
    """
    width, height = (min(length, side or length) // scale * scale for length in photo.size)
    if min(width, height) == 0:
        raise ImageError(f"{photo.width}x{photo.height} leaves nothing at 1/{scale} of its size")
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    return photo.crop((left, top, left + width, top + height))


def write_png(picture: "Image.Image", path: Path) -> dict:
    from pisasr.pictures.saving import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)
    return {
        "size": f"{picture.width}x{picture.height}",
        "sha256": sha256(path.read_bytes()).hexdigest(),
    }


def write_manifest(
    args: argparse.Namespace, recipe: "DegradationRecipe", entries: list[dict]
) -> None:
    from pisasr.files import write_whole

    args.output.mkdir(parents=True, exist_ok=True)
    versions = {package: version(package) for package in ("torch", "pillow")}
    manifest = {
        "seed": args.seed,
        "crop": args.crop,
        "recipe": asdict(recipe),
        "versions": versions,
        "pictures": entries,
    }
    write_whole(args.output / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def report_differences(args: argparse.Namespace) -> int:
    """Print a line per picture that isn't what the manifest says, and return how many there are."""
    entries = read_entries(args.verify)
    folders = {"lq": args.output or args.verify.parent}
    if args.hq_output:
        folders["hq"] = args.hq_output
    count = 0
    for kind, folder in folders.items():
        wanted = {entry["name"]: entry[kind]["sha256"] for entry in entries if kind in entry}
        inside = [
            other.resolve()
            for other in folders.values()
            if folder.resolve() in other.resolve().parents
        ]
        for line in find_differences(folder, wanted, inside):
            print(safe_text(line), file=sys.stderr)
            count += 1
        print(f"{safe_text(folder)}: {len(wanted)} pictures in the manifest")
    return count


if __name__ == "__main__":
    sys.exit(main())
