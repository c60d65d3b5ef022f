"""Many files through one model: name the outputs, restore each picture, report each."""

import errno
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from pisasr.errors import OverlapError, PisasrError, explain, safe_text
from pisasr.pictures.folders import Input, folded, free_name, resolved

if TYPE_CHECKING:
    from pisasr.pictures.images import Picture
    from pisasr.pictures.metadata import Metadata

KEPT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")  # bmp holds no metadata

TOLD_MEGAPIXELS = 32  # what is worked on is told before from here up

Existing = Literal["overwrite", "skip", "error"]


@dataclass(frozen=True)
class Task:
    """One input and the files it becomes, none where it can't be read; a report names the last."""

    input: Input
    targets: tuple[Path, ...]


@dataclass(frozen=True)
class Result:
    """A picture (PIL or uint16 array) and metadata for every target, and a note for the report."""

    pictures: Sequence[Any]
    metadata: "Sequence[Metadata | None]"
    note: str = ""


Restore = Callable[["Picture", Path], Result]  # of a picture and its input's name


def plan_tasks(
    inputs: Sequence[Input], output: Path, variants: Sequence[str] = (), suffix: str | None = ".png"
) -> list[Task]:
    """Give every input its own name below `output`, or below a folder there for each variant.

    suffix: of the files, in place of .png; None is each input's own, where results can be written
    so. Sub-folders stay. Inputs that differ by their extension alone keep it (photo.jpg.png beside
    photo.png.png); others that would meet are numbered. Raises OverlapError if an output would be
    written over an input.
    """
    ready = [each for each in inputs if each.status == "ready"]
    stems = Counter(folded(each.name.with_suffix("")) for each in ready)
    names = Counter(folded(each.name) for each in ready)
    sources = {resolved(each.path) for each in ready}
    taken: set[str] = set()
    tasks = []
    for each in inputs:
        if each.status != "ready":
            tasks.append(Task(each, ()))
            continue
        stem, own = each.name.with_suffix(""), each.name.suffix.lower()
        end = suffix or (own if own in KEPT_SUFFIXES else ".png")
        differs_by_end = stems[folded(stem)] > names[folded(each.name)]
        name = free_name(each.name if differs_by_end and suffix else stem, taken, end)
        targets = tuple(output / variant / name for variant in variants or ("",))
        if over := next((target for target in targets if resolved(target) in sources), None):
            raise OverlapError(
                f"{safe_text(over)} is an input and would be written over; choose another --output"
            )
        tasks.append(Task(each, targets))
    return tasks


def check_output(folder: Path, *files: str) -> None:
    """Make the output folder and check that these files can be written. Raises PisasrError."""
    probe = folder / ".pisasr-probe.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, FileExistsError):
            reason = "it is a file"
        raise PisasrError(
            f"cannot write to {safe_text(folder)}: {reason}; choose another --output"
        ) from None
    if taken := next((folder / file for file in files if (folder / file).is_dir()), None):
        raise PisasrError(
            f"{safe_text(taken)} is a folder where a file is to be; choose another --output"
        )


def restore_files(
    tasks: Sequence[Task],
    restore: Restore,
    report: "Report",
    existing: Existing = "overwrite",
    debug: bool = False,
) -> None:
    """Restore every task's picture and report it; no file, however bad, ends the batch.

    A full disk fails the pictures that are left.
    """
    is_full = False
    for task in tasks:
        started = time.perf_counter()
        status, reason = "failed", "not started: the disk is full"
        try:
            if not is_full:
                status, reason = _status_before(task, existing)
            if status == "ok":
                reason = _restore_file(task, restore)
        except Exception as error:
            if debug:
                traceback.print_exc()
            status, reason = "failed", explain(error)
            code = error.errno if isinstance(error, OSError) else None
            is_full = code in (errno.ENOSPC, errno.EDQUOT)
        report.add(task, status, reason, time.perf_counter() - started)


