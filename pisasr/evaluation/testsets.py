"""Which pictures are scored, and whether they are the ones that others scored.

A YAML file names the test sets. Sets that papers share are known by name, by count, and where they were at hand by the
pixels of every picture (testsets.json); sets that scripts/degrade.py made are known by its manifest.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from pisasr.errors import ImageError, PisasrError
from pisasr.pictures.folders import EXTENSIONS, list_pictures, match_names, read_picture
from pisasr.pictures.manifest import find_differences, read_entries

HR_NAMES = ("gt", "hr", "hq", "test_hr")
LR_NAMES = ("lq", "lr", "test_lr")  # test_SR_bicubic holds enlarged inputs: it is neither

STABLESR_FOLDERS = {"DIV2K-Val": "DIV2K_V2_val", "RealSR": "RealSRVal_crop128", "DRealSR": "DrealSRVal_crop128"}


@dataclass(frozen=True)
class TestSet:
    """One set of pictures: a folder per method, the true pictures and the inputs where there are any."""

    __test__ = False  # pytest would take the name for a test's

    name: str
    sr: dict[str, Path]
    hr: Path | None = None
    lr: Path | None = None


def load_sets(path: Path) -> list[TestSet]:
    """The test sets that a YAML file names, those of StableSR's folder first.

        stablesr_testsets: PATH                    # adds DIV2K-Val, RealSR and DRealSR, those that are there
        sr: {OSEDiff: results/osediff/{set}}       # for every set; {set} stands for its name
        sets:
          RealSR: {hr: ..., lr: ..., sr: {ours: ...}}
          RealLQ250: {lr: ...}                     # no true pictures
          mine: {root: DIR}                        # its sub-folders are found by their usual names

    Paths count from the file's own folder. A set's own entries stand over those it would have otherwise.
    """
    given = _read_yaml(path)
    _refuse_unknown(path, "the file", given, ("stablesr_testsets", "sr", "sets"))
    sets = _section(path, "sets", given.get("sets"))
    entries = {name: _section(path, f"sets.{name}", entry) for name, entry in sets.items()}
    found = _find(path, "stablesr_testsets", given.get("stablesr_testsets"), find_stablesr_sets) or {}
    common = _section(path, "sr", given.get("sr"))
    names = [*found, *(name for name in entries if name not in found)]
    if not names:
        raise PisasrError(
            f"{path} names no test set; wanted stablesr_testsets: FOLDER, or sets: {{NAME: {{lr: FOLDER}}}}"
        )
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\\x00-\x1f]+", name) or name.strip(". ") == "":
            raise PisasrError(
                f"{path}: {name!r} can't name a set, whose results get a folder of that name; quote a word"
            )
    return [_build_set(path, name, entries.get(name, {}), common, found.get(name, (None, None))) for name in names]


def find_folders(root: Path) -> tuple[Path | None, Path | None]:
    """(true pictures, inputs) of a set by the usual names of its sub-folders, in any case.

    Pictures directly inside and no such sub-folder: a set of inputs alone, as RealLR200 and RealLQ250 are.
    """
    hr, lr = (_only_one(root, names) for names in (HR_NAMES, LR_NAMES))
    if hr or lr:
        return hr, lr
    if any(path.suffix.lower() in EXTENSIONS for path in root.iterdir()):
        return None, root
    raise PisasrError(f"{root} holds no pictures and none of the sub-folders {', '.join(HR_NAMES + LR_NAMES)}")


def find_stablesr_sets(root: Path) -> dict[str, tuple[Path | None, Path | None]]:
    """Name -> (true pictures, inputs) of the StableSR-TestSets that lie in `root`, or one folder deeper.

    The layout is written from memory: DIV2K_V2_val/{gt,lq}, RealSRVal_crop128/{test_HR,test_LR} and
    DrealSRVal_crop128/{test_HR,test_LR}. Case is disregarded, and so is a folder more on the way.
    """
    below = _subfolders(root)
    below += [deeper for folder in below for deeper in _subfolders(folder)]
    sets = {}
    for name, usual in STABLESR_FOLDERS.items():
        tops = [folder for folder in below if folder.name.lower() == usual.lower()]
        homes = sorted({home for top in tops for home in (top, *_subfolders(top)) if _has_usual(home)})
        if len(homes) > 1:
            raise PisasrError(f"{name} lies in {' and in '.join(map(str, homes))}; keep one of them")
        if tops and not homes:
            raise PisasrError(f"{tops[0]} holds none of {name}'s sub-folders ({', '.join(HR_NAMES + LR_NAMES)})")
        if homes:
            sets[name] = find_folders(homes[0])
    if not sets:
        raise PisasrError(f"{root} holds none of {', '.join(STABLESR_FOLDERS.values())}, nor do the folders in it")
    return sets


@cache
def known_sets() -> dict[str, dict]:
    """Name -> what is known of a set that papers share: its count, and perhaps {stem: {hr, lr}}, its digests."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))["sets"]


