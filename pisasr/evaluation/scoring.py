"""Score, second stop: every picture of a set, every method, every metric; a kill costs the picture at hand.

What is done lies in FOLDER/rows-N.jsonl, a journal per process and a row per picture of the set, under a key that holds
everything the numbers depend on. A later run with the same keys takes them over; the folder goes when all is written.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pisasr.evaluation.metrics import Scorer
from pisasr.evaluation.pairs import Example
from pisasr.evaluation.processes import Processes
from pisasr.evaluation.scorers import Panel
from pisasr.files import Journal
from pisasr.pictures.folders import read_picture

Row = dict[str, Any]  # method, name, then a number per metric

# The pictures of one example: (method, uint8 [H, W, 3])
Pictures = Callable[[Example], Iterable[tuple[str, np.ndarray]]]

SECONDS_BETWEEN_LINES = 20  # of progress in a log file; short runs have none there
TRUTH = ""  # among the methods, whose features are the true picture's


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
    for any number of processes and however often the run was killed. OSError when the disk has no room for the journal.
    """
    keys, done = processes.once(lambda: ([_key(e, fingerprint) for e in examples], set(_read_journals(folder))))
    waiting = [(key, example) for key, example in zip(keys, examples, strict=True) if key not in done]
    share = processes.split(waiting)
    if processes.is_first and len(share) < len(examples):
        others = f", {processes.count} processes" if processes.count > 1 else ""
        print(f"{label}: {len(share)} of {len(examples)} pictures to do here{others}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / f"rows-{processes.rank}.jsonl")
    seldom = 0 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    silent = not processes.is_first
    for key, example in tqdm(share, label, unit="picture", disable=silent, delay=seldom, mininterval=seldom or 0.1):
        journal.append({"key": key, **_score_example(example, panel, pictures)})
    journal.sync()
    processes.wait()
    if not processes.is_first:
        return None
    rows = _read_journals(folder)
    return _merge([rows[key] for key in keys], [example.name for example in examples])


def _key(example: Example, fingerprint: str) -> str:
    digest = hashlib.sha256(json.dumps([fingerprint, example.name, list(example.sr)]).encode())
    for path in [*example.sr.values(), example.hq, example.lq]:
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path else b"none")
    return digest.hexdigest()


def _read_journals(folder: Path) -> dict[str, Row]:
    rows = [row for path in sorted(folder.glob("rows-*.jsonl")) for row in Journal(path).rows()]
    return {row["key"]: row for row in rows if "key" in row}


def _score_example(example: Example, panel: Panel, pictures: Pictures) -> Row:
    """One row of the journal: method -> metric -> number, and features as text."""
    hq = read_picture(example.hq) if example.hq else None
    lq = read_picture(example.lq) if example.lq else None
    row: Row = {"scores": {}, "checks": {}, "features": {}, "faults": []}
    if hq is not None and panel.extractors:
        row["features"][TRUTH] = {name: _pack(extract(hq)) for name, extract in panel.extractors.items()}
    for method, sr in pictures(example):
        where = f"{method}, {example.name}"
        row["scores"][method] = _ask_all(panel.scorers, (sr, hq, lq), where, row["faults"])
        row["checks"][method] = _ask_all(panel.checks, (sr, hq, lq), f"{where}, check", row["faults"])
        row["features"][method] = {name: _pack(extract(sr)) for name, extract in panel.extractors.items()}
    return row


def _ask_all(scorers: Mapping[str, Scorer], pictures: tuple, where: str, faults: list[str]) -> dict[str, float]:
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


def _merge(found: list[Row], names: list[str]) -> Scores:
    """The journal's rows, a picture each, as rows of a method and a picture each."""
    scores = Scores(faults=[fault for row in found for fault in row["faults"]])
    for method in found[0]["scores"] if found else ():
        for name, row in zip(names, found, strict=True):
            scores.rows.append({"method": method, "name": name, **row["scores"][method]})
            scores.checks.append({"method": method, "name": name, **row["checks"][method]})
    for method, vectors in (found[0]["features"] if found else {}).items():
        for metric in vectors:
            stacked = np.stack([_unpack(row["features"][method][metric]) for row in found])
            scores.features.setdefault(metric, {})[method] = stacked
    return scores
