"""Score, last stop: summaries as tables, for a terminal, Markdown, a paper; best bold, second
underlined, notes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pisasr.evaluation.metrics import METRICS

Summary = dict[str, Any]  # as report.summarise makes it

LATEX_SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    ">": r"$>$",
    "<": r"$<$",
}
LATEX_SPECIAL |= {
    "λ": r"$\lambda$",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}

PAIRED_HEADS = [
    "Pair",
    "Metric",
    "Mean difference",
    "95 % interval",
    "Better : worse",
    "p (sign flips)",
]


class Cell(NamedTuple):
    """A number as it is printed, its interval ("" if none), and whether it is the best (1) or the
    second (2).
    """

    text: str
    interval: str = ""
    rank: int = 0


class Table(NamedTuple):
    """One test set: heads with arrows to where better is, a row of cells per method, and what must
    be known of them.
    """

    title: str
    heads: list[str]
    rows: dict[str, list[Cell]]
    paired: list[list[str]]
    notes: list[str]


def build_table(summary: Summary) -> Table:
    """The table of a summary; of a grid of strengths only the corners (1, 0), (1, 1) and the chosen
    pair are shown.
    """
    shown = {method: summary["methods"][method] for method in _choose_methods(summary)}
    metrics = list(summary["protocol"]["metrics"])
    ranks = {metric: _rank(metric, shown) for metric in metrics}
    timed = any("seconds" in columns for columns in shown.values())
    rows = {}
    for method, columns in shown.items():
        rows[method] = [
            _cell(metric, columns.get(metric), ranks[metric].get(method, 0)) for metric in metrics
        ]
        rows[method] += [
            Cell(f"{columns['seconds']:.2f}" if "seconds" in columns else "n/a")
        ] * timed
    heads = ["Method", *(METRICS[metric].head for metric in metrics), *["s / picture"] * timed]
    return Table(
        summary["set"],
        heads,
        rows,
        list(map(_paired, summary["paired"])),
        list(_notes(summary, shown)),
    )


def _choose_methods(summary: Summary) -> list[str]:
    surface = summary.get("surface", {"methods": {}})
    kept = {(1.0, 0.0), (1.0, 1.0), tuple(surface.get("best", {}).get("pair", ()))}
    grid = surface["methods"]
    few = [method for method, pair in grid.items() if tuple(pair) in kept] or list(grid)
    return [method for method in summary["methods"] if method not in grid or method in few]


def _rank(metric: str, methods: Summary) -> dict[str, int]:
    """method -> 1 for the best, 2 for the second; equal numbers share. A lone method is neither.

    Infinite throughout is a number, too; where a method has none, nobody can be said to be the
    best.
    """
    columns = {name: columns[metric] for name, columns in methods.items() if metric in columns}
    means = {name: column["mean"] for name, column in columns.items()}
    for name, column in columns.items():
        if means[name] is None and len(column.get("identical", ())) == column["count"]:
            means[name] = math.inf
    if None in means.values():
        return {}
    order = sorted(set(means.values()), reverse=METRICS[metric].higher_is_better)[:2]
    return (
        {name: order.index(mean) + 1 for name, mean in means.items() if mean in order}
        if len(means) > 1
        else {}
    )


def _cell(metric: str, column: Summary | None, rank: int) -> Cell:
    if column is None:
        return Cell("n/a")
    decimals = METRICS[metric].decimals
    if column["mean"] is None:
        kind, names = (
            ("nan", column["not_a_number"])
            if "not_a_number" in column
            else ("inf", column.get("identical"))
        )
        return Cell(f"{kind} ({len(names)} of {column['count']})" if names else "nan", rank=rank)
    low, high = column.get("interval", (math.nan, math.nan))
    interval = "" if math.isnan(low) else f"{low:.{decimals}f}, {high:.{decimals}f}"
    return Cell(f"{column['mean']:.{decimals}f}", interval, rank)


def _paired(row: Summary) -> list[str]:
    metric = METRICS[row["metric"]]
    decimals, pair = metric.decimals + 1, [f"{row['first']} - {row['second']}", metric.label]
    if row["count"] == 0:
        return [*pair, *["n/a"] * 4]
    difference, low, high = (
        f"{number:+.{decimals}f}" for number in (row["difference"], *row["interval"])
    )
    score = f"{row['first_better']} : {row['second_better']} of {row['count']}"
    return [
        *pair,
        difference,
        f"{low}, {high}",
        score,
        f"{row['p']:.4f}" if row["p"] > 1.5e-4 else "<= 0.0001",
    ]


def _notes(summary: Summary, methods: Summary) -> Iterator[str]:
    protocol, count, before = summary["protocol"], summary["pictures"], summary["pictures_before"]
    about = f" of {summary['set']}" if summary["set"] else ""
    counted = (
        f"{count} of the {before} pictures"
        if before > count
        else f"{count} picture{'s' * (count != 1)}"
    )
    yield f"{counted}{about}, paired by name; {protocol['average']}; in brackets: {protocol['interval']}."
    if count < 10:
        yield f"So few pictures say little about others: intervals are too narrow, no p can be below {2 / 2**count:g}."
    if check := summary["set_check"]:
        yield f"{check[0].upper()}{check[1:]}."
    yield f"Protocol {protocol['name']}: {protocol['source']}. Files: {protocol['pictures']}."
    for name, recipe in protocol["metrics"].items():
        if name not in summary["not_available"]:
            yield f"{METRICS[name].label}: {recipe}; {count} pictures."
    yield from (f"{what}: {words}." for what, words in summary["made_by"].items())
    if "fid" in protocol["metrics"] and "fid" not in summary["not_available"] and count < 2048:
        yield f"FID of {count} pictures is biased upwards; only tables with the same {count} compare."
    yield from remarks(methods)
    yield from (
        f"{METRICS[name].label}: n/a. {reason}."
        for name, reason in summary["not_available"].items()
    )
    yield from (f"Failed: {fault}." for fault in summary["faults"])
    yield from (f"Left out: {problem}." for problem in summary["left_out"])


def remarks(methods: Summary, most: int | None = None) -> Iterator[str]:
    """Which pictures have no number, and which are the true ones, so that a mean says less. most:
    names of a line.
    """

    def listed(names: Sequence[str]) -> str:
        return ", ".join(names[:most]) + (
            f" and {len(names) - most} more" if most and len(names) > most else ""
        )

    for method, columns in methods.items():
        for name, column in columns.items():
            if isinstance(column, dict) and "not_a_number" in column:
                wants = f" (it wants {METRICS[name].wants})" if METRICS[name].wants else ""
                yield f"{method}, {METRICS[name].label}: no number for {listed(column['not_a_number'])}{wants}."
            if isinstance(column, dict) and "identical" in column:
                yield f"{method}: equal to the true picture: {listed(column['identical'])}."


# --- forms ----------------------------------------------------------------------------------------


def to_text(table: Table) -> str:
    """For a terminal: means alone, the best marked *."""
    lines = [table.heads]
    lines += [
        [name, *(c.text + ("*" if c.rank == 1 else " ") for c in cells)]
        for name, cells in table.rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        [name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])] for name, *numbers in lines
    )
    return "".join("  ".join(cells).rstrip() + "\n" for cells in aligned)


def to_markdown(tables: Sequence[Table]) -> str:
    """A table per set, its pairs, its notes."""
    texts = []
    for table in tables:
        text = f"## {table.title}\n\n" if len(tables) > 1 else ""
        rows = [[_plain(name), *map(_markdown_cell, cells)] for name, cells in table.rows.items()]
        text += pipes([table.heads, ["---", *["---:"] * (len(table.heads) - 1)], *rows])
        if table.paired:
            pairs = [[_plain(cell) for cell in row] for row in table.paired]
            text += "\n" + pipes([PAIRED_HEADS, ["---", "---", *["---:"] * 4], *pairs])
        texts.append(text + "\n" + "\n".join(f"- {note}" for note in table.notes) + "\n")
    return "\n".join(texts)


def _markdown_cell(cell: Cell) -> str:
    text = (cell.text, f"**{cell.text}**", f"<u>{cell.text}</u>")[cell.rank]
    return f"{text} <sub>[{cell.interval}]</sub>" if cell.interval else text


def pipes(lines: Iterable[Sequence[str]]) -> str:
    """Lines of a Markdown table."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _plain(name: str) -> str:
    return name.replace("|", "\\|")


