"""Score, second stop: what every picture is asked, and the loop that asks it; a kill costs the picture at hand.

A metric that can't be had costs its own column, no other. What is done lies in FOLDER/rows-N.jsonl, a journal per
process and a row per picture of the set, under a key that holds everything the numbers depend on. A later run with the
same keys takes them over; the folder goes when all is written.
"""

import base64
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pisasr.evaluation.deep import NETWORKS
from pisasr.evaluation.lookup import MetricUnavailable
from pisasr.evaluation.metrics import METRICS, STABLESR, Extractor, Protocol, Scorer, Setup
from pisasr.evaluation.pairs import Example
from pisasr.evaluation.processes import Processes
from pisasr.files import Journal
from pisasr.pictures.folders import read_picture

Row = dict[str, Any]  # method, name, then a number per metric

# The pictures of one example: (method, uint8 [H, W, 3])
Pictures = Callable[[Example], Iterable[tuple[str, np.ndarray]]]

SECONDS_BETWEEN_LINES = 20  # of progress in a log file; short runs have none there
TRUTH = ""  # among the methods, whose features are the true picture's


# --- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """What every picture is asked. scorers: metric -> number. extractors: metrics of whole sets -> features.
    missing: metric -> the line that says what it lacks here."""

    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    extractors: Mapping[str, Extractor] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def drop(self, why: Mapping[str, str]) -> "Panel":
        """The panel without these metrics, for a set that can't answer them."""
        scorers = {name: score for name, score in self.scorers.items() if name not in why}
        extractors = {name: extract for name, extract in self.extractors.items() if name not in why}
        return Panel(scorers, extractors, {**self.missing, **why})


def load_panel(
    metrics: Iterable[str], protocol: Protocol = STABLESR, weights: Path | None = None, device: str | None = None
) -> Panel:
    """Everything that can be asked here of these metrics. device: of networks; None for the GPU if there is one."""
    loaded, missing = load_scorers(metrics, protocol, weights, device)
    of_sets = {name: loaded.pop(name) for name in list(loaded) if METRICS[name].needs == "hq_set"}
    return Panel(loaded, of_sets, missing)


def load_scorers(
    names: Iterable[str], protocol: Protocol = STABLESR, weights: Path | None = None, device: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics that can run here, a Scorer each (an Extractor if it needs a set); for the others what they lack."""
    loaded, missing = {}, {}
    for name in names:
        try:
            loaded[name] = METRICS[name].load(name, Setup(protocol, weights, device))
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return loaded, missing


def describe(metric: str, protocol: Protocol) -> str:
    """The recipe of one column, with the library that computes it: what must stand beside its numbers."""
    recipe = protocol.describe(metric) if metric in ("psnr", "ssim") else METRICS[metric].recipe
    package, name = ("pyiqa", f" {NETWORKS[metric].name}") if metric in NETWORKS else (METRICS[metric].package, "")
    try:
        package = f"{package} {version(package)}"
    except PackageNotFoundError:
        pass
    return f"{recipe}; {package}{name}"


# --- the loop --------------------------------------------------------------------------------------------------------


@dataclass
class Scores:
    """What came of a set. rows: method, name, then a number per metric (NaN stays NaN), ordered by method, then name.

    features: metric -> method -> [pictures, d], TRUTH among the methods. faults: one line for each metric that failed
    on a picture, whose number is NaN.
    """

    rows: list[Row] = field(default_factory=list)
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
    """One row of the journal: method -> metric -> number, and features as text. A metric that fails costs a line."""
    hq, lq = (read_picture(path) if path else None for path in (example.hq, example.lq))
    row: Row = {"scores": {}, "features": {}, "faults": []}
    if hq is not None and panel.extractors:
        row["features"][TRUTH] = {name: _pack(extract(hq)) for name, extract in panel.extractors.items()}
    for method, sr in pictures(example):
        scores = row["scores"][method] = {}
        for name, score in panel.scorers.items():
            try:
                scores[name] = score(sr, hq, lq)
            except Exception as error:
                scores[name], words = math.nan, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
                row["faults"].append(f"{method}, {example.name}: {name} failed ({words})")
        row["features"][method] = {name: _pack(extract(sr)) for name, extract in panel.extractors.items()}
    return row


def _pack(features: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(features, np.float32).tobytes()).decode()


def _merge(found: list[Row], names: list[str]) -> Scores:
    """The journal's rows, a picture each, as rows of a method and a picture each."""
    scores = Scores(faults=[fault for row in found for fault in row["faults"]])
    for method in found[0]["scores"] if found else ():
        for name, row in zip(names, found, strict=True):
            scores.rows.append({"method": method, "name": name, **row["scores"][method]})
    for method, vectors in (found[0]["features"] if found else {}).items():
        for metric in vectors:
            texts = [base64.b64decode(row["features"][method][metric]) for row in found]
            scores.features.setdefault(metric, {})[method] = np.stack([np.frombuffer(t, np.float32) for t in texts])
    return scores
