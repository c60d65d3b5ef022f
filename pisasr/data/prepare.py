"""Before training, from found photos to a set: measure each, drop what is broken, small or a copy, rank the rest."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from hashlib import sha256
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np

from pisasr.data import quality
from pisasr.data.duplicates import find_near_duplicates, perceptual_hash
from pisasr.data.manifest import relative_path
from pisasr.data.sources import Photo
from pisasr.errors import explain
from pisasr.files import Journal
from pisasr.pictures.images import open_image, split

PARTS = tuple(quality.CURVES)

# --- what is known of a file -----------------------------------------------------------------------------------------


Task = tuple[Path, dict | None]  # a photo, and what was known of it before


def stamp(path: Path) -> dict[str, int | None]:
    """Size and time of change, by which a file is taken for the one that was measured before."""
    try:
        status = path.stat()
    except OSError:
        return {"bytes": None, "mtime_ns": None}
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def measure_photo(path: Path, known: dict | None = None) -> dict[str, Any]:
    """What a file is: its sha256, its size upright, its hash and its quality, or the "error" that kept it from us.

    `known`, an earlier answer, is kept where the bytes are the same.
    """
    row = {"path": str(path), "version": quality.VERSION, **stamp(path)}
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device never ends
        return row | {"error": "not a regular file"}
    try:
        digest = sha256(path.read_bytes()).hexdigest()
        if known and known.get("sha256") == digest:
            return known | row
        rgb = split(open_image(path))[0]
        row |= {"sha256": digest, "width": rgb.width, "height": rgb.height, "hash": f"{perceptual_hash(rgb):064x}"}
        if min(rgb.size) >= quality.MIN_SIDE:
            row |= asdict(quality.measure(np.asarray(rgb.convert("L"))))
    except Exception as error:  # whatever a file does to its decoder, the others wait
        row["error"] = explain(error)
    return row


def measure_photos(photos: Iterable[Path], journal: Journal, workers: int) -> Iterator[dict[str, Any]]:
    """The row of every photo, in order: from the journal where the file is the same, else measured and written there.

    What could not be read is tried again.
    """
    known = {row["path"]: row for row in journal.rows() if "path" in row and row.get("version") == quality.VERSION}
    photos = [path.absolute() for path in photos]
    fresh = [path for path in photos if not _is_current(known.get(str(path)), path)]
    measured = map_photos([(path, known.get(str(path))) for path in fresh], workers)
    waiting = set(fresh)
    for path in photos:
        if path in waiting:
            row = next(measured)
            journal.append(row)
        else:
            row = known[str(path)]
        yield row


def _is_current(row: dict | None, path: Path) -> bool:
    return row is not None and "error" not in row and {key: row[key] for key in ("bytes", "mtime_ns")} == stamp(path)


def map_photos(
    tasks: list[Task], workers: int, measure: Callable[[Path, dict | None], dict] | None = None
) -> Iterator[dict[str, Any]]:
    """`measure_photo` of each task, in order, over processes. One that dies costs the photo it died of, not the run."""
    measure = measure or measure_photo
    if workers <= 1:
        yield from (measure(*task) for task in tasks)
        return
    waiting = deque(tasks)
    while waiting:
        suspects = yield from _until_one_dies(waiting, workers, 4 * workers, measure)
        while suspects:
            for path, _ in (yield from _until_one_dies(suspects, 1, 1, measure)):
                yield {"path": str(path), "version": quality.VERSION, **stamp(path), "error": "its reader died of it"}


def _until_one_dies(
    waiting: deque[Task], workers: int, ahead: int, measure: Callable[[Path, dict | None], dict]
) -> Generator[dict[str, Any], None, deque[Task]]:
    """Take tasks off and yield their rows, in order; returns those that were under way when a process died, if any."""
    running: deque[tuple[Task, Future]] = deque()
    with ProcessPoolExecutor(workers, mp_context=_context()) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < ahead:
                    running.append((waiting[0], pool.submit(measure, *waiting[0])))
                    waiting.popleft()
                row = running[0][1].result()
                running.popleft()
                yield row
        except BrokenProcessPool:
            pass
    return deque(task for task, _ in running)


def _context() -> BaseContext:
    """Not plain forks: torch has threads, and a fork with threads can hang. The server has none, and loads us once."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


# --- which of them to take -------------------------------------------------------------------------------------------


def score_of(row: dict) -> float:
    """The score of a measured photo; 0 for one too small to have any."""
    return quality.Quality(**{name: row[name] for name in PARTS}).score if PARTS[0] in row else 0.0


def select(found: list[Photo], rows: list[dict], min_side: int, folder: Path) -> tuple[list[int], list[dict]]:
    """Which photos stay, in the order found, and for every other one {"path", "reason"}.

    Of photos that show the same, the one with the best score stays, of equal ones the first.
    """
    dropped: dict[int, str] = {}
    first: dict[str, int] = {}
    shown = [relative_path(photo.path, folder) for photo in found]
    for i, row in enumerate(rows):
        if "error" in row:
            dropped[i] = f"unreadable: {row['error']}"
        elif min(row["width"], row["height"]) < min_side:
            dropped[i] = f"too small: {row['width']}x{row['height']}, wanted {min_side} px a side"
        elif (twin := first.setdefault(row["sha256"], i)) != i:
            dropped[i] = f"exact duplicate: of {shown[twin]}"
    best_first = sorted((i for i in range(len(rows)) if i not in dropped), key=lambda i: -score_of(rows[i]))
    near = find_near_duplicates([int(rows[i]["hash"], 16) for i in best_first])
    dropped |= {best_first[i]: f"near duplicate: of {shown[best_first[kept]]}" for i, kept in near.items()}
    stay = [i for i in range(len(rows)) if i not in dropped]
    return stay, [{"path": shown[i], "source": found[i].source, "reason": dropped[i]} for i in sorted(dropped)]


def manifest_row(photo: Photo, row: dict, folder: Path, licence: str | None) -> dict[str, Any]:
    """A photo's row of the manifest in `folder`."""
    return {
        "path": relative_path(photo.path, folder),
        "sha256": row["sha256"],
        "width": row["width"],
        "height": row["height"],
        "licence": licence or photo.licence,
        "source": photo.source,
        "score": round(score_of(row), 4),
        **{name: round(row[name], 4) if name in row else None for name in PARTS},
        "caption": photo.caption,
    }


def count_reasons(dropped: list[dict]) -> dict[str, int]:
    """How many photos each kind of reason cost."""
    return dict(sorted(Counter(row["reason"].split(":")[0] for row in dropped).items()))
