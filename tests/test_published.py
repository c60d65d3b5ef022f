"""The literature as data: every number has a source, and ours is held against it with no benefit of the doubt."""

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
    compare_scores,
    load_published,
    read_scores,
    render_published,
)
from pisasr.evaluation.testsets import known_sets

REALSR = Path(os.environ.get("PISASR_REALSR", Path(__file__).parents[2] / "shared" / "realsr"))
needs_realsr = pytest.mark.skipif(not REALSR.is_dir(), reason="no RealSR beside this checkout, nor in PISASR_REALSR")

OSEDIFF = {"psnr": 25.1511, "ssim": 0.73408, "fid": 123.4938, "lpips": None, "niqe": float("nan")}


def write_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def compare(set_name, methods, aliases=None):
    return compare_published(set_name, methods, aliases or {})


def by_metric(found, source):
    return {comparison.metric: comparison for comparison in found if comparison.row.source == source}


def test_every_row_has_a_known_set_a_source_and_numbers():
    published = load_published()
    for row in published["rows"]:
        assert row.set in known_sets() and row.source in published["sources"], row
        assert row.scores and all(name in METRICS and math.isfinite(float(text)) for name, text in row.scores.items())
        assert row.read == (row.source != "MEM"), row
    assert len({(row.set, row.method, row.source) for row in published["rows"]}) == len(published["rows"])


def test_printed_decimals_are_kept():
    rows = [row for row in load_published()["rows"] if (row.set, row.method) == ("RealSR", "PiSA-SR")]
    assert {row.scores["psnr"] for row in rows} == {"25.50"}
    assert all(len(row.scores["ssim"]) == 6 for row in load_published()["rows"] if "ssim" in row.scores)


def test_means_are_held_against_every_source():
    found = compare("RealSR", {"OSEDiff": OSEDIFF})
    printed, log = by_metric(found, "RSD_T17"), by_metric(found, "OSE_LOG")
    assert printed["psnr"].published == "25.15" and printed["psnr"].verdict == "reproduced"
    assert log["psnr"].published == "25.1511" and log["psnr"].difference == pytest.approx(0)
    assert {printed[name].verdict for name in ("lpips", "niqe", "musiq")} == {"not computed"}
    assert printed["niqe"].ours is None and printed["niqe"].difference is None
    assert "for: mine." in render_published("RealSR", found, ["OSEDiff", "mine"], 100)


def test_a_border_of_four_pixels_is_not_the_published_protocol():
    """It moves RealSR's PSNR by 0.02 dB: less than two prints of a paper differ, more than fixed pictures may."""
    found = compare("RealSR", {"bicubic": {"psnr": 27.1128 + 0.02}})
    assert by_metric(found, "LOCAL")["psnr"].verdict == "not reproduced"


def test_tolerance_ends_where_it_says():
    def verdict(psnr):
        return by_metric(compare("RealSR", {"PiSA-SR": {"psnr": psnr}}), "RSD_T17")["psnr"].verdict

    assert [verdict(psnr) for psnr in (25.47, 25.53, 25.4699, 25.5301)] == ["reproduced"] * 2 + ["not reproduced"] * 2


def test_tolerance_is_the_sources_then_the_sets_then_the_metrics():
    def tolerance(set_name, source, metric):
        row = next(row for row in load_published()["rows"] if (row.set, row.source) == (set_name, source))
        return Comparison("ours", metric, None, row).tolerance

    assert tolerance("RealSR", "RSD_T17", "psnr") == 0.03
    assert tolerance("RealSR", "OSE_LOG", "psnr") == 0.001
    assert tolerance("DIV2K-Val", "RSD_T17", "fid") == 0.2 and tolerance("RealSR", "RSD_T17", "fid") == 0.5


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
    assert "| ours (1, 1) = PiSA-SR | PSNR | 25.500 | 25.50 | +0.000 |" in render_published("RealSR", found, [], 100)
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
    text = render_published("RealSR", compare("RealSR", {"PiSA-SR (1, 0)": scores}), ["PiSA-SR (1, 0)"], 100)
    assert text.startswith(
        "RealSR: 1 of 4 published numbers reproduced within their tolerance; 1 not reproduced; "
        "2 not computed here; 4 of the 4 are remembered, not read.\n"
    )
    assert text.count("MEM (remembered)") == 4 and "- MEM: Remembered" in text
    assert "- Tolerance: The largest disagreement between independent prints" in text
    assert (
        "| PiSA-SR (1, 0) | LPIPS | 0.40000 | 0.3018 | +0.09820 | 0.001 | not reproduced | MEM (remembered) |" in text
    )


