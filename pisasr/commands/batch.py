"""Infer, around the journey: many files through one model. Name the outputs, share them out,
restore, report each.

Nothing here knows the model. `restore_files` is given a function from pictures to their results,
and no file, however bad, ends the batch. torch is not needed before the first picture is read.
"""

import errno
import json
import os
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from tqdm import tqdm

from pisasr.commands.options import place_among_processes
from pisasr.errors import ImageError, OverlapError, PisasrError, UsageError, explain, safe_text
from pisasr.files import is_locked, temporary_name
from pisasr.pictures.folders import Found, folded, free_name, resolved

if TYPE_CHECKING:
    from pisasr.pictures.images import Picture
    from pisasr.pictures.saving import Metadata

REPORT_NAME = "report.jsonl"
ROW_START = '{"input": '  # of every row, by which a report is known
TEMPORARY_PREFIX = ".pisasr-"
HANDS = 4  # threads that write: of small pictures a GPU makes more than one PNG encoder can take
KEPT_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".tif",
    ".tiff",
)  # bmp can tell nothing beside its picture
WAITING_BYTES = 2**28  # of results that wait for the disk, beside the one that is written

Existing = Literal["overwrite", "skip", "error"]

NONE: Mapping[str, float] = MappingProxyType({})


class Made(NamedTuple):
    """What became of one picture: a result for each target, what its row shall say, further fields
    of the row, and what each file tells beside its picture, if anything.
    """

    results: Sequence[Any]  # PIL pictures, or uint16 arrays
    note: str = ""
    fields: Mapping[str, float] = NONE
    metadata: "Sequence[Metadata | None] | None" = None


# Pictures of one size; for each the name of its input, and a seed.
Restore = Callable[[Sequence["Picture"], Sequence[Path], Sequence[int]], Sequence[Made]]


@dataclass(frozen=True)
class Job:
    """One input and the files it becomes, none where it can't be read; the report names the last of
    `targets`.
    """

    found: Found
    targets: tuple[Path, ...]


# --- what to write --------------------------------------------------------------------------------


def plan_jobs(
    inputs: Sequence[Found], output: Path, variants: Sequence[str] = (), suffix: str | None = ".png"
) -> list[Job]:
    """Give every input its own place below `output`: NAME.png, or a folder NAME with one file for
    each of `variants`.

    suffix: of the files, in place of .png; None is each input's own, where results can be written
    so, else .png. Sub-folders stay. Inputs that would meet keep their extension (photo.jpg.png
    beside photo.png.png); of inputs with one and the same name all but the first are numbered. What
    can't be read has no place, and takes none away. OverlapError if an output would be written over
    an input.
    """
    ready = [found for found in inputs if found.status == "ready"]
    stems = Counter(folded(found.name.with_suffix("")) for found in ready)
    names = Counter(folded(found.name) for found in ready)
    # A file can't have the name of a folder, nor the folder of x/grid.png.jpg that of a file in the
    # folder of x.jpg.
    taken = (
        set() if variants else {folded(place) for found in ready for place in found.name.parents}
    )
    files = {folded(f"{variant}{end}") for variant in variants for end in KEPT_SUFFIXES}
    for place in (place for found in ready for place in (found.name, found.name.with_suffix(""))):
        if folded(place.name) in files and (
            folded(place.parent) in stems or folded(place.parent) in names
        ):
            taken.add(folded(place))
    jobs = []
    for found in inputs:
        if found.status != "ready":
            jobs.append(Job(found, ()))
            continue
        stem = found.name.with_suffix("")
        meets_another = stems[folded(stem)] > names[folded(found.name)]
        end = suffix or (
            found.name.suffix.lower() if found.name.suffix.lower() in KEPT_SUFFIXES else ".png"
        )
        place = output / free_name(
            found.name if meets_another else stem, taken, "" if variants else end
        )
        jobs.append(
            Job(found, tuple(place / f"{variant}{end}" for variant in variants) or (place,))
        )
    _check_apart(jobs)
    return jobs


def _check_apart(jobs: Sequence[Job]) -> None:
    inputs = {resolved(job.found.path) for job in jobs if job.found.status == "ready"}
    for target in (target for job in jobs for target in job.targets):
        if resolved(target) in inputs:
            raise OverlapError(
                f"{safe_text(target)} is an input and would be written over; choose another --output"
            )