def verify_known(name: str, hr: Path | None, lr: Path | None) -> str | None:
    """The sentence for the protocol on a set of a known name, None for any other name.

    PisasrError when the pixels are known and these are others. Files are recognised by their pixels, so they may be
    called anything, but not by the name of another picture of the set, and a pair must be a pair.
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
        counted = f"{count} pictures came, as wanted" if came == count else f"{came} pictures came, {count} are wanted"
        return f"not verified: no hashes of {known} are known here; {counted}"
    held, faults = {}, []
    for role, folder in folders.items():
        held[role] = _recognise_files(folder, {stem: digest[role] for stem, digest in digests.items()}, faults)
    if len(held) == 2 and not faults:
        pairs = sorted(match_names(held["hr"], held["lr"]).items())
        faults = [f"{b} is not the input of {a}" for a, b in pairs if held["hr"][a] != held["lr"][b]]
    if faults:
        raise PisasrError(f"{known} is not the known set: {_first_few(faults)}; take its pictures or another name")
    part = "" if len(held) == 2 else f" ({next(iter(held))} alone)"
    return f"verified: the {count} pictures of {known} {known_sets()[known]['made']}{part}"


def recognise(hr: Path) -> str | None:
    """The name of the known set whose true pictures these are, all of them and no others."""
    files = list_pictures(hr)
    sets = {name: known["digests"] for name, known in known_sets().items() if "digests" in known}
    sets = {name: digests for name, digests in sets.items() if len(digests) == len(files)}
    found = {_digest_or_none(path) for path in files.values()} if sets else set()
    return next((name for name, of in sets.items() if {digest["hr"] for digest in of.values()} == found), None)


def digest_picture(path: Path) -> str:
    """Sixteen hex digits of the decoded pixels: SHA-256 of 'WxH' and the RGB bytes, whatever the file's format."""
    picture = read_picture(path)
    return sha256(f"{picture.shape[1]}x{picture.shape[0]}".encode() + picture.tobytes()).hexdigest()[:16]


def verify_manifest(lr: Path, hr: Path | None) -> str | None:
    """The sentence for the protocol on a set that scripts/degrade.py made; None where its manifest does not lie in lr.

    PisasrError when a picture is missing, another one, or too many. The true pictures are held against the manifest
    only where it has them (--hq_output).
    """
    path = lr / "manifest.json"
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PisasrError(f"{path} is not readable as JSON; take it away, or make the folder anew") from error
    if not isinstance(manifest, dict) or not {"seed", "recipe", "pictures"} <= manifest.keys():
        return None
    entries = read_entries(path)
    folders, faults = {"lq": lr}, []
    if hr and any("hq" in entry for entry in entries):
        folders["hq"] = hr
    for kind, folder in folders.items():
        wanted = {entry["name"]: entry[kind]["sha256"] for entry in entries if kind in entry}
        inside = [other.resolve() for other in (lr, hr) if other and folder.resolve() in other.resolve().parents]
        faults += find_differences(folder, wanted, inside)
    if faults:
        raise PisasrError(f"{path} is about other pictures: {_first_few(faults)}; make the folder anew")
    part = "; it says nothing of the true pictures" if hr and "hq" not in folders else ""
    return f"verified against manifest.json: seed {manifest['seed']}, {len(entries)} pictures{part}"


def fold_name(name: str) -> str:
    """What two spellings of a name share: case, spaces, hyphens and underscores are taken out."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a line about a word that nobody knows: the nearest known one, then all of them."""
    spellings = {fold_name(name): name for name in known}
    close = difflib.get_close_matches(fold_name(word), spellings, n=1, cutoff=0.5)
    return (f"did you mean {spellings[close[0]]!r}? " if close else "") + f"Known are {', '.join(spellings.values())}"


def _read_yaml(path: Path) -> dict:
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ModuleNotFoundError as error:
        raise PisasrError(f"{path} can't be read without {error.name}; install pisasr[eval]") from error
    try:
        given = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise PisasrError(f"{path} is not readable as YAML ({reason})") from error
    return _section(path, "the file", given)


