"""Before every journey, folders: which files are pictures, and which of two belong together.

Two files belong together because of their names, never because of their order.
"""

import glob
import os
import re
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zlib import crc32

from pisasr.errors import OverlapError, PassedOver, PisasrError, safe_text

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
FOREIGN = {  # what a person may take for a picture, too, and would miss without a word
    ".gif": "GIF", ".heic": "HEIC", ".heif": "HEIC", ".avif": "AVIF", ".jxl": "JPEG XL", ".jp2": "JPEG 2000",
    ".psd": "PSD", ".svg": "SVG", ".eps": "PostScript", ".dng": "a raw photo", ".cr2": "a raw photo",
    ".cr3": "a raw photo", ".nef": "a raw photo", ".arw": "a raw photo", ".raf": "a raw photo",
}  # fmt: skip
LONGEST_NAME = 255  # bytes
EMPTY = "empty file"
STRANGERS = "{} is not read here; convert it to PNG, JPEG, WebP, TIFF or BMP first"

# Endings that methods and data sets add to a name: 0801x4, Canon_001_LR4, photo_out, baby_SR,
# img-hq.
SUFFIX = r"[_-]?x\d|[_-](?:sr|hr|lr|hq|lq|gt|out|output|restored)\d*"


def list_pictures(folder: Path) -> dict[str, Path]:
    """Stem -> file, for the pictures directly inside `folder`. Two files with one stem are
    refused.
    """
    if not folder.is_dir():
        raise PisasrError(f"{folder} is not a folder")
    there = [path for path in folder.iterdir() if not path.name.startswith(".")]
    tell_foreign(folder, there)
    paths = sorted(
        path for path in there if path.suffix.lower() in EXTENSIONS and not path.is_dir()
    )
    if not paths:
        raise PisasrError(f"{folder} holds no picture ({' '.join(EXTENSIONS)})")
    if twice := _repeated(path.stem for path in paths):
        raise PisasrError(
            f"{folder} holds several files named {', '.join(twice)}; keep one of each"
        )
    return {path.stem: path for path in paths}


def tell_foreign(folder: Path, files: Iterable[Path]) -> None:
    """Warn (PassedOver) of files in a folder that a person may take for pictures and that nobody
    reads here.
    """
    for reason in count_foreign(files):
        warnings.warn(f"{folder} holds {reason}", PassedOver, stacklevel=3)


def count_foreign(files: Iterable[Path]) -> list[str]:
    """For each of FOREIGN's kinds among the files that aren't hidden: how many, and what to do
    about them.
    """
    kinds = Counter(
        FOREIGN.get(path.suffix.lower()) for path in files if not path.name.startswith(".")
    )
    return [
        f"{kinds[kind]} files: {STRANGERS.format(kind)}" for kind in sorted(filter(None, kinds))
    ]


def match_names(
    wanted: Iterable[str], found: Iterable[str], suffix: str = SUFFIX
) -> dict[str, str]:
    """wanted stem -> found stem.

    Equal stems belong together. What is left over is compared without its endings (`suffix`, a
    regular expression, taken off repeatedly, in any case); names that are then no longer unique on
    their side are not matched at all.
    """
    wanted, found = set(wanted), set(found)
    pairs = {stem: stem for stem in wanted & found}
    left, right = (_unique_bare(stems - pairs.keys(), suffix) for stems in (wanted, found))
    return pairs | {left[bare]: right[bare] for bare in left.keys() & right.keys()}


def free_name(name: Path, taken: set[str], end: str = "") -> Path:
    """`name` + `end`, or name-2, name-3, ...: the first that is none of `taken`, to which it is
    added, as `folded`.

    Of at most 255 bytes, which is what a file's name may have: a longer one keeps its beginning,
    and a digest of all.
    """
    whole, number = os.fsencode(name.name), 1
    while True:
        mark = f"-{number}" if number > 1 else ""
        room, stem = LONGEST_NAME - len(os.fsencode(mark + end)), whole
        if len(whole) > room:
            digest = f"-{crc32(whole):08x}"
            stem = (whole[: room - len(digest)].decode("utf-8", "ignore") + digest).encode()
        candidate = name.with_name(os.fsdecode(stem) + mark + end)
        if folded(candidate) not in taken:
            taken.add(folded(candidate))
            return candidate
        number += 1


def folded(path: Path | str) -> str:
    """What file systems that don't tell A.png from a.png, nor one way to write an accent from
    another, take as one.
    """
    return unicodedata.normalize("NFC", str(path)).casefold()