def check_output(folder: Path, *files: str) -> None:
    """Make the output folder and be sure that files can be made in it, these among them.
    PisasrError if not.
    """
    probe = folder / f"{TEMPORARY_PREFIX}{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(
            missing_ok=True
        )  # a process of this number may be here from another machine, too
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = (
            "it is a file"
            if isinstance(error, FileExistsError)
            else getattr(error, "strerror", None) or error
        )
        raise PisasrError(
            f"cannot write to {safe_text(folder)}: {reason}; choose another --output"
        ) from None
    if taken := next((folder / file for file in files if (folder / file).is_dir()), None):
        raise PisasrError(
            f"{safe_text(taken)} is a folder, where a file is to be written; choose another --output"
        )


def remove_leftovers(targets: Iterable[Path], is_alone: bool = True) -> None:
    """Delete the temporary files that a killed run left beside what this one will write; those of a
    living run stay.

    is_alone: whether all of them may go. If not, other machines may be writing there, whose
    processes look dead from here: only what would become one of the targets goes.
    """
    targets = set(targets)
    own = {(target.parent, _without_owner(temporary_name(target))) for target in targets}
    for folder in {target.parent for target in targets}:
        for file in folder.glob(f"{TEMPORARY_PREFIX}*.tmp"):
            owner = file.name.removeprefix(TEMPORARY_PREFIX).split("-")[0].removesuffix(".tmp")
            is_ours = is_alone or (folder, _without_owner(file)) in own
            if is_ours and not (owner.isdigit() and _is_alive(int(owner))):
                file.unlink(missing_ok=True)


def _without_owner(temporary: Path) -> str:
    return temporary.name.rpartition("-")[-1]


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


