"""A rule in words chooses the pair that a person would choose by it, or says in one line what it
can't read.
"""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisasr.errors import PisasrError, UsageError
from pisasr.evaluation.rules import (
    Choice,
    Limit,
    Rule,
    choose,
    describe,
    parse_lambdas,
    parse_rule,
    pick,
)

NAN = math.nan


def scores(**columns) -> dict[tuple[float, float], dict[str, float]]:
    """Pairs (0, 0), (1, 0), ... with one column for each metric."""
    rows = zip(*columns.values(), strict=True)
    return {
        (float(number), 0.0): dict(zip(columns, row, strict=True))
        for number, row in enumerate(rows)
    }


def chosen(rule: str, **columns) -> tuple[float, bool]:
    choice = choose(parse_rule(rule), scores(**columns))
    return choice.pair[0], choice.kept


# --- reading a rule -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("psnr", Rule("psnr")),
        ("niqe where psnr_lq >= 30", Rule("niqe", (Limit("psnr_lq", ">=", 30.0),))),
        ("  niqe  where\npsnr_lq>=-3e1 ", Rule("niqe", (Limit("psnr_lq", ">=", -30.0),))),
        (
            "clipiqa where psnr >= 25 and ssim >= .7 and niqe <= 5",
            Rule(
                "clipiqa",
                (Limit("psnr", ">=", 25.0), Limit("ssim", ">=", 0.7), Limit("niqe", "<=", 5.0)),
            ),
        ),
    ],
)
def test_a_rule_is_read_and_its_text_reads_back(text, rule):
    assert parse_rule(text) == rule == parse_rule(str(rule))


def test_the_canonical_text_and_the_metrics_needed():
    rule = parse_rule("niqe  where psnr_lq>=30.0 and niqe <= 7.25 and psnr_lq <= 40")
    assert str(rule) == "niqe where psnr_lq >= 30 and niqe <= 7.25 and psnr_lq <= 40"
    assert rule.metrics == ["niqe", "psnr_lq"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "METRIC"),
        ("niqe psnr_lq >= 30", "METRIC"),
        ("niqe where", "METRIC"),
        ("niqe where psnr_lq", "METRIC >= NUMBER"),
        ("niqe where psnr_lq > 30", "METRIC >= NUMBER"),
        ("niqe where psnr_lq => 30", "METRIC >= NUMBER"),
        ("niqe where psnr_lq == 30", "METRIC >= NUMBER"),
        ("niqe where psnr_lq >= 30, ssim >= 1", "METRIC >= NUMBER"),
        ("niqe where psnr_lq >= 30 or ssim >= 1", "METRIC >= NUMBER"),
        ("niqe where psnr_lq >= 30 and", "METRIC >= NUMBER"),
        ("niqe where psnr_lq >= thirty", "'thirty' is not a finite number"),
        ("niqe where psnr_lq >= inf", "'inf' is not a finite number"),
        ("niqe where psnr_lq >= nan", "'nan' is not a finite number"),
        ("nique", "did you mean niqe?"),
        ("NIQE", "did you mean niqe?"),
        ("niqe where psnr_lp >= 30", "did you mean psnr_lq?"),
        ("beauty", "there are psnr"),
    ],
)
def test_what_is_no_rule_is_one_line_with_a_right_one(text, said):
    with pytest.raises(UsageError) as caught:
        parse_rule(text)
    message = str(caught.value)
    assert said in message and "'niqe where psnr_lq >= 30'" in message and "\n" not in message


# --- choosing -------------------------------------------------------------------------------------


def test_the_best_knows_its_direction():
    assert chosen("psnr", psnr=[20, 30, 25]) == (1, True)
    assert chosen("niqe", niqe=[5, 7, 4]) == (2, True)


def test_limits_are_kept_and_a_score_on_the_limit_keeps_it():
    assert chosen("niqe where psnr_lq >= 30", niqe=[3, 4, 5], psnr_lq=[29.99, 30, 31]) == (1, True)
    assert chosen("psnr where niqe <= 5", psnr=[30, 29, 28], niqe=[6, 5, 4]) == (1, True)
    both = "clipiqa where psnr >= 25 and ssim >= 0.7"
    assert chosen(
        both, clipiqa=[0.9, 0.8, 0.7, 0.6], psnr=[30, 24, 25, 26], ssim=[0.6, 0.8, 0.7, 0.9]
    ) == (2, True)


def test_of_equals_the_first_is_chosen():
    assert chosen("niqe", niqe=[5, 4, 4]) == (1, True)
    assert chosen("niqe where psnr_lq >= 30", niqe=[5, 5], psnr_lq=[20, 20]) == (0, False)


def test_nan_never_wins_and_never_keeps_a_limit():
    assert chosen("niqe", niqe=[NAN, 9]) == (1, True)
    assert chosen("psnr", psnr=[NAN, 9, NAN]) == (1, True)
    assert chosen("niqe where psnr_lq >= 30", niqe=[1, 9], psnr_lq=[NAN, 31]) == (1, True)
    assert chosen("niqe where psnr_lq <= 30", niqe=[1, 9], psnr_lq=[NAN, 29]) == (1, True)
    assert chosen("niqe where psnr_lq >= 30", niqe=[1, 9], psnr_lq=[NAN, 3]) == (1, False)
    assert chosen("niqe where psnr_lq >= 30", niqe=[9, 1], psnr_lq=[NAN, NAN]) == (1, False)


