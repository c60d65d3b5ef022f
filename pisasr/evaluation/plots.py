"""Score, last stop: plots for print. What is bought with what, who is better where, what the two strengths do.

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
FIRST, SECOND, CHOSEN = "#0072B2", "#E69F00", "#D55E00"  # the first two are dark and light in grey, too
DIM = "0.45"

UNDATED: dict[str, dict[str, Any] | None] = {".png": None, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
FONT: Any = {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "legend.frameon": False}
LINES: Any = {"axes.linewidth": 0.6, "axes.axisbelow": True, "grid.color": "0.92", "hatch.linewidth": 0.4}
FILES: Any = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "pisasr",
}  # publishers refuse Type 3, pdf's own

# metric -> {"mean": a number or None, "interval": both ends of its 95 % interval, where there is one}
Columns = Mapping[str, Any]
Pair = tuple[float, float]


def draw_plots(folder: Path, rows: Sequence[Mapping[str, Any]], summary: dict[str, Any], ending: str) -> None:
    """What a summary and its pictures' scores have to show: up to three files in `folder`, with this ending.

    PisasrError, one line, without matplotlib.
    """
    methods, surface, metrics = summary["methods"], summary.get("surface"), summary["protocol"]["metrics"]
    shown = [m for m in metrics if any(math.isfinite(_mean(columns, m)) for columns in methods.values())]
    folder.mkdir(parents=True, exist_ok=True)
    distortion = next((m for m in ("psnr", "psnr_lq", "ssim") if m in shown), None)
    perceptual = [m for m in shown if m not in ("psnr", "ssim", "psnr_lq")]
    if distortion and perceptual:
        pairs = {method: tuple(pair) for method, pair in surface["methods"].items()} if surface else {}
        draw_perception_distortion(folder / f"perception_distortion.{ending}", methods, distortion, perceptual, pairs)
    single = [m for m in metrics if any(m in row for row in rows)]
    if summary["paired"] and single:
        first, second = (summary["paired"][0][place] for place in ("first", "second"))
        draw_differences(folder / f"differences.{ending}", rows, single, first, second)
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
            axis.set(xlabel=_with_arrow(distortion), ylabel=_with_arrow(metric))
            axis.grid(True)
            axis.margins(0.16)
            _draw_points(axis, {m: c for m, c in methods.items() if m not in pairs}, distortion, metric)
            if pairs:
                grid = {pair: [_mean(methods[m], name) for name in (distortion, metric)] for m, pair in pairs.items()}
                _draw_grid(axis, grid, distortion, metric)
        _write_below(figure, axes, r"in brackets: ($\lambda_\mathrm{pix}$, $\lambda_\mathrm{sem}$)" if pairs else None)


def draw_differences(
    path: Path, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], first: str, second: str
) -> None:
    """A panel per metric: what `first` has more than `second`, picture by picture, from least to most.

    rows: dicts with method, name and the metrics. Colours say who is better, whichever direction is better. A picture
    without a finite number from both methods is left out of that panel, which says so.
    """
    scores = {method: {row["name"]: row for row in rows if row["method"] == method} for method in (first, second)}
    names = list(scores[first] | scores[second])
    with _figure(path, len(metrics), 2.3) as (figure, axes):
        for axis, metric in zip(axes, metrics, strict=True):
            both = [[scores[method].get(name, {}).get(metric, math.nan) for name in names] for method in scores]
            _draw_differences(axis, metric, np.subtract(*np.array(both, float)), first, second)
        _write_below(figure, axes[:1])


def draw_surface(
    path: Path,
    surfaces: Mapping[str, Sequence[Sequence[float | None]]],
    lambdas_pix: Sequence[float],
    lambdas_sem: Sequence[float],
    best: Sequence[float] | None = None,
) -> None:
    """A heat map per metric, lambda_pix down and lambda_sem across; lighter is better, whichever direction is better.

    surfaces: metric -> [len(lambdas_pix)][len(lambdas_sem)]. Each map's best value is bold; NaN and None are hatched.
    best: the chosen (lambda_pix, lambda_sem), outlined.
    """
    height, width = 0.3 * len(lambdas_pix) + 1, max(PANEL_IN, 0.42 * len(lambdas_sem) + 0.7)
    with _figure(path, len(surfaces), height, width) as (figure, axes):
        for axis, (metric, surface) in zip(axes, surfaces.items(), strict=True):
            _draw_heat(axis, metric, np.array(surface, float))
            axis.set(xlabel=r"$\lambda_\mathrm{sem}$", ylabel=r"$\lambda_\mathrm{pix}$", title=_with_arrow(metric))
            axis.set_xticks(range(len(lambdas_sem)), [f"{value:g}" for value in lambdas_sem])
            axis.set_yticks(range(len(lambdas_pix)), [f"{value:g}" for value in lambdas_pix])
            if best:
                row, column = list(lambdas_pix).index(best[0]), list(lambdas_sem).index(best[1])
                _outline(axis, row, column, fill=False, edgecolor="white", linewidth=3.2, zorder=3)
                _outline(axis, row, column, fill=False, edgecolor=CHOSEN, linewidth=1.8, zorder=3)
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
    with rc_context(FONT | LINES | FILES):
        figure = Figure((width * across, height * down), DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = [*figure.subplots(down, across, squeeze=False).flat]
        for unused in axes[panels:]:
            unused.remove()
        yield figure, axes[:panels]
        content, ending = io.BytesIO(), path.suffix
        figure.savefig(content, format=ending[1:], dpi=DPI, metadata=UNDATED[ending])
    write_whole(path, content.getvalue())


def _write_below(figure: Figure, axes: Sequence[Axes], title: str | None = None) -> None:
    """One legend for all panels, under them: two columns a panel, which names of usual length leave room for."""
    handles = [handle for axis in axes for handle in axis.get_legend_handles_labels()[0]]
    handles = [*{handle.get_label(): handle for handle in handles}.values()]
    across = min(len(figure.axes), PANELS_ACROSS)
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * across, title=title, title_fontsize=7)


def _with_arrow(metric: str) -> str:
    return f"{METRICS[metric].label} {'↑' if METRICS[metric].higher_is_better else '↓'}"


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


def _draw_differences(axis: Axes, metric: str, differences: np.ndarray, first: str, second: str) -> None:
    """One panel of `draw_differences`: sorted bars that touch, their mean, and who wins how often."""
    known = np.sort(differences[np.isfinite(differences)])
    gains = known if METRICS[metric].higher_is_better else -known
    for method, colour, is_better in ((first, FIRST, gains > 0), (second, SECOND, gains < 0)):
        axis.stairs(np.where(is_better, known, 0), color=colour, fill=True, label=f"{method} better")
    axis.axhline(0, color="black", linewidth=0.6)
    title = f"{METRICS[metric].label}: {first} better on {np.sum(gains > 0)} of {len(known)}"
    title = textwrap.fill(title + (f", equal on {ties}" if (ties := np.sum(gains == 0)) else ""), 44)
    if len(known):
        axis.axhline(known.mean(), color="white", linewidth=1.8)
        axis.axhline(known.mean(), color="black", linewidth=0.9, linestyle="--", label="mean difference")
        title += f"\nmean difference {known.mean():+.{METRICS[metric].decimals}f}".replace("-", "\N{MINUS SIGN}")
    else:
        axis.set_yticks([])
    axis.set_title(title)
    if lacking := len(differences) - len(known):
        axis.text(0.98, 0.03, f"{lacking} left out: no number", transform=axis.transAxes, size=7, color=DIM, ha="right")
    axis.set_ylabel(textwrap.fill(f"{first} \N{MINUS SIGN} {second}", 28), size=7)
    axis.set(xlabel="pictures, sorted", xticks=[], xlim=(0, max(len(known), 1)))
    axis.margins(y=0.1)


def _draw_heat(axis: Axes, metric: str, surface: np.ndarray) -> None:
    """One map with its numbers; colour says better or worse, not larger or smaller."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    shown = axis.imshow(sign * surface, cmap="viridis", aspect="auto")
    best = max((sign * surface)[np.isfinite(surface)], default=None)
    for (row, column), value in np.ndenumerate(surface):
        if not math.isfinite(value):
            _outline(axis, row, column, facecolor="0.9", edgecolor="0.6", hatch="/////", linewidth=0)
            continue
        is_light = np.dot(shown.to_rgba(sign * value)[:3], (0.299, 0.587, 0.114)) > 0.5
        colour, weight = "black" if is_light else "white", "bold" if sign * value == best else "normal"
        text = f"{value:.{METRICS[metric].decimals}f}"
        axis.text(column, row, text, size=6, ha="center", va="center", color=colour, weight=weight)


def _outline(axis: Axes, row: int, column: int, **look: Any) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, clip_on=False, **look))
