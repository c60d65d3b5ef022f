"""The loop: every picture of a set, every method, every metric; kept on disk as it goes, so that a kill costs little.

What is done lies in FOLDER/rows-N.jsonl, a file per process and a line per picture of the set, under a key that holds
everything the numbers depend on. A later run with the same keys takes them over; the folder goes when all is written.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pisasr.evaluation.pairs import Example
from pisasr.evaluation.processes import Processes
from pisasr.evaluation.scorers import Panel
from pisasr.pictures.folders import read_picture

Row = dict[str, str | float]

# The pictures of one example: (method, uint8 [H, W, 3])
Pictures = Callable[[Example], Iterable[tuple[str, np.ndarray]]]

TRUTH = ""  # among the methods, whose features are the true picture's
SECONDS_BETWEEN_LINES = 20


@dataclass
class Scores:
    """What came of a set. rows: method, name, then a number per metric (NaN stays NaN), ordered by method, then name.

    checks: the same for another library's numbers. features: metric -> method -> [pictures, d], TRUTH among the
    methods. faults: one line for each metric that failed on a picture, whose number is NaN.
    """

    rows: list[Row] = field(default_factory=list)
    checks: list[Row] = field(default_factory=list)
    features: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def read_methods(example: Example) -> Iterator[tuple[str, np.ndarray]]:
    """The pictures that lie in the methods' folders."""
    for method, path in example.sr.items():
        yield method, read_picture(path)


def score_set(
    examples: Sequence[Example],
    panel: Panel,
    pictures: Pictures,
    folder: Path,
    fingerprint: str,
    processes: Processes,
    label: str = "scoring",
) -> Scores | None:
    """Score this process' share, wait for the others, and give the first process everything (the others None).

    fingerprint: what the numbers depend on beside the files: metrics, protocol, versions, model. The result is the same
    for any number of processes and however often the run was killed.
    """
    keys, done = processes.once(lambda: ([_key(e, fingerprint) for e in examples], set(_read_ledger(folder))))
    waiting = [(key, example) for key, example in zip(keys, examples, strict=True) if key not in done]
    share = processes.split(waiting)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"rows-{processes.rank}.jsonl", "a", encoding="utf-8") as ledger:
        ledger.write("\n")  # a kill may have left half a line
        for key, example in _with_progress(share, len(examples), processes, label):
            ledger.write(json.dumps({"key": key, **_score_example(example, panel, pictures)}) + "\n")
            ledger.flush()
    processes.wait()
    if not processes.is_first:
        return None
    records = _read_ledger(folder)
    return _merge([records[key] for key in keys], [example.name for example in examples])


def forget(folder: Path) -> None:
    """Drop what was kept for a run that is whole now."""
    shutil.rmtree(folder, ignore_errors=True)


def _key(example: Example, fingerprint: str) -> str:
    digest = hashlib.sha256(json.dumps([fingerprint, example.name, list(example.sr)]).encode())
    for path in [*example.sr.values(), example.hq, example.lq]:
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path else b"none")
    return digest.hexdigest()


def _read_ledger(folder: Path) -> dict[str, dict[str, Any]]:
    """key -> what was found; the half of a line that a kill left behind is passed over."""
    records = {}
    for path in sorted(folder.glob("rows-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
                records[record.pop("key")] = record
            except (ValueError, KeyError, AttributeError):
                continue
    return records


def _score_example(example: Example, panel: Panel, pictures: Pictures) -> dict[str, Any]:
    hq = read_picture(example.hq) if example.hq else None
    lq = read_picture(example.lq) if example.lq else None
    found: dict[str, Any] = {"scores": {}, "checks": {}, "features": {}, "faults": []}
    if hq is not None and panel.extractors:
        found["features"][TRUTH] = {name: _pack(extract(hq)) for name, extract in panel.extractors.items()}
    for method, sr in pictures(example):
        faults = found["faults"]
        found["scores"][method] = _ask_all(panel.scorers, (sr, hq, lq), f"{method}, {example.name}", faults)
        found["checks"][method] = _ask_all(panel.checks, (sr, hq, lq), f"{method}, {example.name}, check", faults)
        if panel.extractors:
            found["features"][method] = {name: _pack(extract(sr)) for name, extract in panel.extractors.items()}
    return found


def _ask_all(scorers: dict, pictures: tuple, where: str, faults: list[str]) -> dict[str, float]:
    """A number per metric; NaN and a line where one fails, so that no other is lost."""
    scores = {}
    for name, score in scorers.items():
        try:
            scores[name] = score(*pictures)
        except Exception as error:
            scores[name] = math.nan
            faults.append(f"{where}: {name} failed ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
    return scores


def _pack(features: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(features, np.float32).tobytes()).decode()


def _unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.float32)


def _merge(records: list[dict[str, Any]], names: list[str]) -> Scores:
    scores = Scores()
    for kind, rows in (("scores", scores.rows), ("checks", scores.checks)):
        for method in records[0][kind] if records else ():
            rows += [{"method": method, "name": n, **r[kind][method]} for n, r in zip(names, records, strict=True)]
    for method, found in (records[0]["features"] if records else {}).items():
        for metric in found:
            vectors = np.stack([_unpack(record["features"][method][metric]) for record in records])
            scores.features.setdefault(metric, {})[method] = vectors
    scores.faults = [fault for record in records for fault in record["faults"]]
    return scores


def _with_progress(share: Sequence, total: int, processes: Processes, label: str) -> Iterator:
    """The items, with a bar on a terminal, and elsewhere a line now and then; both say how long it will take."""
    if not processes.is_first:
        yield from share
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(share, label, unit="picture")
        return
    start = said = time.monotonic()
    if len(share) < total:
        others = f", {processes.count} processes" if processes.count > 1 else ""
        print(f"{label}: {len(share)} of {total} pictures to do here{others}", file=sys.stderr, flush=True)
    for done, item in enumerate(share):
        now = time.monotonic()
        if done and now - said > SECONDS_BETWEEN_LINES:
            left = (now - start) / done * (len(share) - done)
            print(f"{label}: {done}/{len(share)}, {_duration(left)} left", file=sys.stderr, flush=True)
            said = now
        yield item


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