# --- whose it is ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """Which part of the pictures is this process': number `index` of `count`, from 1."""

    index: int = 1
    count: int = 1

    def of(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Every count-th job: the shares are disjoint and nothing is left over, if all see the same
        files.

        Outputs must have been named before: the whole list decides on names.
        """
        return jobs[self.index - 1 :: self.count]

    @property
    def report_name(self) -> str:
        """report.jsonl, or report.2of4.jsonl: each process has a file of its own, so none can harm
        another's.
        """
        return (
            REPORT_NAME
            if self.count == 1
            else REPORT_NAME.replace(".", f".{self.index}of{self.count}.")
        )


def parse_shard(text: str) -> Shard:
    """`2/4` as the second of four shares."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"'{text}' is not a share such as 2/4, from 1/4 to 4/4")
    return Shard(int(index), int(count))


def launched() -> Shard:
    """This process' place among those that accelerate or torchrun started; the only one if neither
    did.
    """
    rank, count = place_among_processes()
    return Shard(rank + 1, count)


def share_of(shard: Shard, process: Shard) -> Shard:
    """A process' share of a shard: the second of two processes in shard 2/4 has 4/8."""
    return Shard((shard.index - 1) * process.count + process.index, shard.count * process.count)


# --- the journey ----------------------------------------------------------------------------------


def restore_files(
    jobs: Sequence[Job],
    restore: Restore,
    report: "Report",
    existing: Existing = "overwrite",
    seed: int = 0,
    max_pixels: int | None = None,
    debug: bool = False,
    batch_size: int = 1,
    batch_pixels: int = 0,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Take every job from its file to its targets, and write a row for it whatever happens, in the
    order of the jobs.

    While one picture is computed, in the calling thread, the next is read and those before it are
    written. What waits is bounded: one picture (or batch) that was read, and results of HANDS
    pictures or WAITING_BYTES, whichever is less.

    The seed that `restore` is given comes from `seed` and the input's name, so that neither the
    order nor the company of the inputs changes a result. With a `batch_size` above 1 neighbours of
    one size and of at most `batch_pixels` are restored together, which changes them by rounding; if
    that fails, one by one.

    Stops early only when the disk is full, or when `stopping` says so: then the picture in hand is
    finished, those before it are written, and it ends in KeyboardInterrupt. One that comes by
    itself drops the picture in hand.
    """
    full = Event()

    def read(job: Job) -> Course:
        course = Course(job)
        if not full.is_set():
            with course.stage(debug):
                _read(course, existing, max_pixels)
        return course

    def write(course: Course) -> Course:
        if course.made is not None:
            with course.stage(debug):
                _write(course.made, course.job.targets)
        course.made = None
        return course

    def tell(course: "Future[Course]") -> None:
        done = course.result()
        if done.is_disk_full:
            full.set()
        report.add(done.job, done.status, done.reason, done.seconds, done.fields)

    waiting: deque[tuple[int, Future[None]]] = deque()
    # The teller is left last: rows that are known are told, whatever ends this.
    with (
        ThreadPoolExecutor(1) as teller,
        ThreadPoolExecutor(HANDS) as writers,
        ThreadPoolExecutor(1) as reader,
    ):
        courses = _until(stopping, _one_ahead(jobs, lambda job: reader.submit(read, job)))
        for batch in _batches(courses, batch_size, batch_pixels):
            if not full.is_set():
                _compute(
                    [course for course in batch if course.picture is not None], restore, seed, debug
                )
            for course in batch:
                if full.is_set() and course.made is None and course.status == "ok":
                    course.status, course.reason = "failed", "not started: the disk is full"
                course.picture = None
                size = 0 if course.made is None else sum(map(_bytes, course.made.results))
                waiting.append((size, teller.submit(tell, writers.submit(write, course))))
            while waiting and (
                len(waiting) > HANDS or sum(size for size, _ in waiting) > WAITING_BYTES
            ):
                waiting.popleft()[1].result()
        for _, told in waiting:
            told.result()
    if stopping():
        raise KeyboardInterrupt


@dataclass
class Course:
    """A job on its way: what is known of it, what it holds at the moment, and the seconds it took,
    waiting left out.
    """

    job: Job
    status: str = "ok"
    reason: str = ""
    fields: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    picture: "Picture | None" = None
    made: Made | None = None
    is_disk_full: bool = False

    @contextmanager
    def stage(self, debug: bool) -> Iterator[None]:
        """Whatever goes wrong in the block is how this job ended, and nobody else's."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            if debug:
                traceback.print_exc()
            self.status, self.reason, self.fields = "failed", explain(error), NONE
            self.is_disk_full = isinstance(error, OSError) and error.errno in (
                errno.ENOSPC,
                errno.EDQUOT,
            )
        self.seconds += time.perf_counter() - start


def _one_ahead(jobs: Iterable[Job], start: "Callable[[Job], Future[Course]]") -> Iterator[Course]:
    """Each job read, in order; the next one is being read when one is handed out."""
    begun: deque[Future[Course]] = deque()
    for job in jobs:
        begun.append(start(job))
        if len(begun) > 1:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _until(stopping: Callable[[], bool], courses: Iterable[Course]) -> Iterator[Course]:
    for course in courses:
        if stopping():
            return
        yield course


def _batches(courses: Iterable[Course], size: int, pixels: int) -> Iterator[list[Course]]:
    """Neighbours whose pictures have one shape and kind, at most `size` of them, if none has more
    than `pixels`.
    """
    batch: list[Course] = []
    for course in courses:
        kind = _kind(course, pixels)
        if batch and kind != _kind(batch[0], pixels):
            yield batch
            batch = []
        batch.append(course)
        if kind is None or len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _kind(course: Course, pixels: int) -> tuple[Any, ...] | None:
    """What pictures of one batch have in common; None for what goes alone."""
    if course.picture is None or course.picture.size[0] * course.picture.size[1] > pixels:
        return None
    return course.picture.size, course.picture.pixels.dtype


def _read(course: Course, existing: Existing, max_pixels: int | None) -> None:
    from pisasr.pictures.images import MAX_PIXELS, open_picture

    found, targets = course.job.found, course.job.targets
    if found.status != "ready":
        course.status, course.reason = found.status, found.reason
    elif folder := next((target for target in targets if target.is_dir()), None):
        course.status, course.reason = (
            "failed",
            f"{folder} is a folder; move it away, or choose another --output",
        )
    elif existing == "skip" and all(_is_picture(target) for target in targets):
        course.status, course.reason = "skipped", "the output exists"
    elif existing == "error" and any(target.exists() for target in targets):
        course.status, course.reason = "failed", "the output exists, and --existing is error"
    else:
        course.picture = open_picture(found.path, max_pixels or MAX_PIXELS)


def _compute(courses: Sequence[Course], restore: Restore, seed: int, debug: bool) -> None:
    """Results of pictures of one shape, together; one by one if there is only one, or if together
    doesn't work.
    """
    if len(courses) > 1:
        trial = Course(courses[0].job)
        with trial.stage(debug):
            _restore(courses, restore, seed)
        for course in courses:
            course.seconds += trial.seconds / len(courses)
    for course in courses:
        if course.made is None:
            with course.stage(debug):
                _restore([course], restore, seed)


def _restore(courses: Sequence[Course], restore: Restore, seed: int) -> None:
    pictures = [course.picture for course in courses if course.picture is not None]
    names = [course.job.found.name for course in courses]
    made = restore(pictures, names, [picture_seed(seed, name) for name in names])
    for course, picture, one in zip(courses, pictures, made, strict=True):
        course.made, course.fields = one, one.fields
        course.reason = "; ".join(filter(None, [*picture.notices, one.note]))


def _write(made: Made, targets: Sequence[Path]) -> None:
    from pisasr.pictures.saving import save_image

    told = made.metadata or [None] * len(targets)
    for result, target, metadata in zip(made.results, targets, told, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_image(result, target, metadata)


def _bytes(result: Any) -> int:
    return (
        result.nbytes
        if hasattr(result, "nbytes")
        else result.width * result.height * len(result.getbands())
    )


def _is_picture(path: Path) -> bool:
    """Whether `path` holds a whole picture: what a killed or full disk left behind is made
    again.
    """
    from pisasr.pictures.opening import opened

    try:
        with opened(path) as image:
            image.load()
    except ImageError:
        return False
    return True


def picture_seed(seed: int, name: Path) -> int:
    """63 bits that belong to this seed and this name alone."""
    text = f"{seed}/{name.as_posix()}".encode("utf-8", "surrogateescape")
    return int.from_bytes(sha256(text).digest()[:8], "big") >> 1


# --- what happened --------------------------------------------------------------------------------


def _own_report(folder: Path, name: str) -> tuple[Path, IO[str]]:
    """An empty report of this run's own: NAME, or where that is no old report to write over,
    NAME-2, NAME-3, ...

    So a run that is not over keeps its own, and so do a folder, a pipe, and what somebody else
    wrote or made read-only. A link of that name, of either kind, makes way: what it leads to is not
    ours to write.
    """
    for number in count(1):
        path = folder / (name if number == 1 else name.replace(".", f"-{number}.", 1))
        with suppress(PermissionError):  # in a shared folder it may be somebody's
            if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
                path.unlink()
        if not os.path.lexists(path) or (
            path.is_file() and not path.is_symlink() and os.access(path, os.R_OK | os.W_OK)
        ):
            file = path.open("a+", encoding="utf-8", errors="replace")
            file.seek(0)
            if is_locked(file) and file.read(len(ROW_START)) in ("", ROW_START):
                file.truncate(0)
                return path, file
            file.close()
    raise AssertionError("unreachable")


class Report:
    """Rows of OUTPUT/report.jsonl (`_own_report`), one for every input as soon as it and those
    before it are done, and the same for the person watching.

    A row holds input, output (null if there is none), status ok | skipped | failed, reason ("" or
    what was noticed) and seconds, and lambda_pix and lambda_sem where they were chosen for the
    picture. On a terminal a bar shows the time left; elsewhere every picture has a line. `quiet`
    leaves the failures.
    """

    def __init__(
        self, folder: Path, total: int, quiet: bool = False, name: str = REPORT_NAME
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._quiet, self._started = quiet, time.perf_counter()
        self.path, self._file = _own_report(folder, name)
        self._bar = tqdm(
            total=total, unit="picture", disable=True if quiet else None
        )  # None: on a terminal alone

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        with suppress(OSError):  # a full disk has been told already
            self._file.close()
        if not self._quiet:
            print(self.summary(), flush=True)

    def add(
        self, job: Job, status: str, reason: str, seconds: float, fields: Mapping[str, float] = NONE
    ) -> None:
        """Record how a job ended; `fields` are further ones of its row."""
        self.counts[status] += 1
        output = None if status == "failed" or job.found.status != "ready" else str(job.targets[-1])
        row = {"input": str(job.found.path), "output": output, "status": status, "reason": reason}
        with suppress(OSError):
            self._file.write(json.dumps({**row, "seconds": round(seconds, 3), **fields}) + "\n")
            self._file.flush()
        name = safe_text(job.found.path)
        if status == "failed":
            tqdm.write(f"{name}: {safe_text(reason)}", file=sys.stderr)
        elif not self._quiet and (reason or self._bar.disable):
            note = f" ({safe_text(reason)})" if reason else ""
            done = (
                f"{name} -> {safe_text(job.targets[-1])}  {seconds:.1f} s"
                if status == "ok"
                else f"{name}: skipped"
            )
            tqdm.write(f"[{self.counts.total()}/{self._bar.total}] {done}{note}")
            sys.stdout.flush()
        self._bar.update()

    def summary(self) -> str:
        """`3 restored, 1 failed in 4.2 s; report: results/report.jsonl`."""
        words = {"ok": "restored", "skipped": "skipped", "failed": "failed"}
        parts = [
            f"{self.counts[status]} {word}" for status, word in words.items() if self.counts[status]
        ]
        spent = time.perf_counter() - self._started
        return (
            f"{', '.join(parts) or 'nothing done'} in {spent:.1f} s; report: {safe_text(self.path)}"
        )
