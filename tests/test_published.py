"""The literature as data: every number has a source, and ours is held against it with no benefit of
the doubt.
"""

import csv
import math
import os
from pathlib import Path

import pytest

from pisasr.errors import PisasrError
from pisasr.evaluation.metrics import METRICS
from pisasr.evaluation.published import (
    Comparison,
    compare_published,
    load_published,
    render_published,
)
from pisasr.evaluation.testsets import known_sets

REALSR = Path(os.environ.get("PISASR_REALSR", Path(__file__).parents[2] / "shared" / "realsr"))
needs_realsr = pytest.mark.skipif(
    not REALSR.is_dir(), reason="no RealSR beside this checkout, nor in PISASR_REALSR"
)

OSEDIFF = {"psnr": 25.1511, "ssim": 0.73408, "fid": 123.4938, "lpips": None, "niqe": float("nan")}


def compare(set_name, methods, aliases=None):
    return compare_published(set_name, methods, aliases or {})


def by_metric(found, source):
    return {
        comparison.metric: comparison for comparison in found if comparison.row.source == source
    }


def test_every_row_has_a_known_set_a_source_and_numbers():
    published = load_published()
    for row in published["rows"]:
        assert row.set in known_sets() and row.source in published["sources"], row
        assert row.scores and all(
            name in METRICS and math.isfinite(float(text)) for name, text in row.scores.items()
        )
        assert row.read == (row.source != "MEM"), row
    assert len({(row.set, row.method, row.source) for row in published["rows"]}) == len(
        published["rows"]
    )


def test_printed_decimals_are_kept():
    rows = [
        row for row in load_published()["rows"] if (row.set, row.method) == ("RealSR", "PiSA-SR")
    ]
    assert {row.scores["psnr"] for row in rows} == {"25.50"}
    assert all(
        len(row.scores["ssim"]) == 6 for row in load_published()["rows"] if "ssim" in row.scores
    )


def test_means_are_held_against_every_source():
    found = compare("RealSR", {"OSEDiff": OSEDIFF})
    printed, log = by_metric(found, "RSD_T17"), by_metric(found, "OSE_LOG")
    assert printed["psnr"].published == "25.15" and printed["psnr"].verdict == "reproduced"
    assert log["psnr"].published == "25.1511" and log["psnr"].difference == pytest.approx(0)
    assert {printed[name].verdict for name in ("lpips", "niqe", "musiq")} == {"not computed"}
    assert printed["niqe"].ours is None and printed["niqe"].difference is None
    assert "for: mine." in render_published("RealSR", found, ["OSEDiff", "mine"], 100)


def test_a_border_of_four_pixels_is_not_the_published_protocol():
    """It moves RealSR's PSNR by 0.02 dB: less than two prints of a paper differ, more than fixed
    pictures may.
    """
    found = compare("RealSR", {"bicubic": {"psnr": 27.1128 + 0.02}})
    assert by_metric(found, "LOCAL")["psnr"].verdict == "not reproduced"


def test_tolerance_ends_where_it_says():
    def verdict(psnr):
        return by_metric(compare("RealSR", {"PiSA-SR": {"psnr": psnr}}), "RSD_T17")["psnr"].verdict

    assert [verdict(psnr) for psnr in (25.47, 25.53, 25.4699, 25.5301)] == ["reproduced"] * 2 + [
        "not reproduced"
    ] * 2


def test_tolerance_is_the_sources_then_the_sets_then_the_metrics():
    def tolerance(set_name, source, metric):
        row = next(
            row for row in load_published()["rows"] if (row.set, row.source) == (set_name, source)
        )
        return Comparison("ours", metric, None, row).tolerance

    assert tolerance("RealSR", "RSD_T17", "psnr") == 0.03
    assert tolerance("RealSR", "OSE_LOG", "psnr") == 0.001
    assert (
        tolerance("DIV2K-Val", "RSD_T17", "fid") == 0.2
        and tolerance("RealSR", "RSD_T17", "fid") == 0.5
    )


def test_tolerance_is_never_below_half_of_the_last_printed_digit():
    row = next(row for row in load_published()["rows"] if row.source == "OSE_LOG")
    blunt = row._replace(scores={"psnr": "25.2"})
    assert Comparison("ours", "psnr", None, blunt).tolerance == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["osediff", "OSE-Diff", "ose_diff", "OSE Diff"])
def test_spelling_of_names_is_disregarded(name):
    assert compare("real-sr", {name: OSEDIFF})[0].row.method == "OSEDiff"


def test_an_alias_says_what_ours_is_called():
    found = compare("RealSR", {"ours (1, 1)": {"psnr": 25.5}}, {"ours (1,1)": "pisa_sr"})
    assert {comparison.row.method for comparison in found} == {"PiSA-SR"}
    assert "| ours (1, 1) = PiSA-SR | PSNR | 25.500 | 25.50 | +0.000 |" in render_published(
        "RealSR", found, [], 100
    )
    with pytest.raises(PisasrError, match="'PiSA-RS'.*did you mean 'PiSA-SR'"):
        compare("RealSR", {"ours": {}}, {"ours": "PiSA-RS"})


def test_an_unknown_set_is_refused_in_one_line():
    with pytest.raises(PisasrError, match="'RealSRR'; did you mean 'RealSR'.*DIV2K-Val") as caught:
        compare("RealSRR", {})
    assert "\n" not in str(caught.value)


def test_another_count_is_said():
    found = compare("DRealSR", {"bicubic": {"psnr": 30.544}})
    full, part = (render_published("DRealSR", found, ["bicubic"], count) for count in (93, 90))
    assert "were scored" not in full
    assert "- 90 pictures were scored, the published DRealSR has 93" in part


def test_the_summary_counts_what_the_table_shows():
    scores = {"psnr": 26.92, "lpips": 0.4, "clipiqa": None}
    text = render_published(
        "RealSR", compare("RealSR", {"PiSA-SR (1, 0)": scores}), ["PiSA-SR (1, 0)"], 100
    )
    assert text.startswith(
        "RealSR: 1 of 4 published numbers reproduced within their tolerance; 1 not reproduced; "
        "2 not computed here; 4 of the 4 are remembered, not read.\n"
    )
    assert text.count("MEM (remembered)") == 4 and "- MEM: Remembered" in text
    assert "- Tolerance: The largest disagreement between independent prints" in text
    assert (
        "| PiSA-SR (1, 0) | LPIPS | 0.40000 | 0.3018 | +0.09820 | 0.001 | not reproduced | MEM (remembered) |"
        in text
    )


@needs_realsr
def test_published_scores_of_every_picture_have_the_published_means():
    with open(REALSR / "osediff_scores.csv", newline="") as file:
        rows = [
            {key: float(text) for key, text in row.items() if key != "name"}
            for row in csv.DictReader(file)
        ]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    found = compare("RealSR", {"OSEDiff": means})
    assert len(rows) == 100 and len({c.metric for c in found} & means.keys()) == 8
    assert {c.verdict for c in found if c.metric != "fid"} == {"reproduced"}