def surface_markdown(summary: Summary) -> str:
    """The maps of a grid of strengths, lambda_pix down and lambda_sem across; "" where there is no
    grid.
    """
    if not (surface := summary.get("surface")):
        return ""
    text = (
        f"\n## Strengths\n\n{surface['best']['rule']}: {surface['best']['words']}\n"
        if "best" in surface
        else ""
    )
    heads = ["lambda_pix \\ lambda_sem", *(f"{value:g}" for value in surface["lambdas_sem"])]
    for metric, rows in surface["maps"].items():
        decimals = METRICS[metric].decimals
        lines = [heads, ["---:"] * len(heads)]
        for pix, row in zip(surface["lambdas_pix"], rows, strict=True):
            lines.append(
                [
                    f"{pix:g}",
                    *("n/a" if value is None else f"{value:.{decimals}f}" for value in row),
                ]
            )
        text += (
            f"\n{METRICS[metric].label}, means of {summary['pictures']} pictures:\n\n{pipes(lines)}"
        )
    return text


def to_latex(tables: Sequence[Table]) -> str:
    """One `table` (needs booktabs) with a block per set; intervals stand small under the means,
    notes under all.
    """
    rows, pairs = [], []
    for table in tables:
        rows += [r"\midrule", *_latex_title(table, len(table.heads), len(tables))]
        for name, cells in table.rows.items():
            rows.append(_latex_row([escape_latex(name), *map(_latex_cell, cells)]))
            if any(cell.interval for cell in cells):
                small = [
                    rf"{{\scriptsize [{cell.interval}]}}" if cell.interval else "" for cell in cells
                ]
                rows.append(" & ".join(["", *small]) + r" \\")
        pairs += [*_latex_title(table, len(PAIRED_HEADS), len(tables))]
        pairs += [_latex_row(map(escape_latex, row)) for row in table.paired]
    heads = [
        escape_latex(h).replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")
        for h in tables[0].heads
    ]
    lines = [
        r"\begin{table}[t]",
        r"\centering\small",
        *_tabular("l" + "r" * (len(heads) - 1), heads, rows),
    ]
    if any(table.paired for table in tables):
        lines += [
            r"\par\medskip",
            *_tabular("llrrrr", map(escape_latex, PAIRED_HEADS), [r"\midrule", *pairs]),
        ]
    # What is true of every set stands once, what is true of one alone behind its name.
    common = [note for note in tables[0].notes if all(note in table.notes for table in tables)]
    notes = common + [
        f"{t.title}: {note}" for t in tables for note in t.notes if note not in common
    ]
    small = [_latex_row([escape_latex(note)]) for note in notes]
    lines += [r"\par\medskip\parbox{\linewidth}{\scriptsize", *small, "}"]
    return "\n".join([*lines, r"\caption{Best in bold, second underlined.}", r"\end{table}", ""])


def _tabular(columns: str, heads: Iterable[str], rows: Sequence[str]) -> list[str]:
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(heads)]
    return [*begin, *rows, r"\bottomrule", r"\end{tabular}"]


def _latex_title(table: Table, columns: int, sets: int) -> list[str]:
    return (
        [rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{escape_latex(table.title)}}}}} \\"]
        if sets > 1
        else []
    )


def _latex_row(cells: Iterable[str]) -> str:
    """A line that may follow a line break: LaTeX would take a bracket or a star there for the
    break's own.
    """
    line = " & ".join(cells)
    return ("{}" + line if line.startswith(("[", "*")) else line) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    return (text, rf"\textbf{{{text}}}", rf"\underline{{{text}}}")[cell.rank]


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    text = text.replace(">=", "≥").replace("<=", "≤")
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)
