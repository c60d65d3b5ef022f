"""Folders of pictures -> pairs. Two files belong together because of their names, never because of their order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pisasr.errors import ImageError, PisasrError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")

# Endings that methods and data sets add to a name: 0801x4, Canon_001_LR4, photo_out, baby_SR, img-hq.
SUFFIX = r"[_-]?x\d|[_-](?:sr|hr|lr|hq|lq|gt|out|output|restored)\d*"


@dataclass
class Example:
    """One picture of the test set: its file under every method, its true version and its input where there are any."""

    name: str
    sr: dict[str, Path]
    hq: Path | None = None
    lq: Path | None = None


@dataclass
class Pairing:
    """The examples that can be scored, one line for each thing that keeps a picture out, and how many there were."""

    examples: list[Example]
    problems: list[str] = field(default_factory=list)
    total: int = 0


def read_picture(path: Path) -> np.ndarray:
    """The file's own 8-bit values as uint8 [H, W, 3] RGB, upright; ImageError when it cannot be decoded whole.

    Colour profiles are not applied and alpha is dropped: published scores compare the stored numbers. Sixteen-bit
    pictures are refused, because rounding them to eight bits here would be a step that no protocol names.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for somebody to write
        raise ImageError(f"{path.name} is not a regular file; replace it by the picture itself")
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")) or any(";16" in str(tile.args) for tile in image.tile):
                raise ImageError(f"{path.name} has more than 8 bits per channel; save it as an 8-bit PNG to score it")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything out of its decoder
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path.name} cannot be read: {reason}") from error


def list_pictures(folder: Path) -> dict[str, Path]:
    """Stem -> file, for the pictures directly inside `folder`. Two files with one stem are refused."""
    if not folder.is_dir():
        raise PisasrError(f"{folder} is not a folder")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
    if not paths:
        raise PisasrError(f"{folder} holds no picture ({' '.join(EXTENSIONS)})")
    if twice := _repeated(path.stem for path in paths):
        raise PisasrError(f"{folder} holds several files named {', '.join(twice)}; keep one of each")
    return {path.stem: path for path in paths}


def match_names(wanted: Iterable[str], found: Iterable[str], suffix: str = SUFFIX) -> dict[str, str]:
    """wanted stem -> found stem.

    Equal stems belong together. What is left over is compared without its endings (`suffix`, a regular expression,
    taken off repeatedly, in any case); names that are then no longer unique on their side are not matched at all.
    """
    wanted, found = set(wanted), set(found)
    pairs = {stem: stem for stem in wanted & found}
    left, right = (_unique_bare(stems - pairs.keys(), suffix) for stems in (wanted, found))
    return pairs | {left[bare]: right[bare] for bare in left.keys() & right.keys()}


def pair_folders(
    methods: dict[str, Path], hq: Path | None = None, lq: Path | None = None, suffix: str = SUFFIX
) -> Pairing:
    """Bring together the files of every method, the true pictures and the inputs, and look into each file once.

    An example stays only if every folder has it, every file can be read and every method's picture has the size of the
    true one (or, without true pictures, of the first method's).
    """
    folders = {f"--sr {name}": folder for name, folder in methods.items()}
    folders |= {"--hr": hq} if hq else {}
    folders |= {"--lr": lq} if lq else {}
    files = {role: list_pictures(folder) for role, folder in folders.items()}
    anchor = "--hr" if hq else next(iter(files))
    matches = {role: match_names(files[anchor], stems, suffix) for role, stems in files.items()}
    pairing = Pairing([], list(_describe_strays(files, matches, anchor)), len(files[anchor]))
    for stem, path in files[anchor].items():
        if not all(stem in match for match in matches.values()):
            continue
        found = {role: files[role][match[stem]] for role, match in matches.items()}
        sr = {name: found[f"--sr {name}"] for name in methods}
        example = Example(path.name, sr, found.get("--hr"), found.get("--lr"))
        if faults := _find_faults(example):
            pairing.problems += faults
        else:
            pairing.examples.append(example)
    return pairing


def _repeated(items: Iterable[str]) -> list[str]:
    return [item for item, count in Counter(items).items() if count > 1]


def _unique_bare(stems: set[str], suffix: str) -> dict[str, str]:
    """bare name -> stem, for the stems whose bare name no other stem shares."""
    bare = {stem: re.sub(f"(?:{suffix})+$", "", stem, flags=re.IGNORECASE) for stem in stems}
    shared = _repeated(bare.values())
    return {name: stem for stem, name in bare.items() if name not in shared}


def _describe_strays(files: dict[str, dict], matches: dict[str, dict], anchor: str) -> Iterable[str]:
    for role, stems in files.items():
        missing = [files[anchor][stem].name for stem in files[anchor].keys() - matches[role].keys()]
        extra = [stems[stem].name for stem in stems.keys() - set(matches[role].values())]
        counts = f"{role} has {len(stems)} pictures, {anchor} has {len(files[anchor])}"
        if missing:
            yield f"{counts}; missing from {role}: {', '.join(sorted(missing))}"
        if extra:
            yield f"{counts}; only in {role}: {', '.join(sorted(extra))}"


def _find_faults(example: Example) -> list[str]:
    """Lines about files that cannot be read or have another size; none when the example can be scored."""
    paths = {f"--sr {name}": path for name, path in example.sr.items()}
    paths |= {"--hr": example.hq} if example.hq else {}
    faults, sizes = [], {}
    for role, path in paths.items() | ({("--lr", example.lq)} if example.lq else set()):
        try:
            height, width = read_picture(path).shape[:2]
            sizes[role] = f"{width}x{height}"
        except ImageError as error:
            faults.append(f"{role}: {error}")
    anchor = "--hr" if example.hq else next(iter(paths), None)
    if anchor in sizes:
        faults += [
            f"{role}: {paths[role].name} is {size}, in {anchor} it is {sizes[anchor]}"
            for role, size in sizes.items()
            if role in paths and size != sizes[anchor]
        ]
    if "--lr" in sizes and anchor in sizes and not _same_shape(sizes["--lr"], sizes[anchor]):
        faults.append(f"--lr: {example.lq.name} is {sizes['--lr']}, another shape than {sizes[anchor]} in {anchor}")
    return sorted(faults)


def _same_shape(small: str, large: str) -> bool:
    """Whether "WxH" of both have one aspect, but for the rounding of a pixel."""
    (w, h), (width, height) = (map(int, size.split("x")) for size in (small, large))
    return abs(width * h - height * w) <= max(width, height)
