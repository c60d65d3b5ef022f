"""Gather 556 more photos for the embedded default: animals, facades, skylines, the sea's floor, the
ground's textures.

    python scripts/demo/more.py --output data/more

Downloads four Debian packages (1.5 GB, nearly all of it 0ad-data; 3.3 GB unpacked; needs apt-get
and dpkg-deb, no root), takes the photos that scripts/demo/more.json names, with their packages,
versions and licences, and writes

    OUTPUT/train/*.png     192 px tiles at two sizes, those that bicubic can't enlarge well, at most four of a photo
    OUTPUT/held_out/*.png  the middle, at most 512 px wide and high, of photos that no training ever sees
    OUTPUT/manifest.json   a row per photo: package, licence, split, tiles

A photo is held out where a hash of its name without its number says so: one family of photos in
twelve, so that no two of a series lie on either side.
"""

import argparse
import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(
    0, str(Path(__file__).resolve().parent)
)  # for the file beside this one, where this one is imported

from photos import MIN_LOST, fetch_package, lost_by_bicubic, save_first, tiles_in

LIST = Path(__file__).with_suffix(".json")
SCALES = (1, 2)
TRAIN_TILE, TILES_PER_PHOTO = 192, 4
TEST_TILE, TEST_STEP = 512, 32
HELD_OUT = 12  # one family of photos in so many


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--packages", type=Path, help="folder with the packages already unpacked (one folder each)"
    )
    args = parser.parse_args()

    packages = args.packages or args.output / "packages"
    rows = []
    for split in ("train", "held_out"):
        (args.output / split).mkdir(parents=True, exist_ok=True)
    for package in json.loads(LIST.read_text()):
        if args.packages is None:
            fetch_package(package["package"], packages)
        for name, photo in photos_of(package, packages):
            split = "held_out" if is_held_out(package["package"], name) else "train"
            cut = cut_for_training if split == "train" else cut_for_testing
            flat = f"{package['package']}_{re.sub(r'[^A-Za-z0-9]+', '-', name)}"
            tiles = cut(photo, flat, args.output / split)
            facts = {key: package[key] for key in ("package", "version", "licence")}
            rows.append(
                {
                    "name": flat,
                    "path": package["folder"] + name,
                    **facts,
                    "split": split,
                    "tiles": tiles,
                }
            )
        print(f"{package['package']}: {sum(row['tiles'] for row in rows)} tiles so far", flush=True)
    (args.output / "manifest.json").write_text(
        json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    )


def photos_of(package: dict[str, Any], packages: Path) -> Iterator[tuple[str, Image.Image]]:
    """(name, photo reduced as its package asks): files, files in a zip ("zip!folder/"), or bytes of
    one ("name@from").

    A package's photos are reduced where they are soft at full size.
    """
    root = packages / package["package"]
    archive, _, inside = package["folder"].partition("!")
    opened = zipfile.ZipFile(root / archive) if inside else None
    for name in package["photos"]:
        file, _, start = name.partition("@")
        data = (
            opened.read(inside + name)
            if opened
            else (root / archive / file).read_bytes()[int(start or 0) :]
        )
        photo = Image.open(io.BytesIO(data)).convert("RGB")
        size = (round(photo.width / package["shrink"]), round(photo.height / package["shrink"]))
        yield name, photo if size == photo.size else photo.resize(size, Image.Resampling.LANCZOS)


def is_held_out(package: str, name: str) -> bool:
    """Whether this photo, and every one of its series, is kept for testing."""
    family = name if "@" in name else re.sub(r"\d*(\.\w+)*$", "", name)
    return int(hashlib.sha256(f"{package}/{family}".encode()).hexdigest(), 16) % HELD_OUT == 0


def cut_for_training(photo: Image.Image, name: str, folder: Path) -> int:
    """As photos.py does: tiles that bicubic gets wrong enough, the sharpest few, so that no photo
    rules.
    """
    tiles = (row for scale in SCALES for row in tiles_in(photo, name, scale, TRAIN_TILE))
    rated = [
        (lost, tile, file_name)
        for tile, file_name in tiles
        if (lost := lost_by_bicubic(tile)) >= MIN_LOST
    ]
    return save_first(rated, TILES_PER_PHOTO, folder)


def cut_for_testing(photo: Image.Image, name: str, folder: Path) -> int:
    """The middle: whatever lies there, so that nobody has chosen what the model is judged by."""
    width, height = (min(side, TEST_TILE) // TEST_STEP * TEST_STEP for side in photo.size)
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    photo.crop((left, top, left + width, top + height)).save(folder / f"{name}.png")
    return 1


if __name__ == "__main__":
    main()
