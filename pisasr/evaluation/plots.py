"""Score, last stop: plots for print. What is bought with what, and what the two strengths do.

A path's ending says what is written: .png (200 dpi), .pdf or .svg. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    from matplotlib.figure import Figure

PANEL_IN, PANELS_ACROSS, DPI = 3.3, 3, 200

# Okabe and Ito's colours, which colour-blind readers tell apart; without the yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX<"
CHOSEN, DIM = "#D55E00", "0.45"

UNDATED: dict[str, dict[str, Any] | None] = {".png": None, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
STYLE: Any = {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "legend.frameon": False}
STYLE |= {"axes.linewidth": 0.6, "axes.axisbelow": True, "grid.color": "0.92"}
STYLE |= {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "pisasr"}  # publishers refuse Type 3, pdf's own

# metric -> {"mean": a number or None, "interval": both ends of its 95 % interval, where there is one}
Columns = Mapping[str, Any]
Pair = tuple[float, float]


def draw_plots(folder: Path, summary: dict[str, Any], ending: str) -> None:
    """What a summary has to show: up to two files in `folder`, with this ending. PisasrError without matplotlib."""
    methods, surface, metrics = summary["methods"], summary.get("surface"), summary["protocol"]["metrics"]
    shown = [m for m in metrics if any(math.isfinite(_mean(columns, m)) for columns in methods.values())]
    folder.mkdir(parents=True, exist_ok=True)
    distortion = next((m for m in ("psnr", "psnr_lq", "ssim") if m in shown), None)
    perceptual = [m for m in shown if m not in ("psnr", "ssim", "psnr_lq")]
    if distortion and perceptual:
        pairs = {method: tuple(pair) for method, pair in surface["methods"].items()} if surface else {}
        draw_perception_distortion(folder / f"perception_distortion.{ending}", methods, distortion, perceptual, pairs)
    if surface and (maps := {m: surface["maps"][m] for m in shown if m in surface["maps"]}):
        best = surface.get("best", {}).get("pair")
        draw_surface(folder / f"surface.{ending}", maps, surface["lambdas_pix"], surface["lambdas_sem"], best)


def draw_perception_distortion(
    path: Path,
    methods: Mapping[str, Columns],
    distortion: str,
    perceptual: Sequence[str],
    pairs: Mapping[str, Pair] = MappingProxyType({}),
) -> None:
    """A panel per perceptual metric, against one distortion metric; an axis' arrow says where better is.

    methods: name -> metric -> mean and interval, as a summary has them; one without both numbers is named over the
    panel. pairs: (lambda_pix, lambda_sem) of the methods that are points of a grid: these are drawn as a line per
    lambda_pix, with a dotted one through the pairs that no other pair beats in both metrics.
    """
    with _figure(path, len(perceptual), 2.9) as (figure, axes):
        for axis, metric in zip(axes, perceptual, strict=True):
            axis.set(xlabel=METRICS[distortion].head, ylabel=METRICS[metric].head)
            axis.grid(True)
            axis.margins(0.16)
            _draw_points(axis, {m: c for m, c in methods.items() if m not in pairs}, distortion, metric)
            if pairs:
                grid = {pair: [_mean(methods[m], name) for name in (distortion, metric)] for m, pair in pairs.items()}
                _draw_grid(axis, grid, distortion, metric)
        # One legend for all panels, under them: two columns a panel, which names of usual length leave room for.
        handles = {handle.get_label(): handle for axis in axes for handle in axis.get_legend_handles_labels()[0]}
        title = r"in brackets: ($\lambda_\mathrm{pix}$, $\lambda_\mathrm{sem}$)" if pairs else None
        place: Any = {"loc": "outside lower center", "ncols": 2 * min(len(axes), PANELS_ACROSS)}
        figure.legend(handles=list(handles.values()), title=title, title_fontsize=7, **place)


def draw_surface(
    path: Path,
    surfaces: Mapping[str, Sequence[Sequence[float | None]]],
    lambdas_pix: Sequence[float],
    lambdas_sem: Sequence[float],
    best: Sequence[float] | None = None,
) -> None:
    """A heat map per metric, lambda_pix down and lambda_sem across; lighter is better, whichever direction is better.

    surfaces: metric -> [len(lambdas_pix)][len(lambdas_sem)]. Each map's best value is bold; NaN and None stay white.
    best: the chosen (lambda_pix, lambda_sem), outlined.
    """
    height, width = 0.3 * len(lambdas_pix) + 1, max(PANEL_IN, 0.42 * len(lambdas_sem) + 0.7)
    with _figure(path, len(surfaces), height, width) as (figure, axes):
        for axis, (metric, surface) in zip(axes, surfaces.items(), strict=True):
            _draw_heat(axis, metric, np.array(surface, float))
            axis.set(xlabel=r"$\lambda_\mathrm{sem}$", ylabel=r"$\lambda_\mathrm{pix}$", title=METRICS[metric].head)
            axis.set_xticks(range(len(lambdas_sem)), [f"{value:g}" for value in lambdas_sem])
            axis.set_yticks(range(len(lambdas_pix)), [f"{value:g}" for value in lambdas_pix])
            if best:
                left, top = list(lambdas_sem).index(best[1]) - 0.5, list(lambdas_pix).index(best[0]) - 0.5
                frame: Any = {"clip_on": False, "zorder": 3}
                outline = [left, left + 1, left + 1, left, left], [top, top, top + 1, top + 1, top]
                axis.plot(*outline, color="white", linewidth=3.2, **frame)
                axis.plot(*outline, color=CHOSEN, linewidth=1.8, **frame)
        note = "lighter is better, the best value is bold"
        figure.supxlabel(note + (f"; outlined: ({best[0]:g}, {best[1]:g})" if best else ""), size=7, color=DIM)


def pareto_front(points: Sequence[Sequence[float]], first: str, second: str) -> list[Sequence[float]]:
    """The points (first, second) that no other beats in one metric without losing in the other, from low to high."""
    signs = [1 if METRICS[name].higher_is_better else -1 for name in (first, second)]
    finite = [point for point in points if all(map(math.isfinite, point))]
    good = [(signs[0] * x, signs[1] * y) for x, y in finite]
    beaten = [any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in good) for own in good]
    return sorted((point for point, is_beaten in zip(finite, beaten, strict=True) if not is_beaten), key=lambda p: p[0])


@contextmanager
def _figure(path: Path, panels: int, height: float, width: float = PANEL_IN) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of so many panels of width x height in inches, written to `path` when the block is left."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PisasrError("plots need matplotlib; pip install matplotlib, or 'pisasr[eval]', which brings it") from None
    down = -(-panels // PANELS_ACROSS)
    across = -(-panels // down)
    with rc_context(STYLE):
        figure = Figure((width * across, height * down), DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = [*figure.subplots(down, across, squeeze=False).flat]
        for unused in axes[panels:]:
            unused.remove()
        yield figure, axes[:panels]
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], dpi=DPI, metadata=UNDATED[path.suffix])
    write_whole(path, content.getvalue())


def _mean(columns: Columns, metric: str) -> float:
    mean = columns.get(metric, {}).get("mean")
    return math.nan if mean is None else mean


def _draw_points(axis: Axes, methods: Mapping[str, Columns], distortion: str, metric: str) -> None:
    """A marker and thin interval per method; methods without both numbers are named over the panel."""
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
        axis.plot(x, y, marker, color=colour, markersize=5.5, mec="white", mew=0.4, zorder=4, label=method)
    if absent:
        axis.set_title(textwrap.fill(f"no number: {', '.join(absent)}", 60), size=6, color=DIM)


def _draw_grid(axis: Axes, grid: Mapping[Pair, Sequence[float]], distortion: str, metric: str) -> None:
    """A line per lambda_pix, from dark to light, and the front; the grid's corners, (1, 0) and (1, 1) are named."""
    from matplotlib import colormaps

    lambdas_pix = sorted({pix for pix, _ in grid})
    for value, colour in zip(lambdas_pix, colormaps["viridis"](np.linspace(0, 0.85, len(lambdas_pix))), strict=True):
        line = [point for (pix, _), point in sorted(grid.items()) if pix == value]
        label = rf"ours, $\lambda_\mathrm{{pix}}$ = {value:g}"
        axis.plot(*zip(*line, strict=True), "-", marker=".", markersize=3, linewidth=0.9, color=colour, label=label)
    front = pareto_front(list(grid.values()), distortion, metric)
    axis.plot([x for x, _ in front], [y for _, y in front], ":k", linewidth=0.9, label="front of the grid")
    ends = [(min(values), max(values)) for values in zip(*grid, strict=True)]
    for (pix, sem), (x, y) in grid.items():
        if (pix, sem) in {*product(*ends), (1, 0), (1, 1)} and math.isfinite(x + y):
            axis.annotate(f"({pix:g}, {sem:g})", (x, y), (3, 3), textcoords="offset points", size=6, color=DIM)


def _draw_heat(axis: Axes, metric: str, surface: np.ndarray) -> None:
    """One map with its numbers; colour says better or worse, not larger or smaller."""
    goodness = surface if METRICS[metric].higher_is_better else -surface
    shown = axis.imshow(goodness, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(surface):
        if math.isfinite(value):
            is_light = np.dot(shown.to_rgba(goodness[row, column])[:3], (0.299, 0.587, 0.114)) > 0.5
            weight = "bold" if goodness[row, column] == np.nanmax(goodness) else "normal"
            look: Any = {"color": "black" if is_light else "white", "weight": weight, "ha": "center", "va": "center"}
            axis.text(column, row, f"{value:.{METRICS[metric].decimals}f}", size=6, **look)
