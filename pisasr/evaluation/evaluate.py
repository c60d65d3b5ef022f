"""One test set from its folders to its report: pair, check, score, summarise, tabulate, draw.

The journey that `evaluate` and scripts/compare.py share. OUTPUT receives per_image.csv, summary.json, table.md and
table.tex, plots/ and sheets/, and for a grid of strengths surface.csv and surface.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pisasr.errors import PisasrError
from pisasr.evaluation import tables
from pisasr.evaluation.metrics import METRICS, STABLESR, Protocol
from pisasr.evaluation.pairs import Example, Pairing, pair_folders
from pisasr.evaluation.processes import Processes
from pisasr.evaluation.report import Circumstances, installed_versions, summarise, write_scores
from pisasr.evaluation.scorers import Panel, describe
from pisasr.evaluation.scoring import Pictures, Scores, forget, read_methods, score_set
from pisasr.evaluation.surface import Grid
from pisasr.evaluation.testsets import TestSet, recognise, verify_known, verify_manifest
from pisasr.files import write_whole
from pisasr.pictures.folders import SUFFIX

LEDGER = ".scores"
DETAIL_PX = 128

# What an earlier run may have left in the output and this one would not write over.
OWN_FILES = ("published.md", "surface.csv", "sheets/sheet_[0-9][0-9].png") + tuple(
    f"plots/{name}.{ending}"
    for name in ("perception_distortion", "differences", "surface")
    for ending in ("png", "pdf", "svg")
)


@dataclass(frozen=True)
class Settings:
    """What holds for every set of a run. paired: two methods, None for the first two. plots: a file ending, "" for
    none. sheets: how many pictures the comparison sheets show."""

    metrics: Sequence[str]
    protocol: Protocol = STABLESR
    paired: tuple[str, str] | None = None
    plots: str = "png"
    sheets: int = 8
    grid: Grid | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """A set whose files were looked at: its examples, what was found out about it, what kept pictures out."""

    set: TestSet
    pairing: Pairing
    check: str


def check_set(test_set: TestSet, suffix: str = SUFFIX) -> Checked:
    """Pair a set's folders, and refuse one that is not what its name or its manifest says."""
    name, found = test_set.name, []
    if test_set.hr and not name:
        name = recognise(test_set.hr) or ""
    if name:
        found.append(verify_known(name, test_set.hr, test_set.lr))
    if test_set.lr:
        found.append(verify_manifest(test_set.lr, test_set.hr))
    pairing = pair_folders(test_set.sr, test_set.hr, test_set.lr, suffix)
    named = TestSet(name, test_set.sr, test_set.hr, test_set.lr)
    return Checked(named, pairing, "; ".join(filter(None, found)))


def evaluate_set(
    checked: Checked, panel: Panel, settings: Settings, output: Path, processes: Processes
) -> tuple[dict, Scores] | None:
    """Score a set and write its report; the summary and the scores for the first process, None for the others."""
    test_set, examples = checked.set, checked.pairing.examples
    panel = panel.drop(_what_the_set_lacks(test_set, settings.metrics))
    pictures: Pictures = read_methods
    if settings.grid:
        pictures = settings.grid.pictures(output / "pictures" if settings.grid.saves else None)
    label = f"scoring {test_set.name}".strip()
    scores = score_set(examples, panel, pictures, output / LEDGER, _fingerprint(panel, settings), processes, label)
    if scores is None:
        return None
    around = Circumstances(
        settings.metrics,
        settings.protocol,
        test_set.name,
        checked.check,
        checked.pairing.problems,
        checked.pairing.total,
        _choose_pairs(settings, [*dict.fromkeys(str(row["method"]) for row in scores.rows)]),
        settings.seconds,
        settings.made_by | (settings.grid.describe() if settings.grid else {}),
    )
    summary = summarise(scores, panel, around)
    if settings.grid:
        summary["surface"] = settings.grid.summarise(summary)
        if best := summary["surface"].get("best"):
            summary["made_by"]["Chosen"] = f"{best['rule']}: {best['words']}"
    write_report(output, examples, scores, summary, settings)
    forget(output / LEDGER)
    return summary, scores


def write_report(output: Path, examples: Sequence[Example], scores: Scores, summary: dict, settings: Settings) -> None:
    """Everything that a set's summary is shown as."""
    for old in (path for pattern in OWN_FILES for path in output.glob(pattern)):
        old.unlink()
    write_scores(output, scores, summary)
    table = tables.build_table(summary, shown_methods(summary))
    write_whole(output / "table.md", tables.to_markdown([table]) + tables.surface_markdown(summary))
    write_whole(output / "table.tex", tables.to_latex([table]))
    if settings.grid:
        settings.grid.write_csv(output / "surface.csv", summary)
    if settings.plots:
        try:
            draw_plots(output / "plots", scores, summary, settings.plots)
        except PisasrError as error:  # without matplotlib the tables are whole all the same
            print(f"no plots: {error}", file=sys.stderr)
    if settings.sheets and examples and examples[0].sr:
        draw_sheets(output / "sheets", examples, scores, settings.sheets)


def shown_methods(summary: dict) -> list[str]:
    """The methods of the main table: all, but of a grid of strengths only the corners (1, 0), (1, 1) and the chosen."""
    grid = summary.get("surface", {}).get("methods", {})
    kept = {(1.0, 0.0), (1.0, 1.0), tuple(summary.get("surface", {}).get("best", {}).get("pair", ()))}
    few = [method for method, pair in grid.items() if tuple(pair) in kept] or list(grid)
    return [method for method in summary["methods"] if method not in grid or method in few]


