"""Score, third stop: scores -> a summary, one dict ready for JSON; and last stop: everything that
it is shown as.

A mean is over all pictures or not given at all; beside it stand how sure it is and the protocol it
was taken by.
"""

import csv
import io
import json
import math
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pisasr.errors import PisasrError
from pisasr.evaluation import tables
from pisasr.evaluation.fid import frechet_distance
from pisasr.evaluation.figure import draw_sheets, pick_examples
from pisasr.evaluation.metrics import METRICS, STABLESR, Protocol
from pisasr.evaluation.pairs import Example, Pairing
from pisasr.evaluation.plots import draw_plots
from pisasr.evaluation.scoring import TRUTH, Scores, describe
from pisasr.evaluation.statistics import bootstrap_intervals, sign_flip_p
from pisasr.evaluation.surface import Grid
from pisasr.files import write_whole

# What an earlier run may have left in the output and this one would not write over.
OWN_FILES = (
    "published.md",
    "surface.csv",
    "sheets/sheet_[0-9][0-9].png",
    "plots/perception_distortion.*",
)

Columns = dict[str, dict[str, list[float]]]  # method -> metric -> a number per picture


@dataclass(frozen=True)
class Settings:
    """What holds for every set of a run. metrics: all that was asked; scorers: what can be had of
    it; missing: what the others lack. paired: two methods, none for the first two. plots: a file
    ending, "" for none. sheets: how many pictures the comparison sheets show. seconds: method ->
    median per picture. made_by: what else produced the pictures, in words for the notes."""

    metrics: Sequence[str]
    protocol: Protocol = STABLESR
    scorers: Mapping[str, Any] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    paired: Sequence[str] = ()
    plots: str = "png"
    sheets: int = 8
    grid: Grid | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)


