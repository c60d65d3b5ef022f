"""Rows in JSON Lines: what a training set is made of, a row a photo, and what was found out about it so far.

A manifest's row has "path" (relative to the manifest where that is possible), "sha256", "width", "height", "licence",
"source", "score" with its parts, and "caption"; what isn't known is null.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pisasr.errors import PisasrError
from pisasr.files import write_whole


class ManifestError(PisasrError):
    """A manifest that can't be used: which line, what is wrong with it."""


def read_rows(path: Path, torn_end: bool = False) -> list[dict]:
    """All rows of a file. `torn_end` passes over lines that are no JSON: a killed run leaves half of one."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif not torn_end:
            raise ManifestError(f"{path}, line {number}: wanted a JSON object; write it anew with prepare_data.py.")
    return rows


def read_manifest(path: Path) -> list[dict]:
    """The rows of a manifest, each with a "path". ManifestError if one has none."""
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("path"), str) or not row["path"]:
            raise ManifestError(f'{path}, row {number} has no "path"; wanted a row a photo, as prepare_data.py writes.')
    return rows


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write JSON Lines, all or nothing."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


class Journal:
    """Rows that are appended one by one, so that a run which is killed keeps all but the last of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict]:
        return read_rows(self.path, torn_end=True) if self.path.is_file() else []

    def __enter__(self) -> "Journal":
        torn = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = self.path.open("a", encoding="utf-8")
        if torn:  # the half line of a killed run must not swallow the first one of this
            self._file.write("\n")
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, row: dict) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def relative_path(photo: Path, folder: Path) -> str:
    """`photo` as seen from the manifest's folder, with forward slashes; absolute where there is no way (drives)."""
    try:
        # The real folder: from a link to it, ".." would lead elsewhere.
        return Path(os.path.relpath(photo, os.path.realpath(folder))).as_posix()
    except ValueError:
        return photo.resolve().as_posix()
