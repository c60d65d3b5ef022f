"""Measure, told: every row as JSON with the machine it came from, and the tables as Markdown."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from math import log
from statistics import linear_regression
from typing import Any

import torch

from pisasr.benchmark.bench import Bench, Row

SCHEMA = 1
NOISY = 0.03  # by which A against A may differ from 1 before its case's ratios are doubted

COLUMNS: dict[str, tuple[str, str]] = {  # heading: attribute of a row, format
    "ms": ("ms", ".4g"),
    "IQR": ("ms_iqr", ".2g"),
    "ms/MP": ("ms_per_mp", ".4g"),
    "ratio": ("ratio", ".3f"),
    "IQR ": ("ratio_iqr", ".3f"),
    "TFLOP": ("tflop", ".4g"),
    "% of ceiling": ("percent", ".0f"),
    "UNet": ("unet_calls", "d"),
    "counted MiB": ("counted_mib", ".0f"),
    "peak MiB": ("peak_mib", ".0f"),
    "max": ("max_levels", ".3g"),
    "mean": ("mean_levels", ".2g"),
}


def as_json(bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    """The whole report. ceilings in FLOP/s; rows as `Row` explains them."""
    gpu = torch.cuda.get_device_name() if bench.device == "cuda" else None
    machine = {
        "device": bench.device,
        "gpu": gpu,
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    rows = [{**asdict(row), "megapixels": row.megapixels} for row in bench.rows]
    return {
        "schema": SCHEMA,
        "machine": machine,
        "settings": settings,
        "ceilings": bench.ceilings,
        "exponents": exponents(bench.rows),
        "rows": rows,
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares: 1 is linear, 2 the square."""
    return linear_regression([log(size) for size in sizes], [log(cost) for cost in costs]).slope


def exponents(rows: Sequence[Row]) -> dict[str, float]:
    """How time and FLOPs of the case `scaling` grow with a square's area: 1 is linear. Empty below two squares."""
    squares = [row for row in rows if row.case == "scaling" and row.shape[0] == row.shape[1]]
    found = {}
    for name in ("ms", "tflop"):
        known = [(row.megapixels, value) for row in squares if (value := getattr(row, name))]
        if len({size for size, _ in known}) > 1:
            found[name] = exponent(*zip(*known, strict=True))
    return found


def as_markdown(report: dict[str, Any], rows: Sequence[Row]) -> str:
    """What the machine reaches, then a table a case; columns that a case leaves empty are left out."""
    machine = report["machine"]
    where = machine["gpu"] or f"{machine['processor']} ({machine['capability']}), {machine['threads']} threads"
    lines = [f"{where}; torch {machine['torch']}, Python {machine['python']}; load {machine['load']}", ""]
    for dtype, ceiling in report["ceilings"].items():
        reached = ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in ceiling.items())
        lines.append(f"Ceiling in {dtype}: {reached}.")
    for name, value in report["exponents"].items():
        lines.append(f"Exponent of {'time' if name == 'ms' else 'FLOPs'} over area: {value:.3f}.")
    for case, group in groupby(rows, key=lambda row: row.case):
        lines += ["", f"### {case}", "", *_table(list(group))]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> list[str]:
    shown = {
        heading: cells
        for heading, (name, form) in COLUMNS.items()
        if any(cells := [_cell(getattr(row, name), form) for row in rows])
    }
    heads = ["variant", "result", "dtype", *shown, "note"]
    table = [heads, ["---"] * 3 + ["---:"] * len(shown) + ["---"]]
    for index, row in enumerate(rows):
        size = " x ".join(map(str, row.shape)) if row.megapixels else ""
        size += f", {row.results}" if row.results > 1 else ""
        table.append([row.variant, size, row.dtype, *(cells[index] for cells in shown.values()), _note(row)])
    return [f"| {' | '.join(cells)} |" for cells in table]


def _note(row: Row) -> str:
    is_noisy = row.variant == row.against and row.ratio is not None and abs(row.ratio - 1) > NOISY
    return "; ".join(filter(None, [row.note, "A against A is off: a busy machine" if is_noisy else ""]))


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
