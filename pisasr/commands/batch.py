"""Infer, around the journey: many files through one model. Name the outputs, restore one by one, report each.

Nothing here knows the model. `restore_files` is given a function from a picture to its results, and no file, however
bad, ends the batch. torch is not needed before the first picture is read.
"""

import errno
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tqdm import tqdm

from pisasr.errors import OverlapError, PisasrError, explain, shown
from pisasr.pictures.folders import Found

if TYPE_CHECKING:
    from pisasr.pictures.images import Picture

REPORT_NAME = "report.jsonl"
TEMPORARY_PREFIX = ".pisasr-"

Existing = Literal["overwrite", "skip", "error"]

NONE: Mapping[str, float] = MappingProxyType({})


class Made(NamedTuple):
    """What became of one picture: a result for each target, what its row shall say, and further fields of the row."""

    results: Sequence[Any]  # PIL pictures, or uint16 arrays
    note: str = ""
    fields: Mapping[str, float] = NONE


Restore = Callable[["Picture", int], Made]


@dataclass(frozen=True)
class Job:
    """One input and the files it becomes; the last of `targets` is the one that the report names."""

    found: Found
    targets: tuple[Path, ...]


# --- what to write ---------------------------------------------------------------------------------------------------


def plan_jobs(inputs: Sequence[Found], output: Path, variants: Sequence[str] = ()) -> list[Job]:
    """Give every input its own place below `output`: NAME.png, or a folder NAME with one file for each of `variants`.

    Sub-folders stay. Inputs that would meet keep their extension (photo.jpg.png beside photo.png.png); of inputs with
    one and the same name all but the first are numbered. OverlapError if an output would be written over an input.
    """
    stems = Counter(_key(found.name.with_suffix("")) for found in inputs)
    names = Counter(_key(found.name) for found in inputs)
    taken: set[str] = set()
    jobs = []
    for found in inputs:
        stem = found.name.with_suffix("")
        meets_another = stems[_key(stem)] > names[_key(found.name)]
        place = output / _free(found.name if meets_another else stem, taken)
        targets = [place / f"{variant}.png" for variant in variants] or [place.with_name(place.name + ".png")]
        jobs.append(Job(found, tuple(targets)))
    _check_apart(jobs)
    return jobs


def _key(path: Path) -> str:
    return str(path).casefold()  # some file systems don't tell A.png from a.png


def _free(stem: Path, taken: set[str]) -> Path:
    candidate, number = stem, 1
    while _key(candidate) in taken:
        number += 1
        candidate = stem.with_name(f"{stem.name}-{number}")
    taken.add(_key(candidate))
    return candidate


def _check_apart(jobs: Sequence[Job]) -> None:
    inputs = {job.found.path.resolve() for job in jobs if job.found.status == "ready"}
    for target in (target for job in jobs for target in job.targets):
        if target.resolve() in inputs:
            raise OverlapError(f"{shown(target)} is an input and would be written over; choose another --output")


def check_output(folder: Path) -> None:
    """Make the output folder and be sure that files can be made in it. PisasrError if not."""
    probe = folder / f"{TEMPORARY_PREFIX}{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise PisasrError(f"cannot write to {shown(folder)}: {reason}; choose another --output") from None


def remove_leftovers(jobs: Iterable[Job]) -> None:
    """Delete the temporary files that a killed run left where this one will write; those of a living run stay."""
    for folder in {target.parent for job in jobs for target in job.targets}:
        for file in folder.glob(f"{TEMPORARY_PREFIX}*.tmp"):
            owner = file.name.removeprefix(TEMPORARY_PREFIX).split("-")[0].removesuffix(".tmp")
            if not (owner.isdigit() and _is_alive(int(owner))):
                file.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if process == os.getpid() or os.name == "nt":  # there, signal 0 would end the process
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


# --- the journey -----------------------------------------------------------------------------------------------------


