"""Step 1 of the embedded default: gather its photos and cut them into tiles.

    python scripts/demo/photos.py --output data/demo

Downloads five Debian packages (about 620 MB; needs apt-get and dpkg-deb, no root), unpacks them
without installing, takes the 49 photos named in scripts/demo/photos.json (package, path, size,
licence, author) and writes

    OUTPUT/train/*.png     256 px tiles of the training photos at four sizes, those that bicubic can't enlarge well
    OUTPUT/held_out/*.png  the sharpest 512 px tiles of photos that no training ever sees (split by whole photo)
    OUTPUT/manifest.json   a row per photo: licence, author, sha256, split, tiles
"""

import argparse
import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from pisasr.errors import PisasrError, guarded

LIST = Path(__file__).with_suffix(".json")
SCALES = (1, 2, 3, 4)  # a photo that is soft at full size is sharp at a third of it
TRAIN_TILE, TILES_PER_PHOTO = 256, 100
MIN_LOST = 4.0  # grey levels (36 dB) that bicubic must lose of a training tile
TEST_TILE, HELD_OUT_TILES = 512, 2
MIN_DETAIL = 1.5  # mean absolute Laplacian in grey levels of a test tile at half size; twice that at full size


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--packages", type=Path, help="folder with the packages already unpacked (one folder each)"
    )
    args = parser.parse_args(argv)
    return guarded(lambda: gather(args.output, args.packages))


def gather(output: Path, unpacked: Path | None) -> None:
    packages = unpacked or output / "packages"
    rows = json.loads(LIST.read_text())
    if unpacked is None:
        for name in sorted({row["package"] for row in rows}):
            fetch_package(name, packages)
    for split in ("train", "held_out"):
        (output / split).mkdir(parents=True, exist_ok=True)
    for row in rows:
        photo = packages / row["path"]
        if row["path"].startswith("enlightenment-data/extracted/"):
            extract_largest_jpeg(packages, photo)
        row["sha256"] = hashlib.sha256(photo.read_bytes()).hexdigest()
        cut = cut_for_training if row["split"] == "train" else cut_for_testing
        row["tiles"] = cut(photo, row["name"], output / row["split"])
        print(f"{row['split']:8} {row['tiles']:3d} tiles  {row['name']}", flush=True)
    (output / "manifest.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def fetch_package(name: str, packages: Path) -> None:
    """Download one Debian package and unpack it into PACKAGES/NAME, leaving the system as it
    was.
    """
    target = packages / name
    if target.is_dir():
        return
    packages.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", "-qq", name], cwd=packages, check=True)
        archive = next(packages.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    except (subprocess.CalledProcessError, StopIteration) as error:
        raise PisasrError(
            f"the Debian package {name} can't be had ({error}); unpack it, and name --packages"
        ) from None


def extract_largest_jpeg(packages: Path, photo: Path) -> None:
    """Take a wallpaper's full-size JPEG out of its Enlightenment theme file (EET2, big-endian
    directory).
    """
    if photo.exists():
        return
    theme = photo.name.removesuffix("_0.jpg")
    data = (
        packages / f"enlightenment-data/usr/share/enlightenment/data/backgrounds/{theme}.edj"
    ).read_bytes()
    magic, count, _ = struct.unpack(">III", data[:12])
    if magic != 0x1EE70F42:
        raise PisasrError(
            f"{theme}.edj is not an EET2 file; the package has changed, look for its photos by hand"
        )
    entries = (struct.unpack(">6I", data[12 + 24 * i : 36 + 24 * i]) for i in range(count))
    blobs = (data[offset : offset + size] for offset, size, *_ in entries)
    photo.parent.mkdir(parents=True, exist_ok=True)
    photo.write_bytes(max((b for b in blobs if b[:3] == b"\xff\xd8\xff"), key=len))


def cut_for_training(photo: Path, name: str, folder: Path) -> int:
    """Cut a photo, at four sizes, into the tiles that a fourfold enlargement has something to learn
    from.

    Most of a large photo is soft at full size: bicubic brings it back as well as anything, and a
    network shown such tiles learns to do nothing. So a tile stays only if bicubic gets it wrong
    enough. Where a photo has more than its share, the sharpest are kept, so that none of them
    rules.
    """
    image = Image.open(photo).convert("RGB")
    tiles = (row for scale in SCALES for row in tiles_in(image, name, scale, TRAIN_TILE))
    rated = [
        (lost, tile, file_name)
        for tile, file_name in tiles
        if (lost := lost_by_bicubic(tile)) >= MIN_LOST
    ]
    return save_first(rated, TILES_PER_PHOTO, folder)


def cut_for_testing(photo: Path, name: str, folder: Path) -> int:
    """The two tiles of a photo with the most fine structure, at full size or, where that is soft,
    at half.
    """
    image, tiles = Image.open(photo).convert("RGB"), []
    for scale, needed in ((1, 2 * MIN_DETAIL), (2, MIN_DETAIL)):
        rated = (
            (detail(tile), tile, file_name)
            for tile, file_name in tiles_in(image, name, scale, TEST_TILE)
        )
        tiles += [row for row in rated if row[0] >= needed]
    return save_first(tiles, HELD_OUT_TILES, folder)


def tiles_in(
    image: Image.Image, name: str, scale: int, side: int
) -> Iterator[tuple[Image.Image, str]]:
    """(tile, its file's name): the photo at 1/scale of its size in squares side by side, what is
    left over dropped.
    """
    picture = image.resize((image.width // scale, image.height // scale), Image.Resampling.LANCZOS)
    for top in range(0, picture.height - side + 1, side):
        for left in range(0, picture.width - side + 1, side):
            yield (
                picture.crop((left, top, left + side, top + side)),
                f"{name}_{scale}_{top}_{left}.png",
            )


def save_first(rated: list[tuple[float, Image.Image, str]], count: int, folder: Path) -> int:
    """Write the `count` highest of (rating, tile, file's name), and return how many there were to
    write.
    """
    best = sorted(rated, key=lambda row: -row[0])[:count]
    for _, tile, file_name in best:
        tile.save(folder / file_name)
    return len(best)


def lost_by_bicubic(tile: Image.Image) -> float:
    """Root mean square of what bicubic loses of the luma on its way to a fourth of the size and
    back, grey levels.
    """
    y = tile.convert("L")
    small = y.resize((y.width // 4, y.height // 4), Image.Resampling.BICUBIC)
    difference = np.asarray(y, np.float32) - np.asarray(
        small.resize(y.size, Image.Resampling.BICUBIC), np.float32
    )
    return float(np.sqrt(np.square(difference).mean()))


def detail(tile: Image.Image) -> float:
    """Mean absolute Laplacian of the luma, in grey levels: how much fine structure a tile has."""
    y = np.asarray(tile.convert("L"), dtype=np.float32)
    return float(
        np.abs(4 * y[1:-1, 1:-1] - y[:-2, 1:-1] - y[2:, 1:-1] - y[1:-1, :-2] - y[1:-1, 2:]).mean()
    )


if __name__ == "__main__":
    sys.exit(main())
