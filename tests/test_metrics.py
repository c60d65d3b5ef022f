"""The scores that a paper prints are the scores that are computed."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pisasr.evaluation.metrics import load_metric, luma, psnr, psnr_lq, ssim
from pisasr.evaluation.networks import MetricUnavailable

REALSR = Path(os.environ.get("PISASR_REALSR", Path(__file__).parents[2] / "shared" / "realsr"))


def random_picture(seed: int, height: int = 24, width: int = 31) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_luma_spans_the_studio_range():
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert luma(black).item() == pytest.approx(16)
    assert luma(white).item() == pytest.approx(235)


def test_psnr_by_hand():
    hq = np.full((16, 16, 3), 100, np.uint8)
    step = 10 * (65.481 + 128.553 + 24.966) / 255 / 255  # ten levels of gray, seen through Y
    assert psnr(hq + np.uint8(10), hq) == pytest.approx(-10 * math.log10(step**2 + 1e-8))


def test_equal_pictures_score_80_db_and_1():
    picture = random_picture(0)
    assert psnr(picture, picture) == pytest.approx(80)
    assert ssim(picture, picture) == pytest.approx(1)


def test_ssim_equals_its_definition_at_one_window():
    x, y = (random_picture(seed, 11, 11) for seed in (2, 3))
    lx, ly = np.round(luma(x)), np.round(luma(y))
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    mx, my = (weights * lx).sum(), (weights * ly).sum()
    vx, vy = (weights * (lx - mx) ** 2).sum(), (weights * (ly - my) ** 2).sum()
    cov = (weights * (lx - mx) * (ly - my)).sum()
    c1, c2 = 6.5025, 58.5225
    contrast = max((2 * cov + c2) / (vx + vy + c2), 0)
    assert ssim(x, y) == pytest.approx((2 * mx * my + c1) / (mx**2 + my**2 + c1) * contrast)


def test_ssim_contrast_never_pulls_below_zero():
    x = random_picture(4)
    assert ssim(255 - x, x) >= 0


def test_what_has_no_room_is_nan():
    assert math.isnan(ssim(random_picture(5, 10, 40), random_picture(6, 10, 40)))
    assert math.isnan(psnr(random_picture(5, 0, 4), random_picture(6, 0, 4)))


def test_psnr_lq_is_high_for_an_enlarged_input_and_low_for_another_picture():
    small = Image.fromarray(random_picture(7, 4, 4)).resize((16, 16), Image.Resampling.BICUBIC)
    enlarged = np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))
    assert psnr_lq(enlarged, np.asarray(small)) > 30 > psnr_lq(255 - enlarged, np.asarray(small))


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "single", "mean"),
    [
        ("psnr", 1e-4, 1e-5),
        ("ssim", 1e-5, 1e-6),
        ("niqe", 0.04, 0.01),  # theirs was taken in single precision
        ("lpips", 1e-3, 1e-5),  # theirs on a GPU
        ("dists", 1e-3, 1e-5),
    ],
)
def test_the_100_published_scores_are_reproduced(name, single, mean):
    """OSEDiff's log of RealSR: every picture within `single`, their mean within `mean`."""
    if not REALSR.is_dir():
        pytest.skip(f"no RealSR pairs at {REALSR} (set PISASR_REALSR)")
    try:
        metric, scorer = load_metric(name, "cpu")
    except MetricUnavailable as missing:
        pytest.skip(str(missing))
    rows = list(csv.DictReader((REALSR / "osediff_scores.csv").open()))
    assert len(rows) == 100
    sides = ("osediff", "hr") if metric.needs else ("osediff",)
    ours = np.array(
        [scorer(*(read(REALSR / side / row["name"]) for side in sides)) for row in rows]
    )
    published = np.array([float(row[name]) for row in rows])
    print(f"{name}: mean {ours.mean():.6f}, off by {ours.mean() - published.mean():+.1e}")
    assert np.abs(ours - published).max() < single
    assert abs(ours.mean() - published.mean()) < mean


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))
