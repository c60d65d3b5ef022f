"""From found photos to a training set: measure each, drop what is broken, small or there already, rank the rest."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pisasr.data import quality
from pisasr.data.duplicates import find_near_duplicates, perceptual_hash
from pisasr.data.manifest import Journal, relative_path
from pisasr.data.sources import Found
from pisasr.errors import PisasrError, explain
from pisasr.pictures.images import open_image, split

PARTS = tuple(quality.CURVES)

# --- what is known of a file -----------------------------------------------------------------------------------------


def stamp(path: Path) -> dict[str, int | None]:
    """Size and time of change, by which a file is taken for the one that was measured before."""
    try:
        status = os.stat(path)
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

    What could not be read is tried again. `journal` is open.
    """
    known = {row["path"]: row for row in journal.read() if "path" in row and row.get("version") == quality.VERSION}
    photos = [path.absolute() for path in photos]
    fresh = [path for path in photos if not _is_current(known.get(str(path)), path)]
    measured = map_photos([(path, known.get(str(path))) for path in fresh], workers)
    waiting = set(fresh)
    for path in photos:
        if path in waiting:
            row = next(measured)
            journal.add(row)
        else:
            row = known[str(path)]
        yield row


def _is_current(row: dict | None, path: Path) -> bool:
    return bool(row) and "error" not in row and {key: row[key] for key in ("bytes", "mtime_ns")} == stamp(path)


def map_photos(
    tasks: list[tuple[Path, dict | None]], workers: int, measure: Callable[..., dict] | None = None
) -> Iterator[dict[str, Any]]:
    """`measure_photo` of each task, in order, over processes. One that dies costs the photo it died of, not the run."""
    measure = measure or measure_photo
    if workers <= 1:
        yield from (measure(*task) for task in tasks)
        return
    waiting = deque(tasks)
    while waiting:
        running: deque = deque()
        with _pool(workers) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < 4 * workers:
                        running.append((waiting[0], pool.submit(measure, *waiting[0])))
                        waiting.popleft()
                    row = running[0][1].result()
                    running.popleft()
                    yield row
            except BrokenProcessPool:
                pass
        yield from (_measure_alone(task, measure) for task, _ in running)


def _measure_alone(task: tuple[Path, dict | None], measure: Callable[..., dict]) -> dict[str, Any]:
    with _pool(1) as pool:
        try:
            return pool.submit(measure, *task).result()
        except BrokenProcessPool:
            return {
                "path": str(task[0]),
                "version": quality.VERSION,
                **stamp(task[0]),
                "error": "its reader died of it",
            }


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked: torch has threads, and a fork with threads can hang.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


# --- which of them to take -------------------------------------------------------------------------------------------


def score_of(row: dict) -> float:
    """The score of a measured photo; 0 for one too small to have any."""
    return quality.Quality(**{name: row[name] for name in PARTS}).score if PARTS[0] in row else 0.0


def select(found: list[Found], rows: list[dict], min_side: int, folder: Path) -> tuple[list[int], list[dict]]:
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


def manifest_row(found: Found, row: dict, folder: Path, licence: str | None) -> dict[str, Any]:
    """A photo's row of the manifest in `folder`."""
    return {
        "path": relative_path(found.path, folder),
        "sha256": row["sha256"],
        "width": row["width"],
        "height": row["height"],
        "licence": licence or found.licence,
        "source": found.source,
        "score": round(score_of(row), 4),
        **{name: round(row[name], 4) if name in row else None for name in PARTS},
        "caption": found.caption,
    }


def count_reasons(dropped: list[dict]) -> dict[str, int]:
    """How many photos each kind of reason cost."""
    return dict(sorted(Counter(row["reason"].split(":")[0] for row in dropped).items()))


# --- a metric of somebody else ---------------------------------------------------------------------------------------


def load_metric(name: str) -> Any:
    """A no-reference metric of pyiqa. PisasrError, one line, without pyiqa, the metric or its weights."""
    try:
        import pyiqa
        import torch

        metric = pyiqa.create_metric(name, device="cuda" if torch.cuda.is_available() else "cpu")
    except ModuleNotFoundError as error:
        raise PisasrError(
            f"--metric {name} needs {error.name} (pip install 'pisasr[pyiqa]'); going on without."
        ) from None
    except Exception as error:  # an unknown name, or weights that can't be downloaded: pyiqa raises what it likes
        raise PisasrError(f"--metric {name} can't be had ({explain(error)}); going on without.") from None
    if metric.metric_mode != "NR":
        raise PisasrError(f"--metric {name} needs a reference; going on without.")
    return metric


def add_metric(rows: list[dict], values: list[float | None], name: str, lower_better: bool) -> None:
    """Write a metric's values into rows of a manifest, and let half of the score be the photo's rank by it, 0 to 1.

    Photos that the metric could not be computed of rank last.
    """
    goodness = [-np.inf if v is None else (-v if lower_better else v) for v in values]
    below = np.searchsorted(np.sort(goodness), goodness, side="left") / max(1, len(rows) - 1)
    for row, value, rank in zip(rows, values, below, strict=True):
        row[name] = value
        row["score"] = round((row["score"] + float(rank)) / 2, 4)