def _status_before(task: Task, existing: Existing) -> tuple[str, str]:
    if task.input.status != "ready":
        return task.input.status, task.input.reason
    if existing == "skip" and all(target.is_file() for target in task.targets):
        return "skipped", "the output exists"
    if existing == "error" and any(target.exists() for target in task.targets):
        return "failed", "the output exists, and --existing is error"
    return "ok", ""


def _restore_file(task: Task, restore: Restore) -> str:
    from pisasr.pictures.images import open_picture
    from pisasr.pictures.saving import save_image

    picture = open_picture(task.input.path)
    result = restore(picture, task.input.name)
    for image, target, metadata in zip(result.pictures, task.targets, result.metadata, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_image(image, target, metadata)
    return "; ".join(filter(None, [*picture.notices, result.note]))


class Report:
    """Rows of report.jsonl, one for each input as soon as it is done, and lines on stdout.

    A row holds input, output (null if there is none), status ok | skipped | failed, reason (a
    notice or "") and seconds. On a terminal a bar shows the time left, elsewhere each has a line.
    """

    def __init__(self, path: Path, total: int) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.started = self.begun = time.perf_counter()
        self.megapixels = 0.0  # of the picture that is being worked on
        self.bar = tqdm(total=total, unit="picture", disable=None)  # None: on a terminal alone
        path.write_bytes(b"")

    def begin(self, name: Path, size: tuple[int, int]) -> None:
        """Say what is worked on, of a picture so big that it takes minutes somewhere."""
        self.begun, self.megapixels = time.perf_counter(), size[0] * size[1] / 1e6
        if self.megapixels >= TOLD_MEGAPIXELS:
            work = f"working on {self.megapixels:.0f} megapixels ({size[0]} x {size[1]})"
            tqdm.write(f"{safe_text(name)}: {work}")

    def on_tile(self, done: int, total: int) -> None:
        """Show the progress of a picture in tiles; after the first, what a big one will take."""
        if self.megapixels >= TOLD_MEGAPIXELS and done < total:
            seconds = (time.perf_counter() - self.begun) * total / done
            rate = f"{seconds / self.megapixels:.2g} s a megapixel"
            tqdm.write(f"about {seconds / 60:.0f} minutes for {total} tiles, {rate}")
            self.megapixels = 0.0  # told
        self.bar.set_postfix_str(f"tile {done}/{total}" if done < total else "")

    def add(self, task: Task, status: str, reason: str, seconds: float) -> None:
        """Record how a task ended."""
        self.counts[status] += 1
        output = str(task.targets[-1]) if task.targets and status != "failed" else None
        row = {"input": str(task.input.path), "output": output, "status": status}
        with suppress(OSError), self.path.open("a") as file:  # the pictures are what counts
            file.write(json.dumps({**row, "reason": reason, "seconds": round(seconds, 3)}) + "\n")
        name = safe_text(task.input.path)
        if status == "failed":
            tqdm.write(f"{name}: {safe_text(reason)}", file=sys.stderr)
        elif reason or self.bar.disable:
            done = f" -> {safe_text(output)}  {seconds:.1f} s" if status == "ok" else ": skipped"
            note = f" ({safe_text(reason)})" if reason else ""
            tqdm.write(f"[{self.counts.total()}/{self.bar.total}] {name}{done}{note}")
        self.bar.update()

    def close(self) -> None:
        """Print `3 restored, 1 failed in 4.2 s; report: results/report.jsonl`."""
        self.bar.close()
        words = {"ok": "restored", "skipped": "skipped", "failed": "failed"}
        parts = [f"{self.counts[status]} {word}" for status, word in words.items()]
        parts = [part for part in parts if not part.startswith("0 ")] or ["nothing done"]
        spent = time.perf_counter() - self.started
        print(f"{', '.join(parts)} in {spent:.1f} s; report: {safe_text(self.path)}", flush=True)