def _section(path: Path, key: str, value: object) -> dict:
    """A mapping with text for keys; nothing counts as an empty one."""
    if value is not None and not isinstance(value, dict):
        raise PisasrError(f"{path}: {key} is {value!r}; wanted NAME: VALUE lines")
    return {str(name): entry for name, entry in (value or {}).items()}


def _refuse_unknown(path: Path, key: str, given: dict, known: tuple[str, ...]) -> None:
    if word := next((word for word in given if word not in known), None):
        raise PisasrError(f"{path}: {key} has no setting {word!r}; {did_you_mean(word, known)}")


def _build_set(path: Path, name: str, entry: dict, common: dict, found: tuple[Path | None, Path | None]) -> TestSet:
    key = f"sets.{name}"
    _refuse_unknown(path, key, entry, ("hr", "lr", "sr", "root"))
    hr, lr = _find(path, f"{key}.root", entry.get("root"), find_folders) or found
    own = _section(path, f"{key}.sr", entry.get("sr"))
    places = {method: (f"sr.{method} for {name}", _fill(folder, name)) for method, folder in common.items()}
    places |= {method: (f"{key}.sr.{method}", _fill(folder, name)) for method, folder in own.items()}
    if not places:
        raise PisasrError(f"{path}: {key} has no pictures to score; give {key}.sr, or sr for every set, NAME: FOLDER")
    return TestSet(
        name,
        {method: _folder(path, *place) for method, place in places.items()},
        _find(path, f"{key}.hr", entry.get("hr"), Path) or hr,
        _find(path, f"{key}.lr", entry.get("lr"), Path) or lr,
    )


def _fill(folder: object, name: str) -> object:
    return folder.replace("{set}", name) if isinstance(folder, str) else folder


def _folder(path: Path, key: str, value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise PisasrError(f"{path}: {key} is {value!r}; wanted the path of a folder")
    folder = path.parent / Path(value).expanduser()
    if not folder.is_dir():
        raise PisasrError(f"{path}: {key} is {value!r}, and {folder} is not a folder")
    return folder


def _find(path: Path, key: str, value: object, find: Callable[[Path], Any]) -> Any:
    """What `find` makes of the folder that a key names; None without the key."""
    if value is None:
        return None
    folder = _folder(path, key, value)
    try:
        return find(folder)
    except PisasrError as error:
        raise PisasrError(f"{path}: {key}: {error}") from error


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise PisasrError(f"{folder} is not a folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _has_usual(folder: Path) -> bool:
    return any(path.name.lower() in HR_NAMES + LR_NAMES for path in _subfolders(folder))


def _only_one(root: Path, names: tuple[str, ...]) -> Path | None:
    found = [path for path in _subfolders(root) if path.name.lower() in names]
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise PisasrError(f"{root} has {both}; keep one of them, or name the folders with hr and lr instead")
    return found[0] if found else None


def _recognise_files(folder: Path, known: dict[str, str], faults: list[str]) -> dict[str, str]:
    """Stem -> stem of the known picture that the file holds; what is out of place is added to `faults`."""
    files, owners = list_pictures(folder), {digest: stem for stem, digest in known.items()}
    held = {stem: owners.get(_digest_or_none(path)) for stem, path in files.items()}
    names = _match_any_case(files, known)
    there = set()
    for stem, picture in held.items():
        named, path = names.get(stem), files[stem]
        if picture is None:
            faults.append(f"{path} differs" if named else f"{path} is no picture of it")
            there.add(named)
        elif named not in (None, picture):
            faults.append(f"{path} holds {picture}")
        elif picture in there:
            faults.append(f"{path} is {picture} once more")
        there.add(picture)
    faults += [f"{stem} is missing from {folder}" for stem in sorted(known.keys() - there)]
    return held


def _match_any_case(wanted: Iterable[str], found: Iterable[str]) -> dict[str, str]:
    """match_names without regard to case."""
    left, right = ({stem.lower(): stem for stem in stems} for stems in (wanted, found))
    return {left[a]: right[b] for a, b in match_names(left, right).items()}


def _digest_or_none(path: Path) -> str | None:
    """The digest, or None for a file that cannot be read: it is then no picture of any known set."""
    try:
        return digest_picture(path)
    except ImageError:
        return None


def _first_few(lines: list[str], count: int = 5) -> str:
    rest = f", and {len(lines) - count} more" if len(lines) > count else ""
    return ", ".join(lines[:count]) + rest
