"""Score: one test set from its folders to its report. Score each picture, summarise, write.

`pisasr evaluate` and scripts/compare.py both walk it, after testsets.check_set has paired the
pictures. OUTPUT receives per_image.csv, summary.json, table.md and table.tex, plots/ and sheets/,
and for a grid of strengths surface.csv, whose maps stand in table.md, too.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pisasr.errors import PisasrError
from pisasr.evaluation import tables
from pisasr.evaluation.metrics import METRICS
from pisasr.evaluation.pairs import Pairing
from pisasr.evaluation.processes import Processes
from pisasr.evaluation.report import Settings, installed_versions, summarise, to_json, write_report
from pisasr.evaluation.scoring import Scores, describe, read_methods, score_set
from pisasr.evaluation.testsets import TestSet
from pisasr.files import write_whole

JOURNALS = ".scores"  # folder in OUTPUT, there while a run is unfinished


def evaluate_set(
    one: TestSet, pairing: Pairing, settings: Settings, output: Path, processes: Processes
) -> dict[str, Any] | None:
    """Score a set and write its report; the summary for the first process, None for the others."""
    settings = _ask_what_can_be_answered(settings, one)
    pictures = settings.grid.pictures if settings.grid else read_methods
    fingerprint, label = _fingerprint(settings), f"scoring {one.name}".strip()
    scores = score_set(
        pairing.examples,
        settings.scorers,
        pictures,
        output / JOURNALS,
        fingerprint,
        processes,
        label,
    )
    if scores is None:
        return None
    summary = summarise(scores, settings, one.name, pairing, _choose_pair(settings, scores))
    write_report(output, pairing.examples, scores, summary, settings)
    shutil.rmtree(output / JOURNALS, ignore_errors=True)
    return summary


def write_overview(output: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """For several sets: one table.md, table.tex and summary.json above those of each."""
    built = [tables.build_table(summary) for summary in summaries]
    write_whole(output / "table.md", tables.to_markdown(built))
    write_whole(output / "table.tex", tables.to_latex(built))
    write_whole(
        output / "summary.json", to_json({summary["set"]: summary for summary in summaries})
    )


def _ask_what_can_be_answered(settings: Settings, one: TestSet) -> Settings:
    """The settings without the metrics that want pictures which this set has not."""
    there = {None: True, "hq": one.hr, "hq_set": one.hr, "lq": one.lr}
    words = {"hq": "true pictures", "hq_set": "true pictures", "lq": "inputs"}
    needs = {metric: METRICS[metric].needs for metric in settings.metrics}
    absent = {
        m: f"{one.name or 'the set'} has no {words[n]}"
        for m, n in needs.items()
        if n and not there[n]
    }
    scorers = {name: scorer for name, scorer in settings.scorers.items() if name not in absent}
    return replace(settings, scorers=scorers, missing={**settings.missing, **absent})


def _choose_pair(settings: Settings, scores: Scores) -> Sequence[str]:
    """The two methods that are compared picture by picture: those asked for, else the first two; of
    a grid (1, 1) and (1, 0) come last. Nobody where there is one method."""
    methods = list(dict.fromkeys(row["method"] for row in scores.rows))
    if unknown := [name for name in settings.paired if name not in methods]:
        raise PisasrError(f"--paired {unknown[0]}: no such method; there are {', '.join(methods)}")
    if settings.grid and not settings.paired:
        grid = settings.grid.methods
        corners = [
            method
            for pair in ((1.0, 1.0), (1.0, 0.0))
            for method, other in grid.items()
            if other == pair
        ]
        methods = [*(method for method in methods if method not in grid), *corners]
    return settings.paired or methods[:2] * (len(methods) > 1)


def _fingerprint(settings: Settings) -> str:
    """All that numbers depend on beside the files."""
    recipes = {name: describe(name, settings.protocol) for name in settings.scorers}
    return json.dumps(
        [recipes, installed_versions(), settings.grid.fingerprint if settings.grid else ""]
    )
