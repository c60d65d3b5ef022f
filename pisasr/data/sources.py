"""Before training: where photos lie. Folders, path lists, and the layouts of the usual data sets,
as one list.

Folders are searched recursively and in order, so numbered shards (LSDIR, FFHQ) need nothing of
their own. Of sets that come in pairs (DIV2K, Flickr2K, LSDIR's validation) the reduced pictures are
never taken, and pictures held out for validation only where their folder is named. Captions and
licences come from the metadata files of Hugging Face's imagefolder layout, and from PHOTO.txt and
LICENSE files.

A manifest is JSON Lines, a row a photo: "path" (relative to the manifest where that is possible),
"sha256", "width", "height", "licence", "source", "score" with its parts, and "caption"; what isn't
known is null.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pisasr.errors import PisasrError
from pisasr.files import parse_json, write_whole
from pisasr.pictures.folders import EXTENSIONS

CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "description")
LICENCE_COLUMNS = ("licence", "license")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
LICENCE_FILES = tuple(
    name + end
    for name in ("LICENSE", "LICENCE", "COPYING", "license", "licence")
    for end in ("", ".txt", ".md")
)

# Names of folders as the makers of the sets chose them; the second kind is only telling beside
# full-size pictures.
SAYS_REDUCED = re.compile(r"(^|[_-])LR([_-]|$)")
MAY_BE_REDUCED = re.compile(r"(lr|lq|[xX][2-9]|[xX]1[0-9]|bicubic|unknown|mild|wild|difficult)$")
SAYS_FULL = re.compile(r"(^|[_-])(HR|GT|HQ)([_-]|$)", re.IGNORECASE)
SAYS_HELD_OUT = re.compile(r"(^|[_-])(valid|validation|val\d*|test)([_-]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class PhotoPair:
    """What lies beside a photo whose low-quality version is not made while training runs."""

    lq: Path
    teacher: Path | None = None  # lq as another method repaired it, of the photo's size


@dataclass(frozen=True)
class Photo:
    """A photo of a training set, and what was said about it where it lay."""

    path: Path
    source: str  # the name of the folder, list or manifest that led to it, or the source that its manifest names
    caption: str | None = None  # one beside the photo goes before its manifest's
    score: float | None = None  # a manifest's
    licence: str | None = None
    pair: PhotoPair | None = None  # where its low-quality version is given


@dataclass(frozen=True)
class LeftOut:
    """A folder, a file about photos, or files of a kind in a folder that were not used, and why."""

    path: Path
    reason: str


def name_sources(sources: list[str]) -> dict[str, str]:
    """Each source as it was given -> what its photos are called in the manifest: the last part of
    its path.

    Where two would share a name both keep the path as it was given.
    """
    paths = {source: Path(source).expanduser().resolve() for source in sources}
    short = {source: path.stem if path.is_file() else path.name for source, path in paths.items()}
    names = list(short.values())
    return {source: name if names.count(name) == 1 else source for source, name in short.items()}


def find_photos(source: str, name: str, output: Path) -> tuple[list[Photo], list[LeftOut]]:
    """All photos of one source, in order; PisasrError if there is no such source or it holds none.

    What lies in `output` is no source.
    """
    path = Path(source).expanduser()
    left_out: list[LeftOut] = []
    if path.is_dir():
        if path.resolve() == output.resolve():
            raise PisasrError(
                f"--input {source} is --output, too, where nothing is looked for; name another --output."
            )
        reason = next(
            (
                why
                for p in [path.resolve(), *path.resolve().parents][:3]
                if (why := says_reduced(p))
            ),
            None,
        )
        if reason:
            raise PisasrError(f"--input {source}: {reason}; wanted the full-size pictures.")
        photos = list(_walk(path, name, output.resolve(), left_out))
    elif path.is_file():
        photos = [
            Photo(photo, name, read_sidecar(photo), licence=_licence_in(photo.parent))
            for photo in read_list(path)
        ]
    else:
        raise PisasrError(
            f"--input {source} does not exist; wanted a folder of photos or a list of paths."
        )
    if not photos:
        raise PisasrError(
            f"--input {source}: no photos there (looked for {', '.join(EXTENSIONS)})."
        )
    return photos, left_out


def _walk(root: Path, name: str, output: Path, left_out: list[LeftOut]) -> Iterator[Photo]:
    told: dict[Path, dict] = {}  # what metadata files say about photos
    licences: dict[Path, str | None] = {}
    seen: set[str] = set()  # links to folders are followed, but not in circles
    for place, folders, files in os.walk(root, followlinks=True):
        here = Path(place)
        if (real := os.path.realpath(here)) in seen or Path(real) == output:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for folder in list(folders):
            if reason := says_reduced(here / folder) or _says_held_out(here / folder):
                folders.remove(folder)
                left_out.append(LeftOut(here / folder, reason))
        licences[here] = _licence_in(here) or licences.get(here.parent)
        for file in METADATA_FILES:
            if file in files and (here / file).is_file():
                try:
                    told |= _read_metadata(here / file)
                except PisasrError as error:  # it is told, and the photos are taken all the same
                    left_out.append(LeftOut(here / file, str(error)))
        for file in sorted(files):
            path = here / file
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                row = told.get(path, {})
                licence = pick(row, LICENCE_COLUMNS) or licences[here]
                yield Photo(
                    path, name, read_sidecar(path) or pick(row, CAPTION_COLUMNS), licence=licence
                )


def read_list(path: Path) -> list[Path]:
    """The photos that a text file names, a path a line, seen from its folder. PisasrError for what
    is no text.
    """
    content = path.read_bytes()
    if b"\0" in content:
        raise PisasrError(
            f"{path} is no text; wanted a folder of photos, or a list with a path a line."
        )
    lines = map(str.strip, content.decode(errors="surrogateescape").splitlines())
    return [path.parent / line for line in lines if line]


def read_sidecar(photo: Path) -> str | None:
    """The caption in PHOTO.txt, on one line; None where there is none."""
    return " ".join(_read_text(photo.with_suffix(".txt")).split()) or None


def _read_text(path: Path) -> str:
    """What a file says, if there is one that can be read; a pipe or a device is none: it may never
    end.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def says_reduced(folder: Path) -> str | None:
    """Why a folder's name says that it holds low-resolution copies; None if it doesn't."""
    if SAYS_REDUCED.search(folder.name):
        return f"{folder.name} holds reduced pictures"
    if MAY_BE_REDUCED.match(folder.name):
        if full := next(
            (name for name in _folders_in(folder.parent) if SAYS_FULL.search(name)), None
        ):
            return f"{folder.name} beside {full} holds reduced pictures"
    return None


