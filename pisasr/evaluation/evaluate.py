"""Score: one test set from its folders to its report. Pair and check, score each picture, summarise, write.

`pisasr evaluate` and scripts/compare.py both walk it. OUTPUT receives per_image.csv, summary.json, table.md and
table.tex, plots/ and sheets/, and for a grid of strengths surface.csv, whose maps stand in table.md, too.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pisasr.errors import PisasrError
from pisasr.evaluation import tables
from pisasr.evaluation.metrics import METRICS, STABLESR, Protocol
from pisasr.evaluation.pairs import Pairing, pair_folders
from pisasr.evaluation.processes import Processes
from pisasr.evaluation.report import installed_versions, summarise, to_json, write_report
from pisasr.evaluation.scoring import Panel, Scores, describe, read_methods, score_set
from pisasr.evaluation.surface import Grid
from pisasr.evaluation.testsets import TestSet, recognise, verify_known, verify_manifest
from pisasr.files import write_whole
from pisasr.pictures.folders import SUFFIX

JOURNALS = ".scores"  # folder in OUTPUT, there while a run is unfinished


@dataclass(frozen=True)
class Settings:
    """What holds for every set of a run. paired: two methods, none for the first two. plots: a file ending, "" for
    none. sheets: how many pictures the comparison sheets show. seconds: method -> median per picture. made_by: what
    else produced the pictures, in words for the notes."""

    metrics: Sequence[str]
    protocol: Protocol = STABLESR
    paired: Sequence[str] = ()
    plots: str = "png"
    sheets: int = 8
    grid: Grid | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """A set whose files were looked at: its examples and what kept pictures out, and what was found out about it."""

    set: TestSet
    pairing: Pairing
    check: str = ""


def check_set(one: TestSet, suffix: str = SUFFIX) -> Checked:
    """Pair a set's folders, and refuse one that is not what its name or its manifest says."""
    name = one.name or (recognise(one.hr) if one.hr else None) or ""
    found = [verify_known(name, one.hr, one.lr) if name else None, verify_manifest(one.lr, one.hr) if one.lr else None]
    pairing = pair_folders(one.sr, one.hr, one.lr, suffix)
    return Checked(TestSet(name, one.sr, one.hr, one.lr), pairing, "; ".join(filter(None, found)))


def evaluate_set(
    checked: Checked, panel: Panel, settings: Settings, output: Path, processes: Processes
) -> tuple[dict[str, Any], Scores] | None:
    """Score a set and write its report; the summary and the scores for the first process, None for the others."""
    one, examples, grid = checked.set, checked.pairing.examples, settings.grid
    there = {None: True, "hq": one.hr, "hq_set": one.hr, "lq": one.lr}
    words = {"hq": "true pictures", "hq_set": "true pictures", "lq": "inputs"}
    needs = {metric: METRICS[metric].needs for metric in settings.metrics}
    absent = {m: f"{one.name or 'the set'} has no {words[n]}" for m, n in needs.items() if n and not there[n]}
    panel = panel.drop(absent)
    pictures = grid.pictures if grid else read_methods
    label, journals = f"scoring {one.name}".strip(), output / JOURNALS
    scores = score_set(examples, panel, pictures, journals, _fingerprint(panel, settings), processes, label)
    if scores is None:
        return None
    methods = list(dict.fromkeys(row["method"] for row in scores.rows))
    summary = summarise(scores, panel, settings, checked, _choose_pair(settings, methods))
    if grid:
        grid.add_to(summary)
    write_report(output, examples, scores, summary, settings)
    shutil.rmtree(journals, ignore_errors=True)
    return summary, scores


def write_overview(output: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """For several sets: one table.md, table.tex and summary.json above those of each."""
    built = [tables.build_table(summary) for summary in summaries]
    write_whole(output / "table.md", tables.to_markdown(built))
    write_whole(output / "table.tex", tables.to_latex(built))
    write_whole(output / "summary.json", to_json({summary["set"]: summary for summary in summaries}))


def _choose_pair(settings: Settings, methods: list[str]) -> Sequence[str]:
    """The two methods that are compared picture by picture: those asked for, else the first two; of a grid (1, 1) and
    (1, 0) come last. Nobody where there is one method."""
    if unknown := [name for name in settings.paired if name not in methods]:
        raise PisasrError(f"--paired {unknown[0]}: no such method; there are {', '.join(methods)}")
    if settings.grid and not settings.paired:
        grid = settings.grid.methods
        corners = [method for pair in ((1.0, 1.0), (1.0, 0.0)) for method, other in grid.items() if other == pair]
        methods = [*(method for method in methods if method not in grid), *corners]
    return settings.paired or methods[:2] * (len(methods) > 1)


def _fingerprint(panel: Panel, settings: Settings) -> str:
    """All that numbers depend on beside the files."""
    recipes = {name: describe(name, settings.protocol) for name in [*panel.scorers, *panel.extractors]}
    grid = settings.grid.fingerprint if settings.grid else ""
    return json.dumps([recipes, installed_versions(), grid])