def draw_plots(folder: Path, scores: Scores, summary: dict, ending: str) -> None:
    """Perception against distortion, the paired methods picture by picture, and the surface of a grid."""
    from pisasr.evaluation import plots

    folder.mkdir(parents=True, exist_ok=True)
    computed = [m for m in summary["protocol"]["metrics"] if m not in summary["not_available"]]
    means = {m: [columns.get(m, {}).get("mean") for columns in summary["methods"].values()] for m in computed}
    computed = [m for m in computed if any(mean is not None for mean in means[m])]
    distortion = next((m for m in ("psnr", "psnr_lq", "ssim") if m in computed), None)
    perceptual = [m for m in computed if m not in ("psnr", "ssim", "psnr_lq")]
    if distortion and perceptual:
        pairs = summary.get("surface", {}).get("methods", {})  # they are the curves
        points = {name: _points(columns) for name, columns in summary["methods"].items() if name not in pairs}
        curves = _curves(summary, [distortion, *perceptual])
        path = folder / f"perception_distortion.{ending}"
        plots.draw_perception_distortion(path, points, distortion, perceptual, curves)
    single = [m for m in computed if METRICS[m].needs != "hq_set"]
    if summary["paired"] and single:
        pair = summary["paired"][0]
        path = folder / f"differences.{ending}"
        plots.draw_differences(path, scores.rows, single, pair["first"], pair["second"])
    if surface := summary.get("surface"):
        best = tuple(surface.get("best", {}).get("pair", ())) or None
        maps = {m: surface["maps"][m] for m in computed if m in surface["maps"]}
        maps = {m: [[float("nan") if v is None else v for v in row] for row in rows] for m, rows in maps.items()}
        if maps:
            path = folder / f"surface.{ending}"
            plots.draw_surface(path, maps, surface["lambdas_pix"], surface["lambdas_sem"], best)


def draw_sheets(folder: Path, examples: Sequence[Example], scores: Scores, count: int) -> None:
    """sheets/sheet_01.png ...: the pictures on which the methods of the folders differ most, where they do."""
    from pisasr.evaluation import figure

    decimals = METRICS["psnr"].decimals
    captions = {(row["method"], row["name"]): f"{row['psnr']:.{decimals}f} dB" for row in scores.rows if "psnr" in row}
    folder.mkdir(parents=True, exist_ok=True)
    chosen = figure.pick_examples(examples, count, DETAIL_PX)
    for number, sheet in enumerate(figure.draw_sheets(chosen, DETAIL_PX, captions), start=1):
        sheet.save(folder / f"sheet_{number:02d}.png")


def write_overview(output: Path, summaries: Sequence[dict]) -> None:
    """For several sets: one table.md, table.tex and summary.json above those of each."""
    built = [tables.build_table(summary, shown_methods(summary)) for summary in summaries]
    write_whole(output / "table.md", tables.to_markdown(built))
    write_whole(output / "table.tex", tables.to_latex(built))
    together = {summary["set"]: summary for summary in summaries}
    write_whole(output / "summary.json", json.dumps(together, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _what_the_set_lacks(test_set: TestSet, metrics: Iterable[str]) -> dict[str, str]:
    needs = {"hq": test_set.hr, "hq_set": test_set.hr, "lq": test_set.lr}
    words = {"hq": "true pictures", "hq_set": "true pictures", "lq": "inputs"}
    return {
        name: f"{test_set.name or 'the set'} has no {words[METRICS[name].needs]}"
        for name in metrics
        if METRICS[name].needs and not needs[METRICS[name].needs]
    }


def _choose_pairs(settings: Settings, methods: list[str]) -> list[tuple[str, str]]:
    if settings.paired:
        if unknown := [name for name in settings.paired if name not in methods]:
            raise PisasrError(f"--paired {unknown[0]}: no such method; there are {', '.join(methods)}")
        return [settings.paired]
    if settings.grid:
        grid = settings.grid.methods
        corners = [method for pair in ((1.0, 1.0), (1.0, 0.0)) for method, other in grid.items() if other == pair]
        methods = [*(method for method in methods if method not in grid), *corners]
    return [(methods[0], methods[1])] if len(methods) > 1 else []


def _fingerprint(panel: Panel, settings: Settings) -> str:
    recipes = {name: describe(name, settings.protocol) for name in [*panel.scorers, *panel.extractors]}
    grid = settings.grid.fingerprint if settings.grid else ""
    return json.dumps([recipes, list(panel.checks), installed_versions(), grid])


def _points(columns: dict) -> dict:
    return {
        name: (column["mean"], *column.get("interval", (None, None)))
        for name, column in columns.items()
        if isinstance(column, dict)
    }


def _curves(summary: dict, metrics: Sequence[str]) -> list[tuple[str, list[dict[str, float]]]]:
    surface = summary.get("surface")
    if not surface:
        return []
    means = [
        {"lambda_pix": pix, "lambda_sem": sem, **{m: _mean(summary["methods"][method], m) for m in metrics}}
        for method, (pix, sem) in surface["methods"].items()
    ]
    return [("ours", means)]


def _mean(columns: dict, metric: str) -> float:
    mean = columns.get(metric, {}).get("mean")
    return float("nan") if mean is None else mean
