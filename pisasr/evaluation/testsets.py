"""Score, first stop: which pictures are scored, and whether they are the ones that others scored.

A YAML file names the test sets. Sets that papers share are known by name, by count, and where they
were at hand by the pixels of every picture (testsets.json); sets that scripts/degrade.py made are
known by its manifest.
"""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from pisasr.errors import ImageError, PisasrError
from pisasr.evaluation.pairs import Pairing, pair_folders
from pisasr.files import parse_json
from pisasr.pictures.folders import SUFFIX, list_pictures, match_names
from pisasr.pictures.manifest import find_differences, read_entries
from pisasr.pictures.opening import read_picture


@dataclass(frozen=True)
class TestSet:
    """One set of pictures: a folder per method, the true pictures and the inputs where there are
    any.
    """

    __test__ = False  # pytest would take the name for a test's

    name: str
    sr: dict[str, Path]
    hr: Path | None = None
    lr: Path | None = None


def check_set(one: TestSet, suffix: str = SUFFIX) -> Pairing:
    """Pair a set's folders, and refuse one that is not what its name or its manifest says."""
    found = [
        verify_known(one.name, one.hr, one.lr) if one.name else None,
        verify_manifest(one.lr, one.hr) if one.lr else None,
    ]
    pairing = pair_folders(one.sr, one.hr, one.lr, suffix)
    pairing.check = "; ".join(filter(None, found))
    return pairing


def load_sets(path: Path) -> list[TestSet]:
    """The test sets that a YAML file names.

        sr: {OSEDiff: results/osediff/{set}}       # for every set; {set} stands for its name
        sets:
          RealSR: {hr: ..., lr: ..., sr: {ours: ...}}
          RealLQ250: {lr: ...}                     # no true pictures

    Paths count from the file's own folder. A set's own entries stand over those for every set.
    """
    given = _mapping(path, "the file", _read_yaml(path), ("sr", "sets"))
    entries = _mapping(path, "sets", given.get("sets"))
    common = _mapping(path, "sr", given.get("sr"))
    if not entries:
        raise PisasrError(f"{path} names no test set; wanted sets: {{NAME: {{lr: FOLDER}}}}")
    for name in entries:
        if not re.fullmatch(r"[^/\\\x00-\x1f]+", name) or name.strip(". ") == "":
            raise PisasrError(
                f"{path}: {name!r} can't name a set, whose results get a folder of that name; quote it"
            )
    return [_build_set(path, name, entry, common) for name, entry in entries.items()]


@cache
def known_sets() -> dict[str, dict]:
    """Name -> what is known of a set that papers share: its count, and perhaps {stem: {hr, lr}},
    its digests.
    """
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))["sets"]


def verify_known(name: str, hr: Path | None, lr: Path | None) -> str | None:
    """The sentence for the protocol on a set of a known name, None for any other name.

    PisasrError when the pixels are known and these are others, by their names (endings disregarded)
    and pixels.
    """
    known = next((key for key in known_sets() if fold_name(key) == fold_name(name)), None)
    folders = {role: folder for role, folder in (("hr", hr), ("lr", lr)) if folder}
    if known is None:
        return None
    if not folders:
        return f"not verified: neither true pictures nor inputs of {known} were given"
    count, digests = known_sets()[known]["count"], known_sets()[known].get("digests")
    if digests is None:
        came = len(list_pictures(next(iter(folders.values()))))
        counted = (
            f"{count} pictures came, as wanted"
            if came == count
            else f"{came} pictures came, {count} are wanted"
        )
        return f"not verified: no hashes of {known} are known here; {counted}"
    faults: list[str] = []
    for role, folder in folders.items():
        files = list_pictures(folder)
        names = match_names(digests, files)
        there = {stem: files[names[stem]] for stem in sorted(names)}
        faults += [
            f"{p} differs" for stem, p in there.items() if digest_picture(p) != digests[stem][role]
        ]
        faults += [
            f"{files[name]} is no picture of it" for name in sorted(files.keys() - names.values())
        ]
        faults += [f"{stem} is missing from {folder}" for stem in sorted(digests.keys() - names)]
    if faults:
        raise PisasrError(
            f"{known} is not the known set: {_first_few(faults)}; take its pictures or another name"
        )
    part = "" if len(folders) == 2 else f" ({next(iter(folders))} alone)"
    return f"verified: the {count} pictures of {known} {known_sets()[known]['made']}{part}"


