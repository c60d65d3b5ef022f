"""Score, beside the report: what others have printed or measured, and how far ours is from it.

Means are held against the tables of the literature: published.json has every number with its
source, and whether it was read or is remembered.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pisasr.errors import PisasrError
from pisasr.evaluation.tables import pipes
from pisasr.evaluation.testsets import did_you_mean, fold_name, known_sets


class PublishedRow(NamedTuple):
    """One line of a table. Scores are text, as printed: 25.50 says more than 25.5. read: False
    where remembered.
    """

    set: str
    method: str
    scores: dict[str, str]
    source: str
    read: bool
    note: str = ""


class Comparison(NamedTuple):
    """A number of ours, None where we have none, beside the one printed in a row."""

    method: str
    metric: str
    ours: float | None
    row: PublishedRow

    @property
    def published(self) -> str:
        return self.row.scores[self.metric]

    @property
    def decimals(self) -> int:
        return len(self.published.partition(".")[2])

    @property
    def tolerance(self) -> float:
        """The source's own, else the set's, else the metric's; at least half a unit of the last
        printed digit.
        """
        stated = load_published()["tolerance"]
        rules = (
            stated["by_source"].get(self.row.source, {}),
            stated["by_set"].get(self.row.set, {}),
        )
        found = next(
            rule[self.metric] for rule in (*rules, stated["default"]) if self.metric in rule
        )
        return max(found, 0.5 * 10**-self.decimals)

    @property
    def difference(self) -> float | None:
        """Ours - published."""
        return None if self.ours is None else self.ours - float(self.published)

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return "not computed"
        within = (
            round(abs(self.difference), 9) <= self.tolerance
        )  # 25.53 - 25.50 is a hair more than 0.03 in binary
        return "reproduced" if within else "not reproduced"

    def cells(self) -> list[str]:
        """Ours has one decimal more than what was printed, so that a difference within rounding can
        be seen.
        """
        row, decimals, gap = self.row, self.decimals + 1, self.difference
        return [
            self.method
            if fold_name(self.method) == fold_name(row.method)
            else f"{self.method} = {row.method}",
            self.metric.upper(),
            "n/a" if self.ours is None else f"{self.ours:.{decimals}f}",
            self.published,
            "n/a" if gap is None else f"{round(gap, decimals) + 0.0:+.{decimals}f}",
            f"{self.tolerance:g}",
            self.verdict,
            row.source if row.read else f"{row.source} (remembered)",
        ]


@cache
def load_published() -> dict[str, Any]:
    """The tables that come with this package: sources, tolerance with its reasons, rows
    (PublishedRow).
    """
    data = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return data | {"rows": [PublishedRow(**row) for row in data["rows"]]}


def compare_published(
    set_name: str, methods: Mapping[str, Mapping[str, float | None]], aliases: Mapping[str, str]
) -> list[Comparison]:
    """Our means (method -> metric -> mean) beside every number printed for that set; PisasrError on
    an unknown set.

    Methods are the same when their names are, but for case, spaces, hyphens and underscores;
    `aliases` says what another name of ours is called in the tables, as in {"ours (1, 1)":
    "PiSA-SR"}.
    """
    every = load_published()["rows"]
    if not (known := _find_set(set_name)):
        sets = did_you_mean(set_name, dict.fromkeys(row.set for row in every))
        raise PisasrError(f"nothing is published here on {set_name!r}; {sets}")
    found = []
    for method, scores in methods.items():
        name = _published_name(method, aliases)
        finite = {
            metric: mean
            for metric, mean in scores.items()
            if mean is not None and math.isfinite(mean)
        }
        rows = [row for row in every if row.set == known and fold_name(row.method) == name]
        found += [
            Comparison(method, metric, finite.get(metric), row)
            for row in rows
            for metric in row.scores
        ]
    return found


def compare_summary(summary: dict[str, Any], aliases: Mapping[str, str]) -> list[str]:
    """The paragraphs that hold a summary's means against the literature, in Markdown."""
    count, protocol = summary["pictures"], summary["protocol"]["name"]
    said = [f"{count} pictures, protocol {protocol}; the published numbers are by stablesr.\n"]
    if not (known := _find_set(summary["set"])):
        return [*said, f"Nothing is published here on {summary['set']}.\n"]
    means = {
        method: {
            name: column["mean"] for name, column in columns.items() if isinstance(column, dict)
        }
        for method, columns in summary["methods"].items()
    }
    return [
        *said,
        render_published(known, compare_published(known, means, aliases), list(means), count),
    ]


