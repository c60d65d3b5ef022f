"""The scores a paper prints must be the scores we compute."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pisasr.evaluation.metrics import PSNR_CEILING, luma, psnr_lq, psnr_y, ssim_y

REALSR = Path(os.environ.get("PISASR_REALSR", Path(__file__).parents[2] / "shared" / "realsr"))


def random_picture(seed: int, height: int = 24, width: int = 31) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_luma_spans_the_studio_range():
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert luma(black).item() == pytest.approx(16 / 255)
    assert luma(white).item() == pytest.approx(235 / 255)


def test_psnr_by_hand():
    hq = np.full((16, 16, 3), 100, np.uint8)
    step = 10 * (65.481 + 128.553 + 24.966) / 255 / 255  # ten levels of grey, seen through Y
    assert psnr_y(hq + np.uint8(10), hq) == pytest.approx(-10 * math.log10(step**2 + 1e-8))


def test_equal_pictures_score_80_db_and_1():
    picture = random_picture(0)
    assert psnr_y(picture, picture) == pytest.approx(80) == PSNR_CEILING
    assert ssim_y(picture, picture) == pytest.approx(1)


def test_border_is_left_out():
    hq = random_picture(1)
    sr = hq.copy()
    sr[:4], sr[-4:], sr[:, :4], sr[:, -4:] = 0, 0, 0, 0
    assert psnr_y(sr, hq, border=4) == PSNR_CEILING
    assert ssim_y(sr, hq, border=4) == pytest.approx(1)
    assert psnr_y(sr, hq, border=3) < 80


def test_ssim_equals_its_definition_at_one_window():
    """An 11x11 picture has one window, so SSIM is the formula itself, written here with plain weighted moments."""
    x, y = (random_picture(seed, 11, 11) for seed in (2, 3))
    lx, ly = np.round(luma(x) * 255), np.round(luma(y) * 255)
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    mx, my = (weights * lx).sum(), (weights * ly).sum()
    vx, vy = (weights * (lx - mx) ** 2).sum(), (weights * (ly - my) ** 2).sum()
    cov = (weights * (lx - mx) * (ly - my)).sum()
    c1, c2 = 6.5025, 58.5225
    contrast = max((2 * cov + c2) / (vx + vy + c2), 0)
    assert ssim_y(x, y) == pytest.approx((2 * mx * my + c1) / (mx**2 + my**2 + c1) * contrast)


def test_ssim_contrast_never_pulls_below_zero():
    x = random_picture(4)
    assert ssim_y(255 - x, x) >= 0


def test_ssim_without_room_for_a_window_is_nan():
    assert math.isnan(ssim_y(random_picture(5, 10, 40), random_picture(6, 10, 40)))


def test_psnr_lq_is_high_for_an_enlarged_input_and_low_for_another_picture():
    lq = np.asarray(Image.fromarray(random_picture(7, 4, 4)).resize((16, 16), Image.Resampling.BICUBIC))
    enlarged = np.asarray(Image.fromarray(lq).resize((64, 64), Image.Resampling.BICUBIC))
    assert psnr_lq(enlarged, lq) > 30 > psnr_lq(255 - enlarged, lq)


@pytest.mark.skipif(not REALSR.is_dir(), reason="no RealSR pairs beside this checkout, nor in PISASR_REALSR")
def test_psnr_and_ssim_agree_with_published_scores_of_every_picture():
    def read(path):
        return np.asarray(Image.open(path).convert("RGB"))

    with open(REALSR / "osediff_scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    for row in rows:
        sr, hq = read(REALSR / "osediff" / row["name"]), read(REALSR / "hr" / row["name"])
        assert psnr_y(sr, hq) == pytest.approx(float(row["psnr"]), abs=1e-4), row["name"]
        assert ssim_y(sr, hq) == pytest.approx(float(row["ssim"]), abs=1e-5), row["name"]
