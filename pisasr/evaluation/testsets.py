"""Score, first stop: which pictures are scored, and whether they are the ones that others scored.

A YAML file names the test sets. Sets that papers share are known by name, by count, and where they were at hand by the
pixels of every picture (testsets.json); sets that scripts/degrade.py made are known by its manifest.
"""

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

Folders = tuple[Path | None, Path | None]  # true pictures, inputs

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
    given = _mapping(path, "the file", _read_yaml(path), ("stablesr_testsets", "sr", "sets"))
    entries = _mapping(path, "sets", given.get("sets"))
    place = given.get("stablesr_testsets")
    found = {} if place is None else _folder(path, "stablesr_testsets", place, find_stablesr_sets)
    common = _mapping(path, "sr", given.get("sr"))
    names = list(dict.fromkeys([*found, *entries]))
    if not names:
        wanted = "stablesr_testsets: FOLDER, or sets: {NAME: {lr: FOLDER}}"
        raise PisasrError(f"{path} names no test set; wanted {wanted}")
    for name in names:
        if not re.fullmatch(r"[^/\\\x00-\x1f]+", name) or name.strip(". ") == "":
            raise PisasrError(f"{path}: {name!r} can't name a set, whose results get a folder of that name; quote it")
    return [_build_set(path, name, entries.get(name), common, found.get(name, (None, None))) for name in names]


def find_folders(root: Path) -> Folders:
    """(true pictures, inputs) of a set by the usual names of its sub-folders, in any case.

    Pictures directly inside and no such sub-folder: a set of inputs alone, as RealLR200 and RealLQ250 are.
    """
    found: list[Path | None] = []
    for names in (HR_NAMES, LR_NAMES):
        places = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in names]
        if len(places) > 1:
            both = " and ".join(path.name for path in places)
            raise PisasrError(f"{root} has {both}; keep one of them, or name the folders with hr and lr instead")
        found.append(places[0] if places else None)
    if any(found):
        return found[0], found[1]
    if any(path.suffix.lower() in EXTENSIONS for path in root.iterdir()):
        return None, root
    raise PisasrError(f"{root} holds no pictures and none of the sub-folders {', '.join(HR_NAMES + LR_NAMES)}")


def find_stablesr_sets(root: Path) -> dict[str, Folders]:
    """Name -> (true pictures, inputs) of the StableSR-TestSets that lie in `root`, at most two folders deeper.

    The layout is written from memory: DIV2K_V2_val/{gt,lq}, RealSRVal_crop128/{test_HR,test_LR} and
    DrealSRVal_crop128/{test_HR,test_LR}. Case is disregarded, and so is a folder more on the way.
    """
    usual = {folder.lower(): name for name, folder in STABLESR_FOLDERS.items()}
    homes: dict[str, list[Path]] = {}
    for folder in sorted(path for depth in ("*", "*/*", "*/*/*") for path in root.glob(depth) if path.is_dir()):
        name = next((usual[part.lower()] for part in folder.relative_to(root).parts if part.lower() in usual), None)
        if name:
            inside = [path.name.lower() for path in folder.iterdir() if path.is_dir()]
            homes.setdefault(name, []).extend([folder] if set(inside) & {*HR_NAMES, *LR_NAMES} else [])
    if not homes:
        raise PisasrError(f"{root} holds none of {', '.join(STABLESR_FOLDERS.values())}, nor do the folders in it")
    for name, places in homes.items():
        if not places:
            raise PisasrError(f"{root} has none of {name}'s sub-folders ({', '.join(HR_NAMES + LR_NAMES)})")
        if len(places) > 1:
            raise PisasrError(f"{name} lies in {' and in '.join(map(str, places))}; keep one of them")
    return {name: find_folders(homes[name][0]) for name in STABLESR_FOLDERS if name in homes}


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
    faults: list[str] = []
    wanted = {role: {stem: digest[role] for stem, digest in digests.items()} for role in folders}
    held = {role: _recognise_files(folder, wanted[role], faults) for role, folder in folders.items()}
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
    found = {digest_picture(path) for path in files.values()} if sets else set()
    return next((name for name, of in sets.items() if {digest["hr"] for digest in of.values()} == found), None)