def restore_files(
    jobs: Sequence[Job],
    restore: Restore,
    report: "Report",
    existing: Existing = "overwrite",
    seed: int = 0,
    max_pixels: int | None = None,
    debug: bool = False,
) -> None:
    """Take every job from its file to its targets, and write a row for it whatever happens.

    The seed that `restore` is given comes from `seed` and the input's name, so that neither the order nor the company
    of the inputs changes a result. Stops early only when the disk is full.
    """
    for number, job in enumerate(jobs):
        start = time.perf_counter()
        full = False
        try:
            own_seed = picture_seed(seed, job.found.name)
            status, reason, fields = _restore_file(job, restore, existing, own_seed, max_pixels)
        except Exception as error:
            if debug:
                traceback.print_exc()
            status, reason, fields = "failed", explain(error), {}
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        report.add(job, status, reason, time.perf_counter() - start, fields)
        if full:
            for waiting in jobs[number + 1 :]:
                report.add(waiting, "failed", "not started: the disk is full", 0.0)
            return


def _restore_file(
    job: Job, restore: Restore, existing: Existing, seed: int, max_pixels: int | None
) -> tuple[str, str, Mapping[str, float]]:
    from pisasr.pictures.images import MAX_PIXELS, open_picture, save_image

    if job.found.status != "ready":
        return job.found.status, job.found.reason, {}
    if existing == "skip" and all(_is_picture(target) for target in job.targets):
        return "skipped", "the output exists", {}
    if existing == "error" and any(target.exists() for target in job.targets):
        return "failed", "the output exists, and --existing is error", {}
    picture = open_picture(job.found.path, max_pixels or MAX_PIXELS)
    made = restore(picture, seed)
    for result, target in zip(made.results, job.targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_image(result, target)
    return "ok", "; ".join(filter(None, [*picture.notices, made.note])), made.fields


def _is_picture(path: Path) -> bool:
    """Whether `path` holds a whole picture: what a killed or full disk left behind is made again."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except Exception:
        return False
    return True


def picture_seed(seed: int, name: Path) -> int:
    """63 bits that belong to this seed and this name alone."""
    text = f"{seed}/{name.as_posix()}".encode("utf-8", "surrogateescape")
    return int.from_bytes(sha256(text).digest()[:8], "big") >> 1


# --- what happened ---------------------------------------------------------------------------------------------------


class Report:
    """Rows of OUTPUT/report.jsonl, one for every input as soon as it is done, and the same for the person watching.

    A row holds input, output (null if there is none), status ok | skipped | failed, reason ("" or what was noticed) and
    seconds, and lambda_pix and lambda_sem where they were chosen for the picture. On a terminal a bar shows the time
    left; elsewhere every picture has a line. `quiet` leaves the failures.
    """

    def __init__(self, folder: Path, total: int, quiet: bool = False) -> None:
        self.path = folder / REPORT_NAME
        self.counts: Counter[str] = Counter()
        self._quiet, self._started = quiet, time.perf_counter()
        self._file = self.path.open("w", encoding="utf-8")
        self._bar = tqdm(total=total, unit="picture", disable=True if quiet else None)  # None: on a terminal alone

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        with suppress(OSError):  # a full disk has been told already
            self._file.close()
        if not self._quiet:
            print(self.summary(), flush=True)

    def add(self, job: Job, status: str, reason: str, seconds: float, fields: Mapping[str, float] = NONE) -> None:
        """Record how a job ended; `fields` are further ones of its row."""
        self.counts[status] += 1
        output = None if status == "failed" or job.found.status != "ready" else str(job.targets[-1])
        row = {"input": str(job.found.path), "output": output, "status": status, "reason": reason}
        with suppress(OSError):
            self._file.write(json.dumps({**row, "seconds": round(seconds, 3), **fields}) + "\n")
            self._file.flush()
        name = shown(job.found.path)
        if status == "failed":
            tqdm.write(f"{name}: {shown(reason)}", file=sys.stderr)
        elif not self._quiet and (reason or self._bar.disable):
            note = f" ({shown(reason)})" if reason else ""
            done = f"{name} -> {shown(job.targets[-1])}  {seconds:.1f} s" if status == "ok" else f"{name}: skipped"
            tqdm.write(f"[{self.counts.total()}/{self._bar.total}] {done}{note}")
            sys.stdout.flush()
        self._bar.update()

    def summary(self) -> str:
        """`3 restored, 1 failed in 4.2 s; report: results/report.jsonl`."""
        words = {"ok": "restored", "skipped": "skipped", "failed": "failed"}
        parts = [f"{self.counts[status]} {word}" for status, word in words.items() if self.counts[status]]
        spent = time.perf_counter() - self._started
        return f"{', '.join(parts) or 'nothing done'} in {spent:.1f} s; report: {shown(self.path)}"
