"""Which files belong together: every method's picture, the true one, the input."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pisasr.errors import ImageError
from pisasr.pictures.folders import list_pictures, match_names
from pisasr.pictures.opening import read_picture


class Example(NamedTuple):
    """One picture of the set: its file under every method, its true version, its input."""

    name: str
    sr: dict[str, Path]
    hq: Path | None = None
    lq: Path | None = None


def pair_folders(
    methods: dict[str, Path], hq: Path | None = None, lq: Path | None = None
) -> tuple[list[Example], list[str]]:
    """Return the examples that can be scored, and a line for each thing that keeps a picture out.

    Files belong together by name, endings such as x4 or _sr disregarded. An example needs a file in
    every folder, readable, and every method's of the size of the true one (or of the first
    method's).
    """
    folders = {f"--sr {name}": folder for name, folder in methods.items()}
    folders |= {option: folder for option, folder in (("--hq", hq), ("--lq", lq)) if folder}
    files = {option: list_pictures(folder) for option, folder in folders.items()}
    anchor = "--hq" if hq else next(iter(files))
    matches = {option: match_names(files[anchor], stems) for option, stems in files.items()}
    problems: list[str] = []
    for option, match in matches.items():
        problems += _strays(files, match, anchor, option)
    examples = []
    for stem, path in files[anchor].items():
        if not all(stem in match for match in matches.values()):
            continue
        found = {option: files[option][match[stem]] for option, match in matches.items()}
        faults = list(_faults(found, anchor))
        problems += faults
        if not faults:
            sr = {name: found[f"--sr {name}"] for name in methods}
            examples.append(Example(path.name, sr, found.get("--hq"), found.get("--lq")))
    return examples, problems


def _strays(
    files: dict[str, dict[str, Path]], match: dict[str, str], anchor: str, option: str
) -> Iterator[str]:
    missing = [path.name for stem, path in files[anchor].items() if stem not in match]
    extra = [path.name for stem, path in files[option].items() if stem not in match.values()]
    if missing:
        yield f"missing from {option}: {_list(missing)}"
    if extra:
        yield f"only in {option}, not in {anchor}: {_list(extra)}"


def _list(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _faults(found: dict[str, Path], anchor: str) -> Iterator[str]:
    """Name the files that cannot be read, or have another size or, of inputs, another shape."""
    sizes = {}
    for option, path in found.items():
        try:
            height, width = read_picture(path).shape[:2]
            sizes[option] = width, height
        except ImageError as error:
            yield f"{option}: {error}"
    if anchor not in sizes:
        return
    width, height = sizes[anchor]
    for option, (w, h) in sizes.items():
        if option == "--lq":  # a pixel of rounding is no other shape
            differs = abs(w * height - h * width) > max(width, height)
        else:
            differs = (w, h) != (width, height)
        if differs:
            yield f"{option}: {found[option].name} is {w}x{h}, in {anchor} it is {width}x{height}"