def digest_picture(path: Path) -> str:
    """Sixteen hex digits of the decoded pixels: SHA-256 of 'WxH' and the RGB bytes, whatever the
    file's format.

    "" for a file that cannot be read: it is then no picture of any known set.
    """
    try:
        picture = read_picture(path)
    except ImageError:
        return ""
    return sha256(
        f"{picture.shape[1]}x{picture.shape[0]}".encode() + picture.tobytes()
    ).hexdigest()[:16]


def verify_manifest(lr: Path, hr: Path | None) -> str | None:
    """The sentence for the protocol on a set that scripts/degrade.py made; None where its manifest
    does not lie in lr.

    PisasrError when a picture is missing, another one, or too many. The true pictures are held
    against the manifest only where it has them (--hq_output).
    """
    path = lr / "manifest.json"
    if not path.is_file():
        return None
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PisasrError(
            f"{path} is not readable as JSON; take it away, or make the folder anew"
        ) from error
    if not isinstance(manifest, dict) or not {"seed", "recipe", "pictures"} <= manifest.keys():
        return None
    entries = read_entries(path)
    folders, faults = {"lq": lr}, list[str]()
    if hr and any("hq" in entry for entry in entries):
        folders["hq"] = hr
    for kind, folder in folders.items():
        wanted = {entry["name"]: entry[kind]["sha256"] for entry in entries if kind in entry}
        inside = [
            other.resolve()
            for other in (lr, hr)
            if other and folder.resolve() in other.resolve().parents
        ]
        faults += find_differences(folder, wanted, inside)
    if faults:
        raise PisasrError(
            f"{path} is about other pictures: {_first_few(faults)}; make the folder anew"
        )
    part = "; it says nothing of the true pictures" if hr and "hq" not in folders else ""
    return f"verified against manifest.json: seed {manifest['seed']}, {len(entries)} pictures{part}"


def fold_name(name: str) -> str:
    """What two spellings of a name share: case, spaces, hyphens and underscores are taken out."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a line about a word that nobody knows: the nearest known one, then all of them."""
    spellings = {fold_name(name): name for name in known}
    close = difflib.get_close_matches(fold_name(word), spellings, n=1, cutoff=0.5)
    return (
        f"did you mean {spellings[close[0]]!r}? " if close else ""
    ) + f"Known are {', '.join(spellings.values())}"


# --- the file of sets -----------------------------------------------------------------------------


def _read_yaml(path: Path) -> object:
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ModuleNotFoundError as error:
        raise PisasrError(
            f"{path} can't be read without {error.name}; install pisasr[eval]"
        ) from error
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise PisasrError(f"{path} is not readable as YAML ({reason})") from error


def _build_set(path: Path, name: str, given: object, common: dict[str, Any]) -> TestSet:
    key = f"sets.{name}"
    entry = _mapping(path, key, given, ("hr", "lr", "sr"))
    own = _mapping(path, f"{key}.sr", entry.get("sr"))
    keys = {method: f"sr.{method} for {name}" for method in common} | {
        m: f"{key}.sr.{m}" for m in own
    }
    if not keys:
        raise PisasrError(
            f"{path}: {key} has no pictures to score; give {key}.sr, or sr for every set, NAME: FOLDER"
        )
    places = {
        m: v.replace("{set}", name) if isinstance(v, str) else v
        for m, v in {**common, **own}.items()
    }
    sr = {method: _folder(path, keys[method], place) for method, place in places.items()}
    hr, lr = (
        _folder(path, f"{key}.{role}", entry[role]) if role in entry else None
        for role in ("hr", "lr")
    )
    return TestSet(name, sr, hr, lr)


def _mapping(path: Path, key: str, value: object, known: tuple[str, ...] = ()) -> dict[str, Any]:
    """What stands under a key, with text for names; nothing counts as an empty one. known: all
    names that may be.
    """
    if value is not None and not isinstance(value, dict):
        raise PisasrError(f"{path}: {key} is {value!r}; wanted NAME: VALUE lines")
    entries = {str(name): entry for name, entry in (value or {}).items()}
    if known and (word := next((word for word in entries if word not in known), None)):
        raise PisasrError(f"{path}: {key} has no setting {word!r}; {did_you_mean(word, known)}")
    return entries


def _folder(path: Path, key: str, value: object) -> Path:
    """The folder that a key names; paths count from the file's own."""
    if not isinstance(value, str) or not value:
        raise PisasrError(f"{path}: {key} is {value!r}; wanted the path of a folder")
    folder = path.parent / Path(value).expanduser()
    if not folder.is_dir():
        raise PisasrError(f"{path}: {key} is {value!r}, and {folder} is not a folder")
    return folder


def _first_few(lines: list[str], count: int = 5) -> str:
    rest = f", and {len(lines) - count} more" if len(lines) > count else ""
    return ", ".join(lines[:count]) + rest
