"""The plots: what they say in words is true, and what lacks a number is named."""

import math
import re
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from pisasr.errors import PisasrError
from pisasr.evaluation.plots import draw_perception_distortion, draw_plots, draw_surface, pareto_front


def column(mean, low=None, high=None):
    return {"mean": mean, "count": 9} | ({"interval": [low, high]} if low else {})


POINTS = {
    "bicubic": {"psnr": column(27.1, 26.5, 27.7), "niqe": column(9.0, 8.8, 9.1), "lpips": column(0.5)},
    "lanczos": {"psnr": column(27.2, 26.6, 27.8), "niqe": column(9.1, 9.0, 9.3), "lpips": column(None)},
    "OSEDiff": {"psnr": column(25.2, 24.7, 25.6), "niqe": column(5.6, 5.3, 6.0), "lpips": column(0.29)},
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
    return [re.sub("<[^>]*>", "", text) for text in re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(), re.DOTALL)]


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
    assert "front of the grid" in found and {"bicubic", "OSEDiff"} <= set(found)


def test_the_front_keeps_what_nothing_beats_whichever_direction_is_better():
    points = [(30, 9), (28, 5), (29, 7), (27, 6), (29, 8), (31, math.nan)]
    assert pareto_front(points, "psnr", "niqe") == [points[1], points[2], points[0]]
    assert pareto_front([(30, 9), (30, 9)], "psnr", "niqe") == [(30, 9), (30, 9)]
    assert pareto_front([(1, 2), (2, 1)], "psnr", "ssim")[0] == (1, 2)


def test_a_summary_draws_what_it_has_numbers_for(tmp_path):
    methods, pairs = grid((0, 1))
    maps = {"psnr": [[28.0, None], [27.0, 26.0]]}
    surface = {"methods": pairs, "maps": maps, "lambdas_pix": [0, 1], "lambdas_sem": [0, 1], "best": {"pair": (1, 0)}}
    metrics = dict.fromkeys(["psnr", "niqe", "musiq"], "")
    summary = {"methods": methods, "protocol": {"metrics": metrics}, "paired": [{"first": "a", "second": "b"}]}
    draw_plots(tmp_path, summary, "svg")
    assert {path.name for path in tmp_path.iterdir()} == {"perception_distortion.svg"}
    draw_plots(tmp_path, summary | {"surface": surface}, "svg")
    assert "outlined: (1, 0)" in " ".join(words(tmp_path / "surface.svg"))
    assert not any("MUSIQ" in text for path in tmp_path.iterdir() for text in words(path))


def test_no_numbers_at_all_still_make_a_plot(tmp_path):
    draw_surface(tmp_path / "plot.png", {"lpips": [[math.nan]]}, [1], [1])


def test_a_surface_shows_every_value_and_no_nan(tmp_path):
    surfaces = {"psnr": [[25.123, 26], [27, math.nan]], "ssim": np.array([[0.1, 0.2], [0.3, 0.4]])}
    draw_surface(tmp_path / "plot.svg", surfaces, [0, 1], [0.5, 1.5], best=(1, 0.5))
    found = words(tmp_path / "plot.svg")
    assert {"25.12", "26.00", "27.00", "0.1000", "0.4000"} <= set(found) and "nan" not in found
    assert "lighter is better, the best value is bold; outlined: (1, 0.5)" in found


def test_lighter_is_better_whichever_direction_is_better(tmp_path):
    lightness = {}
    for metric in ("psnr", "niqe"):
        draw_surface(tmp_path / "plot.png", {metric: [[5.0, 9.0]]}, [1], [0, 1])
        picture = np.asarray(Image.open(tmp_path / "plot.png").convert("L"), int)
        middle = picture[picture.shape[0] // 3]
        columns = np.flatnonzero((middle > 20) & (middle < 240))
        lightness[metric] = middle[columns[len(columns) // 4]], middle[columns[3 * len(columns) // 4]]
    assert lightness["psnr"][0] < lightness["psnr"][1] and lightness["niqe"][0] > lightness["niqe"][1]


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PisasrError, match="^plots need matplotlib; pip install matplotlib, or [^\n]*$"):
        draw_surface(tmp_path / "plot.png", {"psnr": [[1.0]]}, [1], [1])
    assert not (tmp_path / "plot.png").exists()
