"""Score, first stop: folders of pictures -> examples: every method's file, the true picture, the
input.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pisasr.errors import ImageError
from pisasr.pictures.folders import SUFFIX, list_pictures, match_names
from pisasr.pictures.opening import read_picture


@dataclass
class Example:
    """One picture of the test set: its file under every method, its true version and its input
    where there are any.
    """

    name: str
    sr: dict[str, Path]
    hq: Path | None = None
    lq: Path | None = None


@dataclass
class Pairing:
    """The examples that can be scored, one line for each thing that keeps a picture out, how many
    there were; check: what was found out about the set as a whole, as a sentence."""

    examples: list[Example]
    problems: list[str] = field(default_factory=list)
    total: int = 0
    check: str = ""


def pair_folders(
    methods: dict[str, Path], hq: Path | None = None, lq: Path | None = None, suffix: str = SUFFIX
) -> Pairing:
    """Bring together the files of every method, the true pictures and the inputs, and look into
    each file once.

    An example stays only if every folder has it, every file can be read and every method's picture
    has the size of the true one (or, without true pictures, of the first method's).
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


def _describe_strays(
    files: dict[str, dict], matches: dict[str, dict], anchor: str
) -> Iterable[str]:
    for role, stems in files.items():
        missing = [files[anchor][stem].name for stem in files[anchor].keys() - matches[role].keys()]
        extra = [stems[stem].name for stem in stems.keys() - set(matches[role].values())]
        counts = f"{role} has {len(stems)} pictures, {anchor} has {len(files[anchor])}"
        if missing:
            yield f"{counts}; missing from {role}: {', '.join(sorted(missing))}"
        if extra:
            yield f"{counts}; only in {role}: {', '.join(sorted(extra))}"


def _find_faults(example: Example) -> list[str]:
    """Lines about files that cannot be read or have another size; none when the example can be
    scored.
    """
    paths = {f"--sr {name}": path for name, path in example.sr.items()}
    paths |= {role: path for role, path in (("--hr", example.hq), ("--lr", example.lq)) if path}
    faults, sizes = [], {}
    for role, path in paths.items():
        try:
            height, width = read_picture(path).shape[:2]
            sizes[role] = width, height
        except ImageError as error:
            faults.append(f"{role}: {error}")
    anchor = "--hr" if example.hq else next((f"--sr {name}" for name in example.sr), "")
    if anchor not in sizes:
        return sorted(faults)
    (width, height), wanted = sizes[anchor], "{}x{}".format(*sizes[anchor])
    for role, (w, h) in sizes.items():
        if role != "--lr" and (w, h) != (width, height):
            faults.append(f"{role}: {paths[role].name} is {w}x{h}, in {anchor} it is {wanted}")
        if role == "--lr" and abs(w * height - h * width) > max(
            width, height
        ):  # a pixel is rounding, more is not
            faults.append(
                f"--lr: {paths[role].name} is {w}x{h}, another shape than {wanted} in {anchor}"
            )
    return sorted(faults)