def digest_picture(path: Path) -> str:
    """Sixteen hex digits of the decoded pixels: SHA-256 of 'WxH' and the RGB bytes, whatever the file's format.

    "" for a file that cannot be read: it is then no picture of any known set.
    """
    try:
        picture = read_picture(path)
    except ImageError:
        return ""
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
    folders, faults = {"lq": lr}, list[str]()
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


# --- the file of sets ------------------------------------------------------------------------------------------------


def _read_yaml(path: Path) -> object:
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ModuleNotFoundError as error:
        raise PisasrError(f"{path} can't be read without {error.name}; install pisasr[eval]") from error
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise PisasrError(f"{path} is not readable as YAML ({reason})") from error


def _build_set(path: Path, name: str, given: object, common: dict[str, object], found: Folders) -> TestSet:
    key = f"sets.{name}"
    entry = _mapping(path, key, given, ("hr", "lr", "sr", "root"))
    if entry.get("root") is not None:
        found = _folder(path, f"{key}.root", entry["root"], find_folders)
    hr, lr = (
        usual if entry.get(role) is None else _folder(path, f"{key}.{role}", entry[role])
        for role, usual in zip(("hr", "lr"), found, strict=True)
    )
    own = _mapping(path, f"{key}.sr", entry.get("sr"))
    keys = {method: f"sr.{method} for {name}" for method in common} | {m: f"{key}.sr.{m}" for m in own}
    if not keys:
        raise PisasrError(f"{path}: {key} has no pictures to score; give {key}.sr, or sr for every set, NAME: FOLDER")
    places = {m: v.replace("{set}", name) if isinstance(v, str) else v for m, v in {**common, **own}.items()}
    return TestSet(name, {method: _folder(path, keys[method], place) for method, place in places.items()}, hr, lr)


def _mapping(path: Path, key: str, value: object, known: tuple[str, ...] = ()) -> dict[str, Any]:
    """What stands under a key, with text for names; nothing counts as an empty one. known: all names that may be."""
    if value is not None and not isinstance(value, dict):
        raise PisasrError(f"{path}: {key} is {value!r}; wanted NAME: VALUE lines")
    entries = {str(name): entry for name, entry in (value or {}).items()}
    if known and (word := next((word for word in entries if word not in known), None)):
        raise PisasrError(f"{path}: {key} has no setting {word!r}; {did_you_mean(word, known)}")
    return entries


def _folder(path: Path, key: str, value: object, find: Callable[[Path], Any] = Path) -> Any:
    """The folder that a key names, or what `find` makes of it; paths count from the file's own."""
    if not isinstance(value, str) or not value:
        raise PisasrError(f"{path}: {key} is {value!r}; wanted the path of a folder")
    folder = path.parent / Path(value).expanduser()
    if not folder.is_dir():
        raise PisasrError(f"{path}: {key} is {value!r}, and {folder} is not a folder")
    try:
        return find(folder)
    except PisasrError as error:
        raise PisasrError(f"{path}: {key}: {error}") from error


# --- known pictures --------------------------------------------------------------------------------------------------


def _recognise_files(folder: Path, known: dict[str, str], faults: list[str]) -> dict[str, str | None]:
    """Stem -> stem of the known picture that the file holds; what is out of place is added to `faults`."""
    files, owners = list_pictures(folder), {digest: stem for stem, digest in known.items()}
    held = {stem: owners.get(digest_picture(path)) for stem, path in files.items()}
    lower, known_lower = ({stem.lower(): stem for stem in stems} for stems in (files, known))
    names = {lower[a]: known_lower[b] for a, b in match_names(lower, known_lower).items()}
    there: set[str | None] = set()
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
    faults += [f"{stem} is missing from {folder}" for stem in sorted(stem for stem in known if stem not in there)]
    return held


def _first_few(lines: list[str], count: int = 5) -> str:
    rest = f", and {len(lines) - count} more" if len(lines) > count else ""
    return ", ".join(lines[:count]) + rest