def resolved(path: Path) -> Path:
    """Where a path leads, links followed. Path.resolve raises for links in a circle (before Python
    3.13).
    """
    return Path(os.path.realpath(path))


def _repeated(items: Iterable[str]) -> list[str]:
    return [item for item, count in Counter(items).items() if count > 1]


def _unique_bare(stems: set[str], suffix: str) -> dict[str, str]:
    """bare name -> stem, for the stems whose bare name no other stem shares."""
    bare = {stem: re.sub(f"(?:{suffix})+$", "", stem, flags=re.IGNORECASE) for stem in stems}
    shared = _repeated(bare.values())
    return {name: stem for stem, name in bare.items() if name not in shared}


# --- what a command line names --------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One input: where it is, its name below the folder or glob it came from, and why it can't be
    read, if known.
    """

    path: Path
    name: Path
    status: Literal["ready", "skipped", "failed"] = "ready"
    reason: str = ""


def find_inputs(patterns: Iterable[str], output: Path, recursive: bool = False) -> list[Found]:
    """The pictures that files, folders and globs stand for, in the order given, each once.

    Of a folder, names ending like a picture are taken, hidden ones are not, its sub-folders only if
    `recursive`; links to folders are not followed, so there are no loops. What lies in the output
    folder is never an input unless it is named itself. Pipes, devices, dead links, pictures of a
    kind that is not read, and folders that are not gone into though `recursive`, come as "skipped";
    named files that don't exist, and folders and globs that hold no picture, as "failed".
    """
    output = resolved(output)
    found: dict[str, Found] = {}
    for pattern in map(os.path.expanduser, patterns):
        path = Path(pattern)
        named = False
        if os.path.isdir(pattern):
            files = _list_folder(path, output, recursive)
        elif os.path.lexists(pattern) or not glob.has_magic(pattern):
            files, named = iter([(path, Path(path.name))]), True
        else:
            files = _match(pattern, output)
        pictures = [(os.path.abspath(file), _examine(file, name, named)) for file, name in files]
        pictures = pictures or [
            (os.path.abspath(path), Found(path, Path(path.name), "failed", "no pictures there"))
        ]
        for place, picture in pictures:
            found.setdefault(place, picture)
    return list(found.values())


def _list_folder(folder: Path, output: Path, recursive: bool) -> Iterator[tuple[Path, Path]]:
    if resolved(folder) == output:
        raise OverlapError(
            f"{safe_text(folder)} is the input and the output; choose another --output"
        )
    closed: list[Path] = []
    for place, folders, files in os.walk(
        folder, onerror=lambda error: closed.append(Path(error.filename))
    ):
        here = Path(place)
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        folders[:] = [name for name in folders if resolved(here / name) != output]
        pictures = [here / name for name in sorted(files) if _is_named_like_a_picture(name)]
        pictures += [here / name for name in folders if (here / name).is_symlink()]
        yield from ((file, file.relative_to(folder)) for file in pictures)
    yield from ((place, place.relative_to(folder)) for place in closed)


def _match(pattern: str, output: Path) -> Iterator[tuple[Path, Path]]:
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    outputs_below = resolved(fixed) in output.parents
    for file in map(Path, sorted(glob.glob(pattern, recursive=True))):
        ours = outputs_below and output in resolved(file).parents
        if not ours and not file.is_dir() and _is_named_like_a_picture(file.name):
            yield file, file.relative_to(fixed)


def _is_named_like_a_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith((*EXTENSIONS, *FOREIGN))


def _examine(file: Path, name: Path, named: bool) -> Found:
    if not named and (kind := FOREIGN.get(file.suffix.lower())):
        return Found(file, name, "skipped", STRANGERS.format(kind))
    reason = cannot_open(file)
    if not named and file.is_dir():
        reason = (
            "a link to a folder, which is not followed"
            if file.is_symlink()
            else "a folder that may not be read"
        )
    if reason == EMPTY:
        reason = ""  # it is a picture's file, if a broken one: whoever reads it says so
    return Found(file, name, ("failed" if named else "skipped") if reason else "ready", reason)


def cannot_open(path: Path) -> str:
    """Why nobody should open this file, or nothing: a pipe would be waited for, a device never
    ends.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "no such file"
    except (OSError, ValueError) as error:  # a loop of links; a name that no file can have
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return "" if status.st_size else EMPTY
