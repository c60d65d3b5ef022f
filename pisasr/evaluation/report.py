"""Scores -> a summary: means over all pictures or none at all, how sure they are, and the protocol they were taken by.

The summary is one dict, ready for JSON; tables and plots are drawn from it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from pisasr.evaluation.metrics import METRICS, STABLESR, Protocol
from pisasr.evaluation.scorers import Panel, describe
from pisasr.evaluation.scoring import TRUTH, Scores
from pisasr.evaluation.statistics import bootstrap_intervals, compare_paired
from pisasr.files import write_whole


@dataclass(frozen=True)
class Circumstances:
    """What a reader must know beside the numbers.

    set_name: of the test set, "" if it has none. set_check: what was found out about its files. left_out: one line for
    each thing that kept a picture out. total: how many pictures there were before. paired: methods to compare with each
    other. seconds: method -> median per picture. made_by: what else produced the pictures.
    """

    metrics: Sequence[str]
    protocol: Protocol = STABLESR
    set_name: str = ""
    set_check: str = ""
    left_out: Sequence[str] = ()
    total: int = 0
    paired: Sequence[tuple[str, str]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)


def summarise(scores: Scores, panel: Panel, around: Circumstances) -> dict:
    """Everything that is needed to judge or repeat the numbers.

    A mean is over all pictures of the table or it is not given: one NaN makes it null, and the pictures are named.
    Equal pictures score what the protocol says (80 dB, or infinitely many) and are named, too.
    """
    names = list(dict.fromkeys(row["name"] for row in scores.rows))
    methods = {method: {} for method in dict.fromkeys(row["method"] for row in scores.rows)}
    for row in scores.rows:
        for metric in panel.scorers:
            methods[row["method"]].setdefault(metric, []).append(row[metric])
    summarised = _summarise_columns(methods, names, around.protocol)
    _add_set_scores(summarised, scores)
    for method, seconds in around.seconds.items():
        summarised[method]["seconds"] = seconds
    return {
        "set": around.set_name,
        "set_check": around.set_check,
        "pictures": len(names),
        "pictures_before": max(around.total, len(names)),
        "methods": summarised,
        "paired": [_compare(methods, *pair, metric) for pair in around.paired for metric in panel.scorers],
        "protocol": _describe_protocol(around),
        "cross_check": _largest_differences(scores, panel),
        "not_available": dict(panel.missing),
        "left_out": list(around.left_out),
        "faults": scores.faults,
        "made_by": dict(around.made_by),
        "versions": installed_versions(),
    }


def _summarise_columns(methods: dict[str, dict[str, list[float]]], names: list[str], protocol: Protocol) -> dict:
    """method -> metric -> mean, count, interval; and the names of what is no number, or is equal to the truth."""
    found = {method: {m: _summarise(m, column, names, protocol) for m, column in columns.items()}
             for method, columns in methods.items()}  # fmt: skip
    whole = [(method, m) for method, columns in found.items() for m, c in columns.items() if c["mean"] is not None]
    if whole and len(names) > 1:  # one picture says nothing about others
        intervals = bootstrap_intervals(np.array([methods[method][metric] for method, metric in whole]).T)
        for (method, metric), interval in zip(whole, intervals, strict=True):
            found[method][metric]["interval"] = [float(f"{end:.10g}") for end in interval]
    return found


def _summarise(metric: str, column: list[float], names: list[str], protocol: Protocol) -> dict:
    by_name = dict(zip(names, column, strict=True))
    equal = [n for n, score in by_name.items() if metric == "psnr" and score >= protocol.psnr_of_equals - 1e-9]
    nan = [name for name, score in by_name.items() if math.isnan(score)]
    finite = all(math.isfinite(score) for score in column)
    found = {"mean": math.fsum(column) / len(column) if finite else None, "count": len(column)}
    return found | ({"not_a_number": nan} if nan else {}) | ({"identical": equal} if equal else {})


def _add_set_scores(summarised: dict, scores: Scores) -> None:
    from pisasr.evaluation.fid import frechet_distance

    for metric, features in scores.features.items():
        for method, vectors in features.items():
            if method != TRUTH:
                score = frechet_distance(vectors, features[TRUTH])
                mean = score if math.isfinite(score) else None
                summarised[method][metric] = {"mean": mean, "count": len(vectors)}


def _compare(methods: dict[str, dict[str, list[float]]], first: str, second: str, metric: str) -> dict:
    """One row of the paired comparison: over the pictures on which both have a finite number, which are counted."""
    both = np.array([methods[first][metric], methods[second][metric]])
    both = both[:, np.isfinite(both).all(axis=0)]
    row = {"first": first, "second": second, "metric": metric, "count": both.shape[1]}
    if both.shape[1] == 0:
        return row
    found = compare_paired(*both, METRICS[metric].higher_is_better)
    interval = [float(f"{end:.10g}") for end in (found.low, found.high)]
    return {**row, **found._asdict(), "interval": interval}


def _describe_protocol(around: Circumstances) -> dict:
    protocol = around.protocol
    return {
        "name": protocol.name,
        "source": protocol.source,
        "border_px": protocol.border_px,
        "pictures": "8-bit files as stored, RGB, alpha dropped, no colour profile applied",
        "pairing": "by name",
        "average": "mean of the per-picture scores",
        "interval": "95 % percentile bootstrap over pictures, 10,000 resamples, seed 0",
        "metrics": {name: describe(name, protocol) for name in around.metrics},
        "higher_is_better": {name: METRICS[name].higher_is_better for name in around.metrics},
    }


def _largest_differences(scores: Scores, panel: Panel) -> dict:
    """metric -> the largest difference to the other library's number, and where."""
    found = {}
    for metric in panel.checks:
        pairs = [(abs(a[metric] - b[metric]), a) for a, b in zip(scores.rows, scores.checks, strict=True)]
        pairs = [(difference, row) for difference, row in pairs if math.isfinite(difference)]
        if pairs:
            difference, row = max(pairs, key=lambda pair: pair[0])
            found[metric] = {"largest": difference, "at": f"{row['method']}, {row['name']}", "count": len(pairs)}
    return found


def write_scores(folder: Path, scores: Scores, summary: dict) -> None:
    """per_image.csv (method, name, a column per metric; "n/a" where it can't be had) and summary.json."""
    text = io.StringIO(newline="")
    fields = ["method", "name", *summary["protocol"]["metrics"]]
    writer = csv.DictWriter(text, fields, restval="n/a", lineterminator="\n")
    writer.writeheader()
    writer.writerows(scores.rows)
    write_whole(folder / "per_image.csv", text.getvalue())
    write_whole(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def installed_versions() -> dict[str, str]:
    """What numbers can depend on: Python and the packages that are there."""
    found = {"python": platform.python_version()}
    for package in ("pisasr", "numpy", "pillow", "torch", "pyiqa", "torchmetrics"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
