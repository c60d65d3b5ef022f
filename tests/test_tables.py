"""Tables say what the summary says, in a form that survives Markdown and LaTeX."""

from pisasr.evaluation.metrics import PROTOCOLS, STABLESR
from pisasr.evaluation.pairs import Pairing
from pisasr.evaluation.report import Settings, summarise
from pisasr.evaluation.scoring import Scores
from pisasr.evaluation.tables import build_table, escape_latex, to_latex, to_markdown, to_text


def summary_of(
    scores: dict[str, list[float]], metric="psnr", left_out=(), set_name="", protocol=STABLESR
):
    rows = [
        {"method": m, "name": f"{k}.png", metric: v}
        for m, values in scores.items()
        for k, v in enumerate(values)
    ]
    settings = Settings([metric], protocol, scorers={metric: None})
    return summarise(Scores(rows), settings, set_name, Pairing([], list(left_out)))


def ranks(scores, metric="psnr"):
    return {
        name: cells[0].rank for name, cells in build_table(summary_of(scores, metric)).rows.items()
    }


def test_best_and_second_follow_the_metrics_direction():
    scores = {"a": [1.0, 2], "b": [3.0, 4], "c": [5.0, 6]}
    assert ranks(scores) == {"a": 0, "b": 2, "c": 1}
    assert ranks(scores, "niqe") == {"a": 1, "b": 2, "c": 0}


def test_equals_share_a_rank_and_a_lone_method_has_none():
    assert ranks({"a": [2.0], "b": [2.0], "c": [1.0]}) == {"a": 1, "b": 1, "c": 2}
    assert ranks({"a": [2.0]}) == {"a": 0}


def test_nobody_is_best_where_a_method_has_no_mean():
    assert ranks({"a": [2.0, float("nan")], "b": [1.0, 1.0], "c": [0.5, 0.5]}) == {
        "a": 0,
        "b": 0,
        "c": 0,
    }


def test_forms():
    table = build_table(
        summary_of({"a_1": [20.0, 21], "b & c": [30.0, 31]}, left_out=["x_y.png is 3x3"])
    )
    markdown, latex = to_markdown([table]), to_latex([table])
    assert (
        "| b & c | **30.50** <sub>[30.00, 31.00]</sub> |" in markdown and "<u>20.50</u>" in markdown
    )
    assert r"a\_1 & \underline{20.50}" in latex and r"b \& c & \textbf{30.50}" in latex
    assert r"x\_y.png is 3x3" in latex and "Left out: x_y.png is 3x3." in markdown
    assert latex.count("{") == latex.count("}")
    assert to_text(table).splitlines()[2].split() == ["b", "&", "c", "30.50*"]


def test_a_row_may_begin_as_a_line_breaks_option_would():
    table = build_table(summary_of({"[br]": [1.0], "*": [2.0]}))
    assert "\n{}[br] & " in to_latex([table]) and "\n{}* & " in to_latex([table])


def test_an_infinite_mean_is_the_best():
    equal = {"a": [float("inf")], "b": [30.0], "c": [20.0]}
    table = build_table(summary_of(equal, protocol=PROTOCOLS["basicsr"]))
    assert {name: cells[0].rank for name, cells in table.rows.items()} == {"a": 1, "b": 2, "c": 0}


def test_several_sets_are_blocks_of_one_latex_table():
    tables = [
        build_table(summary_of({"a": [1.0], "b": [2.0]}, set_name=name))
        for name in ("RealSR", "DRealSR")
    ]
    assert to_latex(tables).count(r"\emph{") == 2 and to_latex(tables).count(r"\begin{table}") == 1


def test_latex_prints_every_special_character():
    assert (
        escape_latex("50 % of a_b {c} ~^\\")
        == r"50 \% of a\_b \{c\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
