"""The benchmark counts what it says, on any machine the same; times in turn; and finds a wrong fast
path.
"""

import json
import warnings

import benchmark
import numpy as np
import pytest
import torch

from pisasr.benchmark import cases
from pisasr.benchmark.bench import Bench, Row, Variant, called_published, time_pairs
from pisasr.benchmark.counting import count
from pisasr.benchmark.report import as_json, as_markdown, exponent
from pisasr.benchmark.subjects import write_model
from pisasr.errors import OK, MemoryShort, UsageError
from pisasr.method.model import Plan
from pisasr.options import Options

F = torch.nn.functional


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(
        write_model("tiny", tmp_path_factory.mktemp("model")), "tiny", pairs=1, counting="cpu"
    )


def measured(bench, case, px):
    return {row.variant: row for row in bench.measure(case, cases.CASES[case], [px])}


def counted(bench, case, sizes):
    """Every variant of a case by name, counted and not run."""
    return {v.name: v.count() for group in cases.CASES[case](bench, sizes) for v in group}


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_convolution_and_attention_are_counted_as_by_hand(device):
    x, kernel = torch.ones(1, 3, 8, 10, device=device), torch.ones(5, 3, 3, 3, device=device)
    q, k = torch.ones(2, 4, 6, 8, device=device), torch.ones(2, 4, 7, 8, device=device)
    conv = count(lambda: F.conv2d(x, kernel, padding=1), device)
    assert (conv.flops, conv.peak_bytes) == (2 * 5 * 3 * 9 * 8 * 10, 4 * 5 * 8 * 10)
    attention = count(lambda: F.scaled_dot_product_attention(q, k, k), device)
    assert attention.flops == 2 * 2 * (2 * 4) * 6 * 7 * 8


def test_backward_attention_on_a_processor_is_counted_too():
    q = torch.ones(1, 1, 4, 8, requires_grad=True)
    forward = count(lambda: F.scaled_dot_product_attention(q, q, q), "cpu").flops
    both = count(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward(), "cpu").flops
    assert both == 7 * forward / 2  # two products forward, five backward


def test_bytes_are_those_held_at_once():
    x = torch.ones(1000, device="meta")
    assert count(lambda: x.add(1).view(10, 100).mul_(2).add(1)).peak_bytes == 8000
    assert count(lambda: x.view(10, 100)).peak_bytes == 0


def test_unet_calls_and_flops_of_every_mode(bench):
    found = counted(bench, "modes", [64])
    calls = {name: one.unet_calls for name, one in found.items()}
    assert calls == {
        "default (1, 1)": 1,
        "adjustable": 2,
        "pix alone (L, 0)": 1,
        "equal (L, L)": 1,
        "nothing (0, 0)": 0,
    }
    one, two, none = (
        found[name].flops for name in ("default (1, 1)", "adjustable", "nothing (0, 0)")
    )
    assert two - one == one - none > 0


def test_tensors_without_data_cost_the_same(bench):
    without = Bench(bench.model, "tiny", counting="meta")
    here, there = (
        one.restoring("adjustable", (64, 64), [(0.7, 1.2)]).count() for one in (bench, without)
    )
    assert here.flops == there.flops and here.unet_calls == there.unet_calls == 2


def test_a_sweep_of_any_length_is_one_encode_and_two_passes(bench):
    found = counted(bench, "sweep", [64])
    assert [one.unet_calls for one in found.values()] == [2, 2, 2, 2]
    one, four, nine, sixteen = (one.flops for one in found.values())
    assert four - one == 3 * (nine - four) / 5 == 3 * (sixteen - nine) / 7  # decodes


def test_the_published_algorithm_encodes_and_looks_twice_for_each_strength(bench):
    one, four = (
        cases.beside_published(bench, 64, cases.grid_of(n), cases.WeightSwap) for n in (1, 4)
    )
    theirs, ours = four[0].count(), four[2].count()
    assert theirs.unet_calls == 4 * one[0].count().unet_calls == 4 * ours.unet_calls == 8
    assert theirs.flops == 4 * one[0].count().flops > ours.flops


def test_its_pictures_are_ours_and_a_wrong_one_is_found(bench):
    theirs, same, _ = cases.beside_published(bench, 128, [cases.ADJUSTED], cases.WeightSwap)
    assert theirs.count().unet_calls == same.count().unet_calls > 2  # of several tiles
    made, wanted = theirs.made(), theirs.wanted()
    assert np.abs(made - wanted).max() * 255 < 0.05
    wrong = Variant("wrong", list, made=lambda: made + 0.01, wanted=lambda: wanted, exact=True)
    (row,) = bench.measure("wrong", lambda *_: iter([[wrong]]), [])
    assert row.failed and "differs" in row.note and row.max_levels > 2.5


