"""Intervals cover what they should, and a paired comparison sees what means hide."""

import numpy as np
import pytest

from pisasr.evaluation.report import _compare
from pisasr.evaluation.statistics import bootstrap_intervals, sign_flip_p


def compare(first, second, metric: str) -> dict:
    return _compare({"a": {metric: first}, "b": {metric: second}}, "a", "b", metric)


def test_intervals_are_those_of_the_normal_where_it_holds():
    values = np.random.default_rng(1).normal(5, 2, 400)
    ((low, high),) = bootstrap_intervals(values[:, None])
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.default_rng(2)
    columns = rng.normal(0, 1, (60, 100))
    intervals = bootstrap_intervals(columns)
    assert 88 <= np.sum((intervals[:, 0] <= 0) & (0 <= intervals[:, 1])) <= 99


def test_a_rerun_says_the_same_and_one_picture_has_no_width():
    column = np.random.default_rng(3).random((20, 1))
    assert np.array_equal(bootstrap_intervals(column), bootstrap_intervals(column))
    assert bootstrap_intervals(np.array([[3.0]])).tolist() == [[3.0, 3.0]]


def test_a_small_gain_on_every_picture_is_seen_through_their_differences():
    """Pictures spread over 10 dB, the gain is 0.1 dB: intervals of the two means overlap, that of
    the gain does not.
    """
    rng = np.random.default_rng(4)
    second = rng.normal(25, 5, 100)
    first = second + rng.normal(0.1, 0.1, 100)
    found = compare(first, second, "psnr")
    apart = bootstrap_intervals(np.stack([first, second], axis=1))
    assert apart[0, 0] < apart[1, 1] and found["interval"][0] > 0
    assert found["first_better"] > 70 and found["first_better"] + found["second_better"] == 100
    assert found["p"] == pytest.approx(1e-4, rel=0.01)


def test_lower_may_be_better():
    found = compare([1.0, 2, 3], [2.0, 3, 3], "niqe")
    assert (found["first_better"], found["second_better"]) == (2, 0) and found[
        "difference"
    ] == pytest.approx(-2 / 3)


def test_pictures_without_a_number_from_both_are_left_out_and_the_rest_counted():
    assert compare([1.0, np.nan, 3], [np.nan, 2.0, 4], "psnr")["count"] == 1
    assert compare([np.nan], [1.0], "psnr") == {
        "first": "a",
        "second": "b",
        "metric": "psnr",
        "count": 0,
    }


def test_sign_flips_give_the_exact_p_of_few_pictures():
    """Four equal differences: of 16 ways to flip signs, two are as far from zero."""
    assert sign_flip_p(np.ones(4)) == 2 / 16
    assert sign_flip_p(np.zeros(5)) == 1