def summarise(
    scores: Scores, settings: Settings, name: str, pairing: Pairing, paired: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything that is needed to judge or repeat the numbers. paired: two methods to compare
    picture by picture.

    A mean is over all pictures of the table or it is not given: one NaN makes it null, and the
    pictures are named. Equal pictures score what the protocol says (80 dB, or infinitely many) and
    are named, too.
    """
    names = list(dict.fromkeys(row["name"] for row in scores.rows))
    single = [metric for metric in settings.scorers if METRICS[metric].needs != "hq_set"]
    columns: Columns = {}
    for row in scores.rows:
        of_method = columns.setdefault(row["method"], {metric: [] for metric in single})
        for metric in single:
            of_method[metric].append(row[metric])
    protocol = settings.protocol
    methods: dict[str, dict[str, Any]] = {
        method: {
            metric: _summarise(metric, column, names, protocol) for metric, column in found.items()
        }
        for method, found in columns.items()
    }
    _add_intervals(methods, columns)
    for metric, features in scores.features.items():
        for method, vectors in features.items():
            if method != TRUTH:
                score = frechet_distance(vectors, features[TRUTH])
                methods[method][metric] = {
                    "mean": score if math.isfinite(score) else None,
                    "count": len(vectors),
                }
    for method, seconds in settings.seconds.items():
        methods[method]["seconds"] = seconds
    summary = {
        "set": name,
        "set_check": pairing.check,
        "pictures": len(names),
        "pictures_before": max(pairing.total, len(names)),
        "methods": methods,
        "paired": [_compare(columns, paired[0], paired[1], metric) for metric in single]
        if paired
        else [],
        "protocol": {
            "name": protocol.name,
            "source": protocol.source,
            "border_px": protocol.border_px,
            "pictures": "8-bit files as stored, RGB, alpha dropped, no colour profile applied",
            "pairing": "by name",
            "average": "mean of the per-picture scores",
            "interval": "95 % percentile bootstrap over pictures, 10,000 resamples, seed 0",
            "metrics": {name: describe(name, protocol) for name in settings.metrics},
            "higher_is_better": {name: METRICS[name].higher_is_better for name in settings.metrics},
        },
        "not_available": dict(settings.missing),
        "left_out": list(pairing.problems),
        "faults": list(scores.faults),
        "made_by": dict(settings.made_by),
        "versions": installed_versions(),
    }
    if settings.grid:
        settings.grid.add_to(summary)
    return summary


def _summarise(
    metric: str, column: Sequence[float], names: Sequence[str], protocol: Protocol
) -> dict[str, Any]:
    by_name = dict(zip(names, column, strict=True))
    equal = [
        n
        for n, score in by_name.items()
        if metric == "psnr" and score >= protocol.psnr_of_equals - 1e-9
    ]
    nan = [name for name, score in by_name.items() if math.isnan(score)]
    finite = all(math.isfinite(score) for score in column)
    found = {"mean": math.fsum(column) / len(column) if finite else None, "count": len(column)}
    return found | ({"not_a_number": nan} if nan else {}) | ({"identical": equal} if equal else {})


def _add_intervals(methods: dict[str, dict[str, Any]], columns: Columns) -> None:
    whole = [
        (method, m)
        for method, found in methods.items()
        for m, c in found.items()
        if c["mean"] is not None
    ]
    if (
        not whole or len(columns[whole[0][0]][whole[0][1]]) < 2
    ):  # one picture says nothing about others
        return
    intervals = bootstrap_intervals(
        np.array([columns[method][metric] for method, metric in whole]).T
    )
    for (method, metric), interval in zip(whole, intervals, strict=True):
        methods[method][metric]["interval"] = _ten_digits(interval)


def _compare(columns: Columns, first: str, second: str, metric: str) -> dict[str, Any]:
    """What `first` has more than `second`, over the pictures on which both have a finite number,
    which are counted.

    The mean difference and its interval, on how many pictures each is better (in the metric's
    direction), and the two-sided p of the sign-flip test.
    """
    both = np.array([columns[first][metric], columns[second][metric]])
    both = both[:, np.isfinite(both).all(axis=0)]
    row = {"first": first, "second": second, "metric": metric, "count": both.shape[1]}
    if both.shape[1] == 0:
        return row
    differences = both[0] - both[1]
    gains = differences if METRICS[metric].higher_is_better else -differences
    interval = _ten_digits(bootstrap_intervals(differences[:, None])[0])
    return {
        **row,
        "difference": float(differences.mean()),
        "first_better": int(np.sum(gains > 0)),
        "second_better": int(np.sum(gains < 0)),
        "p": sign_flip_p(differences),
        "interval": interval,
    }


def _ten_digits(interval: Iterable[float]) -> list[float]:
    return [float(f"{end:.10g}") for end in interval]


def installed_versions() -> dict[str, str]:
    """What numbers can depend on: Python and the packages that are there."""
    found = {"python": platform.python_version()}
    for package in ("pisasr", "numpy", "pillow", "torch", "pyiqa", "torchmetrics"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# --- files ----------------------------------------------------------------------------------------


def write_report(
    output: Path,
    examples: Sequence[Example],
    scores: Scores,
    summary: dict[str, Any],
    settings: Settings,
) -> None:
    """Everything that a set's summary is shown as, in place of what an earlier run left there."""
    for old in (path for pattern in OWN_FILES for path in output.glob(pattern)):
        old.unlink()
    heads = ["method", "name", *summary["protocol"]["metrics"]]
    write_whole(output / "per_image.csv", _to_csv(heads, scores.rows))
    write_whole(output / "summary.json", to_json(summary))
    table = tables.build_table(summary)
    write_whole(output / "table.md", tables.to_markdown([table]) + tables.surface_markdown(summary))
    write_whole(output / "table.tex", tables.to_latex([table]))
    if surface := summary.get("surface"):
        rows: list[dict[str, Any]] = []
        for (i, pix), (j, sem) in product(
            enumerate(surface["lambdas_pix"]), enumerate(surface["lambdas_sem"])
        ):
            known = {
                metric: means[i][j]
                for metric, means in surface["maps"].items()
                if means[i][j] is not None
            }
            rows.append({"lambda_pix": pix, "lambda_sem": sem, **known})
        write_whole(
            output / "surface.csv", _to_csv(["lambda_pix", "lambda_sem", *surface["maps"]], rows)
        )
    if settings.plots:
        try:
            draw_plots(output / "plots", summary, settings.plots)
        except PisasrError as error:  # without matplotlib the tables are whole all the same
            print(f"no plots: {error}", file=sys.stderr)
    if settings.sheets and examples and examples[0].sr:
        _draw_sheets(output / "sheets", examples, scores, settings.sheets)


def to_json(content: dict[str, Any]) -> str:
    """JSON as it is written to disk, for people to read."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _to_csv(heads: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """A row each; "n/a" where a column can't be had."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, heads, restval="n/a", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _draw_sheets(folder: Path, examples: Sequence[Example], scores: Scores, count: int) -> None:
    """sheets/sheet_01.png ...: the pictures on which the methods of the folders differ most, where
    they do.
    """
    decimals = METRICS["psnr"].decimals
    captions = {
        (row["method"], row["name"]): f"{row['psnr']:.{decimals}f} dB"
        for row in scores.rows
        if "psnr" in row
    }
    folder.mkdir(parents=True, exist_ok=True)
    for number, sheet in enumerate(
        draw_sheets(pick_examples(examples, count), captions=captions), start=1
    ):
        sheet.save(folder / f"sheet_{number:02d}.png")