def test_a_csv_is_read_under_the_usual_names(tmp_path):
    path = write_csv(
        tmp_path / "s.csv",
        "\ufeffImage, PSNR-Y (dB) ↑, LPIPS, maniqa-pipal, CLIPIQA+, seconds",
        "a.png, 25.5, 0.25, 0.6, 0.7, 3",
        "b.v2.png, nan, , n/a, 0.7, 3",
    )
    scores = read_scores(path)
    assert scores["a.png"] == {"psnr": 25.5, "lpips": 0.25, "maniqa": 0.6, "clipiqa+": 0.7}
    assert [math.isnan(scores["b.v2.png"][name]) for name in ("psnr", "lpips", "maniqa")] == [True] * 3


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["name,beauty", "a,1"], "wanted name and metrics"),
        (["psnr,ssim", "1,1"], "wanted name and metrics"),
        (["name,maniqa,maniqa-pipal", "a,1,1"], "two columns for maniqa"),
        (["name,psnr", "a.png,1", "a.jpg,2"], "line 3: a.jpg was there before"),
        (["name,psnr", "a,good"], "psnr is 'good'"),
        (["name,psnr", "a"], "line 2: wanted a name and as many cells"),
        (["name,psnr", "a,1,2"], "line 2: wanted a name and as many cells"),
        (["name,psnr", ",1"], "line 2: wanted a name"),
        (["name,psnr"], "holds no scores"),
    ],
)
def test_a_csv_that_cannot_be_trusted_is_refused_in_one_line(tmp_path, lines, complaint):
    with pytest.raises(PisasrError, match=complaint) as caught:
        read_scores(write_csv(tmp_path / "s.csv", *lines))
    assert "\n" not in str(caught.value) and "s.csv" in str(caught.value)


def test_a_csv_that_is_not_there(tmp_path):
    with pytest.raises(PisasrError, match="nowhere.csv can't be read"):
        read_scores(tmp_path / "nowhere.csv")


def row(name, method="ours", **scores):
    return {"method": method, "name": name, **scores}


def test_the_largest_deviation_is_named_and_means_are_over_the_same_pictures():
    ours = [row("a.png", psnr=20.0, ssim=0.5), row("b.png", psnr=22.5, ssim=0.5), row("c.png", psnr=9.0)]
    theirs = {"b": {"psnr": 22.0, "lpips": 1.0}, "a_sr.png": {"psnr": 20.25, "lpips": 1.0}, "mean": {"psnr": 21.0}}
    text = compare_scores(ours, theirs)
    assert "| PSNR | 2 | 0.5 | b.png | 21.250000 | 21.125000 |" in text and "LPIPS" not in text
    assert text.endswith("\n\n- Only in ours: c.png.\n- Only in theirs: mean.\n")


def test_a_picture_without_a_number_is_named_and_in_neither_mean():
    nan = float("nan")
    ours = [row("a.png", psnr=20.0, niqe=nan), row("b.png", psnr=nan, niqe=nan), row("c.png", psnr=1.0, niqe=nan)]
    theirs = {"a": {"psnr": 20.0, "niqe": 5.0}, "b": {"psnr": 3.0, "niqe": 5.0}, "c": {"psnr": math.inf, "niqe": 5.0}}
    text = compare_scores(ours, theirs)
    assert "| PSNR | 1 | 0 | a.png | 20.000000 | 20.000000 |" in text
    assert "| NIQE | 0 | nan |  | nan | nan |" in text and "- PSNR: no number for b.png, c.png." in text


def test_scores_of_other_pictures_are_refused_and_no_common_metric_is_said():
    with pytest.raises(PisasrError, match="no picture in common"):
        compare_scores([row("a.png", psnr=1.0)], {"x.png": {"psnr": 1.0}})
    assert compare_scores([row("a.png", ssim=1.0)], {"a": {"psnr": 1.0}}) == "- No metric is in both.\n"


@needs_realsr
def test_published_scores_of_every_picture_have_the_published_means():
    scores = read_scores(REALSR / "osediff_scores.csv")
    means = {name: sum(row[name] for row in scores.values()) / len(scores) for name in next(iter(scores.values()))}
    found = compare("RealSR", {"OSEDiff": means})
    assert {c.verdict for c in found if c.metric != "fid"} == {"reproduced"}
    with open(REALSR / "osediff_scores.csv", newline="") as file:
        ours = [
            row(line.pop("name"), **{key: float(text) for key, text in line.items()}) for line in csv.DictReader(file)
        ]
    table = compare_scores(ours, scores).splitlines()[2:]
    assert len(table) == 8 and all("| 100 | 0 |" in line for line in table)