def test_flops_and_bytes_grow_with_the_area(bench):
    sizes = [64, 128, 192]
    found = [
        one
        for name, one in counted(bench, "scaling", sizes).items()
        if len(set(name.split(" x "))) == 1
    ]
    areas = [px * px for px in sizes]
    assert 1 < exponent(areas, [one.flops for one in found]) < 1.4  # of the square
    assert exponent(areas, [one.peak_bytes for one in found]) < 1.1


def test_exponent_of_a_square_law_is_two():
    assert exponent([1, 2, 3], [5, 20, 45]) == pytest.approx(2)


def test_calls_alternate():
    order = []
    times = time_pairs(lambda: order.append("A"), lambda: order.append("B"), 3, 60, "cpu")
    assert order == list("ABABAB") and len(times) == 3
    assert len(time_pairs(list, list, 9, 0, "cpu")) == 1


def test_published_plan_is_asked_for_where_there_is_a_choice():
    for options in (Options, Plan):
        assert all(value == "published" for value in called_published(options).values())
        assert set(called_published(options)) <= set(options.__dataclass_fields__)


def test_training_takes_a_step_of_each_stage(bench):
    pytest.importorskip("accelerate")
    rows = measured(bench, "training", 64)
    assert not any(row.failed for row in rows.values()), [row.note for row in rows.values()]
    assert rows["pix step"].unet_calls == 1 < rows["sem step"].unet_calls


def test_the_report_has_every_row_and_what_could_not_be_measured(tmp_path, capsys):
    output = tmp_path / "bench.json"
    words = ["--size", "tiny", "--device", "cpu", "--px", "64", "--cases", "dtypes", "--pairs", "1"]
    assert benchmark.run(benchmark.parser().parse_args([*words, "--output", str(output)])) == OK
    report = json.loads(output.read_text())
    assert report.keys() == {"schema", "machine", "settings", "ceilings", "exponents", "rows"}
    assert all(row.keys() == Row.__dataclass_fields__.keys() for row in report["rows"])
    rows = {row["variant"]: row for row in report["rows"]}
    first = report["rows"][0]
    assert first["against"] == first["variant"] == "as loaded" and first["ratio"] > 0
    assert first["max_levels"] < 0.05 < rows["bf16 NHWC"]["max_levels"] and not any(
        row["failed"] for row in rows.values()
    )
    assert (
        rows["fp16 NCHW"]["ms"] is None and "skipped: fp16 wants a GPU" in capsys.readouterr().out
    )
    assert report["ceilings"]["fp32"].keys() == {"matmul", "conv3x3"}


def test_a_case_that_fails_is_a_row_and_the_others_go_on(bench):
    def case(bench, sizes):
        yield [Variant("good", list), Variant("bad", lambda: 1 / 0)]
        raise RuntimeError("no such thing")

    rows = list(bench.measure("odd", case, []))
    assert [row.failed for row in rows] == [False, True, True]
    assert "division" in rows[1].note and "no such thing" in rows[2].note
    assert "division" in as_markdown(as_json(bench, {}), rows)


def test_a_pipeline_that_ran_out_of_memory_and_went_on_is_no_measurement(bench):
    def smaller():
        warnings.warn("going on with smaller tiles", MemoryShort, stacklevel=1)

    (row,) = bench.measure("large", lambda *_: iter([[Variant("whole", smaller)]]), [])
    assert row.ms is None and row.note == "skipped: out of memory" and not row.failed


def test_names_in_the_help_are_the_cases():
    assert list(cases.CASES) == benchmark.NAMES
    assert benchmark.case_names("modes,tiles") == ["modes", "tiles"] and benchmark.pixel_sizes(
        "512,64"
    ) == [64, 512]


@pytest.mark.parametrize("wrong", ["12", "64,x", "0", ""])
def test_wrong_sizes_are_one_line(wrong):
    with pytest.raises(UsageError, match="wanted"):
        benchmark.pixel_sizes(wrong)


def test_wrong_case_and_folder_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="no case 'x'; there are modes"):
        benchmark.case_names("modes,x")
    with pytest.raises(UsageError, match="lies in no folder"):
        benchmark.run(
            benchmark.parser().parse_args(["--output", str(tmp_path / "absent" / "bench.json")])
        )
