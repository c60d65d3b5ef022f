"""Which files are pictures, which of two belong together, by name and never by order."""

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

from pisasr.errors import OverlapError, PisasrError, UserNotice, safe_text

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Pictures that a user would miss if they were passed over without a word.
FOREIGN = tuple(".gif .heic .heif .avif .jxl .jp2 .psd .svg .eps .dng .cr2 .cr3 .nef .arw".split())

# Endings that methods and data sets add to a name: 0801x4, Canon_001_LR4, photo_out, img-hq.
SUFFIX = r"[_-]?x\d|[_-](?:sr|hr|lr|hq|lq|gt|out|output|restored)\d*"


def list_pictures(folder: Path) -> dict[str, Path]:
    """Stem -> file, for the pictures directly inside `folder`. Raises PisasrError without any."""
    if not folder.is_dir():
        raise PisasrError(f"{folder} is not a folder")
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    warn_of_foreign(folder, files)
    paths = [path for path in files if path.suffix.lower() in EXTENSIONS and not path.is_dir()]
    if not paths:
        raise PisasrError(f"{folder} holds no picture ({' '.join(EXTENSIONS)})")
    if twice := _repeated(path.stem for path in paths):
        raise PisasrError(
            f"{folder} holds several files named {', '.join(twice)}; keep one of each"
        )
    return {path.stem: path for path in paths}


def warn_of_foreign(folder: Path, files: Iterable[Path]) -> None:
    """Warn (UserNotice) of pictures in a folder whose format is not read."""
    endings = Counter(path.suffix.lower() for path in files if path.suffix.lower() in FOREIGN)
    for ending, count in sorted(endings.items()):
        reason = f"{folder} holds {count} {ending} files, which are not read; convert them to PNG"
        warnings.warn(reason, UserNotice, stacklevel=3)


def match_names(wanted: Iterable[str], found: Iterable[str]) -> dict[str, str]:
    """Match stems: wanted -> found.

    Equal stems belong together. The others are compared without their endings (SUFFIX, taken off
    repeatedly, in any case); names that are no longer unique then match nothing.
    """
    wanted, found = set(wanted), set(found)
    pairs = {stem: stem for stem in wanted & found}
    left, right = (_unique_bare(stems - pairs.keys()) for stems in (wanted, found))
    return pairs | {left[bare]: right[bare] for bare in left.keys() & right.keys()}


def _repeated(items: Iterable[str]) -> list[str]:
    return [item for item, count in Counter(items).items() if count > 1]


def _unique_bare(stems: set[str]) -> dict[str, str]:
    """bare name -> stem, for the stems whose bare name no other stem shares."""
    bare = {stem: re.sub(f"(?:{SUFFIX})+$", "", stem, flags=re.IGNORECASE) for stem in stems}
    shared = _repeated(bare.values())
    return {name: stem for stem, name in bare.items() if name not in shared}


# --- names of outputs -----------------------------------------------------------------------------


def free_name(name: Path, taken: set[str], end: str = "") -> Path:
    """`name` + `end`, or name-2, name-3, ...: the first not in `taken`, to which it is added."""
    number = 1
    while True:
        mark = f"-{number}" if number > 1 else ""
        candidate = name.with_name(name.name + mark + end)
        if folded(candidate) not in taken:
            taken.add(folded(candidate))
            return candidate
        number += 1


def folded(path: Path | str) -> str:
    """A name as file systems see it that take A.png for a.png."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def resolved(path: Path) -> Path:
    """Follow links. Path.resolve raises for links in a circle (before Python 3.13)."""
    return Path(os.path.realpath(path))


# --- inputs of a command --------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """A file, its name below the folder or glob, and why it can't be read, if known."""

    path: Path
    name: Path
    status: Literal["ready", "skipped", "failed"] = "ready"
    reason: str = ""


def find_inputs(patterns: Iterable[str], output: Path, recursive: bool = False) -> list[Input]:
    """List the pictures that files, folders and globs stand for, in the order given, each once.

    Of a folder, names ending like a picture are taken, hidden ones are not, its sub-folders only if
    `recursive`; links to folders are not followed. What lies in the output folder is no input
    unless it is named itself. What can't be read is "skipped", or if it was named "failed".
    """
    output = resolved(output)
    found: dict[str, Input] = {}
    for pattern in map(os.path.expanduser, patterns):
        path = Path(pattern)
        if os.path.isdir(pattern):
            files = _list_folder(path, output, recursive)
        elif os.path.lexists(pattern) or not glob.has_magic(pattern):
            reason = cannot_open(path)
            named = Input(path, Path(path.name), "failed" if reason else "ready", reason)
            found.setdefault(os.path.abspath(path), named)
            continue
        else:
            files = _match(pattern, output)
        pictures = [_examine(file, name) for file, name in files]
        nothing = Input(path, Path(path.name), "failed", "no pictures there")
        for picture in pictures or [nothing]:
            found.setdefault(os.path.abspath(picture.path), picture)
    return list(found.values())


def _list_folder(folder: Path, output: Path, recursive: bool) -> Iterator[tuple[Path, Path]]:
    if resolved(folder) == output:
        raise OverlapError(
            f"{safe_text(folder)} is the input and the output; choose another --output"
        )
    closed: list[Path] = []
    walk = os.walk(folder, onerror=lambda error: closed.append(Path(error.filename)))
    for place, folders, files in walk:
        here = Path(place)
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        folders[:] = [name for name in folders if resolved(here / name) != output]
        for name in filter(_is_named_like_a_picture, sorted(files)):
            yield here / name, (here / name).relative_to(folder)
    yield from ((place, place.relative_to(folder)) for place in closed)


def _match(pattern: str, output: Path) -> Iterator[tuple[Path, Path]]:
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    outputs_below = resolved(fixed) in output.parents
    for file in map(Path, sorted(glob.glob(pattern, recursive=True))):
        is_output = outputs_below and output in resolved(file).parents
        if not is_output and not file.is_dir() and _is_named_like_a_picture(file.name):
            yield file, file.relative_to(fixed)


def _is_named_like_a_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith((*EXTENSIONS, *FOREIGN))


def _examine(file: Path, name: Path) -> Input:
    reason = cannot_open(file)
    if file.suffix.lower() in FOREIGN:
        reason = f"{file.suffix.lower()} is not read; convert it to PNG"
    return Input(file, name, "skipped" if reason else "ready", reason)


def cannot_open(path: Path) -> str:
    """Say why a file can't be a picture, or "": a pipe would be waited for, a device never ends."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "no such file"
    except (OSError, ValueError) as error:  # a loop of links; a name that no file can have
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(status.st_mode):
        return "a folder that can't be listed"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return "" if status.st_size else "empty file"
