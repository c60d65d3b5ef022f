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

COLUMNS = "ms ms_iqr ms_per_mp ratio ratio_iqr tflop percent unet_calls counted_mib peak_mib max_levels mean_levels".split()


def as_json(bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    """The whole report. ceilings in FLOP/s; rows as `Row` explains them."""
    machine = {
        "device": torch.cuda.get_device_name() if bench.device == "cuda" else bench.device,
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
    }
    measured = {
        "ceilings": bench.ceilings,
        "exponents": exponents(bench.rows),
        "rows": list(map(asdict, bench.rows)),
    }
    return {"schema": SCHEMA, "machine": machine, "settings": settings, **measured}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares: 1 is linear, 2 the square."""
    return linear_regression([log(size) for size in sizes], [log(cost) for cost in costs]).slope


def exponents(rows: Sequence[Row]) -> dict[str, float]:
    """How time and FLOPs of the case `scaling` grow with a square's area: 1 is linear. Empty below
    two squares.
    """
    squares = [
        row
        for row in rows
        if row.case == "scaling" and row.shape[0] == row.shape[1] and row.ms and row.tflop
    ]
    if len(squares) < 2:
        return {}
    areas = [row.megapixels for row in squares]
    return {
        "ms": exponent(areas, [row.ms or 0 for row in squares]),
        "tflop": exponent(areas, [row.tflop or 0 for row in squares]),
    }


def as_markdown(report: dict[str, Any], rows: Sequence[Row]) -> str:
    """What the machine reaches, then a table a case; columns that a case leaves empty are left
    out.
    """
    lines = [", ".join(f"{name} {value}" for name, value in report["machine"].items()), ""]
    for dtype, ceiling in report["ceilings"].items():
        reached = ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in ceiling.items())
        lines.append(f"Ceiling in {dtype}: {reached}.")
    lines += [
        f"Exponent of {name} over area: {value:.3f}." for name, value in report["exponents"].items()
    ]
    for case, group in groupby(rows, key=lambda row: row.case):
        lines += ["", f"### {case}", "", *_table(list(group))]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> list[str]:
    shown = [name for name in COLUMNS if any(getattr(row, name) is not None for row in rows)]
    table = [
        ["variant", "result", "dtype", *shown, "note"],
        ["---"] * 3 + ["---:"] * len(shown) + ["---"],
    ]
    for row in rows:
        values = [getattr(row, name) for name in shown]
        size = " x ".join(map(str, row.shape)) + f", {row.results}" * (row.results > 1)
        noisy = row.variant == row.against and abs((row.ratio or 1) - 1) > NOISY
        note = "; ".join(filter(None, [row.note, "A against A is off: a busy machine" * noisy]))
        numbers = ["" if value is None else f"{value:.4g}" for value in values]
        table.append([row.variant, size, row.dtype, *numbers, note])
    return [f"| {' | '.join(cells)} |" for cells in table]