def test_where_no_pair_keeps_the_limits_the_nearest_is_chosen():
    assert chosen("niqe where psnr_lq >= 30", niqe=[1, 2, 3], psnr_lq=[10, 29, 28]) == (1, False)
    # 10 % of psnr is nearer than 20 % of ssim, though 3 dB is the larger number.
    both = "niqe where psnr >= 30 and ssim >= 0.5"
    assert chosen(both, niqe=[1, 1], psnr=[31, 27], ssim=[0.4, 0.6]) == (1, False)
    assert chosen("psnr where niqe <= 0", psnr=[9, 9], niqe=[2, 1]) == (1, False)


@pytest.mark.parametrize(
    "table", [{}, scores(niqe=[NAN, NAN], psnr_lq=[31, 32]), scores(psnr_lq=[31])]
)
def test_without_a_number_there_is_no_choice(table):
    with pytest.raises(PisasrError, match="niqe has no number") as caught:
        choose(parse_rule("niqe where psnr_lq >= 30"), table)
    assert "\n" not in str(caught.value)


SCORE = st.one_of(st.just(NAN), st.integers(-3, 3).map(float))


@given(st.lists(st.tuples(SCORE, SCORE, SCORE), min_size=1, max_size=8))
def test_a_choice_is_that_of_a_plain_search(rows):
    rule = parse_rule("psnr where niqe <= 1 and psnr_lq >= -1")
    table = scores(
        psnr=[r[0] for r in rows], niqe=[r[1] for r in rows], psnr_lq=[r[2] for r in rows]
    )
    kept = [
        pair
        for pair, row in table.items()
        if row["niqe"] <= 1 and row["psnr_lq"] >= -1 and row["psnr"] > -9
    ]
    if kept:
        wanted = max(kept, key=lambda pair: table[pair]["psnr"])
        assert choose(rule, table) == Choice(wanted, True, table[wanted])
    elif any(row["psnr"] > -9 for row in table.values()):
        assert not choose(rule, table).kept
    else:
        pytest.raises(PisasrError, choose, rule, table)


def test_candidates_may_come_one_by_one_and_bring_their_picture():
    rule, table = (
        parse_rule("niqe where psnr_lq >= 30"),
        scores(niqe=[3, 4, 5], psnr_lq=[29, 30, 31]),
    )
    candidates = ((pair, row, f"picture {pair[0]:g}") for pair, row in table.items())
    assert pick(rule, candidates) == (choose(rule, table), "picture 1")


def test_a_choice_is_told_in_one_line():
    rule = parse_rule("niqe where psnr_lq >= 30 and niqe <= 9")
    row = {"niqe": 4.81234, "psnr_lq": 31.2}
    said = "lambda_pix 0.75, lambda_sem 1: niqe 4.8123, psnr_lq 31.20"
    assert describe(rule, Choice((0.75, 1.0), True, row)) == said
    assert (
        describe(rule, Choice((0.75, 1.0), False, row))
        == f"no pair has {rule.demand}; nearest: {said}"
    )


# --- strengths in a word --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,0.5,1", [0, 0.5, 1]),
        ("1", [1]),
        ("0:1.5:0.25", [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]),
        ("0:0.5:0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ("0:1:0.4", [0, 0.4, 0.8]),
        ("1:-0.2:-0.6", [1, 0.4, -0.2]),
        ("-0.3:0.3:0.3", [-0.3, 0, 0.3]),
        ("2:2:1", [2]),
        ("0:1:0.5,1.25", [0, 0.5, 1, 1.25]),
        (" 1 , 0 : 1 : 0.5 ", [1, 0, 0.5]),
        ("1,1.0,1e0", [1]),
        ("0.1,0.1000000000000001", [0.1]),
        ("1:200:1", list(range(1, 201))),
    ],
)
def test_lists_and_ranges_of_strengths(text, values):
    assert parse_lambdas(text) == values


@given(st.integers(-50, 50), st.integers(1, 40), st.integers(0, 100), st.integers(0, 4))
def test_ranges_hold_the_numbers_that_a_person_would_write(start, step, count, digits):
    numbers = [f"{(start + k * step) / 10**digits:.{digits}f}" for k in range(count + 1)]
    text = f"{numbers[0]}:{numbers[-1]}:{step / 10**digits:.{digits}f}"
    assert parse_lambdas(text) == [float(number) for number in numbers]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "finite number"),
        ("0,,1", "finite number"),
        ("0,x", "'x'"),
        ("nan", "'nan'"),
        ("snan", "'snan'"),
        ("0:inf:1", "'inf'"),
        ("1e999", "'1e999'"),
        ("1e99999999999999999999", "finite number"),
        ("0:1", "start:stop:step"),
        ("0:1:0.5:2", "start:stop:step"),
        ("0:1:0", "never gets from 0 to 1"),
        ("0:1:1e-999", "never gets"),
        ("0:1:-0.5", "never gets from 0 to 1"),
        ("1:0:0.5", "never gets from 1 to 0"),
        ("0:200:1", "more than 200"),
        ("0:1e300:1e-300", "more than 200"),
        ("0:150:1,200:300:1", "more than 200"),
    ],
)
def test_what_is_no_list_of_strengths_is_one_line(text, said):
    with pytest.raises(UsageError) as caught:
        parse_lambdas(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_rules_do_not_wait_for_numpy():
    code = "import sys, pisasr.evaluation.rules, pisasr.commands.options\n"
    code += "assert not {'numpy', 'torch', 'PIL'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
