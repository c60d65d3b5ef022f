"""Write what came of a set: per_image.csv, summary.json, table.md, plot.png and sheet.png."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pisasr import __version__
from pisasr.evaluation.metrics import Metric
from pisasr.evaluation.pairs import Example
from pisasr.evaluation.scoring import Loaded, Scores, summarize
from pisasr.files import write_whole
from pisasr.pictures.opening import read_picture
from pisasr.pictures.sheets import draw_comparison, most_different_box, spread

FILES = ("per_image.csv", "summary.json", "table.md", "plot.png", "sheet.png")
SHEET_ROWS = 8  # pictures of the set on the sheet of details

Columns = Mapping[str, Metric]
Summary = Mapping[str, Mapping[str, Mapping[str, Any]]]  # as scoring.summarize returns it


def write_report(
    output: Path,
    examples: Sequence[Example],
    scores: Scores,
    metrics: Loaded,
    missing: Mapping[str, str],
    border: int,
    left_out: list[str],
) -> tuple[str, list[str]]:
    """Write every file of the report; returns the table and lines on what could not be drawn."""
    summary = summarize(scores)
    columns = {name: metric for name, (metric, _) in metrics.items()}
    facts = [f"{len(examples)} pictures."]
    if border:
        cropped = " and ".join(metric.label for metric in columns.values() if metric.crops)
        facts = [f"{len(examples)} pictures; {cropped} without a border of {border} px."]
    table = to_markdown(summary, columns, missing, [*facts, *left_out, *scores.faults])
    notes = {"pictures": len(examples), "border_px": border, "not_available": missing}
    notes |= {"left_out": left_out, "faults": scores.faults}
    (output / "plot.png").unlink(missing_ok=True)  # an earlier run's
    write_csv(output / "per_image.csv", scores)
    write_summary(output / "summary.json", summary, columns, notes)
    write_whole(output / "table.md", table)
    draw_sheet(output / "sheet.png", examples)
    try:
        draw_plot(output / "plot.png", summary, columns)
    except ImportError:
        return table, ["No plot without matplotlib: pip install matplotlib."]
    return table, []


def write_csv(path: Path, scores: Scores) -> None:
    """Write a row per method and picture; numbers unrounded, nan where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(scores.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(scores.rows)
    write_whole(path, text.getvalue())


def write_summary(path: Path, summary: Summary, metrics: Columns, notes: Mapping[str, Any]) -> None:
    """Write means as JSON, with every metric's recipe and the notes."""
    recipes = {
        name: {"label": m.label, "higher_is_better": m.higher_is_better, "recipe": m.recipe}
        for name, m in metrics.items()
    }
    content = {"pisasr": __version__, **notes, "metrics": recipes, "methods": summary}
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def to_markdown(
    summary: Summary, metrics: Columns, missing: Mapping[str, str], lines: list[str]
) -> str:
    """Return a table: a row per method, the best mean of each metric in bold, recipes below it."""
    names = [*metrics, *missing]
    heads = [metrics[name].head if name in metrics else name for name in names]
    rows = ["| Method | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(names)]
    for method, columns in summary.items():
        cells = [_cell(summary, method, n, metrics[n]) if n in columns else "n/a" for n in names]
        rows.append(f"| {method.replace('|', '/')} | " + " | ".join(cells) + " |")
    below = [f"{metric.label}: {metric.recipe}." for metric in metrics.values()]
    below += [f"{name}: n/a, {reason}." for name, reason in missing.items()]
    for method, columns in summary.items():
        for name, column in columns.items():
            if column["without"]:
                without = ", ".join(column["without"])
                below.append(f"{method}: no {metrics[name].label} for {without}.")
    return "\n".join([*rows, "", *(f"- {line}" for line in [*below, *lines])]) + "\n"


def _cell(summary: Summary, method: str, name: str, metric: Metric) -> str:
    column = summary[method][name]
    if column["mean"] is None:
        return f"nan ({len(column['without'])})" if column["without"] else "nan"
    means = [c[name]["mean"] for c in summary.values() if c[name]["mean"] is not None]
    best = max(means) if metric.higher_is_better else min(means)
    text = f"{column['mean']:.{metric.decimals}f}"
    return f"**{text}**" if column["mean"] == best and len(summary) > 1 else text


def draw_plot(path: Path, summary: Summary, metrics: Columns) -> None:
    """Draw perception against distortion: a panel for each perceptual metric, a point per method.

    Methods named pixA_semB, as `infer --lambda_grid` names its folders, are joined along A.
    Nothing is drawn without a metric of either kind. ImportError without matplotlib.
    """
    x = next((name for name, metric in metrics.items() if metric.fidelity), None)
    panels = [name for name, metric in metrics.items() if not metric.fidelity]
    if not x or not panels:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((4.5 * len(panels), 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, y in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        axis.set(xlabel=metrics[x].head, ylabel=metrics[y].head)
        axis.grid(True, color="0.92")
        axis.margins(0.25, 0.1)
        points = {m: (columns[x]["mean"], columns[y]["mean"]) for m, columns in summary.items()}
        points = {method: point for method, point in points.items() if None not in point}
        for _, group in groupby(points, key=_family):
            line = [points[method] for method in group]
            axis.plot(*zip(*line, strict=True), "o-", markersize=4, linewidth=0.8)
        for method, point in points.items():
            axis.annotate(method, point, (4, 4), textcoords="offset points", fontsize=7)
    content = io.BytesIO()
    figure.savefig(content)
    write_whole(path, content.getvalue())


def _family(method: str) -> str:
    """Name what a method shares with the others of its line, which for most is nothing."""
    return re.sub(r"(?<=\d)_sem-?[\d.]+$", "", method)


def draw_sheet(path: Path, examples: Sequence[Example]) -> None:
    """Draw a few examples, spread evenly over the set, at the place where the methods differ."""
    rows, boxes = [], []
    chosen = spread(examples, SHEET_ROWS)
    for example in chosen:
        pictures = {name: _open(file) for name, file in example.sr.items()}
        boxes.append(most_different_box([*pictures.values()]))
        first = {"input": _open(example.lq)} if example.lq else {}
        last = {"true picture": _open(example.hq)} if example.hq else {}
        rows.append({**first, **pictures, **last})
    content = io.BytesIO()
    names = [Path(example.name).stem for example in chosen]
    draw_comparison(rows, names, boxes).save(content, "PNG")
    write_whole(path, content.getvalue())


def _open(path: Path) -> Image.Image:
    return Image.fromarray(np.asarray(read_picture(path)))
