"""Where photos lie: folders, path lists, and the layouts of the usual data sets, as one list.

Folders are searched recursively and in order, so numbered shards (LSDIR, FFHQ) need nothing of their own. Of sets that
come in pairs (DIV2K, Flickr2K, LSDIR's validation) the reduced pictures are never taken, and pictures held out for
validation only where their folder is named. Captions and licences come from the metadata files of Hugging Face's
imagefolder layout, and from PHOTO.txt and LICENSE files.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pisasr.errors import PisasrError
from pisasr.pictures.folders import EXTENSIONS

CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "description")
LICENCE_COLUMNS = ("licence", "license")
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
LICENCE_FILES = tuple(
    name + end for name in ("LICENSE", "LICENCE", "COPYING", "license", "licence") for end in ("", ".txt", ".md")
)

# Names of folders as the makers of the sets chose them; the second kind is only telling beside full-size pictures.
SAYS_REDUCED = re.compile(r"(^|[_-])LR([_-]|$)")
MAY_BE_REDUCED = re.compile(r"(lr|lq|[xX][2-9]|[xX]1[0-9]|bicubic|unknown|mild|wild|difficult)$")
SAYS_FULL = re.compile(r"(^|[_-])(HR|GT|HQ)([_-]|$)", re.IGNORECASE)
SAYS_HELD_OUT = re.compile(r"(^|[_-])(valid|validation|val\d*|test)([_-]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A photo, and what was said about it where it lay."""

    path: Path
    source: str  # the name of the folder or list that led to it
    licence: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """A folder or a file about photos that was not used, and why."""

    path: Path
    reason: str


def name_sources(sources: list[str]) -> dict[str, str]:
    """Each source as it was given -> what its photos are called in the manifest: the last part of its path.

    Where two would share a name both keep the path as it was given.
    """
    paths = {source: Path(source).expanduser().resolve() for source in sources}
    short = {source: path.stem if path.is_file() else path.name for source, path in paths.items()}
    names = list(short.values())
    return {source: name if names.count(name) == 1 else source for source, name in short.items()}


def find_photos(source: str, name: str, output: Path) -> tuple[list[Found], list[LeftOut]]:
    """All photos of one source, in order; PisasrError if there is no such source or it holds none.

    What lies in `output` is no source, except the photos taken out of parquet files, which are written there.
    """
    path = Path(source).expanduser()
    left_out: list[LeftOut] = []
    if path.is_dir():
        reason = next((why for p in [path.resolve(), *path.resolve().parents][:3] if (why := says_reduced(p))), None)
        if reason:
            raise PisasrError(f"--input {source}: {reason}; wanted the full-size pictures.")
        photos = list(_walk(path, name, output.resolve(), left_out))
    elif path.suffix == ".parquet" and path.is_file():
        photos = list(unpack_parquet(path, name, output))
    elif path.is_file():
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        paths = [path.parent / line.strip() for line in lines if line.strip()]
        photos = [Found(photo, name, _licence_in(photo.parent), read_sidecar(photo)) for photo in paths]
    else:
        raise PisasrError(f"--input {source} does not exist; wanted a folder of photos or a list of paths.")
    if not photos:
        raise PisasrError(f"--input {source}: no photos there (looked for {', '.join(EXTENSIONS)}).")
    return photos, left_out


def _walk(root: Path, name: str, output: Path, left_out: list[LeftOut]) -> Iterator[Found]:
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
                with _leaving_out(here / file, left_out):
                    told |= _read_metadata(here / file)
        for file in sorted(files):
            path = here / file
            if file.endswith(".parquet") and file not in METADATA_FILES and path.is_file():
                with _leaving_out(path, left_out):
                    for found in unpack_parquet(path, name, output):
                        yield replace(found, licence=found.licence or licences[here])
            elif file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                row = told.get(path, {})
                licence = pick(row, LICENCE_COLUMNS) or licences[here]
                yield Found(path, name, licence, read_sidecar(path) or pick(row, CAPTION_COLUMNS))


@contextmanager
def _leaving_out(file: Path, left_out: list[LeftOut]) -> Iterator[None]:
    """A file that can't be used is told, and the others are searched."""
    try:
        yield
    except PisasrError as error:
        left_out.append(LeftOut(file, str(error)))


def read_sidecar(photo: Path) -> str | None:
    """The caption in PHOTO.txt, on one line; None where there is none."""
    return " ".join(_read_text(photo.with_suffix(".txt")).split()) or None


def _read_text(path: Path) -> str:
    """What a file says, if there is one that can be read; a pipe or a device is none: it may never end."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def says_reduced(folder: Path) -> str | None:
    """Why a folder's name says that it holds low-resolution copies; None if it doesn't."""
    if SAYS_REDUCED.search(folder.name):
        return f"{folder.name} holds reduced pictures"
    if MAY_BE_REDUCED.match(folder.name):
        if full := next((name for name in _folders_in(folder.parent) if SAYS_FULL.search(name)), None):
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
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        else:
            rows = list(_rows(_parquet(path)))
        return {path.parent / row["file_name"]: row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise PisasrError(f"{path} is no imagefolder metadata ({error!r}); wanted a file_name column.") from None


def pick(row: dict, columns: tuple[str, ...]) -> str | None:
    """The first of some columns that holds text; of a list of texts the first."""
    for column in columns:
        value = row.get(column)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return None


def _parquet(path: Path) -> Any:
    """A parquet file, open: its schema and, batch by batch, its rows."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise PisasrError(f"{path} needs the package pyarrow; pip install datasets, which brings it.") from None
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise PisasrError(f"{path} is no parquet file ({' '.join(str(error).split())}).") from None


def _rows(table: Any) -> Iterator[dict]:
    for batch in table.iter_batches(batch_size=64):
        yield from batch.to_pylist()


def unpack_parquet(path: Path, name: str, output: Path) -> Iterator[Found]:
    """Write the pictures inside a parquet file to OUTPUT/photos/NAME, as they are, and find them there.

    Pictures are a column of records of "bytes" and "path", as the datasets library writes them; rows without are
    passed over.
    """
    table = _parquet(path)
    columns = {field.name: getattr(field.type, "names", ()) for field in table.schema_arrow}
    column = next((key for key, names in columns.items() if {"bytes", "path"} <= set(names)), None)
    if column is None:
        raise PisasrError(f"{path} has no column of pictures (records of bytes and path).")
    folder = output / "photos" / Path(name).name / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(_rows(table)):
        picture = row[column] or {}
        if not picture.get("bytes"):
            continue
        suffix = Path(picture["path"] or "").suffix.lower()
        photo = folder / f"{number:07d}{suffix if suffix in EXTENSIONS else '.png'}"
        if not photo.is_file() or photo.stat().st_size != len(picture["bytes"]):
            photo.write_bytes(picture["bytes"])
        yield Found(photo, name, pick(row, LICENCE_COLUMNS), pick(row, CAPTION_COLUMNS))
