"""Before training: what a set of photos is made of, a row a photo in JSON Lines.

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


def read_manifest(path: Path) -> list[dict]:
    """The rows of a manifest, each with a "path". ManifestError at the first line that is none."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
            raise ManifestError(
                f'{path}, line {number}: wanted a JSON object with a "path"; write it anew with prepare_data.py.'
            )
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write JSON Lines, all or nothing."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def relative_path(photo: Path, folder: Path) -> str:
    """`photo` as seen from the manifest's folder, with forward slashes; absolute where there is no way (drives)."""
    try:
        # The real folder: from a link to it, ".." would lead elsewhere.
        return Path(os.path.relpath(photo, os.path.realpath(folder))).as_posix()
    except ValueError:
        return photo.resolve().as_posix()
