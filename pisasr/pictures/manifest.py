"""Folders of pictures that must stay what they were: what their manifest.json lists, and what
differs from it.

scripts/degrade.py writes such manifests and verifies them; evaluation verifies the test sets that
have one.
"""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from pisasr.errors import PisasrError
from pisasr.files import parse_json
from pisasr.pictures.folders import cannot_open


def read_entries(path: Path) -> list[dict]:
    """The pictures of a manifest of scripts/degrade.py: name, lq and perhaps hq with their
    sha256.
    """
    try:
        entries = parse_json(path.read_text(encoding="utf-8"))["pictures"]
        if all(isinstance(entry["name"], str) and "lq" in entry for entry in entries):
            hashes = [
                entry[kind]["sha256"] for entry in entries for kind in ("lq", "hq") if kind in entry
            ]
            if all(isinstance(digest, str) for digest in hashes):
                return entries
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise PisasrError(
        f"{path}: wanted a manifest.json that scripts/degrade.py wrote; make the folder anew"
    )


def find_differences(folder: Path, wanted: dict[str, str], inside: list[Path]) -> Iterator[str]:
    """One line for each PNG of a folder that is missing, different or too much; the folders
    `inside` it don't count.
    """
    there = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*.png")
        if not file.name.startswith(".")
        and not any(other in file.resolve().parents for other in inside)
    }
    for name in sorted(wanted.keys() | there):
        if name not in there:
            yield f"{folder / name}: missing"
        elif name not in wanted:
            yield f"{folder / name}: not in the manifest"
        elif reason := cannot_open(folder / name):
            yield f"{folder / name}: {reason}"
        elif sha256((folder / name).read_bytes()).hexdigest() != wanted[name]:
            yield f"{folder / name}: not the picture of the manifest"
