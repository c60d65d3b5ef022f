"""The benchmark: a row for each case, whose numbers are in the order that they must be."""

import json

import benchmark
import pytest

from pisasr.errors import UsageError


def run(*words):
    benchmark.run(benchmark.parser().parse_args(["--device", "cpu", "--seconds", "0.1", *words]))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "bench.json"
    run("--px", "64", "--output", str(output))
    return json.loads(output.read_text())


def test_every_mode_has_a_row_with_time_and_operations(report):
    assert [row["case"] for row in report["rows"]] == list(benchmark.MODES)
    assert all(row["seconds"] > 0 and row["px"] == 64 for row in report["rows"])
    assert report["device"] == "cpu" and report["torch"]


def test_two_passes_count_more_than_one_and_one_more_than_none(report):
    tflop = {row["case"]: row["tflop"] for row in report["rows"]}
    one, _, two, none = (tflop[name] for name in benchmark.MODES)
    assert two > one > none
    assert two - none == pytest.approx(2 * (one - none), rel=0.02)


def test_wrong_words_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="no multiple of 64"):
        run("--px", "100")
    with pytest.raises(UsageError, match="lies in no folder"):
        run("--output", str(tmp_path / "absent" / "bench.json"))


@pytest.mark.slow
def test_a_training_step_of_each_stage_is_timed(tmp_path):
    run("--px", "64", "--training", "--output", str(tmp_path / "bench.json"))
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["case"] for row in rows[-2:]] == ["training step, pix", "training step, sem"]
    assert all(row["seconds"] > 0 and row["tflop"] > 0 for row in rows)
