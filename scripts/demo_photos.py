"""Gather the photos that the embedded default is trained on, and cut them into tiles.

    python scripts/demo_photos.py --output data/demo

Downloads five Debian packages (about 620 MB; needs apt-get and dpkg-deb, no root), unpacks them without installing,
takes the 49 photos named in scripts/demo_photos.json (package, path, size, licence, author) and writes

    OUTPUT/train/*.png     512 px tiles of the training photos, flat ones dropped
    OUTPUT/held_out/*.png  the sharpest 512 px tiles of photos that no training ever sees (split by whole photo)
    OUTPUT/manifest.json   a row per photo: licence, author, sha256, split, tiles
"""

import argparse
import hashlib
import json
import struct
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

LIST = Path(__file__).with_suffix(".json")
TILE = 512
MIN_DETAIL = 1.5  # mean absolute Laplacian in grey levels under which a tile teaches nothing
HELD_OUT_TILES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--packages", type=Path, help="folder with the packages already unpacked (one folder each)")
    args = parser.parse_args()

    packages = args.packages or args.output / "packages"
    rows = json.loads(LIST.read_text())
    if args.packages is None:
        for name in sorted({row["package"] for row in rows}):
            fetch_package(name, packages)
    for split in ("train", "held_out"):
        (args.output / split).mkdir(parents=True, exist_ok=True)
    for row in rows:
        photo = packages / row["path"]
        if row["path"].startswith("enlightenment-data/extracted/"):
            extract_largest_jpeg(packages, photo)
        row["sha256"] = hashlib.sha256(photo.read_bytes()).hexdigest()
        keep = HELD_OUT_TILES if row["split"] == "held_out" else None
        row["tiles"] = cut(photo, row["name"], args.output / row["split"], keep)
        print(f"{row['split']:8} {row['tiles']:3d} tiles  {row['name']}", flush=True)
    (args.output / "manifest.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def fetch_package(name: str, packages: Path) -> None:
    """Download one Debian package and unpack it into PACKAGES/NAME, leaving the system as it was."""
    target = packages / name
    if target.is_dir():
        return
    packages.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-qq", name], cwd=packages, check=True)
    archive = next(packages.glob(f"{name}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", archive, target], check=True)


def extract_largest_jpeg(packages: Path, photo: Path) -> None:
    """Take a wallpaper's full-size JPEG out of its Enlightenment theme file (EET2, big-endian directory)."""
    if photo.exists():
        return
    theme = photo.name.removesuffix("_0.jpg")
    data = (packages / f"enlightenment-data/usr/share/enlightenment/data/backgrounds/{theme}.edj").read_bytes()
    magic, count, _ = struct.unpack(">III", data[:12])
    if magic != 0x1EE70F42:
        raise SystemExit(f"{theme}.edj is not an EET2 file; the package has changed, look for its photos by hand")
    entries = (struct.unpack(">6I", data[12 + 24 * i : 36 + 24 * i]) for i in range(count))
    blobs = (data[offset : offset + size] for offset, size, *_ in entries)
    photo.parent.mkdir(parents=True, exist_ok=True)
    photo.write_bytes(max((b for b in blobs if b[:3] == b"\xff\xd8\xff"), key=len))


def cut(photo: Path, name: str, folder: Path, keep: int | None) -> int:
    """Cut a photo into tiles: at full size where it is sharp there, and at half size where it is large.

    A soft tile at full size says little about what sharp looks like; at half size the same photo is sharp.
    """
    image = Image.open(photo).convert("RGB")
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    tiles = []
    for scale, picture, needed in ((1, image, 2 * MIN_DETAIL), (2, half, MIN_DETAIL)):
        for top in range(0, picture.height - TILE + 1, TILE):
            for left in range(0, picture.width - TILE + 1, TILE):
                tile = picture.crop((left, top, left + TILE, top + TILE))
                if (found := detail(tile)) >= needed:
                    tiles.append((found, f"{name}_{scale}_{top}_{left}.png", tile))
    tiles.sort(key=lambda row: -row[0])
    for _, file_name, tile in tiles[:keep]:
        tile.save(folder / file_name)
    return len(tiles[:keep])


def detail(tile: Image.Image) -> float:
    """Mean absolute Laplacian of the luma, in grey levels: how much fine structure a tile has."""
    y = np.asarray(tile.convert("L"), dtype=np.float32)
    return float(np.abs(4 * y[1:-1, 1:-1] - y[:-2, 1:-1] - y[2:, 1:-1] - y[1:-1, :-2] - y[1:-1, 2:]).mean())


if __name__ == "__main__":
    main()
