"""Score, last stop: a plot for print of what is bought with what: perception against distortion.

The path's ending says what is written: .png (200 dpi), .pdf or .svg. The same numbers give the same
bytes.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pisasr.errors import PisasrError
from pisasr.evaluation.metrics import METRICS
from pisasr.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_IN, PANELS_ACROSS, DPI = (3.3, 2.9), 3, 200

# Okabe and Ito's colours, which colour-blind readers tell apart; without the yellow, which white
# paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX<"
DIM = "0.45"

UNDATED: dict[str, dict[str, Any] | None] = {
    ".png": None,
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}
STYLE: Any = {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "legend.frameon": False}
STYLE |= {"axes.linewidth": 0.6, "axes.axisbelow": True, "grid.color": "0.92"}
STYLE |= {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "pisasr",
}  # publishers refuse Type 3, pdf's own

# metric -> {"mean": a number or None, "interval": both ends of its 95 % interval, where there is
# one}
Columns = Mapping[str, Any]
Pair = tuple[float, float]


def draw_plots(folder: Path, summary: dict[str, Any], ending: str) -> None:
    """The plot of a summary, where it has a metric of either kind: perception_distortion.ENDING in
    `folder`.
    """
    methods, surface = summary["methods"], summary.get("surface", {"methods": {}})
    metrics = summary["protocol"]["metrics"]
    shown = [
        m for m in metrics if any(math.isfinite(_mean(columns, m)) for columns in methods.values())
    ]
    distortion = next((m for m in ("psnr", "psnr_lq", "ssim") if m in shown), None)
    perceptual = [m for m in shown if m not in ("psnr", "ssim", "psnr_lq")]
    if distortion and perceptual:
        folder.mkdir(parents=True, exist_ok=True)
        pairs = {method: tuple(pair) for method, pair in surface["methods"].items()}
        draw_perception_distortion(
            folder / f"perception_distortion.{ending}", methods, distortion, perceptual, pairs
        )


def draw_perception_distortion(
    path: Path,
    methods: Mapping[str, Columns],
    distortion: str,
    perceptual: Sequence[str],
    pairs: Mapping[str, Pair] = MappingProxyType({}),
) -> None:
    """A panel per perceptual metric, against one distortion metric; an axis' arrow says where
    better is.

    methods: name -> metric -> mean and interval, as a summary has them; one without both numbers is
    named over the panel. pairs: (lambda_pix, lambda_sem) of the methods that are points of a grid:
    these are drawn as a line per lambda_pix. PisasrError, one line, without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PisasrError(
            "plots need matplotlib; pip install matplotlib, or 'pisasr[eval]', which brings it"
        ) from None
    down = -(-len(perceptual) // PANELS_ACROSS)
    across = -(-len(perceptual) // down)
    with rc_context(STYLE):
        figure = Figure((PANEL_IN[0] * across, PANEL_IN[1] * down), DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = [*figure.subplots(down, across, squeeze=False).flat]
        for unused in axes[len(perceptual) :]:
            unused.remove()
        for axis, metric in zip(axes, perceptual, strict=False):
            axis.set(xlabel=METRICS[distortion].head, ylabel=METRICS[metric].head)
            axis.grid(True)
            axis.margins(0.16)
            _draw_points(
                axis, {m: c for m, c in methods.items() if m not in pairs}, distortion, metric
            )
            if pairs:
                grid = {
                    pair: [_mean(methods[m], name) for name in (distortion, metric)]
                    for m, pair in pairs.items()
                }
                _draw_grid(axis, grid)
        # One legend for all panels, under them: two columns a panel, which names of usual length
        # leave room for.
        handles = {
            handle.get_label(): handle
            for axis in axes
            for handle in axis.get_legend_handles_labels()[0]
        }
        title = r"in brackets: ($\lambda_\mathrm{pix}$, $\lambda_\mathrm{sem}$)" if pairs else None
        place: Any = {
            "loc": "outside lower center",
            "ncols": 2 * min(len(perceptual), PANELS_ACROSS),
        }
        figure.legend(handles=list(handles.values()), title=title, title_fontsize=7, **place)
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], dpi=DPI, metadata=UNDATED[path.suffix])
    write_whole(path, content.getvalue())


def _mean(columns: Columns, metric: str) -> float:
    mean = columns.get(metric, {}).get("mean")
    return math.nan if mean is None else mean


def _draw_points(axis: Axes, methods: Mapping[str, Columns], distortion: str, metric: str) -> None:
    """A marker and thin interval per method; methods without both numbers are named over the
    panel.
    """
    absent = []
    for index, (method, columns) in enumerate(methods.items()):
        x, y = (_mean(columns, name) for name in (distortion, metric))
        if not math.isfinite(x + y):
            absent.append(method)
            continue
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        bars: dict[str, Any] = {}
        for way, mean, name in (("xerr", x, distortion), ("yerr", y, metric)):
            if interval := columns[name].get("interval"):
                bars[way] = np.maximum([[mean - interval[0]], [interval[1] - mean]], 0)
        axis.errorbar(x, y, color=colour, elinewidth=0.5, zorder=2, **bars)
        axis.plot(
            x, y, marker, color=colour, markersize=5.5, mec="white", mew=0.4, zorder=4, label=method
        )
    if absent:
        axis.set_title(textwrap.fill(f"no number: {', '.join(absent)}", 60), size=6, color=DIM)


def _draw_grid(axis: Axes, grid: Mapping[Pair, Sequence[float]]) -> None:
    """A line per lambda_pix, from dark to light; the grid's corners, (1, 0) and (1, 1) are
    named.
    """
    from matplotlib import colormaps

    lambdas_pix = sorted({pix for pix, _ in grid})
    for value, colour in zip(
        lambdas_pix, colormaps["viridis"](np.linspace(0, 0.85, len(lambdas_pix))), strict=True
    ):
        line = [point for (pix, _), point in sorted(grid.items()) if pix == value]
        label = rf"ours, $\lambda_\mathrm{{pix}}$ = {value:g}"
        axis.plot(
            *zip(*line, strict=True),
            "-",
            marker=".",
            markersize=3,
            linewidth=0.9,
            color=colour,
            label=label,
        )
    ends = [(min(values), max(values)) for values in zip(*grid, strict=True)]
    for (pix, sem), (x, y) in grid.items():
        if (pix, sem) in {*product(*ends), (1, 0), (1, 1)} and math.isfinite(x + y):
            axis.annotate(
                f"({pix:g}, {sem:g})", (x, y), (3, 3), textcoords="offset points", size=6, color=DIM
            )