def _says_held_out(folder: Path) -> str | None:
    if not SAYS_HELD_OUT.search(folder.name):
        return None
    if any(SAYS_FULL.search(name) for name in (folder.name, *_folders_in(folder))):
        return f"{folder.name} is held out for validation; name it in --input to take it"
    return None


@cache
def _folders_in(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    except OSError:
        return ()


@cache
def _licence_in(folder: Path) -> str | None:
    """The first line of a LICENSE file in a folder."""
    for name in LICENCE_FILES:
        lines = _read_text(folder / name).splitlines()
        if first := next((line.strip() for line in lines if line.strip()), None):
            return first[:200]
    return None


def _read_metadata(path: Path) -> dict[Path, dict]:
    """What an imagefolder's metadata file says: {photo: its row}."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                rows: list[dict] = list(csv.DictReader(file))
            else:
                rows = [parse_json(line) for line in file if line.strip()]
        return {path.parent / row["file_name"]: row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise PisasrError(
            f"{path} is no imagefolder metadata ({error!r}); wanted a file_name column."
        ) from None


def pick(row: dict, columns: tuple[str, ...]) -> str | None:
    """The first of some columns that holds text; of a list of texts the first."""
    for column in columns:
        value = row.get(column)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return None


# --- manifests ------------------------------------------------------------------------------------


def read_manifest(path: Path) -> list[dict]:
    """The rows of a manifest, each with a "path". PisasrError at the first line that is none."""
    rows = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
    ):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
            raise PisasrError(
                f'{path}, line {number}: wanted a JSON object with a "path"; write it anew with prepare_data.py.'
            )
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write JSON Lines, all or nothing."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def relative_path(photo: Path, folder: Path) -> str:
    """`photo` as seen from the manifest's folder, with forward slashes; absolute where there is no
    way (drives).
    """
    try:
        # The real folder: from a link to it, ".." would lead elsewhere.
        return Path(os.path.relpath(photo, os.path.realpath(folder))).as_posix()
    except ValueError:
        return photo.resolve().as_posix()