def render_published(
    known: str, found: list[Comparison], methods: Iterable[str], count: int
) -> str:
    """Markdown: a line that sums up, a row per printed number, what is to be known of them, the
    sources.

    known: the set, as the tables spell it. methods: all of ours; of which nothing is published is
    said. count: of our pictures.
    """
    heads = [
        "Method",
        "Metric",
        "Ours",
        "Published",
        "Difference",
        "Tolerance",
        "Verdict",
        "Source",
    ]
    rows = [comparison.cells() for comparison in found]
    table = (
        pipes([heads, ["---", "---", *["---:"] * 4, "---", "---"], *rows]) + "\n" if rows else ""
    )
    sources, tolerance = load_published()["sources"], load_published()["tolerance"]
    used = dict.fromkeys(comparison.row.source for comparison in found)
    unknown = [
        method for method in methods if method not in {comparison.method for comparison in found}
    ]
    notes = [f"Nothing is published here on {known} for: {', '.join(unknown)}."] if unknown else []
    if count != (wanted := known_sets()[known]["count"]):
        counted = f"{count} pictures were scored, the published {known} has {wanted}"
        notes.append(f"{counted}: means, and FID most of all, are about other pictures.")
    notes += dict.fromkeys(
        f"{c.row.method}, {c.row.source}: {c.row.note}." for c in found if c.row.note
    )
    notes += [f"Tolerance: {tolerance['why']}"] if used else []
    notes += [
        f"Tolerance of {key}: {tolerance['by_source_why']}"
        for key in used
        if key in tolerance["by_source"]
    ]
    notes += [f"{key}: {sources[key]}" for key in used]
    return f"{known}: {_sum_up(found)}\n\n{table}" + "".join(f"- {note}\n" for note in notes)


def check_aliases(set_names: Iterable[str], aliases: Mapping[str, str]) -> None:
    """PisasrError if nothing is published on any of these sets, or an alias is a name that no table
    has.
    """
    names = list(set_names)
    known = [name for name in names if _find_set(name)] or names[:1]
    compare_published(known[0], {method: {} for method in aliases}, aliases)


def _find_set(name: str) -> str | None:
    """The tables' own spelling of a set's name; None if they don't have it."""
    return {fold_name(row.set): row.set for row in load_published()["rows"]}.get(fold_name(name))


def _published_name(method: str, aliases: Mapping[str, str]) -> str:
    """The folded name to look for; an alias must be a name that some table has."""
    name = next(
        (theirs for ours, theirs in aliases.items() if fold_name(ours) == fold_name(method)), None
    )
    known = dict.fromkeys(row.method for row in load_published()["rows"])
    if name is not None and fold_name(name) not in map(fold_name, known):
        raise PisasrError(
            f"no table here has {name!r}, which {method!r} is said to be; {did_you_mean(name, known)}"
        )
    return fold_name(name or method)


def _sum_up(comparisons: list[Comparison]) -> str:
    if not comparisons:
        return "no published number to compare with."
    count, total = Counter(comparison.verdict for comparison in comparisons), len(comparisons)
    line = f"{count['reproduced']} of {total} published numbers reproduced within their tolerance"
    line += f"; {count['not reproduced']} not reproduced" if count["not reproduced"] else ""
    line += f"; {count['not computed']} not computed here" if count["not computed"] else ""
    remembered = sum(not comparison.row.read for comparison in comparisons)
    return (
        line
        + (f"; {remembered} of the {total} are remembered, not read" if remembered else "")
        + "."
    )
