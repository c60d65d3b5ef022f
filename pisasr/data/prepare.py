"""Before training, from found photos to a set: measure each, drop what is broken, small or a copy,
rank the rest.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from hashlib import sha256
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pisasr.data import quality
from pisasr.data.sources import Photo, relative_path
from pisasr.errors import explain
from pisasr.files import Journal
from pisasr.pictures.folders import cannot_open
from pisasr.pictures.images import open_image, split

PARTS = tuple(quality.CURVES)

# Of the hash. Our own twenty lines and not imagehash's phash: that brings SciPy and PyWavelets.
MAX_DISTANCE = 40  # of 255 bits. Of 469 tiles of 40 photos no two are nearer than 86; half the size moves about 2 bits
SIDE, KEPT = 64, 16
BAND = 16  # bits

# --- what is known of a file ----------------------------------------------------------------------


Task = tuple[Path, dict | None]  # a photo, and what was known of it before


def stamp(path: Path) -> dict[str, int | None]:
    """Size and time of change, by which a file is taken for the one that was measured before."""
    try:
        status = path.stat()
    except OSError:
        return {"bytes": None, "mtime_ns": None}
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def measure_photo(path: Path, known: dict | None = None) -> dict[str, Any]:
    """What a file is: its sha256, its size upright, its hash and its quality, or the "error" that
    kept it from us.

    `known`, an earlier answer, is kept where the bytes are the same.
    """
    row = {"path": str(path), "version": quality.VERSION, **stamp(path)}
    if reason := cannot_open(path):
        return row | {"error": reason}
    try:
        digest = sha256(path.read_bytes()).hexdigest()
        if known and known.get("sha256") == digest:
            return known | row
        rgb = split(open_image(path))[0]
        row |= {
            "sha256": digest,
            "width": rgb.width,
            "height": rgb.height,
            "hash": f"{perceptual_hash(rgb):064x}",
        }
        if min(rgb.size) >= quality.MIN_SIDE:
            row |= asdict(quality.measure(np.asarray(rgb.convert("L"))))
    except Exception as error:  # whatever a file does to its decoder, the others wait
        row["error"] = explain(error)
    return row


def measure_photos(
    photos: Iterable[Path], journal: Journal, workers: int
) -> Iterator[dict[str, Any]]:
    """The row of every photo, in order: from the journal where the file is the same, else measured
    and written there.

    What could not be read is tried again.
    """
    known = {row["path"]: row for row in journal.rows() if _is_whole(row)}
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


def _is_whole(row: dict[str, Any]) -> bool:
    """Whether a row of the journal is what `measure_photo` answers, of a photo that it could
    read.
    """
    numbers = ["bytes", "mtime_ns", "width", "height"]
    if (
        all(isinstance(row.get(side), int) for side in numbers)
        and min(row["width"], row["height"]) >= quality.MIN_SIDE
    ):
        numbers += [field.name for field in fields(quality.Quality)]
    texts = {"path": r".+", "sha256": r"[0-9a-f]{64}", "hash": r"[0-9a-f]{64}"}
    return (
        row.get("version") == quality.VERSION
        and all(isinstance(row.get(name), int | float) for name in numbers)
        and all(re.fullmatch(form, str(row.get(name)), re.DOTALL) for name, form in texts.items())
    )


def _is_current(row: dict | None, path: Path) -> bool:
    return row is not None and {key: row[key] for key in ("bytes", "mtime_ns")} == stamp(path)


def map_photos(
    tasks: list[Task], workers: int, measure: Callable[[Path, dict | None], dict] | None = None
) -> Iterator[dict[str, Any]]:
    """`measure_photo` of each task, in order, over processes. One that dies costs the photo it died
    of, not the run.
    """
    measure = measure or measure_photo
    if workers <= 1:
        yield from (measure(*task) for task in tasks)
        return
    place = 0
    while place < len(tasks):
        with ProcessPoolExecutor(workers, mp_context=_context()) as pool:
            try:
                while part := tasks[place : place + 8 * workers]:
                    rows = list(pool.map(measure, *zip(*part, strict=True)))
                    place += len(part)
                    yield from rows
            except (
                BrokenProcessPool
            ):  # of which of them? Each is asked again, in a process of its own
                place += len(part)
                yield from (_measure_alone(*task, measure) for task in part)


def _measure_alone(
    path: Path, known: dict | None, measure: Callable[[Path, dict | None], dict]
) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=_context()) as pool:
        try:
            return pool.submit(measure, path, known).result()
        except BrokenProcessPool:
            return {
                "path": str(path),
                "version": quality.VERSION,
                **stamp(path),
                "error": "its reader died of it",
            }


def _context() -> BaseContext:
    """Not plain forks: torch has threads, and a fork with threads can hang. The server has none,
    and loads us once.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


# --- which of them to take ------------------------------------------------------------------------


def perceptual_hash(picture: Image.Image) -> int:
    """255 bits: which of the 16 x 16 lowest frequencies of the picture, shrunk to 64 x 64, are
    above their median.

    It hardly changes under compression, scaling and light. A mirrored or turned copy has another
    hash: for training it is another picture. Low frequencies come first.
    """
    box = min(picture.size) >= SIDE
    small = picture.convert("L").resize(
        (SIDE, SIDE), Image.Resampling.BOX if box else Image.Resampling.BICUBIC
    )
    k = np.arange(SIDE)
    cosines = np.cos(np.pi * (k[None] + 0.5) * k[:KEPT, None] / SIDE)
    spectrum = (cosines @ np.asarray(small, np.float64) @ cosines.T).ravel()
    order = np.argsort(np.add.outer(k[:KEPT], k[:KEPT]).ravel(), kind="stable")[
        1:
    ]  # without the mean
    low_first = spectrum[order]
    return sum(1 << i for i, above in enumerate(low_first > np.median(low_first)) if above)


def find_near_duplicates(hashes: Sequence[int], max_distance: int = MAX_DISTANCE) -> dict[int, int]:
    """Which places show the same as an earlier one that stays: {place: the earlier place}. Put the
    best photos first.

    Only hashes that share one of sixteen bands of 16 bits are compared, so the time grows about
    linearly with their number; of pairs at distance 20 this misses fewer than one in a hundred even
    when any bit may differ, and those that differ little differ in the high frequencies.
    """
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    near = {}
    for place, value in enumerate(hashes):
        bands = [(i, value >> i & 0xFFFF) for i in range(0, KEPT * KEPT, BAND)]
        rivals = sorted({rival for band in bands for rival in buckets[band]})
        same = next(
            (rival for rival in rivals if (hashes[rival] ^ value).bit_count() <= max_distance), None
        )
        if same is None:
            for band in bands:
                buckets[band].append(place)
        else:
            near[place] = same
    return near


def score_of(row: dict) -> float:
    """The score of a measured photo; 0 for one too small to have any."""
    return quality.Quality(**{name: row[name] for name in PARTS}).score if PARTS[0] in row else 0.0


def select(
    found: list[Photo], rows: list[dict], min_side: int, folder: Path
) -> tuple[list[int], list[dict]]:
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
    best_first = sorted(
        (i for i in range(len(rows)) if i not in dropped), key=lambda i: -score_of(rows[i])
    )
    near = find_near_duplicates([int(rows[i]["hash"], 16) for i in best_first])
    dropped |= {
        best_first[i]: f"near duplicate: of {shown[best_first[kept]]}" for i, kept in near.items()
    }
    stay = [i for i in range(len(rows)) if i not in dropped]
    return stay, [
        {"path": shown[i], "source": found[i].source, "reason": dropped[i]} for i in sorted(dropped)
    ]


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
