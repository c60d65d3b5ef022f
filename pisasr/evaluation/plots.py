"""Scores as plots for print: what is bought with what, who is better where, what the two strengths do.

A path's ending says what is written: .png (200 dpi), .pdf or .svg. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pisasr.errors import PisasrError
from pisasr.evaluation.metrics import METRICS
from pisasr.files import write_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PANEL_IN, PANELS_ACROSS, DPI = 3.3, 3, 200
MAX_BESIDE = 8  # more methods than this are named in a legend instead of beside their points

# Okabe and Ito's colours, which colour-blind readers tell apart; without the yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX<"
FIRST, SECOND, CHOSEN = "#0072B2", "#E69F00", "#D55E00"  # the first two are dark and light in grey, too
INK, DIM = "0.15", "0.45"
LINES = ("-", "--", "-.")

ENDINGS = {".png": None, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.6,
    "legend.frameon": False,
    "hatch.linewidth": 0.4,
    "pdf.fonttype": 42,  # publishers refuse the default, Type 3
    "svg.fonttype": "none",
    "svg.hashsalt": "pisasr",
}

# mean (None or NaN: no number), and the ends of its 95 % interval where there is one
Mean = tuple[float | None, float | None, float | None]
# what stands beside a point: text, x, y, colour, font size
Label = tuple[str, float, float, str, float]


def draw_perception_distortion(
    path: Path,
    points: Mapping[str, Mapping[str, Mean]],
    distortion: str,
    perceptual: Sequence[str],
    curves: Sequence[tuple[str, Sequence[Mapping[str, float]]]] = (),
) -> None:
    """A panel per perceptual metric, against one distortion metric; an arrow points to where better is.

    points: method -> metric -> mean and interval. curves: (label, one dict per pair of strengths, with lambda_pix,
    lambda_sem and the metrics' means), drawn as a line per lambda_pix, with the pairs that no other pair beats in both
    metrics joined by a dotted one.
    """
    with _figure(path, len(perceptual), 2.9) as (figure, axes):
        labels = {}
        for axis, metric in zip(axes, perceptual, strict=True):
            axis.set(xlabel=_with_arrow(distortion), ylabel=_with_arrow(metric))
            axis.grid(True)
            axis.margins(0.16)
            labels[axis] = _draw_points(axis, points, distortion, metric)
            for line, (_, grid) in zip(cycle(LINES), curves, strict=False):
                labels[axis] += _draw_grid(axis, grid, distortion, metric, line)
            _point_to_better(axis, distortion, metric)
        handles = [handle for axis in axes for handle in axis.get_legend_handles_labels()[0]]
        handles = [*{handle.get_label(): handle for handle in handles}.values()] if len(points) > MAX_BESIDE else []
        title = r"in brackets: ($\lambda_\mathrm{pix}$, $\lambda_\mathrm{sem}$)" if curves else None
        _write_below(figure, handles + (_grid_handles(curves) if curves else []), title)
        figure.draw_without_rendering()  # places are known only now
        for axis in axes:
            _write_beside(axis, labels[axis])


def draw_differences(
    path: Path, rows: Sequence[Mapping[str, str | float]], metrics: Sequence[str], first: str, second: str
) -> None:
    """A panel per metric: what `first` has more than `second`, picture by picture, from least to most.

    rows: dicts with method, name and the metrics. Colours say who is better, whichever direction is better. A picture
    without a finite number from both methods is left out of that panel, which says so.
    """
    scores = {method: {row["name"]: row for row in rows if row["method"] == method} for method in (first, second)}
    names = list(scores[first] | scores[second])
    with _figure(path, len(metrics), 2.3) as (figure, axes):
        for axis, metric in zip(axes, metrics, strict=True):
            pairs = [[scores[method].get(name, {}).get(metric, math.nan) for name in names] for method in scores]
            differences = np.subtract(*np.array(pairs, float))
            _draw_differences(axis, metric, differences, first, second)
        _write_below(figure, axes[0].get_legend_handles_labels()[0])


def draw_surface(
    path: Path,
    surfaces: Mapping[str, Sequence[Sequence[float]]],
    lambdas_pix: Sequence[float],
    lambdas_sem: Sequence[float],
    best: tuple[float, float] | None = None,
) -> None:
    """A heat map per metric, lambda_pix down and lambda_sem across; lighter is better, whichever direction is better.

    surfaces: metric -> [len(lambdas_pix)][len(lambdas_sem)]. Each map's best value is bold, NaN is hatched. best: the
    chosen (lambda_pix, lambda_sem), outlined.
    """
    height, width = 0.3 * len(lambdas_pix) + 1, max(PANEL_IN, 0.42 * len(lambdas_sem) + 0.7)
    with _figure(path, len(surfaces), height, width) as (figure, axes):
        for axis, (metric, surface) in zip(axes, surfaces.items(), strict=True):
            _draw_heat(axis, metric, np.array(surface, float))
            axis.set(xlabel=r"$\lambda_\mathrm{sem}$", ylabel=r"$\lambda_\mathrm{pix}$", title=_with_arrow(metric))
            axis.set_xticks(range(len(lambdas_sem)), [f"{value:g}" for value in lambdas_sem])
            axis.set_yticks(range(len(lambdas_pix)), [f"{value:g}" for value in lambdas_pix])
            if best:
                column, row = list(lambdas_sem).index(best[1]), list(lambdas_pix).index(best[0])
                _outline(axis, row, column, fill=False, edgecolor="white", linewidth=3.2, zorder=3)
                _outline(axis, row, column, fill=False, edgecolor=CHOSEN, linewidth=1.8, zorder=3)
        note = "lighter is better, the best value is bold"
        figure.supxlabel(note + (f"; outlined: ({best[0]:g}, {best[1]:g})" if best else ""), size=7, color=DIM)


def pareto_front(rows: Sequence[Mapping[str, float]], first: str, second: str) -> list[Mapping[str, float]]:
    """The rows that no other row beats in one metric without losing in the other, from low to high `first`."""
    finite = [row for row in rows if math.isfinite(row[first]) and math.isfinite(row[second])]
    good = [tuple(row[m] if METRICS[m].higher_is_better else -row[m] for m in (first, second)) for row in finite]
    beaten = [any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in good) for own in good]
    return sorted((row for row, is_beaten in zip(finite, beaten, strict=True) if not is_beaten), key=lambda r: r[first])


def place_labels(
    anchors: np.ndarray, sizes: np.ndarray, taken: np.ndarray, bounds: tuple[float, float, float, float]
) -> np.ndarray:
    """Where labels go: the middle of each, [N, 2], near its anchor [N, 2], clear of what was placed before it.

    sizes: widths and heights [N, 2]. taken: points [M, 2] that no label should cover. bounds: left, bottom, right, top.
    Each label in turn takes the nearest free place of four rings around its anchor, or the least bad one.
    """
    placed = []
    for anchor, size in zip(anchors, sizes, strict=True):
        places = []
        for ring, angle in product((0.7, 1.6, 2.8, 4.2), range(0, 360, 30)):
            direction = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
            middle = anchor + direction * (ring * size[1] + size / 2)
            low, high = middle - size / 2, middle + size / 2
            gaps = np.hypot(*(np.clip(anchors, low, high) - anchors).T)
            cost = ring + 0.5 * np.sum(np.all((taken > low) & (taken < high), axis=1))
            cost += np.sum(gaps < 1.5 * np.hypot(*(np.clip(anchor, low, high) - anchor))) - 1
            cost += 40 * sum(np.all(np.abs(middle - other) < (size + extent) / 2) for other, extent in placed)
            cost += 40 * (np.any(low < bounds[:2]) or np.any(high > bounds[2:]))
            places.append((cost, len(places), middle))
        placed.append((min(places)[2], size))
    return np.array([middle for middle, _ in placed]).reshape(-1, 2)


@contextmanager
def _figure(path: Path, panels: int, height: float, width: float = PANEL_IN) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of so many panels of width x height in inches, written to `path` when the block is left."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PisasrError("plots need matplotlib; pip install matplotlib, or 'pisasr[eval]', which brings it") from None
    if path.suffix.lower() not in ENDINGS:
        raise PisasrError(f"{path.name}: plots are written as {', '.join(ENDINGS)}")
    down = -(-panels // PANELS_ACROSS)
    across = -(-panels // down)
    with rc_context(STYLE):
        figure = Figure((width * across, height * down), DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = [*figure.subplots(down, across, squeeze=False).flat]
        for unused in axes[panels:]:
            unused.remove()
        yield figure, axes[:panels]
        content, ending = io.BytesIO(), path.suffix.lower()
        figure.savefig(content, format=ending[1:], dpi=DPI, metadata=ENDINGS[ending])
    write_whole(path, content.getvalue())


def _write_below(figure: Figure, handles: Sequence[Artist], title: str | None = None) -> None:
    """One legend for all panels, under them, in as many columns as fit."""
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)
        if legend.get_window_extent().width < figure.bbox.width or columns == 1:
            break
        legend.remove()


def _with_arrow(metric: str) -> str:
    return f"{METRICS[metric].label} {'↑' if METRICS[metric].higher_is_better else '↓'}"


# --- perception against distortion -----------------------------------------------------------------------------------


def _draw_points(axis: Axes, points: Mapping[str, Mapping[str, Mean]], distortion: str, metric: str) -> list[Label]:
    """A marker and thin interval per method; methods without both numbers are named over the panel."""
    labels, absent = [], []
    for index, (method, scores) in enumerate(points.items()):
        x, y = (scores.get(name, (math.nan, None, None)) for name in (distortion, metric))
        if None in (x[0], y[0]) or not math.isfinite(x[0] + y[0]):
            absent.append(method)
            continue
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        bars = [None if None in end else np.maximum([[end[0] - end[1]], [end[2] - end[0]]], 0) for end in (x, y)]
        axis.errorbar(x[0], y[0], bars[1], bars[0], color=colour, elinewidth=0.5, zorder=2)
        axis.plot(x[0], y[0], marker, color=colour, markersize=5.5, mec="white", mew=0.4, zorder=4, label=method)
        if len(points) <= MAX_BESIDE:
            labels.append((method, x[0], y[0], INK, 7))
    if absent:
        axis.set_title(textwrap.fill(f"no number: {', '.join(absent)}", 60), size=6, color=DIM)
    return labels


def _draw_grid(axis: Axes, grid: Sequence[Mapping[str, float]], distortion: str, metric: str, line: str) -> list[Label]:
    """A line per lambda_pix and the front; named are the grid's corners, (1, 0) and (1, 1)."""
    colours = _colour_strengths(grid)
    for value, colour in colours.items():
        row = sorted((point for point in grid if point["lambda_pix"] == value), key=lambda point: point["lambda_sem"])
        xy = [[point[name] for point in row] for name in (distortion, metric)]
        axis.plot(*xy, line, marker=".", markersize=3, linewidth=0.9, color=colour, zorder=3)
    front = pareto_front(grid, distortion, metric)
    axis.plot(*([point[name] for point in front] for name in (distortion, metric)), ":k", linewidth=0.9, zorder=3)
    pairs = {(point["lambda_pix"], point["lambda_sem"]): point for point in grid}
    ends = [(min(values), max(values)) for values in zip(*pairs, strict=True)]
    return [
        (f"({pix:g}, {sem:g})", point[distortion], point[metric], DIM, 6)
        for (pix, sem), point in pairs.items()
        if (pix, sem) in {*product(*ends), (1, 0), (1, 1)} and math.isfinite(point[distortion] + point[metric])
    ]


def _colour_strengths(grid: Sequence[Mapping[str, float]]) -> dict[float, np.ndarray]:
    """lambda_pix -> colour, from dark to light."""
    from matplotlib import colormaps

    values = sorted({point["lambda_pix"] for point in grid})
    return dict(zip(values, colormaps["viridis"](np.linspace(0, 0.85, len(values))), strict=True))


def _point_to_better(axis: Axes, distortion: str, metric: str) -> None:
    """A pale arrow to where both metrics are good, in that corner or, where data lie there, in an emptier one."""
    axis.autoscale_view()
    data = axis.transLimits.transform(np.concatenate([np.zeros((0, 2)), *_strokes(axis)]))
    good = np.array([METRICS[name].higher_is_better for name in (distortion, metric)])
    corners = sorted(product((0, 1), repeat=2), key=lambda corner: -np.sum(corner == good))
    crowds = [np.sum(np.all(np.abs(data - corner) < (0.34, 0.22), axis=1)) for corner in corners]
    corner = np.array(corners[int(np.argmin(crowds))])
    low = np.where(corner, 0.89, 0.03)
    arrow = {"arrowstyle": "-|>", "color": "0.6", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", low + 0.08 * good, low + 0.08 * ~good, "axes fraction", "axes fraction", arrow, zorder=1)
    look = {"color": "0.5", "size": 7, "zorder": 1, "va": "center", "ha": "right" if corner[0] else "left"}
    axis.text(low[0] + (-0.02 if corner[0] else 0.1), low[1] + 0.04, "better", transform=axis.transAxes, **look)


def _grid_handles(curves: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> list[Line2D]:
    """What a legend says of the grids: their names, the lines' lambda_pix, the front."""
    from matplotlib.lines import Line2D

    looks = [(DIM, line, label) for line, (label, _) in zip(cycle(LINES), curves, strict=False)]
    colours = _colour_strengths([point for _, grid in curves for point in grid])
    looks += [(colour, "-", rf"$\lambda_\mathrm{{pix}}$ = {value:g}") for value, colour in colours.items()]
    looks += [("black", ":", "front of the grid")]
    return [Line2D([], [], color=c, linestyle=line, label=label, linewidth=1.2) for c, line, label in looks]


def _write_beside(axis: Axes, labels: Sequence[Label]) -> None:
    """Write each label near its point, clear of lines, intervals and each other; a hairline joins what is far."""
    strokes = [axis.transData.transform(stroke) for stroke in _strokes(axis)]
    strokes += [text.get_window_extent().get_points() for text in axis.texts if text.get_text()]
    taken = np.concatenate([np.zeros((0, 2)), *strokes])
    anchors = axis.transData.transform([(x, y) for _, x, y, _, _ in labels] or np.zeros((0, 2)))
    look = {"textcoords": "offset points", "zorder": 5}
    texts = [
        axis.annotate(text, (x, y), (0, 0), size=size, color=ink, ha="center", va="center", **look)
        for text, x, y, ink, size in labels
    ]
    sizes = np.array([text.get_window_extent().size for text in texts]).reshape(-1, 2)
    places = place_labels(anchors, sizes, taken, axis.bbox.padded(-3).extents)
    for text, anchor, size, place in zip(texts, anchors, sizes, places, strict=True):
        text.xyann = tuple((place - anchor) * 72 / DPI)
        edge = np.clip(anchor, place - size / 2, place + size / 2) - anchor
        if np.hypot(*edge) > size[1]:
            arrow = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.4, "shrinkA": 1, "shrinkB": 2.5}
            axis.annotate("", text.xy, tuple(edge * 72 / DPI), arrowprops=arrow, **look)


def _strokes(axis: Axes) -> list[np.ndarray]:
    """All lines and intervals as points [N, 2] close enough together to stand for what they cover."""
    strokes = [line.get_xydata() for line in axis.lines]
    strokes += [bar for bars in axis.collections for bar in bars.get_segments()]
    steps = np.linspace(0, 1, 40)[:, None, None]
    return [np.concatenate([s[:1], ((1 - steps) * s[:-1] + steps * s[1:]).reshape(-1, 2)]) for s in strokes]


# --- differences -----------------------------------------------------------------------------------------------------


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


# --- surfaces --------------------------------------------------------------------------------------------------------


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
        look = {"color": "black" if is_light else "white", "weight": "bold" if sign * value == best else "normal"}
        text = f"{value:.{METRICS[metric].decimals}f}"
        axis.text(column, row, text, size=6, ha="center", va="center", **look)


def _outline(axis: Axes, row: int, column: int, **look: Any) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, clip_on=False, **look))
