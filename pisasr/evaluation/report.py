"""Scores -> what a paper needs: a row per picture, means with their protocol, a table."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pisasr.evaluation.folders import Example, read_picture
from pisasr.evaluation.metrics import METRICS, PSNR_CEILING
from pisasr.evaluation.scorers import Scorer
from pisasr.files import write_whole

Row = dict[str, str | float]


def score_examples(examples: Iterable[Example], scorers: dict[str, Scorer]) -> list[Row]:
    """A row per method and picture: method, name, then one number per metric (NaN stays NaN)."""
    rows = {}
    for example in examples:
        hq = read_picture(example.hq) if example.hq else None
        lq = read_picture(example.lq) if example.lq else None
        for method, path in example.sr.items():
            sr = read_picture(path)
            scores = {name: score(sr, hq, lq) for name, score in scorers.items()}
            rows.setdefault(method, []).append({"method": method, "name": example.name, **scores})
    return [row for rows_of_method in rows.values() for row in rows_of_method]


def summarise(
    rows: list[Row],
    metrics: list[str],
    border: int,
    problems: list[str],
    missing: dict[str, str],
    whole: dict[str, dict[str, float]],
) -> dict:
    """Everything a reader needs to judge or repeat the numbers, ready for JSON.

    A mean is over all pictures of the table or it is not given: one NaN makes it null, and the pictures are named.
    Equal pictures score 80 dB by protocol and count like any other; they are named too. `whole` holds the scores of
    metrics that compare folders: metric -> method -> score.
    """
    names = {row["name"] for row in rows}
    methods = {
        method: {name: _summarise_column(rows, method, name) for name in metrics if name not in {*missing, *whole}}
        for method in dict.fromkeys(row["method"] for row in rows)
    }
    for metric, scores in whole.items():
        for method, score in scores.items():
            methods[method][metric] = {"mean": score, "count": len(names)}
    return {
        "pictures": len(names),
        "methods": methods,
        "protocol": {
            "border_px": border,
            "border_applies_to": [name for name in ("psnr", "ssim") if name in metrics],
            "pairing": "by name",
            "average": "mean of the per-picture scores",
            "metrics": {name: METRICS[name].protocol for name in metrics},
            "higher_is_better": {name: METRICS[name].higher_is_better for name in metrics},
        },
        "not_available": missing,
        "left_out": problems,
        "versions": _versions(),
    }


def _summarise_column(rows: list[Row], method: str, metric: str) -> dict:
    scores = {row["name"]: row[metric] for row in rows if row["method"] == method and metric in row}
    nan = [name for name, score in scores.items() if not math.isfinite(score)]
    column = {"mean": None if nan or not scores else sum(scores.values()) / len(scores), "count": len(scores)}
    column |= {"not_a_number": nan} if nan else {}
    if metric == "psnr" and (same := [name for name, score in scores.items() if score >= PSNR_CEILING - 1e-9]):
        column["identical"] = same
    return column


def render_table(summary: dict) -> str:
    """The means as Markdown, the recipe under them."""
    metrics = summary["protocol"]["metrics"]
    timed = any("seconds" in columns for columns in summary["methods"].values())
    arrows = {True: "↑", False: "↓"}
    heads = ["Method", *(f"{METRICS[name].label} {arrows[METRICS[name].higher_is_better]}" for name in metrics)]
    lines = [heads + ["s / picture"] * timed, ["---", *["---:"] * (len(heads) - 1 + timed)]]
    for method, columns in summary["methods"].items():
        cells = [_cell(name, columns.get(name)) for name in metrics]
        lines.append([method, *cells, *([_seconds(columns)] if timed else [])])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table}\n\n" + "\n".join(f"- {note}" for note in _notes(summary)) + "\n"


def _cell(metric: str, column: dict | None) -> str:
    if column is None:
        return "n/a"
    if column["mean"] is None:
        return f"nan ({len(column.get('not_a_number', []))} of {column['count']})"
    return f"{column['mean']:.{METRICS[metric].decimals}f}"


def _seconds(columns: dict) -> str:
    return f"{columns['seconds']:.2f}" if "seconds" in columns else "n/a"


def _notes(summary: dict) -> Iterable[str]:
    protocol = summary["protocol"]
    yield f"{summary['pictures']} pictures, paired by name; means of the per-picture scores."
    yield from (f"{what}: {words}." for what, words in summary.get("made_by", {}).items())
    if protocol["border_applies_to"]:
        yield f"PSNR and SSIM leave out a border of {protocol['border_px']} px."
    for name, recipe in protocol["metrics"].items():
        yield f"{METRICS[name].label}: {recipe}."
    for method, columns in summary["methods"].items():
        for name, column in columns.items():
            if isinstance(column, dict) and "not_a_number" in column:
                yield f"{method}, {METRICS[name].label}: no number for {', '.join(column['not_a_number'])}."
            if isinstance(column, dict) and "identical" in column:
                yield f"{method}: equal to the true picture (80 dB by protocol): {', '.join(column['identical'])}."
    for name, reason in summary["not_available"].items():
        yield f"{METRICS[name].label}: n/a. {reason}."
    for problem in summary["left_out"]:
        yield f"Left out: {problem}."


def write_report(folder: Path, rows: list[Row], summary: dict) -> None:
    """per_image.csv, summary.json and table.md in `folder`, each in place only when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = list(summary["protocol"]["metrics"])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["method", "name", *metrics], restval="n/a", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / "per_image.csv", text.getvalue())
    write_whole(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(folder / "table.md", render_table(summary))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("pisasr", "numpy", "pillow", "torch", "pyiqa"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
