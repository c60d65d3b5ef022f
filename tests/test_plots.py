"""The plot: what it says in words is true, and what lacks a number is named."""

import re
import sys

import pytest

pytest.importorskip("matplotlib")

from pisasr.errors import PisasrError
from pisasr.evaluation.plots import draw_perception_distortion, draw_plots


def column(mean, low=None, high=None):
    return {"mean": mean, "count": 9} | ({"interval": [low, high]} if low else {})


POINTS = {
    "bicubic": {
        "psnr": column(27.1, 26.5, 27.7),
        "niqe": column(9.0, 8.8, 9.1),
        "lpips": column(0.5),
    },
    "lanczos": {
        "psnr": column(27.2, 26.6, 27.8),
        "niqe": column(9.1, 9.0, 9.3),
        "lpips": column(None),
    },
    "OSEDiff": {
        "psnr": column(25.2, 24.7, 25.6),
        "niqe": column(5.6, 5.3, 6.0),
        "lpips": column(0.29),
    },
}


def grid(lambdas=(0, 0.5, 1)):
    """Methods and which pairs they are, as draw_perception_distortion takes them."""
    pairs = {f"ours ({pix:g}, {sem:g})": (pix, sem) for pix in lambdas for sem in lambdas}
    columns = {
        method: {"psnr": column(28 - (pix - 0.5) ** 2 - sem), "niqe": column(8 - sem + pix)}
        for method, (pix, sem) in pairs.items()
    }
    return POINTS | columns, pairs


def words(path):
    """The lines of text in an SVG."""
    return [
        re.sub("<[^>]*>", "", text)
        for text in re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(), re.DOTALL)
    ]


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_numbers_give_the_same_bytes(tmp_path, ending):
    methods, pairs = grid()
    for name in ("one", "two"):
        draw_perception_distortion(tmp_path / f"{name}.{ending}", methods, "psnr", ["niqe"], pairs)
    one, two = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert one.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one.{ending}", f"two.{ending}"]


def test_every_method_is_named_once_and_who_lacks_a_number_over_the_panel(tmp_path):
    draw_perception_distortion(tmp_path / "plot.svg", POINTS, "psnr", ["niqe", "lpips"])
    found = words(tmp_path / "plot.svg")
    assert [found.count(method) for method in POINTS] == [1, 1, 1]
    assert found.count("no number: lanczos") == 1
    assert found.count("PSNR (dB) ↑") == 2 and "NIQE ↓" in found


def test_the_grid_names_its_corners_and_the_two_usual_pairs(tmp_path):
    methods, pairs = grid((0, 1, 1.5))
    draw_perception_distortion(tmp_path / "plot.svg", methods, "psnr", ["niqe"], pairs)
    found = words(tmp_path / "plot.svg")
    named = {"(0, 0)", "(0, 1.5)", "(1.5, 0)", "(1.5, 1.5)", "(1, 0)", "(1, 1)"}
    assert {text for text in found if re.fullmatch(r"\([\d., ]+\)", text)} == named
    assert {"bicubic", "OSEDiff"} <= set(found)


def test_a_summary_draws_what_it_has_numbers_for(tmp_path):
    methods, pairs = grid((0, 1))
    metrics = dict.fromkeys(["psnr", "niqe", "musiq"], "")
    draw_plots(
        tmp_path,
        {"methods": methods, "protocol": {"metrics": dict.fromkeys(["psnr", "musiq"])}},
        "svg",
    )
    assert not list(tmp_path.iterdir())
    draw_plots(
        tmp_path,
        {"methods": methods, "protocol": {"metrics": metrics}, "surface": {"methods": pairs}},
        "svg",
    )
    (path,) = tmp_path.iterdir()
    assert "(1, 0)" in words(path) and not any("MUSIQ" in text for text in words(path))


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        PisasrError, match="^plots need matplotlib; pip install matplotlib, or [^\n]*$"
    ):
        draw_perception_distortion(tmp_path / "plot.png", POINTS, "psnr", ["niqe"])
    assert not (tmp_path / "plot.png").exists()
